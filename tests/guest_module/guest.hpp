// A queue of the module with a driver at one end and a device at the other, connected.
#pragma once

#include <doctest/doctest.h>

#include "device.hpp"
#include "driver.hpp"
#include "module.h"

namespace guest_module {

inline constexpr std::uint32_t small_pool = 4;  // VIRTIO_ID_RNG: 32 units of 512 bytes
inline constexpr std::uint32_t network_card = 1;
inline constexpr std::uint32_t large_pool = 2;  // VIRTIO_ID_BLOCK: 4 MiB

class Queue {
  public:
    explicit Queue(module_options options = {large_pool, 8, true, false})
        : module_(module_create(&options)), driver(module_), device(module_) {
        module_start(module_);
    }
    Queue(const Queue&) = delete;
    Queue& operator=(const Queue&) = delete;
    ~Queue() {
        module_destroy(module_);
        CHECK(shim_events.granted_areas == 0);
        CHECK(shim_events.spin_locks == 0);
    }

    [[nodiscard]] module* get() const { return module_; }
    std::uint16_t add(const std::vector<Piece>& pieces, bool indirect = false) {
        const std::uint16_t head = driver.add(pieces, indirect);
        module_notify(module_);
        return head;
    }
    void notify() { module_notify(module_); }
    void interrupt() { module_interrupt(module_); }
    // The emulator is another one after this.
    void disconnect() { module_stop(module_); }
    void connect() {
        module_prepare(module_);
        device.adopt(module_);
        module_start(module_);
    }
    [[nodiscard]] unsigned used_units() const { return module_pool_of(module_).used_units; }

  private:
    module* module_;

  public:
    Driver driver;
    Device device;
};

// Heads, in order, of what the device finds available or the driver gets back.
template <typename Range>
std::vector<std::uint16_t> heads(const Range& range) {
    std::vector<std::uint16_t> all;
    for (const auto& element : range) all.push_back(element.head);
    return all;
}

}  // namespace guest_module
