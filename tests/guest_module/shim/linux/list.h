/* Doubly linked lists in rings, as far as the module uses them. */
#pragma once

#include <linux/barriers.h>
#include <linux/types.h>

static inline void INIT_LIST_HEAD(struct list_head* list) { list->next = list->prev = list; }

static inline bool list_empty(const struct list_head* list) { return list->next == list; }

static inline void shim_list_link(struct list_head* before, struct list_head* after) {
    before->next = after;
    after->prev = before;
}

/* What is in a list already must not be added: the list it is in would be torn. */
static inline void list_add_tail(struct list_head* entry, struct list_head* list) {
    if (!list_empty(entry)) shim_misuse("list_add_tail of what is in a list");
    shim_list_link(list->prev, entry);
    shim_list_link(entry, list);
}

static inline void list_del_init(struct list_head* entry) {
    shim_list_link(entry->prev, entry->next);
    INIT_LIST_HEAD(entry);
}

static inline void list_move_tail(struct list_head* entry, struct list_head* list) {
    list_del_init(entry);
    list_add_tail(entry, list);
}

/* The entries of the first list, in their order, before those of the second; the first is empty then. */
static inline void list_splice_init(struct list_head* list, struct list_head* into) {
    if (list_empty(list)) return;
    shim_list_link(list->prev, into->next);
    shim_list_link(into, list->next);
    INIT_LIST_HEAD(list);
}

#define shim_list_entry(node, type, member) container_of((node), type, member)
#define list_for_each_entry(entry, list, member)                                                            \
    for ((entry) = shim_list_entry((list)->next, __typeof__(*(entry)), member); &(entry)->member != (list); \
         (entry) = shim_list_entry((entry)->member.next, __typeof__(*(entry)), member))
#define list_for_each_entry_safe(entry, following, list, member)                           \
    for ((entry) = shim_list_entry((list)->next, __typeof__(*(entry)), member),            \
        (following) = shim_list_entry((entry)->member.next, __typeof__(*(entry)), member); \
         &(entry)->member != (list);                                                       \
         (entry) = (following), (following) = shim_list_entry((following)->member.next, __typeof__(*(entry)), member))
