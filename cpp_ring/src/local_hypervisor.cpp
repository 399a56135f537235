#include "local_hypervisor.hpp"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "errors.hpp"
#include "local_broker.hpp"

namespace cpp_ring {
namespace {

// More pages than any domain may grant, few enough that no size below overflows.
constexpr std::size_t max_pages = std::size_t{1} << 20;
static_assert(max_pages <= std::numeric_limits<std::size_t>::max() / page_size);

// Addresses that belong to one mapping, whatever files lie there.
class Region {
  public:
    explicit Region(std::size_t size) : size_(size) {
        data_ = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (data_ == MAP_FAILED) throw HostError(errno, "cannot reserve " + std::to_string(size) + " bytes");
    }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region() { release(); }

    void place(std::size_t offset, const FileDescriptor& fd, std::size_t file_offset, std::size_t size, bool writable) {
        void* const at = static_cast<std::byte*>(data_) + offset;
        const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
        // Not for children: what they inherit would outlive the grant.
        if (::mmap(at, size, protection, MAP_SHARED | MAP_FIXED, fd.get(), static_cast<off_t>(file_offset)) ==
                MAP_FAILED ||
            ::madvise(at, size, MADV_DONTFORK) != 0)
            throw HostError(errno, "cannot map " + std::to_string(size) + " bytes of granted pages");
    }
    void release() noexcept {
        if (size_ != 0) ::munmap(data_, size_);
        size_ = 0;
    }
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(data_), size_}; }

  private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

// What the broker keeps for this process until it is told otherwise.
class Hold {
  public:
    Hold(std::shared_ptr<LocalBroker> broker, LocalOp let_go, std::uint32_t number)
        : broker_(std::move(broker)), let_go_(let_go), number_(number) {}
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold() { broker_->tell(let_go_, number_); }

  private:
    std::shared_ptr<LocalBroker> broker_;
    LocalOp let_go_;
    std::uint32_t number_;
};

class LocalMapping final : public Mapping {
  public:
    LocalMapping(std::shared_ptr<LocalBroker> broker, const LocalReply& reply, std::size_t count, bool writable)
        : hold_(std::move(broker), LocalOp::grant_unmap, reply.value), region_(count * page_size) {
        if (reply.fds.size() != reply.runs.size()) throw HostError(EPROTO, "the broker sent the wrong descriptors");
        std::size_t offset = 0;
        for (std::size_t i = 0; i < reply.runs.size(); ++i) {
            const std::size_t size = std::size_t{reply.runs[i].pages} * page_size;
            if (size > count * page_size - offset) throw HostError(EPROTO, "the broker sent too many pages");
            region_.place(offset, reply.fds[i], std::size_t{reply.runs[i].page} * page_size, size, writable);
            offset += size;
        }
        if (offset != count * page_size) throw HostError(EPROTO, "the broker sent too few pages");
        bytes_ = region_.bytes();
        writable_ = writable;
    }

  private:
    Hold hold_;
    Region region_;  // after hold_, so that it is unmapped before the broker hears of it
};

class LocalSharedPages final : public SharedPages {
  public:
    LocalSharedPages(std::shared_ptr<LocalBroker> broker, const LocalReply& reply, std::size_t count)
        : hold_(std::move(broker), LocalOp::grant_unshare, reply.value), region_(count * page_size) {
        if (reply.fds.size() != 1) throw HostError(EPROTO, "the broker sent the wrong descriptors");
        region_.place(0, reply.fds[0], 0, count * page_size, true);
        bytes_ = region_.bytes();
        first_ref_ = reply.value;
    }

  private:
    Hold hold_;
    Region region_;
};

std::string range(GrantRef first, std::size_t count) {
    return std::to_string(count) + " from reference " + std::to_string(first);
}

void check_count(std::size_t count) {
    if (count == 0 || count > max_pages) throw HostError(EINVAL, std::to_string(count) + " pages");
}

// Of one page; the broker would take any offset that its word can carry.
std::uint32_t page_offset(std::size_t offset) {
    if (offset >= page_size) throw HostError(EINVAL, "offset " + std::to_string(offset) + " in a page");
    return static_cast<std::uint32_t>(offset);
}

}  // namespace

// ---- event channels ----

LocalEventChannels::LocalEventChannels(std::shared_ptr<LocalBroker> broker)
    : broker_(std::move(broker)), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (!epoll_) throw HostError(errno, "cannot create an epoll descriptor");
}

LocalEventChannels::~LocalEventChannels() {
    for (std::size_t port = 0; port < sockets_.size(); ++port) unbind(static_cast<Port>(port));
}

Port LocalEventChannels::alloc_unbound(DomId remote) {
    LocalReply reply = broker_->call(LocalOp::evtchn_alloc_unbound, {remote},
                                     "cannot offer a port to domain " + std::to_string(remote));
    return add(std::move(reply));
}

