/*
 * reactor_internal.h - what actor.c needs of a reactor.
 */
#ifndef KVBM_RUNTIME_REACTOR_INTERNAL_H
#define KVBM_RUNTIME_REACTOR_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>

#include "runtime/reactor.h"

/* Owner: moves `msg` to the local queue. */
static inline void kvbm__reactor_local_push(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    msg->next = NULL;
    *r->local_tail = msg;
    r->local_tail = &msg->next;
}

/* Wakes the reactor's thread, once a sleep. */
void kvbm__reactor_wake_mt(struct kvbm_reactor *r);

/* After a post, which ended with a full fence: wakes the reactor if nobody owns it. The fence pairs with the one after
 * PARKED is stored in reactor.c: either this load sees PARKED, or the parker's re-check sees the message. */
static inline void kvbm__reactor_notify_mt(struct kvbm_reactor *r) {
    if (atomic_load_explicit(&r->state, memory_order_relaxed) == KVBM_REACTOR_PARKED)
        kvbm__reactor_wake_mt(r);
}

#endif
