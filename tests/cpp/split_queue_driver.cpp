#include "split_queue_driver.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "fake_hypervisor.hpp"
#include "split_queue_device.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint64_t indirect = std::uint64_t{1} << feature_indirect_desc;
constexpr std::uint64_t event_idx = std::uint64_t{1} << feature_event_idx;
constexpr std::uint64_t in_order = std::uint64_t{1} << feature_in_order;

using Piece = SplitQueueDriver::Piece;

// The driver half and the ring as a device sees it, played by the test.
struct Fixture {
    explicit Fixture(std::uint16_t size, std::uint64_t features = 0)
        : driver(hypervisor.share(0, SplitQueueDriver::pages_needed(size, features), true), size, features),
          ring(size, at(driver.descriptor_address()), at(driver.driver_address()), at(driver.device_address())) {}

    std::byte* at(std::uint64_t address) {
        GrantRange range;
        REQUIRE(!parse_grant_range(address, 1, range));
        return hypervisor.page(range.first) + range.offset;
    }
    void complete(std::uint32_t id, std::uint32_t length) {
        ring.used_ring[*ring.used_idx % driver.size()] = {id, length};
        ++*ring.used_idx;
    }
    std::uint16_t add(std::size_t pieces = 1) {
        const std::vector<Piece> writable(pieces, Piece{0x1000, 8});
        const auto head = driver.add({}, writable);
        REQUIRE(head);
        driver.publish();
        return *head;
    }

    FakeHypervisor hypervisor;
    SplitQueueDriver driver;
    SplitRing ring;
};

}  // namespace

TEST_CASE("split queue driver: the areas are aligned, apart, and inside the pages asked for") {
    for (const std::uint64_t features : {std::uint64_t{0}, indirect}) {
        for (std::uint32_t n = 1; n <= 1024; n *= 2) {
            const auto size = static_cast<std::uint16_t>(n);
            Fixture queue(size, features);
            const std::uint64_t end =
                queue.driver.descriptor_address() + SplitQueueDriver::pages_needed(size, features) * page_size;
            CHECK(queue.driver.descriptor_address() % descriptor_alignment == 0);
            CHECK(queue.driver.driver_address() >= queue.driver.descriptor_address() + descriptor_bytes(size));
            CHECK(queue.driver.driver_address() % driver_alignment == 0);
            CHECK(queue.driver.device_address() >= queue.driver.driver_address() + driver_bytes(size));
            CHECK(queue.driver.device_address() % device_alignment == 0);
            CHECK(queue.driver.device_address() + device_bytes(size) <= end);
        }
    }
}

TEST_CASE("split queue driver: a chain stands in the table as it was given") {
    Fixture queue(8);
    const std::array readable{Piece{0x1000, 16}, Piece{0x2000, 32}};
    const std::array writable{Piece{0x3000, 1}};
    const auto head = queue.driver.add(readable, writable);
    REQUIRE(head);
    CHECK(*queue.ring.avail_idx == 0);
    queue.driver.publish();
    CHECK(*queue.ring.avail_idx == 1);
    CHECK(queue.ring.avail_ring[0] == *head);
    CHECK(queue.driver.free_descriptors() == 5);
    const Descriptor& first = queue.ring.descriptors[*head];
    CHECK(first.address == 0x1000);
    CHECK(first.length == 16);
    CHECK(first.flags == desc_next);
    const Descriptor& second = queue.ring.descriptors[first.next];
    CHECK(second.address == 0x2000);
    CHECK(second.flags == desc_next);
    const Descriptor& third = queue.ring.descriptors[second.next];
    CHECK(third.address == 0x3000);
    CHECK(third.length == 1);
    CHECK(third.flags == desc_write);
}

TEST_CASE("split queue driver: when descriptors run short, a chain takes one and an indirect table") {
    Fixture queue(64, indirect);
    queue.add(32);
    CHECK(queue.driver.free_descriptors() == 32);
    const auto head = queue.add(31);
    CHECK(queue.driver.free_descriptors() == 31);
    const Descriptor& desc = queue.ring.descriptors[head];
    CHECK(desc.flags == desc_indirect);
    CHECK(desc.length == 31 * sizeof(Descriptor));
    const auto* table = reinterpret_cast<const Descriptor*>(queue.at(desc.address));
    for (std::uint16_t i = 0; i < 31; ++i) {
        CHECK(table[i].flags == (i < 30 ? desc_write | desc_next : desc_write));
        CHECK(table[i].next == (i < 30 ? i + 1 : 0));
    }
    const auto single = queue.add(1);
    CHECK(queue.ring.descriptors[single].flags == desc_write);
    CHECK(queue.driver.free_descriptors() == 30);
    const std::vector<Piece> longer(33, Piece{0x1000, 8});
    CHECK(!queue.driver.add({}, longer));  // than a table
}

