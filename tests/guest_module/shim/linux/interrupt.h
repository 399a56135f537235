/* Interrupt handlers' results, and waiting for a handler, which does not run here meanwhile. */
#pragma once

#include <linux/types.h>

typedef enum { IRQ_NONE, IRQ_HANDLED } irqreturn_t;
struct cpumask;

static inline void synchronize_irq(int irq) {
    (void)irq;
    if (shim_events.spin_locks) shim_misuse("synchronize_irq under a spin lock");
}
