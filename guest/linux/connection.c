// SPDX-License-Identifier: GPL-2.0
/*
 * The connection's life: the states of docs/protocol.md section 4, as far as they are the
 * frontend's. The backend may die and come back at any time; the virtio device, once there, stays
 * until it is unplugged.
 */
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/virtio_ids.h>
#include <xen/xenbus.h>

#include "vmsgx.h"

/* Milliseconds after which a backend that waits, although we offered, has perhaps not seen it. */
#define RETRY_MS 2000
/* Times RETRY_MS for which a device that is unplugged may do nothing. */
#define MAX_IDLE_LOOKS 5
/* Recoveries of a device that asks for the next one without having completed a request. */
#define MAX_FAILURES 3

/* The connection is of no use any longer: the backend died, or this is another Xen. Any context. */
void vmsgx_lost(struct vmsgx_device *dev)
{
	WRITE_ONCE(dev->up, false);
	wake_up_all(&dev->wait);
	queue_work(vmsgx_workqueue, &dev->state_work);
}

/*
 * Every request fails from here on, those in flight first, and the queues break, each when its
 * driver is ready for that; virtio_break_device() would not ask. Once. Under vmsgx_device.lock.
 */
void vmsgx_end(struct vmsgx_device *dev)
{
	unsigned int i;

	WRITE_ONCE(dev->dead, true);
	WRITE_ONCE(dev->up, false);
	wake_up_all(&dev->wait);
	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].vq)
			vmsgx_queue_abort(&dev->queues[i]);
}

/* For good; says so in one line. Under vmsgx_device.lock. */
void vmsgx_give_up(struct vmsgx_device *dev, const char *why)
{
	lockdep_assert_held(&dev->lock);
	if (dev->dead)
		return;
	if (dev->be) {
		/* Partner: the backend's release store of the code, after the detail. */
		u32 code = le32_to_cpu(virt_load_acquire(&dev->be->header.error_code));
		u32 detail = le32_to_cpu(READ_ONCE(dev->be->header.error_detail));

		dev_err(&dev->xdev->dev, "%s (its last objection: %u, %u); the device is broken\n",
			why, code, detail);
	} else {
		dev_err(&dev->xdev->dev, "%s; the device is broken\n", why);
	}
	vmsgx_end(dev);
}

/* Under vmsgx_device.lock. */
void vmsgx_disconnect(struct vmsgx_device *dev)
{
	WRITE_ONCE(dev->up, false);
	vmsgx_queues_stop(dev);
	vmsgx_channel_leave(dev);
	vmsgx_ports_close(dev);
	if (!vmsgx_channel_free(dev))
		dev_warn_ratelimited(&dev->xdev->dev,
				     "the backend keeps pages of the channel; they are freed some time after it lets go\n");
	if (dev->kept.count == VMSGX_MAX_KEPT)
		vmsgx_give_up(dev, "the backend keeps the pages of one connection after the other");
	if (dev->dead || dev->unplugged)
		vmsgx_kept_leave(&dev->kept);	/* there is no next one */
	dev->offered = false;
	dev->met = false;
}

static bool speaks_our_version(struct vmsgx_device *dev)
{
	char *text = xenbus_read(XBT_NIL, dev->xdev->otherend, "versions", NULL);
	bool found = false;
	char *rest = text, *word;
	unsigned int version;

	if (IS_ERR(text))
		return false;
	while ((word = strsep(&rest, " ")))
		found |= !kstrtouint(word, 10, &version) && version == VMSG_XEN_PROTOCOL_VERSION;
	kfree(text);
	return found;
}

static int write_nodes(struct vmsgx_device *dev, struct xenbus_transaction transaction)
{
	const char *node = dev->xdev->nodename;
	char name[32];
	unsigned int i;
	int err;

	err = xenbus_printf(transaction, node, "version", "%u", VMSG_XEN_PROTOCOL_VERSION);
	if (!err)
		err = xenbus_printf(transaction, node, "fe-to-be-ref", "%u", dev->fe_grant.first);
	if (!err)
		err = xenbus_printf(transaction, node, "be-to-fe-ref", "%u", dev->be_grant.first);
	if (!err)
		err = xenbus_printf(transaction, node, "event-channel", "%u", dev->port);
	for (i = 0; !err && i < dev->queue_count; i++) {
		snprintf(name, sizeof(name), "queue-%u/event-channel", i);
		err = xenbus_printf(transaction, node, name, "%u", dev->queues[i].port);
	}
	if (!err && dev->arena.count)
		err = xenbus_printf(transaction, node, "arena-ref", "%u", dev->arena.first);
	if (!err && dev->arena.count)
		err = xenbus_printf(transaction, node, "arena-pages", "%u", dev->arena.count);
	return err;
}

static int publish_nodes(struct vmsgx_device *dev)
{
	struct xenbus_transaction transaction;
	int err;

	do {
		err = xenbus_transaction_start(&transaction);
		if (err)
			return err;
		err = write_nodes(dev, transaction);
		if (err) {
			xenbus_transaction_end(transaction, 1);
			return err;
		}
		err = xenbus_transaction_end(transaction, 0);
	} while (err == -EAGAIN);
	return err;
}

