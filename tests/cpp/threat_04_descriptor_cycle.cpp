// Threat 4: descriptors that lead in a circle, and indirect tables that make a walk long (openvmm #2986). The steps of
// a whole chain are bounded by the queue size; a table does not renew them, nests not, and is never longer.
#include <doctest/doctest.h>

#include <array>
#include <set>
#include <vector>

#include "raw_queue.hpp"

namespace cpp_ring::test {
namespace {

// What a walk of a graph without tables must come to: node i leads to next[i], or ends when that is -1.
vmsg_xen_error expected(const std::vector<int>& next, std::uint16_t head) {
    std::set<int> seen;
    for (int node = head; node != -1; node = next[static_cast<std::size_t>(node)])
        if (!seen.insert(node).second) return VMSG_XEN_DESC_CYCLE;
    return VMSG_XEN_OK;
}

// Calls `use` with every graph of `nodes` nodes.
template <class Use>
void every_graph(std::size_t nodes, Use use) {
    std::vector<int> next(nodes, -1);
    for (;;) {
        use(next);
        std::size_t i = 0;
        while (i < nodes && ++next[i] == static_cast<int>(nodes)) next[i++] = -1;
        if (i == nodes) return;
    }
}

Descriptor node(std::uint64_t address, int next) {
    return {address, 1, next < 0 ? std::uint16_t{0} : desc_next, static_cast<std::uint16_t>(next < 0 ? 0 : next)};
}

constexpr std::uint16_t size = 4;

struct Fixture {
    FakeHypervisor hypervisor{2048, true};
    RawQueue<> queue{hypervisor, size, all_ring_features};

    vmsg_xen_error table(std::span<const Descriptor> entries, std::uint16_t flags = desc_indirect) {
        const std::uint64_t address = queue.put_table(0, entries);
        queue.put(0, {address, static_cast<std::uint32_t>(entries.size_bytes()), flags, 0});
        return queue.walk_from(0).code;
    }
    // A table of one chain through all its entries.
    [[nodiscard]] std::vector<Descriptor> line(std::size_t entries) const {
        std::vector<Descriptor> table(entries);
        for (std::size_t i = 0; i < entries; ++i)
            table[i] = node(queue.buffer_address, i + 1 < entries ? static_cast<int>(i + 1) : -1);
        return table;
    }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "threat 4: every graph of up to four nodes ends or is a cycle") {
    for (std::size_t nodes = 1; nodes <= size; ++nodes) {
        int wrong = 0;
        every_graph(nodes, [&](const std::vector<int>& next) {
            for (std::uint16_t i = 0; i < nodes; ++i) queue.put(i, node(queue.buffer_address, next[i]));
            for (std::uint16_t head = 0; head < nodes; ++head) {
                wrong += queue.walk_from(head).code != expected(next, head);
                wrong += queue.chain.readable.size() > size;
            }
        });
        CHECK(wrong == 0);
    }
}

TEST_CASE_FIXTURE(Fixture, "threat 4: every graph of up to four nodes in an indirect table") {
    for (std::size_t nodes = 1; nodes <= size; ++nodes) {
        int wrong = 0;
        std::vector<Descriptor> entries(nodes);
        every_graph(nodes, [&](const std::vector<int>& next) {
            for (std::size_t i = 0; i < nodes; ++i) entries[i] = node(queue.buffer_address, next[i]);
            wrong += table(entries) != expected(next, 0);
        });
        CHECK(wrong == 0);
    }
}

TEST_CASE_FIXTURE(Fixture, "threat 4: tables as long as the queue pass, longer ones are refused unread") {
    CHECK(table({}) == VMSG_XEN_DESC_INDIRECT);
    CHECK(table(line(1)) == VMSG_XEN_OK);
    CHECK(table(line(size)) == VMSG_XEN_OK);
    CHECK(queue.chain.readable.size() == size);
    CHECK(table(line(size + 1)) == VMSG_XEN_DESC_INDIRECT);

    RawQueue<> bare(hypervisor, size, all_ring_features, false);
    hypervisor.map_calls = 0;
    for (const std::uint32_t entries : {5U, 65535U, 65536U, 0x0fff'ffffU}) {
        bare.put(0, {bare.buffer_address, entries * 16, desc_indirect, 0});
        CHECK(bare.walk_from(0) == GuestError{VMSG_XEN_DESC_INDIRECT, entries * 16});
    }
    CHECK(hypervisor.map_calls == 0);
}

TEST_CASE_FIXTURE(Fixture, "threat 4: a table does not renew the steps of its chain") {
    for (std::uint16_t direct = 1; direct < size; ++direct) {
        for (std::size_t inner = 1; inner <= size; ++inner) {
            for (std::uint16_t i = 0; i < direct; ++i) queue.put(i, node(queue.buffer_address, i + 1));
            const auto entries = line(inner);
            queue.put(direct, {queue.put_table(0, entries), static_cast<std::uint32_t>(16 * inner), desc_indirect, 0});
            CHECK(queue.walk_from(0).code == (direct + inner <= size ? VMSG_XEN_OK : VMSG_XEN_DESC_CYCLE));
        }
    }
}

TEST_CASE_FIXTURE(Fixture, "threat 4: a table in a table, one with a successor, and one that was not agreed on") {
    auto entries = line(2);
    CHECK(table(entries, desc_indirect | desc_next) == VMSG_XEN_DESC_INDIRECT);
    entries[1] = {queue.buffer_address, 16, desc_indirect, 0};  // itself, too
    CHECK(table(entries) == VMSG_XEN_DESC_INDIRECT);
    entries[0] = {queue.buffer_address, 16, desc_indirect, 0};
    CHECK(table(entries) == VMSG_XEN_DESC_INDIRECT);

    RawQueue<> plain(hypervisor, size, 0);
    plain.put(0, {plain.put_table(0, line(1)), 16, desc_indirect, 0});
    CHECK(plain.walk_from(0).code == VMSG_XEN_DESC_INDIRECT);
}

TEST_CASE_FIXTURE(Fixture, "threat 4: the longest queue in one circle is left after as many steps") {
    RawQueue<> large(hypervisor, max_queue_size, all_ring_features);
    for (std::uint32_t i = 0; i < max_queue_size; ++i)
        large.put(static_cast<std::uint16_t>(i),
                  node(large.buffer_address, static_cast<int>((i + 1) % max_queue_size)));
    CHECK(large.walk_from(77) == GuestError{VMSG_XEN_DESC_CYCLE, 77});
}

}  // namespace cpp_ring::test
