/* SPDX-License-Identifier: GPL-2.0 */
/*
 * virtio-msg over Xen grants and event channels, the driver's end (docs/protocol.md).
 *
 * A device is one xenbus device of type "virtio-msg". It has a connection (two pages, event
 * channels, an arena of granted pages), which may be lost and made again, and a virtio device,
 * which stays and notices nothing of that.
 */
#ifndef VMSGX_H
#define VMSGX_H

#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <xen/grant_table.h>
#include <xen/xenbus.h>

#include "virtio_msg_xen.h"

/*
 * Virtqueues used of one device at most, however many the backend claims: 64 pairs and a control
 * queue.
 */
#define VMSGX_MAX_QUEUES 129

/* ---- grants.c -------------------------------------------------------------------------------- */

/* Pages of ours that the backend may use, on consecutive references, mapped in a row. */
struct vmsgx_grants {
	grant_ref_t first;
	unsigned int count;	/* 0: there are none */
	bool readonly;		/* for the backend */
	struct page **pages;
	void *vaddr;
};

/* Pages that a backend had not let go of when they were withdrawn; so many are waited for. */
#define VMSGX_MAX_KEPT 16

struct vmsgx_kept {
	unsigned int count;
	struct {
		grant_ref_t ref;
		struct page *page;
	} entries[VMSGX_MAX_KEPT];
};

void vmsgx_kept_retry(struct vmsgx_kept *kept);
void vmsgx_kept_leave(struct vmsgx_kept *kept);

int vmsgx_grants_alloc(struct vmsgx_grants *grants, domid_t backend, unsigned int count,
		       bool readonly);
bool vmsgx_grants_free(struct vmsgx_grants *grants, struct vmsgx_kept *kept);
void vmsgx_grants_renew(struct vmsgx_grants *grants, domid_t backend);

static inline u64 vmsgx_grant_address(const struct vmsgx_grants *grants, u64 offset)
{
	return VMSG_XEN_DMA_GRANT + ((u64)grants->first << VMSG_XEN_DMA_REF_SHIFT) + offset;
}

/* ---- pool.c ---------------------------------------------------------------------------------- */

#define VMSGX_UNIT 512	/* of allocation, and the alignment of every buffer: sectors stay sectors */

/* A queue's part of the arena. Buffers of the driver are copied into and out of it. */
struct vmsgx_pool {
	void *vaddr;
	u64 address;		/* grant-DMA address of its first byte */
	unsigned int units;
	unsigned long *used;	/* one bit a unit */
};

unsigned int vmsgx_pool_pages(u32 device_id, unsigned int queues);
int vmsgx_pool_init(struct vmsgx_pool *pool, const struct vmsgx_grants *arena, unsigned int page,
		    unsigned int pages);
void vmsgx_pool_destroy(struct vmsgx_pool *pool);
int vmsgx_pool_take(struct vmsgx_pool *pool, unsigned int units);
void vmsgx_pool_give(struct vmsgx_pool *pool, unsigned int start, unsigned int units);
void vmsgx_pool_clear(struct vmsgx_pool *pool);

/* ---- relay.c --------------------------------------------------------------------------------- */

/* One request of the driver's, by the index of its first descriptor. */
struct vmsgx_chain {
	struct list_head link;	/* in vmsgx_queue.waiting or .published, or empty */
	unsigned int start;	/* its units of the pool, once published */
	unsigned int units;
	u32 writable;		/* bytes that the device may write */
	bool published;
};

/*
 * A virtqueue: the driver's ring, which only this kernel sees, and the device's ring, which is
 * granted. Chains are relayed from one to the other (docs/design/009).
 */
struct vmsgx_queue {
	struct vmsgx_device *dev;
	unsigned int index;
	char name[24];			/* of its interrupt */
	evtchn_port_t port;
	int irq;			/* 0: no port */
	bool pinned;			/* to the CPUs of `affinity`; under vmsgx_device.lock */
	cpumask_var_t affinity;
	struct vmsgx_pool pool;

