// Threat 2: an index read in two halves (RUSTSEC-2020-0157): 0x00ff -> 0x0100 seen as 0x0000 or 0x01ff.
#include <doctest/doctest.h>

#include <cstddef>
#include <thread>

#include "shared.hpp"
#include "split_ring.hpp"

namespace cpp_ring {

// Words of a page are used in place, so their natural alignment must be all that an atomic needs.
static_assert(std::atomic_ref<std::uint16_t>::required_alignment == alignof(std::uint16_t));
static_assert(std::atomic_ref<std::uint32_t>::required_alignment == alignof(std::uint32_t));
static_assert(std::atomic_ref<std::uint64_t>::required_alignment == alignof(std::uint64_t));
static_assert(std::atomic_ref<std::uint16_t>::is_always_lock_free);
static_assert(std::atomic_ref<std::uint32_t>::is_always_lock_free);
static_assert(driver_alignment % alignof(std::uint16_t) == 0);
static_assert(device_alignment % alignof(UsedElement) == 0);

TEST_SUITE("threads") {
    TEST_CASE("threat 2: an index that steps from 0x00ff to 0x0100 is never seen as anything else") {
        constexpr int rounds = 1'000'000;
        alignas(64) std::uint16_t index = 0x00ff;
        Atomic<bool> stop{false};
        std::thread writer([&] {
            while (!stop.load(std::memory_order_relaxed)) {
                SharedMemory::store_release(&index, std::uint16_t{0x0100});
                SharedMemory::store_release(&index, std::uint16_t{0x00ff});
            }
        });
        int torn = 0;
        for (int i = 0; i < rounds; ++i) {
            const std::uint16_t seen = SharedMemory::load_acquire(&index);
            torn += seen != 0x00ff && seen != 0x0100;
        }
        stop = true;
        writer.join();
        CHECK(torn == 0);
    }
}

}  // namespace cpp_ring
