// SPDX-License-Identifier: GPL-2.0
/*
 * The data path: chains go from the driver's ring, which only this kernel sees, into the device's ring, which is
 * granted, and come back (docs/design/009). Their buffers are copied through the queue's pool.
 *
 * The index of a chain's first descriptor names it on both sides. A chain of direct descriptors uses some of the
 * same descriptors in the device's ring; one with an indirect table has its first descriptor point to a table in the
 * pool. So there is always a descriptor where one is needed, and the pool alone decides how much is in flight.
 */
#include <linux/bottom_half.h>
#include <linux/highmem.h>
#include <linux/virtio_ring.h>
#include <xen/events.h>

#include "trace.h"
#include "vmsgx.h"

/* ---- the driver's chains --------------------------------------------------------------------------- */

/* A walk along the descriptors of one chain in the driver's ring. That is memory of this kernel, so it is believed. */
struct walk {
	struct vmsgx_queue *queue;
	const struct vring_desc *table;
	unsigned int at;	/* the descriptor that was returned last */
	unsigned int index;	/* the next one */
	unsigned int left;	/* descriptors that may still come */
};

struct buffer {
	dma_addr_t address;
	u32 length;
	bool writable;
};

static void walk_begin(struct walk *walk, struct vmsgx_queue *queue, unsigned int head)
{
	struct virtio_device *vdev = queue->vq->vdev;
	const struct vring_desc *first = &queue->driver->desc[head];

	walk->queue = queue;
	if (virtio16_to_cpu(vdev, first->flags) & VRING_DESC_F_INDIRECT) {
		walk->table = phys_to_virt(virtio64_to_cpu(vdev, first->addr));
		walk->index = 0;
		walk->left = virtio32_to_cpu(vdev, first->len) / sizeof(*first);
	} else {
		walk->table = queue->driver->desc;
		walk->index = head;
		walk->left = queue->num;
	}
}

/* The next buffer that is not empty. */
static bool walk_next(struct walk *walk, struct buffer *buffer)
{
	struct virtio_device *vdev = walk->queue->vq->vdev;

	while (walk->left) {
		const struct vring_desc *desc = &walk->table[walk->index];
		u16 flags = virtio16_to_cpu(vdev, desc->flags);

		buffer->address = virtio64_to_cpu(vdev, desc->addr);
		buffer->length = virtio32_to_cpu(vdev, desc->len);
		buffer->writable = flags & VRING_DESC_F_WRITE;
		walk->at = walk->index;
		walk->index = virtio16_to_cpu(vdev, desc->next);
		walk->left = flags & VRING_DESC_F_NEXT ? walk->left - 1 : 0;
		if (buffer->length)
			return true;
	}
	return false;
}

static unsigned int units_of(u32 length)
{
	return DIV_ROUND_UP(length, VMSGX_UNIT);
}

static void copy(dma_addr_t address, void *pool, u32 length, bool to_pool)
{
	while (length) {
		struct page *page = vmsgx_dma_page(address);
		unsigned int offset = offset_in_page(address);
		unsigned int piece = min_t(u32, length, PAGE_SIZE - offset);

		if (to_pool)
			memcpy_from_page(pool, page, offset, piece);
		else
			memcpy_to_page(page, offset, pool, piece);
		address += piece;
		pool += piece;
		length -= piece;
	}
}

/* ---- back to the driver ---------------------------------------------------------------------------- */

static void give_back(struct vmsgx_queue *queue, unsigned int head, u32 length)
{
	struct virtio_device *vdev = queue->vq->vdev;
	vring_used_elem_t *element = &queue->driver->used->ring[queue->driver_used & (queue->num - 1)];

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
	/* Partner: virtio_ring's barrier after it clears the flag, before it looks at used->idx once more. */
	smp_mb();
	return !(virtio16_to_cpu(queue->vq->vdev, READ_ONCE(queue->driver->avail->flags)) & VRING_AVAIL_F_NO_INTERRUPT);
}

/* What the device wrote, @written bytes at most, to where the driver wants it. */
static void copy_back(struct vmsgx_queue *queue, struct vmsgx_chain *chain, unsigned int head, u32 written)
{
	void *pool = queue->pool.vaddr + (size_t)chain->start * VMSGX_UNIT;
	struct buffer buffer;
	struct walk walk;

	for (walk_begin(&walk, queue, head); walk_next(&walk, &buffer);) {
		if (buffer.writable) {
			u32 piece = min(buffer.length, written);

			copy(buffer.address, pool, piece, false);
			written -= piece;
		}
		pool += (size_t)units_of(buffer.length) * VMSGX_UNIT;
	}
}

/*
 * A request that no device will carry out. Length 0 says that nothing was written; device types that end a request
 * with a status byte find one there which is no success in any of them.
 */
