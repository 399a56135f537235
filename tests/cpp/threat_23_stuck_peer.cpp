// Threat 23: a stuck peer, an endless spin (Firecracker #6031). Whatever the other side does not do, each side ends.
#include <doctest/doctest.h>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

constexpr double always = 1e12;
// "At once", on a machine that does other things as well.
constexpr auto soon = std::chrono::seconds(20);
constexpr auto short_time = std::chrono::milliseconds(30);

template <class Call>
void ends_soon(Call&& call) {
    const auto start = Clock::now();
    call();
    CHECK(Clock::now() - start < soon);
}

// Until the backend's thread sleeps.
void wait_for_sleep(const RawFrontend& frontend) {
    const auto deadline = Clock::now() + for_ever;
    while (SharedMemory::load_relaxed(&frontend.be->header.be_waiting) == 0) REQUIRE(Clock::now() < deadline);
}

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("threat 23: a backend whose frontend is silent stops when it is told to, spinning and asleep") {
        EchoModel model;
        for (const double spin : {0.0, 50.0, always}) {
            CAPTURE(spin);
            DeviceShape shape;
            shape.spin_us = spin;
            LoopbackDevice device(model, shape);
            for (int i = 0; i < 20; ++i) {
                RawFrontend frontend(device.front);
                REQUIRE(!device.backend.connect(frontend.address()));
                BackendThread thread(device.backend);
                if (i % 2 == 1 && spin != always) wait_for_sleep(frontend);
                ends_soon([&] { CHECK(thread.stop() == Exit::stopped); });
                CHECK(!frontend.backend_alive());
            }
        }
    }

    TEST_CASE("threat 23: stop() between connect() and run() is not forgotten") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        device.backend.stop();
        CHECK(device.backend.run() == Exit::stopped);
        device.frontend.emplace(device.front, backend_domain);
        device.connect();
        BackendThread thread(device.backend);
        CHECK(device.ask(VMSG_GET_DEVICE_STATUS).payload<vmsg_status>().status == 0);
    }

    TEST_CASE("threat 23: a frontend that dies ends its backend, spinning and asleep, and nothing stays mapped") {
        EchoModel model;
        for (const double spin : {0.0, 50.0, always}) {
            CAPTURE(spin);
            DeviceShape shape;
            shape.spin_us = spin;
            LoopbackDevice device(model, shape);
            for (int i = 0; i < 20; ++i) {
                std::optional<RawFrontend> frontend(std::in_place, device.front);
                REQUIRE(!device.backend.connect(frontend->address()));
                BackendThread thread(device.backend);
                if (i % 2 == 1 && spin != always) wait_for_sleep(*frontend);
                frontend.reset();
                ends_soon([&] { CHECK(thread.join() == Exit::frontend_gone); });
                CHECK(device.back.mappings() == 0);
                CHECK(device.back.ports() == 0);
            }
        }
    }

    TEST_CASE("threat 23: a frontend whose backend never answers gives up at its deadline, however long it spins") {
        EchoModel model;
        for (const double spin : {0.0, 50.0, always}) {
            CAPTURE(spin);
            LoopbackDevice device(model);
            device.connect();  // and nobody serves
            device.frontend->set_spin(spin);
            for (int i = 0; i < 3; ++i) {
                const auto start = Clock::now();
                CHECK(device.frontend->exchange(VMSG_GET_DEVICE_STATUS, {}, short_time) == ExchangeResult::timeout);
                CHECK(Clock::now() - start >= short_time - std::chrono::milliseconds(2));
                CHECK(Clock::now() - start < soon);
            }
        }
    }

    TEST_CASE("threat 23: a frontend that waits for a backend that dies is told, spinning and asleep") {
        EchoModel model;
        for (const double spin : {0.0, always}) {
            LoopbackDevice device(model);
            for (int i = 0; i < 10; ++i) {
                device.connect();
                device.frontend->set_spin(spin);
                ExchangeResult result = ExchangeResult::ok;
                std::thread waiting([&] { result = device.frontend->exchange(VMSG_GET_DEVICE_STATUS, {}, for_ever); });
                const auto* page = reinterpret_cast<vmsg_xen_fe_page*>(device.frontend->fe_page().data());
                while (SharedMemory::load_acquire(&page->request.seq) == 0) cpu_relax();
                ends_soon([&] {
                    device.backend.disconnect();
                    waiting.join();
                });
                CHECK(result == ExchangeResult::peer_dead);
                CHECK(device.frontend->broken());
                device.frontend.emplace(device.front, backend_domain);
            }
        }
    }

    TEST_CASE("threat 23: a frontend that is gone at connect, or breaks the channel, is an end and not a wait") {
        EchoModel model;
        LoopbackDevice device(model);
        RawFrontend frontend(device.front);
        SharedMemory::store_release(&frontend.fe->header.live, std::uint8_t{VMSG_XEN_DEAD});
        REQUIRE(!device.backend.connect(frontend.address()));
        CHECK(device.backend.run() == Exit::frontend_gone);
        frontend.write_header();
        REQUIRE(!device.backend.connect(frontend.address()));
        frontend.publish(7, {}, 8);
        CHECK(device.backend.run() == Exit::broken);
        CHECK(device.backend.error() == GuestError{VMSG_XEN_BAD_SEQ, 7});
        CHECK(frontend.error() == VMSG_XEN_BAD_SEQ);
        CHECK(!frontend.backend_alive());
        CHECK(device.back.mappings() == 0);
    }
}

}  // namespace cpp_ring::test
