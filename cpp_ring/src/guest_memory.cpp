#include "guest_memory.hpp"

#include <utility>

namespace cpp_ring {

// Shared with every mapping that is charged to it: the last Segment may go after the GuestMemory, on another thread.
struct GuestMemory::Budget {
    explicit Budget(std::size_t pages) : limit(pages) {}

    const std::size_t limit;
    Atomic<std::size_t> used{0};  // only the device's thread adds, so "compare, then add" cannot overshoot
};

struct GuestMemory::Charged {
    std::shared_ptr<Budget> budget;
    std::size_t pages;
    std::unique_ptr<Mapping> mapping;

    Charged(std::shared_ptr<Budget> owner, std::size_t count, std::unique_ptr<Mapping> mapped)
        : budget(std::move(owner)), pages(count), mapping(std::move(mapped)) {
        budget->used += pages;
    }
    Charged(const Charged&) = delete;
    Charged& operator=(const Charged&) = delete;
    ~Charged() {
        mapping.reset();
        budget->used -= pages;
    }
};

GuestMemory::GuestMemory(Hypervisor& hypervisor, DomId frontend, std::size_t budget_pages)
    : hypervisor_(hypervisor), frontend_(frontend), budget_(std::make_shared<Budget>(budget_pages)) {}

std::size_t GuestMemory::mapped_pages() const noexcept { return budget_->used; }

GuestError GuestMemory::map(std::uint64_t address, std::uint64_t length, bool writable, std::shared_ptr<Mapping>& keep,
                            std::byte*& data) {
    GrantRange range;
    if (const GuestError error = parse_grant_range(address, length, range)) return error;
    if (range.pages > budget_->limit - budget_->used) return {VMSG_XEN_MAP_BUDGET, range.pages};
    const auto pages = static_cast<std::size_t>(range.pages);
    std::unique_ptr<Mapping> mapping;
    try {
        mapping = hypervisor_.map(frontend_, range.first, pages, writable);
    } catch (const HostError&) {
        return {VMSG_XEN_GRANT_MAP, range.first};
    }
    data = mapping->bytes().data() + range.offset;
    const auto charged = std::make_shared<Charged>(budget_, pages, std::move(mapping));
    keep = std::shared_ptr<Mapping>(charged, charged->mapping.get());
    return {};
}

GuestError GuestMemory::map_persistent(std::uint64_t address, std::uint64_t length, bool writable) {
    Persistent range{address, length, nullptr, writable, nullptr};
    if (const GuestError error = map(address, length, writable, range.keep, range.data)) return error;
    persistent_.push_back(std::move(range));
    return {};
}

GuestError GuestMemory::resolve_slow(std::uint64_t address, std::uint32_t length, bool writable, Segment& out) {
    for (std::size_t i = 0; i < persistent_.size(); ++i) {
        if (persistent_[i].find(address, length, writable, out)) {
            last_hit_ = i;
            return {};
        }
    }
    std::byte* data = nullptr;
    std::shared_ptr<Mapping> keep;
    if (const GuestError error = map(address, length, writable, keep, data)) return error;
    out = {data, length, std::move(keep)};
    return {};
}

void GuestMemory::clear() noexcept {
    persistent_.clear();
    last_hit_ = 0;
}

}  // namespace cpp_ring