/* States 1 to 3: everything the backend needs, made anew. */
static int offer(struct vmsgx_device *dev)
{
	const char *backend = dev->xdev->otherend;
	int err;

	xenbus_switch_state(dev->xdev, XenbusStateInitialising);
	if (!speaks_our_version(dev))
		return -EPROTONOSUPPORT;
	if (!dev->queues) {
		unsigned int queues =
			min_t(unsigned int, xenbus_read_unsigned(backend, "max-queues", 0),
			      VMSGX_MAX_QUEUES);
		unsigned int device_id = xenbus_read_unsigned(backend, "device-id", 0);

		if (device_id == VIRTIO_ID_BLOCK)	/* its driver uses no more */
			queues = min(queues, nr_cpu_ids);
		err = vmsgx_queues_alloc(dev, device_id, queues);
		if (err)
			return err;
	}
	err = vmsgx_channel_open(dev);
	if (err)
		return err;
	err = vmsgx_ports_open(dev);
	if (!err)
		err = publish_nodes(dev);
	if (err) {
		vmsgx_disconnect(dev);
		return err;
	}
	dev->offered = true;
	xenbus_switch_state(dev->xdev, XenbusStateInitialised);
	queue_delayed_work(vmsgx_workqueue, &dev->retry_work, msecs_to_jiffies(RETRY_MS));
	return 0;
}

static void try_offer(struct vmsgx_device *dev)
{
	int err = offer(dev);

	if (!err)
		return;
	dev_err_ratelimited(&dev->xdev->dev, "cannot connect: %d\n", err);
	/* Memory or grants may be there later. */
	queue_delayed_work(vmsgx_workqueue, &dev->retry_work, msecs_to_jiffies(RETRY_MS));
}

/* The same kind of device as at first? */
static int identify(struct vmsgx_device *dev)
{
	struct vmsgx_info info = { };
	int err = vmsgx_get_info(dev, &info);

	if (err)
		return err;
	if (dev->known &&
	    (info.device_id != dev->info.device_id || info.config_size != dev->info.config_size))
		return -EINVAL;
	dev->info = info;
	dev->known = true;
	return 0;
}

/* Exchanges are possible and nobody makes any: the device is made what its driver takes it for. */
static void resume_service(struct vmsgx_device *dev)
{
	bool news = false;
	int err = identify(dev);

	if (!err && dev->virtio)
		err = vmsgx_restore(dev);
	if (!err && dev->virtio)
		err = vmsgx_refresh_config(dev, &news);
	if (err == -ENOTCONN || err == -ENODEV)
		return;
	if (err) {
		vmsgx_give_up(dev, "the backend does not offer any longer what its driver uses");
		return;
	}
	if (dev->virtio) {
		WRITE_ONCE(dev->seen_generation, vmsgx_generation(dev));
		if (news)
			virtio_config_changed(&dev->virtio->vdev);
	}
	WRITE_ONCE(dev->up, true);
	if (!dev->virtio && !dev->unplugged)
		queue_work(vmsgx_bus_workqueue, &dev->bus_work);
}

/* State 4. */
static void meet(struct vmsgx_device *dev)
{
	int err = vmsgx_channel_check(dev);

	dev->met = true;
	if (err == -ENOTCONN)
		return;	/* it died again; its successor goes to state 2 */
	if (err) {
		vmsgx_give_up(dev, "the backend's page is not one of this protocol");
		return;
	}
	xenbus_switch_state(dev->xdev, XenbusStateConnected);
	resume_service(dev);
}

/* One more recovery: too many without a request that was completed in between? */
static bool hopeless(struct vmsgx_device *dev)
{
	int completed = atomic_read(&dev->completed);

	dev->failures = completed == dev->completed_before ? dev->failures + 1 : 1;
	dev->completed_before = completed;
	return dev->failures > MAX_FAILURES;
}

/* Connected, and something is new. */
static void look(struct vmsgx_device *dev)
{
	u32 generation = vmsgx_generation(dev);

	if (dev->virtio && dev->status && vmsgx_device_status(dev) & VIRTIO_CONFIG_S_NEEDS_RESET) {
		if (hopeless(dev)) {
			vmsgx_give_up(dev, "the device needs a reset again and again");
			return;
		}
		WRITE_ONCE(dev->up, false);
		vmsgx_queues_stop(dev);
		resume_service(dev);
	} else if (generation != dev->seen_generation) {
		WRITE_ONCE(dev->seen_generation, generation);
		if (dev->virtio)
			virtio_config_changed(&dev->virtio->vdev);
	}
}

/* The backend closed the channel, or it never began: state 1 asks for another beginning. */
static void begin_again(struct vmsgx_device *dev)
{
	if (dev->offered) {
		vmsgx_disconnect(dev);
		if (hopeless(dev))
			vmsgx_give_up(dev, "the backend closes the channel again and again");
		if (dev->dead)
			return;
	}
	/*
	 * Written even if it is what we wrote last: a driver in user space may have had the device
	 * meanwhile.
	 */
	dev->xdev->state = XenbusStateUnknown;
	xenbus_switch_state(dev->xdev, XenbusStateInitialising);
}

