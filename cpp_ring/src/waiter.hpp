// Waiting for the other side: a spin budget first, then asleep on an event channel, never past a deadline.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>

#include "clock.hpp"
#include "hypervisor.hpp"
#include "shared.hpp"

namespace cpp_ring {

enum class Wait { ready, timeout, peer_dead };

// Looks at the clock and at the peer's life this often while spinning.
inline constexpr unsigned spins_between_looks = 64;
// A sleeper looks at the peer's life at least this often, for a peer that died without an event.
inline constexpr auto longest_sleep = std::chrono::milliseconds(100);

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

// `ready()`: is it there? `alive()`: does the peer live? `arm()`: ask for an event, fence, false if it is there now;
// `disarm()` afterwards.
template <class Ready, class Alive, class Arm, class Disarm>
[[nodiscard]] Wait wait_for(EventChannels& channels, std::uint64_t spin_ticks, Clock::duration timeout, Ready&& ready,
                            Alive&& alive, Arm&& arm, Disarm&& disarm) {
    const std::uint64_t start = ticks();
    do {
        for (unsigned i = 0; i < spins_between_looks; ++i) {
            if (ready()) return Wait::ready;
            cpu_relax();
        }
        if (!alive()) return ready() ? Wait::ready : Wait::peer_dead;
    } while (ticks() - start < spin_ticks);

    const auto deadline = Clock::now() + timeout;
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
        if (!alive()) return Wait::peer_dead;
        if (left.count() <= 0) return Wait::timeout;
    }
}

}  // namespace cpp_ring
