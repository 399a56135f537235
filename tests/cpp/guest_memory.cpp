#include "guest_memory.hpp"

#include <doctest/doctest.h>

#include <optional>
#include <thread>

#include "fake_hypervisor.hpp"

namespace cpp_ring::test {
namespace {

struct Fixture {
    FakeHypervisor hypervisor;
    std::unique_ptr<SharedPages> pages = hypervisor.share(0, 8, true);
    GuestMemory memory{hypervisor, 1, 16};
    std::uint64_t base = grant_address(pages->first_ref(), 0);
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "guest memory: a segment shows the frontend's bytes at its address") {
    pages->bytes()[4095] = std::byte{1};
    pages->bytes()[4096] = std::byte{2};
    for (const bool persistent : {false, true}) {
        if (persistent) REQUIRE(!memory.map_persistent(base, 8 * page_size, true));
        Segment segment;
        REQUIRE(!memory.resolve(base + 4095, 2, true, segment));
        CHECK(segment.size == 2);
        CHECK(segment.data[0] == std::byte{1});
        CHECK(segment.data[1] == std::byte{2});
        segment.data[1] = std::byte{7};
        CHECK(pages->bytes()[4096] == std::byte{7});
        segment.data[1] = std::byte{2};
    }
}

TEST_CASE_FIXTURE(Fixture, "guest memory: a transient mapping lives as long as its segment") {
    Segment segment;
    REQUIRE(!memory.resolve(base + 100, 2 * page_size, false, segment));
    CHECK(memory.mapped_pages() == 3);
    CHECK(hypervisor.mapped_pages == 3);
    Segment copy = segment;
    segment = {};
    CHECK(memory.mapped_pages() == 3);
    copy = {};
    CHECK(memory.mapped_pages() == 0);
    CHECK(hypervisor.live_mappings == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "guest memory: a host without memory to map with is the host's error, any other the grant's") {
    Segment segment;
    for (const bool persistent : {false, true}) {
        const auto map = [&] {
            return persistent ? memory.map_persistent(base, page_size, true) : memory.resolve(base, 8, true, segment);
        };
        hypervisor.map_calls = 0;
        hypervisor.fail_at = 1;
        hypervisor.map_error = ENOMEM;
        CHECK(map() == GuestError{VMSG_XEN_HOST, ENOMEM});
        hypervisor.map_calls = 0;
        hypervisor.map_error = EIO;
        CHECK(map() == GuestError{VMSG_XEN_GRANT_MAP, pages->first_ref()});
        CHECK(memory.mapped_pages() == 0);
        CHECK(hypervisor.map_budget()->take(hypervisor.map_budget()->pages()));  // all of it is there
        hypervisor.map_budget()->give(hypervisor.map_budget()->pages());
        CHECK(!map());  // and nothing is wrong afterwards
        segment = {};
    }
}

TEST_CASE_FIXTURE(Fixture, "guest memory: what lies in a persistent mapping is not mapped again") {
    REQUIRE(!memory.map_persistent(base + 16, page_size, true));
    REQUIRE(!memory.map_persistent(base + 4 * page_size, 2 * page_size, false));
    hypervisor.map_calls = 0;
    Segment segment;
    for (int i = 0; i < 2; ++i) {
        CHECK(!memory.resolve(base + 16, 4096, true, segment));
        CHECK(!memory.resolve(base + 4 * page_size, 8192, false, segment));
        CHECK(!memory.resolve(base + 6 * page_size - 1, 1, false, segment));
    }
    CHECK(hypervisor.map_calls == 0);

    SUBCASE("one byte before, one byte behind, or for writing when it is read-only: mapped for itself") {
        CHECK(!memory.resolve(base + 15, 1, true, segment));
        CHECK(!memory.resolve(base + 16, 4097, true, segment));
        CHECK(!memory.resolve(base + 16 + page_size, 1, true, segment));
        CHECK(!memory.resolve(base + 4 * page_size, 1, true, segment));
        CHECK(hypervisor.map_calls == 4);
    }
    SUBCASE("an empty range has no address to find") {
        CHECK(memory.resolve(base + 16, 0, false, segment).code == VMSG_XEN_DESC_LENGTH);
    }
}

TEST_CASE_FIXTURE(Fixture, "guest memory: a segment keeps its pages after clear and after the connection") {
    std::optional<GuestMemory> connection(std::in_place, hypervisor, DomId{1}, std::size_t{16});
    REQUIRE(!connection->map_persistent(base, 8 * page_size, true));
    Segment segment;
    REQUIRE(!connection->resolve(base, 1, true, segment));
    connection->clear();
    CHECK(connection->mapped_pages() == 8);
    connection.reset();
    segment.data[0] = std::byte{5};
    CHECK(pages->bytes()[0] == std::byte{5});
    segment = {};
    CHECK(hypervisor.live_mappings == 0);
}

TEST_CASE_FIXTURE(Fixture, "guest memory: clear forgets the persistent mappings") {
    REQUIRE(!memory.map_persistent(base, 8 * page_size, true));
    memory.clear();
    CHECK(memory.mapped_pages() == 0);
    Segment segment;
    CHECK(!memory.resolve(base, 1, true, segment));
    CHECK(memory.mapped_pages() == 1);
}

TEST_CASE_FIXTURE(Fixture, "guest memory: errors name the way the guest lied and leave the segment alone") {
    Segment segment;
    segment.size = 99;
    CHECK(memory.resolve(base & ~VMSG_XEN_DMA_GRANT, 1, false, segment).code == VMSG_XEN_DESC_ADDRESS);
    CHECK(memory.resolve(grant_address(0xffff'ffff, 1), 4096, false, segment).code == VMSG_XEN_DESC_ADDRESS);
    CHECK(memory.map_persistent(base, ~0ULL, false).code == VMSG_XEN_DESC_ADDRESS);
    CHECK(memory.map_persistent(base, 0, false).code == VMSG_XEN_DESC_LENGTH);
    CHECK(memory.resolve(grant_address(7, 0), 1, false, segment) == GuestError{VMSG_XEN_GRANT_MAP, 7});
    CHECK(memory.map_persistent(base, 17 * page_size, true) == GuestError{VMSG_XEN_MAP_BUDGET, 17});
    CHECK(segment.size == 99);
    CHECK(hypervisor.mapped_pages == 0);

    const auto read_only = hypervisor.share(0, 1, false);
    const std::uint64_t address = grant_address(read_only->first_ref(), 0);
    CHECK(memory.resolve(address, 1, true, segment) == GuestError{VMSG_XEN_GRANT_MAP, read_only->first_ref()});
    CHECK(!memory.resolve(address, 1, false, segment));
}

TEST_SUITE("threads") {
    TEST_CASE_FIXTURE(Fixture, "guest memory: another thread may drop the last segment") {
        for (int i = 0; i < 100; ++i) {
            Segment segment;
            REQUIRE(!memory.resolve(base, 4096, true, segment));
            std::thread([dropped = std::move(segment)] {}).join();
            REQUIRE(memory.mapped_pages() == 0);
        }
    }
}

}  // namespace cpp_ring::test
