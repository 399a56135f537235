// Time. Spin budgets and round trips are counted in the CPU's own ticks: where the kernel has no vDSO clock (a PV domU)
// a clock_gettime costs more than a round trip. Deadlines use the monotonic clock.
#pragma once

#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace cpp_ring {

using Clock = std::chrono::steady_clock;

[[nodiscard]] inline std::uint64_t ticks() noexcept {
#if defined(__x86_64__)
    return __rdtsc();
#elif defined(__aarch64__)
    std::uint64_t value;
    asm volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
#else
    return static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
#endif
}

// Ticks in a nanosecond, found once per process.
[[nodiscard]] double ticks_per_ns() noexcept;

// A span of time in ticks; the largest value for an infinite or very long one.
[[nodiscard]] std::uint64_t ticks_of_us(double microseconds) noexcept;
[[nodiscard]] inline std::uint64_t ticks_of(Clock::duration span) noexcept {
    return ticks_of_us(std::chrono::duration<double, std::micro>(span).count());
}
// The reverse, a century at most.
[[nodiscard]] Clock::duration time_of(std::uint64_t ticks) noexcept;

}  // namespace cpp_ring
