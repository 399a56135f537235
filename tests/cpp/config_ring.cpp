// The config ring's two halves against each other and against a peer that breaks each rule in turn.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "config_ring.hpp"
#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

struct Pages {
    alignas(page_size) std::array<std::byte, page_size> fe_bytes{};
    alignas(page_size) std::array<std::byte, page_size> be_bytes{};
    vmsg_xen_fe_page* fe = reinterpret_cast<vmsg_xen_fe_page*>(fe_bytes.data());
    vmsg_xen_be_page* be = reinterpret_cast<vmsg_xen_be_page*>(be_bytes.data());
};

struct Ring : Pages {
    FrontendRing<> frontend{fe, be};
    BackendRing<> backend{fe, be};
    Message message;
    GuestError error;

    Ring() { REQUIRE(!backend.open()); }

    Message request() const { return make_request(VMSG_GET_DEVICE_STATUS, {}, frontend.token()); }
    // One exchange; the answer is left in `message`.
    void exchange() {
        const Message asked = request();
        static_cast<void>(frontend.publish(asked));
        REQUIRE(backend.poll(message, error) == Poll::message);
        CHECK(std::memcmp(message.data(), asked.data(), asked.size()) == 0);
        static_cast<void>(backend.answer(message));
        REQUIRE(frontend.poll(message, error) == Poll::message);
    }
};

}  // namespace

TEST_CASE("config ring: opening checks the peer's magic and version, and writes the own ones") {
    Pages pages;
    BackendRing<> backend(pages.fe, pages.be);
    CHECK(backend.open() == GuestError{VMSG_XEN_BAD_MAGIC, 0});
    FrontendRing<> frontend(pages.fe, pages.be);
    CHECK(frontend.check() == GuestError{VMSG_XEN_BAD_MAGIC, 0});
    pages.fe->header.version = 2;
    CHECK(backend.open() == GuestError{VMSG_XEN_BAD_VERSION, 2});
    CHECK(pages.be->header.magic == 0);
    pages.fe->header.version = 1;
    CHECK(!backend.open());
    CHECK(!frontend.check());
    CHECK(frontend.backend_alive());
    CHECK(backend.frontend_alive());
    pages.be->header.version = 3;
    CHECK(frontend.check() == GuestError{VMSG_XEN_BAD_VERSION, 3});
    backend.close();
    CHECK(!frontend.backend_alive());
    frontend.close();
    CHECK(!backend.frontend_alive());
}

TEST_CASE("config ring: opening leaves nothing of an earlier connection in the backend's words") {
    Pages pages;
    std::memset(pages.be_bytes.data(), 0xa5, pages.be_bytes.size());
    const FrontendRing<> frontend(pages.fe, pages.be);
    BackendRing<> backend(pages.fe, pages.be);
    REQUIRE(!backend.open());
    CHECK(frontend.device_status() == 0);
    CHECK(frontend.config_generation() == 0);
    CHECK(frontend.error().code == 0);
    CHECK(frontend.error().detail == 0);
    CHECK(!frontend.backend_waiting());
    CHECK(pages.be->answer.seq == 0);
}

TEST_CASE_FIXTURE(Ring, "config ring: a request that is in the page before the backend comes is answered") {
    static_cast<void>(frontend.publish(request()));
    BackendRing<> restarted(fe, be);
    REQUIRE(!restarted.open());
    CHECK(restarted.poll(message, error) == Poll::message);
}

TEST_CASE_FIXTURE(Ring, "config ring: request and answer, each seen once") {
    CHECK(backend.poll(message, error) == Poll::nothing);
    for (int i = 0; i < 1000; ++i) {
        exchange();
        CHECK(backend.poll(message, error) == Poll::nothing);
    }
    CHECK(fe->request.seq == 1000);
    CHECK(be->answer.seq == 1000);
    static_cast<void>(frontend.publish(request()));
    CHECK(frontend.poll(message, error) == Poll::nothing);
}

TEST_CASE_FIXTURE(Ring, "config ring: every message size from a header to the longest passes, all others do not") {
    for (std::uint32_t size = 0; size <= VMSG_MAX_SIZE + 8; ++size) {
        CAPTURE(size);
        SharedMemory::store_relaxed(&fe->request.size, size);
        SharedMemory::store_relaxed(&fe->request.seq, 1U);
        const bool fits = size >= sizeof(vmsg_header) && size <= VMSG_MAX_SIZE;
        REQUIRE(backend.poll(message, error) == (fits ? Poll::message : Poll::error));
        if (fits)
            REQUIRE(message.size() == size);
        else
            REQUIRE(error == GuestError{VMSG_XEN_BAD_SIZE, size});
    }
    for (const std::uint32_t size : {0x10000U, 0x10000U + 8, 0x7fffffffU, 0x80000008U, UINT32_MAX}) {
        SharedMemory::store_relaxed(&fe->request.size, size);
        CHECK(backend.poll(message, error) == Poll::error);
        CHECK(error == GuestError{VMSG_XEN_BAD_SIZE, size});
    }
    static_cast<void>(frontend.publish(request()));
    SharedMemory::store_relaxed(&be->answer.seq, 1U);
    for (const std::uint32_t size : {0U, 7U, VMSG_MAX_SIZE + 1U, 0x10000U, 0x10000U + 8, 0x80000008U, UINT32_MAX}) {
        SharedMemory::store_relaxed(&be->answer.size, size);
        CHECK(frontend.poll(message, error) == Poll::error);
        CHECK(error == GuestError{VMSG_XEN_BAD_SIZE, size});
    }
}

