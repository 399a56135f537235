// The local hypervisor: Xen's rules between ordinary processes, kept by a broker (docs/local.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "file_descriptor.hpp"
#include "hypervisor.hpp"

namespace cpp_ring {

class LocalBroker;
struct LocalReply;

// Event channels of the local hypervisor: a port is a socket whose other end is the peer's port; an event is a byte in
// it. A masked port is one that epoll was told to report once, and has.
class LocalEventChannels final : public EventChannels {
  public:
    explicit LocalEventChannels(std::shared_ptr<LocalBroker> broker);  // throws HostError
    LocalEventChannels(const LocalEventChannels&) = delete;
    LocalEventChannels& operator=(const LocalEventChannels&) = delete;
    ~LocalEventChannels() override;

    [[nodiscard]] int fd() const noexcept override { return epoll_.get(); }
    [[nodiscard]] Port alloc_unbound(DomId remote) override;
    [[nodiscard]] Port bind_interdomain(DomId remote, Port remote_port) override;
    void unbind(Port port) noexcept override;
    void notify(Port port) noexcept override;
    [[nodiscard]] std::optional<Port> pending() noexcept override;
    void unmask(Port port) noexcept override;

  private:
    [[nodiscard]] Port add(LocalReply reply);
    [[nodiscard]] int socket_of(Port port) const noexcept { return port < sockets_.size() ? sockets_[port].get() : -1; }

    std::shared_ptr<LocalBroker> broker_;
    FileDescriptor epoll_;
    std::vector<FileDescriptor> sockets_;  // by port
    std::array<std::byte, 4096> cleared_{};
};

class LocalHypervisor final : public Hypervisor {
  public:
    // As domain `domid` of the machine in `directory`. Throws HostError: ENOENT no such machine or domain.
    LocalHypervisor(const std::string& directory, DomId domid, std::size_t map_budget = default_map_budget);

    [[nodiscard]] DomId domid() const noexcept override { return domid_; }
    [[nodiscard]] std::unique_ptr<EventChannels> open_event_channels() override;
    [[nodiscard]] std::unique_ptr<Mapping> map(DomId domain, GrantRef first, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<Mapping> map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                      EventChannels& events, Port port) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share(DomId domain, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share_notify(DomId domain, bool writable, std::size_t offset,
                                                            EventChannels& events, Port port) override;

  private:
    // When to clear which byte, and whom to tell; flags is 0 or local_notify.
    struct Notify {
        std::uint32_t flags = 0;
        std::uint32_t offset = 0;
        Port port = 0;
    };
    [[nodiscard]] std::unique_ptr<Mapping> map_pages(DomId domain, GrantRef first, std::size_t count, bool writable,
                                                     const Notify& notify);
    [[nodiscard]] std::unique_ptr<SharedPages> share_pages(DomId domain, std::size_t count, bool writable,
                                                           const Notify& notify);

    std::shared_ptr<LocalBroker> broker_;  // outlives this while pages or ports do
    DomId domid_;
};

}  // namespace cpp_ring
