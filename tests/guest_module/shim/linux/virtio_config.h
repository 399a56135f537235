/* What a driver asks of its device's transport; the byte order is that of VERSION_1. */
#pragma once

#include <linux/virtio.h>

#define VIRTIO_F_RING_RESET 40

struct irq_affinity;
struct virtio_config_ops;
struct virtqueue_info {
    const char* name;
    vq_callback_t* callback;
    bool ctx;
};

static inline u16 virtio16_to_cpu(const struct virtio_device* vdev, __virtio16 value) {
    (void)vdev;
    return value;
}

static inline u32 virtio32_to_cpu(const struct virtio_device* vdev, __virtio32 value) {
    (void)vdev;
    return value;
}

static inline u64 virtio64_to_cpu(const struct virtio_device* vdev, __virtio64 value) {
    (void)vdev;
    return value;
}

static inline __virtio16 cpu_to_virtio16(const struct virtio_device* vdev, u16 value) {
    (void)vdev;
    return value;
}

static inline __virtio32 cpu_to_virtio32(const struct virtio_device* vdev, u32 value) {
    (void)vdev;
    return value;
}

/* A driver's buffers are named by their addresses. */
static inline void* phys_to_virt(u64 address) { return (void*)(uintptr_t)address; }
