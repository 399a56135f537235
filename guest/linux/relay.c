// SPDX-License-Identifier: GPL-2.0
/*
 * The data path: chains go from the driver's ring, which only this kernel sees, into the device's
 * ring, which is granted, and come back (docs/design/009). What is in them is payload.c's.
 *
 * The index of a chain's first descriptor names it on both sides, so there is always a descriptor
 * where one is needed, and the pool alone decides how much is in flight.
 */
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>
#include <xen/events.h>

#include "trace.h"
#include "vmsgx.h"

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
bool vmsgx_wants_call(struct vmsgx_queue *queue)
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

/*
 * A buffer for what comes in: nobody waits for it, and many drivers make another available as soon
 * as it comes back, without end. Its driver has it again when it is removed. An entropy source is
 * asked for what it writes, and somebody waits; so does a driver without a callback.
 */
static bool receives(struct vmsgx_queue *queue, unsigned int head)
{
	return queue->vq->callback && queue->vq->vdev->id.device != VIRTIO_ID_RNG &&
	       vmsgx_chain_is_writable(queue, head);
}

/* Fails what waits for an answer. Whether there was any. */
bool vmsgx_fail_waiting(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	bool failed = false;

	list_for_each_entry_safe(chain, following, &queue->waiting, link) {
		unsigned int head = chain - queue->chains;

		if (receives(queue, head))
			continue;
		/* See retire() in queue.c: nobody finds anything in a broken queue. */
		if (!failed && virtqueue_is_broken(queue->vq)) {
			__virtqueue_unbreak(queue->vq);
			vmsgx_look_soon(queue);
		}
		list_del_init(&chain->link);
		fail(queue, head);
		failed = true;
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

static u16 load_used_idx(const struct vmsgx_queue *queue)
{
	/*
	 * Partner: the backend's release store of used->idx; entries and payload are there when
	 * it is seen.
	 */
	return le16_to_cpu(virt_load_acquire((__le16 *)&queue->used->idx));
}

/*
 * Takes what the device has used, each word of it read once and checked. -EPROTO: a lie. Every
 * round but the first takes something, however the index moves.
 */
int vmsgx_reap(struct vmsgx_queue *queue)
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
bool vmsgx_fill(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	bool failed = false;

	if (!queue->driver)
		return false;	/* its driver has reset it */
	take(queue);
	if (READ_ONCE(queue->dev->dead))
		return vmsgx_fail_waiting(queue);
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

bool vmsgx_relay(struct vmsgx_queue *queue, bool *lied)
{
	u16 before = queue->driver_used;

	if (queue->running && vmsgx_reap(queue)) {
		queue->running = false;	/* it is not served further */
		*lied = true;
	}
	vmsgx_fill(queue);
	return queue->driver_used != before && vmsgx_wants_call(queue);
}

/*
 * What is in the device's ring has to be published again, before everything else and in its order.
 */
void vmsgx_withdraw(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain;

	queue->running = false;
	list_for_each_entry(chain, &queue->published, link)
		chain->published = false;
	list_splice_init(&queue->published, &queue->waiting);
	queue->published_count = 0;
	vmsgx_pool_clear(&queue->pool);
}
