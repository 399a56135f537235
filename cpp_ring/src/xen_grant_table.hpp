// Grants of other domains, mapped by way of libxengnttab.
#pragma once

#include <memory>

#include "hypervisor.hpp"

struct xengntdev_handle;

namespace cpp_ring {

// One handle for the process; its calls are one system call each and may come from any thread.
class XenGrantTable {
  public:
    XenGrantTable();

    // Throws HostError if it could not be opened.
    [[nodiscard]] xengntdev_handle* handle() const;

  private:
    struct Close {
        void operator()(xengntdev_handle* handle) const noexcept;
    };
    std::unique_ptr<xengntdev_handle, Close> handle_;
    int error_ = 0;  // why there is no handle
};

// As Hypervisor::map and map_notify.
[[nodiscard]] std::unique_ptr<Mapping> map_grants(std::shared_ptr<XenGrantTable> table, DomId domain, GrantRef first,
                                                  std::size_t count, bool writable);
[[nodiscard]] std::unique_ptr<Mapping> map_grant_notify(std::shared_ptr<XenGrantTable> table, DomId domain,
                                                        GrantRef ref, std::size_t offset, Port port);

// As Hypervisor::copy: one system call, whatever the number of pieces.
[[nodiscard]] std::size_t copy_grants(const XenGrantTable& table, DomId domain, std::span<const GrantCopy> pieces,
                                      CopyDirection direction);

}  // namespace cpp_ring