Port LocalEventChannels::bind_interdomain(DomId remote, Port remote_port) {
    LocalReply reply =
        broker_->call(LocalOp::evtchn_bind_interdomain, {remote, remote_port},
                      "cannot bind to port " + std::to_string(remote_port) + " of domain " + std::to_string(remote));
    return add(std::move(reply));
}

Port LocalEventChannels::add(LocalReply reply) {
    const Port port = reply.value;
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = port;
    try {
        if (reply.fds.size() != 1) throw HostError(EPROTO, "the broker sent the wrong descriptors");
        if (port >= sockets_.size()) sockets_.resize(port + 1);
        if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, reply.fds[0].get(), &event) != 0)
            throw HostError(errno, "cannot watch port " + std::to_string(port));
    } catch (...) {
        broker_->tell(LocalOp::evtchn_close, port);
        throw;
    }
    sockets_[port] = std::move(reply.fds[0]);
    return port;
}

void LocalEventChannels::unbind(Port port) noexcept {
    const int socket = socket_of(port);
    if (socket < 0) return;
    // Closing alone would not do: the broker has the same socket open.
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket, nullptr);
    {
        const FileDescriptor closed = std::move(sockets_[port]);
    }
    broker_->tell(LocalOp::evtchn_close, port);
}

void LocalEventChannels::notify(Port port) noexcept {
    // A full socket means that the peer is pending already. MSG_DONTWAIT, not O_NONBLOCK: nobody else can take it away.
    const int socket = socket_of(port);
    if (socket >= 0) ::send(socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

std::optional<Port> LocalEventChannels::pending() noexcept {
    epoll_event event{};
    if (::epoll_wait(epoll_.get(), &event, 1, 0) != 1) return std::nullopt;
    const auto port = static_cast<Port>(event.data.u64);
    const int socket = socket_of(port);
    // A peer that shut its end down would have this port pending for ever: once is enough.
    if (socket >= 0 && ::recv(socket, cleared_.data(), cleared_.size(), MSG_DONTWAIT) == 0)
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket, nullptr);
    return port;
}

void LocalEventChannels::unmask(Port port) noexcept {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLONESHOT;
    event.data.u64 = port;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, socket_of(port), &event);
}

// ---- grants ----

LocalHypervisor::LocalHypervisor(const std::string& directory, DomId domid, std::size_t map_budget)
    : Hypervisor(map_budget), broker_(std::make_shared<LocalBroker>(directory, domid)), domid_(domid) {}

std::unique_ptr<EventChannels> LocalHypervisor::open_event_channels() {
    return std::make_unique<LocalEventChannels>(broker_);
}

std::unique_ptr<Mapping> LocalHypervisor::map(DomId domain, GrantRef first, std::size_t count, bool writable) {
    return map_pages(domain, first, count, writable, {});
}

std::unique_ptr<Mapping> LocalHypervisor::map_notify(DomId domain, GrantRef ref, std::size_t offset, EventChannels&,
                                                     Port port) {
    return map_pages(domain, ref, 1, true, {local_notify, page_offset(offset), port});
}

std::unique_ptr<SharedPages> LocalHypervisor::share(DomId domain, std::size_t count, bool writable) {
    return share_pages(domain, count, writable, {});
}

std::unique_ptr<SharedPages> LocalHypervisor::share_notify(DomId domain, bool writable, std::size_t offset,
                                                           EventChannels&, Port port) {
    return share_pages(domain, 1, writable, {local_notify, page_offset(offset), port});
}

std::unique_ptr<Mapping> LocalHypervisor::map_pages(DomId domain, GrantRef first, std::size_t count, bool writable,
                                                    const Notify& notify) {
    check_count(count);
    const LocalReply reply =
        broker_->call(LocalOp::grant_map,
                      {domain, first, static_cast<std::uint32_t>(count), notify.flags | (writable ? local_writable : 0),
                       notify.offset, notify.port},
                      "cannot map pages of domain " + std::to_string(domain) + ", " + range(first, count));
    return std::make_unique<LocalMapping>(broker_, reply, count, writable);
}

std::unique_ptr<SharedPages> LocalHypervisor::share_pages(DomId domain, std::size_t count, bool writable,
                                                          const Notify& notify) {
    check_count(count);
    const LocalReply reply =
        broker_->call(LocalOp::grant_share,
                      {domain, static_cast<std::uint32_t>(count), notify.flags | (writable ? local_writable : 0),
                       notify.offset, notify.port},
                      "cannot grant " + std::to_string(count) + " pages to domain " + std::to_string(domain));
    return std::make_unique<LocalSharedPages>(broker_, reply, count);
}

}  // namespace cpp_ring
