// Threat 22: an event storm (XSA-332, XSA-391). Ports of a frontend that only raises events stay masked, longer and
// longer; a real request is answered all the same.
#include <doctest/doctest.h>

#include <thread>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

// Raises events on cfg and on all queues as fast as it can.
class Storm {
  public:
    explicit Storm(LoopbackDevice& device) {
        // Ports of their own, so that this thread may notify while the frontend's uses the others.
        channels_ = device.front.open_event_channels();
        for (int i = 0; i < 3; ++i) ports_.push_back(channels_->alloc_unbound(backend_domain));
    }
    void rage() {
        thread_ = std::thread([this] {
            while (!stop_.load(std::memory_order_relaxed))
                for (const Port port : ports_) channels_->notify(port);
        });
    }
    ~Storm() {
        stop_ = true;
        if (thread_.joinable()) thread_.join();
    }
    Storm(const Storm&) = delete;
    Storm& operator=(const Storm&) = delete;

    [[nodiscard]] const std::vector<Port>& ports() const { return ports_; }

  private:
    std::unique_ptr<EventChannels> channels_;
    std::vector<Port> ports_;
    Atomic<bool> stop_{false};
    std::thread thread_;
};

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("threat 22: a storm of events wakes the backend a bounded number of times") {
        EchoModel model;
        DeviceShape shape;
        shape.queue_sizes = {64, 64, 64};
        shape.pulled = {false, false, false};
        shape.spin_us = 0;
        LoopbackDevice device(model, shape);
        Storm storm(device);
        ChannelAddress address = device.address();
        for (std::size_t i = 0; i < 3; ++i) address.queue_event_channels[i] = storm.ports()[i];
        REQUIRE(!device.backend.connect(address));
        storm.rage();
        const auto start = Clock::now();
        std::chrono::milliseconds taken{};
        {
            BackendThread thread(device.backend);
            std::this_thread::sleep_until(start + std::chrono::milliseconds(400));
            thread.stop();
            taken = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
        }
        // 16 for nothing; then a port is masked 1, 2, ... 16 ms. Each of four ports may wake it once in such a time.
        const auto longest = static_cast<std::uint64_t>(taken.count()) / 16 + 1;
        CHECK(device.backend.counters().kicks <= 4 * (16 + 16 + longest));
        CHECK(device.backend.counters().kicks > 16);
        CHECK(device.backend.counters().requests == 0);
    }

    TEST_CASE("threat 22: requests and kicks are answered in the middle of a storm") {
        EchoModel model;
        DeviceShape shape;
        shape.queue_sizes = {64, 64, 64, 64, 64};
        shape.pulled.assign(5, false);
        shape.spin_us = 0;
        LoopbackDevice device(model, shape);
        Storm storm(device);
        ChannelAddress address = device.address();
        for (std::size_t i = 0; i < 3; ++i) address.queue_event_channels[2 + i] = storm.ports()[i];
        REQUIRE(!device.backend.connect(address));
        BackendThread thread(device.backend);
        storm.rage();
        device.start();
        for (std::uint64_t number = 0; number < 50; ++number) {
            device.ask(VMSG_GET_DEVICE_STATUS);
            device.echo(number & 1, number);
        }
        CHECK(thread.stop() == Exit::stopped);
    }
}

}  // namespace cpp_ring::test
