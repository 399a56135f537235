// What the bench measures sleepers against: an event each way, both sides asleep on their event channel's descriptor.
#pragma once

#include <cstdint>

#include "clock.hpp"
#include "hypervisor.hpp"
#include "latency.hpp"

namespace cpp_ring {

// Answers `count` events at `port` by one each. False: none came for as long as `patience`.
[[nodiscard]] bool echo_events(EventChannels& channels, Port port, std::uint64_t count, Clock::duration patience);
// The other side: `count` round trips in ns, no port being pending before. False: no answer came in time.
[[nodiscard]] bool measure_events(EventChannels& channels, Port port, std::uint64_t count, LatencyRecorder& recorder,
                                  Clock::duration patience);

}  // namespace cpp_ring
