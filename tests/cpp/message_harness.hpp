// A VirtioDevice without page, channel or thread: messages in, answers out, and a record of what it asked its hooks.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "virtio_device.hpp"

namespace cpp_ring::test {

inline constexpr std::uint64_t version_1_bit = std::uint64_t{1} << feature_version_1;
inline constexpr std::uint64_t ring_reset_bit = std::uint64_t{1} << feature_ring_reset;
inline constexpr std::uint64_t event_idx_bit = std::uint64_t{1} << feature_event_idx;
inline constexpr std::uint64_t indirect_desc_bit = std::uint64_t{1} << feature_indirect_desc;

[[nodiscard]] inline std::vector<std::uint32_t> feature_blocks(std::uint64_t features) {
    return {static_cast<std::uint32_t>(features), static_cast<std::uint32_t>(features >> 32)};
}

// The wire form of some structs, one after the other.
template <class... T>
[[nodiscard]] std::vector<std::byte> bytes_of(const T&... parts) {
    std::vector<std::byte> bytes;
    [[maybe_unused]] const auto append = [&](const auto& part) {
        const auto view = std::as_bytes(std::span(&part, 1));
        bytes.insert(bytes.end(), view.begin(), view.end());
    };
    (append(parts), ...);
    return bytes;
}

[[nodiscard]] inline Message make_request(std::uint8_t msg_id, std::span<const std::byte> payload,
                                          std::uint16_t token = 0x0101) {
    Message message;
    message.begin();
    message.append_bytes(payload);
    message.finish(0, msg_id, token);
    return message;
}

// A message whose bytes all say that nobody has written them.
[[nodiscard]] inline Message stale_message(std::byte filling = std::byte{0xa5}) {
    Message message;
    std::memset(message.data(), std::to_integer<int>(filling), VMSG_MAX_SIZE);
    return message;
}

// The size of the answer to a message that the device took; data that follow not counted.
[[nodiscard]] constexpr std::size_t answer_size(std::uint8_t msg_id) noexcept {
    switch (msg_id) {
        case VMSG_GET_DEVICE_INFO:
            return sizeof(vmsg_header) + sizeof(vmsg_device_info);
        case VMSG_GET_DEVICE_FEATURES:
            return sizeof(vmsg_header) + sizeof(vmsg_feature_range);
        case VMSG_GET_CONFIG:
        case VMSG_SET_CONFIG:
            return sizeof(vmsg_header) + sizeof(vmsg_config);
        case VMSG_GET_DEVICE_STATUS:
        case VMSG_SET_DEVICE_STATUS:
            return sizeof(vmsg_header) + sizeof(vmsg_status);
        case VMSG_GET_VQUEUE:
            return sizeof(vmsg_header) + sizeof(vmsg_vqueue);
        case VMSG_GET_SHM:
            return sizeof(vmsg_header) + sizeof(vmsg_shm);
        default:
            return sizeof(vmsg_header);
    }
}

// Areas that are grant-DMA addresses and aligned; nothing need be granted there.
[[nodiscard]] inline vmsg_vqueue plausible_queue(std::uint32_t index, std::uint32_t size, GrantRef ref = 16) {
    return {.index = index,
            .max_size = 0,
            .size = size,
            .reserved = 0,
            .descriptor_address = grant_address(ref, 0),
            .driver_address = grant_address(ref + 200, 0),
            .device_address = grant_address(ref + 400, 0)};
}

struct HarnessShape {
    std::size_t config_size = 60;
    std::vector<std::uint16_t> queue_sizes{256, 64, 1};
    std::uint64_t features = version_1_bit | ring_reset_bit | event_idx_bit | 0x25;
};

class MessageHarness : public DeviceHooks {
  public:
    explicit MessageHarness(const HarnessShape& shape = {})
        : config(shape.config_size), device(describe(shape, config), *this), offered(shape.features) {
        // Not 0, and no two alike within 250 bytes.
        for (std::size_t i = 0; i < config.size(); ++i) config[i] = static_cast<std::byte>(i % 250 + 1);
    }

