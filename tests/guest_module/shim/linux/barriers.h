/* Accesses to shared memory. The barriers are the compiler's own; a test may act at each that faces the backend. */
#pragma once

#include <linux/types.h>

#define READ_ONCE(place) (*(const volatile __typeof__(place)*)&(place))
#define WRITE_ONCE(place, value) (*(volatile __typeof__(place)*)&(place) = (value))
#define smp_load_acquire(pointer) __atomic_load_n((pointer), __ATOMIC_ACQUIRE)
#define smp_store_release(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_RELEASE)
#define smp_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define virt_load_acquire(pointer) (shim_at(shim_events.at_load), __atomic_load_n((pointer), __ATOMIC_ACQUIRE))
#define virt_store_release(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_RELEASE)

static inline void shim_at(void (*act)(void*)) {
    if (act) act(shim_events.at_argument);
}

static inline void virt_mb(void) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    shim_at(shim_events.at_barrier);
}
