// SPDX-License-Identifier: GPL-2.0
/*
 * The data path: chains go from the driver's ring, which only this kernel sees, into the device's
 * ring, which is granted, and come back (docs/design/009). What is in them is payload.c's.
 *
 * The index of a chain's first descriptor names it on both sides, so there is always a descriptor
 * where one is needed, and the pool alone decides how much is in flight.
 */
#include <linux/bottom_half.h>
#include <linux/virtio_ring.h>
#include <xen/events.h>

#include "trace.h"
#include "vmsgx.h"

/* Between two looks at a queue that has requests and no callback. */
#define LOOK_NS NSEC_PER_MSEC

/* ---- back to the driver ---------------------------------------------------------------------- */

static void give_back(struct vmsgx_queue *queue, unsigned int head, u32 length)
{
	struct virtio_device *vdev = queue->vq->vdev;
	vring_used_elem_t *element =
		&queue->driver->used->ring[queue->driver_used & (queue->num - 1)];

	element->id = cpu_to_virtio32(vdev, head);
	element->len = cpu_to_virtio32(vdev, length);
	queue->driver_used++;
	/* Partner: virtio_ring's read barrier after it looks at used->idx. */
	smp_store_release(&queue->driver->used->idx, cpu_to_virtio16(vdev, queue->driver_used));
	queue->progress = true;
	atomic_inc(&queue->dev->completed);
}

/* Does the driver want to be called for what was given back? */
static bool wants_call(struct vmsgx_queue *queue)
{
	/*
	 * Partner: virtio_ring's barrier after it clears the flag, before it looks at used->idx
	 * once more.
	 */
	smp_mb();
	return !(virtio16_to_cpu(queue->vq->vdev, READ_ONCE(queue->driver->avail->flags)) &
		 VRING_AVAIL_F_NO_INTERRUPT);
}

/* A request that no device will carry out: nothing was written. */
static void fail(struct vmsgx_queue *queue, unsigned int head)
{
	vmsgx_chain_spoil(queue, head);
	give_back(queue, head, 0);
}

/* Whether there were any. */
static bool fail_waiting(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	bool failed = !list_empty(&queue->waiting);

	list_for_each_entry_safe(chain, following, &queue->waiting, link) {
		list_del_init(&chain->link);
		fail(queue, chain - queue->chains);
	}
	return failed;
}

static void release(struct vmsgx_queue *queue, struct vmsgx_chain *chain)
{
	vmsgx_pool_give(&queue->pool, chain->start, chain->units);
	chain->published = false;
	list_del_init(&chain->link);
	queue->published_count--;
}

/*
 * Partner: the backend's release store of used->idx; entries and payload are there when it is seen.
 */
static u16 load_used_idx(const struct vmsgx_queue *queue)
{
	return le16_to_cpu(virt_load_acquire((__le16 *)&queue->used->idx));
}

/*
 * Takes what the device has used, each word of it read once and checked. -EPROTO: a lie. Every
 * round but the first takes something, however the index moves.
 */
static int reap(struct vmsgx_queue *queue)
{
	u16 idx = load_used_idx(queue);

	for (;;) {
		if ((u16)(idx - queue->used_idx) > queue->published_count)
			return -EPROTO;
		while (queue->used_idx != idx) {
			const vring_used_elem_t *element =
				&queue->used->ring[queue->used_idx & (queue->num - 1)];
			u32 head = le32_to_cpu((__force __le32)READ_ONCE(element->id));
			u32 written = le32_to_cpu((__force __le32)READ_ONCE(element->len));
			struct vmsgx_chain *chain;

			if (head >= queue->num)
				return -EPROTO;
			chain = &queue->chains[head];
			if (!chain->published || written > chain->writable)
				return -EPROTO;
			queue->used_idx++;
			vmsgx_chain_copy_back(queue, chain, head, written);
			release(queue, chain);
			give_back(queue, head, written);
		}
		if (!queue->event_idx)
			return 0;
		/* used_event: an event at the next one, please. */
		WRITE_ONCE(queue->avail->ring[queue->num],
			   (__force __virtio16)cpu_to_le16(queue->used_idx));
		/* Partner: the backend's fence between used->idx and its look at used_event. */
		virt_mb();
		idx = load_used_idx(queue);
		if (idx == queue->used_idx)
			return 0;
	}
}

/* ---- to the device --------------------------------------------------------------------------- */

/* 0: it is in the device's ring. -ENOSPC: not now. -E2BIG: never. */
static int put(struct vmsgx_queue *queue, struct vmsgx_chain *chain)
{
	unsigned int head = chain - queue->chains;
	struct vmsgx_shape shape;
	int start;

	vmsgx_chain_measure(queue, head, &shape);
	if (shape.units > queue->pool.units || !shape.pieces)
		return -E2BIG;
	start = vmsgx_pool_take(&queue->pool, shape.units);
	if (start < 0)
		return start;
	chain->start = start;
	chain->units = shape.units;
	chain->writable = shape.writable;
	vmsgx_chain_describe(queue, head, chain, &shape);
	queue->avail->ring[queue->avail_idx & (queue->num - 1)] =
		(__force __virtio16)cpu_to_le16(head);
	queue->avail_idx++;
	chain->published = true;
	queue->published_count++;
	list_move_tail(&chain->link, &queue->published);
	return 0;
}