	spinlock_t lock;		/* everything below */
	struct virtqueue *vq;		/* NULL: the driver does not use it */
	bool running;			/* the device may be given chains */
	bool event_idx;
	/* The driver's callback is due, see vmsgx_queue_call_late. */
	bool call_later;
	bool progress;			/* something came back since the last interrupt */
	unsigned int num;
	const struct vring *driver;
	u16 driver_taken;		/* avail entries of the driver's ring that were looked at */
	u16 driver_used;		/* used entries given to the driver */
	/* Descriptor table and avail ring, read-only for the backend. */
	struct vmsgx_grants read_area;
	struct vmsgx_grants write_area;	/* used ring */
	u64 descriptor_address;
	u64 driver_address;
	u64 device_address;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	u16 avail_idx;
	/* avail_idx when the backend was last considered for a kick. */
	u16 kicked_idx;
	u16 used_idx;			/* used entries of the device's ring that were taken */
	u16 published_count;
	struct list_head waiting;	/* not in the device's ring, in order */
	struct list_head published;	/* in the device's ring, in order of publication */
	struct vmsgx_chain *chains;	/* num of them */
	struct hrtimer look;		/* at a queue whose driver polls, or that is to break */
	unsigned int looks;		/* since the last reason to look soon */
	ktime_t deadline;		/* of its requests */
};

/* All under vmsgx_queue.lock. */
bool vmsgx_relay(struct vmsgx_queue *queue, bool *lied);
bool vmsgx_fill(struct vmsgx_queue *queue);
int vmsgx_reap(struct vmsgx_queue *queue);
bool vmsgx_fail_waiting(struct vmsgx_queue *queue);
void vmsgx_withdraw(struct vmsgx_queue *queue);
bool vmsgx_wants_call(struct vmsgx_queue *queue);

/* ---- queue.c --------------------------------------------------------------------------------- */

void vmsgx_look_soon(struct vmsgx_queue *queue);
bool vmsgx_queue_notify(struct virtqueue *vq);
irqreturn_t vmsgx_queue_interrupt(int irq, void *opaque);
enum hrtimer_restart vmsgx_queue_look(struct hrtimer *timer);
void vmsgx_queue_prepare(struct vmsgx_queue *queue);
void vmsgx_queue_start(struct vmsgx_queue *queue);
void vmsgx_queue_stop(struct vmsgx_queue *queue);
void vmsgx_queue_forget(struct vmsgx_queue *queue);
void vmsgx_queue_abort(struct vmsgx_queue *queue);
void vmsgx_queue_call_late(struct vmsgx_queue *queue);

/* ---- payload.c: under vmsgx_queue.lock ------------------------------------------------------- */

struct vmsgx_shape {
	unsigned int units;	/* of the pool */
	unsigned int pieces;	/* descriptors */
	u32 writable;		/* bytes */
	bool indirect;
};

bool vmsgx_chain_is_writable(struct vmsgx_queue *queue, unsigned int head);
unsigned int vmsgx_chain_descriptors(struct vmsgx_queue *queue, unsigned int head);
void vmsgx_chain_measure(struct vmsgx_queue *queue, unsigned int head, struct vmsgx_shape *shape);
void vmsgx_chain_describe(struct vmsgx_queue *queue, unsigned int head, struct vmsgx_chain *chain,
			  const struct vmsgx_shape *shape);
void vmsgx_chain_copy_back(struct vmsgx_queue *queue, struct vmsgx_chain *chain, unsigned int head,
			   u32 written);
void vmsgx_chain_spoil(struct vmsgx_queue *queue, unsigned int head);

/* ---- the device ------------------------------------------------------------------------------ */

/* Freed by its release function, whenever that comes. */
struct vmsgx_virtio {
	struct virtio_device vdev;
	struct vmsgx_device *dev;
};

/* What the emulator says the device is: GET_DEVICE_INFO. */
struct vmsgx_info {
	u32 device_id;
	u32 vendor_id;
	u32 feature_words;
	u32 config_size;
	u32 max_vqueues;
};

struct vmsgx_device {
	struct xenbus_device *xdev;
	struct vmsgx_virtio *virtio;	/* from its registration to its end */
	struct vmsgx_info info;