static void unplug(struct vmsgx_device *dev)
{
	dev->unplugged = true;
	/*
	 * Its driver may wait for requests: they come back from a backend that lives, else not at
	 * all.
	 */
	if (!READ_ONCE(dev->up) && !dev->dead)
		vmsgx_end(dev);
	queue_work(vmsgx_bus_workqueue, &dev->bus_work);
	queue_delayed_work(vmsgx_workqueue, &dev->retry_work, msecs_to_jiffies(RETRY_MS));
}

/* A new grant table, and event channels that nobody is at the other end of. */
static void forget_the_old_xen(struct vmsgx_device *dev)
{
	unsigned int i;

	dev->resumed = false;
	vmsgx_disconnect(dev);
	vmsgx_grants_renew(&dev->arena, dev->xdev->otherend_id);
	for (i = 0; i < dev->queue_count; i++) {
		vmsgx_grants_renew(&dev->queues[i].read_area, dev->xdev->otherend_id);
		vmsgx_grants_renew(&dev->queues[i].write_area, dev->xdev->otherend_id);
	}
}

static void step(struct vmsgx_device *dev, enum xenbus_state state)
{
	bool up = READ_ONCE(dev->up) && vmsgx_backend_alive(dev);

	if (dev->met && !up) {
		WRITE_ONCE(dev->up, false);
		vmsgx_queues_stop(dev);
	}
	if (dev->unplugged || dev->removing) {
		if (!up && !dev->dead)
			vmsgx_end(dev);
		return;
	}
	if (dev->dead && state != XenbusStateUnknown && state != XenbusStateClosing &&
	    state != XenbusStateClosed)
		return;
	switch (state) {
	case XenbusStateInitWait:
		if (dev->met)
			vmsgx_disconnect(dev);
		if (!dev->offered && !dev->dead)
			try_offer(dev);
		break;
	case XenbusStateConnected:
		if (up)
			look(dev);
		else if (dev->offered && !dev->met)
			meet(dev);
		else if (!dev->offered)
			begin_again(dev);
		break;
	case XenbusStateClosing:
	case XenbusStateClosed:
		if (!xenbus_read_unsigned(dev->xdev->otherend, "online", 1))
			unplug(dev);
		else if (!dev->dead)
			begin_again(dev);
		break;
	case XenbusStateUnknown:
		unplug(dev);
		break;
	default:
		break;	/* the backend is on its way to one of these */
	}
}

/*
 * Brings the connection to where the backend wants it. Waits for the backend's answers, never for
 * the driver.
 */
void vmsgx_state_work(struct work_struct *work)
{
	struct vmsgx_device *dev = container_of(work, struct vmsgx_device, state_work);
	/* Memory must not be had by writing to the very disk that is being reconnected. */
	unsigned int flags = memalloc_noio_save();
	enum xenbus_state state = xenbus_read_driver_state(dev->xdev->otherend);
	unsigned int i;

	mutex_lock(&dev->lock);
	if (dev->resumed)
		forget_the_old_xen(dev);
	for (i = 0; i < dev->queue_count; i++)
		vmsgx_queue_call_late(&dev->queues[i]);
	if (dev->late)
		vmsgx_give_up(dev, "the backend does not complete a request");
	if (dev->lied)
		vmsgx_give_up(dev, "a used ring of the backend holds what cannot be");
	step(dev, state);
	mutex_unlock(&dev->lock);
	wake_up_all(&dev->wait);
	memalloc_noio_restore(flags);
}

/* Its driver waits for requests before it lets go of the device, and xenbus for the driver. */
static bool stands_still(struct vmsgx_device *dev)
{
	int completed = atomic_read(&dev->completed);

	if (completed != dev->completed_before)
		dev->idle_looks = 0;
	dev->completed_before = completed;
	return ++dev->idle_looks > MAX_IDLE_LOOKS;
}

/*
 * What no watch tells: a backend that has not seen our offer, or that died or hangs while its
 * device is unplugged.
 */
void vmsgx_retry_work(struct work_struct *work)
{
	struct vmsgx_device *dev =
		container_of(to_delayed_work(work), struct vmsgx_device, retry_work);

	mutex_lock(&dev->lock);
	if (dev->offered && !dev->met && !dev->removing &&
	    xenbus_read_driver_state(dev->xdev->otherend) == XenbusStateInitWait)
		vmsgx_disconnect(dev);
	if (dev->unplugged && (dev->virtio || dev->removing)) {
		if (stands_still(dev))
			vmsgx_give_up(dev, "the backend completes nothing for a device that goes");
		queue_delayed_work(vmsgx_workqueue, &dev->retry_work, msecs_to_jiffies(RETRY_MS));
	}
	mutex_unlock(&dev->lock);
	queue_work(vmsgx_workqueue, &dev->state_work);
}
