#include "clock.hpp"

#include <algorithm>
#include <limits>

namespace cpp_ring {
namespace {

double calibrate() noexcept {
#if defined(__aarch64__)
    std::uint64_t frequency;
    asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
    return static_cast<double>(frequency) * 1e-9;
#elif defined(__x86_64__)
    // 0.5 ms against the monotonic clock is good to a few parts in ten thousand. A pre-emption in it lengthens both.
    constexpr auto span = std::chrono::microseconds(500);
    const auto start = Clock::now();
    const std::uint64_t first = ticks();
    auto now = start;
    while (now - start < span) now = Clock::now();
    const std::uint64_t last = ticks();
    const auto elapsed = std::chrono::duration<double, std::nano>(now - start).count();
    return static_cast<double>(last - first) / elapsed;
#else
    return static_cast<double>(Clock::period::den) / (1e9 * static_cast<double>(Clock::period::num));
#endif
}

}  // namespace

double ticks_per_ns() noexcept {
    static const double value = calibrate();
    return value;
}

std::uint64_t ticks_of_us(double microseconds) noexcept {
    const double value = microseconds * 1000.0 * ticks_per_ns();
    constexpr auto largest = std::numeric_limits<std::uint64_t>::max() / 2;
    if (!(value < static_cast<double>(largest))) return largest;
    return value <= 0 ? 0 : static_cast<std::uint64_t>(value);
}

Clock::duration time_of(std::uint64_t ticks) noexcept {
    constexpr double century = 3.2e18;
    const double value = std::min(static_cast<double>(ticks) / ticks_per_ns(), century);
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::nano>(value));
}

}  // namespace cpp_ring
