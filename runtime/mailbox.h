/*
 * mailbox.h - the lanes into one reactor. The only place that touches concurrencykit.
 *
 * lane     | carries                         | form                                   | when full
 * control  | cancel-like and credit messages | bounded stack, many producers          | -EAGAIN
 * data     | requests of other reactors      | bounded stack, many producers          | -EAGAIN, then credit
 * thread   | requests of application threads | one ck_ring a thread, single producer  | -EAGAIN
 * reply    | requests going home             | stack, many producers                  | never
 *
 * No producer ever waits for another, so one that is descheduled at any instruction holds up nobody. That rules out a
 * ring of many producers: ck_ring commits slots in the order in which they were reserved, and eight producers on two
 * CPUs then queue up behind whichever is descheduled (22 thousand messages a second were measured, against millions).
 * The shared lanes are stacks of the messages themselves, taken whole by the consumer and reversed into order
 * (stack_internal.h); a counted reservation before the push bounds them. Each application thread has a ring of its own
 * (by kvbm_os_thread_number_mt; threads beyond KVBM_THREAD_COUNT_MAX share the data lane). A reply needs no place: the
 * stack is bounded by the messages that exist.
 *
 * Bounds: a lane of capacity n holds n - 1 messages (what a ck_ring of n slots can).
 *
 * Order: FIFO for each (producer, lane). Between lanes: reply, control, then thread and data lanes round-robin, at most
 * `lane_batch` messages from one lane before the next.
 *
 * concurrencykit's atomics are inline assembly that ThreadSanitizer cannot see: mailbox.c states each hand-over to it
 * with release/acquire annotations on the ring slot.
 *
 * Memory order: a push is a release, taking the stack an acquire. ck_ring publishes the message before the ring's tail
 * (store fence) and loads the tail before the slot. Every post ends with a full fence, the producers' half of the wake
 * protocol (reactor.h); it pairs with the one after parking.
 */
#ifndef KVBM_RUNTIME_MAILBOX_H
#define KVBM_RUNTIME_MAILBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/message.h"
#include "runtime/os.h"

struct kvbm_lane; /* a ck_ring and its slots */

struct kvbm_mailbox_options {
    uint32_t control_capacity; /* powers of two, >= 4 each */
    uint32_t data_capacity;
    uint32_t thread_capacity;
    uint32_t lane_batch; /* >= 1 */
};

struct kvbm_mailbox {
    const struct kvbm_os *os;
    struct kvbm_mailbox_options options;
    struct kvbm_lane *threads[KVBM_THREAD_COUNT_MAX];
    void *arena; /* the rings, in one map */
    size_t arena_bytes;
    /* Stacks, newest first, and the places ever reserved in them (modulo 2^32). */
    _Alignas(64) _Atomic(struct kvbm_msg *) replies;
    _Alignas(64) _Atomic(struct kvbm_msg *) data;
    _Atomic uint32_t data_reserved;
    _Alignas(64) _Atomic(struct kvbm_msg *) control;
    _Atomic uint32_t control_reserved;
    _Atomic(struct kvbm_msg *) credit_waiters;
    /* Bit n: thread lane n may hold messages. Set by the producer after its enqueue; cleared by the consumer when it
     * finds that lane empty, which it then looks at once more. */
    _Alignas(64) _Atomic uint64_t threads_dirty;
    /* Written by the consumer only; atomic where others look. What was taken from each stack, in order, and the places
     * given free again. */
    _Alignas(64) _Atomic(struct kvbm_msg *) reply_fifo;
    _Atomic(struct kvbm_msg *) control_fifo;
    _Atomic(struct kvbm_msg *) data_fifo;
    _Atomic(struct kvbm_msg *) credit_fifo;
    _Atomic uint32_t control_taken;
    _Atomic uint32_t data_taken;
    uint32_t cursor; /* round robin over thread lanes, then data */
    uint32_t cursor_left;
};

int kvbm_mailbox_open(struct kvbm_mailbox *box, const struct kvbm_os *os, const struct kvbm_mailbox_options *options);
/* Everything must have been drained (asserted). */
void kvbm_mailbox_close(struct kvbm_mailbox *box);

/* Each moves `msg` to the mailbox on 0; on -EAGAIN the lane is full and the caller still owns it. */
int kvbm_mailbox_post_control_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg);
int kvbm_mailbox_post_data_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg);
/* From an application thread: its own lane, or the data lane for threads without a number. */
int kvbm_mailbox_post_thread_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg);
void kvbm_mailbox_post_reply_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg);
/* Moves `credit` to the data lane's list of waiters; the consumer hands each back (kvbm_mailbox_take_credit) once the
 * lane is at most half full. Cannot fail. The waiter then retries; it has no reservation. */
void kvbm_mailbox_want_credit_mt(struct kvbm_mailbox *box, struct kvbm_msg *credit);

/* Consumer only: the next message, moved to the caller, or NULL. */
struct kvbm_msg *kvbm_mailbox_take(struct kvbm_mailbox *box);
/* Consumer only: a waiter that may be told to retry, or NULL. */
struct kvbm_msg *kvbm_mailbox_take_credit(struct kvbm_mailbox *box);
/* Any thread, for the re-check after parking; exact when no producer runs. False too when a credit waiter may be told.
 */
bool kvbm_mailbox_empty_mt(const struct kvbm_mailbox *box);
/* Messages in the lanes; a gauge. */
uint32_t kvbm_mailbox_depth_mt(const struct kvbm_mailbox *box);

#endif
