// What the bench measures the config ring against: two words in shared memory, a cache line each, and no protocol.
#pragma once

#include <cstdint>

#include "latency.hpp"

namespace cpp_ring {

// Both processes hold the same memfd. Not hostile to each other.
class PingPong {
  public:
    explicit PingPong(int memfd);  // throws HostError
    ~PingPong();
    PingPong(const PingPong&) = delete;
    PingPong& operator=(const PingPong&) = delete;

    // Answers `count` pings. `eventfd` < 0: spins; else sleeps on it before each. False: a second without a ping.
    [[nodiscard]] bool serve(std::uint64_t count, int eventfd) noexcept;
    // The other side: `count` round trips in ns, spinning. `eventfd` >= 0: the server sleeps; leaves it `pause_us` to
    // fall asleep and wakes it by the eventfd. False: a second without an answer.
    [[nodiscard]] bool measure(std::uint64_t count, LatencyRecorder& recorder, int eventfd, double pause_us) noexcept;

  private:
    struct Words;
    Words* words_;
    std::uint64_t last_ = 0;
};

}  // namespace cpp_ring
