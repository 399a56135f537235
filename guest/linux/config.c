// SPDX-License-Identifier: GPL-2.0
/*
 * The virtio device: what a driver may ask of its transport. All of it may sleep but notify, which
 * is in queue.c.
 */
#include <linux/virtio_ids.h>

#include "vmsgx.h"

/*
 * Feature bits between the driver and its ring that the relay keeps to itself, or could not relay.
 */
#define NOT_FOR_DRIVER \
	(BIT_ULL(VIRTIO_RING_F_EVENT_IDX) | BIT_ULL(VIRTIO_F_RING_PACKED) | \
	 BIT_ULL(VIRTIO_F_IN_ORDER) | BIT_ULL(NOTIFICATION_DATA))
#define NOTIFICATION_DATA 38

/*
 * Does the specification make this device type's config space plain memory, whose every change
 * moves the generation? Only then may a value be remembered. Others may have fields that are
 * computed when they are read.
 */
static bool plain_memory(const struct vmsgx_device *dev)
{
	switch (dev->info.device_id) {
	case VIRTIO_ID_NET:
	case VIRTIO_ID_BLOCK:
	case VIRTIO_ID_CONSOLE:
	case VIRTIO_ID_RNG:
		return dev->info.config_size <= VMSG_MAX_CONFIG_DATA;
	default:
		return false;
	}
}

static bool in_config(const struct vmsgx_device *dev, unsigned int offset, unsigned int length)
{
	return offset <= dev->info.config_size && length <= dev->info.config_size - offset;
}

/* All of it at once: a MAC address costs one exchange, not eight. */
static int read_cached(struct vmsgx_device *dev, unsigned int offset, void *data,
		       unsigned int length)
{
	if (!dev->cache_valid || dev->cache_generation != vmsgx_generation(dev)) {
		int err = vmsgx_get_config(dev, 0, dev->cache, dev->info.config_size,
					   &dev->cache_generation);

		dev->cache_valid = !err;
		if (err)
			return err;
		dev->cached = true;
	}
	if (length)
		memcpy(data, dev->cache + offset, length);
	return 0;
}

static int read_config(struct vmsgx_device *dev, unsigned int offset, void *data,
		       unsigned int length)
{
	int err = 0;

	if (plain_memory(dev))
		return read_cached(dev, offset, data, length);
	while (length && !err) {
		unsigned int piece = min_t(unsigned int, length, VMSG_MAX_CONFIG_DATA);
		u32 generation;

		err = vmsgx_get_config(dev, offset, data, piece, &generation);
		offset += piece;
		data += piece;
		length -= piece;
	}
	return err;
}

/* The device was away. @changed: its config space is another one, or may be. */
int vmsgx_refresh_config(struct vmsgx_device *dev, bool *changed)
{
	u8 before[VMSG_MAX_CONFIG_DATA];
	bool known = dev->cache_valid;
	int err;

	*changed = true;
	dev->cache_valid = false;
	if (!known || !plain_memory(dev))
		return 0;
	memcpy(before, dev->cache, sizeof(before));
	err = read_cached(dev, 0, NULL, 0);
	*changed = err || memcmp(before, dev->cache, dev->info.config_size);
	return err;
}

/* As it was when it could be read. */
static bool read_remembered(struct vmsgx_device *dev, unsigned int offset, void *data,
			    unsigned int length)
{
	bool cached;

	mutex_lock(&dev->lock);
	cached = dev->cached;
	if (cached)
		memcpy(data, dev->cache + offset, length);
	mutex_unlock(&dev->lock);
	return cached;
}

/*
 * What cannot be read is as it was, or 0: a driver has no way to be told, and may take a disk for
 * an empty one.
 */
static void get(struct virtio_device *vdev, unsigned int offset, void *data, unsigned int length)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	int err = -EINVAL;

	if (in_config(dev, offset, length))
		err = CALL_CONNECTED(dev, read_config(dev, offset, data, length));
	if (!err)
		return;
	if (err == -EINVAL || !read_remembered(dev, offset, data, length))
		memset(data, 0, length);
	if (err != -ENODEV)
		dev_warn_ratelimited(&vdev->dev,
				     "%u bytes of config space at %u cannot be read: %d\n", length,
				     offset, err);
}

