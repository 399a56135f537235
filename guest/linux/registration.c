// SPDX-License-Identifier: GPL-2.0
/* The virtio device's coming and going on its bus, whatever the connection does meanwhile. */
#include <linux/slab.h>
#include <xen/xenbus.h>

#include "vmsgx.h"

static void release(struct device *device)
{
	kfree(container_of(dev_to_virtio(device), struct vmsgx_virtio, vdev));
}

static void register_device(struct vmsgx_device *dev)
{
	struct vmsgx_virtio *virtio = kzalloc(sizeof(*virtio), GFP_KERNEL);
	int err;

	if (!virtio)
		return;
	virtio->dev = dev;
	virtio->vdev.dev.parent = &dev->xdev->dev;
	virtio->vdev.dev.release = release;
	virtio->vdev.config = &vmsgx_config_ops;
	virtio->vdev.id.device = dev->info.device_id;
	virtio->vdev.id.vendor = dev->info.vendor_id;
	mutex_lock(&dev->lock);
	dev->virtio = virtio;
	mutex_unlock(&dev->lock);
	err = register_virtio_device(&virtio->vdev);
	if (!err)
		return;
	dev_err(&dev->xdev->dev, "cannot register the virtio device: %d\n", err);
	mutex_lock(&dev->lock);
	dev->virtio = NULL;
	mutex_unlock(&dev->lock);
	put_device(&virtio->vdev.dev);
}

static void unregister_device(struct vmsgx_device *dev)
{
	struct vmsgx_virtio *virtio = dev->virtio;

	get_device(&virtio->vdev.dev);	/* until nobody can find it here */
	unregister_virtio_device(&virtio->vdev);
	mutex_lock(&dev->lock);
	dev->virtio = NULL;
	mutex_unlock(&dev->lock);
	put_device(&virtio->vdev.dev);
}

/*
 * Drivers come and go here, and wait for what they like: it is state_work that keeps them from
 * waiting for ever.
 */
void vmsgx_bus_work(struct work_struct *work)
{
	struct vmsgx_device *dev = container_of(work, struct vmsgx_device, bus_work);

	if (!dev->unplugged) {
		if (!dev->virtio && READ_ONCE(dev->up))
			register_device(dev);
		return;
	}
	if (dev->virtio)
		unregister_device(dev);
	mutex_lock(&dev->lock);
	vmsgx_disconnect(dev);
	mutex_unlock(&dev->lock);
	if (!dev->removing)
		xenbus_switch_state(dev->xdev, XenbusStateClosed);
}

/* The end of what main.c began. The backend may be there or not. */
void vmsgx_close(struct vmsgx_device *dev)
{
	/* Once it has vanished, what appears there by the time we are done is another device's. */
	bool ours = xenbus_exists(XBT_NIL, dev->xdev->nodename, "");

	mutex_lock(&dev->lock);
	dev->removing = true;
	dev->unplugged = true;
	if (!READ_ONCE(dev->up) && !dev->dead)
		vmsgx_end(dev);
	mutex_unlock(&dev->lock);
	queue_work(vmsgx_bus_workqueue, &dev->bus_work);
	/* Lest a driver wait for ever. */
	queue_delayed_work(vmsgx_workqueue, &dev->retry_work, 0);
	flush_work(&dev->bus_work);
	cancel_delayed_work_sync(&dev->retry_work);
	cancel_work_sync(&dev->state_work);
	/* What they may have begun meanwhile. */
	cancel_delayed_work_sync(&dev->retry_work);
	cancel_work_sync(&dev->bus_work);
	if (ours)
		xenbus_switch_state(dev->xdev, XenbusStateClosing);
	vmsgx_queues_free(dev);
	if (ours)
		xenbus_switch_state(dev->xdev, XenbusStateClosed);
}