static void fail(struct vmsgx_queue *queue, unsigned int head)
{
	struct buffer buffer, last = { };
	struct walk walk;
	u8 status = 0xff;

	for (walk_begin(&walk, queue, head); walk_next(&walk, &buffer);)
		if (buffer.writable)
			last = buffer;
	if (last.length)
		copy(last.address + last.length - 1, &status, 1, false);
	give_back(queue, head, 0);
}

static void release(struct vmsgx_queue *queue, struct vmsgx_chain *chain)
{
	vmsgx_pool_give(&queue->pool, chain->start, chain->units);
	chain->published = false;
	list_del_init(&chain->link);
	queue->published_count--;
}

/* Takes what the device has used, each word of it read once and checked. -EPROTO: a lie. */
static int reap(struct vmsgx_queue *queue)
{
	for (;;) {
		/* Partner: the backend's release store of used->idx; entries and payload are there when it is seen. */
		u16 idx = le16_to_cpu(virt_load_acquire((__le16 *)&queue->used->idx));

		if ((u16)(idx - queue->used_idx) > queue->published_count)
			return -EPROTO;
		while (queue->used_idx != idx) {
			const vring_used_elem_t *element = &queue->used->ring[queue->used_idx & (queue->num - 1)];
			u32 head = le32_to_cpu((__force __le32)READ_ONCE(element->id));
			u32 written = le32_to_cpu((__force __le32)READ_ONCE(element->len));
			struct vmsgx_chain *chain;

			if (head >= queue->num)
				return -EPROTO;
			chain = &queue->chains[head];
			if (!chain->published || written > chain->writable)
				return -EPROTO;
			queue->used_idx++;
			copy_back(queue, chain, head, written);
			release(queue, chain);
			give_back(queue, head, written);
		}
		if (!queue->event_idx)
			return 0;
		/* used_event: an event at the next one, please. */
		WRITE_ONCE(queue->avail->ring[queue->num], (__force __virtio16)cpu_to_le16(queue->used_idx));
		/* Partner: the backend's fence between used->idx and its look at used_event. */
		virt_mb();
		if (le16_to_cpu((__force __le16)READ_ONCE(queue->used->idx)) == queue->used_idx)
			return 0;
	}
}

/* ---- to the device --------------------------------------------------------------------------------- */

static void set_desc(struct vring_desc *desc, u64 address, u32 length, u16 flags, u16 next)
{
	desc->addr = (__force __virtio64)cpu_to_le64(address);
	desc->len = (__force __virtio32)cpu_to_le32(length);
	desc->flags = (__force __virtio16)cpu_to_le16(flags);
	desc->next = (__force __virtio16)cpu_to_le16(next);
}

/* The shape of a chain in the pool. */
struct shape {
	unsigned int units;
	unsigned int pieces;	/* descriptors it takes: buffers that touch in the pool share one */
	u32 writable;
	bool indirect;
};

static void measure(struct vmsgx_queue *queue, unsigned int head, struct shape *shape)
{
	bool open = false, writable = false;
	struct buffer buffer;
	struct walk walk;

	*shape = (struct shape){ };
	walk_begin(&walk, queue, head);
	shape->indirect = walk.table != queue->driver->desc;
	while (walk_next(&walk, &buffer)) {
		shape->units += units_of(buffer.length);
		if (buffer.writable)
			shape->writable += buffer.length;
		if (!open || buffer.writable != writable)
			shape->pieces++;
		open = buffer.length % VMSGX_UNIT == 0;
		writable = buffer.writable;
	}
	/* One descriptor needs no table. */
	if (shape->pieces <= 1)
		shape->indirect = false;
	if (shape->indirect)
		shape->units += units_of(shape->pieces * sizeof(struct vring_desc));
}

/* Copies a chain into its units of the pool and describes it to the device. */
static void describe(struct vmsgx_queue *queue, unsigned int head, struct vmsgx_chain *chain,
		     const struct shape *shape)
{
	size_t begin = (size_t)chain->start * VMSGX_UNIT;
	size_t table_at = begin + (size_t)(chain->units - units_of(shape->pieces * sizeof(struct vring_desc))) *
				  VMSGX_UNIT;
	struct vring_desc *table = shape->indirect ? queue->pool.vaddr + table_at : queue->desc;
	unsigned int done = 0, slot = 0, next;
	u64 piece_at = begin, at = begin;
	u32 length = 0;
	bool writable = false;
	struct buffer buffer;
	struct walk walk;

	walk_begin(&walk, queue, head);
	for (;;) {
		bool more = walk_next(&walk, &buffer);

		/* A direct chain uses descriptors of its own, in its own order. */
		next = shape->indirect ? done + !!length : walk.at;
		if (length && (!more || buffer.writable != writable || length % VMSGX_UNIT)) {
			u16 flags = (writable ? VRING_DESC_F_WRITE : 0) | (more ? VRING_DESC_F_NEXT : 0);

			set_desc(&table[slot], queue->pool.address + piece_at, length, flags, more ? next : 0);
			done++;
			piece_at = at;
			length = 0;
		}
		if (!more)
			break;
		if (!length)
			slot = done || shape->indirect ? next : head;
		writable = buffer.writable;
		if (!writable)
			copy(buffer.address, queue->pool.vaddr + at, buffer.length, true);
		length += buffer.length;
		at += (u64)units_of(buffer.length) * VMSGX_UNIT;
	}
	if (shape->indirect)
		set_desc(&queue->desc[head], queue->pool.address + table_at,
			 shape->pieces * sizeof(struct vring_desc), VRING_DESC_F_INDIRECT, 0);
}

