/*
 * Behind virtio_ring's calls: a queue whose ring is three blocks of exactly their sizes. Filling it is the tests' own
 * (driver.hpp).
 */
#include <linux/slab.h>
#include <linux/virtio_ring.h>
#include <stdio.h>
#include <stdlib.h>

struct shim_events shim_events;

void shim_misuse(const char* what) {
    fprintf(stderr, "guest module: %s\n", what);
    abort();
}

struct shim_virtqueue {
    struct virtqueue vq;
    struct vring ring;
    bool broken;
};

static struct shim_virtqueue* of(const struct virtqueue* vq) { return container_of(vq, struct shim_virtqueue, vq); }

struct virtqueue* vring_create_virtqueue(unsigned int index, unsigned int num, unsigned int align,
                                         struct virtio_device* vdev, bool weak_barriers, bool may_reduce, bool context,
                                         bool (*notify)(struct virtqueue*), void (*callback)(struct virtqueue*),
                                         const char* name) {
    struct shim_virtqueue* queue = kvcalloc(1, sizeof(*queue), GFP_KERNEL);

    (void)align, (void)weak_barriers, (void)may_reduce, (void)context, (void)notify;
    queue->vq = (struct virtqueue){.callback = callback, .name = name, .vdev = vdev, .index = index, .num_free = num};
    queue->ring.num = num;
    queue->ring.desc = kvcalloc(num, sizeof(struct vring_desc), GFP_KERNEL);
    queue->ring.avail = kvcalloc(3 + num, sizeof(u16), GFP_KERNEL);
    queue->ring.used = kvcalloc(1, 3 * sizeof(u16) + num * sizeof(vring_used_elem_t), GFP_KERNEL);
    return &queue->vq;
}

void vring_del_virtqueue(struct virtqueue* vq) {
    struct shim_virtqueue* queue = of(vq);

    kvfree(queue->ring.desc);
    kvfree(queue->ring.avail);
    kvfree(queue->ring.used);
    kvfree(queue);
}

unsigned int virtqueue_get_vring_size(const struct virtqueue* vq) { return of(vq)->ring.num; }

/* What the module keeps of this is read in interrupts, which may come at any time: it must be changed under the queue's
 * lock. */
const struct vring* virtqueue_get_vring(const struct virtqueue* vq) {
    if (!shim_events.spin_locks) shim_misuse("a queue's ring is changed without its lock");
    return &of(vq)->ring;
}

bool virtqueue_is_broken(const struct virtqueue* vq) { return of(vq)->broken; }

void __virtqueue_break(struct virtqueue* vq) { of(vq)->broken = true; }

void __virtqueue_unbreak(struct virtqueue* vq) { of(vq)->broken = false; }

/* A driver's callback takes the driver's own locks, under which the driver notifies: no lock of the module's may be
 * held. */
irqreturn_t vring_interrupt(int irq, void* opaque) {
    struct virtqueue* vq = opaque;

    (void)irq;
    if (shim_events.spin_locks) shim_misuse("the driver is called under a spin lock");
    if (of(vq)->broken) return IRQ_HANDLED;
    if (vq->callback) vq->callback(vq);
    return IRQ_HANDLED;
}
