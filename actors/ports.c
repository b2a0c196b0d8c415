/*
 * ports.c - completion queues of outside loops (runtime/port.h), and the credit completions that end a wait for room.
 *
 * Thread: kvbm_port_drain and kvbm_port_close the port's one consumer; the rest any.
 *
 * An object in a port is part of its manager's memory, so it holds the manager. A CREDIT completion is a node of a
 * small table of the manager; the port keeps KVBM_PORT_RESERVE places for them beside its capacity, so a port that is
 * full of operations can still be told.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"

/* FREE: `port` is NULL or being set. WAITING -> FIRED by whoever tells it (compare-and-swap: one does). */
enum kvbm_credit_state { KVBM_CREDIT_FREE = 0, KVBM_CREDIT_WAITING = 1, KVBM_CREDIT_FIRED = 2 };

/* Operations that may be in flight to a port. One that was not opened by kvbm_port_open (tests) has no reserve. */
static uint32_t port_limit(const struct kvbm_port *port) {
    return port->capacity > KVBM_PORT_RESERVE ? port->capacity - KVBM_PORT_RESERVE : port->capacity;
}

bool kvbm__port_credit_take(struct kvbm_port *port) {
    if (kvbm_port_credit_take_mt(port) != 0)
        return false;
    if (kvbm_port_credits_out_mt(port) <= port_limit(port))
        return true;
    kvbm_port_credit_give_mt(port);
    return false;
}

int kvbm_port_open(uint32_t capacity, kvbm_port **port) {
    if (port == NULL || capacity == 0 || capacity > KVBM_PORT_CAPACITY_MAX)
        return -EINVAL;
    return kvbm__port_open(kvbm_os_real(), capacity + KVBM_PORT_RESERVE, port);
}

int kvbm_port_fd(const kvbm_port *port) {
    if (port == NULL)
        return -EINVAL;
    return kvbm_os_forked_mt(port->fork_stamp) ? -KVBM_EFORKED : port->fd;
}

/* ----------------------------------------------------------------------------------------------------------- credit */

static void credit_free(struct kvbm_msg_credit *credit) {
    /* Release pairs with the acquire of whoever claims the place next. */
    atomic_store_explicit(&credit->state, KVBM_CREDIT_FREE, memory_order_relaxed);
    atomic_store_explicit(&credit->port, NULL, memory_order_release);
}

/* The credit completion leaves for its port. */
static void credit_push(struct kvbm_manager *m, struct kvbm_msg_credit *credit, struct kvbm_port *port) {
    bool closed = atomic_load_explicit(&m->closed, memory_order_relaxed) != 0;
    credit->head = (struct kvbm_msg){.kind = KVBM_MSG_CREDIT, .status = closed ? -KVBM_ESHUTDOWN : 0};
    kvbm__hold(m);
    if (kvbm_port_push_mt(port, &credit->head))
        return;
    credit_free(credit);
    kvbm__unhold(m);
}

void kvbm__credits_fire(struct kvbm_manager *m) {
    bool closed = atomic_load_explicit(&m->closed, memory_order_relaxed) != 0;
    /* Relaxed: a hint. The pool's head is tag << 32 | index, UINT32_MAX when empty. */
    if (!closed && (uint32_t)atomic_load_explicit(&m->operations.head, memory_order_relaxed) == UINT32_MAX)
        return;
    for (uint32_t i = 0; i < KVBM_CREDIT_REQUESTS_MAX; i++) {
        struct kvbm_msg_credit *credit = &m->credits[i];
        uint32_t waiting = KVBM_CREDIT_WAITING;
        /* Acquire pairs with the release of WAITING: port and user are seen. */
        if (atomic_load_explicit(&credit->state, memory_order_relaxed) != KVBM_CREDIT_WAITING ||
            !atomic_compare_exchange_strong_explicit(&credit->state, &waiting, KVBM_CREDIT_FIRED, memory_order_acq_rel,
                                                     memory_order_relaxed))
            continue;
        atomic_fetch_sub_explicit(&m->credit_requests, 1, memory_order_relaxed);
        credit_push(m, credit, atomic_load_explicit(&credit->port, memory_order_relaxed));
    }
}

