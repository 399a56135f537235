#include "ping_pong.hpp"

#include <poll.h>
#include <unistd.h>

#include <stdexcept>

#include "shared.hpp"
#include "waiter.hpp"
#include "wire.hpp"

namespace cpp_ring {

struct PingPong::Words {
    alignas(VMSG_XEN_CACHE_LINE) std::uint64_t ping;
    alignas(VMSG_XEN_CACHE_LINE) std::uint64_t pong;
};

PingPong::PingPong(std::span<std::byte> memory, Clock::duration patience)
    : words_(reinterpret_cast<Words*>(memory.data())), patience_(patience) {
    if (memory.size() < sizeof(Words) || reinterpret_cast<std::uintptr_t>(memory.data()) % alignof(Words) != 0)
        throw std::invalid_argument("a ping-pong takes two cache lines of shared memory");
    last_ = SharedMemory::load_acquire(&words_->pong);  // Partner: the store of the pair before.
}

// Spins until the word holds `wanted`.
bool PingPong::spin_for(const std::uint64_t* word, std::uint64_t wanted) const noexcept {
    Clock::time_point deadline{};
    for (std::uint64_t spins = 1; SharedMemory::load_acquire(word) != wanted;
         ++spins) {  // Partner: the other side's store.
        if (spins % 4096 != 0) continue;
        const auto now = Clock::now();
        if (deadline == Clock::time_point{}) deadline = now + patience_;
        if (now > deadline) return false;
        yield_cpu();  // a round trip never takes this long: the other side has not begun, and may need this CPU to
    }
    return true;
}

bool PingPong::serve(std::uint64_t count, int eventfd) noexcept {
    const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(patience_);
    for (std::uint64_t i = 0; i < count; ++i) {
        if (eventfd >= 0) {
            pollfd wanted{.fd = eventfd, .events = POLLIN, .revents = 0};
            std::uint64_t value = 0;
            if (::poll(&wanted, 1, static_cast<int>(patience.count())) != 1 ||
                ::read(eventfd, &value, sizeof value) != sizeof value)
                return false;
        }
        if (!spin_for(&words_->ping, last_ + 1)) return false;
        SharedMemory::store_release(&words_->pong, ++last_);  // Partner: spin_for in measure.
    }
    return true;
}

bool PingPong::measure(std::uint64_t count, LatencyRecorder& recorder, int eventfd, double pause_us) noexcept {
    const double ns = 1.0 / ticks_per_ns();
    const std::uint64_t pause = ticks_of_us(pause_us);
    for (std::uint64_t i = 0; i < count; ++i) {
        if (eventfd >= 0)
            for (const std::uint64_t until = ticks() + pause; ticks() < until;) cpu_relax();
        const std::uint64_t start = ticks();
        SharedMemory::store_release(&words_->ping, ++last_);  // Partner: spin_for in serve.
        if (eventfd >= 0) {
            const std::uint64_t one = 1;
            if (::write(eventfd, &one, sizeof one) != sizeof one) return false;
        }
        if (!spin_for(&words_->pong, last_)) return false;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(ticks() - start) * ns));
    }
    return true;
}

}  // namespace cpp_ring
