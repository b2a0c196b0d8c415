/*
 * messages.h - the domain's messages, listed once, and the actors' request edges.
 *
 *   message   | from -> to                        | reply
 *   ALLOCATE  | manager -> allocator              | to the manager, when done (an operation)
 *   REGISTER  | manager -> registry               | "
 *   MATCH     | manager -> registry               | "
 *   QUERY     | manager -> registry               | "
 *   SETTLE    | manager -> allocator -> registry  | to the manager, after both have drained their return lanes
 *   EVICT     | allocator -> registry             | a chain of reset slots, or what could have been had
 *   WATCH     | allocator -> registry             | when a block has become evictable since the version it names
 *   SERVE     | allocator -> itself               | none
 *   SWEEP     | manager's client side -> manager  | none: cancel requests are in the cancel lane
 *   CLOSE     | manager's client side -> manager  | none
 *   SHUTDOWN  | manager -> allocator, registry    | when nothing waits there any more
 *   CREDIT    | manager's client side -> port     | never sent to an actor: a completion without an operation
 *
 * Request edges: manager -> allocator, manager -> registry, allocator -> registry. Acyclic. All three share one
 * reactor. Blocks that come free at the registry (duplicates, kept duplicates whose last lease ended) wait there on the
 * pool's `reclaimed` chain, which EVICT serves first, so the registry never asks the allocator for anything.
 *
 * A message that handles n blocks does at most KVBM_STEP_BLOCKS of them in one go, then sends itself to its actor
 * again, behind what came meanwhile.
 */
#ifndef KVBM_ACTORS_MESSAGES_H
#define KVBM_ACTORS_MESSAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/kvbm.h"
#include "runtime/message.h"

#define KVBM_STEP_BLOCKS 8192u

struct kvbm_block_pool;
struct kvbm_allocator_pool;

#define KVBM_MESSAGES(X)                                                                                               \
    X(ALLOCATE, allocate)                                                                                              \
    X(REGISTER, register)                                                                                              \
    X(MATCH, match)                                                                                                    \
    X(QUERY, query)                                                                                                    \
    X(SETTLE, settle)                                                                                                  \
    X(EVICT, evict)                                                                                                    \
    X(WATCH, watch)                                                                                                    \
    X(SERVE, serve)                                                                                                    \
    X(SWEEP, sweep)                                                                                                    \
    X(CLOSE, close)                                                                                                    \
    X(SHUTDOWN, shutdown)                                                                                              \
    X(CREDIT, credit)

KVBM_MSG_DEFINE_ENUM(KVBM_MESSAGES);

/*
 * An operation: the object of the manager's pool that every accepted request lives in, and the message itself.
 *
 * Its life is said by `state`:
 *
 *   FREE        in the pool
 *   SUBMITTING  with KVBM_SUBMIT_INLINE: the submitter has not left yet
 *   PENDING     the submitter has left; whoever completes it delivers it
 *   SLEEPING    as PENDING, and a thread sleeps in kvbm_wait_mt
 *   ANSWERED    completed while SUBMITTING: the submitter takes the result and gives the object back
 *   DONE        completed, for kvbm_wait_mt to collect
 *   PARKED      completed, in a port
 *
 *   submitter    FREE -> SUBMITTING (inline) or PENDING;  SUBMITTING -> PENDING when it leaves;  ANSWERED -> FREE
 *   completer    SUBMITTING -> ANSWERED;  PENDING -> FREE (callback), PARKED (port), DONE (waiter);  SLEEPING -> DONE
 *   waiter       PENDING -> SLEEPING;  DONE -> FREE
 *   port drain   PARKED -> FREE
 *
 * SUBMITTING -> PENDING and SUBMITTING -> ANSWERED are compare-and-swaps on the same word: exactly one wins, so a
 * result is either handed over at submit or delivered, never both, never neither. In states SUBMITTING, PENDING,
 * SLEEPING and ANSWERED the operation is in flight: a closing manager waits for it.
 */
enum kvbm_operation_state {
    KVBM_OPERATION_FREE = 0,
    KVBM_OPERATION_SUBMITTING = 1,
    KVBM_OPERATION_PENDING = 2,
    KVBM_OPERATION_SLEEPING = 3,
    KVBM_OPERATION_ANSWERED = 4,
    KVBM_OPERATION_DONE = 5,
    KVBM_OPERATION_PARKED = 6,
};