/* A free place that names `port` from now on; NULL and *rc. */
static struct kvbm_msg_credit *credit_claim(struct kvbm_manager *m, struct kvbm_port *port, int *rc) {
    *rc = -EALREADY;
    for (uint32_t i = 0; i < KVBM_CREDIT_REQUESTS_MAX; i++)
        if (atomic_load_explicit(&m->credits[i].port, memory_order_relaxed) == port)
            return NULL;
    for (uint32_t i = 0; i < KVBM_CREDIT_REQUESTS_MAX; i++) {
        struct kvbm_port *none = NULL;
        /* Acquire pairs with credit_free. */
        if (atomic_compare_exchange_strong_explicit(&m->credits[i].port, &none, port, memory_order_acq_rel,
                                                    memory_order_relaxed)) {
            *rc = 0;
            return &m->credits[i];
        }
        if (none == port)
            return NULL; /* another thread asked for it meanwhile */
    }
    *rc = -EAGAIN;
    return NULL;
}

int kvbm_port_want_credit_mt(kvbm_port *port, kvbm_manager *m, void *user) {
    if (port == NULL || m == NULL)
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp) || kvbm_os_forked_mt(port->fork_stamp))
        return -KVBM_EFORKED;
    if (atomic_load_explicit(&m->closed, memory_order_seq_cst) != 0)
        return -KVBM_ECLOSED;
    int rc;
    struct kvbm_msg_credit *credit = credit_claim(m, port, &rc);
    if (credit == NULL)
        return rc;
    rc = kvbm_port_credit_take_mt(port); /* of the reserve, if need be */
    if (rc != 0) {
        credit_free(credit);
        return rc;
    }
    credit->manager = m;
    credit->user = user;
    /* Release pairs with credits_fire. */
    atomic_store_explicit(&credit->state, KVBM_CREDIT_WAITING, memory_order_release);
    /* A full fence, then a look at what the request waits for: pairs with operation_give, which gives the object and
     * then looks at credit_requests. A lane that was full has operations in it, each of which looks here when it ends.
     */
    atomic_fetch_add_explicit(&m->credit_requests, 1, memory_order_seq_cst);
    kvbm__fence_given();
    bool closed = atomic_load_explicit(&m->closed, memory_order_seq_cst) != 0;
    if (closed || kvbm_mailbox_depth_mt(&m->reactor.mailbox) == 0)
        kvbm__credits_fire(m);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------ drain */

static void take_credit(struct kvbm_msg_credit *credit, kvbm_completion *completion) {
    struct kvbm_manager *m = credit->manager;
    if (completion != NULL)
        *completion = (kvbm_completion){.kind = KVBM_OP_CREDIT, .user = credit->user, .status = credit->head.status};
    credit_free(credit);
    kvbm__unhold(m);
}

static void take_operation(struct kvbm_operation *op, kvbm_completion *completion) {
    struct kvbm_manager *m = op->manager;
    kvbm__operation_completion(op, completion);
    kvbm__operation_give(op);
    kvbm__unhold(m);
}

int kvbm_port_drain(kvbm_port *port, kvbm_completion *completions, uint32_t capacity) {
    if (port == NULL || (completions == NULL && capacity > 0))
        return -EINVAL;
    if (kvbm_os_forked_mt(port->fork_stamp))
        return -KVBM_EFORKED;
    uint32_t limit = capacity < INT32_MAX ? capacity : INT32_MAX;
    uint32_t n = 0;
    while (n < limit) {
        struct kvbm_msg *msg = kvbm_port_take(port);
        if (msg == NULL)
            break;
        if (msg->kind == KVBM_MSG_CREDIT)
            take_credit((struct kvbm_msg_credit *)msg, &completions[n]);
        else
            take_operation((struct kvbm_operation *)msg, &completions[n]);
        n++;
    }
    return (int)n;
}

void kvbm_port_close(kvbm_port *port) {
    if (port == NULL || kvbm_os_forked_mt(port->fork_stamp))
        return;
    struct kvbm_msg *msg = kvbm__port_close(port);
    while (msg != NULL) {
        struct kvbm_msg *next = msg->next;
        if (msg->kind == KVBM_MSG_CREDIT) {
            take_credit((struct kvbm_msg_credit *)msg, NULL);
        } else {
            struct kvbm_operation *op = (struct kvbm_operation *)msg;
            struct kvbm_manager *m = op->manager;
            kvbm__operation_orphaned(op);
            kvbm__unhold(m);
        }
        msg = next;
    }
}
