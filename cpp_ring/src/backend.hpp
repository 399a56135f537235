// The backend of one device for one frontend: its channel, its virtqueues and its loop (docs/protocol.md).
//
// One thread serves it: run(). Everything else is for that thread, except stop() and wake().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "config_ring.hpp"
#include "guest_memory.hpp"
#include "hypervisor.hpp"
#include "reactor.hpp"
#include "spin_budget.hpp"
#include "split_queue_device.hpp"
#include "virtio_device.hpp"

namespace cpp_ring {

// The device model as the engine sees it. Nothing here throws: a model that fails is an error value.
class Model {
  public:
    virtual ~Model() = default;
    virtual GuestError config_refresh(std::uint32_t offset, std::uint32_t size) noexcept = 0;
    virtual GuestError config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept = 0;
    virtual GuestError accepts(std::span<const std::uint32_t> features, bool& accepted) noexcept = 0;
    virtual GuestError activate(std::span<const std::uint32_t> features,
                                std::span<const std::uint32_t> queues) noexcept = 0;
    virtual GuestError reset() noexcept = 0;
    // The driver reset this queue alone (VIRTIO_F_RING_RESET): what is held of it is forgotten.
    virtual GuestError queue_reset(std::uint32_t queue) noexcept = 0;
    // Serves `batch` of a handled queue. written[i]: bytes written, or held for a chain that is completed later.
    // tokens[i] names the chain for Backend::complete.
    virtual GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                               std::span<std::int64_t> written) noexcept = 0;
    virtual GuestError kicked(std::uint32_t queue) noexcept = 0;
    virtual GuestError ready(int fd) noexcept = 0;  // a watched host descriptor is readable
    virtual GuestError run_posted() noexcept = 0;   // something was posted from another thread

    static constexpr std::int64_t held = -1;
};

enum class Exit { stopped, broken, frontend_gone };

struct BackendOptions {
    DomId frontend = 0;
    std::vector<bool> pulled;  // for each queue: the model takes buffers by pop()
    double spin_us = 50;       // after the last work, before sleeping
    double most_spin_us = 0;   // if more than spin_us: up to this while the driver is busy (spin_budget.hpp)
    std::size_t map_budget_pages = 65536;
};

struct ChannelAddress {
    GrantRef fe_to_be = 0;
    GrantRef be_to_fe = 0;
    Port event_channel = 0;
    std::vector<std::optional<Port>> queue_event_channels;
    GrantRef arena_first = 0;
    std::size_t arena_pages = 0;  // 0: none
};

struct Counters {
    std::uint64_t requests = 0;  // config requests answered
    std::uint64_t kicks = 0;     // event-channel wake-ups
    std::uint64_t sleeps = 0;
    std::uint64_t notifications = 0;  // sent
    std::uint64_t buffers = 0;        // chains taken from the queues
};

class Backend final : private DeviceHooks {
  public:
    // Throws std::invalid_argument as VirtioDevice does, HostError.
    Backend(Hypervisor& hypervisor, Model& model, DeviceDescription description, BackendOptions options);
    ~Backend() override;

    // Maps the pages, binds the ports, writes the header. Throws HostError; returns bad_magic or bad_version. Nothing
    // stays mapped or bound by a failure.
    [[nodiscard]] GuestError connect(const ChannelAddress& address);
    // Serves until the end, then disconnects.
    [[nodiscard]] Exit run();
    // Model reset, queues stopped, everything unmapped, live byte 0. Idempotent.
    void disconnect() noexcept;

    void stop() noexcept;  // any thread; of the present connection: connect() forgets it
    void wake() noexcept;  // any thread: run_posted() is due

    // One message without a ring, by the same code.
    [[nodiscard]] GuestError answer(const Message& request, Message& answer);

    [[nodiscard]] GuestError pop(std::uint32_t queue, Chain& out, std::uint64_t& token, bool& found);
    // False: not in flight, or more written than it had room for. A chain from before a reset is dropped silently.
    [[nodiscard]] bool complete(std::uint32_t queue, std::uint64_t token, std::uint32_t written);
    void config_changed() noexcept;
    void needs_reset(GuestError error) noexcept;
    void watch(int fd) { reactor_.add(fd); }
    void unwatch(int fd) noexcept { reactor_.remove(fd); }

