/* Spin locks of one thread: taken once at a time, and not kept. */
#pragma once

#include <linux/types.h>

typedef struct {
    bool held;
} spinlock_t;

static inline void spin_lock_init(spinlock_t* lock) { lock->held = false; }

static inline void spin_lock_irq(spinlock_t* lock) {
    if (lock->held) shim_misuse("a spin lock is taken twice");
    lock->held = true;
    shim_events.spin_locks++;
}

static inline void spin_unlock_irq(spinlock_t* lock) {
    if (!lock->held) shim_misuse("a spin lock is released that nobody holds");
    lock->held = false;
    shim_events.spin_locks--;
}

#define spin_lock_irqsave(lock, flags) ((flags) = 0, spin_lock_irq(lock))
#define spin_unlock_irqrestore(lock, flags) ((void)(flags), spin_unlock_irq(lock))
