// Threat 21, on a connection: a failure half-way through connecting or starting leaves nothing mapped or bound
// (XSA-365, XSA-371). Every call to the hypervisor fails once.
#include <doctest/doctest.h>

#include <new>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

void check_nothing_held(const LoopbackHypervisor& hypervisor) {
    CHECK(hypervisor.mapped_pages() == 0);
    CHECK(hypervisor.mappings() == 0);
    CHECK(hypervisor.ports() == 0);
    CHECK(hypervisor.open_handles() == 0);
}

}  // namespace

TEST_CASE("threat 21: the n-th hypervisor call of connect() fails, for every n") {
    EchoModel model;
    LoopbackDevice device(model);
    // Handle, cfg, two pages, two queues' ports.
    constexpr std::size_t connect_calls = 6;
    for (const bool out_of_memory : {false, true}) {
        device.back.out_of_memory = out_of_memory;
        for (std::size_t n = 1; n <= connect_calls + 1; ++n) {
            CAPTURE(n);
            device.back.calls = 0;
            device.back.fail_at = n;
            if (n > connect_calls) {
                CHECK(!device.backend.connect(device.address()));
                CHECK(device.backend.connected());
                CHECK(device.back.calls == connect_calls);
                device.backend.disconnect();
            } else if (out_of_memory) {
                CHECK_THROWS_AS(static_cast<void>(device.backend.connect(device.address())), std::bad_alloc);
            } else {
                CHECK_THROWS_AS(static_cast<void>(device.backend.connect(device.address())), HostError);
            }
            CHECK(!device.backend.connected());
            CHECK(device.backend.mapped_pages() == 0);
            check_nothing_held(device.back);
        }
    }
}

TEST_CASE("threat 21: addresses that are not there leave nothing behind") {
    EchoModel model;
    LoopbackDevice device(model);
    const auto fails = [&](auto change) {
        ChannelAddress address = device.address();
        change(address);
        CHECK_THROWS_AS(static_cast<void>(device.backend.connect(address)), HostError);
        check_nothing_held(device.back);
    };
    fails([](ChannelAddress& address) { address.fe_to_be = 0; });
    fails([](ChannelAddress& address) { address.be_to_fe = UINT32_MAX; });
    fails([](ChannelAddress& address) { address.event_channel = 0xffff; });
    // The page that the backend writes is not one that was granted for reading only.
    fails([](ChannelAddress& address) { address.be_to_fe = address.fe_to_be; });
    // A port that is named twice.
    fails([](ChannelAddress& address) { address.queue_event_channels[1] = address.queue_event_channels[0]; });
    fails([](ChannelAddress& address) { address.queue_event_channels[0] = address.event_channel; });
    CHECK(!device.backend.connect(device.address()));
}

TEST_CASE("threat 21: pages with the wrong header leave nothing behind, and the frontend is told why") {
    EchoModel model;
    LoopbackDevice device(model);
    RawFrontend frontend(device.front);
    frontend.fe->header.magic = 1;
    CHECK(device.backend.connect(frontend.address()) == GuestError{VMSG_XEN_BAD_MAGIC, 1});
    check_nothing_held(device.back);
    CHECK(frontend.error() == VMSG_XEN_BAD_MAGIC);
    CHECK(!frontend.backend_alive());
    CHECK(device.backend.error().code == VMSG_XEN_BAD_MAGIC);
    frontend.fe->header.magic = VMSG_XEN_MAGIC_FE;
    frontend.fe->header.version = 9;
    CHECK(device.backend.connect(frontend.address()) == GuestError{VMSG_XEN_BAD_VERSION, 9});
    check_nothing_held(device.back);
    frontend.fe->header.version = 1;
    CHECK(!device.backend.connect(frontend.address()));
    CHECK(!device.backend.error());
    CHECK(frontend.error() == 0);
    CHECK(frontend.backend_alive());
}

TEST_CASE("threat 21: a frontend that cannot be built withdraws what it granted") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, backend_domain);
    LoopbackHypervisor front(machine, frontend_domain);
    for (std::size_t n = 1; n <= 4; ++n) {
        front.calls = 0;
        front.fail_at = n;
        CHECK_THROWS_AS(Frontend(front, backend_domain), HostError);
        CHECK(front.granted_pages() == 0);
        check_nothing_held(front);
        if (n > 3) continue;
        front.calls = 0;
        CHECK_THROWS_AS(DriverQueue(front, backend_domain, 16, version_1_bit), HostError);
        CHECK(front.granted_pages() == 0);
        check_nothing_held(front);
    }
}

TEST_SUITE("threads") {
    TEST_CASE("threat 21: the n-th map of DRIVER_OK fails, for every n: DEVICE_NEEDS_RESET, and the two pages only") {
        EchoModel model;
        LoopbackDevice device(model);
        // With an arena: it, and three areas for each of two queues.
        constexpr std::size_t start_calls = 7;
        for (std::size_t n = 1; n <= start_calls + 1; ++n) {
            CAPTURE(n);
            const bool fails = n <= start_calls;
            device.connect();
            device.back.calls = 0;
            device.back.fail_at = fails ? n : 0;
            BackendThread thread(device.backend);
            CHECK(device.start() == (fails ? all_status_bits | status_needs_reset : all_status_bits));
            CHECK(device.frontend->ring().error().code == (fails ? VMSG_XEN_GRANT_MAP : VMSG_XEN_OK));
            CHECK((device.back.mapped_pages() == 2) == fails);
            // The second time it works.
            CHECK(device.start() == all_status_bits);
            CHECK(device.set_status(0) == 0);
            CHECK(device.back.mapped_pages() == 2);
            thread.stop();
            device.frontend.emplace(device.front, backend_domain);
        }
        check_nothing_held(device.back);
        CHECK(model.activations == start_calls + 2);
        CHECK(model.resets == 2 * (start_calls + 1));  // also when it was asked for features only
    }

    TEST_CASE("threat 21: an arena larger than the budget, or than memory is, is refused in pages") {
        EchoModel model;
        LoopbackDevice device(model);
        for (const std::size_t pages :
             {std::size_t{1025}, std::size_t{1} << 52, (std::size_t{1} << 52) + 1, SIZE_MAX}) {
            CAPTURE(pages);
            ChannelAddress address = device.address();
            address.arena_pages = pages;
            REQUIRE(!device.backend.connect(address));
            {
                BackendThread thread(device.backend);
                CHECK(device.start() == (all_status_bits | status_needs_reset));
                CHECK(device.frontend->ring().error().code == VMSG_XEN_MAP_BUDGET);
                CHECK(device.back.mapped_pages() == 2);
            }
            device.frontend.emplace(device.front, backend_domain);
        }
        CHECK(model.activations == 0);
    }
}

}  // namespace cpp_ring::test
