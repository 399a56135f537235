// Threat 6: lengths of nothing, which make loops that count bytes go on for ever (CVE-2016-6490).
#include <doctest/doctest.h>

#include <array>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 6: an empty buffer is refused wherever it stands in a chain") {
    FakeHypervisor hypervisor(256, true);
    RawQueue<> queue(hypervisor, 8, all_ring_features);
    for (std::uint16_t count = 1; count <= 8; ++count) {
        for (std::uint16_t empty = 0; empty < count; ++empty) {
            for (const bool indirect : {false, true}) {
                for (const bool write : {false, true}) {
                    std::array<Descriptor, 8> table{};
                    for (std::uint16_t i = 0; i < count; ++i) {
                        table[i] = {
                            queue.buffer_address, i == empty ? 0U : 1U,
                            static_cast<std::uint16_t>((write ? desc_write : 0) | (i + 1 < count ? desc_next : 0)),
                            static_cast<std::uint16_t>(i + 1)};
                        if (!indirect) queue.put(i, table[i]);
                    }
                    if (indirect) queue.put(0, {queue.put_table(0, table), 16U * count, desc_indirect, 0});
                    CHECK(queue.walk_from(0) == GuestError{VMSG_XEN_DESC_LENGTH, 0});
                }
            }
        }
    }
}

TEST_CASE("threat 6: an indirect table is a whole number of descriptors and not none") {
    FakeHypervisor hypervisor(256, true);
    RawQueue<> queue(hypervisor, 8, all_ring_features);
    std::array<Descriptor, 9> table{};
    for (Descriptor& desc : table) desc = {queue.buffer_address, 1, 0, 0};
    const std::uint64_t address = queue.put_table(0, table);
    for (std::uint32_t length = 0; length <= 9 * 16; ++length) {
        queue.put(0, {address, length, desc_indirect, 0});
        const bool good = length != 0 && length % 16 == 0 && length <= 8 * 16;
        CHECK(queue.walk_from(0) == (good ? GuestError{} : GuestError{VMSG_XEN_DESC_INDIRECT, length}));
    }
}

}  // namespace cpp_ring::test
