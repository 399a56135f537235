// The device half of a split virtqueue (virtio 1.3 section 2.7): takes chains from the avail ring, gives them back
// through the used ring, and believes nothing that the driver writes.
//
// The order in a device's loop: pop ... push, push, publish, needs_notification; before sleeping,
// enable_notifications, which says whether work came meanwhile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "descriptor_walk.hpp"
#include "errors.hpp"
#include "guest_memory.hpp"
#include "shared.hpp"
#include "split_ring.hpp"

namespace cpp_ring {

struct QueueGeometry {
    std::uint16_t size = 0;
    std::uint64_t descriptor_address = 0;
    std::uint64_t driver_address = 0;
    std::uint64_t device_address = 0;
};

// For SET_VQUEUE, before anything is mapped. VMSG_XEN_QUEUE_SIZE: not a power of two, 0, or above `max_size`.
// VMSG_XEN_QUEUE_ADDRESS: misaligned, not a grant-DMA address, or an area past the last reference.
[[nodiscard]] constexpr GuestError check_geometry(const QueueGeometry& geometry, std::uint16_t max_size) noexcept {
    if (!valid_queue_size(geometry.size) || geometry.size > max_size) return {VMSG_XEN_QUEUE_SIZE, geometry.size};
    const auto bad = [](std::uint64_t address, std::uint64_t length, std::uint64_t alignment) {
        GrantRange range;
        return address % alignment != 0 || parse_grant_range(address, length, range);
    };
    if (bad(geometry.descriptor_address, descriptor_bytes(geometry.size), descriptor_alignment))
        return {VMSG_XEN_QUEUE_ADDRESS, geometry.descriptor_address};
    if (bad(geometry.driver_address, driver_bytes(geometry.size), driver_alignment))
        return {VMSG_XEN_QUEUE_ADDRESS, geometry.driver_address};
    if (bad(geometry.device_address, device_bytes(geometry.size), device_alignment))
        return {VMSG_XEN_QUEUE_ADDRESS, geometry.device_address};
    return {};
}

// `Mem` is the policy through which shared memory is touched; tests substitute a hostile one.
template <class Mem = SharedMemory>
class BasicSplitQueueDevice {
  public:
    // Maps the three areas, for as long as the queue is active, and starts at index 0. `geometry` is copied and frozen.
    // Errors: those of check_geometry and of GuestMemory::resolve; nothing stays mapped by them. A queue that was
    // active is deactivated first.
    [[nodiscard]] GuestError activate(const QueueGeometry& geometry, std::uint64_t features, GuestMemory& memory) {
        deactivate();
        if (const GuestError error = check_geometry(geometry, max_queue_size)) return error;
        const std::uint16_t size = geometry.size;
        Segment descriptor_area, driver_area, device_area;
        GuestError error = memory.resolve(geometry.descriptor_address, descriptor_bytes(size), false, descriptor_area);
        if (!error) error = memory.resolve(geometry.driver_address, driver_bytes(size), false, driver_area);
        if (!error) error = memory.resolve(geometry.device_address, device_bytes(size), true, device_area);
        if (error) return error;

        heads_.assign(size, Head{});
        order_.assign(has_feature(features, feature_in_order) ? size : 0, 0);
        ring_ = SplitRing(size, descriptor_area.data, driver_area.data, device_area.data);
        areas_[0] = std::move(descriptor_area);
        areas_[1] = std::move(driver_area);
        areas_[2] = std::move(device_area);
        memory_ = &memory;
        limits_ = {size, has_feature(features, feature_indirect_desc), max_chain_bytes};
        event_idx_ = has_feature(features, feature_event_idx);
        in_order_ = has_feature(features, feature_in_order);
        return {};
    }

    // Unmaps the areas and forgets what was in flight. Segments of chains already popped stay valid until they go.
    void deactivate() noexcept {
        ring_ = SplitRing();
        heads_.clear();  // and with them the private copies of chains in flight
        for (Segment& area : areas_) area = Segment{};
        memory_ = nullptr;
        limits_ = {};
        avail_next_ = avail_seen_ = used_next_ = used_published_ = 0;
        order_front_ = order_back_ = in_flight_ = 0;
        unsignalled_ = 0;
    }

