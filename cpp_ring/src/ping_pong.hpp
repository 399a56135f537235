// What the bench measures the config ring against: two words in shared memory, a cache line each, and no protocol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "clock.hpp"
#include "latency.hpp"

namespace cpp_ring {

// Two processes, or domains, that share the memory; not hostile to each other.
class PingPong {
  public:
    // `memory`: shared, zeroed or left by another pair, and there for as long as this is. `patience`: how long either
    // side waits for the other. Throws std::invalid_argument: less than two cache lines, or not aligned to one.
    explicit PingPong(std::span<std::byte> memory, Clock::duration patience = std::chrono::seconds(1));

    // Answers `count` pings. `eventfd` < 0: spins; else sleeps on it before each. False: none came in time.
    [[nodiscard]] bool serve(std::uint64_t count, int eventfd) noexcept;
    // The other side: `count` round trips in ns, spinning. `eventfd` >= 0: the server sleeps; leaves it `pause_us` to
    // fall asleep and wakes it by the eventfd. False: no answer came in time.
    [[nodiscard]] bool measure(std::uint64_t count, LatencyRecorder& recorder, int eventfd, double pause_us) noexcept;

  private:
    struct Words;
    [[nodiscard]] bool spin_for(const std::uint64_t* word, std::uint64_t wanted) const noexcept;

    Words* words_;
    Clock::duration patience_;
    std::uint64_t last_ = 0;
};

}  // namespace cpp_ring
