#include "xen_hypervisor.hpp"

#include <cerrno>
#include <string>

#include "errors.hpp"
#include "xen_event_channels.hpp"
#include "xen_grant_allocator.hpp"
#include "xen_grant_table.hpp"

namespace cpp_ring {

XenHypervisor::XenHypervisor(DomId domid, std::size_t map_budget)
    : Hypervisor(map_budget),
      domid_(domid),
      table_(std::make_shared<XenGrantTable>()),
      allocator_(std::make_shared<XenGrantAllocator>()) {}

XenHypervisor::~XenHypervisor() = default;

std::unique_ptr<EventChannels> XenHypervisor::open_event_channels() { return std::make_unique<XenEventChannels>(); }

std::unique_ptr<Mapping> XenHypervisor::map(DomId domain, GrantRef first, std::size_t count, bool writable) {
    return map_grants(table_, domain, first, count, writable);
}

std::unique_ptr<Mapping> XenHypervisor::map_notify(DomId domain, GrantRef ref, std::size_t offset, EventChannels&,
                                                   Port port) {
    return map_grant_notify(table_, domain, ref, offset, port);
}

std::size_t XenHypervisor::copy(DomId domain, std::span<const GrantCopy> pieces, CopyDirection direction) {
    return copy_grants(*table_, domain, pieces, direction);
}

std::unique_ptr<SharedPages> XenHypervisor::share(DomId domain, std::size_t count, bool writable) {
    return share_pages(allocator_, domain, count, writable);
}

std::unique_ptr<SharedPages> XenHypervisor::share_notify(DomId domain, bool writable, std::size_t offset,
                                                         EventChannels&, Port port) {
    return share_page_notify(allocator_, domain, writable, offset, port);
}

}  // namespace cpp_ring
