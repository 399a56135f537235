/* Pages are their own addresses here, so a driver's buffer may be a block of any size with a red zone around it. */
#pragma once

#include <linux/types.h>

static inline void memcpy_from_page(char* to, struct page* page, size_t offset, size_t length) {
    if (offset + length > PAGE_SIZE) shim_misuse("a copy that leaves its page");
    memcpy(to, (char*)page + offset, length);
}

static inline void memcpy_to_page(struct page* page, size_t offset, const char* from, size_t length) {
    if (offset + length > PAGE_SIZE) shim_misuse("a copy that leaves its page");
    memcpy((char*)page + offset, from, length);
}