TEST_CASE("split queue driver: with indirect tables a ring holds as many chains as it is long") {
    Fixture queue(8, indirect);
    for (std::uint16_t i = 0; i < 8; ++i) {
        CAPTURE(i);
        queue.add(queue.driver.free_descriptors() == 8 ? 1 : 8);
    }
    CHECK(queue.driver.free_descriptors() == 0);
    CHECK(queue.driver.outstanding() == 8);
}

TEST_CASE("split queue driver: several queues lie in one arena, each in its own pages") {
    FakeHypervisor hypervisor;
    const std::shared_ptr<SharedPages> arena = hypervisor.share(0, 10, true);
    const std::size_t each = SplitQueueDriver::pages_needed(64, 0);
    const SplitQueueDriver first(arena, 64, 0, 0);
    const SplitQueueDriver second(arena, 64, 0, each);
    CHECK(second.descriptor_address() == first.descriptor_address() + each * page_size);
    CHECK(first.device_address() + device_bytes(64) <= second.descriptor_address());
    CHECK_NOTHROW(SplitQueueDriver(arena, 64, 0, 10 - each));
    for (const std::size_t page : {11 - each, std::size_t{10}, std::size_t{11}, ~std::size_t{0}})
        CHECK_THROWS_AS(SplitQueueDriver(arena, 64, 0, page), std::invalid_argument);
}

TEST_CASE("split queue driver: a full ring takes no more until something comes back") {
    Fixture queue(4);
    const std::uint16_t first = queue.add(3);
    queue.add(1);
    const std::array one{Piece{0x1000, 8}};
    CHECK(!queue.driver.add(one, {}));
    CHECK(queue.driver.outstanding() == 2);
    queue.complete(first, 24);
    SplitQueueDriver::Used used{};
    bool lied = false;
    REQUIRE(queue.driver.pop(used, lied));
    CHECK(used.head == first);
    CHECK(used.written == 24);
    CHECK(queue.driver.free_descriptors() == 3);
    queue.add(3);
    CHECK(queue.driver.free_descriptors() == 0);
}

