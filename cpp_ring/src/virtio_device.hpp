// One virtio device as its driver sees it through messages: information, features, status, configuration space, queue
// geometry. Pure logic: knows no page, no channel and no thread; the same for every transport.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "errors.hpp"
#include "split_queue_device.hpp"
#include "wire.hpp"

namespace cpp_ring {

// virtio 1.3 section 2.1.
enum DeviceStatus : std::uint32_t {
    status_acknowledge = 1,
    status_driver = 2,
    status_driver_ok = 4,
    status_features_ok = 8,
    status_needs_reset = 64,
    status_failed = 128,
};

// The status after the driver wrote `wanted` to a device in `current`, or `current` itself when that is refused.
[[nodiscard]] std::uint32_t next_status(std::uint32_t current, std::uint32_t wanted) noexcept;

// What the device does at the points where a message is more than bookkeeping. Called from VirtioDevice::answer.
class DeviceHooks {
  public:
    virtual ~DeviceHooks() = default;
    // A read of hooked bytes: bring the configuration memory up to date.
    virtual void config_refresh(std::uint32_t offset, std::uint32_t size) = 0;
    // A write to hooked bytes: store it in the configuration memory, or return false to refuse.
    virtual bool config_write(std::uint32_t offset, std::span<const std::byte> data) = 0;
    // May these features (a subset of the offered ones, with VERSION_1) be used together?
    virtual bool accepts(std::span<const std::uint32_t> features) = 0;
    // Did the frontend offer an event channel for this queue?
    virtual bool has_channel(std::uint32_t index) = 0;
    // DRIVER_OK: map and start the queues that are set up. An error leaves nothing running or mapped.
    virtual GuestError activate() = 0;
    // Set up again after a RESET_VQUEUE. An error as in activate().
    virtual GuestError enable_queue(std::uint32_t index) = 0;
    virtual void disable_queue(std::uint32_t index) = 0;  // RESET_VQUEUE
    virtual void reset() = 0;                             // status 0: everything stops and is unmapped
};

struct DeviceDescription {
    std::uint32_t device_id = 0;
    std::uint32_t vendor_id = 0;
    std::vector<std::uint32_t> features;      // offered, 32 bits a block
    std::span<std::byte> config;              // the memory plain reads are answered from; outlives the device
    std::vector<std::uint8_t> hooked_reads;   // one byte per configuration byte, 1: config_refresh first
    std::vector<std::uint8_t> writable;       // 1: the driver may write it
    std::vector<std::uint8_t> hooked_writes;  // 1: config_write instead of a plain store
    std::vector<std::uint16_t> queue_sizes;   // the largest size of each queue
};

class VirtioDevice {
  public:
    struct QueueSetup {
        QueueGeometry geometry{};
        bool set = false;
    };

    // Throws std::invalid_argument when masks and configuration differ in length or a queue size is no power of two.
    VirtioDevice(DeviceDescription description, DeviceHooks& hooks);

    // Answers one request. An error that closes the channel leaves `answer` unusable; any other is only recorded (in
    // error()) and the answer shows what came of the request.
    [[nodiscard]] GuestError answer(const Message& request, Message& answer);

    [[nodiscard]] std::uint32_t status() const noexcept { return status_; }
    [[nodiscard]] std::uint32_t generation() const noexcept { return generation_; }
    [[nodiscard]] GuestError error() const noexcept { return error_; }
    [[nodiscard]] std::span<const std::uint32_t> driver_features() const noexcept { return driver_features_; }
    [[nodiscard]] std::uint64_t features64() const noexcept;  // the low 64 bits, where the ring features are
    [[nodiscard]] const std::vector<QueueSetup>& queues() const noexcept { return queues_; }
    [[nodiscard]] std::uint64_t guest_errors() const noexcept { return guest_errors_; }

    void bump_generation() noexcept { ++generation_; }
    void record(GuestError error) noexcept;
    // Records the error and sets DEVICE_NEEDS_RESET; queues stay stopped until the driver resets.
    void needs_reset(GuestError error) noexcept;
    // As if the driver had written status 0, for a frontend that is gone. Hooks are not called.
    void forget_driver() noexcept;

  private:
    using Handler = GuestError (VirtioDevice::*)(const Message&, Message&);
    struct Row;
    static const Row* find_row(std::uint8_t msg_id) noexcept;

    GuestError get_device_info(const Message&, Message&);
    GuestError get_device_features(const Message&, Message&);
    GuestError set_driver_features(const Message&, Message&);
    GuestError get_config(const Message&, Message&);
    GuestError set_config(const Message&, Message&);
    GuestError get_device_status(const Message&, Message&);
    GuestError set_device_status(const Message&, Message&);
    GuestError get_vqueue(const Message&, Message&);
    GuestError set_vqueue(const Message&, Message&);
    GuestError reset_vqueue(const Message&, Message&);
    GuestError get_shm(const Message&, Message&);

    [[nodiscard]] GuestError check_config_write(std::uint32_t offset, std::uint32_t size) const noexcept;
    [[nodiscard]] bool in_config(std::uint32_t offset, std::uint32_t size) const noexcept;
    [[nodiscard]] bool features_acceptable();
    void append_config(std::uint32_t offset, std::uint32_t size, Message& answer);
    void set_status(std::uint32_t wanted);

    DeviceDescription description_;
    DeviceHooks& hooks_;
    // Sums of the masks before each offset, so that "any marked byte in the range" is one subtraction.
    std::vector<std::uint32_t> hooked_reads_before_;
    std::vector<std::uint32_t> writable_before_;
    std::vector<std::uint32_t> hooked_writes_before_;
    std::vector<std::uint32_t> driver_features_;
    bool unknown_features_ = false;  // the driver set bits in blocks that the device does not have
    std::vector<QueueSetup> queues_;
    std::uint32_t status_ = 0;
    std::uint32_t generation_ = 0;
    GuestError error_;
    std::uint64_t guest_errors_ = 0;
};

}  // namespace cpp_ring