    [[nodiscard]] const VirtioDevice& device() const noexcept { return device_; }
    [[nodiscard]] const Counters& counters() const noexcept { return counters_; }
    // The device status and the last error as of the last answer or change. Any thread.
    struct State {
        std::uint32_t status;
        std::uint32_t error_code;
        std::uint32_t error_detail;
    };
    [[nodiscard]] State state() const noexcept;
    [[nodiscard]] bool connected() const noexcept { return ring_.has_value(); }
    // Why the channel or device is broken: the channel's error if it has one, else the device's last.
    [[nodiscard]] GuestError error() const noexcept { return channel_error_ ? channel_error_ : device_.error(); }
    [[nodiscard]] std::size_t mapped_pages() const noexcept;

  private:
    struct Queue {
        SplitQueueDevice ring;
        std::optional<Port> port;  // bound while connected
        bool pulled = false;
        bool starved = false;          // pulled: the model found it empty and waits for a kick
        bool dirty = false;            // pushed but not published
        std::uint32_t activation = 0;  // makes tokens of an earlier life invalid
    };
    static constexpr std::size_t batch_size = 32;
    // Readable parts are copied, and work is done, before anything else is looked at: many small chains, or one large.
    static constexpr std::uint64_t batch_bytes = std::uint64_t{4} << 20;

    // DeviceHooks
    void config_refresh(std::uint32_t offset, std::uint32_t size) override;
    bool config_write(std::uint32_t offset, std::span<const std::byte> data) override;
    bool accepts(std::span<const std::uint32_t> features) override;
    bool has_channel(std::uint32_t index) override;
    GuestError activate() override;
    GuestError enable_queue(std::uint32_t index) override;
    void disable_queue(std::uint32_t index) override;
    void reset() override;

    [[nodiscard]] Exit loop();
    [[nodiscard]] bool poll();
    [[nodiscard]] bool poll_channel();
    [[nodiscard]] bool poll_queue(std::uint32_t index);
    void serve_batch(std::uint32_t index, std::size_t count);
    void take_batch(std::uint32_t index, std::size_t& count);
    void refuse_batch(GuestError error, std::size_t& count);
    [[nodiscard]] bool sleep();       // true: there was work
    [[nodiscard]] bool serve_host();  // true: requests were completed
    [[nodiscard]] bool arm();
    void disarm() noexcept;
    void after_model(GuestError failure);
    void flush();
    void publish_state() noexcept;
    void stop_queues() noexcept;
    void notify(Port port) noexcept;
    [[nodiscard]] std::uint64_t token(const Queue& queue, std::uint16_t head) const noexcept {
        return std::uint64_t{queue.activation} << 16 | head;
    }

    Hypervisor& hypervisor_;
    Model& model_;
    BackendOptions options_;
    VirtioDevice device_;
    Reactor reactor_;
    SpinBudget spin_;
    std::uint64_t completions_ = 0;  // by complete(), to which the host's descriptors and posts lead

    // The connection; in the order in which it is built.
    std::unique_ptr<EventChannels> channels_;
    Port cfg_port_ = 0;
    std::unique_ptr<Mapping> fe_page_;
    std::unique_ptr<Mapping> be_page_;
    std::optional<BackendRing<>> ring_;
    ChannelAddress address_;
    GuestMemory memory_;
    std::vector<Queue> queues_;
    std::vector<std::uint32_t> running_queues_;
    bool model_in_use_ = false;  // the model was told of a driver, and not yet of its end

    GuestError channel_error_;
    std::optional<Exit> exit_;
    Atomic<bool> stop_{false};
    Atomic<bool> attention_{false};  // stop_ was set, or something was posted

    // What other threads see: the error in the low half, code above detail, the device status apart.
    Atomic<std::uint32_t> seen_status_{0};
    Atomic<std::uint64_t> seen_error_{0};

    // The header's words as last written.
    std::uint32_t mirrored_status_ = 0;
    std::uint32_t mirrored_generation_ = 0;
    std::uint64_t mirrored_errors_ = 0;

    unsigned idle_wakes_ = 0;  // in a row, by events without work behind them
    int penalty_ms_ = 0;       // how long the ports stay masked for that
    Counters counters_;
    Message request_;
    Message answer_;
    std::vector<Chain> batch_;
    std::vector<std::uint64_t> tokens_;
    std::vector<std::int64_t> written_;
};

}  // namespace cpp_ring
