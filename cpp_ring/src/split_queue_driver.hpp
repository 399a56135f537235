// The driver half of a split virtqueue (virtio 1.3 section 2.7): offers chains, takes them back, and checks every id
// and length that the device returns against what was offered.
//
// The order in a driver: add, add, publish, needs_kick; pop until nothing is left; before sleeping, enable_interrupts,
// which says whether used buffers came meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "hypervisor.hpp"
#include "shared.hpp"
#include "split_ring.hpp"

namespace cpp_ring {

class SplitQueueDriver {
  public:
    // Lays the three areas, and with VIRTIO_F_INDIRECT_DESC the indirect tables, out in pages_needed() of `pages` from
    // `first_page`, granted writable, and starts at index 0: the device must not be using them. Pages of the arena are
    // best: an indirect table outside it is mapped or copied anew for each request. Throws std::invalid_argument: size
    // not a power of two up to 32768, too few pages.
    SplitQueueDriver(std::shared_ptr<SharedPages> pages, std::uint16_t size, std::uint64_t features,
                     std::size_t first_page = 0);

    [[nodiscard]] static std::size_t pages_needed(std::uint16_t size, std::uint64_t features) noexcept;

    // Grant-DMA addresses for SET_VQUEUE.
    [[nodiscard]] std::uint64_t descriptor_address() const noexcept;
    [[nodiscard]] std::uint64_t driver_address() const noexcept;
    [[nodiscard]] std::uint64_t device_address() const noexcept;
    [[nodiscard]] std::uint16_t size() const noexcept { return size_; }

    // A buffer by its grant-DMA address; size not 0.
    struct Piece {
        std::uint64_t address;
        std::uint32_t size;
    };
    // Offers a chain: `readable` for the device to read, then `writable` for it to write. Returns its head, which names
    // it until pop() returns it; nothing if the ring is too full for it now. The device sees it after publish().
    // Throws std::invalid_argument: no piece, more pieces than the queue is long, an empty piece, 4 GiB or more.
    [[nodiscard]] std::optional<std::uint16_t> add(std::span<const Piece> readable, std::span<const Piece> writable);
    void publish() noexcept;
    // Asked after publish(): does the device want a kick for what was published since the last call?
    [[nodiscard]] bool needs_kick() noexcept;

    struct Used {
        std::uint16_t head;
        std::uint32_t written;  // bytes, from the start of the writable part
    };
    // The next used chain. lied = true (and false returned): the device gave an id that is not outstanding, wrote more
    // than was writable, or moved used.idx further than there were chains; it is not to be served further.
    [[nodiscard]] bool pop(Used& out, bool& lied) noexcept;
    // One acquire load; polled while spinning. Partner: publish() of the device.
    [[nodiscard]] bool has_used() const noexcept { return SharedMemory::load_acquire(ring_.used_idx) != used_next_; }

    void disable_interrupts() noexcept;
    // Asks for an event at the next used buffer. True: one came meanwhile, do not sleep.
    [[nodiscard]] bool enable_interrupts() noexcept;

    [[nodiscard]] std::uint16_t free_descriptors() const noexcept { return free_; }
    // Chains offered and not yet returned by pop().
    [[nodiscard]] std::uint16_t outstanding() const noexcept { return outstanding_; }

  private:
    struct Head {
        std::uint32_t writable_bytes = 0;
        std::uint16_t last = 0;   // the chain's last descriptor
        std::uint16_t count = 0;  // of its descriptors in the table; 0: not outstanding
        std::uint16_t turn = 0;   // its place in the avail ring
    };

    [[nodiscard]] std::uint16_t mask() const noexcept { return static_cast<std::uint16_t>(size_ - 1); }
    void put(Descriptor* at, std::size_t i, std::size_t next, std::span<const Piece> readable,
             std::span<const Piece> writable) noexcept;
    [[nodiscard]] bool read_used(Used& out, bool& lied) noexcept;
    void release(std::uint16_t head) noexcept;

    std::shared_ptr<SharedPages> pages_;
    std::byte* base_ = nullptr;  // of the queue's own pages, and their address
    std::uint64_t address_ = 0;
    SplitRing ring_;
    std::uint16_t size_;
    bool event_idx_;
    bool in_order_;
    std::size_t driver_offset_ = 0;
    std::size_t device_offset_ = 0;
    std::size_t indirect_offset_ = 0;
    std::uint16_t indirect_entries_ = 0;  // of one head's table

    std::uint16_t avail_next_ = 0;
    std::uint16_t avail_published_ = 0;
    std::uint16_t used_next_ = 0;
    std::uint16_t used_seen_ = 0;  // used.idx as last read and checked
    std::uint16_t outstanding_ = 0;
    std::uint32_t unkicked_ = 0;  // avail entries since the last needs_kick()

    // Private: what the device could change is never read back. Free descriptors are taken and given back at opposite
    // ends, so that with VIRTIO_F_IN_ORDER they run 0, 1, 2, ... round the table as section 2.7.9 asks.
    std::vector<Head> heads_;
    std::vector<std::uint16_t> next_;   // descriptor table
    std::vector<std::uint16_t> order_;  // avail ring
    std::uint16_t free_ = 0;
    std::uint16_t free_first_ = 0;
    std::uint16_t free_last_ = 0;

    std::uint16_t batch_end_ = 0;      // in order: the entry just read covers all chains up to this place
    std::uint32_t batch_written_ = 0;  // and gives the length of the last of them
    bool batch_ = false;
};

}  // namespace cpp_ring
