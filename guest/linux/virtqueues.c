// SPDX-License-Identifier: GPL-2.0
/*
 * Setting up and taking down virtqueues: the driver's ring, and the device's granted one behind it.
 */
#include <linux/cpumask.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/slab.h>

#include "vmsgx.h"

/* Entries of a ring: more would lie idle, with no room in the pool for what is in them. */
#define MAX_RING 1024

static void setup_look(struct vmsgx_queue *queue)
{
#ifdef VMSGX_HAVE_HRTIMER_SETUP
	hrtimer_setup(&queue->look, vmsgx_queue_look, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
#else
	hrtimer_init(&queue->look, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	queue->look.function = vmsgx_queue_look;
#endif
}

/* The arena and @count queues, each with its part of it. Once, before the first connection. */
int vmsgx_queues_alloc(struct vmsgx_device *dev, u32 device_id, unsigned int count)
{
	unsigned int pages = vmsgx_pool_pages(device_id, count);
	unsigned int i;
	int err;

	dev->queues = kvcalloc(max(count, 1U), sizeof(*dev->queues), GFP_KERNEL);
	if (!dev->queues)
		return -ENOMEM;
	if (count) {
		err = vmsgx_grants_alloc(&dev->arena, dev->xdev->otherend_id, count * pages, false);
		if (err) {
			kvfree(dev->queues);
			dev->queues = NULL;
			return err;
		}
	}
	dev->queue_count = count;
	for (i = 0; i < count; i++) {
		struct vmsgx_queue *queue = &dev->queues[i];

		queue->dev = dev;
		queue->index = i;
		snprintf(queue->name, sizeof(queue->name), "%s:%u", dev_name(&dev->xdev->dev), i);
		spin_lock_init(&queue->lock);
		setup_look(queue);
		INIT_LIST_HEAD(&queue->waiting);
		INIT_LIST_HEAD(&queue->published);
		err = vmsgx_pool_init(&queue->pool, &dev->arena, i * pages, pages);
		if (!err && !zalloc_cpumask_var(&queue->affinity, GFP_KERNEL))
			err = -ENOMEM;
		if (err) {
			vmsgx_queues_free(dev);
			return err;
		}
	}
	return 0;
}

/* Everything of vmsgx_queues_alloc; no queue is in use any longer. */
void vmsgx_queues_free(struct vmsgx_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++) {
		free_cpumask_var(dev->queues[i].affinity);
		vmsgx_pool_destroy(&dev->queues[i].pool);
	}
	kvfree(dev->queues);
	dev->queues = NULL;
	dev->queue_count = 0;
	if (!vmsgx_grants_free(&dev->arena, NULL))
		dev_warn(&dev->xdev->dev,
			 "the backend keeps pages of the arena; they are freed when it lets go\n");
}

/* The device's ring: what the backend only reads is granted so. */
static int alloc_rings(struct vmsgx_queue *queue)
{
	domid_t backend = queue->dev->xdev->otherend_id;
	size_t avail_at = queue->num * sizeof(struct vring_desc);
	/*
	 * Flags, index, the entries and used_event; with 16-byte descriptors before it, it is
	 * aligned.
	 */
	size_t read_size = avail_at + (3 + queue->num) * sizeof(u16);
	size_t write_size = 3 * sizeof(u16) + queue->num * sizeof(vring_used_elem_t);
	int err;

	err = vmsgx_grants_alloc(&queue->read_area, backend, PFN_UP(read_size), true);
	if (err)
		return err;
	err = vmsgx_grants_alloc(&queue->write_area, backend, PFN_UP(write_size), false);
	if (err) {
		vmsgx_grants_free(&queue->read_area, NULL);
		return err;
	}
	queue->desc = queue->read_area.vaddr;
	queue->avail = queue->read_area.vaddr + avail_at;
	queue->used = queue->write_area.vaddr;
	queue->descriptor_address = vmsgx_grant_address(&queue->read_area, 0);
	queue->driver_address = vmsgx_grant_address(&queue->read_area, avail_at);
	queue->device_address = vmsgx_grant_address(&queue->write_area, 0);
	return 0;
}

/* A device that keeps what is not its own is not used any longer. */
static void free_rings(struct vmsgx_queue *queue)
{
	bool released = vmsgx_grants_free(&queue->read_area, NULL);

	if (!vmsgx_grants_free(&queue->write_area, NULL) || !released)
		vmsgx_give_up(queue->dev, "the backend keeps pages of a virtqueue");
}

/*
 * The driver's ring is another one, or begins anew. Under the lock: a ring with indices of another
 * is read astray.
 */
static void adopt(struct vmsgx_queue *queue)
{
	queue->driver = virtqueue_get_vring(queue->vq);
	queue->driver_taken = 0;
	queue->driver_used = 0;
}

static int alloc_chains(struct vmsgx_queue *queue)
{
	unsigned int i;

	queue->chains = kvcalloc(queue->num, sizeof(*queue->chains), GFP_KERNEL);
	if (!queue->chains)
		return -ENOMEM;
	for (i = 0; i < queue->num; i++)
		INIT_LIST_HEAD(&queue->chains[i].link);
	return 0;
}

static void del_vq(struct vmsgx_queue *queue)
{
	struct virtqueue *vq = queue->vq;

	spin_lock_irq(&queue->lock);
	queue->vq = NULL;
	queue->driver = NULL;
	queue->call_later = false;
	spin_unlock_irq(&queue->lock);
	vmsgx_queue_forget(queue);	/* after that: nothing is taken any longer */
	hrtimer_cancel(&queue->look);	/* not started again: there is no vq */
	if (queue->irq)
		synchronize_irq(queue->irq);	/* its handler may be calling the driver */
	free_rings(queue);
	kvfree(queue->chains);
	queue->chains = NULL;
	vring_del_virtqueue(vq);
}

static struct virtqueue *setup_vq(struct vmsgx_device *dev, unsigned int index,
				  vq_callback_t *callback, const char *name, bool context)
{
	struct vmsgx_queue *queue = &dev->queues[index];
	struct virtqueue *vq;
	u32 max_size;
	int err;

	err = vmsgx_get_vqueue_max(dev, index, &max_size);
	if (err)
		return ERR_PTR(err);
	if (!max_size)
		return ERR_PTR(-ENOENT);
	if (max_size > 32768 || !is_power_of_2(max_size))
		return ERR_PTR(-EPROTO);
	max_size = min_t(u32, max_size, MAX_RING);
	vq = vring_create_virtqueue(index, max_size, SMP_CACHE_BYTES, &dev->virtio->vdev, true,
				    true, context, vmsgx_queue_notify, callback, name);
	if (!vq)
		return ERR_PTR(-ENOMEM);
	vq->num_max = max_size;
	vq->priv = queue;
	queue->num = virtqueue_get_vring_size(vq);
	err = alloc_chains(queue);
	if (err)
		goto fail;
	err = alloc_rings(queue);
	if (err)
		goto fail_chains;
	vmsgx_queue_prepare(queue);
	err = vmsgx_set_vqueue(dev, queue);
	if (err)
		goto fail_rings;
	spin_lock_irq(&queue->lock);
	queue->vq = vq;
	adopt(queue);
	spin_unlock_irq(&queue->lock);
	return vq;

fail_rings:
	free_rings(queue);
fail_chains:
	kvfree(queue->chains);
	queue->chains = NULL;
fail:
	vring_del_virtqueue(vq);
	return ERR_PTR(err);
}

static void del_vqs(struct vmsgx_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].vq)
			del_vq(&dev->queues[i]);
}

