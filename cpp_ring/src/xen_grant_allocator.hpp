// Pages of this domain, granted to another one by way of /dev/xen/gntalloc.
#pragma once

#include <memory>

#include "file_descriptor.hpp"
#include "hypervisor.hpp"

namespace cpp_ring {

// One descriptor for the process; what it allocated ends with it.
class XenGrantAllocator {
  public:
    XenGrantAllocator();

    // Throws HostError if it could not be opened.
    [[nodiscard]] int fd() const;

  private:
    FileDescriptor fd_;
    int error_ = 0;  // why there is no descriptor
};

// As Hypervisor::share and share_notify. Throws HostError: ENOSPC when the driver's limit is reached, or no run of
// `count` consecutive references is to be had.
[[nodiscard]] std::unique_ptr<SharedPages> share_pages(std::shared_ptr<XenGrantAllocator> allocator, DomId domain,
                                                       std::size_t count, bool writable);
[[nodiscard]] std::unique_ptr<SharedPages> share_page_notify(std::shared_ptr<XenGrantAllocator> allocator, DomId domain,
                                                             bool writable, std::size_t offset, Port port);

}  // namespace cpp_ring
