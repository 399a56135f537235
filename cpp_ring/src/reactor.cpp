#include "reactor.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <array>
#include <cerrno>
#include <cstdint>

#include "errors.hpp"

namespace cpp_ring {
namespace {

// Reported by one wait(); epoll gives the others their turn in the next.
constexpr std::size_t most_events = 16;

void epoll_add(int epoll, int fd, const char* what) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) throw HostError(errno, what);
}

}  // namespace

Reactor::Reactor() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!epoll_ || !wake_) throw HostError(errno, "cannot create an event loop");
    epoll_add(epoll_.get(), wake_.get(), "cannot watch the wake-up descriptor");
    ready_.reserve(most_events);  // so that wait() does not allocate
}

void Reactor::use_channels(EventChannels* channels) {
    if (channels_ != nullptr) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, channels_->fd(), nullptr);
    channels_ = channels;
    masked_.clear();
    channels_ready_ = false;
    if (channels_ != nullptr) epoll_add(epoll_.get(), channels_->fd(), "cannot watch the event channels");
}

void Reactor::add(int fd) {
    host_fds_.reserve(host_fds_.size() + 1);
    epoll_add(epoll_.get(), fd, "cannot watch the descriptor");
    std::erase(host_fds_, fd);  // a number that was closed while watched, and came back
    host_fds_.push_back(fd);
}

void Reactor::remove(int fd) noexcept {
    if (std::erase(host_fds_, fd) == 0) return;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    std::erase(ready_, fd);
}

void Reactor::wake() noexcept {
    const std::uint64_t one = 1;
    // The only failure is a counter that is full, and then the wait ends anyway.
    [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

void Reactor::wait(int timeout_ms) noexcept {
    std::array<epoll_event, most_events> events{};
    channels_ready_ = false;
    ready_.clear();
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
    for (int i = 0; i < count; ++i) {  // -1 for EINTR: nothing is ready
        const int fd = events[static_cast<std::size_t>(i)].data.fd;
        if (fd == wake_.get()) {
            std::uint64_t value = 0;
            [[maybe_unused]] const auto got = ::read(wake_.get(), &value, sizeof value);
        } else if (channels_ != nullptr && fd == channels_->fd()) {
            channels_ready_ = true;
        } else {
            ready_.push_back(fd);
        }
    }
}

void Reactor::take_channels() {
    if (channels_ == nullptr) return;
    while (const auto port = channels_->pending()) masked_.push_back(*port);
}

void Reactor::unmask_channels() noexcept {
    for (const Port port : masked_) channels_->unmask(port);
    masked_.clear();
}

}  // namespace cpp_ring