    [[nodiscard]] bool active() const noexcept { return memory_ != nullptr; }
    [[nodiscard]] std::uint16_t size() const noexcept { return limits_.queue_size; }
    // Chains popped and not yet pushed (in order: not yet in the used ring).
    [[nodiscard]] std::uint16_t in_flight() const noexcept { return in_flight_; }

    // One acquire load; polled while spinning. True also when pop() would find an error. Partner: publish() of the
    // driver.
    [[nodiscard]] bool has_work() const noexcept {
        return active() && Mem::load_acquire(ring_.avail_idx) != avail_next_;
    }

    // The next available chain, or found = false. What of it is a private copy has its bytes after fetch(). An error
    // leaves the queue as it was and `out` empty; the device needs a reset. Errors: VMSG_XEN_AVAIL_INDEX (the index ran
    // further ahead than the ring is long), VMSG_XEN_DESC_HEAD, VMSG_XEN_DESC_IN_FLIGHT, and those of walk().
    [[nodiscard]] GuestError pop(Chain& out, bool& found) {
        found = false;
        if (avail_seen_ == avail_next_) {
            if (!active()) return {};
            // Partner: publish() of the driver. What it wrote before is visible: ring entry, descriptors, payload.
            const std::uint16_t idx = Mem::load_acquire(ring_.avail_idx);
            if (static_cast<std::uint16_t>(idx - avail_next_) > limits_.queue_size) {
                out.clear();
                return {VMSG_XEN_AVAIL_INDEX, idx};
            }
            avail_seen_ = idx;
            if (idx == avail_next_) return {};
        }
        const std::uint16_t head = Mem::load_relaxed(ring_.avail_ring + (avail_next_ & mask()));
        if (head < limits_.queue_size && heads_[head].in_flight) {
            out.clear();
            return {VMSG_XEN_DESC_IN_FLIGHT, head};
        }
        if (const GuestError error = walk<Mem>(ring_.descriptors, limits_, head, *memory_, out)) return error;
        Head& taken = heads_[head];
        taken.writable_bytes = static_cast<std::uint32_t>(out.writable_bytes);
        taken.written = 0;
        taken.in_flight = true;
        taken.done = false;
        // The model lets go of the chain before, or after, it says how much it wrote.
        taken.copies.clear();
        std::uint64_t offset = 0;
        for (const Segment& segment : out.writable) {
            if (segment.copy_of != 0) taken.copies.push_back({static_cast<std::uint32_t>(offset), segment});
            offset += segment.size;  // at most max_chain_bytes
        }
        if (in_order_) order_[order_back_++ & mask()] = head;
        ++avail_next_;
        ++in_flight_;
        found = true;
        return {};
    }

    // After the pops of a batch, before the chains are looked at. On an error none of them may be.
    [[nodiscard]] GuestError fetch() { return active() ? memory_->fetch() : GuestError{}; }

    // Gives a chain back, `written` bytes of its writable part having been written (from its start). Visible to the
    // driver after publish(); in order: after all chains popped before it were pushed too. VMSG_XEN_MODEL, and nothing
    // changes: `head` is not in flight, or `written` exceeds the writable part.
    [[nodiscard]] GuestError push(std::uint16_t head, std::uint32_t written) {
        if (head >= limits_.queue_size || !heads_[head].in_flight || heads_[head].done) return {VMSG_XEN_MODEL, head};
        if (written > heads_[head].writable_bytes) return {VMSG_XEN_MODEL, written};
        heads_[head].written = written;
        heads_[head].done = true;
        put_back(heads_[head]);
        if (!in_order_) {
            put_used(head);
            return {};
        }
        while (order_front_ != order_back_ && heads_[order_[order_front_ & mask()]].done)
            put_used(order_[order_front_++ & mask()]);
        return {};
    }

