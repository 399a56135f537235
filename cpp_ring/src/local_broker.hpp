// The broker of a local machine as a client sees it: one socket, one request and one reply at a time (docs/local.md).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <string>
#include <vector>

#include "file_descriptor.hpp"
#include "hypervisor.hpp"

namespace cpp_ring {

enum class LocalOp : std::uint32_t {
    hello = 0,
    grant_share = 1,
    grant_unshare = 2,
    grant_map = 3,
    grant_unmap = 4,
    evtchn_alloc_unbound = 5,
    evtchn_bind_interdomain = 6,
    evtchn_close = 7,
};

inline constexpr std::uint32_t local_version = 1;
inline constexpr std::uint32_t local_writable = 1;
inline constexpr std::uint32_t local_notify = 2;

// Consecutive pages of one memfd; the reply has one descriptor for each run.
struct LocalRun {
    std::uint32_t page;
    std::uint32_t pages;
};

struct LocalReply {
    std::uint32_t value = 0;
    std::vector<LocalRun> runs;
    std::vector<FileDescriptor> fds;
};

// Used by all threads of the process. What one connection has shared, mapped and bound ends with it.
class LocalBroker {
  public:
    // Throws HostError: ENOENT no such machine or domain, ECONNREFUSED its broker has died, EPROTO another version.
    LocalBroker(const std::string& directory, DomId domid);

    // Throws HostError: the broker's answer, or ENOTCONN, ETIMEDOUT when it does not give any. `what` names the
    // request.
    LocalReply call(LocalOp op, std::initializer_list<std::uint32_t> arguments, const std::string& what);
    // For destructors: a broker that is gone has taken everything back by itself.
    void tell(LocalOp op, std::uint32_t argument) noexcept;

  private:
    [[nodiscard]] int exchange(LocalOp op, std::initializer_list<std::uint32_t> arguments, LocalReply& reply);

    std::mutex mutex_;
    FileDescriptor socket_;  // closed for good once the broker has not answered properly
};

}  // namespace cpp_ring
