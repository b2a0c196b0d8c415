/*
 * stack_internal.h - an intrusive stack of messages: any thread pushes, the consumer takes everything at once.
 *
 * Since nothing is ever popped singly there is no ABA. Push is lock-free; a descheduled producer holds up nobody.
 */
#ifndef KVBM_RUNTIME_STACK_INTERNAL_H
#define KVBM_RUNTIME_STACK_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>

#include "runtime/message.h"

/* Moves `msg` to the stack. */
static inline void kvbm__stack_push_mt(_Atomic(struct kvbm_msg *) *head, struct kvbm_msg *msg) {
    struct kvbm_msg *old = atomic_load_explicit(head, memory_order_relaxed);
    do {
        msg->next = old;
        /* Release: pairs with the acquire in kvbm__stack_take_all. Sequentially consistent: the wake protocol's fence.
         */
    } while (!atomic_compare_exchange_weak_explicit(head, &old, msg, memory_order_seq_cst, memory_order_relaxed));
}

/* Reverses a list linked by `next`. */
static inline struct kvbm_msg *kvbm__stack_reverse(struct kvbm_msg *msg) {
    struct kvbm_msg *fifo = NULL;
    while (msg != NULL) {
        struct kvbm_msg *next = msg->next;
        msg->next = fifo;
        fifo = msg;
        msg = next;
    }
    return fifo;
}

/* Consumer: moves everything to the caller, oldest first, linked by `next`. */
static inline struct kvbm_msg *kvbm__stack_take_all(_Atomic(struct kvbm_msg *) *head) {
    if (atomic_load_explicit(head, memory_order_relaxed) == NULL)
        return NULL;
    /* Acquire: pairs with the release of every push below (a chain of read-modify-writes is one release sequence). */
    return kvbm__stack_reverse(atomic_exchange_explicit(head, NULL, memory_order_acquire));
}

#endif
