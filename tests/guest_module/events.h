/* What the module did to the kernel around it, and what that kernel tells it. Shared by the shim (C) and the tests
 * (C++). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct shim_events {
    unsigned kicks;         /* of the backend */
    unsigned calls;         /* of the driver */
    unsigned process_calls; /* among them, from process context with bottom halves off */
    unsigned works;         /* queued */
    unsigned eois;          /* of the queue's interrupt */
    unsigned spurious_eois; /* among them */
    unsigned timer_starts;
    unsigned granted_areas; /* not freed yet */
    int spin_locks;         /* held just now */
    bool bottom_halves_off;
    int64_t now; /* nanoseconds */
    /* Run at each full barrier towards the backend, and before each load-acquire of what it writes: it may act at any
     * time. */
    void (*at_barrier)(void*);
    void (*at_load)(void*);
    void* at_argument;
};

extern struct shim_events shim_events;

/* A misuse of a kernel interface, which a kernel would punish: ends the process. */
#ifdef __cplusplus
[[noreturn]]
#else
_Noreturn
#endif
void shim_misuse(const char* what);

#ifdef __cplusplus
}
#endif
