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
    Atomic<std::uint64_t> activations{0};
    Atomic<std::uint64_t> resets{0};
    Atomic<std::uint64_t> queue_resets{0};
    Atomic<std::uint64_t> served{0};

    GuestError config_refresh(std::uint32_t, std::uint32_t) noexcept override { return {}; }
    GuestError config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept override {
        std::memcpy(config.data() + offset, data.data(), data.size());
        accepted = true;
        return {};
    }
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
                       std::span<std::int64_t> written) noexcept override {
        for (std::size_t i = 0; i < batch.size(); ++i) written[i] = echo(batch[i]);
        served += batch.size();
        return {};
    }
    GuestError kicked(std::uint32_t) noexcept override { return {}; }
    GuestError ready(int) noexcept override { return {}; }
    GuestError run_posted() noexcept override { return {}; }

    std::uint32_t echo(const Chain& chain) {
        buffer_.resize(chain.readable_bytes);
        std::byte* at = buffer_.data();
        for (const Segment& segment : chain.readable) {
            SharedMemory::copy_from(at, segment.data, segment.size);
            at += segment.size;
        }
        for (std::byte& value : buffer_) value = ~value;
        std::size_t done = 0;
        for (const Segment& segment : chain.writable) {
            const std::size_t size = std::min<std::size_t>(segment.size, buffer_.size() - done);
            SharedMemory::copy_to(segment.data, buffer_.data() + done, size);
            done += size;
        }
        return static_cast<std::uint32_t>(done);
    }

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
    std::size_t map_budget_pages = 1024;
};

// Every byte of the configuration is writable; bytes 32 to 47 are hooked both ways.
class LoopbackDevice {
  public:
    explicit LoopbackDevice(EchoModel& model, const DeviceShape& shape = {})
        : config(shape.config_size), backend(back, model, describe(shape), options(shape)), offered(shape.features) {
        model.config = config;
        frontend.emplace(front, backend_domain);
        // Any granted pages will do; tests write their requests there.
        arena = front.share(backend_domain, 16, true);
        for (const std::uint16_t size : shape.queue_sizes)
            queues.push_back(std::make_unique<DriverQueue>(front, backend_domain, size, shape.features));
    }

    [[nodiscard]] ChannelAddress address(bool with_arena = true) const {
        ChannelAddress result{frontend->fe_to_be_ref(), frontend->be_to_fe_ref(), frontend->event_channel(), {}, 0, 0};
        for (const auto& queue : queues) result.queue_event_channels.emplace_back(queue->event_channel());
        if (with_arena) {
            result.arena_first = arena->first_ref();
            result.arena_pages = arena->bytes().size() / page_size;
        }
        return result;
    }
    void connect() { REQUIRE(!backend.connect(address())); }

    // ---- what a driver does; `backend` runs in another thread ----

    template <class... T>
    const Message& ask(std::uint8_t msg_id, const T&... parts) {
        REQUIRE(frontend->exchange(msg_id, bytes_of(parts...), for_ever) == ExchangeResult::ok);
        return frontend->answer();
    }
    std::uint32_t set_status(std::uint32_t status) {
        const std::uint32_t result = ask(VMSG_SET_DEVICE_STATUS, vmsg_status{status}).payload<vmsg_status>().status;
        if (status == 0) frontend->new_epoch();
        return result;
    }
    void set_queue(std::uint32_t index) { set_queue(index, queues[index]->ring()); }
    void set_queue(std::uint32_t index, const SplitQueueDriver& ring) {
        ask(VMSG_SET_VQUEUE, vmsg_vqueue{index, 0, ring.size(), 0, ring.descriptor_address(), ring.driver_address(),
                                         ring.device_address()});
    }
    // Up to FEATURES_OK.
    void negotiate(std::uint64_t features) {
        set_status(0);
        set_status(status_acknowledge);
        set_status(status_acknowledge | status_driver);
        ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, feature_blocks(features)[0],
            feature_blocks(features)[1]);
        set_status(status_acknowledge | status_driver | status_features_ok);
    }
    // The whole sequence; returns the resulting status.
    std::uint32_t start() {
        negotiate(offered);
        for (std::uint32_t i = 0; i < queues.size(); ++i) set_queue(i);
        return set_status(all_status_bits);
    }

    // One request of 8 bytes through a queue, its answer checked; `cell` is a place of 16 bytes in the arena.
    void offer(std::uint32_t queue, std::size_t cell, std::uint64_t number) {
        add(queues[queue]->ring(), cell, number);
    }
    void add(SplitQueueDriver& ring, std::size_t cell, std::uint64_t number) {
        SharedMemory::store_relaxed(word(cell), number);
        const std::uint64_t at = grant_address(arena->first_ref(), cell * 16);
        const std::array readable{SplitQueueDriver::Piece{at, 8}};
        const std::array writable{SplitQueueDriver::Piece{at + 8, 8}};
        REQUIRE(ring.add(readable, writable));
    }
    [[nodiscard]] std::uint64_t answered(std::size_t cell) const { return SharedMemory::load_relaxed(word(cell) + 1); }
    void echo(std::uint32_t queue, std::uint64_t number, std::size_t cell = 0) {
        offer(queue, cell, number);
        queues[queue]->kick();
        REQUIRE(queues[queue]->wait(for_ever));
        SplitQueueDriver::Used used{};
        bool lied = false;
        REQUIRE(queues[queue]->ring().pop(used, lied));
        REQUIRE(used.written == 8);
        REQUIRE(answered(cell) == ~number);
    }
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
    DeviceDescription describe(const DeviceShape& shape) {
        DeviceDescription description;
        description.device_id = 42;
        description.features = feature_blocks(shape.features);
        description.config = config;
        description.queue_sizes = shape.queue_sizes;
        description.writable.assign(shape.config_size, 1);
        description.hooked_reads.assign(shape.config_size, 0);
        for (std::size_t i = 32; i < std::min<std::size_t>(48, shape.config_size); ++i) description.hooked_reads[i] = 1;
        description.hooked_writes = description.hooked_reads;
        return description;
    }
    static BackendOptions options(const DeviceShape& shape) {
        return {frontend_domain, shape.pulled, shape.spin_us, shape.map_budget_pages};
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
    explicit RawFrontend(Hypervisor& hypervisor)
        : channels(hypervisor.open_event_channels()),
          port(channels->alloc_unbound(backend_domain)),
          fe_page(hypervisor.share_notify(backend_domain, false, offsetof(vmsg_xen_fe_header, live), *channels, port)),
          be_page(hypervisor.share(backend_domain, 1, true)),
          fe(reinterpret_cast<vmsg_xen_fe_page*>(fe_page->bytes().data())),
          be(reinterpret_cast<vmsg_xen_be_page*>(be_page->bytes().data())) {
        write_header();
    }

    void write_header() {
        SharedMemory::store_relaxed(&fe->header.version, std::uint32_t{VMSG_XEN_PROTOCOL_VERSION});
        SharedMemory::store_relaxed(&fe->header.live, std::uint8_t{VMSG_XEN_ALIVE});
        SharedMemory::store_release(&fe->header.magic, std::uint32_t{VMSG_XEN_MAGIC_FE});
    }
    // Any bytes as the request `seq`.
    void publish(std::uint32_t seq, std::span<const std::byte> message, std::uint32_t size) {
        SharedMemory::copy_to(fe->request.message, message.data(), message.size());
        SharedMemory::store_relaxed(&fe->request.size, size);
        SharedMemory::store_release(&fe->request.seq, seq);
        channels->notify(port);
    }
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
