// SPDX-License-Identifier: GPL-2.0
/* The messages of virtio-msg (docs/protocol.md section 2), each an exchange; checks answers. */
#include "vmsgx.h"

/* Answers of one size only. */
static int exchange(struct vmsgx_device *dev, u8 msg_id, const void *payload, size_t size,
		    void *answer, size_t answer_size)
{
	int got = vmsgx_exchange(dev, msg_id, payload, size, answer, answer_size);

	if (got < 0)
		return got;
	if (got == answer_size)
		return 0;
	vmsgx_give_up(dev, "the backend's answer is too short");
	return -EPROTO;
}

static int lie(struct vmsgx_device *dev)
{
	vmsgx_give_up(dev, "the backend's answer is to something else");
	return -EPROTO;
}

int vmsgx_get_info(struct vmsgx_device *dev, struct vmsgx_info *info)
{
	struct vmsg_device_info answer;
	u32 bits;
	int err = exchange(dev, VMSG_GET_DEVICE_INFO, NULL, 0, &answer, sizeof(answer));

	if (err)
		return err;
	bits = le32_to_cpu(answer.num_feature_bits);
	info->device_id = le32_to_cpu(answer.device_id);
	info->vendor_id = le32_to_cpu(answer.vendor_id);
	/* Of one message; more than that is not driven anyhow. */
	info->feature_words = min(bits / 32, 64U);
	info->config_size = le32_to_cpu(answer.config_size);
	info->max_vqueues = le32_to_cpu(answer.max_vqueues);
	return bits % 32 ? lie(dev) : 0;
}

int vmsgx_get_features(struct vmsgx_device *dev, u64 *features)
{
	const struct vmsg_feature_range range = { .index = 0, .count = cpu_to_le32(2) };
	struct {
		struct vmsg_feature_range range;
		__le32 words[2];
	} answer;
	int err = exchange(dev, VMSG_GET_DEVICE_FEATURES, &range, sizeof(range), &answer,
			   sizeof(answer));

	if (err)
		return err;
	if (memcmp(&answer.range, &range, sizeof(range)))
		return lie(dev);
	*features = le32_to_cpu(answer.words[0]) | (u64)le32_to_cpu(answer.words[1]) << 32;
	return 0;
}

/* All words that the device has: what this kernel knows nothing of is 0. */
int vmsgx_set_features(struct vmsgx_device *dev, u64 features)
{
	struct {
		struct vmsg_feature_range range;
		__le32 words[64];
	} request = { };
	u32 count = max(dev->info.feature_words, 2U);

	request.range.count = cpu_to_le32(count);
	request.words[0] = cpu_to_le32(lower_32_bits(features));
	request.words[1] = cpu_to_le32(upper_32_bits(features));
	return exchange(dev, VMSG_SET_DRIVER_FEATURES, &request, sizeof(request.range) + count * 4,
			NULL, 0);
}

/* A GET_CONFIG or SET_CONFIG answer. -EINVAL: refused. */
static int config_answer(struct vmsgx_device *dev, const void *answer, int got, u32 offset,
			 u32 size, u32 *generation)
{
	const struct vmsg_config *head = answer;

	if (got < sizeof(*head) || got - sizeof(*head) != le32_to_cpu(head->size))
		return lie(dev);
	if (!head->size && size)
		return -EINVAL;
	if (le32_to_cpu(head->offset) != offset || le32_to_cpu(head->size) != size)
		return lie(dev);
	*generation = le32_to_cpu(head->generation);
	return 0;
}

/* At most VMSG_MAX_CONFIG_DATA bytes. -EINVAL: not in the device's config space. */
int vmsgx_get_config(struct vmsgx_device *dev, u32 offset, void *data, u32 size, u32 *generation)
{
	const struct vmsg_config_range range = {
		.offset = cpu_to_le32(offset),
		.size = cpu_to_le32(size),
	};
	struct {
		struct vmsg_config head;
		u8 data[VMSG_MAX_CONFIG_DATA];
	} answer;
	int got = vmsgx_exchange(dev, VMSG_GET_CONFIG, &range, sizeof(range), &answer,
				 sizeof(answer));
	int err = got < 0 ? got : config_answer(dev, &answer, got, offset, size, generation);

	if (!err)
		memcpy(data, answer.data, size);
	return err;
}

