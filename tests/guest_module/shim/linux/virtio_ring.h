/* The split ring's layout and the calls of virtio_ring.c; what stands behind them is shim/virtio_ring.c. */
#pragma once

#include <linux/barriers.h>
#include <linux/interrupt.h>
#include <linux/virtio_config.h>

#include "../../vring_layout.h"

#define VIRTIO_RING_F_EVENT_IDX 29

typedef struct vring_used_elem vring_used_elem_t;

struct vring_avail {
    __virtio16 flags;
    __virtio16 idx;
    __virtio16 ring[];
};

struct vring_used {
    __virtio16 flags;
    __virtio16 idx;
    vring_used_elem_t ring[];
};

struct vring {
    unsigned int num;
    struct vring_desc* desc;
    struct vring_avail* avail;
    struct vring_used* used;
};

/* Did the index pass @event between @old and @new_idx (virtio 1.3 section 2.7.10)? */
static inline bool vring_need_event(u16 event, u16 new_idx, u16 old) {
    return (u16)(new_idx - event - 1) < (u16)(new_idx - old);
}

struct virtqueue* vring_create_virtqueue(unsigned int index, unsigned int num, unsigned int align,
                                         struct virtio_device* vdev, bool weak_barriers, bool may_reduce, bool context,
                                         bool (*notify)(struct virtqueue*), void (*callback)(struct virtqueue*),
                                         const char* name);
void vring_del_virtqueue(struct virtqueue* vq);
irqreturn_t vring_interrupt(int irq, void* vq);