    // Before publish(): writes to the guest what pushed chains have in private copies. VMSG_XEN_GRANT_MAP: it withdrew
    // a page of a request that it had offered.
    [[nodiscard]] GuestError write_back() { return active() ? memory_->store() : GuestError{}; }

    // Shows the driver everything that was pushed; once a batch. Partner: the acquire load of used.idx in the driver.
    void publish() noexcept {
        unsignalled_ += static_cast<std::uint16_t>(used_next_ - used_published_);
        if (used_published_ == used_next_) return;
        used_published_ = used_next_;
        Mem::store_release(ring_.used_idx, used_published_);
    }

    // Asked after publish(): does the driver want an event for what was published since the last call (section 2.7.7)?
    [[nodiscard]] bool needs_notification() noexcept {
        if (unsignalled_ == 0) return false;
        const std::uint32_t count = unsignalled_;
        unsignalled_ = 0;
        // Publish used.idx, fence, read the suppression word. Partner: enable_interrupts() of the driver.
        full_fence();
        if (event_idx_) return crosses_event(Mem::load_relaxed(ring_.used_event), used_published_, count);
        return (Mem::load_relaxed(ring_.avail_flags) & avail_no_interrupt) == 0;
    }

    // Advice to the driver not to kick; with the event index it is enough to leave avail_event behind (section 2.7.10).
    void disable_notifications() noexcept {
        if (active() && !event_idx_) Mem::store_relaxed(ring_.used_flags, used_no_notify);
    }

    // Asks for a kick at the next available buffer. True: work came meanwhile, do not sleep.
    [[nodiscard]] bool enable_notifications() noexcept {
        if (!active()) return false;
        if (event_idx_)
            Mem::store_relaxed(ring_.avail_event, avail_next_);
        else
            Mem::store_relaxed(ring_.used_flags, std::uint16_t{0});
        // Arm, fence, look again. Partner: needs_kick() of the driver.
        full_fence();
        return has_work();
    }

  private:
    // A writable segment that is not the guest's page, and where in the writable part it begins.
    struct PrivateCopy {
        std::uint32_t offset = 0;
        Segment segment;
    };
    struct Head {
        std::uint32_t writable_bytes = 0;
        std::uint32_t written = 0;
        bool in_flight = false;
        bool done = false;  // pushed; in order it may still wait for its turn
        std::vector<PrivateCopy> copies;
    };

    [[nodiscard]] std::uint16_t mask() const noexcept { return static_cast<std::uint16_t>(limits_.queue_size - 1); }

    void put_back(Head& head) {
        for (const PrivateCopy& copy : head.copies) {
            if (head.written > copy.offset)
                memory_->put_back(copy.segment, std::min(head.written - copy.offset, copy.segment.size));
        }
        head.copies.clear();
    }

    void put_used(std::uint16_t head) noexcept {
        UsedElement* element = ring_.used_ring + (used_next_++ & mask());
        Mem::store_relaxed(&element->id, std::uint32_t{head});
        Mem::store_relaxed(&element->length, heads_[head].written);
        heads_[head].in_flight = false;
        --in_flight_;
    }

    SplitRing ring_;
    std::uint16_t avail_next_ = 0;      // the next entry to pop
    std::uint16_t avail_seen_ = 0;      // avail.idx as last read and checked
    std::uint16_t used_next_ = 0;       // the next entry to fill
    std::uint16_t used_published_ = 0;  // used.idx as the driver sees it
    std::uint16_t in_flight_ = 0;
    bool event_idx_ = false;
    bool in_order_ = false;
    std::uint32_t unsignalled_ = 0;  // published since the last needs_notification()
    WalkLimits limits_;
    GuestMemory* memory_ = nullptr;
    std::vector<Head> heads_;
    std::vector<std::uint16_t> order_;  // in order: the heads in flight, as popped
    std::uint16_t order_front_ = 0;
    std::uint16_t order_back_ = 0;
    Segment areas_[3];
};

using SplitQueueDevice = BasicSplitQueueDevice<>;

}  // namespace cpp_ring
