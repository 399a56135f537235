// SPDX-License-Identifier: GPL-2.0
/*
 * What is in a chain: its buffers, copied through the queue's pool, and the descriptors that the
 * device gets.
 *
 * A chain of direct descriptors uses some of the same descriptors in the device's ring; one with an
 * indirect table has its first descriptor point to a table in the pool. Every buffer begins at a
 * multiple of VMSGX_UNIT, and neighbours that touch share a descriptor.
 */
#include <linux/highmem.h>

#include "vmsgx.h"

/*
 * A walk along the descriptors of one chain in the driver's ring. That is memory of this kernel, so
 * it is believed.
 */
struct walk {
	struct vmsgx_queue *queue;
	const struct vring_desc *table;
	unsigned int at;	/* the descriptor that was returned last */
	unsigned int index;	/* the next one */
	unsigned int left;	/* descriptors that may still come */
};

struct buffer {
	dma_addr_t address;
	u32 length;
	bool writable;
};

static void walk_begin(struct walk *walk, struct vmsgx_queue *queue, unsigned int head)
{
	struct virtio_device *vdev = queue->vq->vdev;
	const struct vring_desc *first = &queue->driver->desc[head];

	walk->queue = queue;
	if (virtio16_to_cpu(vdev, first->flags) & VRING_DESC_F_INDIRECT) {
		walk->table = phys_to_virt(virtio64_to_cpu(vdev, first->addr));
		walk->index = 0;
		walk->left = virtio32_to_cpu(vdev, first->len) / sizeof(*first);
	} else {
		walk->table = queue->driver->desc;
		walk->index = head;
		walk->left = queue->num;
	}
}

/* The next buffer that is not empty. */
static bool walk_next(struct walk *walk, struct buffer *buffer)
{
	struct virtio_device *vdev = walk->queue->vq->vdev;

	while (walk->left) {
		const struct vring_desc *desc = &walk->table[walk->index];
		u16 flags = virtio16_to_cpu(vdev, desc->flags);

		buffer->address = virtio64_to_cpu(vdev, desc->addr);
		buffer->length = virtio32_to_cpu(vdev, desc->len);
		buffer->writable = flags & VRING_DESC_F_WRITE;
		walk->at = walk->index;
		walk->index = virtio16_to_cpu(vdev, desc->next);
		walk->left = flags & VRING_DESC_F_NEXT ? walk->left - 1 : 0;
		if (buffer->length)
			return true;
	}
	return false;
}

/* Is there nothing in it for the device to read? */
bool vmsgx_chain_is_writable(struct vmsgx_queue *queue, unsigned int head)
{
	struct buffer buffer;
	struct walk walk;

	for (walk_begin(&walk, queue, head); walk_next(&walk, &buffer);)
		if (!buffer.writable)
			return false;
	return true;
}

/* Of the driver's ring. */
unsigned int vmsgx_chain_descriptors(struct vmsgx_queue *queue, unsigned int head)
{
	struct virtio_device *vdev = queue->vq->vdev;
	unsigned int count = 1;

	while (virtio16_to_cpu(vdev, queue->driver->desc[head].flags) & VRING_DESC_F_NEXT &&
	       count < queue->num) {
		head = virtio16_to_cpu(vdev, queue->driver->desc[head].next);
		count++;
	}
	return count;
}

static unsigned int units_of(u32 length)
{
	return DIV_ROUND_UP(length, VMSGX_UNIT);
}

static void copy(dma_addr_t address, void *pool, u32 length, bool to_pool)
{
	while (length) {
		struct page *page = vmsgx_dma_page(address);
		unsigned int offset = offset_in_page(address);
		unsigned int piece = min_t(u32, length, PAGE_SIZE - offset);

		if (to_pool)
			memcpy_from_page(pool, page, offset, piece);
		else
			memcpy_to_page(page, offset, pool, piece);
		address += piece;
		pool += piece;
		length -= piece;
	}
}