struct kvbm_operation {
    struct kvbm_msg head; /* head.op is its id */
    /* Written by the submitter before it posts. */
    kvbm_done_callback done;
    void *user;
    struct kvbm_port *port;
    uint64_t submit_ns; /* 0: its latency is not recorded */
    _Atomic uint32_t state;
    uint8_t kind; /* enum kvbm_op_kind; 0 for the manager's own */
    bool begun;   /* some step of it has run */
    /* The reactor's owner only; not touched by a submitter, so that a late cancel of an earlier id is harmless. */
    bool waiting;          /* stands in an allocator's line */
    uint64_t cancelled_id; /* the operation is cancelled if this is its id */
    /* The result; head.status is its status. Written by the actors. */
    uint64_t count, requested, available, index;
    struct kvbm_manager *manager;
    /* Any thread: the id that a canceller wants ended, 0 if this object is not in the cancel lane. */
    _Atomic uint64_t cancel_id;
};

struct kvbm_msg_evict {
    struct kvbm_msg head;
    struct kvbm_block_pool *pool;
    struct kvbm_msg_allocate *allocate;           /* for whom */
    uint32_t need;                                /* in: slots wanted, all or none */
    uint32_t free_version;                        /* the allocator's, when it asked */
    uint32_t done;                                /* victims taken so far */
    uint32_t chain_head, chain_tail, chain_count; /* out: free slots linked by `next`; perhaps more than need */
    uint32_t available;                           /* out, with -KVBM_ENOBLOCKS: evictable then */
    uint64_t version;                             /* out, with -KVBM_ENOBLOCKS: for WATCH */
};

struct kvbm_msg_allocate {
    struct kvbm_operation op;
    struct kvbm_block_pool *pool;
    kvbm_block *blocks;
    uint32_t count;    /* wanted */
    uint32_t reserved; /* free slots set aside for it, not popped yet */
    uint32_t handed;   /* handles written */
    bool may_wait;
    bool served; /* it came out of the line and goes back to its front if short */
    struct kvbm_msg_allocate *line_previous, *line_next;
    struct kvbm_msg_evict evict; /* at most one in flight */
};

struct kvbm_msg_register {
    struct kvbm_operation op;
    struct kvbm_block_pool *pool;
    const kvbm_block *blocks;
    const kvbm_key *keys; /* NULL: computed or made up in the handler */
    kvbm_block *out_blocks;
    kvbm_key *out_keys;
    bool *out_duplicate;
    uint32_t count, done;
    uint32_t flags;
    uint32_t depth; /* of the next block */
    uint8_t priority;
    bool has_parent;      /* `previous` is a key */
    bool first_key_known; /* `first_key` was computed at submit, from the salt */
    uint64_t priority_ttl_ns;
    uint64_t expires_ns;
    kvbm_key previous; /* key before the next block */
    kvbm_key first_key;
};

struct kvbm_msg_match {
    struct kvbm_operation op;
    const kvbm_key *keys;
    kvbm_block *blocks;
    uint32_t count, done;
    uint32_t group, tiers;
};

struct kvbm_msg_query {
    struct kvbm_operation op;
    const kvbm_key *keys;
    uint8_t *tiers;
    uint32_t count, done;
    uint32_t group;
};

struct kvbm_msg_settle {
    struct kvbm_operation op;
    struct kvbm_block_pool *pool;
};

struct kvbm_msg_watch {
    struct kvbm_msg head;
    struct kvbm_block_pool *pool;
    uint64_t version;
};

struct kvbm_msg_serve {
    struct kvbm_msg head;
    struct kvbm_allocator_pool *pool;
};

struct kvbm_msg_sweep {
    struct kvbm_msg head;
};

struct kvbm_msg_close {
    struct kvbm_msg head;
};

struct kvbm_msg_shutdown {
    struct kvbm_msg head;
};

struct kvbm_msg_credit {
    struct kvbm_msg head;
    struct kvbm_manager *manager;
    _Atomic(struct kvbm_port *) port; /* who asked; NULL: free */
    _Atomic uint32_t state;           /* enum kvbm_credit_state (ports.c) */
    void *user;
};

/* What the manager's pool is made of. */
union kvbm_any_operation {
    struct kvbm_operation op;
    struct kvbm_msg_allocate allocate;
    struct kvbm_msg_register registration;
    struct kvbm_msg_match match;
    struct kvbm_msg_query query;
    struct kvbm_msg_settle settle;
};

extern const struct kvbm_msg_info kvbm__messages[KVBM_MSG_KIND_COUNT];

#endif
