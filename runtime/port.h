/*
 * port.h - a completion queue for one outside event loop.
 *
 * Producers (reactors, borrowers; of any number of managers) push finished messages; one consumer thread drains them.
 * Bounded by credits: whoever submits work that will end here takes a credit first (-EAGAIN when all are out), and the
 * credit comes back when the completion is drained; so a push cannot fail. The queue is a stack of the messages
 * themselves, taken whole by the consumer and reversed into order (a ring slot held by a descheduled borrower would
 * hold up every other producer). Its head is a C11 atomic and not a ck_stack: closing exchanges it for a mark that
 * producers must see in the same compare-and-swap that would push.
 *
 * The eventfd is written at most once a sleep: `armed` is set by the consumer when it has drained everything, then it
 * re-checks; a producer pushes, and writes the fd only if it exchanges armed 1 -> 0. A port opens armed. (If the
 * re-check finds a message the consumer, which has just read the fd, writes it itself: readable means that messages may
 * wait, even for a consumer that stops short of NULL.)
 *
 * A reference goes with each credit and is dropped by the pusher once it has let go of the port, a credit is dropped by
 * the consumer: memory and fd live until the opener and every operation in flight are through.
 */
#ifndef KVBM_RUNTIME_PORT_H
#define KVBM_RUNTIME_PORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/message.h"
#include "runtime/os.h"

struct kvbm_port {
    const struct kvbm_os *os;
    int fd;
    uint32_t capacity;
    uint32_t fork_stamp;
    _Alignas(64) _Atomic(struct kvbm_msg *) head; /* newest first; a mark of port.c once closed */
    _Alignas(64) _Atomic uint32_t armed;          /* 1: the next push signals */
    _Atomic uint64_t signalled_count;             /* finished writes of the eventfd */
    _Alignas(64) _Atomic uint64_t counts;         /* references << 32 | credits out */
    /* Consumer only. */
    _Alignas(64) struct kvbm_msg *fifo;
    uint64_t cleared_count;        /* signalled_count when the eventfd was last read */
    _Atomic uint64_t signal_count; /* statistics: writes of the eventfd */
    _Atomic uint64_t taken_count;  /* statistics: messages taken */
};

/* Heap-allocated, reference-counted. 0, -EINVAL (capacity 0), -ENOMEM, -EMFILE. */
int kvbm__port_open(const struct kvbm_os *os, uint32_t capacity, struct kvbm_port **port);
/* Consumer: closes, and drops the opener's reference. Returns the messages that were pushed and not taken, in order,
 * linked by `next` and moved to the caller (their credits are given back): settle them as nobody's. What is pushed from
 * now on stays with the pusher (see kvbm_port_push_mt). */
struct kvbm_msg *kvbm__port_close(struct kvbm_port *port);
/* One credit and one reference: 0 or -EAGAIN. */
int kvbm_port_credit_take_mt(struct kvbm_port *port);
/* Returns a credit that ended without a push (the submit failed or was answered inline). */
void kvbm_port_credit_give_mt(struct kvbm_port *port);
/* Moves `msg` to the port. True: queued. False: the port was closed by its consumer; the caller still owns `msg`, and
 * its credit is given back: settle it as nobody's. */
bool kvbm_port_push_mt(struct kvbm_port *port, struct kvbm_msg *msg);
/* Operations in flight or not yet taken; a gauge. */
uint32_t kvbm_port_credits_out_mt(const struct kvbm_port *port);
/* Consumer: next finished message, moved to the caller, credit given back; NULL when empty, and then the port is armed:
 * the fd becomes readable at the next push. */
struct kvbm_msg *kvbm_port_take(struct kvbm_port *port);

#endif
