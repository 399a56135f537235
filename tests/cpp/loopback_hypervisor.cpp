#include "loopback_hypervisor.hpp"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <utility>

#include "shared.hpp"
#include "virtio_msg_xen.h"

namespace cpp_ring::test {

// ---- the machine ----

LoopbackMachine::Block::Block(std::size_t count)
    : fd(::memfd_create("loopback", MFD_CLOEXEC)), size(count * page_size) {
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) throw HostError(errno, "memfd");
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) throw HostError(errno, "mmap");
    base = static_cast<std::byte*>(data);
}
LoopbackMachine::Block::~Block() { ::munmap(base, size); }

void LoopbackMachine::raise(Address at) {
    const auto found = channels_.find(at);
    if (found == channels_.end()) return;
    found->second.pending = true;
    found->second.owner->refresh();
}

void LoopbackMachine::close(Address at) {
    const auto found = channels_.find(at);
    if (found->second.remote_port) {
        // The other end is offered anew, as EVTCHNOP_close leaves it.
        const auto peer = channels_.find({found->second.remote, *found->second.remote_port});
        if (peer != channels_.end()) peer->second.remote_port.reset();
    }
    channels_.erase(found);
}

// ---- what a domain holds ----

class LoopbackHypervisor::Channels final : public EventChannels, private LoopbackMachine::Handle {
  public:
    explicit Channels(LoopbackHypervisor& owner)
        : owner_(owner),
          machine_(owner.machine_),
          domain_(owner.domain_),
          fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        if (!fd_) throw HostError(errno, "eventfd");
        ++owner_.handles_;
    }
    ~Channels() override {
        const std::lock_guard lock(machine_.mutex_);
        for (const Port port : ports_) machine_.close({domain_, port});
        --owner_.handles_;
    }

    [[nodiscard]] int fd() const noexcept override { return fd_.get(); }
    [[nodiscard]] Port alloc_unbound(DomId remote) override {
        const std::lock_guard lock(machine_.mutex_);
        owner_.count_call();
        return add({this, remote, std::nullopt});
    }
    [[nodiscard]] Port bind_interdomain(DomId remote, Port remote_port) override {
        const std::lock_guard lock(machine_.mutex_);
        owner_.count_call();
        if (!machine_.domains_.contains(remote)) throw HostError(ENOENT, "no such domain");
        const auto peer = machine_.channels_.find({remote, remote_port});
        if (peer == machine_.channels_.end() || peer->second.remote != domain_) throw HostError(EINVAL, "not offered");
        if (peer->second.remote_port) throw HostError(EBUSY, "bound already");
        const Port port = add({this, remote, remote_port});
        peer->second.remote_port = port;
        machine_.raise({domain_, port});  // Xen does, since events may have been lost before
        return port;
    }
    void unbind(Port port) noexcept override {
        const std::lock_guard lock(machine_.mutex_);
        if (ports_.erase(port) != 0) machine_.close({domain_, port});
        refresh();
    }
    void notify(Port port) noexcept override {
        const std::lock_guard lock(machine_.mutex_);
        if (!ports_.contains(port)) return;
        const auto& own = machine_.channels_.at({domain_, port});
        if (own.remote_port) machine_.raise({own.remote, *own.remote_port});
    }
    [[nodiscard]] std::optional<Port> pending() noexcept override {
        const std::lock_guard lock(machine_.mutex_);
        for (const Port port : ports_) {
            auto& channel = machine_.channels_.at({domain_, port});
            if (!channel.pending || channel.masked) continue;
            channel.pending = false;
            channel.masked = true;
            refresh();
            return port;
        }
        return std::nullopt;
    }
    void unmask(Port port) noexcept override {
        const std::lock_guard lock(machine_.mutex_);
        if (!ports_.contains(port)) return;
        machine_.channels_.at({domain_, port}).masked = false;
        refresh();
    }

  private:
    // The descriptor is readable while a port that is not masked is pending. With the lock held.
    void refresh() noexcept override {
        bool ready = false;
        for (const Port port : ports_) {
            const auto& channel = machine_.channels_.at({domain_, port});
            ready = ready || (channel.pending && !channel.masked);
        }
        if (ready == readable_) return;
        readable_ = ready;
        std::uint64_t value = 1;
        [[maybe_unused]] const auto size =
            ready ? ::write(fd_.get(), &value, sizeof value) : ::read(fd_.get(), &value, sizeof value);
    }
    Port add(LoopbackMachine::Channel channel) {
        const Port port = machine_.next_port_++;
        machine_.channels_.emplace(LoopbackMachine::Address{domain_, port}, channel);
        ports_.insert(port);
        return port;
    }

    LoopbackHypervisor& owner_;
    LoopbackMachine& machine_;
    DomId domain_;
    FileDescriptor fd_;
    bool readable_ = false;
    std::set<Port> ports_;
};