/*
 * A driver may leave queues out by a name of NULL; the ones it names have consecutive numbers, as
 * with other buses.
 */
static int setup_vqs(struct vmsgx_device *dev, unsigned int count, struct virtqueue *vqs[],
		     vq_callback_t *(*callback_of)(const void *, unsigned int),
		     const char *(*name_of)(const void *, unsigned int),
		     bool (*context_of)(const void *, unsigned int), const void *wanted)
{
	unsigned int i, index = 0;
	int err = 0;

	for (i = 0; i < count; i++) {
		const char *name = name_of(wanted, i);

		if (!name) {
			vqs[i] = NULL;
			continue;
		}
		if (index >= dev->queue_count) {
			err = -ENOENT;
			break;
		}
		vqs[i] = setup_vq(dev, index++, callback_of(wanted, i), name,
				  context_of(wanted, i));
		if (IS_ERR(vqs[i])) {
			err = PTR_ERR(vqs[i]);
			break;
		}
	}
	if (err)
		del_vqs(dev);
	return err;
}

#ifdef VMSGX_HAVE_VIRTQUEUE_INFO
static vq_callback_t *callback_of(const void *wanted, unsigned int i)
{
	return ((const struct virtqueue_info *)wanted)[i].callback;
}

static const char *name_of(const void *wanted, unsigned int i)
{
	return ((const struct virtqueue_info *)wanted)[i].name;
}

static bool context_of(const void *wanted, unsigned int i)
{
	return ((const struct virtqueue_info *)wanted)[i].ctx;
}

int vmsgx_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		   struct virtqueue_info infos[], struct irq_affinity *affinity)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);

	return CALL_CONNECTED(dev, setup_vqs(dev, count, vqs, callback_of, name_of, context_of,
					     infos));
}
#else
struct wanted {
	vq_callback_t **callbacks;
	const char * const *names;
	const bool *context;
};

