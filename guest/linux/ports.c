// SPDX-License-Identifier: GPL-2.0
/*
 * Event channels: cfg for the pages, and one for each virtqueue. They are offered unbound; the
 * backend binds them.
 */
#include <linux/interrupt.h>
#include <xen/events.h>

#include "vmsgx.h"

static int open_port(struct vmsgx_device *dev, const char *name, irq_handler_t handler,
		     void *opaque, evtchn_port_t *port, int *irq)
{
	int err = xenbus_alloc_evtchn(dev->xdev, port);

	if (err)
		return err;
	err = bind_evtchn_to_irqhandler_lateeoi(*port, handler, 0, name, opaque);
	if (err < 0) {
		xenbus_free_evtchn(dev->xdev, *port);
		return err;
	}
	*irq = err;
	return 0;
}

/* All of them, or none. The pages are there: an event may come at once. */
int vmsgx_ports_open(struct vmsgx_device *dev)
{
	unsigned int i;
	int err = open_port(dev, dev_name(&dev->xdev->dev), vmsgx_channel_interrupt, dev,
			    &dev->port, &dev->irq);

	for (i = 0; !err && i < dev->queue_count; i++) {
		struct vmsgx_queue *queue = &dev->queues[i];

		err = open_port(dev, queue->name, vmsgx_queue_interrupt, queue, &queue->port,
				&queue->irq);
		if (!err && queue->pinned)
			irq_set_affinity_and_hint(queue->irq, queue->affinity);
	}
	if (err)
		vmsgx_ports_close(dev);
	return err;
}

/* No handler runs any longer when this returns. */
void vmsgx_ports_close(struct vmsgx_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++) {
		struct vmsgx_queue *queue = &dev->queues[i];

		if (queue->irq) {
			irq_set_affinity_and_hint(queue->irq, NULL);
			unbind_from_irqhandler(queue->irq, queue);
		}
		queue->irq = 0;
	}
	if (dev->irq)
		unbind_from_irqhandler(dev->irq, dev);
	dev->irq = 0;
}
