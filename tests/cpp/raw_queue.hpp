// A split virtqueue whose driver is the test itself: any bytes, anywhere, at any time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>

#include "fake_hypervisor.hpp"
#include "guest_memory.hpp"
#include "split_queue_device.hpp"
#include "split_ring.hpp"

namespace cpp_ring::test {

inline constexpr std::uint64_t all_ring_features = std::uint64_t{1} << feature_version_1 |
                                                   std::uint64_t{1} << feature_indirect_desc |
                                                   std::uint64_t{1} << feature_event_idx;

template <class Mem = SharedMemory>
class RawQueue {
  public:
    static constexpr std::size_t buffer_pages = 16;

    // With arena, ring and buffers are mapped once, so that walking and activating call no hypervisor.
    RawQueue(FakeHypervisor& hypervisor, std::uint16_t size, std::uint64_t features = 0, bool arena = true,
             std::size_t budget = 4096)
        : memory(hypervisor, 1, budget), features_(features) {
        const std::size_t driver = descriptor_bytes(size);
        const std::size_t device_area = (driver + driver_bytes(size) + 63) / 64 * 64;
        const std::size_t end = device_area + device_bytes(size);
        const std::size_t ring_pages = (end + page_size - 1) / page_size;
        pages_ = hypervisor.share(0, ring_pages + buffer_pages, true);
        std::byte* base = pages_->bytes().data();
        ring = SplitRing(size, base, base + driver, base + device_area);
        buffers = pages_->bytes().subspan(ring_pages * page_size);
        const GrantRef ref = pages_->first_ref();
        buffer_address = grant_address(ref, ring_pages * page_size);
        geometry = {size, grant_address(ref, 0), grant_address(ref, driver), grant_address(ref, device_area)};
        if (arena && memory.map_persistent(grant_address(ref, 0), pages_->bytes().size(), true))
            throw std::runtime_error("arena");
        restart();
    }

    // Activates the queue anew, as a reset and re-initialisation would.
    void restart() {
        avail = 0;
        *ring.avail_idx = 0;
        if (device.activate(geometry, features_, memory)) throw std::runtime_error("activate");
    }

    void put(std::uint16_t index, const Descriptor& desc) { std::memcpy(ring.descriptors + index, &desc, sizeof desc); }
    // Writes a table of descriptors `offset` bytes into the buffers and returns its address.
    std::uint64_t put_table(std::size_t offset, std::span<const Descriptor> table) {
        std::ranges::copy(std::as_bytes(table), buffers.begin() + static_cast<std::ptrdiff_t>(offset));
        return buffer_address + offset;
    }

    void offer(std::uint16_t head) {
        ring.avail_ring[avail++ & (geometry.size - 1)] = head;
        *ring.avail_idx = avail;
    }
    [[nodiscard]] GuestError walk_from(std::uint16_t head) {
        const WalkLimits limits{geometry.size, has_feature(features_, feature_indirect_desc), max_chain_bytes};
        return walk<Mem>(ring.descriptors, limits, head, memory, chain);
    }

    GuestMemory memory;
    SplitRing ring;  // as the frontend sees it
    std::span<std::byte> buffers;
    std::uint64_t buffer_address = 0;
    QueueGeometry geometry;
    BasicSplitQueueDevice<Mem> device;
    Chain chain;
    std::uint16_t avail = 0;

  private:
    std::uint64_t features_;
    std::unique_ptr<SharedPages> pages_;
};

}  // namespace cpp_ring::test
