// Threat 15: queue geometry that changes after DRIVER_OK (CVE-2026-5747). What was checked at activation is what is
// used, whatever is asked afterwards.
#include <doctest/doctest.h>

#include <map>

#include "message_fuzz.hpp"

namespace cpp_ring::test {
namespace {

bool same(const QueueGeometry& one, const QueueGeometry& two) {
    return one.size == two.size && one.descriptor_address == two.descriptor_address &&
           one.driver_address == two.driver_address && one.device_address == two.device_address;
}

// Keeps what each running queue was started with, as a backend that maps it would.
class Freezer final : public MessageHarness {
  public:
    using MessageHarness::MessageHarness;

    std::map<std::uint32_t, QueueGeometry> in_use;

    GuestError activate() override {
        const GuestError error = MessageHarness::activate();
        for (const std::uint32_t index : running) in_use[index] = device.queues()[index].geometry;
        return error;
    }
    GuestError enable_queue(std::uint32_t index) override {
        in_use[index] = device.queues()[index].geometry;
        return MessageHarness::enable_queue(index);
    }
    void disable_queue(std::uint32_t index) override {
        in_use.erase(index);
        MessageHarness::disable_queue(index);
    }
    void reset() override {
        in_use.clear();
        MessageHarness::reset();
    }

    [[nodiscard]] std::size_t changed() {
        std::size_t wrong = 0;
        for (const auto& [index, geometry] : in_use) {
            wrong += !same(device.queues()[index].geometry, geometry);
            wrong += static_cast<bool>(ask(VMSG_GET_VQUEUE, vmsg_index{index}));
            const auto seen = answer.payload<vmsg_vqueue>();
            wrong += !same({static_cast<std::uint16_t>(seen.size), seen.descriptor_address, seen.driver_address,
                            seen.device_address},
                           geometry);
        }
        return wrong;
    }
};

}  // namespace

TEST_CASE("threat 15: random commands after DRIVER_OK never change the geometry in use") {
    Freezer device;
    MessageFuzz fuzz(15);
    std::size_t wrong = 0;
    std::size_t queues_seen = 0;
    for (int round = 0; round < 2000; ++round) {
        device.start();
        REQUIRE(device.in_use.size() == 3);
        const std::uint64_t features = device.device.features64();
        for (int i = 0; i < 60; ++i) {
            const Message request = fuzz.next();
            static_cast<void>(device.send(request));
            wrong += device.changed();
            queues_seen += device.in_use.size();
            if ((device.device.status() & status_driver_ok) == 0) break;  // it was reset
            wrong += device.device.features64() != features;
        }
        REQUIRE(wrong == 0);
    }
    CHECK(device.misuses == 0);
    CHECK(queues_seen > 10000);
}

TEST_CASE("threat 15: the engine's queue keeps the geometry it was given, not a reference to it") {
    // SET_VQUEUE may be refused or taken; only what activate() saw counts, since the queue copies it.
    static_assert(std::is_same_v<decltype(VirtioDevice::QueueSetup::geometry), QueueGeometry>);
    Freezer device;
    device.start();
    const QueueGeometry before = device.in_use[0];
    for (const std::uint32_t size : {1U, 2U, 256U}) {
        REQUIRE(!device.ask(VMSG_SET_VQUEUE, plausible_queue(0, size, 5000)));
        CHECK(device.device.error().code == VMSG_XEN_QUEUE_STATE);
        CHECK(same(device.device.queues()[0].geometry, before));
    }
}

}  // namespace cpp_ring::test
