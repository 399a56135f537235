// Threat 12: used.len larger than what was written tells the driver to read stale bytes. The ring's part: a length is
// never above what was writable, and the device writes used entries and index and nothing else.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 12: a length above the writable part is a failure of the model and changes nothing") {
    FakeHypervisor hypervisor(64, true);
    for (const std::uint64_t features : {std::uint64_t{0}, std::uint64_t{1} << feature_in_order}) {
        RawQueue<> queue(hypervisor, 8, features | all_ring_features);
        queue.put(0, {queue.buffer_address, 100, desc_next, 1});
        queue.put(1, {queue.buffer_address, 10, desc_next | desc_write, 2});
        queue.put(2, {queue.buffer_address, 7, desc_write, 0});
        queue.put(3, {queue.buffer_address, 100, 0, 0});  // nothing writable
        queue.offer(0);
        queue.offer(3);
        bool found = false;
        REQUIRE(!queue.device.pop(queue.chain, found));
        REQUIRE(!queue.device.pop(queue.chain, found));
        for (const std::uint32_t written : {18U, 117U, 0xffff'ffffU})
            CHECK(queue.device.push(0, written) == GuestError{VMSG_XEN_MODEL, written});
        CHECK(queue.device.push(3, 1) == GuestError{VMSG_XEN_MODEL, 1});
        for (const std::uint16_t head : std::vector<std::uint16_t>{1, 2, 4, 7, 8, 65535})
            CHECK(queue.device.push(head, 0) == GuestError{VMSG_XEN_MODEL, head});
        queue.device.publish();
        CHECK(*queue.ring.used_idx == 0);
        CHECK(queue.device.in_flight() == 2);

        CHECK(!queue.device.push(0, 17));
        CHECK(!queue.device.push(3, 0));
        queue.device.publish();
        CHECK(*queue.ring.used_idx == 2);
        CHECK(queue.ring.used_ring[0].length == 17);
        CHECK(queue.ring.used_ring[1].length == 0);
    }
}

TEST_CASE("threat 12: the device writes its own words and no other byte of the guest") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<> queue(hypervisor, 8, all_ring_features);
    std::byte* base = hypervisor.page(FakeHypervisor::first_reference);
    const std::size_t length = static_cast<std::size_t>(queue.buffers.data() - base) + queue.buffers.size();
    std::fill(base, base + length, std::byte{0xa5});
    queue.restart();
    queue.put(0, {queue.buffer_address, 100, desc_write, 0});
    const std::vector<std::byte> before(base, base + length);
    const auto allowed = [&](const std::byte* byte, std::size_t turns) {
        const auto within = [&](const void* word, std::size_t size) {
            const auto* first = static_cast<const std::byte*>(word);
            return byte >= first && byte < first + size;
        };
        return within(queue.ring.avail_ring, 2 * turns) || within(queue.ring.avail_idx, 2) ||
               within(queue.ring.used_idx, 2) || within(queue.ring.used_ring, 8 * turns) ||
               within(queue.ring.avail_event, 2);
    };
    for (std::size_t turn = 1; turn <= 8; ++turn) {
        queue.offer(0);
        bool found = false;
        queue.device.disable_notifications();
        REQUIRE(!queue.device.pop(queue.chain, found));
        REQUIRE(!queue.device.push(0, 50));
        queue.device.publish();
        static_cast<void>(queue.device.needs_notification());
        static_cast<void>(queue.device.enable_notifications());
        int strayed = 0;
        for (std::size_t i = 0; i < length; ++i) strayed += base[i] != before[i] && !allowed(base + i, turn);
        CHECK(strayed == 0);
    }
}

}  // namespace cpp_ring::test
