// Event channels of Xen: one handle on /dev/xen/evtchn for each thread.
#pragma once

#include <memory>

#include "hypervisor.hpp"

struct xenevtchn_handle;

namespace cpp_ring {

class XenEventChannels final : public EventChannels {
  public:
    XenEventChannels();  // throws HostError

    [[nodiscard]] int fd() const noexcept override;
    [[nodiscard]] Port alloc_unbound(DomId remote) override;
    [[nodiscard]] Port bind_interdomain(DomId remote, Port remote_port) override;
    void unbind(Port port) noexcept override;
    void notify(Port port) noexcept override;
    [[nodiscard]] std::optional<Port> pending() noexcept override;
    void unmask(Port port) noexcept override;

  private:
    struct Close {
        void operator()(xenevtchn_handle* handle) const noexcept;
    };
    std::unique_ptr<xenevtchn_handle, Close> handle_;
    bool restricted_ = false;
};

}  // namespace cpp_ring
