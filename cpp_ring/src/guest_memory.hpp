// The memory of one frontend as one device sees it: grants mapped within a budget, found again by address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "errors.hpp"
#include "grant_address.hpp"
#include "hypervisor.hpp"
#include "shared.hpp"

namespace cpp_ring {

// Guest bytes, contiguous here. To be touched through SharedMemory only; the guest may change them at any time.
struct Segment {
    std::byte* data = nullptr;
    std::uint32_t size = 0;
    std::shared_ptr<Mapping> keep;  // holds the pages mapped; may be dropped by any thread
};

// One for each connection of a device; used by that device's thread only. Segments may outlive it.
class GuestMemory {
  public:
    // At most `budget_pages` pages are mapped at a time; the same page mapped twice counts twice.
    GuestMemory(Hypervisor& hypervisor, DomId frontend, std::size_t budget_pages);

    // Maps [address, address + length) until clear(), all or nothing. Errors: VMSG_XEN_DESC_ADDRESS,
    // VMSG_XEN_DESC_LENGTH (0), VMSG_XEN_MAP_BUDGET (detail: pages asked for), VMSG_XEN_GRANT_MAP (detail: reference).
    [[nodiscard]] GuestError map_persistent(std::uint64_t address, std::uint64_t length, bool writable);

    // Finds [address, address + length) in one persistent mapping, else maps it for as long as a Segment keeps it.
    // Errors as map_persistent; `out` is unchanged by them.
    [[nodiscard]] GuestError resolve(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
        if (last_hit_ < persistent_.size() && persistent_[last_hit_].find(address, length, writable, out)) return {};
        return resolve_slow(address, length, writable, out);
    }

    // Drops the persistent mappings. Pages that a Segment still keeps stay mapped, and charged, until it goes.
    void clear() noexcept;

    [[nodiscard]] std::size_t mapped_pages() const noexcept;

  private:
    struct Budget;
    struct Charged;

    struct Persistent {
        std::uint64_t address;
        std::uint64_t length;
        std::byte* data;
        bool writable;
        std::shared_ptr<Mapping> keep;

        [[nodiscard]] bool find(std::uint64_t wanted, std::uint32_t size, bool write, Segment& out) const {
            const std::uint64_t offset = wanted - address;  // wraps to a huge number when wanted < address
            if (offset >= length || size > length - offset || size == 0 || (write && !writable)) return false;
            out.data = data + offset;
            out.size = size;
            out.keep = keep;
            return true;
        }
    };

    [[nodiscard]] GuestError map(std::uint64_t address, std::uint64_t length, bool writable,
                                 std::shared_ptr<Mapping>& keep, std::byte*& data);
    [[nodiscard]] GuestError resolve_slow(std::uint64_t address, std::uint32_t length, bool writable, Segment& out);

    Hypervisor& hypervisor_;
    DomId frontend_;
    std::shared_ptr<Budget> budget_;
    std::vector<Persistent> persistent_;
    std::size_t last_hit_ = 0;
};

}  // namespace cpp_ring
