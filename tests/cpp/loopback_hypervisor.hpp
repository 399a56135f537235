// A machine inside one process: domains, grants and event channels with Xen's rules, so that a backend and a frontend
// run against each other in two threads of a test. Counts what is held, fails on demand.
#pragma once

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "file_descriptor.hpp"
#include "hypervisor.hpp"
#include "shared.hpp"
#include "virtio_msg_xen.h"

namespace cpp_ring::test {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool thread_sanitizer = true;
#else
inline constexpr bool thread_sanitizer = false;
#endif

class LoopbackMachine {
  public:
    // The ordinary kind maps as a real hypervisor does: a view of its own, read-only if asked so, gone when unmapped.
    // With one_view the frontend's memory is handed out: ThreadSanitizer sees no race between two views of a page.
    explicit LoopbackMachine(bool one_view = thread_sanitizer) : one_view_(one_view) {}

  private:
    friend class LoopbackHypervisor;

    // Pages granted by one share(); lives until grantor and grantees have let go of it.
    struct Block {
        explicit Block(std::size_t count) : fd(::memfd_create("loopback", MFD_CLOEXEC)), size(count * page_size) {
            if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) throw HostError(errno, "memfd");
            void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
            if (data == MAP_FAILED) throw HostError(errno, "mmap");
            base = static_cast<std::byte*>(data);
        }
        ~Block() { ::munmap(base, size); }
        Block(const Block&) = delete;
        Block& operator=(const Block&) = delete;

        FileDescriptor fd;
        std::size_t size;
        std::byte* base = nullptr;
    };
    struct Grant {
        std::shared_ptr<Block> block;
        std::size_t page;
        DomId grantee;
        bool writable;
    };

    using Address = std::pair<DomId, Port>;
    struct Handle {
        virtual void refresh() noexcept = 0;
    };
    struct Channel {
        Handle* owner;
        DomId remote;
        std::optional<Port> remote_port;  // none: unbound, offered to `remote`
        bool pending = false;
        bool masked = false;
    };

    // All below with the lock held.
    void raise(Address at);
    void close(Address at);

    const bool one_view_;
    std::mutex mutex_;
    std::set<DomId> domains_;
    std::map<std::pair<DomId, GrantRef>, Grant> grants_;
    std::map<Address, Channel> channels_;
    GrantRef next_ref_ = 8;
    Port next_port_ = 1;
};

inline void LoopbackMachine::raise(Address at) {
    const auto found = channels_.find(at);
    if (found == channels_.end()) return;
    found->second.pending = true;
    found->second.owner->refresh();
}

inline void LoopbackMachine::close(Address at) {
    const auto found = channels_.find(at);
    if (found->second.remote_port) {
        // The other end is offered anew, as EVTCHNOP_close leaves it.
        const auto peer = channels_.find({found->second.remote, *found->second.remote_port});
        if (peer != channels_.end()) peer->second.remote_port.reset();
    }
    channels_.erase(found);
}

// One domain's way in. Destroyed before its machine, after everything that it gave out.
class LoopbackHypervisor final : public Hypervisor {
  public:
    LoopbackHypervisor(LoopbackMachine& machine, DomId domain) : machine_(machine), domain_(domain) {
        const std::lock_guard lock(machine_.mutex_);
        machine_.domains_.insert(domain);
    }

    // Calls that may fail are counted over all methods; the fail_at-th from where a test set `calls` to 0 does. Read
    // and written while no other thread uses this domain.
    std::size_t calls = 0;
    std::size_t fail_at = 0;
    bool out_of_memory = false;  // it fails by std::bad_alloc, not by HostError

    // What this domain holds now.
    [[nodiscard]] std::size_t mapped_pages() const { return locked(mapped_pages_); }
    [[nodiscard]] std::size_t mappings() const { return locked(mappings_); }
    [[nodiscard]] std::size_t open_handles() const { return locked(handles_); }
    [[nodiscard]] std::size_t ports() const {
        const std::lock_guard lock(machine_.mutex_);
        std::size_t count = 0;
        for (const auto& entry : machine_.channels_) count += entry.first.first == domain_ ? 1 : 0;
        return count;
    }
    [[nodiscard]] std::size_t granted_pages() const {
        const std::lock_guard lock(machine_.mutex_);
        std::size_t count = 0;
        for (const auto& entry : machine_.grants_) count += entry.first.first == domain_ ? 1 : 0;
        return count;
    }

    [[nodiscard]] DomId domid() const noexcept override { return domain_; }

    [[nodiscard]] std::unique_ptr<EventChannels> open_event_channels() override {
        const std::lock_guard lock(machine_.mutex_);
        count_call();
        return std::make_unique<Channels>(*this);
    }
    [[nodiscard]] std::unique_ptr<Mapping> map(DomId domain, GrantRef first, std::size_t count,
                                               bool writable) override {
        const std::lock_guard lock(machine_.mutex_);
        count_call();
        return std::make_unique<View>(*this, find(domain, first, count, writable), writable, std::nullopt);
    }
    [[nodiscard]] std::unique_ptr<Mapping> map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                      EventChannels& /*events*/, Port port) override {
        const std::lock_guard lock(machine_.mutex_);
        count_call();
        return std::make_unique<View>(*this, find(domain, ref, 1, true), true, Death{offset, port});
    }
    [[nodiscard]] std::unique_ptr<SharedPages> share(DomId domain, std::size_t count, bool writable) override {
        const std::lock_guard lock(machine_.mutex_);
        count_call();
        return std::make_unique<Pages>(*this, domain, count, writable, std::nullopt);
    }
    [[nodiscard]] std::unique_ptr<SharedPages> share_notify(DomId domain, bool writable, std::size_t offset,
                                                            EventChannels& /*events*/, Port port) override {
        const std::lock_guard lock(machine_.mutex_);
        count_call();
        return std::make_unique<Pages>(*this, domain, 1, writable, Death{offset, port});
    }

  private:
    using Grant = LoopbackMachine::Grant;
    using Block = LoopbackMachine::Block;

    // What the kernel does when a page goes: a byte is cleared, a port is notified.
    struct Death {
        std::size_t offset;
        Port port;
    };
    void die(std::byte* page, const Death& death) {
        SharedMemory::store_release(reinterpret_cast<std::uint8_t*>(page + death.offset), std::uint8_t{VMSG_XEN_DEAD});
        const auto found = machine_.channels_.find({domain_, death.port});
        if (found != machine_.channels_.end() && found->second.remote_port)
            machine_.raise({found->second.remote, *found->second.remote_port});
    }

    class Channels final : public EventChannels, private LoopbackMachine::Handle {
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
            if (peer == machine_.channels_.end() || peer->second.remote != domain_)
                throw HostError(EINVAL, "not offered");
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

    class View final : public Mapping {
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

    class Pages final : public SharedPages {
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

    void count_call() {
        if (++calls != fail_at) return;
        if (out_of_memory) throw std::bad_alloc();
        throw HostError(EIO, "told to fail");
    }
    [[nodiscard]] std::vector<Grant> find(DomId domain, GrantRef first, std::size_t count, bool writable) const {
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
    [[nodiscard]] std::size_t locked(const std::size_t& value) const {
        const std::lock_guard lock(machine_.mutex_);
        return value;
    }

    LoopbackMachine& machine_;
    DomId domain_;
    std::size_t mapped_pages_ = 0;
    std::size_t mappings_ = 0;
    std::size_t handles_ = 0;
};

}  // namespace cpp_ring::test
