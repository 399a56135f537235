// A driver's queue with its event channel, against a backend in another thread.
#include <doctest/doctest.h>

#include <array>
#include <memory>
#include <stdexcept>

#include "loopback_device.hpp"

namespace cpp_ring::test {

TEST_CASE("driver queue: a size that no queue has is refused, and leaves the old ring as it was") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, backend_domain);
    LoopbackHypervisor front(machine, frontend_domain);
    CHECK_THROWS_AS(DriverQueue(front, backend_domain, 3, version_1_bit), std::invalid_argument);
    CHECK(front.granted_pages() == 0);
    CHECK(front.ports() == 0);
    DriverQueue queue(front, backend_domain, 8, version_1_bit);
    const SplitQueueDriver* const ring = &queue.ring();
    const std::byte* const memory = queue.memory().data();
    CHECK_THROWS_AS(queue.setup(0, version_1_bit), std::invalid_argument);
    CHECK(&queue.ring() == ring);
    CHECK(queue.memory().data() == memory);
}

TEST_CASE("driver queue: a fresh ring has new references; the old one stays granted while somebody holds it") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, backend_domain);
    LoopbackHypervisor front(machine, frontend_domain);
    DriverQueue queue(front, backend_domain, 8, version_1_bit);
    const Port port = queue.event_channel();
    const std::uint64_t address = queue.ring().descriptor_address();
    const std::size_t pages = front.granted_pages();
    auto held = queue.shared_ring();
    queue.setup(8, version_1_bit);
    CHECK(queue.ring().descriptor_address() != address);
    CHECK(queue.event_channel() == port);
    CHECK(front.granted_pages() == 2 * pages);
    held.reset();
    CHECK(front.granted_pages() == pages);
    queue.close();
    queue.close();
    CHECK(front.ports() == 0);
    CHECK(!queue.kick());
}

TEST_CASE("driver queue: nobody there: waiting ends at the timeout, a measurement says so") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, backend_domain);
    LoopbackHypervisor front(machine, frontend_domain);
    DriverQueue queue(front, backend_domain, 2, version_1_bit);
    CHECK(!queue.wait(std::chrono::milliseconds(5)));
    const std::array piece{SplitQueueDriver::Piece{grant_address(8, 0), 8}};
    REQUIRE(queue.ring().add(piece, {}));
    REQUIRE(queue.ring().add(piece, {}));
    LatencyRecorder recorder;
    bool lied = true;
    CHECK(queue.measure(piece, {}, 1, recorder, lied) == Wait::timeout);  // the ring is full
    CHECK(!lied);
    CHECK(recorder.count() == 0);
}

TEST_SUITE("threads") {
    TEST_CASE("driver queue: measured round trips, with and without the event index") {
        for (const std::uint64_t features : {version_1_bit, version_1_bit | event_idx_bit}) {
            EchoModel model;
            DeviceShape shape;
            shape.features = features;
            LoopbackDevice device(model, shape);
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            const std::uint64_t at = grant_address(device.arena->first_ref(), 0);
            const std::array readable{SplitQueueDriver::Piece{at, 8}};
            const std::array writable{SplitQueueDriver::Piece{at + 8, 8}};
            LatencyRecorder recorder;
            bool lied = false;
            CHECK(device.queues[0]->measure(readable, writable, 100, recorder, lied) == Wait::ready);
            CHECK(!lied);
            CHECK(recorder.count() == 100);
            thread.stop();
            CHECK(model.served == 100);
        }
    }
}

}  // namespace cpp_ring::test
