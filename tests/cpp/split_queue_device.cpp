#include "split_queue_device.hpp"

#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "raw_queue.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint64_t event_idx = std::uint64_t{1} << feature_event_idx;
constexpr std::uint64_t in_order = std::uint64_t{1} << feature_in_order;

struct OneHypervisor {
    FakeHypervisor hypervisor;
};

struct Queue8 : OneHypervisor, RawQueue<> {
    explicit Queue8(std::uint64_t features = 0) : RawQueue<>(hypervisor, 8, features) {
        for (std::uint16_t i = 0; i < 8; ++i) put(i, {buffer_address, 64, desc_write, 0});
    }

    std::uint16_t pop() {
        bool found = false;
        REQUIRE(!device.pop(chain, found));
        REQUIRE(found);
        return chain.head;
    }
    // One request all the way, without the question of notification.
    void turn(std::uint16_t head) {
        offer(head);
        REQUIRE(!device.push(pop(), 1));
        device.publish();
    }
};

}  // namespace

TEST_CASE("split queue device: a chain goes from avail to used") {
    Queue8 queue;
    CHECK(!queue.device.has_work());
    queue.offer(3);
    CHECK(queue.device.has_work());
    CHECK(queue.pop() == 3);
    CHECK(queue.device.in_flight() == 1);
    CHECK(!queue.device.has_work());
    bool found = true;
    CHECK(!queue.device.pop(queue.chain, found));
    CHECK(!found);

    REQUIRE(!queue.device.push(3, 64));
    CHECK(queue.device.in_flight() == 0);
    CHECK(*queue.ring.used_idx == 0);
    queue.device.publish();
    CHECK(*queue.ring.used_idx == 1);
    CHECK(queue.ring.used_ring[0].id == 3);
    CHECK(queue.ring.used_ring[0].length == 64);
}

TEST_CASE("split queue device: geometry is checked before anything is mapped") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8, 0, false);
    queue.device.deactivate();
    hypervisor.map_calls = 0;
    const auto code = [&](auto change) {
        QueueGeometry geometry = queue.geometry;
        change(geometry);
        const GuestError checked = check_geometry(geometry, 256);
        const GuestError activated = queue.device.activate(geometry, 0, queue.memory);
        CHECK(checked == activated);
        CHECK(!queue.device.active());
        return checked.code;
    };
    for (const std::uint16_t size : std::array<std::uint16_t, 6>{0, 3, 12, 255, 32769, 65535})
        CHECK(code([&](QueueGeometry& g) { g.size = size; }) == VMSG_XEN_QUEUE_SIZE);
    for (const std::uint64_t off : {1ULL, 8ULL, 15ULL})
        CHECK(code([&](QueueGeometry& g) { g.descriptor_address += off; }) == VMSG_XEN_QUEUE_ADDRESS);
    CHECK(code([](QueueGeometry& g) { g.driver_address += 1; }) == VMSG_XEN_QUEUE_ADDRESS);
    for (const std::uint64_t off : {1ULL, 2ULL, 3ULL})
        CHECK(code([&](QueueGeometry& g) { g.device_address += off; }) == VMSG_XEN_QUEUE_ADDRESS);
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{0x1000}, grant_address(0xffff'ffff, 4080)}) {
        CHECK(code([&](QueueGeometry& g) { g.descriptor_address = address; }) == VMSG_XEN_QUEUE_ADDRESS);
        CHECK(code([&](QueueGeometry& g) { g.driver_address = address; }) == VMSG_XEN_QUEUE_ADDRESS);
        CHECK(code([&](QueueGeometry& g) { g.device_address = address; }) == VMSG_XEN_QUEUE_ADDRESS);
    }
    CHECK(hypervisor.map_calls == 0);

    QueueGeometry geometry = queue.geometry;
    geometry.size = 512;
    CHECK(check_geometry(geometry, 256) == GuestError{VMSG_XEN_QUEUE_SIZE, 512});
    CHECK(!check_geometry(geometry, 512));
}

TEST_CASE("split queue device: what is mapped is unmapped by deactivate, and only the used ring is writable") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8, 0, false);
    CHECK(queue.memory.mapped_pages() == 3);
    CHECK(hypervisor.writable_maps == 1);
    queue.device.deactivate();
    CHECK(hypervisor.mapped_pages == 0);
    queue.device.deactivate();
    CHECK(!queue.device.active());
}

TEST_CASE("split queue device: without activation it has no work, takes nothing and touches nothing") {
    SplitQueueDevice device;
    Chain chain;
    bool found = true;
    CHECK(!device.has_work());
    CHECK(!device.pop(chain, found));
    CHECK(!found);
    CHECK(device.push(0, 0).code == VMSG_XEN_MODEL);
    device.publish();
    CHECK(!device.needs_notification());
    device.disable_notifications();
    CHECK(!device.enable_notifications());
}

