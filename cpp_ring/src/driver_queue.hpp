// The driver half of one virtqueue together with the event channel it is kicked and interrupted through.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "clock.hpp"
#include "hypervisor.hpp"
#include "latency.hpp"
#include "split_queue_driver.hpp"
#include "waiter.hpp"

namespace cpp_ring {

class DriverQueue {
  public:
    // Throws HostError, std::invalid_argument (size).
    DriverQueue(Hypervisor& hypervisor, DomId backend, std::uint16_t size, std::uint64_t features);
    ~DriverQueue();
    DriverQueue(const DriverQueue&) = delete;
    DriverQueue& operator=(const DriverQueue&) = delete;

    // A fresh ring under new references, for a device that was reset; the event channel stays. Whoever still holds the
    // old ring() keeps its pages granted. Throws as the constructor, and then changes nothing.
    void setup(std::uint16_t size, std::uint64_t features);

    [[nodiscard]] SplitQueueDriver& ring() noexcept { return *ring_; }
    [[nodiscard]] std::shared_ptr<const SplitQueueDriver> shared_ring() const noexcept { return ring_; }
    [[nodiscard]] Port event_channel() const noexcept { return port_; }
    [[nodiscard]] int fd() const noexcept { return channels_->fd(); }
    [[nodiscard]] std::span<std::byte> memory() const noexcept { return memory_; }

    // Publishes what was added; true if the device wanted to be notified, and was.
    bool kick() noexcept;
    // Spins, then sleeps until a used chain is there. False: the timeout passed.
    [[nodiscard]] bool wait(Clock::duration timeout);

    // `count` times: offer the chain, kick, spin until it is used; each round trip recorded in ns. Ends early, with the
    // reason, when the ring is full, the device lies or does not answer within 2 s.
    [[nodiscard]] Wait measure(std::span<const SplitQueueDriver::Piece> readable,
                               std::span<const SplitQueueDriver::Piece> writable, std::uint64_t count,
                               LatencyRecorder& recorder, bool& lied);

    void close() noexcept;

  private:
    Hypervisor& hypervisor_;
    DomId backend_;
    std::unique_ptr<EventChannels> channels_;
    Port port_;
    std::span<std::byte> memory_;
    std::shared_ptr<SplitQueueDriver> ring_;
    bool open_ = true;
};

}  // namespace cpp_ring