/* 0: it is in the device's ring. -ENOSPC: not now. -E2BIG: never. */
static int put(struct vmsgx_queue *queue, struct vmsgx_chain *chain)
{
	unsigned int head = chain - queue->chains;
	struct shape shape;
	int start;

	measure(queue, head, &shape);
	if (shape.units > queue->pool.units || !shape.pieces)
		return -E2BIG;
	start = vmsgx_pool_take(&queue->pool, shape.units);
	if (start < 0)
		return start;
	chain->start = start;
	chain->units = shape.units;
	chain->writable = shape.writable;
	describe(queue, head, chain, &shape);
	queue->avail->ring[queue->avail_idx & (queue->num - 1)] = (__force __virtio16)cpu_to_le16(head);
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
		unsigned int head = virtio16_to_cpu(vdev, ring->avail->ring[queue->driver_taken++ & (queue->num - 1)]);

		if (WARN_ON_ONCE(head >= queue->num))
			continue;
		list_add_tail(&queue->chains[head].link, &queue->waiting);
	}
}

static void kick(struct vmsgx_queue *queue)
{
	u16 old = queue->kicked_idx;
	bool wanted;

	if (old == queue->avail_idx)
		return;
	queue->kicked_idx = queue->avail_idx;
	/* Partner: the backend's fence between avail_event (or its flag) and its last look before it sleeps. */
	virt_mb();
	if (queue->event_idx)
		wanted = vring_need_event(le16_to_cpu(READ_ONCE(*(__le16 *)&queue->used->ring[queue->num])),
					  queue->avail_idx, old);
	else
		wanted = !(le16_to_cpu((__force __le16)READ_ONCE(queue->used->flags)) & VRING_USED_F_NO_NOTIFY);
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
	if (READ_ONCE(queue->dev->dead)) {
		list_for_each_entry_safe(chain, following, &queue->waiting, link) {
			list_del_init(&chain->link);
			fail(queue, chain - queue->chains);
			failed = true;
		}
		return failed;
	}
	if (!queue->running)
		return false;
	list_for_each_entry_safe(chain, following, &queue->waiting, link) {
		int err = put(queue, chain);

		if (err == -ENOSPC)
			break;
		if (err) {
			dev_warn_ratelimited(&queue->dev->xdev->dev, "queue %u: a request is larger than its pool of %u KiB\n",
					     queue->index, queue->pool.units / (1024 / VMSGX_UNIT));
			list_del_init(&chain->link);
			fail(queue, chain - queue->chains);
			failed = true;
		}
	}
	/* Partner: the backend's acquire load of avail->idx: entries, descriptors and payload are there. */
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

/* What is in the device's ring has to be published again, before everything else and in its order. */
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
 * In process context, under vmsgx_device.lock; the driver expects bottom halves to run when its callback has returned.
 * From a broken queue it would take nothing: for what has failed on the way there, the queue is whole once more.
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
	if (!vq->callback && unanswered(queue))
		mod_timer(&queue->deadline, jiffies + msecs_to_jiffies(vmsgx_timeout_ms));
	spin_unlock_irqrestore(&queue->lock, flags);
	return true;	/* else virtio_ring would break the queue, and what has failed in it would stay there */
}

/*
 * A driver that gave no callback looks for its answer in a loop, which may be all that this CPU does. Requests of such
 * a queue do not wait for a backend that is away, and one that is there has as long as for an exchange.
 */
void vmsgx_queue_deadline(struct timer_list *timer)
{
	struct vmsgx_queue *queue = container_of(timer, struct vmsgx_queue, deadline);
	struct vmsgx_chain *chain, *following;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	if (queue->published_count) {
		/* It might still write into the pool. */
		WRITE_ONCE(queue->dev->late, true);
		queue_work(vmsgx_workqueue, &queue->dev->state_work);
		withdraw(queue);
	}
	list_for_each_entry_safe(chain, following, &queue->waiting, link) {
		list_del_init(&chain->link);
		fail(queue, chain - queue->chains);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
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

/* ---- life ------------------------------------------------------------------------------------------ */

/*
 * The device is about to begin with this ring at index 0: what is left of an earlier life must not be there when it
 * looks, which is as soon as it takes DRIVER_OK.
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

/* The device has taken DRIVER_OK, or the queue alone: it gets what it had not completed before, then what is new. */
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

/* The device is gone, for a while perhaps. What it completed before counts; the rest waits. Process context. */
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