	/* connection.c */
	struct work_struct state_work;	/* connects, recovers; never waits for the driver */
	struct work_struct bus_work;	/* registers and unregisters the virtio device */
	struct delayed_work retry_work;	/* looks again where no watch may fire */
	wait_queue_head_t wait;		/* for `up`, `dead`, an answer, an event */
	bool offered;			/* our nodes are there for the backend */
	bool met;			/* and it has connected to them */
	/* Exchanges are possible; set under `lock`, cleared by anyone. */
	bool up;
	/* A request that a driver polls for was not answered in time. */
	bool late;
	bool lied;			/* a used ring holds what cannot be */
	bool dead;			/* for good: no exchange, every request fails */
	bool known;			/* `info` is what the device was at first */
	bool unplugged;			/* `bus_work` is to end the virtio device */
	unsigned int idle_looks;	/* after which nothing was completed, since then */
	bool removing;			/* xenbus takes the device from us */
	bool resumed;			/* another Xen: no port and no grant is left */
	unsigned int failures;		/* recoveries without one request completed in between */
	int completed_before;
	atomic_t completed;

	/* ports.c */
	evtchn_port_t port;
	int irq;

	/* channel.c: all under `lock` */
	struct mutex lock;
	struct vmsgx_grants fe_grant;
	struct vmsgx_grants be_grant;
	struct vmsgx_kept kept;		/* of earlier connections */
	struct vmsg_xen_fe_page *fe;
	struct vmsg_xen_be_page *be;	/* the backend writes it at any time */
	u32 seq;
	u8 epoch;
	u8 message[VMSG_MAX_SIZE];

	/* config.c: under `lock` */
	u8 status;			/* as the driver wants it, restored after a loss */
	u64 offered_features;
	u64 features;			/* as written to the device */
	bool features_written;
	u32 seen_generation;		/* the driver knows of it; READ_ONCE elsewhere */
	u32 told_generation;		/* when the driver last asked for it */
	unsigned int restless;		/* times in a row that it was another one */
	bool cache_valid;		/* `cache` is of `cache_generation` */
	bool cached;			/* it is of some generation */
	u32 cache_generation;
	u8 cache[VMSG_MAX_CONFIG_DATA];

	/* virtqueues.c */
	struct vmsgx_grants arena;
	unsigned int queue_count;
	struct vmsgx_queue *queues;
};

static inline struct vmsgx_device *to_vmsgx(struct virtio_device *vdev)
{
	return container_of(vdev, struct vmsgx_virtio, vdev)->dev;
}

/* ---- main.c ---------------------------------------------------------------------------------- */

extern unsigned int vmsgx_timeout_ms;
extern unsigned int vmsgx_spin_us;
extern struct workqueue_struct *vmsgx_workqueue;
extern struct workqueue_struct *vmsgx_bus_workqueue;

/* ---- connection.c ---------------------------------------------------------------------------- */

void vmsgx_state_work(struct work_struct *work);
void vmsgx_retry_work(struct work_struct *work);
void vmsgx_lost(struct vmsgx_device *dev);
void vmsgx_end(struct vmsgx_device *dev);
void vmsgx_give_up(struct vmsgx_device *dev, const char *why);
void vmsgx_disconnect(struct vmsgx_device *dev);

/* ---- registration.c ------------------------------------------------------------------------ */

void vmsgx_bus_work(struct work_struct *work);
void vmsgx_close(struct vmsgx_device *dev);

/* ---- ports.c --------------------------------------------------------------------------------- */

int vmsgx_ports_open(struct vmsgx_device *dev);
void vmsgx_ports_close(struct vmsgx_device *dev);

/* ---- channel.c ------------------------------------------------------------------------------- */

int vmsgx_channel_open(struct vmsgx_device *dev);
int vmsgx_channel_check(struct vmsgx_device *dev);
void vmsgx_channel_leave(struct vmsgx_device *dev);
bool vmsgx_channel_free(struct vmsgx_device *dev);
int vmsgx_lock_up(struct vmsgx_device *dev);
int vmsgx_exchange(struct vmsgx_device *dev, u8 msg_id, const void *payload, size_t size,
		   void *answer, size_t capacity);
