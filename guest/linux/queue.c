// SPDX-License-Identifier: GPL-2.0
/*
 * What happens to a queue: notifications, interrupts, the timer, and its life from the device's
 * start to its end. How chains are carried is relay.c's.
 */
#include <linux/bottom_half.h>
#include <linux/irqflags.h>
#include <linux/virtio_ring.h>
#include <xen/events.h>

#include "trace.h"
#include "vmsgx.h"

/* Between two looks at a queue that has requests and no callback, or that is to be broken. */
#define LOOK_NS NSEC_PER_MSEC
/* So many for a queue that is to be broken; after them, one a second. */
#define LOOKS_SOON 100

static void look_again(struct vmsgx_queue *queue)
{
	u64 after = queue->looks++ < LOOKS_SOON ? LOOK_NS : NSEC_PER_SEC;

	hrtimer_start(&queue->look, ns_to_ktime(after), HRTIMER_MODE_REL);
}

void vmsgx_look_soon(struct vmsgx_queue *queue)
{
	queue->looks = 0;
	look_again(queue);
}

/* Has state_work call the driver: here it may hold a lock that its callback takes. */
static void call_later(struct vmsgx_queue *queue)
{
	queue->call_later = true;
	queue_work(vmsgx_workqueue, &queue->dev->state_work);
}

static bool unanswered(const struct vmsgx_queue *queue)
{
	return queue->published_count || !list_empty(&queue->waiting);
}

/*
 * In process context, under vmsgx_device.lock; the driver expects bottom halves to run when its
 * callback has returned.
 */
static void call_driver(struct vmsgx_queue *queue)
{
	unsigned long flags;

	lockdep_assert_held(&queue->dev->lock);
	local_bh_disable();
	local_irq_save(flags);	/* as the driver knows it from its interrupt */
	vring_interrupt(0, queue->vq);
	local_irq_restore(flags);
	local_bh_enable();
}

/*
 * Has the driver taken all that was given back, and told of all that it added? Nothing is
 * published, and what waits with us are buffers that nobody waits for.
 */
static bool all_taken(struct vmsgx_queue *queue)
{
	const struct vmsgx_chain *chain;
	unsigned int ours = 0;

	list_for_each_entry(chain, &queue->waiting, link)
		ours += vmsgx_chain_descriptors(queue, chain - queue->chains);
	/*
	 * Read after avail->idx in vmsgx_fill: what the driver adds meanwhile only makes it
	 * smaller, so that nothing makes up for what it has not taken.
	 */
	return queue->num - READ_ONCE(queue->vq->num_free) == ours;
}

/*
 * Breaks the queue of a device that was given up, but not before the driver has taken what was
 * given back: in a broken queue it finds nothing, and yet sees that there is something. virtio_net
 * looks for it without end then, in a softirq, as soon as its poll comes late.
 *
 * Nor is that the end: on another CPU the driver may be adding what it cannot notify us of any
 * longer. It has its queue back while that fails.
 */
static void retire(struct vmsgx_queue *queue)
{
	if (vmsgx_fill(queue))
		call_later(queue);
	if (!queue->driver || all_taken(queue))
		__virtqueue_break(queue->vq);
	look_again(queue);
}

/* The driver made buffers available. Any context; never waits. */
bool vmsgx_queue_notify(struct virtqueue *vq)
{
	struct vmsgx_queue *queue = vq->priv;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	if (vmsgx_fill(queue))
		call_later(queue);
	if (!vq->callback && unanswered(queue)) {
		queue->deadline = ktime_add_ms(ktime_get(), vmsgx_timeout_ms);
		vmsgx_look_soon(queue);
	}
	spin_unlock_irqrestore(&queue->lock, flags);
	/* Else virtio_ring would break the queue, and what has failed in it would stay there. */
	return true;
}

/*
 * Looks after a queue that is to be broken, and after one that has no callback while it has
 * requests. Hard interrupt context, but with PREEMPT_RT, where whoever spins can be preempted: its
 * driver looks for the answer in a loop, perhaps with bottom halves off, and that may be all that
 * this CPU does. No softirq, no work and no event that was throttled gets through to it there.
 * Requests without a callback do not wait for a backend that is away, and one that is there has as
 * long as for an exchange.
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
	if (READ_ONCE(dev->dead)) {
		retire(queue);
		goto out;
	}
	vmsgx_relay(queue, &lied);
	if (lied || (unanswered(queue) && ktime_after(ktime_get(), queue->deadline))) {
		if (lied)
			WRITE_ONCE(dev->lied, true);
		else if (queue->published_count && vmsgx_backend_alive(dev))
			WRITE_ONCE(dev->late, true);	/* it might still write into the pool */
		vmsgx_withdraw(queue);
		vmsgx_fail_waiting(queue);
		queue_work(vmsgx_workqueue, &dev->state_work);
	}
	if (unanswered(queue))
		vmsgx_look_soon(queue);
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
		call = vmsgx_relay(queue, &lied);
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
	if (vmsgx_fill(queue))
		call_later(queue);
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
		vmsgx_reap(queue);	/* after a lie nothing more counts */
	call = queue->driver_used != before && vmsgx_wants_call(queue);
	vmsgx_withdraw(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		call_driver(queue);
}

/*
 * The driver reset the device, or this queue: what was in flight is its to take back. It counts the
 * ring's avail->idx down for that, so nobody may look at that ring any longer.
 */
void vmsgx_queue_forget(struct vmsgx_queue *queue)
{
	struct vmsgx_chain *chain, *following;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	vmsgx_withdraw(queue);
	list_for_each_entry_safe(chain, following, &queue->waiting, link)
		list_del_init(&chain->link);
	queue->driver = NULL;
	spin_unlock_irqrestore(&queue->lock, flags);
}

/*
 * The device was given up: every request fails, and as soon as its driver knows, the queue is
 * broken. Process context.
 */
void vmsgx_queue_abort(struct vmsgx_queue *queue)
{
	unsigned long flags;
	bool call;

	spin_lock_irqsave(&queue->lock, flags);
	vmsgx_withdraw(queue);
	call = vmsgx_fill(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (call)
		call_driver(queue);
	spin_lock_irqsave(&queue->lock, flags);
	queue->looks = 0;
	retire(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
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
