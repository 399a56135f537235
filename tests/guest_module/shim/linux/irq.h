/* Where an interrupt is handled: one place only. */
#pragma once

#include <linux/interrupt.h>

static inline int irq_set_affinity_and_hint(int irq, const struct cpumask* mask) {
    (void)irq;
    (void)mask;
    return 0;
}
