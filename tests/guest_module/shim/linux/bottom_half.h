/* Bottom halves: a driver's callback made in process context is made with them off. */
#pragma once

#include <linux/types.h>

static inline void local_bh_disable(void) { shim_events.bottom_halves_off = true; }
static inline void local_bh_enable(void) { shim_events.bottom_halves_off = false; }
