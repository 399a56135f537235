// The device as its driver sees it: what each message answers when everybody keeps the rules.
#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>

#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint32_t up_to_driver = status_acknowledge | status_driver;
constexpr std::uint32_t up_to_features = up_to_driver | status_features_ok;
constexpr std::uint32_t up_to_driver_ok = up_to_features | status_driver_ok;

}  // namespace

TEST_CASE_FIXTURE(MessageHarness, "virtio device: information") {
    REQUIRE(!ask(VMSG_GET_DEVICE_INFO));
    const auto info = answer.payload<vmsg_device_info>();
    CHECK(info.device_id == 42);
    CHECK(info.vendor_id == 0x1af4);
    CHECK(info.num_feature_bits == 64);
    CHECK(info.config_size == 60);
    CHECK(info.max_vqueues == 3);
    CHECK(info.admin_vq_start == 0);
    CHECK(info.admin_vq_count == 0);
    CHECK(answer.header().token == 0x0101);
    CHECK(answer.header().type == VMSG_TYPE_RESPONSE);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: feature blocks, those past the last read 0") {
    REQUIRE(!ask(VMSG_GET_DEVICE_FEATURES, vmsg_feature_range{1, 4}));
    CHECK(answer.payload_size() == 8 + 16);
    CHECK(answer.payload<vmsg_feature_range>().index == 1);
    CHECK(answer.payload<vmsg_feature_range>().count == 4);
    CHECK(answer.payload<std::uint32_t>(8) == feature_blocks(offered)[1]);
    for (const std::size_t offset : {12, 16, 20}) CHECK(answer.payload<std::uint32_t>(offset) == 0);
    REQUIRE(!ask(VMSG_GET_DEVICE_FEATURES, vmsg_feature_range{0, 64}));
    CHECK(answer.payload_size() == 8 + 64 * 4);
    REQUIRE(!ask(VMSG_GET_DEVICE_FEATURES, vmsg_feature_range{0, 0}));
    CHECK(answer.payload_size() == 8);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: from reset to DRIVER_OK and back") {
    CHECK(set_status(status_acknowledge) == status_acknowledge);
    CHECK(set_status(up_to_driver) == up_to_driver);
    REQUIRE(!set_features(offered & ~0x20ULL));
    CHECK(set_status(up_to_features) == up_to_features);
    CHECK(device.features64() == (offered & ~0x20ULL));
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(0, 128)));
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(2, 1)));
    CHECK(!device.error());
    CHECK(activations == 0);
    CHECK(set_status(up_to_driver_ok) == up_to_driver_ok);
    CHECK(activations == 1);
    CHECK(running == std::set<std::uint32_t>{0, 2});

    REQUIRE(!ask(VMSG_GET_VQUEUE, vmsg_index{0}));
    const auto queue = answer.payload<vmsg_vqueue>();
    CHECK(queue.max_size == 256);
    CHECK(queue.size == 128);
    CHECK(queue.descriptor_address == plausible_queue(0, 128).descriptor_address);
    CHECK(queue.driver_address == plausible_queue(0, 128).driver_address);
    CHECK(queue.device_address == plausible_queue(0, 128).device_address);

    CHECK(set_status(0) == 0);
    CHECK(resets == 1);
    CHECK(device.features64() == 0);
    REQUIRE(!ask(VMSG_GET_VQUEUE, vmsg_index{0}));
    CHECK(answer.payload<vmsg_vqueue>().max_size == 256);
    CHECK(answer.payload<vmsg_vqueue>().size == 0);
    CHECK(answer.payload<vmsg_vqueue>().descriptor_address == 0);
    CHECK(device.guest_errors() == 0);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: a queue that was reset is set up anew") {
    start();
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, 8)));
    CHECK(device.error().code == VMSG_XEN_QUEUE_STATE);  // it runs
    REQUIRE(!ask(VMSG_RESET_VQUEUE, vmsg_index{1}));
    CHECK(running == std::set<std::uint32_t>{0, 2});
    REQUIRE(!ask(VMSG_GET_VQUEUE, vmsg_index{1}));
    CHECK(answer.payload<vmsg_vqueue>().size == 0);
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, 8)));
    CHECK(running == std::set<std::uint32_t>{0, 1, 2});
    CHECK(device.queues()[1].geometry.size == 8);
}

