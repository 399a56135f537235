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
        explicit Block(std::size_t count);
        ~Block();
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

// One domain's way in. Destroyed before its machine, after everything that it gave out.
class LoopbackHypervisor final : public Hypervisor {
  public:
    LoopbackHypervisor(LoopbackMachine& machine, DomId domain);

    // Calls that may fail are counted over all methods; the fail_at-th from where a test set `calls` to 0 does. Read
    // and written while no other thread uses this domain.
    std::size_t calls = 0;
    std::size_t fail_at = 0;
    bool out_of_memory = false;  // it fails by std::bad_alloc, not by HostError
    bool copies = false;         // as Xen does
    std::size_t copy_calls = 0;

    // What this domain holds now.
    [[nodiscard]] std::size_t mapped_pages() const { return locked(mapped_pages_); }
    [[nodiscard]] std::size_t mappings() const { return locked(mappings_); }
    [[nodiscard]] std::size_t open_handles() const { return locked(handles_); }
    [[nodiscard]] std::size_t ports() const;
    [[nodiscard]] std::size_t granted_pages() const;

    [[nodiscard]] DomId domid() const noexcept override { return domain_; }

    [[nodiscard]] std::unique_ptr<EventChannels> open_event_channels() override;
    [[nodiscard]] std::unique_ptr<Mapping> map(DomId domain, GrantRef first, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<Mapping> map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                      EventChannels& /*events*/, Port port) override;
    [[nodiscard]] bool can_copy() const noexcept override { return copies; }
    [[nodiscard]] std::size_t copy(DomId domain, std::span<const GrantCopy> pieces, CopyDirection direction) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share(DomId domain, std::size_t count, bool writable) override;
    [[nodiscard]] std::unique_ptr<SharedPages> share_notify(DomId domain, bool writable, std::size_t offset,
                                                            EventChannels& /*events*/, Port port) override;

  private:
    using Grant = LoopbackMachine::Grant;
    using Block = LoopbackMachine::Block;

    // What the kernel does when a page goes: a byte is cleared, a port is notified.
    struct Death {
        std::size_t offset;
        Port port;
    };
    void die(std::byte* page, const Death& death);

    class Channels;
    class View;
    class Pages;

    void count_call();
    [[nodiscard]] std::vector<Grant> find(DomId domain, GrantRef first, std::size_t count, bool writable) const;
    [[nodiscard]] std::size_t locked(const std::size_t& value) const;

    LoopbackMachine& machine_;
    DomId domain_;
    std::size_t mapped_pages_ = 0;
    std::size_t mappings_ = 0;
    std::size_t handles_ = 0;
};

}  // namespace cpp_ring::test
