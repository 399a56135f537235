// The wire layout of protocol/virtio_msg_xen.h, every size and offset pinned (docs/protocol.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "virtio_msg_xen.h"

namespace cpp_ring {

static_assert(sizeof(vmsg_xen_fe_header) == VMSG_XEN_CACHE_LINE);
static_assert(offsetof(vmsg_xen_fe_header, version) == 0x04);
static_assert(offsetof(vmsg_xen_fe_header, live) == 0x08);
static_assert(offsetof(vmsg_xen_fe_header, fe_waiting) == 0x0c);

static_assert(sizeof(vmsg_xen_be_header) == VMSG_XEN_CACHE_LINE);
static_assert(offsetof(vmsg_xen_be_header, version) == 0x04);
static_assert(offsetof(vmsg_xen_be_header, live) == 0x08);
static_assert(offsetof(vmsg_xen_be_header, be_waiting) == 0x0c);
static_assert(offsetof(vmsg_xen_be_header, device_status) == 0x10);
static_assert(offsetof(vmsg_xen_be_header, config_generation) == 0x14);
static_assert(offsetof(vmsg_xen_be_header, error_code) == 0x18);
static_assert(offsetof(vmsg_xen_be_header, error_detail) == 0x1c);

static_assert(offsetof(vmsg_xen_slot, size) == 4 && offsetof(vmsg_xen_slot, message) == 8);
static_assert(sizeof(vmsg_xen_slot) == 8 + VMSG_MAX_SIZE);
static_assert(offsetof(vmsg_xen_fe_page, request) == 0x40 && sizeof(vmsg_xen_fe_page) <= VMSG_XEN_PAGE_SIZE);
static_assert(offsetof(vmsg_xen_be_page, answer) == 0x40 && sizeof(vmsg_xen_be_page) <= VMSG_XEN_PAGE_SIZE);

static_assert(sizeof(vmsg_header) == 8 && offsetof(vmsg_header, token) == 4 && offsetof(vmsg_header, msg_size) == 6);
static_assert(sizeof(vmsg_device_info) == 24);
static_assert(sizeof(vmsg_feature_range) == 8);
static_assert(sizeof(vmsg_config_range) == 8);
static_assert(sizeof(vmsg_config) == 12);
static_assert(sizeof(vmsg_vqueue) == 40 && offsetof(vmsg_vqueue, descriptor_address) == 16);
static_assert(sizeof(vmsg_shm) == 20);
static_assert(sizeof(vmsg_header) + sizeof(vmsg_config) + VMSG_MAX_CONFIG_DATA == VMSG_MAX_SIZE);

// A private copy of one message. Only the first size() bytes mean anything.
class Message {
  public:
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] const std::byte* data() const noexcept { return bytes_.data(); }
    [[nodiscard]] std::byte* data() noexcept { return bytes_.data(); }
    void resize(std::size_t size) noexcept { size_ = size; }  // size <= VMSG_MAX_SIZE, checked by who read it

    [[nodiscard]] vmsg_header header() const noexcept { return get<vmsg_header>(0); }
    [[nodiscard]] std::size_t payload_size() const noexcept { return size_ - sizeof(vmsg_header); }

    // The bytes from `offset` of the payload as a T. The caller has checked payload_size().
    template <class T>
    [[nodiscard]] T payload(std::size_t offset = 0) const noexcept {
        return get<T>(sizeof(vmsg_header) + offset);
    }
    [[nodiscard]] std::span<const std::byte> payload_bytes(std::size_t offset = 0) const noexcept {
        return {bytes_.data() + sizeof(vmsg_header) + offset, size_ - sizeof(vmsg_header) - offset};
    }

    // Starts a message; finish() writes the header once its size is known.
    void begin() noexcept { size_ = sizeof(vmsg_header); }
    // T has no padding, so no byte of the host's stack goes out (XSA-216).
    template <class T>
        requires std::has_unique_object_representations_v<T> && (std::is_aggregate_v<T> || std::is_integral_v<T>)
    void append(const T& value) noexcept {
        std::memcpy(bytes_.data() + size_, &value, sizeof value);
        size_ += sizeof value;
    }
    void append_bytes(std::span<const std::byte> data) noexcept {
        if (!data.empty()) std::memcpy(bytes_.data() + size_, data.data(), data.size());
        size_ += data.size();
    }
    void finish(std::uint8_t type, std::uint8_t msg_id, std::uint16_t token) noexcept {
        // As one word: five small stores would stall the load of eight bytes that copies it to the page.
        const std::uint64_t header = type | std::uint64_t{msg_id} << 8 | std::uint64_t{token} << 32 |
                                     std::uint64_t{static_cast<std::uint16_t>(size_)} << 48;
        std::memcpy(bytes_.data(), &header, sizeof header);
    }

  private:
    template <class T>
    [[nodiscard]] T get(std::size_t offset) const noexcept {
        T value{};
        std::memcpy(&value, bytes_.data() + offset, sizeof value);
        return value;
    }

    alignas(8) std::array<std::byte, VMSG_MAX_SIZE> bytes_{};
    std::size_t size_ = 0;
};

}  // namespace cpp_ring
