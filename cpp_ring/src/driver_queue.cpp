#include "driver_queue.hpp"

#include <utility>

namespace cpp_ring {

DriverQueue::DriverQueue(Hypervisor& hypervisor, DomId backend, std::uint16_t size, std::uint64_t features)
    : hypervisor_(hypervisor),
      backend_(backend),
      channels_(hypervisor.open_event_channels()),
      port_(channels_->alloc_unbound(backend)) {
    setup(size, features);
}

void DriverQueue::setup(std::uint16_t size, std::uint64_t features) {
    auto pages = hypervisor_.share(backend_, SplitQueueDriver::pages_needed(size, features), true);
    const std::span<std::byte> memory = pages->bytes();
    ring_ = std::make_shared<SplitQueueDriver>(std::move(pages), size, features);
    memory_ = memory;
}

DriverQueue::~DriverQueue() { close(); }

void DriverQueue::close() noexcept {
    if (std::exchange(open_, false)) channels_->unbind(port_);
}

bool DriverQueue::kick() noexcept {
    ring_->publish();
    const bool wanted = ring_->needs_kick() && open_;
    if (wanted) channels_->notify(port_);
    return wanted;
}

bool DriverQueue::wait(Clock::duration timeout) {
    static const std::uint64_t spin = ticks_of_us(50);
    const auto ring = ring_;  // stays while we wait, whoever calls setup() meanwhile
    const Wait result = wait_for(
        *channels_, spin, timeout, [&] { return ring->has_used(); }, [] { return true; },
        [&] { return !ring->enable_interrupts(); }, [&] { ring->disable_interrupts(); });
    return result == Wait::ready;
}

Wait DriverQueue::measure(std::span<const SplitQueueDriver::Piece> readable,
                          std::span<const SplitQueueDriver::Piece> writable, std::uint64_t count,
                          LatencyRecorder& recorder, bool& lied) {
    const double ns = 1.0 / ticks_per_ns();
    lied = false;
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t start = ticks();
        if (!ring_->add(readable, writable)) return Wait::timeout;
        kick();
        for (std::uint64_t spins = 0; !ring_->has_used(); ++spins)
            if (spins % 1024 == 1023 && static_cast<double>(ticks() - start) * ns > 2e9) return Wait::timeout;
        SplitQueueDriver::Used used{};
        if (!ring_->pop(used, lied)) return Wait::timeout;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(ticks() - start) * ns));
    }
    return Wait::ready;
}

}  // namespace cpp_ring
