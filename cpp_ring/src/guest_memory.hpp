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
    // Where `data` is a private copy: the address it belongs to, for GuestMemory::put_back. 0: it is the page itself.
    std::uint64_t copy_of = 0;
};

// Copies are memory of ours: a device holds 32 MiB of them at most, more than a batch and the longest chain together.
inline constexpr std::size_t most_copied_pages = 8192;

// One for each connection of a device; used by that device's thread only. Segments may outlive it.
class GuestMemory {
  public:
    // At most `budget_pages` pages are mapped at a time, and all devices of the hypervisor together have its MapBudget;
    // the same page mapped twice counts twice. Copies are counted by themselves, against the same number or
    // most_copied_pages.
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

    // The same for the payload of a request. What lies in no persistent mapping is copied where the hypervisor can:
    // a readable one has its bytes after fetch(), and a writable one is zeroes, of which put_back() and store() write
    // to the guest what the device wrote.
    [[nodiscard]] GuestError resolve_payload(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
        if (last_hit_ < persistent_.size() && persistent_[last_hit_].find(address, length, writable, out)) return {};
        return resolve_payload_slow(address, length, writable, out);
    }
    // Copies what resolve_payload() found readable, in one call of the hypervisor. VMSG_XEN_GRANT_MAP (the reference),
    // VMSG_XEN_HOST (errno).
    [[nodiscard]] GuestError fetch();
    // Forgets what waits for fetch(): the request is refused.
    void drop_fetch() noexcept;
    // To be written to the guest by store(): the first `size` bytes of a writable copy.
    void put_back(const Segment& copy, std::uint32_t size);
    // Copies all that was put back, in one call of the hypervisor. Errors as fetch().
    [[nodiscard]] GuestError store();

    // Drops the persistent mappings and the copies that wait. Pages that a Segment still keeps stay mapped, and
    // charged, until it goes.
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
            out.copy_of = 0;
            return true;
        }
    };

    [[nodiscard]] GuestError map(std::uint64_t address, std::uint64_t length, bool writable,
                                 std::shared_ptr<Mapping>& keep, std::byte*& data);
    [[nodiscard]] GuestError resolve_slow(std::uint64_t address, std::uint32_t length, bool writable, Segment& out);
    [[nodiscard]] GuestError resolve_payload_slow(std::uint64_t address, std::uint32_t length, bool writable,
                                                  Segment& out);
    [[nodiscard]] bool find_persistent(std::uint64_t address, std::uint32_t length, bool writable, Segment& out);
    // Copies of one direction that wait for their call.
    struct Copies {
        std::vector<GrantCopy> pieces;
        std::vector<std::shared_ptr<Mapping>> keep;  // whose bytes they are
    };
    void add(Copies& copies, std::uint64_t address, const Segment& segment, std::uint32_t size);
    [[nodiscard]] GuestError carry_out(Copies& copies, CopyDirection direction);

    Hypervisor& hypervisor_;
    DomId frontend_;
    std::shared_ptr<Budget> budget_;
    std::vector<Persistent> persistent_;
    std::size_t last_hit_ = 0;
    Copies to_fetch_;
    Copies to_store_;
};

}  // namespace cpp_ring
