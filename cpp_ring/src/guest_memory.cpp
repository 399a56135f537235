#include "guest_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace cpp_ring {

// Shared with every mapping that is charged to it: the last Segment may go after the GuestMemory, on another thread.
struct GuestMemory::Budget {
    Budget(std::size_t pages, std::shared_ptr<MapBudget> all) : limit(pages), domain(std::move(all)) {}

    const std::size_t limit;
    const std::shared_ptr<MapBudget> domain;  // of all devices
    // Only the device's thread adds, so "compare, then add" cannot overshoot.
    Atomic<std::size_t> mapped{0};
    Atomic<std::size_t> copied{0};
};

// Charges its pages for as long as it lives.
struct GuestMemory::Charged {
    std::shared_ptr<Budget> budget;
    Atomic<std::size_t> Budget::* account;
    std::size_t pages;
    std::size_t taken = 0;  // of the domain's budget
    std::unique_ptr<Mapping> mapping;

    Charged(std::shared_ptr<Budget> owner, Atomic<std::size_t> Budget::* to, std::size_t count,
            std::unique_ptr<Mapping> mapped = nullptr)
        : budget(std::move(owner)), account(to), pages(count), mapping(std::move(mapped)) {
        (*budget).*account += pages;
    }
    Charged(const Charged&) = delete;
    Charged& operator=(const Charged&) = delete;
    ~Charged() {
        mapping.reset();
        (*budget).*account -= pages;
        budget->domain->give(taken);
    }
};

GuestMemory::GuestMemory(Hypervisor& hypervisor, DomId frontend, std::size_t budget_pages)
    : hypervisor_(hypervisor),
      frontend_(frontend),
      budget_(std::make_shared<Budget>(budget_pages, hypervisor.map_budget())) {}

std::size_t GuestMemory::mapped_pages() const noexcept { return budget_->mapped + budget_->copied; }

GuestError GuestMemory::map(std::uint64_t address, std::uint64_t length, bool writable, std::shared_ptr<Mapping>& keep,
                            std::byte*& data) {
    GrantRange range;
    if (const GuestError error = parse_grant_range(address, length, range)) return error;
    if (range.pages > budget_->limit - budget_->mapped) return {VMSG_XEN_MAP_BUDGET, range.pages};
    const auto pages = static_cast<std::size_t>(range.pages);
    const auto charged = std::make_shared<Charged>(budget_, &Budget::mapped, pages);
    if (!budget_->domain->take(pages)) return {VMSG_XEN_MAP_BUDGET, range.pages};
    charged->taken = pages;
    try {
        charged->mapping = hypervisor_.map(frontend_, range.first, pages, writable);
    } catch (const HostError& error) {
        // A host that is out of memory is not the guest's doing.
        if (error.error() == ENOMEM) return {VMSG_XEN_HOST, ENOMEM};
        return {VMSG_XEN_GRANT_MAP, range.first};
    }
    data = charged->mapping->bytes().data() + range.offset;
    keep = std::shared_ptr<Mapping>(charged, charged->mapping.get());
    return {};
}

GuestError GuestMemory::map_persistent(std::uint64_t address, std::uint64_t length, bool writable) {
    Persistent range{address, length, nullptr, writable, nullptr};
    if (const GuestError error = map(address, length, writable, range.keep, range.data)) return error;
    persistent_.push_back(std::move(range));
    return {};
}

bool GuestMemory::find_persistent(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
    for (std::size_t i = 0; i < persistent_.size(); ++i) {
        if (persistent_[i].find(address, length, writable, out)) {
            last_hit_ = i;
            return true;
        }
    }
    return false;
}

GuestError GuestMemory::resolve_slow(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
    if (find_persistent(address, length, writable, out)) return {};
    std::byte* data = nullptr;
    std::shared_ptr<Mapping> keep;
    if (const GuestError error = map(address, length, writable, keep, data)) return error;
    out = {data, length, std::move(keep)};
    return {};
}

// ---- copies ----

namespace {

// Private bytes in the place of mapped ones.
class Copy final : public Mapping {
  public:
    // Zeroes where a device writes: nothing of ours that it claims to have written reaches a guest. Else the bytes of
    // the guest replace them all, or nobody sees them.
    Copy(std::size_t size, bool zeroed)
        : data_(zeroed ? std::make_unique<std::byte[]>(size) : std::make_unique_for_overwrite<std::byte[]>(size)) {
        bytes_ = {data_.get(), size};
        writable_ = true;
    }

  private:
    std::unique_ptr<std::byte[]> data_;
};

}  // namespace

GuestError GuestMemory::resolve_payload_slow(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
    if (!hypervisor_.can_copy()) return resolve_slow(address, length, writable, out);
    if (find_persistent(address, length, writable, out)) return {};
    GrantRange range;
    if (const GuestError error = parse_grant_range(address, length, range)) return error;
    if (range.pages > std::min(budget_->limit, most_copied_pages) - budget_->copied)
        return {VMSG_XEN_MAP_BUDGET, range.pages};
    const auto charged = std::make_shared<Charged>(budget_, &Budget::copied, static_cast<std::size_t>(range.pages),
                                                   std::make_unique<Copy>(length, writable));
    std::byte* const data = charged->mapping->bytes().data();
    out = {data, length, std::shared_ptr<Mapping>(charged, charged->mapping.get()), address};
    if (!writable) add(to_fetch_, address, out, length);
    return {};
}

void GuestMemory::add(Copies& copies, std::uint64_t address, const Segment& segment, std::uint32_t size) {
    GrantRange range;
    // It was parsed when the segment was made.
    if (parse_grant_range(address, size, range)) return;
    GrantRef ref = range.first;
    std::uint32_t offset = range.offset;
    for (std::uint32_t done = 0; done < size; ++ref, offset = 0) {
        const auto piece = std::min<std::uint32_t>(size - done, static_cast<std::uint32_t>(page_size) - offset);
        copies.pieces.push_back({ref, offset, piece, segment.data + done});
        done += piece;
    }
    copies.keep.push_back(segment.keep);
}

GuestError GuestMemory::carry_out(Copies& copies, CopyDirection direction) {
    if (copies.pieces.empty()) return {};
    std::size_t done = 0;
    try {
        done = hypervisor_.copy(frontend_, copies.pieces, direction);
    } catch (const HostError& error) {
        copies.pieces.clear();
        copies.keep.clear();
        return {VMSG_XEN_HOST, static_cast<std::uint64_t>(error.error())};  // no piece was even tried
    }
    const GuestError error =
        done < copies.pieces.size() ? GuestError{VMSG_XEN_GRANT_MAP, copies.pieces[done].ref} : GuestError{};
    copies.pieces.clear();
    copies.keep.clear();
    return error;
}

GuestError GuestMemory::fetch() { return carry_out(to_fetch_, CopyDirection::from_domain); }

void GuestMemory::put_back(const Segment& copy, std::uint32_t size) {
    if (size != 0) add(to_store_, copy.copy_of, copy, std::min(size, copy.size));
}

GuestError GuestMemory::store() { return carry_out(to_store_, CopyDirection::to_domain); }

void GuestMemory::drop_fetch() noexcept {
    to_fetch_.pieces.clear();
    to_fetch_.keep.clear();
}

void GuestMemory::clear() noexcept {
    persistent_.clear();
    last_hit_ = 0;
    drop_fetch();
    to_store_.pieces.clear();
    to_store_.keep.clear();
}

}  // namespace cpp_ring
