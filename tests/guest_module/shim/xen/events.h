/* Event channels: kicks are counted, and so is what an interrupt's end said about it. */
#pragma once

#include <linux/interrupt.h>

#define XEN_EOI_FLAG_SPURIOUS 1U

static inline void notify_remote_via_irq(int irq) {
    (void)irq;
    shim_events.kicks++;
}

static inline void xen_irq_lateeoi(unsigned int irq, unsigned int flags) {
    (void)irq;
    shim_events.eois++;
    if (flags & XEN_EOI_FLAG_SPURIOUS) shim_events.spurious_eois++;
}