static int write_config(struct vmsgx_device *dev, unsigned int offset, const void *data,
			unsigned int length)
{
	int err = 0;

	while (length && !err) {
		unsigned int piece = min_t(unsigned int, length, VMSG_MAX_CONFIG_DATA);
		u32 before = vmsgx_generation(dev);
		u32 generation = before;

		err = vmsgx_set_config(dev, offset, data, piece, &generation);
		/* Our own write is no news; what moves the generation further is. */
		if (!err && generation == before + 1 && dev->seen_generation == before)
			WRITE_ONCE(dev->seen_generation, generation);
		offset += piece;
		data += piece;
		length -= piece;
	}
	return err;
}

static void set(struct virtio_device *vdev, unsigned int offset, const void *data,
		unsigned int length)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	int err = -EINVAL;

	if (in_config(dev, offset, length))
		err = CALL_CONNECTED(dev, write_config(dev, offset, data, length));
	if (err && err != -ENODEV)
		dev_warn_ratelimited(&vdev->dev,
				     "%u bytes of config space at %u cannot be written: %d\n",
				     length, offset, err);
}

static u32 generation(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	u32 now;

	if (vmsgx_lock_up(dev))
		return 0;
	now = vmsgx_generation(dev);
	/* A driver reads again until this stays the same; a backend must not keep it there. */
	dev->restless = now == dev->told_generation ? 0 : dev->restless + 1;
	dev->told_generation = now;
	if (dev->restless > VMSGX_RESTLESS)
		vmsgx_give_up(dev, "the config space does not stay the same for one read");
	mutex_unlock(&dev->lock);
	return now;
}

/* As the driver knows it, with what only the device may add. */
static u8 get_status(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	u8 status;

	mutex_lock(&dev->lock);
	status = dev->status;
	if (status && READ_ONCE(dev->up))
		status |= vmsgx_device_status(dev) & VIRTIO_CONFIG_S_NEEDS_RESET;
	mutex_unlock(&dev->lock);
	return status;
}

/* Adds bits; what the device did not take is not kept. */
static int write_status(struct vmsgx_device *dev, u8 status)
{
	u32 taken;
	int err = vmsgx_set_status(dev, status, &taken);

	if (err)
		return err;
	dev->status = taken & status;
	if (taken & status & VIRTIO_CONFIG_S_DRIVER_OK)
		vmsgx_queues_start(dev);
	return 0;
}

static void set_status(struct virtio_device *vdev, u8 status)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	int err;

	/* Nobody to tell, and nothing to repeat: the driver is on its way out. */
	if (status & VIRTIO_CONFIG_S_FAILED && !READ_ONCE(dev->up))
		return;
	err = CALL_CONNECTED(dev, write_status(dev, status));
	if (err && err != -ENODEV)	/* why it was given up has been said */
		dev_warn_ratelimited(&vdev->dev, "status %#x cannot be set: %d\n", status, err);
}

/* A device that is away or given up has nothing to reset. */
static void reset_device(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	unsigned int i;
	u32 status;

	mutex_lock(&dev->lock);
	for (i = 0; i < dev->queue_count; i++)
		if (dev->queues[i].vq)
			vmsgx_queue_forget(&dev->queues[i]);
	dev->status = 0;
	dev->features_written = false;
	if (READ_ONCE(dev->up) && !vmsgx_set_status(dev, 0, &status) && status)
		vmsgx_give_up(dev, "the backend refuses a device reset");
	mutex_unlock(&dev->lock);
	vmsgx_synchronize_cbs(vdev);
}

/* None, if the backend stays away. */
static u64 get_features(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);

	if (CALL_CONNECTED(dev, vmsgx_get_features(dev, &dev->offered_features)))
		return 0;
	return dev->offered_features & ~NOT_FOR_DRIVER;
}

static int write_features(struct vmsgx_device *dev, u64 features)
{
	int err;

	/* The event index is between the relay and the device. */
	dev->features = features | (dev->offered_features & BIT_ULL(VIRTIO_RING_F_EVENT_IDX));
	err = vmsgx_set_features(dev, dev->features);
	dev->features_written = !err;
	return err;
}

