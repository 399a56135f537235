#include "event_echo.hpp"

#include <poll.h>
namespace cpp_ring {
namespace {

// Sleeps until `port` is pending, and clears it; it stays masked.
bool take(EventChannels& channels, Port port, Clock::duration patience) {
    const auto limit = std::chrono::duration_cast<std::chrono::milliseconds>(patience);
    for (;;) {
        pollfd wanted{.fd = channels.fd(), .events = POLLIN, .revents = 0};
        if (::poll(&wanted, 1, static_cast<int>(limit.count())) <= 0) return false;
        while (const auto pending = channels.pending()) {
            if (*pending == port) return true;
            channels.unmask(*pending);
        }
    }
}

}  // namespace

bool echo_events(EventChannels& channels, Port port, std::uint64_t count, Clock::duration patience) {
    for (std::uint64_t i = 0; i < count; ++i) {
        if (!take(channels, port, patience)) return false;
        // The next event comes after the answer: unmasked before it, the port would only be waited for longer.
        channels.notify(port);
        channels.unmask(port);
    }
    return true;
}

bool measure_events(EventChannels& channels, Port port, std::uint64_t count, LatencyRecorder& recorder,
                    Clock::duration patience) {
    const double ns = 1.0 / ticks_per_ns();
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t start = ticks();
        channels.notify(port);
        if (!take(channels, port, patience)) return false;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(ticks() - start) * ns));
        channels.unmask(port);
    }
    return true;
}

}  // namespace cpp_ring
