// SPDX-License-Identifier: GPL-2.0
/* Runs of granted pages: all or nothing on the way in, nothing lost on the way out. */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <xen/page.h>

#include "vmsgx.h"

/* Milliseconds that a backend which was told has to unmap a page. */
#define PATIENCE_MS 1000
/* One that has not unmapped others has less. */
#define SHORT_PATIENCE_MS 100

static void free_pages_of(struct vmsgx_grants *grants)
{
	unsigned int i;

	for (i = 0; i < grants->count && grants->pages[i]; i++)
		__free_page(grants->pages[i]);
	kvfree(grants->pages);
	memset(grants, 0, sizeof(*grants));
}

/*
 * Grants @count zeroed pages to @backend. References are consecutive, since an address names the
 * first one only (docs/protocol.md section 3).
 */
int vmsgx_grants_alloc(struct vmsgx_grants *grants, domid_t backend, unsigned int count,
		       bool readonly)
{
	unsigned int i;
	int err;

	/* A Xen page is a page: what is granted must be ours as a whole. */
	BUILD_BUG_ON(PAGE_SIZE != XEN_PAGE_SIZE);

	memset(grants, 0, sizeof(*grants));
	grants->pages = kvcalloc(count, sizeof(*grants->pages), GFP_KERNEL);
	if (!grants->pages)
		return -ENOMEM;
	grants->count = count;
	grants->readonly = readonly;
	for (i = 0; i < count; i++) {
		grants->pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!grants->pages[i]) {
			err = -ENOMEM;
			goto fail;
		}
	}
	grants->vaddr = vmap(grants->pages, count, VM_MAP, PAGE_KERNEL);
	if (!grants->vaddr) {
		err = -ENOMEM;
		goto fail;
	}
	err = gnttab_alloc_grant_reference_seq(count, &grants->first);
	if (err < 0)
		goto fail_map;
	vmsgx_grants_renew(grants, backend);
	return 0;

fail_map:
	vunmap(grants->vaddr);
fail:
	free_pages_of(grants);
	return err;
}

/*
 * Writes the entries of the grant table, again after a restore: the table is another one then, and
 * empty.
 */
void vmsgx_grants_renew(struct vmsgx_grants *grants, domid_t backend)
{
	unsigned int i;

	for (i = 0; i < grants->count; i++)
		gnttab_grant_foreign_access_ref(grants->first + i, backend,
						xen_page_to_gfn(grants->pages[i]),
						grants->readonly);
}

/* Frees the pages that the backend has let go of since. */
void vmsgx_kept_retry(struct vmsgx_kept *kept)
{
	unsigned int i, left = 0;

	for (i = 0; i < kept->count; i++) {
		if (gnttab_try_end_foreign_access(kept->entries[i].ref))
			__free_page(kept->entries[i].page);
		else
			kept->entries[left++] = kept->entries[i];
	}
	kept->count = left;
}

/* Nobody will ask again: the grant table's own deferral frees the pages. */
void vmsgx_kept_leave(struct vmsgx_kept *kept)
{
	while (kept->count) {
		kept->count--;
		gnttab_end_foreign_access(kept->entries[kept->count].ref,
					  kept->entries[kept->count].page);
	}
}

/*
 * Withdraws the pages. A page that the backend keeps mapped stays allocated until it lets go; it is
 * in @kept while that has room, else, or if that is NULL, the grant table's own deferral frees it.
 * Returns whether the backend had let go of all. Sleeps.
 */
bool vmsgx_grants_free(struct vmsgx_grants *grants, struct vmsgx_kept *kept)
{
	unsigned int patience = kept && kept->count ? SHORT_PATIENCE_MS : PATIENCE_MS;
	unsigned int waited = 0;
	bool released = true;
	unsigned int i;

	if (!grants->count)
		return true;
	vunmap(grants->vaddr);
	for (i = 0; i < grants->count; i++) {
		bool ended;

		while (!(ended = gnttab_try_end_foreign_access(grants->first + i)) &&
		       waited < patience) {
			msleep(20);
			waited += 20;
		}
		released &= ended;
		if (ended) {
			__free_page(grants->pages[i]);
		} else if (kept && kept->count < VMSGX_MAX_KEPT) {
			kept->entries[kept->count].ref = grants->first + i;
			kept->entries[kept->count++].page = grants->pages[i];
		} else {
			gnttab_end_foreign_access(grants->first + i, grants->pages[i]);
		}
		grants->pages[i] = NULL;
	}
	kvfree(grants->pages);
	memset(grants, 0, sizeof(*grants));
	return released;
}