/* Looks for chains that the driver made available since, and has them wait. */
static void take(struct vmsgx_queue *queue)
{
	struct virtio_device *vdev = queue->vq->vdev;
	const struct vring *ring = queue->driver;
	/* Partner: virtio_ring's write barrier before it raises avail->idx. */
	u16 idx = virtio16_to_cpu(vdev, smp_load_acquire(&ring->avail->idx));

	while (queue->driver_taken != idx) {
		unsigned int slot = queue->driver_taken++ & (queue->num - 1);
		unsigned int head = virtio16_to_cpu(vdev, ring->avail->ring[slot]);

		if (WARN_ON_ONCE(head >= queue->num))
			continue;
		list_add_tail(&queue->chains[head].link, &queue->waiting);
	}
}

static void kick(struct vmsgx_queue *queue)
{
	const struct vring_used *used = queue->used;
	u16 old = queue->kicked_idx;
	bool wanted;
	u16 event;

	if (old == queue->avail_idx)
		return;
	queue->kicked_idx = queue->avail_idx;
	/*
	 * Partner: the backend's fence between avail_event (or its flag) and its last look before
	 * it sleeps.
	 */
	virt_mb();
	if (queue->event_idx) {
		event = le16_to_cpu(READ_ONCE(*(__le16 *)&used->ring[queue->num]));
		wanted = vring_need_event(event, queue->avail_idx, old);
	} else {
		event = le16_to_cpu((__force __le16)READ_ONCE(used->flags));
		wanted = !(event & VRING_USED_F_NO_NOTIFY);
	}
	trace_vmsgx_kick(queue->dev->xdev->nodename, queue->index, queue->avail_idx, wanted);
	if (wanted)
		notify_remote_via_irq(queue->irq);
}

/* Publishes all that fits. Whether a request came back by that, as one that failed. */
static bool fill(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	bool failed = false;

	if (!queue->driver)
		return false;	/* between RING_RESET's two halves */
	take(queue);
	if (READ_ONCE(queue->dev->dead))
		return fail_waiting(queue);
	if (!queue->running)
		return false;
	list_for_each_entry_safe(chain, following, &queue->waiting, link) {
		int err = put(queue, chain);

		if (err == -ENOSPC)
			break;
		if (err) {
			dev_warn_ratelimited(&queue->dev->xdev->dev,
					     "queue %u: a request is larger than its pool of %u KiB\n",
					     queue->index, queue->pool.units / (1024 / VMSGX_UNIT));
			list_del_init(&chain->link);
			fail(queue, chain - queue->chains);
			failed = true;
		}
	}
	/*
	 * Partner: the backend's acquire load of avail->idx: entries, descriptors and payload are
	 * there.
	 */
	virt_store_release((__le16 *)&queue->avail->idx, cpu_to_le16(queue->avail_idx));
	kick(queue);
	return failed;
}

static bool relay(struct vmsgx_queue *queue, bool *lied)
{
	u16 before = queue->driver_used;

	if (queue->running && reap(queue)) {
		queue->running = false;	/* it is not served further */
		*lied = true;
	}
	fill(queue);
	return queue->driver_used != before && wants_call(queue);
}

/*
 * What is in the device's ring has to be published again, before everything else and in its order.
 */
static void withdraw(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain;

	queue->running = false;
	list_for_each_entry(chain, &queue->published, link)
		chain->published = false;
	list_splice_init(&queue->published, &queue->waiting);
	queue->published_count = 0;
	vmsgx_pool_clear(&queue->pool);
}

static bool unanswered(const struct vmsgx_queue *queue)
{
	return queue->published_count || !list_empty(&queue->waiting);
}

/*
 * In process context, under vmsgx_device.lock; the driver expects bottom halves to run when its
 * callback has returned. From a broken queue it would take nothing: for what has failed on the way
 * there, the queue is whole once more.
 */
static void call_driver(struct vmsgx_queue *queue)
{
	bool broken = virtqueue_is_broken(queue->vq);

	lockdep_assert_held(&queue->dev->lock);
	if (broken)
		__virtqueue_unbreak(queue->vq);
	local_bh_disable();
	vring_interrupt(0, queue->vq);
	local_bh_enable();
	if (broken)
		__virtqueue_break(queue->vq);
}

static void look_again(struct vmsgx_queue *queue)
{
	hrtimer_start(&queue->look, ns_to_ktime(LOOK_NS), HRTIMER_MODE_REL);
}