TEST_CASE_FIXTURE(Ring, "config ring: only the next sequence number is a request, the last one is nothing") {
    exchange();
    exchange();
    for (const std::uint32_t seq : {0U, 1U, 4U, 5U, 0x7fffffffU, 0x80000002U, UINT32_MAX}) {
        CAPTURE(seq);
        SharedMemory::store_relaxed(&fe->request.seq, seq);
        CHECK(backend.poll(message, error) == Poll::error);
        CHECK(error == GuestError{VMSG_XEN_BAD_SEQ, seq});
    }
    SharedMemory::store_relaxed(&fe->request.seq, 2U);
    CHECK(backend.poll(message, error) == Poll::nothing);
    SharedMemory::store_relaxed(&fe->request.seq, 3U);
    CHECK(backend.poll(message, error) == Poll::message);
}

TEST_CASE_FIXTURE(Ring, "config ring: only the outstanding sequence number is an answer") {
    exchange();
    static_cast<void>(frontend.publish(request()));
    for (const std::uint32_t seq : {0U, 3U, 0x80000001U, UINT32_MAX}) {
        CAPTURE(seq);
        SharedMemory::store_relaxed(&be->answer.seq, seq);
        CHECK(frontend.poll(message, error) == Poll::error);
        CHECK(error == GuestError{VMSG_XEN_BAD_SEQ, seq});
        CHECK(!frontend.arm());  // and nobody sleeps on it
        frontend.disarm();
    }
}

TEST_CASE_FIXTURE(Ring, "config ring: a side is told to notify exactly while the other one is armed") {
    CHECK(!frontend.publish(request()));
    CHECK(!backend.arm());  // a request is there
    backend.disarm();
    REQUIRE(backend.poll(message, error) == Poll::message);
    CHECK(frontend.arm());
    CHECK(backend.answer(message));
    CHECK(!frontend.arm());  // the answer is there
    frontend.disarm();
    REQUIRE(frontend.poll(message, error) == Poll::message);
    CHECK(backend.arm());
    CHECK(frontend.backend_waiting());
    CHECK(frontend.publish(request()));
    backend.disarm();
    CHECK(!frontend.backend_waiting());
    REQUIRE(backend.poll(message, error) == Poll::message);
    CHECK(!backend.answer(message));
}

TEST_CASE_FIXTURE(Ring, "config ring: tokens carry epoch and sequence number and are never 0") {
    CHECK(frontend.token() == 0x0101);
    for (int i = 0; i < 255; ++i) exchange();
    CHECK(frontend.token() == 0x0100);
    for (int i = 0; i < 254; ++i) {
        frontend.new_epoch();
        CHECK((frontend.token() >> 8) == i + 2);
    }
    frontend.new_epoch();  // 255 is followed by 1
    CHECK(frontend.token() == 0x0100);
}

TEST_CASE_FIXTURE(Ring, "config ring: out-of-band words") {
    backend.set_status(0x4f);
    backend.set_generation(0xfffffffe);
    backend.set_error({VMSG_XEN_HOST, 0x1'0000'0002});
    CHECK(frontend.device_status() == 0x4f);
    CHECK(frontend.config_generation() == 0xfffffffe);
    CHECK(frontend.error().code == VMSG_XEN_HOST);
    CHECK(frontend.error().detail == 2);  // the low half
}

TEST_CASE("config ring: neither side writes a byte that is not its own") {
    Pages pages;
    std::memset(pages.fe_bytes.data(), 0xa5, pages.fe_bytes.size());
    std::memset(pages.be_bytes.data(), 0xa5, pages.be_bytes.size());
    FrontendRing<> frontend(pages.fe, pages.be);
    BackendRing<> backend(pages.fe, pages.be);
    REQUIRE(!backend.open());
    SharedMemory::store_relaxed(&pages.fe->request.seq, 0U);
    Message message;
    GuestError error;
    std::vector<std::byte> longest(VMSG_MAX_SIZE - sizeof(vmsg_header), std::byte{1});
    static_cast<void>(frontend.publish(make_request(VMSG_SET_CONFIG, longest)));
    REQUIRE(backend.poll(message, error) == Poll::message);
    static_cast<void>(backend.answer(message));
    static_cast<void>(backend.arm());
    backend.disarm();
    static_cast<void>(frontend.arm());
    frontend.disarm();
    constexpr std::size_t slot_end = 0x48 + VMSG_MAX_SIZE;
    const auto untouched = [](const auto& bytes, std::size_t from, std::size_t to) {
        return std::ranges::all_of(std::span(bytes).subspan(from, to - from),
                                   [](std::byte value) { return value == std::byte{0xa5}; });
    };
    CHECK(untouched(pages.fe_bytes, 9, 12));
    CHECK(untouched(pages.fe_bytes, 16, 64));
    CHECK(untouched(pages.fe_bytes, slot_end, page_size));
    CHECK(untouched(pages.be_bytes, 9, 12));
    CHECK(untouched(pages.be_bytes, 32, 64));
    CHECK(untouched(pages.be_bytes, slot_end, page_size));
}

}  // namespace cpp_ring::test