static vq_callback_t *callback_of(const void *wanted, unsigned int i)
{
	return ((const struct wanted *)wanted)->callbacks[i];
}

static const char *name_of(const void *wanted, unsigned int i)
{
	return ((const struct wanted *)wanted)->names[i];
}

static bool context_of(const void *wanted, unsigned int i)
{
	const bool *context = ((const struct wanted *)wanted)->context;

	return context && context[i];
}

int vmsgx_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		   vq_callback_t *callbacks[], const char * const names[], const bool *context,
		   struct irq_affinity *affinity)
{
	const struct wanted wanted = { callbacks, names, context };
	struct vmsgx_device *dev = to_vmsgx(vdev);

	return CALL_CONNECTED(dev, setup_vqs(dev, count, vqs, callback_of, name_of, context_of,
					     &wanted));
}
#endif

/* The driver has reset the device before. */
void vmsgx_del_vqs(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);

	mutex_lock(&dev->lock);
	del_vqs(dev);
	mutex_unlock(&dev->lock);
}

/* RING_RESET: one queue stops, the others go on. */
int vmsgx_disable_vq_and_reset(struct virtqueue *vq)
{
	struct vmsgx_queue *queue = vq->priv;
	struct vmsgx_device *dev = queue->dev;
	int err;

	if (!(dev->features & BIT_ULL(VIRTIO_F_RING_RESET)))
		return -ENOENT;
	err = vmsgx_lock_up(dev);
	if (err)
		return err;
	err = vmsgx_reset_vqueue(dev, queue->index);
	if (!err) {
		vmsgx_queue_forget(queue);	/* virtio_ring is about to make another */
		if (queue->irq)
			synchronize_irq(queue->irq);
#ifdef CONFIG_VIRTIO_HARDEN_NOTIFICATION
		__virtqueue_break(vq);
#endif
	}
	mutex_unlock(&dev->lock);
	return err;
}

/* The driver may have another ring by now, of another size. */
int vmsgx_enable_vq_after_reset(struct virtqueue *vq)
{
	struct vmsgx_queue *queue = vq->priv;
	struct vmsgx_device *dev = queue->dev;
	int err = vmsgx_lock_up(dev);

	if (err)
		return err;
	if (queue->running) {
		err = -EBUSY;
		goto out;
	}
	free_rings(queue);
	kvfree(queue->chains);
	queue->num = virtqueue_get_vring_size(vq);
	err = alloc_chains(queue);
	if (!err)
		err = alloc_rings(queue);
	if (err)
		goto out;
	vmsgx_queue_prepare(queue);
	err = vmsgx_set_vqueue(dev, queue);
	if (err)
		goto out;	/* it stays unused; del_vqs frees what there is */
	spin_lock_irq(&queue->lock);
	adopt(queue);
	spin_unlock_irq(&queue->lock);
	vmsgx_queue_start(queue);
#ifdef CONFIG_VIRTIO_HARDEN_NOTIFICATION
	__virtqueue_unbreak(vq);
#endif
out:
	mutex_unlock(&dev->lock);
	return err;
}

/* A copy is kept: the interrupt refers to it, and is another one after a reconnect. */
int vmsgx_set_vq_affinity(struct virtqueue *vq, const struct cpumask *mask)
{
	struct vmsgx_queue *queue = vq->priv;
	int err = 0;

	if (!vq->callback)
		return 0;
	mutex_lock(&queue->dev->lock);
	if (queue->irq)
		irq_set_affinity_and_hint(queue->irq, NULL);
	queue->pinned = mask;
	if (mask)
		cpumask_copy(queue->affinity, mask);
	if (mask && queue->irq)
		err = irq_set_affinity_and_hint(queue->irq, queue->affinity);
	mutex_unlock(&queue->dev->lock);
	return err;
}

/* NULL, and the block layer spreads its queues by itself, unless the driver has chosen. */
const struct cpumask *vmsgx_get_vq_affinity(struct virtio_device *vdev, int index)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);

	if (index < 0 || index >= dev->queue_count || !dev->queues[index].pinned)
		return NULL;
	return dev->queues[index].affinity;
}

/* No callback that began before is running when this returns. */
void vmsgx_synchronize_cbs(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	unsigned int i;

	mutex_lock(&dev->lock);	/* callbacks are also made under it */
	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].irq)
			synchronize_irq(dev->queues[i].irq);
	mutex_unlock(&dev->lock);
}

void vmsgx_queues_stop(struct vmsgx_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].vq)
			vmsgx_queue_stop(&dev->queues[i]);
}

void vmsgx_queues_start(struct vmsgx_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].vq && dev->queues[i].driver)
			vmsgx_queue_start(&dev->queues[i]);
}
