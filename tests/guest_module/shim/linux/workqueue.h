/* Work that is only counted: a test looks whether the module asked for it. */
#pragma once

#include <linux/types.h>

struct work_struct {
    bool queued;
};
struct delayed_work {
    struct work_struct work;
};
struct workqueue_struct;

static inline void queue_work(struct workqueue_struct* queue, struct work_struct* work) {
    (void)queue;
    work->queued = true;
    shim_events.works++;
}
