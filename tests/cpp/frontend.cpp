// The synchronous exchange, when the backend keeps the rules, is late, or goes.
#include <doctest/doctest.h>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

constexpr auto short_time = std::chrono::milliseconds(20);

}  // namespace

TEST_CASE("frontend: closing withdraws everything, twice is once") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, backend_domain);
    LoopbackHypervisor front(machine, frontend_domain);
    {
        Frontend frontend(front, backend_domain);
        CHECK(front.granted_pages() == 2);
        CHECK(frontend.fe_page().size() == page_size);
        // Each page may be written by one side only.
        CHECK_THROWS_AS(static_cast<void>(back.map(frontend_domain, frontend.fe_to_be_ref(), 1, true)), HostError);
        CHECK_NOTHROW(static_cast<void>(back.map(frontend_domain, frontend.be_to_fe_ref(), 1, true)));
        frontend.close();
        frontend.close();
        CHECK(front.ports() == 0);
        CHECK(frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, short_time) == ExchangeResult::peer_dead);
    }
    CHECK(front.granted_pages() == 0);
    CHECK(front.open_handles() == 0);
}

TEST_CASE("frontend: without a backend there is no exchange, and nothing is published") {
    LoopbackMachine machine;
    LoopbackHypervisor front(machine, frontend_domain);
    Frontend frontend(front, backend_domain);
    CHECK(frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, for_ever) == ExchangeResult::peer_dead);
    CHECK(reinterpret_cast<const vmsg_xen_fe_page*>(frontend.fe_page().data())->request.seq == 0);
    CHECK(!frontend.broken());
}

TEST_CASE("frontend: an event that nobody sends is waited for until the timeout") {
    LoopbackMachine machine;
    LoopbackHypervisor front(machine, frontend_domain);
    Frontend frontend(front, backend_domain);
    CHECK(!frontend.wait_event(short_time));
    CHECK(!frontend.wait_event(Clock::duration::zero()));
}

TEST_SUITE("threads") {
    TEST_CASE("frontend: an answer that is late is dropped, and the exchange after it is right") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        Frontend& frontend = *device.frontend;
        for (int round = 0; round < 3; ++round) {
            const std::uint16_t token = frontend.ring().token();
            // Nobody serves yet.
            CHECK(frontend.exchange(VMSG_GET_DEVICE_INFO, {}, short_time) == ExchangeResult::timeout);
            CHECK(frontend.broken());
            CHECK((frontend.ring().token() >> 8) == (token >> 8) + 1);
            // The slot is the backend's still: nothing new is published, and it takes no longer than the timeout.
            const std::uint32_t published = reinterpret_cast<vmsg_xen_fe_page*>(frontend.fe_page().data())->request.seq;
            CHECK(frontend.exchange(VMSG_GET_DEVICE_STATUS, {}, short_time) == ExchangeResult::timeout);
            CHECK(reinterpret_cast<vmsg_xen_fe_page*>(frontend.fe_page().data())->request.seq == published);
            {
                BackendThread thread(device.backend);
                CHECK(device.ask(VMSG_GET_DEVICE_STATUS).payload<vmsg_status>().status == 0);
                CHECK(!frontend.broken());
                CHECK(device.ask(VMSG_GET_DEVICE_INFO).payload<vmsg_device_info>().device_id == 42);
            }
            device.frontend.emplace(device.front, backend_domain);
            device.connect();
        }
    }

    TEST_CASE("frontend: measured exchanges, and with a backend that sleeps before each") {
        EchoModel model;
        DeviceShape shape;
        shape.spin_us = 5;
        LoopbackDevice device(model, shape);
        device.connect();
        BackendThread thread(device.backend);
        LatencyRecorder recorder;
        const auto payload = bytes_of(vmsg_config_range{0, 4});
        CHECK(device.frontend->measure(VMSG_GET_CONFIG, payload, 200, false, recorder) == ExchangeResult::ok);
        CHECK(recorder.count() == 200);
        CHECK(device.frontend->measure(VMSG_GET_CONFIG, payload, 50, true, recorder) == ExchangeResult::ok);
        CHECK(recorder.count() == 250);
        // A measurement and an exchange may follow each other.
        CHECK(device.ask(VMSG_GET_DEVICE_STATUS).payload<vmsg_status>().status == 0);
        thread.stop();
        CHECK(device.frontend->measure(VMSG_GET_CONFIG, payload, 1, false, recorder) == ExchangeResult::peer_dead);
        CHECK(device.backend.counters().sleeps >= 50);
    }
}

}  // namespace cpp_ring::test
