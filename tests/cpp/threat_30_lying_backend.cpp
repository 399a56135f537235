// Threat 30: a hostile or dead backend (XSA-396). Answers are believed only if they are those to the request.
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

constexpr auto short_time = std::chrono::milliseconds(20);

// A backend's page, written by the test. Answers are put there before the question: the frontend finds them at once.
struct LyingBackend {
    LoopbackMachine machine;
    LoopbackHypervisor back{machine, backend_domain};
    LoopbackHypervisor front{machine, frontend_domain};
    Frontend frontend{front, backend_domain};
    std::unique_ptr<EventChannels> channels = back.open_event_channels();
    Port port = channels->bind_interdomain(frontend_domain, frontend.event_channel());
    std::unique_ptr<Mapping> page = back.map(frontend_domain, frontend.be_to_fe_ref(), 1, true);
    vmsg_xen_be_page* be = reinterpret_cast<vmsg_xen_be_page*>(page->bytes().data());
    std::uint32_t seq = 0;

    LyingBackend() { be->header.live = VMSG_XEN_ALIVE; }

    // What a good backend would answer to a GET_DEVICE_STATUS now.
    [[nodiscard]] Message truth() const {
        Message message;
        message.begin();
        message.append(vmsg_status{11});
        message.finish(VMSG_TYPE_RESPONSE, VMSG_GET_DEVICE_STATUS, frontend.ring().token());
        return message;
    }
    void put(const Message& message, std::uint32_t size, std::uint32_t answer_seq) {
        SharedMemory::copy_to(be->answer.message, message.data(), VMSG_MAX_SIZE);
        SharedMemory::store_relaxed(&be->answer.size, size);
        SharedMemory::store_release(&be->answer.seq, answer_seq);
    }
    ExchangeResult exchange() {
        ++seq;
        return frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, short_time);
    }
};

}  // namespace

TEST_CASE_FIXTURE(LyingBackend, "threat 30: the truth is believed") {
    for (int i = 0; i < 600; ++i) {
        put(truth(), 12, seq + 1);
        CHECK(exchange() == ExchangeResult::ok);
        CHECK(frontend.answer().payload<vmsg_status>().status == 11);
    }
    CHECK(!frontend.broken());
}

TEST_CASE("threat 30: an answer that is not that to the request is named, and the frontend stays broken") {
    const auto lies = [](vmsg_xen_error code, const std::function<void(LyingBackend&)>& lie) {
        LyingBackend backend;
        backend.put(backend.truth(), 12, 1);
        REQUIRE(backend.exchange() == ExchangeResult::ok);
        lie(backend);
        CHECK(backend.exchange() == ExchangeResult::lied);
        CHECK(backend.frontend.error().code == code);
        CHECK(backend.frontend.broken());
        // Not even the truth mends it, and nothing more is published.
        backend.put(backend.truth(), 12, 3);
        CHECK(backend.exchange() == ExchangeResult::lied);
        CHECK(reinterpret_cast<vmsg_xen_fe_page*>(backend.frontend.fe_page().data())->request.seq == 2);
    };
    const auto with = [](std::size_t byte, unsigned value) {
        return [=](LyingBackend& backend) {
            Message message = backend.truth();
            message.data()[byte] ^= static_cast<std::byte>(value);
            backend.put(message, 12, 2);
        };
    };
    lies(VMSG_XEN_BAD_TYPE, with(0, 1));
    lies(VMSG_XEN_BAD_TYPE, with(0, 2));
    lies(VMSG_XEN_BAD_MSG_ID, with(1, 1));
    lies(VMSG_XEN_BAD_TYPE, with(2, 1));
    lies(VMSG_XEN_BAD_TYPE, with(3, 0x80));
    lies(VMSG_XEN_BAD_TOKEN, with(4, 1));
    lies(VMSG_XEN_BAD_TOKEN, with(5, 1));
    lies(VMSG_XEN_BAD_SIZE, with(6, 1));
    lies(VMSG_XEN_BAD_SIZE, with(7, 1));
    for (const std::uint32_t size : {0U, 7U, 8U, 11U, 13U, 276U, 277U, 0x1000cU, UINT32_MAX})
        lies(VMSG_XEN_BAD_SIZE, [=](LyingBackend& backend) { backend.put(backend.truth(), size, 2); });
    for (const std::uint32_t seq : {0U, 3U, 0x80000002U, UINT32_MAX})
        lies(VMSG_XEN_BAD_SEQ, [=](LyingBackend& backend) { backend.put(backend.truth(), 12, seq); });
}

TEST_CASE_FIXTURE(LyingBackend, "threat 30: an answer from before a reset is stale by its epoch") {
    const Message early = truth();
    frontend.new_epoch();
    put(early, 12, 1);
    CHECK(exchange() == ExchangeResult::lied);
    CHECK(frontend.error().code == VMSG_XEN_BAD_TOKEN);
}

