/* The harness behind module.h: a device, and what the ring half asks of the rest of the module. */
#include "module.h"

#include <linux/bitmap.h>
#include <linux/slab.h>
#include <xen/events.h>

#include "poison.h"
#include "vmsgx.h"

unsigned int vmsgx_timeout_ms = 2000;
unsigned int vmsgx_spin_us = 50;
struct workqueue_struct* vmsgx_workqueue;

/* The arena's part that is not the queue's under test. */
#define QUEUES 2

struct module {
    struct vmsgx_device dev;
    struct vmsgx_virtio virtio;
    struct xenbus_device xdev;
    struct vmsg_xen_be_page be;
    unsigned int queue_size;
    void* foreign;
    size_t foreign_size;
};

static struct module* module_of(struct vmsgx_device* dev) { return container_of(dev, struct module, dev); }

static struct vmsgx_queue* queue_of(const struct module* module) { return &module->dev.queues[0]; }

/* ---- what the ring half asks of the rest of the module ------------------------------------------- */

int vmsgx_grants_alloc(struct vmsgx_grants* grants, domid_t backend, unsigned int count, bool readonly) {
    static grant_ref_t next = 8;

    (void)backend;
    *grants = (struct vmsgx_grants){.first = next, .count = count, .readonly = readonly};
    next += count;
    grants->vaddr = aligned_alloc(PAGE_SIZE, count * PAGE_SIZE);
    memset(grants->vaddr, 0, count * PAGE_SIZE);
    shim_events.granted_areas++;
    return 0;
}

bool vmsgx_grants_free(struct vmsgx_grants* grants, struct vmsgx_kept* kept) {
    (void)kept;
    if (!grants->count) return true;
    free(grants->vaddr);
    memset(grants, 0, sizeof(*grants));
    shim_events.granted_areas--;
    return true;
}

int vmsgx_lock_up(struct vmsgx_device* dev) {
    mutex_lock(&dev->lock);
    return 0;
}

int vmsgx_get_vqueue_max(struct vmsgx_device* dev, u32 index, u32* max_size) {
    (void)index;
    *max_size = module_of(dev)->queue_size;
    return 0;
}

int vmsgx_set_vqueue(struct vmsgx_device* dev, const struct vmsgx_queue* queue) {
    (void)queue;
    lockdep_assert_held(&dev->lock);
    return 0;
}

int vmsgx_reset_vqueue(struct vmsgx_device* dev, u32 index) {
    (void)index;
    lockdep_assert_held(&dev->lock);
    return 0;
}

void vmsgx_give_up(struct vmsgx_device* dev, const char* why) {
    (void)dev;
    shim_misuse(why);
}

bool vmsgx_backend_alive(const struct vmsgx_device* dev) { return dev->be->header.live != VMSG_XEN_DEAD; }

struct page* vmsgx_dma_page(dma_addr_t address) { return (struct page*)(uintptr_t)(address & ~(PAGE_SIZE - 1)); }

/* ---- one queue -------------------------------------------------------------------------------------- */

static void called(struct virtqueue* vq) {
    (void)vq;
    shim_events.calls++;
    if (shim_events.bottom_halves_off) shim_events.process_calls++;
}

struct module* module_create(const struct module_options* options) {
    struct module* module = kvcalloc(1, sizeof(*module), GFP_KERNEL);
    struct vmsgx_device* dev = &module->dev;
    struct virtqueue_info info = {.name = "queue", .callback = options->polled ? NULL : called};
    struct virtqueue* vq;
    size_t arena;

    shim_events = (struct shim_events){.now = NSEC_PER_MSEC};
    module->queue_size = options->queue_size;
    module->xdev = (struct xenbus_device){.nodename = "device/virtio-msg/0", .dev = {.name = "virtio-msg-0"}};
    module->be.header.live = VMSG_XEN_ALIVE;
    module->virtio.dev = dev;
    module->virtio.vdev.id.device = options->device_id;
    dev->xdev = &module->xdev;
    dev->virtio = &module->virtio;
    dev->be = &module->be;
    dev->features = BIT_ULL(VIRTIO_F_RING_RESET) | (options->event_idx ? BIT_ULL(VIRTIO_RING_F_EVENT_IDX) : 0);
    if (vmsgx_queues_alloc(dev, options->device_id, QUEUES)) shim_misuse("no queues");
    arena = (size_t)dev->arena.count * PAGE_SIZE;
    module->foreign_size = arena / QUEUES;
    module->foreign = dev->arena.vaddr + module->foreign_size;
    poison(module->foreign, module->foreign_size);
    if (vmsgx_find_vqs(&module->virtio.vdev, 1, &vq, &info, NULL)) shim_misuse("no virtqueue");
    queue_of(module)->irq = 5;
    return module;
}

