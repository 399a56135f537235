/*
 * One virtqueue of the guest's kernel module, with the module's own code from its setup to its end, and both rings in
 * the open. What is not the ring half's (channel, messages, grants, DMA) is answered for in module.c.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "events.h"
#include "vring_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

struct module_options {
    uint32_t device_id; /* decides the size of the pool */
    unsigned int queue_size;
    bool event_idx;
    bool polled; /* the driver has no callback and looks for its answers itself */
};

/* A ring by its parts: `avail` and `used` are flags and index, the entries follow. */
struct module_ring {
    unsigned int num;
    struct vring_desc* desc;
    uint16_t* avail;
    uint16_t* avail_entries;
    uint16_t* used_event;
    uint16_t* used;
    struct vring_used_elem* used_entries;
    uint16_t* avail_event;
    unsigned int* num_free; /* of the driver's ring: the driver's count of descriptors that nothing is in */
};

struct module_pool {
    uint8_t* memory;
    uint64_t address; /* for the backend */
    unsigned int units;
    unsigned int used_units;
};

struct module;

/* A queue that is set up and not started. The arena's other part is out of bounds for all. */
struct module* module_create(const struct module_options* options);
void module_destroy(struct module* module);

struct module_ring module_driver_ring(const struct module* module);
struct module_ring module_device_ring(const struct module* module);
struct module_pool module_pool_of(const struct module* module);
unsigned int module_unit(void);

unsigned int vmsgx_pool_pages(uint32_t device_id, unsigned int queues);

/* What the device's connection does with its queues, in its own words. */
void module_prepare(struct module* module);
void module_start(struct module* module);
void module_stop(struct module* module);
void module_forget(struct module* module);
void module_give_up(struct module* module); /* marks it dead, fails all, and breaks the queue when the driver knows */
void module_call_late(struct module* module);
void module_del(struct module* module); /* the queue's end; module_destroy is still needed */
bool module_ring_reset(struct module* module);
bool module_ring_enable(struct module* module);

void module_break(struct module* module);
bool module_is_broken(const struct module* module);
void module_notify(struct module* module);           /* as virtqueue_notify, which a broken queue keeps from us */
void module_notify_unchecked(struct module* module); /* whose check came before the queue broke */
void module_interrupt(struct module* module);

bool module_timer_armed(const struct module* module);
void module_fire_timer(struct module* module); /* at the time it is due */
void module_backend_alive(struct module* module, bool alive);

bool module_running(const struct module* module);
bool module_lied(const struct module* module);
bool module_late(const struct module* module);
unsigned int module_completed(const struct module* module);
bool module_queue_is_empty(const struct module* module); /* no chain waits or is published */

#ifdef __cplusplus
}
#endif
