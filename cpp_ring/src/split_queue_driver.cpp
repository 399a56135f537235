#include "split_queue_driver.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "grant_address.hpp"

namespace cpp_ring {

namespace {

// Each head has a table of its own. A longer chain takes descriptors of the queue itself.
constexpr std::uint16_t max_indirect_entries = 32;

// Offsets of the areas in the pages. Each begins a cache line, so that the two sides do not write to a common one.
struct Layout {
    std::size_t driver;
    std::size_t device;
    std::size_t indirect;
    std::uint16_t indirect_entries;  // of one table
    std::size_t end;

    Layout(std::uint16_t size, std::uint64_t features) {
        const auto line = [](std::size_t offset) {
            return (offset + VMSG_XEN_CACHE_LINE - 1) / VMSG_XEN_CACHE_LINE * VMSG_XEN_CACHE_LINE;
        };
        driver = line(descriptor_bytes(size));
        device = line(driver + driver_bytes(size));
        indirect = line(device + device_bytes(size));
        indirect_entries = has_feature(features, feature_indirect_desc) ? std::min(size, max_indirect_entries) : 0;
        end = indirect + std::size_t{size} * indirect_entries * sizeof(Descriptor);
    }
};

}  // namespace

std::size_t SplitQueueDriver::pages_needed(std::uint16_t size, std::uint64_t features) noexcept {
    return (Layout(size, features).end + page_size - 1) / page_size;
}

SplitQueueDriver::SplitQueueDriver(std::shared_ptr<SharedPages> pages, std::uint16_t size, std::uint64_t features,
                                   std::size_t first_page)
    : pages_(std::move(pages)),
      size_(size),
      event_idx_(has_feature(features, feature_event_idx)),
      in_order_(has_feature(features, feature_in_order)) {
    if (!valid_queue_size(size))
        throw std::invalid_argument("queue size " + std::to_string(size) + " is not a power of two up to " +
                                    std::to_string(max_queue_size));
    const Layout layout(size, features);
    const std::size_t available = pages_->bytes().size() / page_size;
    const std::size_t needed = pages_needed(size, features);
    if (first_page > available || needed > available - first_page)
        throw std::invalid_argument("a queue of " + std::to_string(size) + " needs " + std::to_string(needed) +
                                    " pages from page " + std::to_string(first_page) + " of " +
                                    std::to_string(available));
    base_ = pages_->bytes().data() + first_page * page_size;
    address_ = grant_address(pages_->first_ref(), first_page * page_size);
    ring_ = SplitRing(size, base_, base_ + layout.driver, base_ + layout.device);
    // What stands there may be of an earlier life of the pages. The rest is written before it is pointed to.
    for (std::uint16_t* word :
         {ring_.avail_flags, ring_.avail_idx, ring_.used_event, ring_.used_flags, ring_.used_idx, ring_.avail_event})
        SharedMemory::store_relaxed(word, std::uint16_t{0});
    driver_offset_ = layout.driver;
    device_offset_ = layout.device;
    indirect_offset_ = layout.indirect;
    indirect_entries_ = layout.indirect_entries;

    heads_.resize(size);
    order_.resize(size);
    next_.resize(size);
    for (std::uint16_t i = 0; i < size; ++i) next_[i] = static_cast<std::uint16_t>((i + 1) & mask());
    free_ = size;
    free_last_ = mask();
}

std::uint64_t SplitQueueDriver::descriptor_address() const noexcept { return address_; }

std::uint64_t SplitQueueDriver::driver_address() const noexcept { return address_ + driver_offset_; }

std::uint64_t SplitQueueDriver::device_address() const noexcept { return address_ + device_offset_; }

std::optional<std::uint16_t> SplitQueueDriver::add(std::span<const Piece> readable, std::span<const Piece> writable) {
    const std::size_t pieces = readable.size() + writable.size();
    if (pieces == 0 || pieces > size_)
        throw std::invalid_argument("a chain of " + std::to_string(pieces) + " pieces in a queue of " +
                                    std::to_string(size_));
    std::uint64_t bytes = 0;
    std::uint64_t writable_bytes = 0;
    for (std::size_t i = 0; i < pieces; ++i) {
        const Piece& piece = i < readable.size() ? readable[i] : writable[i - readable.size()];
        if (piece.size == 0) throw std::invalid_argument("piece " + std::to_string(i) + " is empty");
        bytes += piece.size;
        if (i >= readable.size()) writable_bytes += piece.size;
    }
    if (bytes > std::numeric_limits<std::uint32_t>::max())
        throw std::invalid_argument("a chain of " + std::to_string(bytes) + " bytes is longer than used.len can say");

    // A table costs the device one more fetch, and a map if it lies outside the arena: for when descriptors run short.
    const bool scarce = pieces > free_ || free_ <= size_ / 2;
    const bool indirect = scarce && pieces > 1 && pieces <= indirect_entries_;
    const std::size_t count = indirect ? 1 : pieces;
    if (count > free_) return std::nullopt;

    const std::uint16_t head = free_first_;
    std::uint16_t last = head;
    if (indirect) {
        const std::size_t offset = indirect_offset_ + std::size_t{head} * indirect_entries_ * sizeof(Descriptor);
        auto* table = reinterpret_cast<Descriptor*>(base_ + offset);
        for (std::size_t i = 0; i < pieces; ++i) put(table + i, i, i + 1, readable, writable);
        const Descriptor desc{address_ + offset, static_cast<std::uint32_t>(pieces * sizeof(Descriptor)), desc_indirect,
                              0};
        SharedMemory::copy_to(ring_.descriptors + head, &desc, sizeof desc);
    } else {
        for (std::size_t i = 0; i < pieces; ++i) {
            if (i != 0) last = next_[last];
            put(ring_.descriptors + last, i, next_[last], readable, writable);
        }
    }
    free_first_ = next_[last];
    free_ = static_cast<std::uint16_t>(free_ - count);
    heads_[head] = {static_cast<std::uint32_t>(writable_bytes), last, static_cast<std::uint16_t>(count), avail_next_};
    order_[avail_next_ & mask()] = head;
    SharedMemory::store_relaxed(ring_.avail_ring + (avail_next_ & mask()), head);
    ++avail_next_;
    ++outstanding_;
    return head;
}

void SplitQueueDriver::put(Descriptor* at, std::size_t i, std::size_t next, std::span<const Piece> readable,
                           std::span<const Piece> writable) noexcept {
    const bool write = i >= readable.size();
    const bool more = i + 1 < readable.size() + writable.size();
    const Piece& piece = write ? writable[i - readable.size()] : readable[i];
    const Descriptor desc{piece.address, piece.size,
                          static_cast<std::uint16_t>((write ? desc_write : 0) | (more ? desc_next : 0)),
                          static_cast<std::uint16_t>(more ? next : 0)};
    SharedMemory::copy_to(at, &desc, sizeof desc);
}

void SplitQueueDriver::publish() noexcept {
    if (avail_published_ == avail_next_) return;
    unkicked_ += static_cast<std::uint16_t>(avail_next_ - avail_published_);
    avail_published_ = avail_next_;
    // Partner: pop() and has_work() of the device. Ring entries, descriptors and payload come before the index.
    SharedMemory::store_release(ring_.avail_idx, avail_published_);
}

bool SplitQueueDriver::needs_kick() noexcept {
    if (unkicked_ == 0) return false;
    const std::uint32_t count = unkicked_;
    unkicked_ = 0;
    // Publish avail.idx, fence, read the suppression word. Partner: enable_notifications() of the device.
    full_fence();
    if (event_idx_) return crosses_event(SharedMemory::load_relaxed(ring_.avail_event), avail_published_, count);
    return (SharedMemory::load_relaxed(ring_.used_flags) & used_no_notify) == 0;
}

bool SplitQueueDriver::pop(Used& out, bool& lied) noexcept {
    lied = false;
    if (!batch_) {
        Used entry{};
        if (!read_used(entry, lied)) return false;
        if (!in_order_) {
            out = entry;
            release(entry.head);
            return true;
        }
        batch_ = true;
        batch_end_ = heads_[entry.head].turn;
        batch_written_ = entry.written;
    }
    // One entry may stand for a batch: it names the last chain, those before it were used completely (section 2.7.9).
    const std::uint16_t head = order_[used_next_ & mask()];
    batch_ = used_next_ != batch_end_;
    out = {head, batch_ ? heads_[head].writable_bytes : batch_written_};
    release(head);
    return true;
}

// Copies the next used entry and checks the copy.
bool SplitQueueDriver::read_used(Used& out, bool& lied) noexcept {
    if (used_seen_ == used_next_) {
        // Partner: publish() of the device. Used entries and payload come before the index.
        const std::uint16_t idx = SharedMemory::load_acquire(ring_.used_idx);
        lied = static_cast<std::uint16_t>(idx - used_next_) > outstanding_;
        if (lied || idx == used_next_) return false;
        used_seen_ = idx;
    }
    const UsedElement* element = ring_.used_ring + (used_next_ & mask());
    const std::uint32_t id = SharedMemory::load_relaxed(&element->id);
    const std::uint32_t written = SharedMemory::load_relaxed(&element->length);
    lied = id >= size_ || heads_[id].count == 0 || written > heads_[id].writable_bytes;
    if (lied) return false;
    if (in_order_) {
        const auto skipped = static_cast<std::uint16_t>(heads_[id].turn - used_next_);
        lied = skipped >= static_cast<std::uint16_t>(used_seen_ - used_next_);
        if (lied) return false;
    }
    out = {static_cast<std::uint16_t>(id), written};
    return true;
}

void SplitQueueDriver::release(std::uint16_t head) noexcept {
    Head& chain = heads_[head];
    (free_ == 0 ? free_first_ : next_[free_last_]) = head;
    free_last_ = chain.last;
    free_ = static_cast<std::uint16_t>(free_ + chain.count);
    chain.count = 0;
    --outstanding_;
    ++used_next_;
}

void SplitQueueDriver::disable_interrupts() noexcept {
    // With the event index it is enough to leave used_event behind (section 2.7.7).
    if (!event_idx_) SharedMemory::store_relaxed(ring_.avail_flags, avail_no_interrupt);
}

bool SplitQueueDriver::enable_interrupts() noexcept {
    if (event_idx_)
        SharedMemory::store_relaxed(ring_.used_event, used_next_);
    else
        SharedMemory::store_relaxed(ring_.avail_flags, std::uint16_t{0});
    // Arm, fence, look again. Partner: needs_notification() of the device.
    full_fence();
    return has_used();
}

}  // namespace cpp_ring