/* What the device wrote, @written bytes at most, to where the driver wants it. */
void vmsgx_chain_copy_back(struct vmsgx_queue *queue, struct vmsgx_chain *chain, unsigned int head,
			   u32 written)
{
	void *pool = queue->pool.vaddr + (size_t)chain->start * VMSGX_UNIT;
	struct buffer buffer;
	struct walk walk;

	for (walk_begin(&walk, queue, head); walk_next(&walk, &buffer);) {
		if (buffer.writable) {
			u32 piece = min(buffer.length, written);

			copy(buffer.address, pool, piece, false);
			written -= piece;
		}
		pool += (size_t)units_of(buffer.length) * VMSGX_UNIT;
	}
}

/*
 * The chain's request fails. Device types that end one with a status byte find one there which is
 * no success in any of them.
 */
void vmsgx_chain_spoil(struct vmsgx_queue *queue, unsigned int head)
{
	struct buffer buffer, last = { };
	struct walk walk;
	u8 status = 0xff;

	for (walk_begin(&walk, queue, head); walk_next(&walk, &buffer);)
		if (buffer.writable)
			last = buffer;
	if (last.length)
		copy(last.address + last.length - 1, &status, 1, false);
}

static void set_desc(struct vring_desc *desc, u64 address, u32 length, u16 flags, u16 next)
{
	desc->addr = (__force __virtio64)cpu_to_le64(address);
	desc->len = (__force __virtio32)cpu_to_le32(length);
	desc->flags = (__force __virtio16)cpu_to_le16(flags);
	desc->next = (__force __virtio16)cpu_to_le16(next);
}

/* How a chain of the driver's is going to lie in the pool. */
void vmsgx_chain_measure(struct vmsgx_queue *queue, unsigned int head, struct vmsgx_shape *shape)
{
	bool open = false, writable = false;
	struct buffer buffer;
	struct walk walk;

	*shape = (struct vmsgx_shape){ };
	walk_begin(&walk, queue, head);
	shape->indirect = walk.table != queue->driver->desc;
	while (walk_next(&walk, &buffer)) {
		shape->units += units_of(buffer.length);
		if (buffer.writable)
			shape->writable += buffer.length;
		if (!open || buffer.writable != writable)
			shape->pieces++;
		open = buffer.length % VMSGX_UNIT == 0;
		writable = buffer.writable;
	}
	/* One descriptor needs no table. */
	if (shape->pieces <= 1)
		shape->indirect = false;
	if (shape->indirect)
		shape->units += units_of(shape->pieces * sizeof(struct vring_desc));
}

/* Copies a chain into its units of the pool and describes it to the device. */
void vmsgx_chain_describe(struct vmsgx_queue *queue, unsigned int head, struct vmsgx_chain *chain,
			  const struct vmsgx_shape *shape)
{
	unsigned int table_units = units_of(shape->pieces * sizeof(struct vring_desc));
	size_t begin = (size_t)chain->start * VMSGX_UNIT;
	size_t table_at = begin + (size_t)(chain->units - table_units) * VMSGX_UNIT;
	struct vring_desc *table = shape->indirect ? queue->pool.vaddr + table_at : queue->desc;
	unsigned int done = 0, slot = 0, next;
	u64 piece_at = begin, at = begin;
	u32 length = 0;
	bool writable = false;
	struct buffer buffer;
	struct walk walk;

	walk_begin(&walk, queue, head);
	for (;;) {
		bool more = walk_next(&walk, &buffer);

		/* A direct chain uses descriptors of its own, in its own order. */
		next = shape->indirect ? done + !!length : walk.at;
		if (length && (!more || buffer.writable != writable || length % VMSGX_UNIT)) {
			u16 flags = (writable ? VRING_DESC_F_WRITE : 0) |
				    (more ? VRING_DESC_F_NEXT : 0);

			set_desc(&table[slot], queue->pool.address + piece_at, length, flags,
				 more ? next : 0);
			done++;
			piece_at = at;
			length = 0;
		}
		if (!more)
			break;
		if (!length)
			slot = done || shape->indirect ? next : head;
		writable = buffer.writable;
		if (!writable)
			copy(buffer.address, queue->pool.vaddr + at, buffer.length, true);
		length += buffer.length;
		at += (u64)units_of(buffer.length) * VMSGX_UNIT;
	}
	if (shape->indirect)
		set_desc(&queue->desc[head], queue->pool.address + table_at,
			 shape->pieces * sizeof(struct vring_desc), VRING_DESC_F_INDIRECT, 0);
}
