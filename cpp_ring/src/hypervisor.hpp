// What the engine needs of a hypervisor: grants and event channels. `local` keeps Xen's rules between ordinary
// processes; `xen` is the real one. Both are used through these interfaces only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "map_budget.hpp"

namespace cpp_ring {

using DomId = std::uint16_t;
using GrantRef = std::uint32_t;
using Port = std::uint32_t;

inline constexpr std::size_t page_size = 4096;

// Pages of another domain in this process. Unmapped by the destructor, as a whole.
class Mapping {
  public:
    Mapping() = default;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    virtual ~Mapping() = default;

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
    [[nodiscard]] bool writable() const noexcept { return writable_; }

  protected:
    std::span<std::byte> bytes_;
    bool writable_ = false;
};

// Pages of this domain that were granted to another one, under consecutive references refs()[0] + i. Zeroed at
// allocation. The destructor withdraws the grant; a peer that still maps it keeps its pages until it lets go.
class SharedPages {
  public:
    SharedPages() = default;
    SharedPages(const SharedPages&) = delete;
    SharedPages& operator=(const SharedPages&) = delete;
    virtual ~SharedPages() = default;

    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
    [[nodiscard]] GrantRef first_ref() const noexcept { return first_ref_; }

  protected:
    std::span<std::byte> bytes_;
    GrantRef first_ref_ = 0;
};

// Bytes of another domain, within one page of a grant, and those of ours that they come from or go to.
struct GrantCopy {
    GrantRef ref = 0;
    std::uint32_t offset = 0;  // in the page; offset + size <= page_size
    std::uint32_t size = 0;
    std::byte* ours = nullptr;
};
enum class CopyDirection { from_domain, to_domain };

// One thread's view of event channels (Xen: one xenevtchn handle per thread).
class EventChannels {
  public:
    EventChannels() = default;
    EventChannels(const EventChannels&) = delete;
    EventChannels& operator=(const EventChannels&) = delete;
    virtual ~EventChannels() = default;  // unbinds every port of the handle

    // Readable while a port is pending. Wait on it before every pending().
    [[nodiscard]] virtual int fd() const noexcept = 0;
    // A new port that `remote` may bind to. Throws HostError.
    [[nodiscard]] virtual Port alloc_unbound(DomId remote) = 0;
    // A local port bound to `remote_port` of `remote`, always the same domain for one handle. The port may be pending
    // at once (a first, spurious event). Throws HostError: ENOENT no such domain, EINVAL not a port offered to this
    // domain, EBUSY bound already.
    [[nodiscard]] virtual Port bind_interdomain(DomId remote, Port remote_port) = 0;
    virtual void unbind(Port port) noexcept = 0;
    // Raises the other end's pending flag. An event to a peer that is gone is lost, without error.
    virtual void notify(Port port) noexcept = 0;
    // The next pending port, now cleared and masked, or nothing. Never blocks.
    [[nodiscard]] virtual std::optional<Port> pending() noexcept = 0;
    // Lets the port raise events again; an event that came while masked is raised at once. Unmask, then look for
    // work: the late unmask is what bounds an event storm (XSA-332).
    virtual void unmask(Port port) noexcept = 0;
};

class Hypervisor {
  public:
    // `map_budget`: pages that GuestMemory may have mapped at a time.
    explicit Hypervisor(std::size_t map_budget = default_map_budget)
        : map_budget_(std::make_shared<MapBudget>(map_budget)) {}
    Hypervisor(const Hypervisor&) = delete;
    Hypervisor& operator=(const Hypervisor&) = delete;
    virtual ~Hypervisor() = default;

    [[nodiscard]] virtual DomId domid() const noexcept = 0;
    [[nodiscard]] virtual std::unique_ptr<EventChannels> open_event_channels() = 0;

    // Outlives this while pages are mapped.
    [[nodiscard]] const std::shared_ptr<MapBudget>& map_budget() const noexcept { return map_budget_; }

    // Backend: maps `count` consecutive references from `first` of `domain`, all or nothing. Throws HostError: ENOENT
    // no such domain or grant, EACCES granted to another domain or read-only (on Xen EINVAL says both), EINVAL count 0
    // or too large.
    [[nodiscard]] virtual std::unique_ptr<Mapping> map(DomId domain, GrantRef first, std::size_t count,
                                                       bool writable) = 0;
    // The same for one writable page; when the process dies with the page mapped, the byte at `offset` is set to 0 and
    // `port` (of `events`) is notified (xengnttab_map_grant_ref_notify).
    [[nodiscard]] virtual std::unique_ptr<Mapping> map_notify(DomId domain, GrantRef ref, std::size_t offset,
                                                              EventChannels& events, Port port) = 0;
    // Whether the hypervisor itself copies to and from grants, which costs less than to map a page for one use.
    [[nodiscard]] virtual bool can_copy() const noexcept { return false; }
    // Copies all pieces; returns the index of the first that could not be, or their number. Only where can_copy().
    // Throws HostError when nothing could be tried.
    [[nodiscard]] virtual std::size_t copy(DomId, std::span<const GrantCopy>, CopyDirection) { return 0; }

    // Frontend: `count` zeroed pages granted to `domain` (xengntshr_share_pages).
    [[nodiscard]] virtual std::unique_ptr<SharedPages> share(DomId domain, std::size_t count, bool writable) = 0;
    // The same for one page, with its byte at `offset` cleared and `port` notified at the death of this process.
    [[nodiscard]] virtual std::unique_ptr<SharedPages> share_notify(DomId domain, bool writable, std::size_t offset,
                                                                    EventChannels& events, Port port) = 0;

  private:
    std::shared_ptr<MapBudget> map_budget_;
};

}  // namespace cpp_ring
