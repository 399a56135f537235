// What one device's thread sleeps on: its event channels, host file descriptors, and a wake-up from other threads.
#pragma once

#include <span>
#include <vector>

#include "file_descriptor.hpp"
#include "hypervisor.hpp"

namespace cpp_ring {

class Reactor {
  public:
    Reactor();  // throws HostError

    // The event channels to sleep on; nullptr: none. Used by one thread, as all below but wake().
    void use_channels(EventChannels* channels);
    // Host descriptors, level triggered. add() throws HostError; one that is removed may be closed already.
    void add(int fd);
    void remove(int fd) noexcept;
    [[nodiscard]] bool has_host_fds() const noexcept { return !host_fds_.empty(); }

    // Ends the present or the next wait(). Any thread.
    void wake() noexcept;

    // Sleeps until something is ready, `timeout_ms` passed (-1: never) or a signal came.
    void wait(int timeout_ms) noexcept;
    // Of the last wait(): were event channels pending; which host descriptors are readable.
    [[nodiscard]] bool channels_ready() const noexcept { return channels_ready_; }
    [[nodiscard]] std::span<const int> ready() const noexcept { return ready_; }

    // Clears and masks what is pending. Ports stay masked until unmask_channels(), which is what bounds a storm.
    void take_channels();
    void unmask_channels() noexcept;

  private:
    FileDescriptor epoll_;
    FileDescriptor wake_;
    EventChannels* channels_ = nullptr;
    bool channels_ready_ = false;
    std::vector<int> host_fds_;
    std::vector<int> ready_;
    std::vector<Port> masked_;
};

}  // namespace cpp_ring
