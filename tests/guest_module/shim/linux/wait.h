/* The ring half never sleeps: a wait queue is only a member here. */
#pragma once

typedef struct {
    char unused;
} wait_queue_head_t;
