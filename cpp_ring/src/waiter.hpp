// Waiting for the other side: a spin budget first, then asleep on an event channel, never past a deadline.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "clock.hpp"
#include "hypervisor.hpp"
#include "shared.hpp"

namespace cpp_ring {

enum class Wait { ready, timeout, peer_dead };

// Looks at the clock and at the peer's life this often while spinning.
inline constexpr unsigned spins_between_looks = 64;
// A spinner pauses for its sibling thread's sake, but not at each look: a pause is as long as a round trip on some
// CPUs, and leaves the emulation altogether where the CPU is emulated (docs/design/010).
inline constexpr unsigned looks_between_pauses = 8;
// A sleeper looks at the peer's life at least this often, for a peer that died without an event.
inline constexpr auto longest_sleep = std::chrono::milliseconds(100);

// A spinner that has waited this long lets others have its CPU between looks: the one it waits for may need it.
// Requests of a burst follow each other faster, so they never pay for it.
inline constexpr double alone_us = 10;
inline void yield_cpu() noexcept { std::this_thread::yield(); }

// Clears and unmasks whatever is pending. True: there was something.
inline bool drain(EventChannels& channels) noexcept {
    bool any = false;
    // Bounded: a peer that raises events faster than we clear them must not keep us here.
    for (int i = 0; i < 16; ++i) {
        const auto port = channels.pending();
        if (!port) break;
        channels.unmask(*port);
        any = true;
    }
    return any;
}

// Never longer than `timeout`, however large the spin budget. `ready()`: is it there? `alive()`: does the peer live?
// `arm()`: ask for an event, fence, false if it is there now; `disarm()` afterwards.
template <class Ready, class Alive, class Arm, class Disarm>
[[nodiscard]] Wait wait_for(EventChannels& channels, std::uint64_t spin_ticks, Clock::duration timeout, Ready&& ready,
                            Alive&& alive, Arm&& arm, Disarm&& disarm) {
    static const std::uint64_t alone_ticks = ticks_of_us(alone_us);
    const std::uint64_t start = ticks();
    do {
        if (ticks() - start >= alone_ticks) yield_cpu();
        for (unsigned i = 0; i < spins_between_looks; ++i) {
            if (ready()) return Wait::ready;
            if (i % looks_between_pauses == looks_between_pauses - 1) cpu_relax();
        }
        if (!alive()) return ready() ? Wait::ready : Wait::peer_dead;
    } while (ticks() - start < std::min(spin_ticks, ticks_of(timeout)));

    // What was spent spinning is a part of the timeout.
    const auto deadline = Clock::now() + timeout - std::min(timeout, time_of(ticks() - start));
    for (;;) {
        const bool sleep = arm();
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
        if (sleep && left.count() > 0) {
            pollfd wanted{.fd = channels.fd(), .events = POLLIN, .revents = 0};
            ::poll(&wanted, 1, static_cast<int>(std::min(left + std::chrono::milliseconds(1), longest_sleep).count()));
        }
        disarm();
        drain(channels);
        if (ready()) return Wait::ready;
        if (!alive()) return ready() ? Wait::ready : Wait::peer_dead;  // it may have answered before it died
        if (left.count() <= 0) return Wait::timeout;
    }
}

}  // namespace cpp_ring
