// How long a thread that serves a device looks for more work before it sleeps, and how often it lets others have its
// CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "clock.hpp"
#include "waiter.hpp"

namespace cpp_ring {

// Between `least` and `most` microseconds after the last work; a `most` of no more than `least`: always `least`. Work
// that comes within `most` of the last would have been met awake, and the next is waited for that long; each that comes
// later halves the wait. So a busy driver finds the device awake, and after a burst no more than twice `most` is spent
// in vain. (Linux's halt polling grows and shrinks by the same question. Measured in docs/design/011.)
class SpinBudget {
  public:
    SpinBudget(double least_us, double most_us)
        : least_(ticks_of_us(least_us)),
          most_(std::max(least_, ticks_of_us(most_us))),
          alone_(ticks_of_us(alone_us)),
          budget_(least_) {}

    // Work was done until `now`.
    void worked(std::uint64_t now) noexcept {
        last_work_ = now;
        next_yield_ = alone_;
    }
    // A sleep ended at `now` with something to do.
    void woken(std::uint64_t now) noexcept {
        budget_ = now - last_work_ < most_ ? most_ : std::max(least_, budget_ / 2);
    }

    [[nodiscard]] bool spent(std::uint64_t now) const noexcept { return now - last_work_ >= budget_; }
    [[nodiscard]] std::uint64_t budget() const noexcept { return budget_; }

    // Less and less often, since what comes during the system call waits for its end. Who is woken waits for a
    // millisecond at most; Linux's CFS prefers one that has slept, and hands over at once.
    [[nodiscard]] bool yield_is_due(std::uint64_t now) noexcept {
        const std::uint64_t idle = now - last_work_;
        if (idle < next_yield_) return false;
        next_yield_ = idle + std::min(idle, 100 * alone_);
        return true;
    }

  private:
    std::uint64_t least_;
    std::uint64_t most_;
    std::uint64_t alone_;
    std::uint64_t budget_;
    std::uint64_t last_work_ = 0;
    std::uint64_t next_yield_ = 0;  // after last_work_
};

}  // namespace cpp_ring
