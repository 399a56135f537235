// The one way from a head to the segments of its descriptor chain: bounded, copy-once (virtio 1.3 section 2.7.5).
#pragma once

#include <cstdint>
#include <vector>

#include "errors.hpp"
#include "guest_memory.hpp"
#include "shared.hpp"
#include "split_ring.hpp"

namespace cpp_ring {

// One request of the driver. Meant to be used again and again: clear() keeps the capacity.
struct Chain {
    std::uint16_t head = 0;
    std::vector<Segment> readable;  // device-readable, in order
    std::vector<Segment> writable;  // device-writable, in order, all behind the readable ones
    std::uint64_t readable_bytes = 0;
    std::uint64_t writable_bytes = 0;

    void clear() noexcept {
        head = 0;
        readable.clear();
        writable.clear();
        readable_bytes = 0;
        writable_bytes = 0;
    }
};

// Far above what a driver asks at once, far below what would hurt the host. Fits used.len.
inline constexpr std::uint64_t max_chain_bytes = std::uint64_t{16} << 20;

struct WalkLimits {
    std::uint16_t queue_size = 0;
    bool indirect = false;  // VIRTIO_F_INDIRECT_DESC was negotiated
    std::uint64_t max_bytes = max_chain_bytes;
};

namespace detail {

template <class Mem>
[[nodiscard]] GuestError walk_chain(const Descriptor* table, const WalkLimits& limits, std::uint16_t head,
                                    GuestMemory& memory, Chain& out) {
    if (head >= limits.queue_size) return {VMSG_XEN_DESC_HEAD, head};
    std::uint32_t entries = limits.queue_size;
    std::uint32_t index = head;
    Segment indirect;  // keeps the indirect table mapped while it is read
    std::uint64_t total = 0;
    std::uint32_t steps = 0;

    for (;;) {
        Descriptor desc{};
        Mem::copy_from(&desc, table + index, sizeof desc);

        if ((desc.flags & desc_indirect) != 0) {
            // A table in a table, a table with a successor (section 2.7.5.3.1), and one that is longer than any chain
            // may be. Its WRITE flag means nothing.
            if (!limits.indirect || indirect.data != nullptr || (desc.flags & desc_next) != 0)
                return {VMSG_XEN_DESC_INDIRECT, desc.flags};
            entries = static_cast<std::uint32_t>(desc.length / sizeof(Descriptor));
            if (desc.length == 0 || desc.length % sizeof(Descriptor) != 0 || entries > limits.queue_size)
                return {VMSG_XEN_DESC_INDIRECT, desc.length};
            if (const GuestError error = memory.resolve_payload(desc.address, desc.length, false, indirect))
                return error;
            if (const GuestError error = memory.fetch()) return error;
            table = reinterpret_cast<const Descriptor*>(indirect.data);
            index = 0;
            continue;
        }

        // No chain is longer than the queue (section 2.7.5.3.1); a table does not renew the budget.
        if (steps++ == limits.queue_size) return {VMSG_XEN_DESC_CYCLE, head};
        // The spec gives an empty buffer no meaning and no driver makes one.
        if (desc.length == 0) return {VMSG_XEN_DESC_LENGTH, 0};
        total += desc.length;  // at most 2^15 times 2^32
        if (total > limits.max_bytes) return {VMSG_XEN_DESC_LENGTH, total};

        const bool write = (desc.flags & desc_write) != 0;
        if (!write && !out.writable.empty()) return {VMSG_XEN_DESC_ORDER, index};
        Segment& segment = (write ? out.writable : out.readable).emplace_back();
        if (const GuestError error = memory.resolve_payload(desc.address, desc.length, write, segment)) return error;
        (write ? out.writable_bytes : out.readable_bytes) += desc.length;

        if ((desc.flags & desc_next) == 0) {
            out.head = head;
            return {};
        }
        if (desc.next >= entries) return {VMSG_XEN_DESC_NEXT, desc.next};
        index = desc.next;
    }
}

}  // namespace detail

// Fills `out` with the chain that starts at `head` of `table` (limits.queue_size entries). Each descriptor is copied
// once and only the copy is used. On an error `out` is empty and nothing stays mapped for it. Errors: DESC_HEAD,
// DESC_NEXT, DESC_CYCLE, DESC_INDIRECT, DESC_LENGTH, DESC_ORDER, and those of GuestMemory::resolve_payload, which
// says too when the bytes of a private copy are there.
template <class Mem = SharedMemory>
[[nodiscard]] GuestError walk(const Descriptor* table, const WalkLimits& limits, std::uint16_t head,
                              GuestMemory& memory, Chain& out) {
    out.clear();
    const GuestError error = detail::walk_chain<Mem>(table, limits, head, memory, out);
    if (error) {
        memory.drop_fetch();
        out.clear();
    }
    return error;
}

}  // namespace cpp_ring
