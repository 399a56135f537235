#include "vchan.hpp"

extern "C" {  // the header itself does not say so
#include <libxenvchan.h>
}

#include <cerrno>

#include "errors.hpp"
#include "waiter.hpp"

namespace cpp_ring {
namespace {

constexpr std::size_t ring_size = 1024;  // of each direction; both then lie in the one page that the ends share

}  // namespace

void Vchan::Close::operator()(libxenvchan* handle) const noexcept { libxenvchan_close(handle); }

Vchan Vchan::offer(DomId peer, const std::string& path) {
    auto* const handle = libxenvchan_server_init(nullptr, peer, path.c_str(), ring_size, ring_size);
    if (handle == nullptr) throw HostError(errno, "cannot offer a vchan to domain " + std::to_string(peer));
    return Vchan(handle);
}

Vchan Vchan::join(DomId peer, const std::string& path) {
    auto* const handle = libxenvchan_client_init(nullptr, peer, path.c_str());
    if (handle == nullptr) throw HostError(errno, "no vchan of domain " + std::to_string(peer) + " at " + path);
    return Vchan(handle);
}

// A signed field of one bit.
void Vchan::set_asleep(bool asleep) noexcept { handle_->blocking = asleep ? -1 : 0; }

bool Vchan::send() noexcept { return libxenvchan_send(handle_.get(), message_, sizeof message_) == sizeof message_; }

bool Vchan::receive(Clock::duration patience) noexcept {
    Clock::time_point deadline{};
    for (unsigned looks = 1;; ++looks) {
        const int got = libxenvchan_recv(handle_.get(), message_, sizeof message_);
        if (got != 0) return got == sizeof message_;
        if (looks % 4096 != 0) continue;
        const auto now = Clock::now();
        if (deadline == Clock::time_point{}) deadline = now + patience;
        if (now > deadline) return false;
        yield_cpu();  // the other side has not begun, and may need this CPU to
    }
}

bool Vchan::echo(std::uint64_t count, bool asleep, Clock::duration patience) {
    set_asleep(asleep);
    for (std::uint64_t i = 0; i < count; ++i)
        if (!receive(patience) || !send()) return false;
    return true;
}

bool Vchan::measure(std::uint64_t count, bool asleep, LatencyRecorder& recorder, Clock::duration patience) {
    set_asleep(asleep);
    const double ns = 1.0 / ticks_per_ns();
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t start = ticks();
        if (!send() || !receive(patience)) return false;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(ticks() - start) * ns));
    }
    return true;
}

}  // namespace cpp_ring
