// Threat 9: lies about direction: a header the device may write, a status byte it may only read. All readable parts
// come before all writable ones, and nothing readable is mapped for writing.
#include <doctest/doctest.h>

#include <array>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 9: every order of directions, direct and indirect: readable first or refused") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<> queue(hypervisor, 8, all_ring_features);
    for (std::uint16_t count = 1; count <= 8; ++count) {
        for (std::uint32_t mask = 0; mask < (1U << count); ++mask) {
            for (const bool indirect : {false, true}) {
                std::array<Descriptor, 8> table{};
                std::uint32_t writable = 0;
                bool good = true;
                for (std::uint16_t i = 0; i < count; ++i) {
                    const bool write = (mask >> i & 1) != 0;
                    good = good && (write || writable == 0);
                    writable += write ? 1 : 0;
                    table[i] = {queue.buffer_address, 1,
                                static_cast<std::uint16_t>((write ? desc_write : 0) | (i + 1 < count ? desc_next : 0)),
                                static_cast<std::uint16_t>(i + 1)};
                    if (!indirect) queue.put(i, table[i]);
                }
                if (indirect) queue.put(0, {queue.put_table(0, table), 16U * count, desc_indirect, 0});
                REQUIRE(queue.walk_from(0).code == (good ? VMSG_XEN_OK : VMSG_XEN_DESC_ORDER));
                if (good) REQUIRE(queue.chain.writable.size() == writable);
            }
        }
    }
}

TEST_CASE("threat 9: the direction carries over from direct descriptors into the table behind them") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<> queue(hypervisor, 8, all_ring_features);
    const std::array table{Descriptor{queue.buffer_address, 1, 0, 0}};
    queue.put(0, {queue.buffer_address, 1, desc_next | desc_write, 1});
    queue.put(1, {queue.put_table(0, table), 16, desc_indirect, 0});
    CHECK(queue.walk_from(0).code == VMSG_XEN_DESC_ORDER);
}

TEST_CASE("threat 9: a readable part is mapped read-only, a writable part of a read-only grant not at all") {
    FakeHypervisor hypervisor(64);
    RawQueue<> queue(hypervisor, 8, all_ring_features, false);
    const auto read_only = hypervisor.share(0, 1, false);
    const std::uint64_t address = grant_address(read_only->first_ref(), 0);
    hypervisor.writable_maps = 0;
    queue.put(0, {address, 16, desc_next, 1});
    queue.put(1, {queue.buffer_address, 16, desc_next, 2});
    queue.put(2, {queue.buffer_address, 16, desc_write, 0});
    REQUIRE(!queue.walk_from(0));
    CHECK(hypervisor.writable_maps == 1);
    for (const Segment& segment : queue.chain.readable) CHECK(!segment.keep->writable());

    queue.put(2, {address, 16, desc_write, 0});
    CHECK(queue.walk_from(0) == GuestError{VMSG_XEN_GRANT_MAP, read_only->first_ref()});
    queue.put(2, {address, 16, desc_write, 0});

    SUBCASE("nor when it lies in a persistent mapping that is read-only") {
        REQUIRE(!queue.memory.map_persistent(address, page_size, false));
        CHECK(queue.walk_from(0) == GuestError{VMSG_XEN_GRANT_MAP, read_only->first_ref()});
    }
}

TEST_CASE("threat 9: rings need a writable grant only where the device writes") {
    FakeHypervisor hypervisor(64);
    const auto driver_pages = hypervisor.share(0, 2, false);
    const auto device_pages = hypervisor.share(0, 1, true);
    QueueGeometry geometry{64, grant_address(driver_pages->first_ref(), 0),
                           grant_address(driver_pages->first_ref(), 4096), grant_address(device_pages->first_ref(), 0)};
    GuestMemory memory(hypervisor, 1, 16);
    SplitQueueDevice device;
    CHECK(!device.activate(geometry, 0, memory));
    geometry.device_address = geometry.driver_address;
    CHECK(device.activate(geometry, 0, memory).code == VMSG_XEN_GRANT_MAP);
    CHECK(hypervisor.live_mappings == 0);
}

}  // namespace cpp_ring::test
