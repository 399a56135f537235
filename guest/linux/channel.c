// SPDX-License-Identifier: GPL-2.0
/*
 * The config channel: one request in fe-to-be, one answer in be-to-fe (docs/protocol.md section 1).
 * Everything in be-to-fe is read once, checked, and may be a lie.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <xen/events.h>

#include "trace.h"
#include "vmsgx.h"

/* How often a sleeper looks at the live byte at least: a backend may die without an event. */
#define LONGEST_SLEEP (HZ / 10)
/*
 * Milliseconds that a driver's call waits for a backend that is away: an emulator that is started
 * again.
 */
#define ABSENCE_MS 10000
#define SPINS_BETWEEN_LOOKS 64

/* Allocates, zeroes and grants the two pages. */
int vmsgx_channel_open(struct vmsgx_device *dev)
{
	domid_t backend = dev->xdev->otherend_id;
	int err;

	err = vmsgx_grants_alloc(&dev->fe_grant, backend, 1, true);
	if (err)
		return err;
	err = vmsgx_grants_alloc(&dev->be_grant, backend, 1, false);
	if (err) {
		vmsgx_grants_free(&dev->fe_grant, NULL);
		return err;
	}
	dev->fe = dev->fe_grant.vaddr;
	dev->be = dev->be_grant.vaddr;
	dev->seq = 0;
	dev->epoch = 1;
	dev->fe->header.version = cpu_to_le32(VMSG_XEN_PROTOCOL_VERSION);
	dev->fe->header.live = VMSG_XEN_ALIVE;
	/* Partner: the backend's acquire load of magic when it maps the page. */
	virt_store_release(&dev->fe->header.magic, cpu_to_le32(VMSG_XEN_MAGIC_FE));
	return 0;
}

/* The backend says that it is connected: is that a page of this protocol? */
int vmsgx_channel_check(struct vmsgx_device *dev)
{
	/* Partner: the backend's release store of magic, after the rest of its header. */
	u32 magic = le32_to_cpu(virt_load_acquire(&dev->be->header.magic));
	u32 version = le32_to_cpu(READ_ONCE(dev->be->header.version));

	if (!vmsgx_backend_alive(dev))
		return -ENOTCONN;
	return magic == VMSG_XEN_MAGIC_BE && version == VMSG_XEN_PROTOCOL_VERSION ? 0 : -EPROTO;
}

/* Tells a backend that is still there that we are not. */
void vmsgx_channel_leave(struct vmsgx_device *dev)
{
	if (!dev->fe)
		return;
	/* Partner: the backend's acquire load of live; it unmaps everything when it sees this. */
	virt_store_release(&dev->fe->header.live, VMSG_XEN_DEAD);
	if (dev->irq)
		notify_remote_via_irq(dev->irq);
}

/* Takes the pages back; the ports are closed. Returns whether the backend had let go of them. */
bool vmsgx_channel_free(struct vmsgx_device *dev)
{
	bool released;

	dev->fe = NULL;
	dev->be = NULL;
	vmsgx_kept_retry(&dev->kept);
	released = vmsgx_grants_free(&dev->fe_grant, &dev->kept);
	return vmsgx_grants_free(&dev->be_grant, &dev->kept) && released;
}

bool vmsgx_backend_alive(const struct vmsgx_device *dev)
{
	/* After a restore the page is as it was, and nobody is there. */
	if (!dev->be || READ_ONCE(dev->resumed))
		return false;
	/*
	 * Partner: the backend's release store of 0; what it wrote before, an answer perhaps, is
	 * seen with its death.
	 */
	return virt_load_acquire(&dev->be->header.live) != VMSG_XEN_DEAD;
}

/* The backend's mirror of the device status. */
u32 vmsgx_device_status(const struct vmsgx_device *dev)
{
	/* Partner: the backend's release store before its answer or its event. */
	return le32_to_cpu(virt_load_acquire(&dev->be->header.device_status));
}