TEST_CASE("split queue device: a ring reset starts at index 0 with nothing in flight") {
    Queue8 queue(in_order);
    queue.offer(1);
    queue.offer(2);
    CHECK(queue.pop() == 1);
    CHECK(queue.pop() == 2);
    REQUIRE(!queue.device.push(2, 0));  // held back behind 1
    queue.restart();
    CHECK(queue.device.in_flight() == 0);
    CHECK(queue.device.push(1, 0).code == VMSG_XEN_MODEL);
    queue.turn(1);
    CHECK(queue.ring.used_ring[0].id == 1);
    CHECK(*queue.ring.used_idx == 1);
}

TEST_CASE("split queue device: segments of a popped chain stay valid after deactivate") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8, 0, false);
    queue.put(0, {queue.buffer_address, 64, desc_write, 0});
    queue.offer(0);
    bool found = false;
    REQUIRE(!queue.device.pop(queue.chain, found));
    queue.device.deactivate();
    queue.chain.writable[0].data[63] = std::byte{9};
    CHECK(queue.buffers[63] == std::byte{9});
    queue.chain.clear();
    CHECK(hypervisor.live_mappings == 0);
}

TEST_CASE("split queue device: notification by flags") {
    Queue8 queue;
    queue.turn(0);
    CHECK(queue.device.needs_notification());
    CHECK(!queue.device.needs_notification());  // nothing new
    *queue.ring.avail_flags = avail_no_interrupt;
    queue.turn(0);
    CHECK(!queue.device.needs_notification());
    *queue.ring.avail_flags = 0xfffe;  // other bits mean nothing
    queue.turn(0);
    CHECK(queue.device.needs_notification());
}

TEST_CASE("split queue device: notification by event index, once for each time used_event is crossed") {
    Queue8 queue(event_idx);
    *queue.ring.avail_flags = avail_no_interrupt;  // must be ignored (section 2.7.7.2)
    int notified = 0;
    *queue.ring.used_event = 10;
    for (int i = 0; i < 65536; ++i) {
        queue.turn(static_cast<std::uint16_t>(i % 8));
        if (queue.device.needs_notification()) {
            ++notified;
            CHECK(i == 10);
        }
    }
    CHECK(notified == 1);
}

TEST_CASE("split queue device: notification is owed for every entry since it was last asked about") {
    Queue8 queue(event_idx);
    *queue.ring.used_event = 2;
    for (int i = 0; i < 5; ++i) queue.turn(0);
    CHECK(queue.device.needs_notification());
    // A whole turn of the index: the event lies within, though the index is where it was.
    for (int i = 0; i < 65536; ++i) queue.turn(0);
    CHECK(queue.device.needs_notification());
}

TEST_CASE("split queue device: kicks are asked for and waived by flags") {
    Queue8 queue;
    queue.device.disable_notifications();
    CHECK(*queue.ring.used_flags == used_no_notify);
    CHECK(!queue.device.enable_notifications());
    CHECK(*queue.ring.used_flags == 0);
    queue.offer(1);
    CHECK(queue.device.enable_notifications());  // came before it was armed
}

TEST_CASE("split queue device: kicks are asked for by avail_event") {
    Queue8 queue(event_idx);
    queue.turn(0);
    queue.turn(1);
    queue.device.disable_notifications();
    CHECK(*queue.ring.used_flags == 0);
    CHECK(*queue.ring.avail_event == 0);
    CHECK(!queue.device.enable_notifications());
    CHECK(*queue.ring.avail_event == 2);
    queue.offer(1);
    CHECK(queue.device.enable_notifications());
}

TEST_CASE("split queue device: in order, completions wait for those before them") {
    Queue8 queue(in_order);
    constexpr std::array<std::uint16_t, 4> heads{5, 1, 7, 3};
    for (std::uint16_t turn = 0; turn < 20; ++turn) {
        for (const std::uint16_t head : heads) queue.offer(head);
        for (const std::uint16_t head : heads) CHECK(queue.pop() == head);
        const auto first = static_cast<std::uint16_t>(turn * 4);
        REQUIRE(!queue.device.push(7, 7));
        REQUIRE(!queue.device.push(1, 1));
        queue.device.publish();
        CHECK(!queue.device.needs_notification());
        CHECK(*queue.ring.used_idx == first);
        CHECK(queue.device.in_flight() == 4);
        CHECK(queue.device.push(7, 7).code == VMSG_XEN_MODEL);  // twice
        REQUIRE(!queue.device.push(5, 5));
        queue.device.publish();
        CHECK(queue.device.needs_notification());
        CHECK(*queue.ring.used_idx == first + 3);
        CHECK(queue.device.in_flight() == 1);
        REQUIRE(!queue.device.push(3, 3));
        queue.device.publish();
        CHECK(queue.device.needs_notification());
        for (std::size_t i = 0; i < heads.size(); ++i) {
            const UsedElement& element = queue.ring.used_ring[(first + i) % 8];
            CHECK(element.id == heads[i]);
            CHECK(element.length == element.id);
        }
    }
}

}  // namespace cpp_ring::test