    // What the hooks were asked.
    std::size_t refreshes = 0;
    std::size_t hooked_writes = 0;
    std::size_t resets = 0;
    std::size_t activations = 0;
    std::set<std::uint32_t> running;
    std::size_t misuses = 0;  // calls that must not happen
    // What they answer.
    bool accept_features = true;
    bool accept_write = true;
    bool channels = true;
    GuestError activation;

    // A whole request. The answer is in `answer`, over stale bytes.
    [[nodiscard]] GuestError send(const Message& request) {
        answer = stale_message();
        return device.answer(request, answer);
    }
    template <class... T>
    [[nodiscard]] GuestError ask(std::uint8_t msg_id, const T&... parts) {
        return send(make_request(msg_id, bytes_of(parts...)));
    }
    std::uint32_t set_status(std::uint32_t status) {
        const GuestError error = ask(VMSG_SET_DEVICE_STATUS, vmsg_status{status});
        return error ? UINT32_MAX : answer.payload<vmsg_status>().status;
    }
    [[nodiscard]] GuestError set_features(std::uint64_t features) {
        return ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, feature_blocks(features)[0],
                   feature_blocks(features)[1]);
    }
    // Up to FEATURES_OK with everything that is offered.
    void negotiate() {
        set_status(0);
        set_status(status_acknowledge);
        set_status(status_acknowledge | status_driver);
        static_cast<void>(set_features(offered));
        set_status(status_acknowledge | status_driver | status_features_ok);
    }
    void start() {
        negotiate();
        for (std::uint32_t i = 0; i < device.queues().size(); ++i)
            static_cast<void>(ask(VMSG_SET_VQUEUE, plausible_queue(i, 1)));
        set_status(status_acknowledge | status_driver | status_features_ok | status_driver_ok);
    }

    void config_refresh(std::uint32_t offset, std::uint32_t size) override {
        ++refreshes;
        misuses += std::size_t{offset} + size > config.size();
    }
    bool config_write(std::uint32_t offset, std::span<const std::byte> data) override {
        ++hooked_writes;
        misuses += offset + data.size() > config.size();
        if (accept_write) std::memcpy(config.data() + offset, data.data(), data.size());
        return accept_write;
    }
    bool accepts(std::span<const std::uint32_t> features) override {
        misuses += features.size() != 2;
        return accept_features;
    }
    bool has_channel(std::uint32_t index) override {
        misuses += index >= device.queues().size();
        return channels;
    }
    GuestError activate() override {
        misuses += !running.empty();
        ++activations;
        if (activation) return activation;
        for (std::uint32_t i = 0; i < device.queues().size(); ++i)
            if (device.queues()[i].set) running.insert(i);
        return {};
    }
    GuestError enable_queue(std::uint32_t index) override {
        misuses += index >= device.queues().size() || !running.insert(index).second;
        return {};
    }
    void disable_queue(std::uint32_t index) override {
        misuses += index >= device.queues().size();
        running.erase(index);
    }
    void reset() override {
        ++resets;
        running.clear();
    }

    std::vector<std::byte> config;
    VirtioDevice device;
    std::uint64_t offered;
    Message answer;

  private:
    // Of every 16 configuration bytes: 4 read-only, 4 hooked when read, 4 plainly writable, 4 hooked when written.
    static DeviceDescription describe(const HarnessShape& shape, std::span<std::byte> config) {
        DeviceDescription description;
        description.device_id = 42;
        description.vendor_id = 0x1af4;
        description.features = feature_blocks(shape.features);
        description.config = config;
        description.queue_sizes = shape.queue_sizes;
        for (std::size_t i = 0; i < config.size(); ++i) {
            const std::size_t kind = i % 16 / 4;
            description.hooked_reads.push_back(kind == 1);
            description.writable.push_back(kind >= 2);
            description.hooked_writes.push_back(kind == 3);
        }
        return description;
    }
};

}  // namespace cpp_ring::test