/* At most VMSG_MAX_CONFIG_DATA bytes. -EINVAL: refused. @generation: in and out. */
int vmsgx_set_config(struct vmsgx_device *dev, u32 offset, const void *data, u32 size,
		     u32 *generation)
{
	struct {
		struct vmsg_config head;
		u8 data[VMSG_MAX_CONFIG_DATA];
	} message = {
		.head = {
			.generation = cpu_to_le32(*generation),
			.offset = cpu_to_le32(offset),
			.size = cpu_to_le32(size),
		},
	};
	int got;

	memcpy(message.data, data, size);
	got = vmsgx_exchange(dev, VMSG_SET_CONFIG, &message, sizeof(message.head) + size, &message,
			     sizeof(message));
	return got < 0 ? got : config_answer(dev, &message, got, offset, size, generation);
}

int vmsgx_set_status(struct vmsgx_device *dev, u32 status, u32 *result)
{
	struct vmsg_status message = { .status = cpu_to_le32(status) };
	int err = exchange(dev, VMSG_SET_DEVICE_STATUS, &message, sizeof(message), &message,
			   sizeof(message));

	if (!err)
		*result = le32_to_cpu(message.status);
	return err;
}

static int get_vqueue(struct vmsgx_device *dev, u32 index, struct vmsg_vqueue *answer)
{
	const struct vmsg_index request = { .index = cpu_to_le32(index) };
	int err;

	err = exchange(dev, VMSG_GET_VQUEUE, &request, sizeof(request), answer, sizeof(*answer));
	if (err)
		return err;
	return le32_to_cpu(answer->index) == index ? 0 : lie(dev);
}

/* 0: there is no such queue. */
int vmsgx_get_vqueue_max(struct vmsgx_device *dev, u32 index, u32 *max_size)
{
	struct vmsg_vqueue answer;
	int err = get_vqueue(dev, index, &answer);

	if (!err)
		*max_size = le32_to_cpu(answer.max_size);
	return err;
}

/* -EINVAL: refused, which shows only when it is asked for. */
int vmsgx_set_vqueue(struct vmsgx_device *dev, const struct vmsgx_queue *queue)
{
	const struct vmsg_vqueue request = {
		.index = cpu_to_le32(queue->index),
		.size = cpu_to_le32(queue->num),
		.descriptor_address = cpu_to_le64(queue->descriptor_address),
		.driver_address = cpu_to_le64(queue->driver_address),
		.device_address = cpu_to_le64(queue->device_address),
	};
	struct vmsg_vqueue taken;
	int err = exchange(dev, VMSG_SET_VQUEUE, &request, sizeof(request), NULL, 0);

	if (!err)
		err = get_vqueue(dev, queue->index, &taken);
	if (err)
		return err;
	if (taken.size != request.size || taken.driver_address != request.driver_address ||
	    taken.descriptor_address != request.descriptor_address ||
	    taken.device_address != request.device_address)
		return -EINVAL;
	return 0;
}

int vmsgx_reset_vqueue(struct vmsgx_device *dev, u32 index)
{
	const struct vmsg_index request = { .index = cpu_to_le32(index) };

	return exchange(dev, VMSG_RESET_VQUEUE, &request, sizeof(request), NULL, 0);
}

/* @length 0: there is no such region. */
int vmsgx_get_shm(struct vmsgx_device *dev, u32 index, u64 *length)
{
	const struct vmsg_index request = { .index = cpu_to_le32(index) };
	struct vmsg_shm answer;
	int err = exchange(dev, VMSG_GET_SHM, &request, sizeof(request), &answer, sizeof(answer));

	if (err)
		return err;
	*length = le32_to_cpu(answer.length_low) | (u64)le32_to_cpu(answer.length_high) << 32;
	return answer.index == request.index ? 0 : lie(dev);
}
