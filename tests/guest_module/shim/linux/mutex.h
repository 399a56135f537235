/* Mutexes of one thread, which must not be asked for under a spin lock. */
#pragma once

#include <linux/types.h>

struct mutex {
    bool held;
};

static inline void mutex_lock(struct mutex* mutex) {
    if (shim_events.spin_locks) shim_misuse("a mutex is taken under a spin lock");
    if (mutex->held) shim_misuse("a mutex is taken twice");
    mutex->held = true;
}

static inline void mutex_unlock(struct mutex* mutex) {
    if (!mutex->held) shim_misuse("a mutex is released that nobody holds");
    mutex->held = false;
}

#define lockdep_assert_held(lock) ((lock)->held ? (void)0 : shim_misuse("not held: " #lock))