static int finalize_features(struct virtio_device *vdev)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	bool ring_reset = __virtio_test_bit(vdev, VIRTIO_F_RING_RESET);

	vring_transport_features(vdev);
	/* Which of these a transport can do only it knows. */
	if (ring_reset)
		__virtio_set_bit(vdev, VIRTIO_F_RING_RESET);
	if (!__virtio_test_bit(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "the device does not offer VIRTIO_F_VERSION_1\n");
		return -EINVAL;
	}
	return CALL_CONNECTED(dev, write_features(dev, vdev->features));
}

static const char *bus_name(struct virtio_device *vdev)
{
	return to_vmsgx(vdev)->xdev->nodename;
}

/* No region of this bus can be mapped: an address of the backend's means nothing here. */
static bool get_shm_region(struct virtio_device *vdev, struct virtio_shm_region *region, u8 id)
{
	struct vmsgx_device *dev = to_vmsgx(vdev);
	u64 length = 0;

	if (vmsgx_lock_up(dev))
		return false;
	if (!vmsgx_get_shm(dev, id, &length) && length)
		dev_warn(&vdev->dev, "shared memory region %u of %llu bytes cannot be mapped\n", id,
			 length);
	mutex_unlock(&dev->lock);
	return false;
}

const struct virtio_config_ops vmsgx_config_ops = {
	.get = get,
	.set = set,
	.generation = generation,
	.get_status = get_status,
	.set_status = set_status,
	.reset = reset_device,
	.find_vqs = vmsgx_find_vqs,
	.del_vqs = vmsgx_del_vqs,
	.synchronize_cbs = vmsgx_synchronize_cbs,
	.get_features = get_features,
	.finalize_features = finalize_features,
	.bus_name = bus_name,
	.set_vq_affinity = vmsgx_set_vq_affinity,
	.get_vq_affinity = vmsgx_get_vq_affinity,
	.get_shm_region = get_shm_region,
	.disable_vq_and_reset = vmsgx_disable_vq_and_reset,
	.enable_vq_after_reset = vmsgx_enable_vq_after_reset,
};

static int restore_status(struct vmsgx_device *dev, u32 status)
{
	u32 taken;
	int err = vmsgx_set_status(dev, status, &taken);

	return err ? err : (taken & status) == status ? 0 : -EINVAL;
}

/*
 * Brings a device that was reset, or is another one with the same name, to where its driver
 * believes it to be, and gives it again what it had not completed. Under vmsgx_device.lock.
 * -EINVAL: it is not the device it was.
 */
int vmsgx_restore(struct vmsgx_device *dev)
{
	const u8 before_features = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	u8 wanted = dev->status;
	unsigned int i;
	u64 offered;
	u32 status;
	int err;

	err = vmsgx_set_status(dev, 0, &status);
	if (err || !wanted)
		return err;
	err = restore_status(dev, wanted & VIRTIO_CONFIG_S_ACKNOWLEDGE);
	if (!err && wanted & VIRTIO_CONFIG_S_DRIVER)
		err = restore_status(dev, wanted & before_features);
	if (!err && dev->features_written) {
		err = vmsgx_get_features(dev, &offered);
		if (!err && dev->features & ~offered)
			err = -EINVAL;
		if (!err)
			err = vmsgx_set_features(dev, dev->features);
	}
	if (!err && wanted & VIRTIO_CONFIG_S_FEATURES_OK)
		err = restore_status(dev, wanted & ~VIRTIO_CONFIG_S_DRIVER_OK);
	for (i = 0; !err && i < dev->queue_count; i++) {
		if (!dev->queues[i].driver)
			continue;
		vmsgx_queue_prepare(&dev->queues[i]);
		err = vmsgx_set_vqueue(dev, &dev->queues[i]);
	}
	if (!err && wanted & VIRTIO_CONFIG_S_DRIVER_OK) {
		err = restore_status(dev, wanted);
		if (!err)
			vmsgx_queues_start(dev);
	}
	return err;
}