void module_del(struct module* module) { vmsgx_del_vqs(&module->virtio.vdev); }

void module_destroy(struct module* module) {
    module_del(module);
    unpoison(module->foreign, module->foreign_size);
    vmsgx_queues_free(&module->dev);
    kvfree(module);
}

static struct module_ring ring_of(unsigned int num, struct vring_desc* desc, struct vring_avail* avail,
                                  struct vring_used* used) {
    return (struct module_ring){.num = num,
                                .desc = desc,
                                .avail = &avail->flags,
                                .avail_entries = avail->ring,
                                .used_event = &avail->ring[num],
                                .used = &used->flags,
                                .used_entries = used->ring,
                                .avail_event = (u16*)&used->ring[num]};
}

struct module_ring module_driver_ring(const struct module* module) {
    const struct vmsgx_queue* queue = queue_of(module);
    const struct vring* ring = queue->driver;
    struct module_ring view = ring_of(ring->num, ring->desc, ring->avail, ring->used);

    view.num_free = &queue->vq->num_free;
    return view;
}

struct module_ring module_device_ring(const struct module* module) {
    const struct vmsgx_queue* queue = queue_of(module);

    return ring_of(queue->num, queue->desc, queue->avail, queue->used);
}

struct module_pool module_pool_of(const struct module* module) {
    const struct vmsgx_pool* pool = &queue_of(module)->pool;
    struct module_pool view = {.memory = pool->vaddr, .address = pool->address, .units = pool->units};

    for (unsigned int unit = 0; unit < pool->units; unit++) view.used_units += shim_bit(pool->used, unit);
    return view;
}

unsigned int module_unit(void) { return VMSGX_UNIT; }

void module_prepare(struct module* module) { vmsgx_queue_prepare(queue_of(module)); }

static void locked(struct module* module, void (*act)(struct vmsgx_device*)) {
    mutex_lock(&module->dev.lock);
    act(&module->dev);
    mutex_unlock(&module->dev.lock);
}

static void forget(struct vmsgx_device* dev) { vmsgx_queue_forget(&dev->queues[0]); }

static void call_late(struct vmsgx_device* dev) { vmsgx_queue_call_late(&dev->queues[0]); }

/* As connection.c's vmsgx_end(). */
static void end(struct vmsgx_device* dev) {
    dev->dead = true;
    vmsgx_queue_abort(&dev->queues[0]);
}

void module_start(struct module* module) { locked(module, vmsgx_queues_start); }
void module_stop(struct module* module) { locked(module, vmsgx_queues_stop); }
void module_forget(struct module* module) { locked(module, forget); }
void module_give_up(struct module* module) { locked(module, end); }
void module_call_late(struct module* module) { locked(module, call_late); }
void module_break(struct module* module) { __virtqueue_break(queue_of(module)->vq); }

bool module_is_broken(const struct module* module) { return virtqueue_is_broken(queue_of(module)->vq); }

bool module_ring_reset(struct module* module) { return !vmsgx_disable_vq_and_reset(queue_of(module)->vq); }
bool module_ring_enable(struct module* module) { return !vmsgx_enable_vq_after_reset(queue_of(module)->vq); }

void module_notify(struct module* module) {
    if (!module_is_broken(module)) module_notify_unchecked(module);
}

void module_notify_unchecked(struct module* module) {
    if (!vmsgx_queue_notify(queue_of(module)->vq)) shim_misuse("a notification that breaks the queue");
}

void module_interrupt(struct module* module) { vmsgx_queue_interrupt(queue_of(module)->irq, queue_of(module)); }

bool module_timer_armed(const struct module* module) { return queue_of(module)->look.armed; }

void module_fire_timer(struct module* module) {
    struct hrtimer* timer = &queue_of(module)->look;

    if (!timer->armed) shim_misuse("the timer is not armed");
    timer->armed = false;
    if (shim_events.now < timer->expires) shim_events.now = timer->expires;
    if (timer->function(timer) == HRTIMER_RESTART) timer->armed = true;
}

void module_backend_alive(struct module* module, bool alive) {
    module->be.header.live = alive ? VMSG_XEN_ALIVE : VMSG_XEN_DEAD;
}

bool module_running(const struct module* module) { return queue_of(module)->running; }
bool module_lied(const struct module* module) { return module->dev.lied; }
bool module_late(const struct module* module) { return module->dev.late; }
unsigned int module_completed(const struct module* module) { return (unsigned int)module->dev.completed.counter; }

bool module_queue_is_empty(const struct module* module) {
    const struct vmsgx_queue* queue = queue_of(module);

    return !queue->published_count && list_empty(&queue->published) && list_empty(&queue->waiting);
}
