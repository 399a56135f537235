// What it costs here to sleep and be woken: the measure of how long it is worth to stay awake.
#pragma once

namespace cpp_ring {

// Microseconds from a write to an eventfd until a thread that slept on it runs: the lower quartile of a few, which
// a short disturbance does not lengthen. Takes 32 such times. 0 if it cannot be measured: the host has no descriptors
// or no thread to give, or does not wake one within 0.1 s.
[[nodiscard]] double measure_wake_us() noexcept;

}  // namespace cpp_ring