/* The backend's mirror of the configuration generation. */
u32 vmsgx_generation(const struct vmsgx_device *dev)
{
	/* Partner: the backend's release store before its answer or its event. */
	return le32_to_cpu(virt_load_acquire(&dev->be->header.config_generation));
}

static u32 answered(const struct vmsgx_device *dev)
{
	/* Partner: the backend's release store of seq; the answer is whole once its seq is seen. */
	return le32_to_cpu(virt_load_acquire(&dev->be->answer.seq));
}

static bool arrived(const struct vmsgx_device *dev)
{
	return answered(dev) != dev->seq - 1;
}

static bool spin(struct vmsgx_device *dev, ktime_t deadline)
{
	unsigned int i;

	do {
		for (i = 0; i < SPINS_BETWEEN_LOOKS; i++) {
			if (arrived(dev))
				return true;
			cpu_relax();
		}
		cond_resched();
	} while (vmsgx_backend_alive(dev) && ktime_before(ktime_get(), deadline));
	return arrived(dev);
}

static bool sleep(struct vmsgx_device *dev, ktime_t deadline)
{
	bool there = false;

	do {
		WRITE_ONCE(dev->fe->header.fe_waiting, cpu_to_le32(1));
		/*
		 * Partner: the backend's fence after its answer. Either we see that or it sees our
		 * waiting word.
		 */
		virt_mb();
		wait_event_timeout(dev->wait, arrived(dev) || !vmsgx_backend_alive(dev),
				   LONGEST_SLEEP);
		WRITE_ONCE(dev->fe->header.fe_waiting, cpu_to_le32(0));
		there = arrived(dev);
	} while (!there && vmsgx_backend_alive(dev) && ktime_before(ktime_get(), deadline));
	return there || arrived(dev);
}

static void publish(struct vmsgx_device *dev, u8 msg_id, u16 token, const void *payload,
		    size_t size)
{
	const struct vmsg_header header = {
		.msg_id = msg_id,
		.token = cpu_to_le16(token),
		.msg_size = cpu_to_le16(sizeof(header) + size),
	};
	struct vmsg_xen_slot *slot = &dev->fe->request;

	memcpy(slot->message, &header, sizeof(header));
	memcpy(slot->message + sizeof(header), payload, size);
	WRITE_ONCE(slot->size, cpu_to_le32(sizeof(header) + size));
	/* Partner: the backend's acquire load of seq. */
	virt_store_release(&slot->seq, cpu_to_le32(++dev->seq));
	/*
	 * Partner: the backend's fence before it sleeps. Either it sees this request or we see its
	 * waiting word.
	 */
	virt_mb();
	if (READ_ONCE(dev->be->header.be_waiting))
		notify_remote_via_irq(dev->irq);
}

/* The size of the answer's payload, which is copied to @answer once; -EPROTO for a lie. */
static int take_answer(struct vmsgx_device *dev, u8 msg_id, u16 token, void *answer,
		       size_t capacity)
{
	struct vmsg_header header;
	u32 size = le32_to_cpu(READ_ONCE(dev->be->answer.size));

	if (answered(dev) != dev->seq || size < sizeof(header) || size > VMSG_MAX_SIZE)
		return -EPROTO;
	/* From here on only the copy is looked at. */
	memcpy(dev->message, dev->be->answer.message, size);
	memcpy(&header, dev->message, sizeof(header));
	size -= sizeof(header);
	if ((header.type & (VMSG_TYPE_RESPONSE | VMSG_TYPE_BUS)) != VMSG_TYPE_RESPONSE ||
	    header.dev_num || header.msg_id != msg_id || le16_to_cpu(header.token) != token ||
	    le16_to_cpu(header.msg_size) != size + sizeof(header) || size > capacity)
		return -EPROTO;
	if (size)
		memcpy(answer, dev->message + sizeof(header), size);
	return size;
}

