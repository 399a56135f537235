// SPDX-License-Identifier: GPL-2.0
/* The arena and the queues' parts of it: pages granted once, which requests are copied through. */
#include <linux/bitmap.h>
#include <linux/virtio_ids.h>

#include "vmsgx.h"

/*
 * Pages of all queues together: 16 MiB, well within what a backend maps of one device. A disk with
 * more than 16 queues has more.
 */
#define MAX_ARENA_PAGES 4096

/*
 * Pages for each of @queues virtqueues. A chain must fit into its queue's part, and a queue is as
 * deep as its part allows; how much that is depends on what the device type carries.
 */
unsigned int vmsgx_pool_pages(u32 device_id, unsigned int queues)
{
	unsigned int pages, least = 1;

	switch (device_id) {
	case VIRTIO_ID_BLOCK:
		pages = 1024;	/* one request of 254 segments of 16 KiB */
		least = 256;	/* of a page: smaller ones a driver does not make */
		break;
	case VIRTIO_ID_NET:
		pages = 512;	/* 256 receive buffers */
		break;
	case VIRTIO_ID_RNG:
		pages = 4;
		break;
	default:
		pages = 64;
		break;
	}
	return clamp(MAX_ARENA_PAGES / max(queues, 1U), least, pages);
}

int vmsgx_pool_init(struct vmsgx_pool *pool, const struct vmsgx_grants *arena, unsigned int page,
		    unsigned int pages)
{
	pool->vaddr = arena->vaddr + (size_t)page * PAGE_SIZE;
	pool->address = vmsgx_grant_address(arena, (u64)page * PAGE_SIZE);
	pool->units = pages * (PAGE_SIZE / VMSGX_UNIT);
	pool->used = bitmap_zalloc(pool->units, GFP_KERNEL);
	return pool->used ? 0 : -ENOMEM;
}

void vmsgx_pool_destroy(struct vmsgx_pool *pool)
{
	bitmap_free(pool->used);
	memset(pool, 0, sizeof(*pool));
}

/* The first of @units free units in a row, or -ENOSPC: what was used last is in caches. */
int vmsgx_pool_take(struct vmsgx_pool *pool, unsigned int units)
{
	unsigned long start = bitmap_find_next_zero_area(pool->used, pool->units, 0, units, 0);

	if (start >= pool->units)
		return -ENOSPC;
	bitmap_set(pool->used, start, units);
	return start;
}

void vmsgx_pool_give(struct vmsgx_pool *pool, unsigned int start, unsigned int units)
{
	bitmap_clear(pool->used, start, units);
}

void vmsgx_pool_clear(struct vmsgx_pool *pool)
{
	bitmap_zero(pool->used, pool->units);
}
