// The real Xen: grants and event channels through /dev/xen, by way of libxengnttab and libxenevtchn.
//
// The frontend's side speaks to /dev/xen/gntalloc itself: a buffer of several pages needs consecutive grant references,
// which libxengntshr cannot promise. After a fork nothing here may be used.
#pragma once

#include <memory>

#include "hypervisor.hpp"

namespace cpp_ring {

class XenGrantTable;
class XenGrantAllocator;

class XenHypervisor final : public Hypervisor {
  public:
    // As `domid`, which is the domain this process runs in. A device that cannot be opened is an error of the call that
    // needs it: a backend needs /dev/xen/gntdev, a frontend /dev/xen/gntalloc.
    explicit XenHypervisor(DomId domid, std::size_t map_budget = default_map_budget);
    XenHypervisor(const XenHypervisor&) = delete;
    XenHypervisor& operator=(const XenHypervisor&) = delete;
    ~XenHypervisor() override;

    [[nodiscard]] DomId domid() const noexcept override { return domid_; }
    [[nodiscard]] std::unique_ptr<EventChannels> open_event_channels() override;
    [[nodiscard]] std::unique_ptr<Mapping> map(DomId domain, GrantRef first, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<Mapping> map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                      EventChannels& events, Port port) override;
    [[nodiscard]] bool can_copy() const noexcept override { return true; }
    [[nodiscard]] std::size_t copy(DomId domain, std::span<const GrantCopy> pieces, CopyDirection direction) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share(DomId domain, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share_notify(DomId domain, bool writable, std::size_t offset,
                                                            EventChannels& events, Port port) override;

  private:
    DomId domid_;
    // Both outlive this while pages do.
    std::shared_ptr<XenGrantTable> table_;
    std::shared_ptr<XenGrantAllocator> allocator_;
};

}  // namespace cpp_ring
