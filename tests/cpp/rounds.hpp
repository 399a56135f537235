// How long a test of races goes on.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace cpp_ring::test {

// `few`: what a run of all tests has time for. `many`: what the threat table asks for, minutes, with CPP_RING_LONG set
// in the environment (CONTRIBUTING.md).
[[nodiscard]] inline std::uint64_t rounds(std::uint64_t few, std::uint64_t many) {
    return std::getenv("CPP_RING_LONG") == nullptr ? few : many;
}

}  // namespace cpp_ring::test
