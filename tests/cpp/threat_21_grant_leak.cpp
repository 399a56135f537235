// Threat 21: grants left mapped by a failure half-way (XSA-365, XSA-371). Whatever fails, and wherever, all or nothing.
#include <doctest/doctest.h>

#include "raw_queue.hpp"

namespace cpp_ring::test {
namespace {

// A chain of six buffers and an indirect table, none in an arena: a map each.
struct Fixture {
    static constexpr std::size_t chain_maps = 7;
    static constexpr std::size_t chain_pages = 1 + 6 * 2;

    FakeHypervisor hypervisor{64};
    RawQueue<> queue{hypervisor, 8, all_ring_features, false};

    Fixture() {
        std::array<Descriptor, 6> table{};
        for (std::uint16_t i = 0; i < 6; ++i)
            table[i] = {queue.buffer_address + 4096 + i * 100U, 4096,
                        static_cast<std::uint16_t>((i > 3 ? desc_write : 0) | (i < 5 ? desc_next : 0)),
                        static_cast<std::uint16_t>(i + 1)};
        table[0].address += 1;
        queue.put(0, {queue.put_table(0, table), 96, desc_indirect, 0});
    }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "threat 21: the n-th map of a chain fails, for every n") {
    const std::size_t rings = hypervisor.mapped_pages;
    queue.offer(0);
    for (std::size_t n = 1; n <= chain_maps + 1; ++n) {
        CAPTURE(n);
        hypervisor.map_calls = 0;
        hypervisor.fail_at = n;
        bool found = false;
        const GuestError error = queue.device.pop(queue.chain, found);
        CHECK(error.code == (n <= chain_maps ? VMSG_XEN_GRANT_MAP : VMSG_XEN_OK));
        CHECK(found == (n > chain_maps));
        const std::size_t kept = found ? chain_pages - 1 : 0;
        CHECK(hypervisor.mapped_pages == rings + kept);
        CHECK(queue.memory.mapped_pages() == rings + kept);
    }
    queue.chain.clear();
    CHECK(hypervisor.mapped_pages == rings);
}

TEST_CASE_FIXTURE(Fixture, "threat 21: the n-th map of an activation fails, for every n") {
    queue.device.deactivate();
    CHECK(hypervisor.live_mappings == 0);
    for (std::size_t n = 1; n <= 4; ++n) {
        CAPTURE(n);
        hypervisor.map_calls = 0;
        hypervisor.fail_at = n;
        const GuestError error = queue.device.activate(queue.geometry, 0, queue.memory);
        CHECK(error.code == (n <= 3 ? VMSG_XEN_GRANT_MAP : VMSG_XEN_OK));
        CHECK(queue.device.active() == (n > 3));
        CHECK(hypervisor.live_mappings == (n > 3 ? 3 : 0));
        CHECK(queue.memory.mapped_pages() == hypervisor.mapped_pages);
    }
}

TEST_CASE_FIXTURE(Fixture, "threat 21: a queue that fails to start again keeps nothing of its former life") {
    hypervisor.map_calls = 0;
    hypervisor.fail_at = 2;
    CHECK(queue.device.activate(queue.geometry, 0, queue.memory).code == VMSG_XEN_GRANT_MAP);
    CHECK(!queue.device.active());
    CHECK(hypervisor.live_mappings == 0);
}

TEST_CASE("threat 21: every budget: a chain that does not fit maps nothing, one that fits maps all") {
    FakeHypervisor hypervisor(64);
    const auto pages = hypervisor.share(0, 8, true);
    const std::uint64_t base = grant_address(pages->first_ref(), 0);
    std::array<Descriptor, 4> table{Descriptor{base, 4096, desc_next, 1}, Descriptor{base + 4095, 2, desc_next, 2},
                                    Descriptor{base + 4096, 8192, desc_next, 3},
                                    Descriptor{base + 9, 1, desc_write, 0}};
    constexpr std::size_t needed = 1 + 2 + 2 + 1;
    for (std::size_t budget = 0; budget <= needed + 1; ++budget) {
        CAPTURE(budget);
        GuestMemory memory(hypervisor, 1, budget);
        Chain chain;
        const GuestError error = walk(table.data(), WalkLimits{4, false}, 0, memory, chain);
        CHECK(error.code == (budget < needed ? VMSG_XEN_MAP_BUDGET : VMSG_XEN_OK));
        CHECK(memory.mapped_pages() == (budget < needed ? 0 : needed));
        CHECK(hypervisor.mapped_pages == memory.mapped_pages());
        chain.clear();
        CHECK(memory.mapped_pages() == 0);
    }
}

TEST_CASE("threat 21: chains held back fill the budget and no more; given back they free it") {
    FakeHypervisor hypervisor(64);
    RawQueue<> queue(hypervisor, 64, 0, false, 3 + 10);
    for (std::uint16_t i = 0; i < 64; ++i) queue.put(i, {queue.buffer_address, 1, 0, 0});
    std::vector<Chain> held;
    for (std::uint16_t i = 0; i < 64; ++i) queue.offer(i);
    bool found = false;
    for (int i = 0; i < 10; ++i) {
        REQUIRE(!queue.device.pop(held.emplace_back(), found));
        REQUIRE(found);
    }
    CHECK(queue.device.pop(queue.chain, found) == GuestError{VMSG_XEN_MAP_BUDGET, 1});
    CHECK(hypervisor.mapped_pages == 13);
    held.pop_back();
    CHECK(!queue.device.pop(queue.chain, found));
    CHECK(found);
    held.clear();
    queue.chain.clear();
    queue.device.deactivate();
    CHECK(hypervisor.live_mappings == 0);
    CHECK(queue.memory.mapped_pages() == 0);
}

TEST_CASE("threat 21: an arena is mapped whole or not at all") {
    FakeHypervisor hypervisor(64);
    auto pages = hypervisor.share(0, 8, true);
    GuestMemory memory(hypervisor, 1, 8);
    // One page more than was granted.
    CHECK(memory.map_persistent(grant_address(pages->first_ref(), 0), 8 * page_size + 1, true).code ==
          VMSG_XEN_MAP_BUDGET);
    CHECK(memory.map_persistent(grant_address(pages->first_ref() + 1, 0), 8 * page_size, true).code ==
          VMSG_XEN_GRANT_MAP);
    CHECK(hypervisor.mapped_pages == 0);
    CHECK(memory.mapped_pages() == 0);
    CHECK(!memory.map_persistent(grant_address(pages->first_ref(), 0), 8 * page_size, true));
    memory.clear();
    CHECK(hypervisor.mapped_pages == 0);
}

TEST_CASE("threat 21: the devices of a domain have one budget together, and what is unmapped is free for all") {
    FakeHypervisor hypervisor(64, false, 6);
    const auto pages = hypervisor.share(0, 8, true);
    GuestMemory first(hypervisor, 1, 8);
    GuestMemory second(hypervisor, 1, 8);
    const auto arena = [&](std::size_t count) {
        return std::pair{grant_address(pages->first_ref(), 0), count * page_size};
    };
    CHECK(!first.map_persistent(arena(4).first, arena(4).second, true));
    CHECK(second.map_persistent(arena(3).first, arena(3).second, true) == GuestError{VMSG_XEN_MAP_BUDGET, 3});
    CHECK(!second.map_persistent(arena(2).first, arena(2).second, true));
    CHECK(hypervisor.mapped_pages == 6);
    // A map that fails gives back what it took.
    first.clear();
    hypervisor.map_calls = 0;
    hypervisor.fail_at = 1;
    CHECK(first.map_persistent(arena(4).first, arena(4).second, true).code == VMSG_XEN_GRANT_MAP);
    CHECK(!first.map_persistent(arena(4).first, arena(4).second, true));
    // A Segment that is still held is charged.
    Segment held;
    CHECK(!first.resolve(arena(1).first, 1, true, held));
    first.clear();
    CHECK(second.map_persistent(arena(4).first, arena(4).second, true).code == VMSG_XEN_MAP_BUDGET);
    held = {};
    CHECK(!second.map_persistent(arena(4).first, arena(4).second, true));
}

}  // namespace cpp_ring::test
