/*
 * port.c - completion queue for one outside loop. Owns its memory and its eventfd. Push: any thread; take, close: the
 * consumer's thread.
 */
#include "runtime/port.h"

#include <errno.h>
#include <stdlib.h>

#include "runtime/log.h"
#include "runtime/stack_internal.h"

#define ONE_REFERENCE (1ull << 32)
#define ONE_CREDIT    1ull

/* Stands in `head` of a closed port. */
static struct kvbm_msg closed_mark;

static uint32_t credits_of(uint64_t counts) {
    return (uint32_t)counts;
}

/* Drops references and credits; whoever drops the last reference frees the port. */
static void drop(struct kvbm_port *port, uint64_t amount) {
    /* Release: what this holder did to the port; acquire: pairs with that of all others before the memory goes. */
    uint64_t before = atomic_fetch_sub_explicit(&port->counts, amount, memory_order_acq_rel);
    KVBM_ASSERT(credits_of(before) >= credits_of(amount) && before >> 32 >= amount >> 32);
    if ((before - amount) >> 32 != 0)
        return;
    KVBM_ASSERT(credits_of(before - amount) == 0);
    port->os->event_close(port->os->ctx, port->fd);
    free(port);
}

int kvbm__port_open(const struct kvbm_os *os, uint32_t capacity, struct kvbm_port **port) {
    if (capacity == 0 || capacity == UINT32_MAX)
        return -EINVAL;
    struct kvbm_port *made = aligned_alloc(_Alignof(struct kvbm_port), sizeof *made);
    if (made == NULL)
        return -ENOMEM;
    *made = (struct kvbm_port){.os = os, .capacity = capacity, .fork_stamp = kvbm_os_fork_stamp_mt()};
    made->fd = os->event_open(os->ctx);
    if (made->fd < 0) {
        int rc = made->fd;
        free(made);
        return rc;
    }
    atomic_init(&made->armed, 1);
    atomic_init(&made->counts, ONE_REFERENCE);
    *port = made;
    return 0;
}

struct kvbm_msg *kvbm__port_close(struct kvbm_port *port) {
    /* Acquire: pairs with the pushes taken here. From now on pushes fail. */
    struct kvbm_msg *rest = atomic_exchange_explicit(&port->head, &closed_mark, memory_order_acq_rel);
    KVBM_ASSERT_MSG(rest != &closed_mark, "port closed twice");
    rest = kvbm__stack_reverse(rest);
    struct kvbm_msg **tail = &port->fifo;
    uint64_t undelivered = 0;
    while (*tail != NULL)
        tail = &(*tail)->next;
    *tail = rest;
    rest = port->fifo;
    port->fifo = NULL;
    for (const struct kvbm_msg *msg = rest; msg != NULL; msg = msg->next)
        undelivered++;
    drop(port, ONE_REFERENCE + undelivered * ONE_CREDIT);
    return rest;
}

int kvbm_port_credit_take_mt(struct kvbm_port *port) {
    /* Relaxed: the caller holds the port open anyhow; the count publishes nothing. */
    uint64_t counts = atomic_load_explicit(&port->counts, memory_order_relaxed);
    do {
        if (credits_of(counts) >= port->capacity)
            return -EAGAIN;
    } while (!atomic_compare_exchange_weak_explicit(&port->counts, &counts, counts + ONE_REFERENCE + ONE_CREDIT,
                                                    memory_order_relaxed, memory_order_relaxed));
    return 0;
}

void kvbm_port_credit_give_mt(struct kvbm_port *port) {
    drop(port, ONE_REFERENCE + ONE_CREDIT);
}

static void signal_consumer(struct kvbm_port *port) {
    /* Once a sleep: whoever exchanged armed. Relaxed statistic. */
    atomic_fetch_add_explicit(&port->signal_count, 1, memory_order_relaxed);
    port->os->event_signal(port->os->ctx, port->fd);
    /* After the write; release, pairs with the acquire in clear_signals. */
    atomic_fetch_add_explicit(&port->signalled_count, 1, memory_order_release);
}

bool kvbm_port_push_mt(struct kvbm_port *port, struct kvbm_msg *msg) {
    struct kvbm_msg *head = atomic_load_explicit(&port->head, memory_order_relaxed);
    do {
        if (head == &closed_mark) {
            drop(port, ONE_REFERENCE + ONE_CREDIT);
            return false;
        }
        msg->next = head;
        /* Release: pairs with the acquire in grab. Sequentially consistent, as are the load below and the consumer's
         * store of armed and its re-check: this push sees armed, or the re-check sees this message. */
    } while (
        !atomic_compare_exchange_weak_explicit(&port->head, &head, msg, memory_order_seq_cst, memory_order_relaxed));
    /* From here on `msg` is the consumer's. */
    if (atomic_load_explicit(&port->armed, memory_order_seq_cst) == 1 &&
        atomic_exchange_explicit(&port->armed, 0, memory_order_seq_cst) == 1)
        signal_consumer(port);
    drop(port, ONE_REFERENCE); /* the credit stays out until the consumer takes the message */
    return true;
}

uint32_t kvbm_port_credits_out_mt(const struct kvbm_port *port) {
    return credits_of(atomic_load_explicit(&port->counts, memory_order_relaxed));
}

/* Reads the eventfd. Call before arming: afterwards it could swallow the signal of a message not yet seen. */
static void clear_signals(struct kvbm_port *port) {
    /* Acquire: pairs with the release in signal_consumer: these writes are in the eventfd when it is read. */
    port->cleared_count = atomic_load_explicit(&port->signalled_count, memory_order_acquire);
    port->os->event_clear(port->os->ctx, port->fd);
}

/* Moves everything pushed so far to port->fifo. */
static bool grab(struct kvbm_port *port) {
    /* Sequentially consistent: the re-check after arming; pairs with the push. */
    if (atomic_load_explicit(&port->head, memory_order_seq_cst) == NULL)
        return false;
    port->fifo = kvbm__stack_take_all(&port->head);
    return true;
}

/* Empty: makes sure that the next push will signal. False: a push came meanwhile. */
static bool arm(struct kvbm_port *port) {
    /* Acquire: pairs with signal_consumer's release. */
    uint64_t signalled = atomic_load_explicit(&port->signalled_count, memory_order_acquire);
    if (signalled == port->cleared_count && atomic_load_explicit(&port->armed, memory_order_relaxed) == 1)
        return true; /* still armed since last time, and nothing to read in the eventfd */
    clear_signals(port);
    /* Sequentially consistent: pairs with the push (there). */
    atomic_store_explicit(&port->armed, 1, memory_order_seq_cst);
    if (!grab(port))
        return true;
    /* Awake after all. The fd was read, and must be readable while messages wait: the consumer may stop short of NULL.
     */
    if (atomic_exchange_explicit(&port->armed, 0, memory_order_seq_cst) == 1)
        signal_consumer(port);
    return false;
}

struct kvbm_msg *kvbm_port_take(struct kvbm_port *port) {
    if (port->fifo == NULL && !grab(port) && arm(port))
        return NULL;
    struct kvbm_msg *msg = port->fifo;
    port->fifo = msg->next;
    /* Relaxed: one writer, a statistic. */
    uint64_t taken = atomic_load_explicit(&port->taken_count, memory_order_relaxed);
    atomic_store_explicit(&port->taken_count, taken + 1, memory_order_relaxed);
    drop(port, ONE_CREDIT);
    return msg;
}
