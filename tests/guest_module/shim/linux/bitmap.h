/* Bitmaps of exactly as many words as they need, so that a bit beyond them is a finding of the address sanitizer. */
#pragma once

#include <linux/slab.h>
#include <linux/types.h>

#define SHIM_WORD_BITS (8 * sizeof(unsigned long))

static inline unsigned long* bitmap_zalloc(unsigned int bits, gfp_t flags) {
    return kvcalloc(DIV_ROUND_UP(bits, SHIM_WORD_BITS), sizeof(unsigned long), flags);
}

static inline void bitmap_free(unsigned long* map) { kvfree(map); }

static inline bool shim_bit(const unsigned long* map, unsigned long bit) {
    return map[bit / SHIM_WORD_BITS] >> bit % SHIM_WORD_BITS & 1;
}

/* Units are given once and taken once: anything else would hand one unit to two requests. */
static inline void bitmap_set(unsigned long* map, unsigned int start, unsigned int count) {
    for (unsigned int bit = start; bit < start + count; bit++) {
        if (shim_bit(map, bit)) shim_misuse("bitmap_set of what is set");
        map[bit / SHIM_WORD_BITS] |= 1UL << bit % SHIM_WORD_BITS;
    }
}

static inline void bitmap_clear(unsigned long* map, unsigned int start, unsigned int count) {
    for (unsigned int bit = start; bit < start + count; bit++) {
        if (!shim_bit(map, bit)) shim_misuse("bitmap_clear of what is clear");
        map[bit / SHIM_WORD_BITS] &= ~(1UL << bit % SHIM_WORD_BITS);
    }
}

static inline void bitmap_zero(unsigned long* map, unsigned int bits) {
    memset(map, 0, DIV_ROUND_UP(bits, SHIM_WORD_BITS) * sizeof(unsigned long));
}

/* The first of @count clear bits in a row from @start on, or a number beyond @size. */
static inline unsigned long bitmap_find_next_zero_area(const unsigned long* map, unsigned long size,
                                                       unsigned long start, unsigned int count, unsigned long align) {
    unsigned long clear = 0;

    if (align) shim_misuse("the shim's search knows no alignment");
    for (unsigned long bit = start; bit < size; bit++) {
        clear = shim_bit(map, bit) ? 0 : clear + 1;
        if (clear == count) return bit + 1 - count;
    }
    return size + 1;
}
