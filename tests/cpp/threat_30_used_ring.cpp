// Threat 30, the ring's part: a backend that lies in the used ring (XSA-396). The driver half believes only ids that
// are outstanding, lengths that were writable and an index that has chains behind it.
#include <doctest/doctest.h>

#include <array>
#include <random>
#include <set>

#include "fake_hypervisor.hpp"
#include "split_queue_driver.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint16_t size = 8;
constexpr std::uint64_t in_order = std::uint64_t{1} << feature_in_order;

struct Backend {
    explicit Backend(std::uint64_t features = 0)
        : driver(hypervisor.share(0, SplitQueueDriver::pages_needed(size, features), true), size, features) {
        std::byte* base = hypervisor.page(FakeHypervisor::first_reference);
        const std::uint64_t start = driver.descriptor_address();
        ring =
            SplitRing(size, base, base + (driver.driver_address() - start), base + (driver.device_address() - start));
    }
    std::uint16_t add(std::uint32_t writable = 8) {
        const std::array readable{SplitQueueDriver::Piece{0x1000, 100}};
        const std::array piece{SplitQueueDriver::Piece{0x1000, writable}};
        const auto head = driver.add(readable, piece);
        REQUIRE(head);
        driver.publish();
        return *head;
    }
    bool lies() {
        SplitQueueDriver::Used used{};
        bool lied = false;
        const bool got = driver.pop(used, lied);
        CHECK(!(got && lied));
        return lied;
    }

    FakeHypervisor hypervisor{64};
    SplitQueueDriver driver;
    SplitRing ring;
};

}  // namespace

TEST_CASE("threat 30: every used.idx with three chains outstanding") {
    for (const std::uint64_t features : {std::uint64_t{0}, in_order}) {
        int wrong = 0;
        for (std::uint32_t idx = 4; idx < 65536; ++idx) {
            static Backend backend(features);
            if (backend.driver.outstanding() == 0)
                for (int i = 0; i < 3; ++i) backend.add();
            *backend.ring.used_idx = static_cast<std::uint16_t>(idx);
            SplitQueueDriver::Used used{};
            bool lied = false;
            wrong += backend.driver.pop(used, lied) || !lied;
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("threat 30: ids that are no head, not outstanding, or returned twice") {
    for (const std::uint64_t features : {std::uint64_t{0}, in_order}) {
        Backend backend(features);
        const std::uint16_t first = backend.add();
        backend.add();
        *backend.ring.used_idx = 1;
        for (const std::uint32_t id : {1U, 3U, 4U, 7U, 8U, 0xffffU, 0x1'0000U, 0x8000'0000U, 0xffff'ffffU}) {
            backend.ring.used_ring[0] = {id, 0};
            CHECK(backend.lies());
        }
        backend.ring.used_ring[0] = {first, 9};  // more than was writable, though less than the whole chain
        CHECK(backend.lies());
        backend.ring.used_ring[0] = {first, 8};
        CHECK(!backend.lies());
        *backend.ring.used_idx = 2;
        backend.ring.used_ring[1] = {first, 8};
        CHECK(backend.lies());
        CHECK(backend.driver.outstanding() == 1);
    }
}

TEST_CASE("threat 30: in order, a batch is not longer than the index says") {
    Backend backend(in_order);
    std::array<std::uint16_t, 3> heads{};
    for (auto& head : heads) head = backend.add();
    *backend.ring.used_idx = 2;
    backend.ring.used_ring[0] = {heads[2], 0};
    CHECK(backend.lies());
    backend.ring.used_ring[0] = {heads[1], 0};
    CHECK(!backend.lies());
    CHECK(!backend.lies());
    CHECK(backend.driver.outstanding() == 1);
}

TEST_CASE("threat 30: a backend that rewrites descriptors and avail ring confuses only itself") {
    Backend backend;
    std::mt19937 random(30);
    for (int round = 0; round < 20000; ++round) {
        std::set<std::uint16_t> heads;
        while (backend.driver.free_descriptors() >= 2) REQUIRE(heads.insert(backend.add()).second);
        std::byte* base = backend.hypervisor.page(FakeHypervisor::first_reference);
        for (std::size_t i = 0; i < 16U * size + 4 + 2 * size; ++i) base[i] = static_cast<std::byte>(random());
        for (const std::uint16_t head : heads) {
            backend.ring.used_ring[*backend.ring.used_idx % size] = {head, 8};
            ++*backend.ring.used_idx;
        }
        for (std::size_t i = 0; i < heads.size(); ++i) REQUIRE(!backend.lies());
        REQUIRE(backend.driver.free_descriptors() == size);
    }
}

TEST_CASE("threat 30: random bytes in the used ring: a lie is seen, or the answer is one that could be true") {
    for (const std::uint64_t features : {std::uint64_t{0}, in_order}) {
        std::mt19937 random(31);
        int lies = 0;
        for (int round = 0; round < 3000; ++round) {
            Backend backend(features);
            std::set<std::uint16_t> outstanding;
            for (int step = 0; step < 30; ++step) {
                if (backend.driver.free_descriptors() >= 2) outstanding.insert(backend.add());
                for (std::uint16_t i = 0; i < size; ++i)
                    backend.ring.used_ring[i] = {static_cast<std::uint32_t>(random() % (size + 1)),
                                                 static_cast<std::uint32_t>(random() % 10)};
                *backend.ring.used_idx = static_cast<std::uint16_t>(*backend.ring.used_idx + random() % 3);
                SplitQueueDriver::Used used{};
                bool lied = false;
                if (backend.driver.pop(used, lied)) {
                    REQUIRE(outstanding.erase(used.head) == 1);
                    REQUIRE(used.written <= 8);
                }
                REQUIRE(backend.driver.outstanding() == outstanding.size());
                if (lied) {
                    ++lies;
                    break;
                }
            }
        }
        CHECK(lies > 1000);
    }
}

}  // namespace cpp_ring::test