class LoopbackHypervisor::View final : public Mapping {
  public:
    View(LoopbackHypervisor& owner, std::vector<Grant> grants, bool writable, std::optional<Death> death)
        : owner_(owner), grants_(std::move(grants)), death_(death) {
        bytes_ = {place(writable), grants_.size() * page_size};
        writable_ = writable;
        owner_.mapped_pages_ += grants_.size();
        ++owner_.mappings_;
    }
    ~View() override {
        const std::lock_guard lock(owner_.machine_.mutex_);
        if (death_) owner_.die(bytes_.data(), *death_);
        if (!owner_.machine_.one_view_) ::munmap(bytes_.data(), bytes_.size());
        owner_.mapped_pages_ -= grants_.size();
        --owner_.mappings_;
    }

  private:
    [[nodiscard]] bool contiguous(std::size_t i) const {
        return grants_[i].block == grants_[0].block && grants_[i].page == grants_[0].page + i;
    }
    std::byte* place(bool writable) {
        if (owner_.machine_.one_view_) {
            for (std::size_t i = 0; i < grants_.size(); ++i)
                if (!contiguous(i)) throw HostError(ENOTSUP, "one view of two blocks");
            return grants_[0].block->base + grants_[0].page * page_size;
        }
        const std::size_t size = grants_.size() * page_size;
        void* at = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) throw HostError(errno, "mmap");
        const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
        for (std::size_t i = 0; i < grants_.size(); ++i) {
            const Grant& grant = grants_[i];
            std::byte* target = static_cast<std::byte*>(at) + i * page_size;
            if (::mmap(target, page_size, protection, MAP_SHARED | MAP_FIXED, grant.block->fd.get(),
                       static_cast<off_t>(grant.page * page_size)) == MAP_FAILED) {
                const int error = errno;
                ::munmap(at, size);
                throw HostError(error, "mmap");
            }
        }
        return static_cast<std::byte*>(at);
    }

    LoopbackHypervisor& owner_;
    std::vector<Grant> grants_;  // keeps the pages, whatever the grantor does
    std::optional<Death> death_;
};

class LoopbackHypervisor::Pages final : public SharedPages {
  public:
    Pages(LoopbackHypervisor& owner, DomId grantee, std::size_t count, bool writable, std::optional<Death> death)
        : owner_(owner), block_(std::make_shared<Block>(count)), count_(count), death_(death) {
        bytes_ = {block_->base, block_->size};
        first_ref_ = owner_.machine_.next_ref_;
        for (std::size_t i = 0; i < count; ++i)
            owner_.machine_.grants_.emplace(std::pair{owner_.domain_, owner_.machine_.next_ref_++},
                                            Grant{block_, i, grantee, writable});
    }
    ~Pages() override {
        const std::lock_guard lock(owner_.machine_.mutex_);
        if (death_) owner_.die(bytes_.data(), *death_);
        for (std::size_t i = 0; i < count_; ++i)
            owner_.machine_.grants_.erase({owner_.domain_, first_ref_ + static_cast<GrantRef>(i)});
    }

  private:
    LoopbackHypervisor& owner_;
    std::shared_ptr<Block> block_;
    std::size_t count_;
    std::optional<Death> death_;
};

// ---- a domain's way in ----

LoopbackHypervisor::LoopbackHypervisor(LoopbackMachine& machine, DomId domain) : machine_(machine), domain_(domain) {
    const std::lock_guard lock(machine_.mutex_);
    machine_.domains_.insert(domain);
}

std::size_t LoopbackHypervisor::ports() const {
    const std::lock_guard lock(machine_.mutex_);
    std::size_t count = 0;
    for (const auto& entry : machine_.channels_) count += entry.first.first == domain_ ? 1 : 0;
    return count;
}

