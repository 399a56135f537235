// Threat 1, on the config ring: a peer that changes a message between two reads of it (XSA-155). What was read once is
// what is checked and what is used.
#include <doctest/doctest.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <unordered_set>

#include "clock.hpp"
#include "config_ring.hpp"
#include "loopback_hypervisor.hpp"
#include "message_fuzz.hpp"
#include "rounds.hpp"

namespace cpp_ring::test {
namespace {

// Every read destroys what it read, so that a second one gets another value and is counted. The words that are polled
// by their nature are exempt: seq, live and waiting.
struct DestructiveMemory {
    static inline std::unordered_set<const void*> polled;
    static inline std::unordered_set<const std::byte*> read;
    static inline std::size_t second_reads = 0;

    static void restart(std::unordered_set<const void*> exempt) {
        polled = std::move(exempt);
        read.clear();
        second_reads = 0;
    }

    template <class T>
    static T load_relaxed(const T* p) noexcept {
        if (polled.contains(p)) return SharedMemory::load_relaxed(p);
        T value;
        copy_from(&value, p, sizeof value);
        return value;
    }
    template <class T>
    static T load_acquire(const T* p) noexcept {
        return load_relaxed(p);
    }
    template <class T>
    static void store_relaxed(T* p, T value) noexcept {
        SharedMemory::store_relaxed(p, value);
    }
    template <class T>
    static void store_release(T* p, T value) noexcept {
        SharedMemory::store_release(p, value);
    }
    static void copy_from(void* to, const void* from, std::size_t size) noexcept {
        SharedMemory::copy_from(to, from, size);
        auto* bytes = static_cast<std::byte*>(const_cast<void*>(from));
        for (std::size_t i = 0; i < size; ++i) {
            second_reads += read.insert(bytes + i).second ? 0 : 1;
            bytes[i] ^= std::byte{0xff};
        }
    }
    static void copy_to(void* to, const void* from, std::size_t size) noexcept {
        SharedMemory::copy_to(to, from, size);
    }
};

struct Pages {
    alignas(page_size) std::array<std::byte, page_size> fe_bytes{};
    alignas(page_size) std::array<std::byte, page_size> be_bytes{};
    vmsg_xen_fe_page* fe = reinterpret_cast<vmsg_xen_fe_page*>(fe_bytes.data());
    vmsg_xen_be_page* be = reinterpret_cast<vmsg_xen_be_page*>(be_bytes.data());
};

}  // namespace

TEST_CASE_FIXTURE(Pages, "threat 1: each byte of a request is read once, and the message is what was read") {
    FrontendRing<> frontend(fe, be);
    BackendRing<DestructiveMemory> backend(fe, be);
    DestructiveMemory::restart({});
    REQUIRE(!backend.open());
    MessageFuzz fuzz(1);
    MessageHarness device;
    for (int i = 0; i < 20000; ++i) {
        const Message request = fuzz.next();
        static_cast<void>(frontend.publish(request));
        DestructiveMemory::restart({&fe->request.seq, &fe->header.fe_waiting});
        Message copy;
        GuestError error;
        REQUIRE(backend.poll(copy, error) == Poll::message);
        REQUIRE(copy.size() == request.size());
        REQUIRE(std::memcmp(copy.data(), request.data(), copy.size()) == 0);
        // seq apart, the size and the message: nothing else was looked at, nothing twice.
        REQUIRE(DestructiveMemory::read.size() == 4 + request.size());
        if (device.send(copy)) device.answer.resize(sizeof(vmsg_header));
        static_cast<void>(backend.answer(device.answer));
        REQUIRE(DestructiveMemory::read.size() == 4 + request.size());
        REQUIRE(DestructiveMemory::second_reads == 0);
    }
}

TEST_CASE_FIXTURE(Pages, "threat 1: each byte of an answer is read once, and the message is what was read") {
    FrontendRing<DestructiveMemory> frontend(fe, be);
    MessageFuzz fuzz(2);
    for (std::uint32_t seq = 1; seq < 20000; ++seq) {
        static_cast<void>(frontend.publish(fuzz.next()));
        const Message answer = fuzz.next();
        SharedMemory::copy_to(be->answer.message, answer.data(), answer.size());
        be->answer.size = static_cast<std::uint32_t>(answer.size());
        be->answer.seq = seq;
        DestructiveMemory::restart({&be->answer.seq});
        Message copy;
        GuestError error;
        REQUIRE(frontend.poll(copy, error) == Poll::message);
        REQUIRE(copy.size() == answer.size());
        REQUIRE(std::memcmp(copy.data(), answer.data(), copy.size()) == 0);
        REQUIRE(DestructiveMemory::read.size() == 4 + answer.size());
        REQUIRE(DestructiveMemory::second_reads == 0);
    }
}

TEST_CASE_FIXTURE(Pages, "threat 1: a size that grows after it was checked is not looked at again") {
    FrontendRing<> frontend(fe, be);
    BackendRing<DestructiveMemory> backend(fe, be);
    DestructiveMemory::restart({});
    REQUIRE(!backend.open());
    static_cast<void>(frontend.publish(make_request(VMSG_GET_DEVICE_STATUS, {})));
    DestructiveMemory::restart({&fe->request.seq});
    Message copy;
    GuestError error;
    REQUIRE(backend.poll(copy, error) == Poll::message);
    CHECK(fe->request.size == ~std::uint32_t{8});  // as the reading left it
    CHECK(copy.size() == 8);
}

TEST_SUITE("threads") {
    TEST_CASE("threat 1: a thread that rewrites the request all the time gets named errors or whole answers") {
        const std::uint64_t polls = rounds(thread_sanitizer ? 100'000 : 1'000'000, 100'000'000);
        const auto pages = std::make_unique<Pages>();
        BackendRing<> backend(pages->fe, pages->be);
        MessageHarness device;
        device.start();
        Atomic<bool> stop{false};
        std::thread frontend([&] {
            MessageFuzz fuzz(3);
            while (!stop.load(std::memory_order_relaxed)) {
                const Message message = fuzz.next();
                SharedMemory::copy_to(pages->fe->request.message, message.data(), message.size());
                const std::uint32_t size =
                    fuzz.below(8) == 0 ? fuzz.below(400) : static_cast<std::uint32_t>(message.size());
                SharedMemory::store_relaxed(&pages->fe->request.size, size);
                SharedMemory::store_relaxed(&pages->fe->request.seq, fuzz.below(3));
                SharedMemory::store_relaxed(&pages->fe->header.magic, std::uint32_t{VMSG_XEN_MAGIC_FE});
                SharedMemory::store_relaxed(&pages->fe->header.version, 1U + fuzz.below(2));
            }
        });
        std::size_t wrong = 0;
        std::size_t taken = 0;
        std::size_t refused = 0;
        bool open = false;
        // On a busy machine the other thread may come late; the rounds count from when both kinds were seen.
        const auto give_up = Clock::now() + std::chrono::seconds(20);
        for (std::uint64_t i = 0; i < polls || ((taken == 0 || refused == 0) && Clock::now() < give_up); ++i) {
            if (!open) {
                open = !backend.open();
                continue;
            }
            Message request;
            GuestError error;
            switch (backend.poll(request, error)) {
                case Poll::nothing:
                    continue;
                case Poll::message:
                    wrong += request.size() < sizeof(vmsg_header) || request.size() > VMSG_MAX_SIZE;
                    error = device.send(request);
                    break;
                case Poll::error:
                    wrong += error.code != VMSG_XEN_BAD_SEQ && error.code != VMSG_XEN_BAD_SIZE;
                    break;
            }
            if (error) {
                ++refused;
                wrong += !closes_channel(error.code);
                open = false;
                continue;
            }
            ++taken;
            wrong += device.answer.header().msg_size != device.answer.size();
            wrong += device.answer.size() < answer_size(request.header().msg_id);
            static_cast<void>(backend.answer(device.answer));
            // It counts from 0 again, so that this thread's numbers are the right ones now and then.
            open = !backend.open();
        }
        stop = true;
        frontend.join();
        CHECK(wrong == 0);
        CHECK(device.misuses == 0);
        CHECK(taken > 0);
        CHECK(refused > 0);
    }
}

}  // namespace cpp_ring::test
