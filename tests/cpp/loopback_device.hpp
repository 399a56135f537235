// A backend and a frontend of one device on a loopback machine, a model for it and a driver that speaks to it.
#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "backend.hpp"
#include "driver_queue.hpp"
#include "frontend.hpp"
#include "loopback_hypervisor.hpp"
#include "message_harness.hpp"

namespace cpp_ring::test {

inline constexpr DomId backend_domain = 0;
inline constexpr DomId frontend_domain = 7;

// Longer than any machine is busy for: reached only by an event that was lost.
inline constexpr auto for_ever = std::chrono::seconds(60);

inline constexpr std::uint32_t all_status_bits =
    status_acknowledge | status_driver | status_features_ok | status_driver_ok;

// Answers each chain with its own bytes, inverted. Tests override what they look at.
class EchoModel : public Model {
  public:
    EchoModel();
    ~EchoModel() override;
    EchoModel(const EchoModel&) = delete;
    EchoModel& operator=(const EchoModel&) = delete;

    Atomic<std::uint64_t> activations{0};
    Atomic<std::uint64_t> resets{0};
    Atomic<std::uint64_t> queue_resets{0};
    Atomic<std::uint64_t> served{0};

    GuestError config_refresh(std::uint32_t, std::uint32_t) noexcept override { return {}; }
    GuestError config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept override;
    GuestError accepts(std::span<const std::uint32_t>, bool& accepted) noexcept override {
        accepted = true;
        return {};
    }
    GuestError activate(std::span<const std::uint32_t>, std::span<const std::uint32_t>) noexcept override {
        ++activations;
        return {};
    }
    GuestError reset() noexcept override {
        ++resets;
        return {};
    }
    GuestError queue_reset(std::uint32_t) noexcept override {
        ++queue_resets;
        return {};
    }
    GuestError process(std::uint32_t, std::span<Chain> batch, std::span<const std::uint64_t>,
                       std::span<std::int64_t> written) noexcept override;
    GuestError kicked(std::uint32_t) noexcept override { return {}; }
    GuestError ready(int) noexcept override { return {}; }
    GuestError run_posted() noexcept override { return {}; }

    std::uint32_t echo(const Chain& chain);

    std::span<std::byte> config;  // the device's, set by LoopbackDevice

  private:
    std::vector<std::byte> buffer_;
};

struct DeviceShape {
    std::size_t config_size = 64;
    std::vector<std::uint16_t> queue_sizes{64, 64};
    std::vector<bool> pulled{false, false};
    std::uint64_t features = version_1_bit | ring_reset_bit | event_idx_bit | indirect_desc_bit;
    double spin_us = 50;
    double most_spin_us = 0;
    std::size_t map_budget_pages = 1024;
};

// Every byte of the configuration is writable; bytes 32 to 47 are hooked both ways.
class LoopbackDevice {
  public:
    explicit LoopbackDevice(EchoModel& model, const DeviceShape& shape = {});
    ~LoopbackDevice();
    LoopbackDevice(const LoopbackDevice&) = delete;
    LoopbackDevice& operator=(const LoopbackDevice&) = delete;

    [[nodiscard]] ChannelAddress address(bool with_arena = true) const;
    void connect() { REQUIRE(!backend.connect(address())); }

    // ---- what a driver does; `backend` runs in another thread ----

    template <class... T>
    const Message& ask(std::uint8_t msg_id, const T&... parts) {
        REQUIRE(frontend->exchange(msg_id, bytes_of(parts...), for_ever) == ExchangeResult::ok);
        return frontend->answer();
    }
    std::uint32_t set_status(std::uint32_t status);
    void set_queue(std::uint32_t index) { set_queue(index, queues[index]->ring()); }
    void set_queue(std::uint32_t index, const SplitQueueDriver& ring);
    // Up to FEATURES_OK.
    void negotiate(std::uint64_t features);
    // The whole sequence; returns the resulting status.
    std::uint32_t start();

    // One request of 8 bytes through a queue, its answer checked; `cell` is a place of 16 bytes in the arena.
    void offer(std::uint32_t queue, std::size_t cell, std::uint64_t number) {
        add(queues[queue]->ring(), cell, number);
    }
    void add(SplitQueueDriver& ring, std::size_t cell, std::uint64_t number);
    [[nodiscard]] std::uint64_t answered(std::size_t cell) const { return SharedMemory::load_relaxed(word(cell) + 1); }
    void echo(std::uint32_t queue, std::uint64_t number, std::size_t cell = 0);
    [[nodiscard]] std::uint64_t* word(std::size_t cell) const {
        return reinterpret_cast<std::uint64_t*>(arena->bytes().data() + cell * 16);
    }

    LoopbackMachine machine;
    LoopbackHypervisor back{machine, backend_domain};
    LoopbackHypervisor front{machine, frontend_domain};
    std::vector<std::byte> config;
    std::unique_ptr<SharedPages> arena;
    std::vector<std::unique_ptr<DriverQueue>> queues;
    std::optional<Frontend> frontend;
    Backend backend;
    std::uint64_t offered;

  private:
    DeviceDescription describe(const DeviceShape& shape);
    static BackendOptions options(const DeviceShape& shape) {
        return {.frontend = frontend_domain,
                .pulled = shape.pulled,
                .spin_us = shape.spin_us,
                .most_spin_us = shape.most_spin_us,
                .map_budget_pages = shape.map_budget_pages};
    }
};

// Serves a connected backend until it is stopped, at the latest by the destructor.
class BackendThread {
  public:
    explicit BackendThread(Backend& backend) : backend_(backend), thread_([this] { exit_ = backend_.run(); }) {}
    ~BackendThread() {
        if (thread_.joinable()) static_cast<void>(stop());
    }
    BackendThread(const BackendThread&) = delete;
    BackendThread& operator=(const BackendThread&) = delete;

    Exit stop() {
        backend_.stop();
        return join();
    }
    // For a backend that ends by itself.
    Exit join() {
        thread_.join();
        return exit_;
    }

  private:
    Backend& backend_;
    Exit exit_ = Exit::stopped;
    std::thread thread_;
};

// A frontend that writes what it likes: its pages and its port, no rules.
class RawFrontend {
  public:
    explicit RawFrontend(Hypervisor& hypervisor);
    ~RawFrontend();
    RawFrontend(const RawFrontend&) = delete;
    RawFrontend& operator=(const RawFrontend&) = delete;

    void write_header();
    // Any bytes as the request `seq`.
    void publish(std::uint32_t seq, std::span<const std::byte> message, std::uint32_t size);
    [[nodiscard]] std::uint32_t answered() const { return SharedMemory::load_acquire(&be->answer.seq); }
    [[nodiscard]] bool backend_alive() const { return SharedMemory::load_acquire(&be->header.live) != VMSG_XEN_DEAD; }
    [[nodiscard]] std::uint32_t error() const { return SharedMemory::load_acquire(&be->header.error_code); }
    [[nodiscard]] ChannelAddress address() const {
        return {fe_page->first_ref(), be_page->first_ref(), port, {}, 0, 0};
    }

    std::unique_ptr<EventChannels> channels;
    Port port;
    std::unique_ptr<SharedPages> fe_page;
    std::unique_ptr<SharedPages> be_page;
    vmsg_xen_fe_page* fe;
    vmsg_xen_be_page* be;
};

}  // namespace cpp_ring::test
