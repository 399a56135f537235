/* A virtio device and its queues as the transport sees them. */
#pragma once

#include <linux/device.h>
#include <linux/types.h>

struct virtio_device_id {
    u32 device;
    u32 vendor;
};

struct virtio_device {
    struct device dev;
    struct virtio_device_id id;
    u64 features;
};

struct virtqueue {
    void (*callback)(struct virtqueue* vq);
    const char* name;
    struct virtio_device* vdev;
    unsigned int index;
    unsigned int num_free;
    unsigned int num_max;
    void* priv;
};

typedef void vq_callback_t(struct virtqueue*);

bool virtqueue_is_broken(const struct virtqueue* vq);
void __virtqueue_break(struct virtqueue* vq);
void __virtqueue_unbreak(struct virtqueue* vq);
unsigned int virtqueue_get_vring_size(const struct virtqueue* vq);
const struct vring* virtqueue_get_vring(const struct virtqueue* vq);
