/*
 * port.h - a completion queue for one outside event loop.
 *
 * Producers (reactors, borrowers; of any number of managers) push finished messages; one consumer thread drains them.
 * Bounded by credits: whoever submits work that will end here takes a credit first (-EAGAIN when all are out), and the
 * credit comes back when the completion is drained; so a push cannot fail. The queue is a ck_stack of the messages
 * themselves, taken whole by the consumer and reversed into order (docs/adr: a ring slot held by a descheduled borrower
 * would hold up every other producer).
 *
 * The eventfd is written at most once a sleep: `armed` is set by the consumer when it has drained everything, then it
 * fences and re-checks; a producer pushes, fences, and writes the fd only if it exchanges armed 1 -> 0.
 *
 * Credits also count outstanding operations, so kvbm_port_close can refuse (-EBUSY) while some are in flight.
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
    _Atomic uint32_t references; /* the opener, and each operation in flight */
    _Alignas(64) unsigned char stack[64]; /* a ck_stack; only port.c knows */
    _Alignas(64) _Atomic uint32_t armed;
    _Alignas(64) _Atomic uint32_t credits_out;
    /* Consumer only. */
    struct kvbm_msg *fifo;
    bool signalled; /* the eventfd may be readable */
    _Atomic uint64_t signal_count, push_count; /* statistics */
};

/* Heap-allocated, reference-counted. 0, -EINVAL (capacity 0), -ENOMEM, -EMFILE. */
int kvbm__port_open(const struct kvbm_os *os, uint32_t capacity, struct kvbm_port **port);
/* Drops the opener's reference. The memory and the fd live until every operation in flight has been pushed and dropped;
 * what is pushed after close is handed to `orphan` by the pusher instead (see kvbm_port_push_mt). */
void kvbm__port_close(struct kvbm_port *port);
/* One credit and one reference: 0 or -EAGAIN. */
int kvbm_port_credit_take_mt(struct kvbm_port *port);
/* Returns a credit that ended without a push (the submit failed or was answered inline). */
void kvbm_port_credit_give_mt(struct kvbm_port *port);
/* Moves `msg` to the port. True: queued. False: the port was closed by its consumer; the caller still owns `msg`, and
 * its credit is given back: settle it as nobody's. */
bool kvbm_port_push_mt(struct kvbm_port *port, struct kvbm_msg *msg);
/* Consumer: next finished message, moved to the caller, credit given back; NULL when empty, and then the port is armed:
 * the fd becomes readable at the next push. */
struct kvbm_msg *kvbm_port_take(struct kvbm_port *port);

#endif
