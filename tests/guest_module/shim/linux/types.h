/* Integer types, lists' and pages' names, and the little macros that every kernel source finds without asking. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../../events.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;
typedef uint16_t __le16, __virtio16;
typedef uint32_t __le32, __virtio32;
typedef uint64_t __le64, __virtio64;
typedef uint64_t dma_addr_t;
typedef unsigned int gfp_t;
typedef struct {
    int counter;
} atomic_t;

struct list_head {
    struct list_head *next, *prev;
};
struct page;

#define __force
#define GFP_KERNEL 0U

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the shim's conversions are those of a little-endian machine"
#endif
#define cpu_to_le16(value) ((__le16)(value))
#define cpu_to_le32(value) ((__le32)(value))
#define cpu_to_le64(value) ((__le64)(value))
#define le16_to_cpu(value) ((u16)(value))
#define le32_to_cpu(value) ((u32)(value))

#define PAGE_SIZE 4096UL
#define PFN_UP(size) (((size) + PAGE_SIZE - 1) / PAGE_SIZE)
#define offset_in_page(address) ((unsigned long)(address) % PAGE_SIZE)
#define SMP_CACHE_BYTES 64
#define BIT_ULL(n) (1ULL << (n))
#define DIV_ROUND_UP(value, by) (((value) + (by) - 1) / (by))
#define is_power_of_2(n) ((n) != 0 && ((n) & ((n) - 1)) == 0)
#define container_of(pointer, type, member) ((type*)((char*)(pointer) - offsetof(type, member)))

/* As the kernel's, these evaluate once, and their arguments have one type: a comparison of mixed signs does not
 * compile. */
#define shim_same_type(a, b) \
    _Static_assert(__builtin_types_compatible_p(__typeof__(a), __typeof__(b)), "min or max of two types")
#define min(a, b)                          \
    ({                                     \
        __auto_type shim_a = (a);          \
        __auto_type shim_b = (b);          \
        shim_same_type(shim_a, shim_b);    \
        shim_a < shim_b ? shim_a : shim_b; \
    })
#define max(a, b)                          \
    ({                                     \
        __auto_type shim_a = (a);          \
        __auto_type shim_b = (b);          \
        shim_same_type(shim_a, shim_b);    \
        shim_a > shim_b ? shim_a : shim_b; \
    })
#define min_t(type, a, b)                            \
    ({                                               \
        type shim_a = (type)(a), shim_b = (type)(b); \
        shim_a < shim_b ? shim_a : shim_b;           \
    })
#define clamp(value, low, high)                                                          \
    ({                                                                                   \
        __auto_type shim_value = (value);                                                \
        __auto_type shim_low = (low);                                                    \
        __auto_type shim_high = (high);                                                  \
        shim_value<shim_low ? shim_low : shim_value> shim_high ? shim_high : shim_value; \
    })

/* What the kernel only warns of is wrong in a test. */
#define WARN_ON_ONCE(condition) ((condition) ? (shim_misuse("WARN_ON_ONCE(" #condition ")"), true) : false)

#define IS_ERR(pointer) ((uintptr_t)(pointer) >= (uintptr_t)-4095)
#define PTR_ERR(pointer) ((int)(intptr_t)(pointer))
#define ERR_PTR(error) ((void*)(intptr_t)(error))

static inline void atomic_inc(atomic_t* value) { __atomic_fetch_add(&value->counter, 1, __ATOMIC_RELAXED); }
