// How much of other domains' memory a process may have mapped.
#pragma once

#include <cstddef>

#include "shared.hpp"

namespace cpp_ring {

// Pages of other domains that this process may have mapped at a time, its devices together. An emulator serves one
// domU, and the table that the host keeps of mappings is everybody's: Xen's maptrack has 262,144 entries by default.
// Used by any thread.
class MapBudget {
  public:
    explicit MapBudget(std::size_t pages) : pages_(pages) {}

    // All or nothing. Relaxed: the number guards no memory but itself.
    [[nodiscard]] bool take(std::size_t pages) noexcept {
        std::size_t taken = taken_.load(std::memory_order_relaxed);
        do {
            if (pages > pages_ - taken) return false;  // taken_ is never more than pages_
        } while (!taken_.compare_exchange_weak(taken, taken + pages, std::memory_order_relaxed));
        return true;
    }
    [[nodiscard]] std::size_t pages() const noexcept { return pages_; }
    void give(std::size_t pages) noexcept { taken_.fetch_sub(pages, std::memory_order_relaxed); }

  private:
    const std::size_t pages_;
    Atomic<std::size_t> taken_{0};
};

inline constexpr std::size_t default_map_budget = 65536;  // 256 MiB

}  // namespace cpp_ring
