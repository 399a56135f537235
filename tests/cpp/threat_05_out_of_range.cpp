// Threat 5: a head or a next that names no descriptor (openvmm #3136). Compared before use; an error with a name, not a
// silent end of the chain.
#include <doctest/doctest.h>

#include <array>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 5: every head of every queue size") {
    FakeHypervisor hypervisor(2048, true);
    for (std::uint32_t n = 1; n <= max_queue_size; n *= 2) {
        const auto size = static_cast<std::uint16_t>(n);
        CAPTURE(size);
        RawQueue<> queue(hypervisor, size);
        for (std::uint16_t i = 0; i < size; ++i) queue.put(i, {queue.buffer_address, 1, 0, 0});
        int wrong = 0;
        for (std::uint32_t head = 0; head < 65536; ++head) {
            const GuestError error = queue.walk_from(static_cast<std::uint16_t>(head));
            wrong += head < size ? static_cast<bool>(error) : error != GuestError{VMSG_XEN_DESC_HEAD, head};
        }
        CHECK(wrong == 0);
        queue.offer(size);
        bool found = false;
        CHECK(queue.device.pop(queue.chain, found) == GuestError{VMSG_XEN_DESC_HEAD, size});
        CHECK(!found);
        CHECK(queue.device.in_flight() == 0);
    }
}

TEST_CASE("threat 5: every next, in the ring's table and in indirect tables of every length") {
    FakeHypervisor hypervisor(256, true);
    constexpr std::uint16_t size = 8;
    RawQueue<> queue(hypervisor, size, all_ring_features);
    for (std::uint16_t i = 0; i < size; ++i) queue.put(i, {queue.buffer_address, 1, 0, 0});
    int wrong = 0;
    for (std::uint32_t n = 0; n < 65536; ++n) {
        const auto next = static_cast<std::uint16_t>(n);
        queue.put(0, {queue.buffer_address, 1, desc_next, next});
        const GuestError error = queue.walk_from(0);
        if (next >= size)
            wrong += error != GuestError{VMSG_XEN_DESC_NEXT, next};
        else
            wrong += error.code != (next == 0 ? VMSG_XEN_DESC_CYCLE : VMSG_XEN_OK);
    }
    CHECK(wrong == 0);
    wrong = 0;
    for (std::uint32_t entries = 1; entries <= size; ++entries) {
        // The whole of the buffer is good descriptors, so that only the comparison stops a walk behind the table.
        std::array<Descriptor, 64> table{};
        table.fill({queue.buffer_address, 1, 0, 0});
        queue.put(0, {queue.put_table(0, table), entries * 16, desc_indirect, 0});
        for (std::uint32_t n = 0; n < 65536; ++n) {
            const auto next = static_cast<std::uint16_t>(n);
            table[0] = {queue.buffer_address, 1, desc_next, next};
            queue.put_table(0, std::span(table).first(1));
            const GuestError error = queue.walk_from(0);
            if (next >= entries)
                wrong += error != GuestError{VMSG_XEN_DESC_NEXT, next};
            else
                wrong += error.code != (next == 0 ? VMSG_XEN_DESC_CYCLE : VMSG_XEN_OK);
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE("threat 5: buffers and tables at addresses that were never granted") {
    FakeHypervisor hypervisor(256);
    for (const bool arena : {false, true}) {
        RawQueue<> queue(hypervisor, 8, all_ring_features, arena);
        const std::uint64_t end = queue.buffer_address + queue.buffers.size();
        const auto code = [&](std::uint64_t address, std::uint16_t flags) {
            queue.put(0, {address, 32, flags, 0});
            return queue.walk_from(0).code;
        };
        for (const std::uint16_t flags : std::array<std::uint16_t, 3>{0, desc_write, desc_indirect}) {
            for (const std::uint64_t address :
                 std::array<std::uint64_t, 6>{0, 0x1000, ~VMSG_XEN_DMA_GRANT, VMSG_XEN_DMA_GRANT | 1ULL << 44, ~0ULL,
                                              grant_address(0xffff'ffff, 4080)})
                CHECK(code(address, flags) == VMSG_XEN_DESC_ADDRESS);
            for (const std::uint64_t address :
                 {end, end - 1, end - 31, grant_address(0xffff'ffff, 0), grant_address(0, 0)})
                CHECK(code(address, flags) == VMSG_XEN_GRANT_MAP);
        }
        CHECK(code(end - 32, 0) == VMSG_XEN_OK);
        CHECK(code(end - 32, desc_write) == VMSG_XEN_OK);
    }
}

}  // namespace cpp_ring::test