TEST_CASE_FIXTURE(LyingBackend, "threat 30: an answer that comes after the deadline is dropped, whatever it says") {
    put(truth(), 12, 1);
    REQUIRE(exchange() == ExchangeResult::ok);
    CHECK(exchange() == ExchangeResult::timeout);
    Message late = make_request(VMSG_GET_SHM, {});
    put(late, 8, 2);
    // The exchange that finds it there goes on with a request of its own, which is not answered either.
    CHECK(frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, short_time) == ExchangeResult::timeout);
    CHECK(reinterpret_cast<vmsg_xen_fe_page*>(frontend.fe_page().data())->request.seq == 3);
    CHECK(frontend.error().code == VMSG_XEN_OK);
}

TEST_CASE_FIXTURE(LyingBackend,
                  "threat 30: random bytes in the backend's page end in an answer, a name or a deadline") {
    std::mt19937 random(30);
    std::array<std::size_t, 4> results{};
    for (int i = 0; i < 3000; ++i) {
        LoopbackHypervisor other(machine, frontend_domain);
        Frontend fresh(other, backend_domain);
        const auto mapping = back.map(frontend_domain, fresh.be_to_fe_ref(), 1, true);
        auto* words = reinterpret_cast<std::uint32_t*>(mapping->bytes().data());
        for (std::size_t word = 0; word < 512 / 4; ++word) words[word] = static_cast<std::uint32_t>(random());
        auto* lie = reinterpret_cast<vmsg_xen_be_page*>(mapping->bytes().data());
        lie->header.live = static_cast<std::uint8_t>(random() % 8);
        lie->answer.seq = 1;
        if (random() % 2 == 0) lie->answer.size = static_cast<std::uint32_t>(random() % 300);
        const vmsg_header almost{1, VMSG_GET_DEVICE_INFO, 0, 0x0101, static_cast<std::uint16_t>(lie->answer.size)};
        if (random() % 4 != 0) std::memcpy(lie->answer.message, &almost, sizeof almost);
        const ExchangeResult result = fresh.exchange(VMSG_GET_DEVICE_INFO, {}, short_time);
        ++results[static_cast<std::size_t>(result)];
        if (result == ExchangeResult::lied) CHECK(fresh.error());
        if (result == ExchangeResult::ok) CHECK(fresh.answer().size() <= VMSG_MAX_SIZE);
        static_cast<void>(fresh.ring().error());
        static_cast<void>(fresh.ring().check());
    }
    CHECK(results[static_cast<std::size_t>(ExchangeResult::ok)] > 0);
    CHECK(results[static_cast<std::size_t>(ExchangeResult::lied)] > 0);
    CHECK(results[static_cast<std::size_t>(ExchangeResult::peer_dead)] > 0);
    CHECK(results[static_cast<std::size_t>(ExchangeResult::timeout)] == 0);
}

TEST_SUITE("threads") {
    TEST_CASE_FIXTURE(LyingBackend,
                      "threat 30: a backend that only raises events does not keep a frontend past its deadline") {
        Atomic<bool> stop{false};
        std::thread storm([&] {
            while (!stop.load(std::memory_order_relaxed)) channels->notify(port);
        });
        frontend.set_spin(0);
        CHECK(exchange() == ExchangeResult::timeout);
        CHECK(frontend.wait_event(for_ever));
        stop = true;
        storm.join();
    }

    TEST_CASE_FIXTURE(LyingBackend, "threat 30: a backend that writes all the time is believed only when it is right") {
        constexpr int rounds = thread_sanitizer ? 2'000 : 20'000;
        frontend.set_spin(1e9);  // the liar wakes nobody
        Atomic<bool> stop{false};
        std::thread liar([&] {
            std::mt19937 random(31);
            const auto* fe = reinterpret_cast<const vmsg_xen_fe_page*>(frontend.fe_page().data());
            while (!stop.load(std::memory_order_relaxed)) {
                const std::uint32_t asked = SharedMemory::load_acquire(&fe->request.seq);
                Message message;
                message.begin();
                message.append(vmsg_status{asked});
                message.finish(VMSG_TYPE_RESPONSE, VMSG_GET_DEVICE_STATUS,
                               static_cast<std::uint16_t>(0x100 | (asked & 0xff)));
                put(message, 12, asked);
                // Between the answers it may rewrite what it likes, while the frontend copies.
                SharedMemory::store_relaxed(reinterpret_cast<std::uint32_t*>(be->answer.message + 8),
                                            static_cast<std::uint32_t>(random()));
                SharedMemory::store_relaxed(&be->header.device_status, static_cast<std::uint32_t>(random()));
            }
        });
        int wrong = 0;
        for (int i = 0; i < rounds; ++i) {
            // The header is right at all times.
            wrong += frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, for_ever) != ExchangeResult::ok;
            wrong += frontend.answer().size() != 12;
        }
        stop = true;
        liar.join();
        CHECK(wrong == 0);
    }
}

}  // namespace cpp_ring::test