std::size_t LoopbackHypervisor::granted_pages() const {
    const std::lock_guard lock(machine_.mutex_);
    std::size_t count = 0;
    for (const auto& entry : machine_.grants_) count += entry.first.first == domain_ ? 1 : 0;
    return count;
}

std::unique_ptr<EventChannels> LoopbackHypervisor::open_event_channels() {
    const std::lock_guard lock(machine_.mutex_);
    count_call();
    return std::make_unique<Channels>(*this);
}

std::unique_ptr<Mapping> LoopbackHypervisor::map(DomId domain, GrantRef first, std::size_t count, bool writable) {
    const std::lock_guard lock(machine_.mutex_);
    count_call();
    return std::make_unique<View>(*this, find(domain, first, count, writable), writable, std::nullopt);
}

std::unique_ptr<Mapping> LoopbackHypervisor::map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                        EventChannels& /*events*/, Port port) {
    const std::lock_guard lock(machine_.mutex_);
    count_call();
    return std::make_unique<View>(*this, find(domain, ref, 1, true), true, Death{offset, port});
}

std::size_t LoopbackHypervisor::copy(DomId domain, std::span<const GrantCopy> pieces, CopyDirection direction) {
    const std::lock_guard lock(machine_.mutex_);
    ++copy_calls;
    count_call();
    const bool to = direction == CopyDirection::to_domain;
    for (std::size_t i = 0; i < pieces.size(); ++i) try {
            const Grant grant = find(domain, pieces[i].ref, 1, to).front();
            std::byte* const theirs = grant.block->base + grant.page * page_size + pieces[i].offset;
            if (to)
                SharedMemory::copy_to(theirs, pieces[i].ours, pieces[i].size);
            else
                SharedMemory::copy_from(pieces[i].ours, theirs, pieces[i].size);
        } catch (const HostError&) {
            return i;
        }
    return pieces.size();
}

std::unique_ptr<SharedPages> LoopbackHypervisor::share(DomId domain, std::size_t count, bool writable) {
    const std::lock_guard lock(machine_.mutex_);
    count_call();
    return std::make_unique<Pages>(*this, domain, count, writable, std::nullopt);
}

std::unique_ptr<SharedPages> LoopbackHypervisor::share_notify(DomId domain, bool writable, std::size_t offset,
                                                              EventChannels& /*events*/, Port port) {
    const std::lock_guard lock(machine_.mutex_);
    count_call();
    return std::make_unique<Pages>(*this, domain, 1, writable, Death{offset, port});
}

void LoopbackHypervisor::die(std::byte* page, const Death& death) {
    SharedMemory::store_release(reinterpret_cast<std::uint8_t*>(page + death.offset), std::uint8_t{VMSG_XEN_DEAD});
    const auto found = machine_.channels_.find({domain_, death.port});
    if (found != machine_.channels_.end() && found->second.remote_port)
        machine_.raise({found->second.remote, *found->second.remote_port});
}

void LoopbackHypervisor::count_call() {
    if (++calls != fail_at) return;
    if (out_of_memory) throw std::bad_alloc();
    throw HostError(EIO, "told to fail");
}

std::vector<LoopbackMachine::Grant> LoopbackHypervisor::find(DomId domain, GrantRef first, std::size_t count,
                                                             bool writable) const {
    if (count == 0) throw HostError(EINVAL, "count 0");
    std::vector<Grant> grants;
    for (std::uint64_t ref = first; ref < std::uint64_t{first} + count; ++ref) {
        const auto found =
            ref > UINT32_MAX ? machine_.grants_.end() : machine_.grants_.find({domain, static_cast<GrantRef>(ref)});
        if (found == machine_.grants_.end()) throw HostError(ENOENT, "no grant");
        if (found->second.grantee != domain_) throw HostError(EACCES, "granted to another domain");
        if (writable && !found->second.writable) throw HostError(EACCES, "read-only");
        grants.push_back(found->second);
    }
    return grants;
}

std::size_t LoopbackHypervisor::locked(const std::size_t& value) const {
    const std::lock_guard lock(machine_.mutex_);
    return value;
}

}  // namespace cpp_ring::test
