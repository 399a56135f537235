/* Memory of exactly the size that was asked for. */
#pragma once

#include <linux/types.h>
#include <stdlib.h>

static inline void* kvcalloc(size_t count, size_t size, gfp_t flags) {
    (void)flags;
    return calloc(count, size);
}

static inline void kvfree(const void* memory) { free((void*)memory); }
