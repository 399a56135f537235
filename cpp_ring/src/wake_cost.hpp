// What it costs here to sleep and be woken: the measure of how long it is worth to stay awake.
#pragma once

namespace cpp_ring {

// Microseconds from a write to an eventfd until a thread that slept on it runs: the lower quartile of a few, which
// other work on the machine lengthens little. Takes 32 such times. 0 if the host has no descriptors or no thread to
// give.
[[nodiscard]] double measure_wake_us() noexcept;

}  // namespace cpp_ring
