// The bare echo of events that the bench compares sleepers with.
#include <doctest/doctest.h>

#include <thread>

#include "event_echo.hpp"
#include "loopback_hypervisor.hpp"
#include "shared.hpp"

namespace cpp_ring::test {

TEST_CASE("event echo: a silent peer is not waited for longer than patience lasts") {
    LoopbackMachine machine;
    LoopbackHypervisor here(machine, 1);
    LoopbackHypervisor there(machine, 2);
    const auto ours = here.open_event_channels();
    const auto theirs = there.open_event_channels();
    const Port port = ours->alloc_unbound(2);
    LatencyRecorder recorder;
    CHECK(!measure_events(*ours, port, 1, recorder, std::chrono::milliseconds(10)));
    CHECK(!echo_events(*ours, port, 1, std::chrono::milliseconds(10)));
    CHECK(recorder.count() == 0);
}

TEST_SUITE("threads") {
    TEST_CASE("event echo: every round trip is counted, and an event of another port answers nothing") {
        LoopbackMachine machine;
        LoopbackHypervisor here(machine, 1);
        LoopbackHypervisor there(machine, 2);
        const auto ours = here.open_event_channels();
        const auto theirs = there.open_event_channels();
        const Port port = ours->alloc_unbound(2);
        const Port other = ours->alloc_unbound(2);
        const Port remote = theirs->bind_interdomain(1, port);
        const Port distraction = theirs->bind_interdomain(1, other);
        while (const auto pending = theirs->pending()) theirs->unmask(*pending);
        theirs->notify(distraction);
        Atomic<bool> echoed{false};
        std::thread thread([&] { echoed = echo_events(*theirs, remote, 50, std::chrono::seconds(5)); });
        LatencyRecorder recorder;
        const bool measured = measure_events(*ours, port, 50, recorder, std::chrono::seconds(5));
        thread.join();
        CHECK(measured);
        CHECK(echoed);
        CHECK(recorder.count() == 50);
    }
}

}  // namespace cpp_ring::test