TEST_CASE("split queue driver: what no chain may be is a mistake of the caller") {
    FakeHypervisor hypervisor;
    CHECK_THROWS_AS(SplitQueueDriver(hypervisor.share(0, 1, true), 3, 0), std::invalid_argument);
    CHECK_THROWS_AS(SplitQueueDriver(hypervisor.share(0, 1, true), 256, 0), std::invalid_argument);
    Fixture queue(4);
    const std::vector<Piece> five(5, Piece{0x1000, 8});
    const std::array empty{Piece{0x1000, 0}};
    const std::vector<Piece> huge(2, Piece{0x1000, 0x8000'0000});
    CHECK_THROWS_AS(static_cast<void>(queue.driver.add({}, {})), std::invalid_argument);
    CHECK_THROWS_AS(static_cast<void>(queue.driver.add(five, {})), std::invalid_argument);
    CHECK_THROWS_AS(static_cast<void>(queue.driver.add(five, empty)), std::invalid_argument);
    CHECK_THROWS_AS(static_cast<void>(queue.driver.add({}, empty)), std::invalid_argument);
    CHECK_THROWS_AS(static_cast<void>(queue.driver.add(huge, {})), std::invalid_argument);
    CHECK(queue.driver.free_descriptors() == 4);
}

TEST_CASE("split queue driver: laid out in pages that had another life, it starts at index 0") {
    FakeHypervisor hypervisor;
    const std::shared_ptr<SharedPages> arena = hypervisor.share(0, 4, true);
    std::ranges::fill(arena->bytes(), std::byte{0xa5});
    SplitQueueDriver driver(arena, 16, event_idx);
    CHECK(!driver.has_used());
    GuestMemory memory(hypervisor, 1, 16);
    SplitQueueDevice device;
    REQUIRE(!device.activate({16, driver.descriptor_address(), driver.driver_address(), driver.device_address()},
                             event_idx, memory));
    CHECK(!device.has_work());
    const std::array piece{Piece{grant_address(arena->first_ref(), 0), 1}};
    REQUIRE(driver.add(piece, {}));
    driver.publish();
    CHECK(driver.needs_kick());
}

TEST_CASE("split queue driver: in order, descriptors run round the table (section 2.7.9)") {
    Fixture queue(8, in_order);
    std::uint16_t expected = 0;
    for (const std::size_t pieces : {3, 2, 3, 1, 4, 3, 2, 2, 4, 1, 1, 1, 5, 8, 8, 7}) {
        const std::uint16_t head = queue.add(pieces);
        REQUIRE(head == expected);
        std::uint16_t index = head;
        for (std::size_t i = 1; i < pieces; ++i) {
            REQUIRE(queue.ring.descriptors[index].next == (index + 1) % 8);
            index = queue.ring.descriptors[index].next;
        }
        expected = static_cast<std::uint16_t>((head + pieces) % 8);
        queue.complete(head, 0);
        SplitQueueDriver::Used used{};
        bool lied = false;
        REQUIRE(queue.driver.pop(used, lied));
    }
}

TEST_CASE("split queue driver: in order, one used entry may stand for a batch, all of it written completely") {
    Fixture queue(8, in_order);
    for (int turn = 0; turn < 10; ++turn) {
        std::array<std::uint16_t, 5> heads{};
        for (auto& head : heads) head = queue.add();
        // The device writes the entry of the last of three and skips forward, then one for each of the others.
        queue.ring.used_ring[*queue.ring.used_idx % 8] = {heads[2], 5};
        *queue.ring.used_idx = static_cast<std::uint16_t>(*queue.ring.used_idx + 3);
        queue.complete(heads[3], 6);
        queue.complete(heads[4], 7);
        SplitQueueDriver::Used used{};
        bool lied = false;
        for (std::size_t i = 0; i < heads.size(); ++i) {
            CHECK(queue.driver.has_used());
            REQUIRE(queue.driver.pop(used, lied));
            CHECK(used.head == heads[i]);
            CHECK(used.written == std::array{8U, 8U, 5U, 6U, 7U}[i]);
        }
        CHECK(!queue.driver.pop(used, lied));
        CHECK(!lied);
        CHECK(queue.driver.free_descriptors() == 8);
    }
}

TEST_CASE("split queue driver: kicks by flags and by event index") {
    SUBCASE("flags") {
        Fixture queue(8);
        CHECK(!queue.driver.needs_kick());
        queue.add();
        CHECK(queue.driver.needs_kick());
        CHECK(!queue.driver.needs_kick());
        *queue.ring.used_flags = used_no_notify;
        queue.add();
        CHECK(!queue.driver.needs_kick());
    }
    SUBCASE("event index") {
        Fixture queue(8, event_idx);
        *queue.ring.used_flags = used_no_notify;  // must be ignored
        *queue.ring.avail_event = 2;
        for (int i = 0; i < 5; ++i) {
            queue.add();
            CHECK(queue.driver.needs_kick() == (i == 2));
        }
    }
}

TEST_CASE("split queue driver: interrupts by flags and by event index") {
    SplitQueueDriver::Used used{};
    bool lied = false;
    SUBCASE("flags") {
        Fixture queue(8);
        queue.driver.disable_interrupts();
        CHECK(*queue.ring.avail_flags == avail_no_interrupt);
        CHECK(!queue.driver.enable_interrupts());
        CHECK(*queue.ring.avail_flags == 0);
        queue.complete(queue.add(), 0);
        CHECK(queue.driver.enable_interrupts());
    }
    SUBCASE("event index") {
        Fixture queue(8, event_idx);
        queue.complete(queue.add(), 0);
        REQUIRE(queue.driver.pop(used, lied));
        queue.driver.disable_interrupts();
        CHECK(*queue.ring.avail_flags == 0);
        CHECK(!queue.driver.enable_interrupts());
        CHECK(*queue.ring.used_event == 1);
        queue.complete(queue.add(), 0);
        CHECK(queue.driver.enable_interrupts());
    }
}

}  // namespace cpp_ring::test
