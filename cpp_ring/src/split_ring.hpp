// Layout and constants of a split virtqueue (virtio 1.3 section 2.7) and the feature bits that shape it (section 6).
#pragma once

#include <cstddef>
#include <cstdint>

namespace cpp_ring {

inline constexpr unsigned feature_indirect_desc = 28;
inline constexpr unsigned feature_event_idx = 29;
inline constexpr unsigned feature_version_1 = 32;
inline constexpr unsigned feature_access_platform = 33;
inline constexpr unsigned feature_in_order = 35;
inline constexpr unsigned feature_ring_reset = 40;

[[nodiscard]] constexpr bool has_feature(std::uint64_t features, unsigned bit) noexcept {
    return (features >> bit & 1) != 0;
}

// virtq_desc, section 2.7.5.
struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
};
static_assert(sizeof(Descriptor) == 16);
static_assert(offsetof(Descriptor, address) == 0 && offsetof(Descriptor, length) == 8);
static_assert(offsetof(Descriptor, flags) == 12 && offsetof(Descriptor, next) == 14);

inline constexpr std::uint16_t desc_next = 1;      // VIRTQ_DESC_F_NEXT
inline constexpr std::uint16_t desc_write = 2;     // VIRTQ_DESC_F_WRITE
inline constexpr std::uint16_t desc_indirect = 4;  // VIRTQ_DESC_F_INDIRECT

// virtq_used_elem, section 2.7.8.
struct UsedElement {
    std::uint32_t id;
    std::uint32_t length;
};
static_assert(sizeof(UsedElement) == 8 && offsetof(UsedElement, id) == 0 && offsetof(UsedElement, length) == 4);

inline constexpr std::uint16_t avail_no_interrupt = 1;  // VIRTQ_AVAIL_F_NO_INTERRUPT, section 2.7.6
inline constexpr std::uint16_t used_no_notify = 1;      // VIRTQ_USED_F_NO_NOTIFY, section 2.7.8

inline constexpr std::uint16_t max_queue_size = 32768;
inline constexpr std::uint64_t descriptor_alignment = 16;
inline constexpr std::uint64_t driver_alignment = 2;
inline constexpr std::uint64_t device_alignment = 4;

// Bytes of the three areas, event words included.
[[nodiscard]] constexpr std::uint32_t descriptor_bytes(std::uint16_t size) noexcept { return 16U * size; }
[[nodiscard]] constexpr std::uint32_t driver_bytes(std::uint16_t size) noexcept { return 6U + 2U * size; }
[[nodiscard]] constexpr std::uint32_t device_bytes(std::uint16_t size) noexcept { return 6U + 8U * size; }

[[nodiscard]] constexpr bool valid_queue_size(std::uint64_t size) noexcept {
    return size != 0 && size <= max_queue_size && (size & (size - 1)) == 0;
}

// Where the words of one virtqueue stand. Each word is written by one side only: the driver writes the first six.
struct SplitRing {
    Descriptor* descriptors = nullptr;
    std::uint16_t* avail_flags = nullptr;
    std::uint16_t* avail_idx = nullptr;
    std::uint16_t* avail_ring = nullptr;
    std::uint16_t* used_event = nullptr;  // behind avail_ring: "interrupt me after this used entry"
    std::uint16_t* used_flags = nullptr;
    std::uint16_t* used_idx = nullptr;
    UsedElement* used_ring = nullptr;
    std::uint16_t* avail_event = nullptr;  // behind used_ring: "kick me after this avail entry"

    SplitRing() = default;
    SplitRing(std::uint16_t size, std::byte* descriptor_area, std::byte* driver_area, std::byte* device_area) noexcept
        : descriptors(reinterpret_cast<Descriptor*>(descriptor_area)),
          avail_flags(reinterpret_cast<std::uint16_t*>(driver_area)),
          avail_idx(avail_flags + 1),
          avail_ring(avail_flags + 2),
          used_event(avail_ring + size),
          used_flags(reinterpret_cast<std::uint16_t*>(device_area)),
          used_idx(used_flags + 1),
          used_ring(reinterpret_cast<UsedElement*>(device_area + 4)),
          avail_event(reinterpret_cast<std::uint16_t*>(used_ring + size)) {}
};

// Sections 2.7.7 and 2.7.10: is entry `event` among the last `count` ones before `idx`? `count` may exceed 2^16.
[[nodiscard]] constexpr bool crosses_event(std::uint16_t event, std::uint16_t idx, std::uint32_t count) noexcept {
    return static_cast<std::uint16_t>(idx - event - 1) < count;
}

}  // namespace cpp_ring
