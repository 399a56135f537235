// SPDX-License-Identifier: GPL-2.0
/* The module and its xenbus driver: devices appear, go, and wake up on another Xen. */
#include <linux/module.h>
#include <xen/platform_pci.h>
#include <xen/xen.h>

#include "vmsgx.h"

unsigned int vmsgx_timeout_ms = 2000;
module_param_named(timeout_ms, vmsgx_timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms,
		 "Milliseconds that a backend which runs has for an answer (default: 2000)");

unsigned int vmsgx_spin_us = 50;
module_param_named(spin_us, vmsgx_spin_us, uint, 0644);
MODULE_PARM_DESC(spin_us, "Microseconds to wait awake for an answer before sleeping (default: 50)");

struct workqueue_struct *vmsgx_workqueue;
/* Drivers wait there for works of queues that memory may not be had by: so it is one of them. */
struct workqueue_struct *vmsgx_bus_workqueue;

static int probe(struct xenbus_device *xdev, const struct xenbus_device_id *id)
{
	struct vmsgx_device *dev = kzalloc(sizeof(*dev), GFP_KERNEL);

	if (!dev)
		return -ENOMEM;
	dev->xdev = xdev;
	mutex_init(&dev->lock);
	init_waitqueue_head(&dev->wait);
	INIT_WORK(&dev->state_work, vmsgx_state_work);
	INIT_WORK(&dev->bus_work, vmsgx_bus_work);
	INIT_DELAYED_WORK(&dev->retry_work, vmsgx_retry_work);
	dev_set_drvdata(&xdev->dev, dev);
	vmsgx_dma_setup(&xdev->dev);
	/*
	 * Everything else when the backend's state is known; the watch that follows may not fire
	 * for a state it has.
	 */
	queue_work(vmsgx_workqueue, &dev->state_work);
	return 0;
}

static void otherend_changed(struct xenbus_device *xdev, enum xenbus_state state)
{
	struct vmsgx_device *dev = dev_get_drvdata(&xdev->dev);

	if (dev)
		queue_work(vmsgx_workqueue, &dev->state_work);
}

static void remove_device(struct xenbus_device *xdev)
{
	struct vmsgx_device *dev = dev_get_drvdata(&xdev->dev);

	vmsgx_close(dev);
	vmsgx_dma_teardown(&xdev->dev);
	dev_set_drvdata(&xdev->dev, NULL);
	kfree(dev);
}

/* Another Xen, perhaps another host: of grants and event channels nothing is left. */
static int resume(struct xenbus_device *xdev)
{
	struct vmsgx_device *dev = dev_get_drvdata(&xdev->dev);

	WRITE_ONCE(dev->resumed, true);
	vmsgx_lost(dev);
	return 0;
}

static const struct xenbus_device_id ids[] = {
	{ "virtio-msg" },
	{ "" }
};
MODULE_ALIAS("xen:virtio-msg");

static struct xenbus_driver driver = {
	.ids = ids,
	.probe = probe,
	.remove = remove_device,
	.resume = resume,
	.otherend_changed = otherend_changed,
	.allow_rebind = true,
	.not_essential = true,
};

static void destroy_workqueues(void)
{
	if (vmsgx_bus_workqueue)
		destroy_workqueue(vmsgx_bus_workqueue);
	if (vmsgx_workqueue)
		destroy_workqueue(vmsgx_workqueue);
}

static int __init vmsgx_init(void)
{
	int err;

	if (!xen_domain())
		return -ENODEV;
	if (!xen_has_pv_devices())
		return -ENODEV;
	vmsgx_workqueue = alloc_workqueue("virtio_msg_xen", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	vmsgx_bus_workqueue = alloc_workqueue("virtio_msg_xen_bus", WQ_UNBOUND, 0);
	err = -ENOMEM;
	if (vmsgx_workqueue && vmsgx_bus_workqueue)
		err = xenbus_register_frontend(&driver);
	if (err)
		destroy_workqueues();
	return err;
}

static void __exit vmsgx_exit(void)
{
	xenbus_unregister_driver(&driver);
	destroy_workqueues();
}

module_init(vmsgx_init);
module_exit(vmsgx_exit);

MODULE_DESCRIPTION("virtio devices over Xen grants and event channels (virtio-msg)");
MODULE_LICENSE("GPL");
