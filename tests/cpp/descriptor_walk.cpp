#include "descriptor_walk.hpp"

#include <doctest/doctest.h>

#include <array>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("descriptor walk: a chain gives its segments in order, readable before writable, with their sums") {
    FakeHypervisor hypervisor;
    for (const bool arena : {false, true}) {
        CAPTURE(arena);
        RawQueue<> queue(hypervisor, 8, all_ring_features, arena);
        const std::uint64_t at = queue.buffer_address;
        queue.put(5, {at, 16, desc_next, 2});
        queue.put(2, {at + 100, 300, desc_next, 7});
        queue.put(7, {at + 5000, 4096, desc_next | desc_write, 0});
        queue.put(0, {at + 16, 1, desc_write, 5});  // the last: next means nothing
        REQUIRE(!queue.walk_from(5));
        const Chain& chain = queue.chain;
        CHECK(chain.head == 5);
        REQUIRE(chain.readable.size() == 2);
        REQUIRE(chain.writable.size() == 2);
        CHECK(chain.readable_bytes == 316);
        CHECK(chain.writable_bytes == 4097);
        CHECK(chain.readable[1].size == 300);
        CHECK(chain.writable[0].size == 4096);
        queue.buffers[100] = std::byte{0x5a};
        CHECK(chain.readable[1].data[0] == std::byte{0x5a});
        chain.writable[1].data[0] = std::byte{0xa5};
        CHECK(queue.buffers[16] == std::byte{0xa5});
    }
}

TEST_CASE("descriptor walk: an indirect table continues the chain at its entry 0") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8, all_ring_features, false);
    const std::uint64_t at = queue.buffer_address;
    // Odd address: the spec asks no alignment of a table.
    const std::array<Descriptor, 3> table{Descriptor{at, 1, desc_next, 2}, Descriptor{at, 4, desc_write, 0},
                                          Descriptor{at, 2, desc_next, 1}};
    const std::uint64_t address = queue.put_table(4096 - 21, table);

    SUBCASE("alone; its WRITE flag means nothing") {
        queue.put(3, {address, 48, desc_indirect | desc_write, 0});
        REQUIRE(!queue.walk_from(3));
        CHECK(queue.chain.readable.size() == 2);
    }
    SUBCASE("behind direct descriptors") {
        queue.put(3, {at, 8, desc_next, 4});
        queue.put(4, {address, 48, desc_indirect, 0});
        REQUIRE(!queue.walk_from(3));
        CHECK(queue.chain.readable.size() == 3);
        CHECK(queue.chain.readable[0].size == 8);
    }
    CHECK(queue.chain.readable_bytes % 8 == 3);
    CHECK(queue.chain.writable_bytes == 4);
    // The table itself is unmapped once it was read.
    CHECK(queue.memory.mapped_pages() == 3 + queue.chain.readable.size() + queue.chain.writable.size());
}

TEST_CASE("descriptor walk: an error leaves nothing behind") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8, all_ring_features, false);
    queue.put(0, {queue.buffer_address, 16, desc_next, 1});
    queue.put(1, {queue.buffer_address, 16, desc_next | desc_write, 2});
    queue.put(2, {queue.buffer_address, 16, desc_write, 0});
    REQUIRE(!queue.walk_from(0));
    queue.put(2, {0x1234, 16, desc_write, 0});
    CHECK(queue.walk_from(0) == GuestError{VMSG_XEN_DESC_ADDRESS, 0x1234});
    CHECK(queue.chain.readable.empty());
    CHECK(queue.chain.writable.empty());
    CHECK(queue.chain.readable_bytes == 0);
    CHECK(queue.chain.writable_bytes == 0);
    CHECK(queue.memory.mapped_pages() == 3);
}

TEST_CASE("descriptor walk: a chain object is used again without allocating") {
    FakeHypervisor hypervisor;
    RawQueue<> queue(hypervisor, 8);
    for (std::uint16_t i = 0; i < 8; ++i)
        queue.put(i, {queue.buffer_address, 1, desc_next, static_cast<std::uint16_t>(i + 1)});
    queue.put(7, {queue.buffer_address, 1, 0, 0});
    REQUIRE(!queue.walk_from(0));
    const Segment* storage = queue.chain.readable.data();
    const std::size_t capacity = queue.chain.readable.capacity();
    for (std::uint16_t head = 0; head < 8; ++head) REQUIRE(!queue.walk_from(head));
    REQUIRE(!queue.walk_from(0));
    CHECK(queue.chain.readable.data() == storage);
    CHECK(queue.chain.readable.capacity() == capacity);
}

}  // namespace cpp_ring::test
