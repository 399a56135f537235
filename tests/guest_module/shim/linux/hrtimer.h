/* Timers that are only recorded: a test sets the clock and fires them. */
#pragma once

#include <linux/types.h>

#define NSEC_PER_MSEC 1000000L
#define NSEC_PER_SEC 1000000000L
#define CLOCK_MONOTONIC 1

typedef s64 ktime_t;

enum hrtimer_restart { HRTIMER_NORESTART, HRTIMER_RESTART };
enum hrtimer_mode { HRTIMER_MODE_REL };

struct hrtimer {
    enum hrtimer_restart (*function)(struct hrtimer*);
    enum hrtimer_mode mode;
    bool armed;
    ktime_t expires;
};

static inline ktime_t ktime_get(void) { return shim_events.now; }
static inline ktime_t ns_to_ktime(u64 ns) { return (ktime_t)ns; }
static inline ktime_t ktime_add_ms(ktime_t time, u64 ms) { return time + (ktime_t)ms * NSEC_PER_MSEC; }
static inline bool ktime_after(ktime_t a, ktime_t b) { return a > b; }

static inline void hrtimer_setup(struct hrtimer* timer, enum hrtimer_restart (*function)(struct hrtimer*), int clock,
                                 enum hrtimer_mode mode) {
    (void)clock;
    timer->function = function;
    timer->mode = mode;
    timer->armed = false;
}

static inline void hrtimer_start(struct hrtimer* timer, ktime_t after, enum hrtimer_mode mode) {
    if (!timer->function || timer->mode != mode) shim_misuse("a timer is started in another mode than it was set up");
    timer->armed = true;
    timer->expires = shim_events.now + after;
    shim_events.timer_starts++;
}

/* Waits for a running callback, so it cannot be called under the lock that the callback takes. */
static inline void hrtimer_cancel(struct hrtimer* timer) {
    if (shim_events.spin_locks) shim_misuse("hrtimer_cancel under a spin lock");
    timer->armed = false;
}
