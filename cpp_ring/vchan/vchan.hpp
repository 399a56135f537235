// libxenvchan, Xen's own byte stream between two domains: what the bench measures the config ring against.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "clock.hpp"
#include "hypervisor.hpp"
#include "latency.hpp"

struct libxenvchan;

namespace cpp_ring {

// Bytes of a request and of its answer: a small message of the config ring.
inline constexpr std::size_t vchan_message = 24;

// One end. `asleep`: waits in libxenvchan_wait, as the library does by itself; else asks again and again.
class Vchan {
  public:
    // Grants the rings to domain `peer` and writes their references below `path` of the store. Throws HostError.
    [[nodiscard]] static Vchan offer(DomId peer, const std::string& path);
    // The other end of what domain `peer` offers at `path`. Throws HostError.
    [[nodiscard]] static Vchan join(DomId peer, const std::string& path);

    // Answers `count` messages by one each. False: none came for as long as `patience`, or the other side left. A
    // sleeper has no patience that ends: the other side's death wakes it.
    [[nodiscard]] bool echo(std::uint64_t count, bool asleep, Clock::duration patience);
    // The other side: `count` round trips in ns. False as above.
    [[nodiscard]] bool measure(std::uint64_t count, bool asleep, LatencyRecorder& recorder, Clock::duration patience);

  private:
    struct Close {
        void operator()(libxenvchan* handle) const noexcept;
    };
    explicit Vchan(libxenvchan* handle) : handle_(handle) {}
    void set_asleep(bool asleep) noexcept;
    [[nodiscard]] bool send() noexcept;
    [[nodiscard]] bool receive(Clock::duration patience) noexcept;

    std::unique_ptr<libxenvchan, Close> handle_;
    std::byte message_[vchan_message] = {};
};

}  // namespace cpp_ring
