#include "xen_event_channels.hpp"

#include <fcntl.h>
extern "C" {  // the header itself does not say so
#include <xenevtchn.h>
}

#include <cerrno>
#include <string>

#include "errors.hpp"
#include "xen_quiet_logger.hpp"

namespace cpp_ring {

void XenEventChannels::Close::operator()(xenevtchn_handle* handle) const noexcept { xenevtchn_close(handle); }

XenEventChannels::XenEventChannels() : handle_(xenevtchn_open(xen_quiet_logger(), 0)) {
    if (!handle_) throw HostError(errno, "cannot open /dev/xen/evtchn");
    // xenevtchn_pending() is a read: with this it needs no poll() before it.
    const int flags = ::fcntl(fd(), F_GETFL);
    if (flags < 0 || ::fcntl(fd(), F_SETFL, flags | O_NONBLOCK) != 0)
        throw HostError(errno, "cannot set up /dev/xen/evtchn");
}

int XenEventChannels::fd() const noexcept { return xenevtchn_fd(handle_.get()); }

Port XenEventChannels::alloc_unbound(DomId remote) {
    const auto port = xenevtchn_bind_unbound_port(handle_.get(), remote);
    if (port < 0) throw HostError(errno, "cannot offer a port to domain " + std::to_string(remote));
    return static_cast<Port>(port);
}

Port XenEventChannels::bind_interdomain(DomId remote, Port remote_port) {
    // A backend's handle reaches its frontend's domain only, from here on. Linux takes no restriction to domain 0, and
    // offers no port (a frontend's business) on a handle that has one.
    if (!restricted_ && remote != 0) {
        if (xenevtchn_restrict(handle_.get(), remote) != 0)
            throw HostError(errno, "cannot restrict /dev/xen/evtchn to domain " + std::to_string(remote));
        restricted_ = true;
    }
    const auto port = xenevtchn_bind_interdomain(handle_.get(), remote, remote_port);
    if (port < 0)
        throw HostError(errno,
                        "cannot bind to port " + std::to_string(remote_port) + " of domain " + std::to_string(remote));
    return static_cast<Port>(port);
}

void XenEventChannels::unbind(Port port) noexcept { xenevtchn_unbind(handle_.get(), port); }

void XenEventChannels::notify(Port port) noexcept { xenevtchn_notify(handle_.get(), port); }

std::optional<Port> XenEventChannels::pending() noexcept {
    const auto port = xenevtchn_pending(handle_.get());
    if (port < 0) return std::nullopt;
    return static_cast<Port>(port);
}

void XenEventChannels::unmask(Port port) noexcept { xenevtchn_unmask(handle_.get(), port); }

}  // namespace cpp_ring
