/* Where an interrupt is handled: one place only. */
#pragma once

#include <linux/interrupt.h>

static inline int irq_set_affinity_hint(int irq, const struct cpumask* mask) {
    (void)irq;
    (void)mask;
    return 0;
}

static inline const struct cpumask* irq_get_affinity_mask(int irq) {
    (void)irq;
    return NULL;
}