/* The driver made buffers available. Any context; never waits. */
bool vmsgx_queue_notify(struct virtqueue *vq)
{
	struct vmsgx_queue *queue = vq->priv;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	if (fill(queue)) {
		/* Not from here: the driver may hold a lock that its callback takes. */
		queue->call_later = true;
		queue_work(vmsgx_workqueue, &queue->dev->state_work);
	}
	if (!vq->callback && unanswered(queue)) {
		queue->deadline = ktime_add_ms(ktime_get(), vmsgx_timeout_ms);
		look_again(queue);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
	/* Else virtio_ring would break the queue, and what has failed in it would stay there. */
	return true;
}

/*
 * Looks after a queue that has no callback while it has requests. Hard interrupt context, but with
 * PREEMPT_RT, where whoever spins can be preempted: its driver looks for the answer in a loop,
 * perhaps with bottom halves off, and that may be all that this CPU does. No softirq, no work and
 * no event that was throttled gets through to it there. Such requests do not wait for a backend
 * that is away, and one that is there has as long as for an exchange.
 */
enum hrtimer_restart vmsgx_queue_look(struct hrtimer *timer)
{
	struct vmsgx_queue *queue = container_of(timer, struct vmsgx_queue, look);
	struct vmsgx_device *dev = queue->dev;
	unsigned long flags;
	bool lied = false;

	spin_lock_irqsave(&queue->lock, flags);
	if (!queue->vq)
		goto out;
	relay(queue, &lied);
	if (lied || (unanswered(queue) && ktime_after(ktime_get(), queue->deadline))) {
		if (lied)
			WRITE_ONCE(dev->lied, true);
		else if (queue->published_count && vmsgx_backend_alive(dev))
			WRITE_ONCE(dev->late, true);	/* it might still write into the pool */
		withdraw(queue);
		fail_waiting(queue);
		queue_work(vmsgx_workqueue, &dev->state_work);
	}
	if (unanswered(queue))
		look_again(queue);
out:
	spin_unlock_irqrestore(&queue->lock, flags);
	return HRTIMER_NORESTART;
}

/* The device used buffers, or rang for nothing. */
irqreturn_t vmsgx_queue_interrupt(int irq, void *opaque)
{
	struct vmsgx_queue *queue = opaque;
	unsigned long flags;
	bool progress, call = false, lied = false;
	struct virtqueue *vq;

	spin_lock_irqsave(&queue->lock, flags);
	vq = queue->vq;
	if (vq)
		call = relay(queue, &lied);
	progress = queue->progress;
	queue->progress = false;
	trace_vmsgx_interrupt(queue->dev->xdev->nodename, queue->index, queue->used_idx, call);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		vring_interrupt(irq, vq);
	if (lied) {
		WRITE_ONCE(queue->dev->lied, true);
		queue_work(vmsgx_workqueue, &queue->dev->state_work);
	}
	/* A backend that raises events for nothing is throttled (XSA-391). */
	xen_irq_lateeoi(irq, progress ? 0 : XEN_EOI_FLAG_SPURIOUS);
	return IRQ_HANDLED;
}

/* ---- life ------------------------------------------------------------------------------------ */

/*
 * The device is about to begin with this ring at index 0: what is left of an earlier life must not
 * be there when it looks, which is as soon as it takes DRIVER_OK.
 */
void vmsgx_queue_prepare(struct vmsgx_queue *queue)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	queue->avail_idx = 0;
	queue->kicked_idx = 0;
	queue->used_idx = 0;
	memset(queue->read_area.vaddr, 0, queue->read_area.count * PAGE_SIZE);
	memset(queue->write_area.vaddr, 0, queue->write_area.count * PAGE_SIZE);
	queue->event_idx = queue->dev->features & BIT_ULL(VIRTIO_RING_F_EVENT_IDX);
	spin_unlock_irqrestore(&queue->lock, flags);
}

/*
 * The device has taken DRIVER_OK, or the queue alone: it gets what it had not completed before,
 * then what is new.
 */
void vmsgx_queue_start(struct vmsgx_queue *queue)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	queue->running = true;
	if (fill(queue)) {
		queue->call_later = true;
		queue_work(vmsgx_workqueue, &queue->dev->state_work);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
}

/*
 * The device is gone, for a while perhaps. What it completed before counts; the rest waits. Process
 * context.
 */
void vmsgx_queue_stop(struct vmsgx_queue *queue)
{
	unsigned long flags;
	bool call;
	u16 before;

	spin_lock_irqsave(&queue->lock, flags);
	before = queue->driver_used;
	if (queue->running)
		reap(queue);	/* after a lie nothing more counts */
	call = queue->driver_used != before && wants_call(queue);
	withdraw(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		call_driver(queue);
}

/* The driver reset the device, or this queue: what was in flight is its to take back. */
void vmsgx_queue_forget(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	withdraw(queue);
	list_for_each_entry_safe(chain, following, &queue->waiting, link)
		list_del_init(&chain->link);
	spin_unlock_irqrestore(&queue->lock, flags);
}

/* The device was given up: every request fails. Process context. */
void vmsgx_queue_abort(struct vmsgx_queue *queue)
{
	unsigned long flags;
	bool call;

	spin_lock_irqsave(&queue->lock, flags);
	withdraw(queue);
	call = fill(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		call_driver(queue);
}

/* Calls that could not be made from where their reason arose. Process context. */
void vmsgx_queue_call_late(struct vmsgx_queue *queue)
{
	unsigned long flags;
	bool call;

	spin_lock_irqsave(&queue->lock, flags);
	call = queue->call_later && queue->vq;
	queue->call_later = false;
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		call_driver(queue);
}