bool vmsgx_backend_alive(const struct vmsgx_device *dev);
u32 vmsgx_device_status(const struct vmsgx_device *dev);
u32 vmsgx_generation(const struct vmsgx_device *dev);
irqreturn_t vmsgx_channel_interrupt(int irq, void *opaque);

/* A driver that looks for a config space that stays the same finds another one so often in a row. */
#define VMSGX_RESTLESS 100

/* A call that found its backend gone is made again when it is back: this often. */
#define VMSGX_ATTEMPTS 3

/*
 * Makes @call, an expression that is 0 or an error, under vmsgx_device.lock with the device
 * connected.
 */
#define CALL_CONNECTED(dev, call)						\
({										\
	struct vmsgx_device *dev_ = (dev);					\
	unsigned int attempt_ = 0;						\
	int err_;								\
										\
	do {									\
		err_ = vmsgx_lock_up(dev_);					\
		if (err_)							\
			break;							\
		err_ = (call);							\
		mutex_unlock(&dev_->lock);					\
	} while (err_ == -ENOTCONN && ++attempt_ < VMSGX_ATTEMPTS);		\
	err_;									\
})

/* ---- messages.c: one exchange each, under vmsgx_device.lock ---------------------------------- */

int vmsgx_get_info(struct vmsgx_device *dev, struct vmsgx_info *info);
int vmsgx_get_features(struct vmsgx_device *dev, u64 *features);
int vmsgx_set_features(struct vmsgx_device *dev, u64 features);
int vmsgx_get_config(struct vmsgx_device *dev, u32 offset, void *data, u32 size, u32 *generation);
int vmsgx_set_config(struct vmsgx_device *dev, u32 offset, const void *data, u32 size,
		     u32 *generation);
int vmsgx_set_status(struct vmsgx_device *dev, u32 status, u32 *result);
int vmsgx_get_vqueue_max(struct vmsgx_device *dev, u32 index, u32 *max_size);
int vmsgx_set_vqueue(struct vmsgx_device *dev, const struct vmsgx_queue *queue);
int vmsgx_reset_vqueue(struct vmsgx_device *dev, u32 index);
int vmsgx_get_shm(struct vmsgx_device *dev, u32 index, u64 *length);

/* ---- config.c -------------------------------------------------------------------------------- */

extern const struct virtio_config_ops vmsgx_config_ops;
int vmsgx_restore(struct vmsgx_device *dev);
int vmsgx_refresh_config(struct vmsgx_device *dev, bool *changed);

/* ---- virtqueues.c ---------------------------------------------------------------------------- */

#ifdef VMSGX_HAVE_VIRTQUEUE_INFO
int vmsgx_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		   struct virtqueue_info infos[], struct irq_affinity *affinity);
#else
int vmsgx_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		   vq_callback_t *callbacks[], const char * const names[], const bool *context,
		   struct irq_affinity *affinity);
#endif
void vmsgx_del_vqs(struct virtio_device *vdev);
int vmsgx_disable_vq_and_reset(struct virtqueue *vq);
int vmsgx_enable_vq_after_reset(struct virtqueue *vq);
int vmsgx_set_vq_affinity(struct virtqueue *vq, const struct cpumask *mask);
const struct cpumask *vmsgx_get_vq_affinity(struct virtio_device *vdev, int index);
void vmsgx_synchronize_cbs(struct virtio_device *vdev);
int vmsgx_queues_alloc(struct vmsgx_device *dev, u32 device_id, unsigned int count);
void vmsgx_queues_free(struct vmsgx_device *dev);
void vmsgx_queues_stop(struct vmsgx_device *dev);
void vmsgx_queues_start(struct vmsgx_device *dev);

/* ---- dma.c ----------------------------------------------------------------------------------- */

void vmsgx_dma_setup(struct device *device);
void vmsgx_dma_teardown(struct device *device);
struct page *vmsgx_dma_page(dma_addr_t address);

#endif
