// Threat 7: lengths whose sum wraps, or makes the host allocate or map what it has not (vm-virtio #236, Firecracker
// #5762). Summed in 64 bits and capped before anything is mapped.
#include <doctest/doctest.h>

#include <array>
#include <fstream>

#include "raw_queue.hpp"

namespace cpp_ring::test {
namespace {

std::size_t resident_pages() {
    std::ifstream statm("/proc/self/statm");
    std::size_t total = 0;
    std::size_t resident = 0;
    statm >> total >> resident;
    return resident;
}

}  // namespace

TEST_CASE("threat 7: the sum of a chain is capped, whatever its parts") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<> queue(hypervisor, 4);
    constexpr std::array<std::uint32_t, 9> lengths{1,        2,           0x7fff,      0x8000,     0xffff,
                                                   0x1'0000, 0x7fff'ffff, 0x8000'0000, 0xffff'ffff};
    const WalkLimits limits{4, false, 0x1'0000};
    for (const std::uint32_t a : lengths) {
        for (const std::uint32_t b : lengths) {
            for (const std::uint32_t c : lengths) {
                for (const std::uint32_t d : lengths) {
                    queue.put(0, {queue.buffer_address, a, desc_next, 1});
                    queue.put(1, {queue.buffer_address, b, desc_next, 2});
                    queue.put(2, {queue.buffer_address, c, desc_next | desc_write, 3});
                    queue.put(3, {queue.buffer_address, d, desc_write, 0});
                    const std::uint64_t sum = std::uint64_t{a} + b + c + d;
                    const GuestError error = walk(queue.ring.descriptors, limits, 0, queue.memory, queue.chain);
                    REQUIRE(error.code == (sum <= 0x1'0000 ? VMSG_XEN_OK : VMSG_XEN_DESC_LENGTH));
                    if (!error) REQUIRE(queue.chain.readable_bytes + queue.chain.writable_bytes == sum);
                }
            }
        }
    }
}

TEST_CASE("threat 7: a length above the cap is refused before the hypervisor hears of it") {
    FakeHypervisor hypervisor(64);
    RawQueue<> queue(hypervisor, 4, 0, false);
    hypervisor.map_calls = 0;
    for (const std::uint32_t length : {0xffff'ffffU, 0x8000'0000U, static_cast<std::uint32_t>(max_chain_bytes + 1)}) {
        queue.put(0, {queue.buffer_address, length, desc_write, 0});
        CHECK(queue.walk_from(0) == GuestError{VMSG_XEN_DESC_LENGTH, length});
    }
    // Within the cap, above the budget of the connection.
    queue.put(0, {queue.buffer_address, static_cast<std::uint32_t>(max_chain_bytes), desc_write, 0});
    CHECK(queue.walk_from(0).code == VMSG_XEN_MAP_BUDGET);
    CHECK(hypervisor.map_calls == 0);
}

TEST_CASE("threat 7: chains that claim terabytes leave the process as small as it was") {
    FakeHypervisor hypervisor(2048, true);
    RawQueue<> queue(hypervisor, 1024, all_ring_features);
    const std::size_t before = resident_pages();
    for (std::uint16_t i = 0; i < 1024; ++i)
        queue.put(i,
                  {queue.buffer_address, 0xffff'fff0, static_cast<std::uint16_t>(i % 2 != 0 ? desc_write : desc_next),
                   static_cast<std::uint16_t>((i + 1) % 1024)});
    for (int round = 0; round < 20; ++round) {
        for (std::uint16_t head = 0; head < 1024; ++head) {
            const GuestError error = queue.walk_from(head);
            REQUIRE(error.code == VMSG_XEN_DESC_LENGTH);
        }
    }
    CHECK(resident_pages() < before + 64 * 1024 * 1024 / page_size);
}

}  // namespace cpp_ring::test