TEST_CASE("virtio device: queue reset needs its feature") {
    MessageHarness harness({.features = version_1_bit});
    harness.start();
    REQUIRE(!harness.ask(VMSG_RESET_VQUEUE, vmsg_index{1}));
    CHECK(harness.device.error().code == VMSG_XEN_QUEUE_STATE);
    CHECK(harness.running.size() == 3);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: a queue without an event channel cannot be set up") {
    negotiate();
    channels = false;
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, 8)));
    CHECK(device.error() == GuestError{VMSG_XEN_QUEUE_STATE, 1});
    CHECK(!device.queues()[1].set);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: queue sizes and addresses are checked before they are taken") {
    negotiate();
    for (const std::uint32_t size : {0U, 3U, 128U, 0x10000U, 0x10001U, 0x10040U, UINT32_MAX}) {
        CAPTURE(size);
        REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, size)));
        CHECK(device.error() == GuestError{VMSG_XEN_QUEUE_SIZE, size});
    }
    const auto with = [](auto change) {
        vmsg_vqueue queue = plausible_queue(1, 64);
        change(queue);
        return queue;
    };
    for (const vmsg_vqueue& queue :
         {with([](auto& q) { q.descriptor_address += 8; }), with([](auto& q) { q.driver_address += 1; }),
          with([](auto& q) { q.device_address += 2; }), with([](auto& q) { q.descriptor_address = 0x1000; }),
          with([](auto& q) { q.driver_address = 0; }), with([](auto& q) { q.device_address = ~0ULL << 2; })}) {
        REQUIRE(!ask(VMSG_SET_VQUEUE, queue));
        CHECK(device.error().code == VMSG_XEN_QUEUE_ADDRESS);
    }
    CHECK(!device.queues()[1].set);
    // In hindsight the driver may think better of it, until DRIVER_OK.
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, 64)));
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(1, 32)));
    CHECK(device.queues()[1].geometry.size == 32);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: configuration is read in one piece, hooked bytes through the hook") {
    REQUIRE(!ask(VMSG_GET_CONFIG, vmsg_config_range{0, 60}));
    CHECK(refreshes == 1);
    CHECK(answer.payload<vmsg_config>().size == 60);
    CHECK(std::memcmp(answer.payload_bytes(12).data(), config.data(), 60) == 0);
    // Bytes 4 to 7 of each 16 are hooked.
    for (std::uint32_t offset = 0; offset < 60; ++offset) {
        refreshes = 0;
        REQUIRE(!ask(VMSG_GET_CONFIG, vmsg_config_range{offset, 1}));
        REQUIRE(refreshes == (offset % 16 / 4 == 1 ? 1 : 0));
        REQUIRE(answer.payload_bytes(12)[0] == config[offset]);
    }
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: a configuration write is seen by the next read, and counted") {
    set_status(up_to_driver);
    REQUIRE(!ask(VMSG_SET_CONFIG, vmsg_config{0, 8, 4}, std::uint32_t{0xdeadbeef}));
    CHECK(answer.payload<vmsg_config>().generation == 1);
    CHECK(answer.payload<vmsg_config>().size == 4);
    CHECK(answer.payload<std::uint32_t>(12) == 0xdeadbeef);
    CHECK(device.generation() == 1);
    CHECK(hooked_writes == 0);
    // A stale generation does not refuse a write.
    REQUIRE(!ask(VMSG_SET_CONFIG, vmsg_config{0, 12, 4}, std::uint32_t{1}));
    CHECK(hooked_writes == 1);
    CHECK(device.generation() == 2);
    REQUIRE(!ask(VMSG_GET_CONFIG, vmsg_config_range{8, 8}));
    CHECK(answer.payload<std::uint64_t>(12) == 0x1'deadbeef);
    // Not even a reset takes the generation back.
    set_status(0);
    CHECK(device.generation() == 2);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: a refused configuration write changes nothing and says so") {
    const std::vector<std::byte> before = config;
    const auto refused = [&](std::uint32_t offset, vmsg_xen_error code) {
        REQUIRE(!ask(VMSG_SET_CONFIG, vmsg_config{0, offset, 4}, ~std::uint32_t{0}));
        CHECK(device.error().code == code);
        CHECK(answer.payload<vmsg_config>().size == 0);
        CHECK(answer.payload_size() == sizeof(vmsg_config));
    };
    refused(8, VMSG_XEN_STATUS_ORDER);  // no driver yet
    set_status(up_to_driver);
    refused(6, VMSG_XEN_CONFIG_READ_ONLY);  // partly writable
    refused(14, VMSG_XEN_CONFIG_READ_ONLY);
    refused(60, VMSG_XEN_CONFIG_RANGE);
    accept_write = false;
    refused(12, VMSG_XEN_CONFIG_VALUE);
    CHECK(config == before);
    CHECK(device.generation() == 0);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: there is no shared memory region") {
    REQUIRE(!ask(VMSG_GET_SHM, vmsg_index{3}));
    CHECK(answer.payload<vmsg_shm>().index == 3);
    CHECK(answer.payload<vmsg_shm>().length_low == 0);
    CHECK(answer.payload<vmsg_shm>().length_high == 0);
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: an activation that fails sets DEVICE_NEEDS_RESET, a reset heals") {
    activation = {VMSG_XEN_GRANT_MAP, 5};
    negotiate();
    CHECK(set_status(up_to_driver_ok) == (up_to_driver_ok | status_needs_reset));
    CHECK(device.error() == GuestError{VMSG_XEN_GRANT_MAP, 5});
    // Nothing can be started from here.
    REQUIRE(!ask(VMSG_RESET_VQUEUE, vmsg_index{0}));
    REQUIRE(!ask(VMSG_SET_VQUEUE, plausible_queue(0, 8)));
    CHECK(running.empty());
    CHECK(set_status(up_to_driver_ok) == (up_to_driver_ok | status_needs_reset));
    CHECK(activations == 1);
    activation = {};
    start();
    CHECK(device.status() == up_to_driver_ok);
    CHECK(running.size() == 3);
    CHECK(!device.error());
}

TEST_CASE_FIXTURE(MessageHarness, "virtio device: a device that needs a reset is not activated, whatever came first") {
    negotiate();
    device.needs_reset({VMSG_XEN_MODEL, 0});
    CHECK(set_status(up_to_driver_ok) == (up_to_driver_ok | status_needs_reset));
    CHECK(activations == 0);
}

TEST_CASE("virtio device: descriptions that contradict themselves are not built") {
    MessageHarness hooks;
    DeviceDescription description;
    std::vector<std::byte> config(4);
    description.config = config;
    CHECK_THROWS_AS(VirtioDevice(description, hooks), std::invalid_argument);
    description.hooked_reads = description.writable = description.hooked_writes = {0, 0, 0, 0};
    CHECK_NOTHROW(VirtioDevice(description, hooks));
    description.queue_sizes = {3};
    CHECK_THROWS_AS(VirtioDevice(description, hooks), std::invalid_argument);
    description.queue_sizes = {0};
    CHECK_THROWS_AS(VirtioDevice(description, hooks), std::invalid_argument);
    description.queue_sizes = {32768};
    CHECK_NOTHROW(VirtioDevice(description, hooks));
}

}  // namespace cpp_ring::test
