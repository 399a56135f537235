#include "xen_grant_table.hpp"

#include <sys/mman.h>
extern "C" {  // the header itself does not say so
#include <xengnttab.h>
}

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "xen_quiet_logger.hpp"

namespace cpp_ring {
namespace {

// As many as a domain's grant table has by default (64 frames of 512 entries), twice.
constexpr std::size_t most_mapped_pages = 65536;

class XenMapping final : public Mapping {
  public:
    // Takes over `start`, which the library mapped; nullptr, with errno, if it could not.
    XenMapping(std::shared_ptr<XenGrantTable> table, void* start, std::size_t count, bool writable)
        : table_(std::move(table)), handle_(table_->handle()) {
        bytes_ = {static_cast<std::byte*>(start), count * page_size};
        writable_ = writable;
    }
    XenMapping(const XenMapping&) = delete;
    XenMapping& operator=(const XenMapping&) = delete;
    // Only whole: munmap of a part would leave the grants mapped in the kernel.
    ~XenMapping() override {
        xengnttab_unmap(handle_, bytes_.data(), static_cast<std::uint32_t>(bytes_.size() / page_size));
    }

  private:
    std::shared_ptr<XenGrantTable> table_;
    xengntdev_handle* handle_;  // the table's
};

int protection(bool writable) { return writable ? PROT_READ | PROT_WRITE : PROT_READ; }

std::unique_ptr<Mapping> mapped(std::shared_ptr<XenGrantTable> table, void* start, DomId domain, GrantRef first,
                                std::size_t count, bool writable) {
    if (start == nullptr)
        throw HostError(errno, "cannot map pages of domain " + std::to_string(domain) + ", " + std::to_string(count) +
                                   " from reference " + std::to_string(first));
    return std::make_unique<XenMapping>(std::move(table), start, count, writable);
}

}  // namespace

void XenGrantTable::Close::operator()(xengntdev_handle* handle) const noexcept { xengnttab_close(handle); }

XenGrantTable::XenGrantTable() : handle_(xengnttab_open(xen_quiet_logger(), 0)) {
    if (!handle_) error_ = errno;
}

xengntdev_handle* XenGrantTable::handle() const {
    if (!handle_) throw HostError(error_, "cannot open /dev/xen/gntdev");
    return handle_.get();
}

std::unique_ptr<Mapping> map_grants(std::shared_ptr<XenGrantTable> table, DomId domain, GrantRef first,
                                    std::size_t count, bool writable) {
    if (count == 0 || count > most_mapped_pages) throw HostError(EINVAL, std::to_string(count) + " pages");
    std::vector<std::uint32_t> refs(count);
    std::iota(refs.begin(), refs.end(), first);  // past 2^32 it wraps to references that the domain has not granted
    void* const start = xengnttab_map_domain_grant_refs(table->handle(), static_cast<std::uint32_t>(count), domain,
                                                        refs.data(), protection(writable));
    return mapped(std::move(table), start, domain, first, count, writable);
}

std::unique_ptr<Mapping> map_grant_notify(std::shared_ptr<XenGrantTable> table, DomId domain, GrantRef ref,
                                          std::size_t offset, Port port) {
    if (offset >= page_size) throw HostError(EINVAL, "offset " + std::to_string(offset) + " in a page");
    void* const start = xengnttab_map_grant_ref_notify(table->handle(), domain, ref, protection(true),
                                                       static_cast<std::uint32_t>(offset), port);
    return mapped(std::move(table), start, domain, ref, 1, true);
}

std::size_t copy_grants(const XenGrantTable& table, DomId domain, std::span<const GrantCopy> pieces,
                        CopyDirection direction) {
    std::vector<xengnttab_grant_copy_segment_t> segments(pieces.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const GrantCopy& piece = pieces[i];
        xengnttab_grant_copy_segment_t& segment = segments[i];
        const bool from = direction == CopyDirection::from_domain;
        auto& theirs = from ? segment.source : segment.dest;
        auto& ours = from ? segment.dest : segment.source;
        // Both fit: a piece lies within one page.
        theirs.foreign = {piece.ref, static_cast<std::uint16_t>(piece.offset), domain};
        ours.virt = piece.ours;
        segment.len = static_cast<std::uint16_t>(piece.size);
        segment.flags = from ? GNTCOPY_source_gref : GNTCOPY_dest_gref;
    }
    if (xengnttab_grant_copy(table.handle(), static_cast<std::uint32_t>(segments.size()), segments.data()) != 0)
        throw HostError(errno,
                        "cannot copy " + std::to_string(pieces.size()) + " pieces of domain " + std::to_string(domain));
    const auto bad = std::find_if(segments.begin(), segments.end(), [](const auto& s) { return s.status != 0; });
    return static_cast<std::size_t>(bad - segments.begin());
}

}  // namespace cpp_ring
