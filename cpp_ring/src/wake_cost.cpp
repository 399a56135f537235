#include "wake_cost.hpp"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <system_error>
#include <thread>

#include "clock.hpp"
#include "file_descriptor.hpp"

namespace cpp_ring {
namespace {

constexpr std::size_t rounds = 16;
// A machine that takes longer to wake a thread has other worries; both sides give up, and neither waits for ever.
constexpr int patience_ms = 100;

bool sleep_on(const FileDescriptor& event) noexcept {
    pollfd wanted{.fd = event.get(), .events = POLLIN, .revents = 0};
    eventfd_t value = 0;
    return ::poll(&wanted, 1, patience_ms) == 1 && ::eventfd_read(event.get(), &value) == 0;
}

bool wake(const FileDescriptor& event) noexcept { return ::eventfd_write(event.get(), 1) == 0; }

}  // namespace

double measure_wake_us() noexcept {
    const FileDescriptor there(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    const FileDescriptor back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!there || !back) return 0;
    std::thread sleeper;
    try {
        sleeper = std::thread([&there, &back]() noexcept {
            for (std::size_t i = 0; i < rounds && sleep_on(there); ++i) wake(back);
        });
    } catch (const std::system_error&) {
        return 0;
    }
    std::array<std::uint64_t, rounds> took{};
    std::size_t count = 0;
    while (count < rounds) {
        const std::uint64_t start = ticks();
        if (!wake(there) || !sleep_on(back)) break;
        took[count++] = ticks() - start;
    }
    sleeper.join();
    if (count < rounds) return 0;
    std::nth_element(took.begin(), took.begin() + rounds / 4, took.end());
    return static_cast<double>(took[rounds / 4]) / ticks_per_ns() / 1000 / 2;  // there and back
}

}  // namespace cpp_ring