/*
 * One request and its answer: at most vmsgx_timeout_ms. Under vmsgx_device.lock, in a context that
 * may sleep.
 *
 * Returns the size of the answer's payload. -ENOTCONN: the backend is away. Gives the device up,
 * and returns -ETIMEDOUT if no answer came or -EPROTO if it was none. -ENODEV: the device was given
 * up before.
 */
int vmsgx_exchange(struct vmsgx_device *dev, u8 msg_id, const void *payload, size_t size,
		   void *answer, size_t capacity)
{
	ktime_t start = ktime_get();
	ktime_t deadline = ktime_add_ms(start, vmsgx_timeout_ms);
	u16 token;
	int got;

	might_sleep();
	lockdep_assert_held(&dev->lock);
	if (READ_ONCE(dev->dead))
		return -ENODEV;
	if (!vmsgx_backend_alive(dev)) {
		vmsgx_lost(dev);
		return -ENOTCONN;
	}
	token = dev->epoch << 8 | ((dev->seq + 1) & 0xff);
	trace_vmsgx_request(dev->xdev->nodename, msg_id, token, size);
	publish(dev, msg_id, token, payload, size);
	if (!spin(dev, min_t(ktime_t, ktime_add_us(start, vmsgx_spin_us), deadline)) &&
	    !sleep(dev, deadline)) {
		if (!vmsgx_backend_alive(dev)) {
			vmsgx_lost(dev);
			return -ENOTCONN;
		}
		/* The slot is the backend's until a late answer, which nobody would wait for. */
		vmsgx_give_up(dev, "the backend does not answer");
		return -ETIMEDOUT;
	}
	got = take_answer(dev, msg_id, token, answer, capacity);
	trace_vmsgx_answer(dev->xdev->nodename, msg_id, token, got,
			   ktime_to_ns(ktime_sub(ktime_get(), start)));
	if (got < 0)
		vmsgx_give_up(dev, "the backend's answer is none to the request");
	else if (msg_id == VMSG_SET_DEVICE_STATUS && !((const struct vmsg_status *)payload)->status)
		/* Answers from before a reset are stale. */
		dev->epoch = dev->epoch == 0xff ? 1 : dev->epoch + 1;
	return got;
}

/*
 * Takes vmsgx_device.lock with the device connected. -ENODEV: it was given up. -ETIMEDOUT: its
 * backend stays away.
 */
int vmsgx_lock_up(struct vmsgx_device *dev)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(ABSENCE_MS);

	for (;;) {
		if (READ_ONCE(dev->dead))
			return -ENODEV;
		mutex_lock(&dev->lock);
		if (READ_ONCE(dev->up))
			return 0;
		mutex_unlock(&dev->lock);
		if (time_after_eq(jiffies, deadline))
			return -ETIMEDOUT;
		wait_event_timeout(dev->wait, READ_ONCE(dev->up) || READ_ONCE(dev->dead),
				   deadline - jiffies);
	}
}

/* An answer, a configuration change, DEVICE_NEEDS_RESET, the backend's end, or nothing at all. */
irqreturn_t vmsgx_channel_interrupt(int irq, void *opaque)
{
	struct vmsgx_device *dev = opaque;
	bool news = READ_ONCE(dev->fe->header.fe_waiting);

	wake_up_all(&dev->wait);
	if (READ_ONCE(dev->up) && (!vmsgx_backend_alive(dev) ||
				   vmsgx_generation(dev) != READ_ONCE(dev->seen_generation) ||
				   vmsgx_device_status(dev) & VIRTIO_CONFIG_S_NEEDS_RESET)) {
		queue_work(vmsgx_workqueue, &dev->state_work);
		news = true;
	}
	/* A backend that raises events for nothing is throttled (XSA-391). */
	xen_irq_lateeoi(irq, news ? 0 : XEN_EOI_FLAG_SPURIOUS);
	return IRQ_HANDLED;
}
