// SPDX-License-Identifier: GPL-2.0
/*
 * DMA operations of the virtio devices: the "bus address" of a buffer is its physical address, for
 * the relay only. What the backend sees are grant-DMA addresses in the arena, see payload.c: no
 * page of a driver is ever granted.
 */
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/scatterlist.h>

#include "vmsgx.h"

struct page *vmsgx_dma_page(dma_addr_t address)
{
	return pfn_to_page(PHYS_PFN(address));
}

static dma_addr_t map_page(struct device *device, struct page *page, unsigned long offset,
			   size_t size, enum dma_data_direction direction, unsigned long attributes)
{
	return page_to_phys(page) + offset;
}

static void unmap_page(struct device *device, dma_addr_t address, size_t size,
		       enum dma_data_direction direction, unsigned long attributes)
{
}

static int map_sg(struct device *device, struct scatterlist *list, int count,
		  enum dma_data_direction direction, unsigned long attributes)
{
	struct scatterlist *entry;
	int i;

	for_each_sg(list, entry, count, i) {
		entry->dma_address = sg_phys(entry);
		sg_dma_len(entry) = entry->length;
	}
	return count;
}

static void unmap_sg(struct device *device, struct scatterlist *list, int count,
		     enum dma_data_direction direction, unsigned long attributes)
{
}

/* The driver's ring, mostly: memory that no backend sees. */
static void *alloc_memory(struct device *device, size_t size, dma_addr_t *address, gfp_t flags,
			  unsigned long attributes)
{
	void *memory = alloc_pages_exact(size, flags | __GFP_ZERO);

	if (memory)
		*address = virt_to_phys(memory);
	return memory;
}

static void free_memory(struct device *device, size_t size, void *memory, dma_addr_t address,
			unsigned long attributes)
{
	free_pages_exact(memory, size);
}

/*
 * A driver that asks is able to split its requests, and a chain of 256 such pieces must fit into a
 * queue's pool.
 */
static size_t max_mapping_size(struct device *device)
{
	struct vmsgx_device *dev = dev_get_drvdata(device);
	size_t pool = (size_t)dev->queues[0].pool.units * VMSGX_UNIT;

	return max_t(size_t, ALIGN_DOWN(pool / 256, PAGE_SIZE), PAGE_SIZE);
}

static int dma_supported(struct device *device, u64 mask)
{
	return 1;
}

static const struct dma_map_ops operations = {
	.alloc = alloc_memory,
	.free = free_memory,
	.map_page = map_page,
	.unmap_page = unmap_page,
	.map_sg = map_sg,
	.unmap_sg = unmap_sg,
	.max_mapping_size = max_mapping_size,
	.dma_supported = dma_supported,
};

void vmsgx_dma_setup(struct device *device)
{
	set_dma_ops(device, &operations);
	/* Cannot fail: every address will do. */
	dma_coerce_mask_and_coherent(device, DMA_BIT_MASK(64));
}

void vmsgx_dma_teardown(struct device *device)
{
	set_dma_ops(device, NULL);
	device->dma_mask = NULL;
}
