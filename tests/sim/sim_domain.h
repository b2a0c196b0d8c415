/*
 * sim_domain.h - the simulation of one manager: what its files share.
 *
 *   sim_domain.c   opens the manager, drives its reactor, chooses steps, checks balances, closes
 *   sim_submit.c   clients submit operations, and what each completion must and must not say
 *   sim_client.c   everything else a client does: releases, tokens, stale handles, bad arguments, ports
 *   sim_exact.c    a naive cache that predicts results to the block, for runs that do one thing at a time
 *
 * The model keeps, for each slot of each pool, who holds it as far as completions have told; for each key, how often
 * its registration was accepted and which slot is known to hold it. Results that are under way (in a lane, in a port)
 * make the model a lower bound of what is held, and each check says only what follows from that. Where nothing is under
 * way, the gauges of the manager must equal the model exactly.
 */
#ifndef KVBM_TESTS_SIM_SIM_DOMAIN_H
#define KVBM_TESTS_SIM_SIM_DOMAIN_H

#include "actors/kvbm.h"
#include "actors/manager_internal.h"
#include "runtime/port.h"
#include "tests/sim/sim.h"

#define DOMAIN_GROUPS    3
#define DOMAIN_SLOTS     64
#define DOMAIN_NODES     72  /* keys of the tree of prompts */
#define DOMAIN_KEYS      200 /* and after them anonymous ones */
#define DOMAIN_BATCH     72  /* blocks of one operation, more than a pool has */
#define DOMAIN_OPS       80
#define DOMAIN_PORTS     3
#define DOMAIN_PAGE_MAX  4
#define DOMAIN_PLANE_MAX 4 /* layers * outer */
#define NO_KEY           UINT16_MAX
#define NO_SLOT          UINT16_MAX

enum domain_action {
    ACT_ALLOCATE,
    ACT_REGISTER,
    ACT_MATCH,
    ACT_QUERY,
    ACT_RELEASE,
    ACT_RETAIN,
    ACT_TOKENS,
    ACT_CANCEL,
    ACT_WAIT,
    ACT_DRAIN,
    ACT_PORT,
    ACT_CREDIT,
    ACT_STALE,
    ACT_BAD,
    ACT_LOOK,
    ACT_COUNT
};

enum domain_from { FROM_MAIN, FROM_CALLBACK, FROM_OTHER, FROM_COUNT };

enum domain_delivery { DELIVER_CALLBACK, DELIVER_PORT, DELIVER_PORT_OR_CALLBACK, DELIVER_WAIT };

struct domain_key {
    kvbm_key key;
    uint64_t stamp; /* what its blocks hold */
    uint16_t parent;
    uint16_t depth;
    uint32_t tokens[DOMAIN_PAGE_MAX];
};

enum domain_slot_state { SLOT_IDLE = 0, SLOT_MUTABLE, SLOT_CLAIMED };

struct domain_slot {
    kvbm_block block; /* the handle last seen */
    uint32_t holds;   /* leases that clients know of */
    uint16_t key;     /* of registered content, NO_KEY */
    uint16_t claimed_by;
    uint8_t state;
    bool primary; /* matchable under its key, as opposed to a kept duplicate */
    uint8_t token_count;
    uint16_t node; /* mutable: the key that it is being filled for */
    uint32_t batch, batch_at;
    uint64_t stamp; /* what its bytes must be */
    /* For sim_exact.c: cached once `holds` is 0. */
    bool resident;
    uint8_t priority;
    bool ran_out; /* its priority did, before it was cached */
    uint64_t expires_ns;
    uint64_t cached_at;
};

struct domain_group {
    uint32_t capacity;
    bool lru; /* its policy; for the others the naive cache of exact runs names no victims */
    uint32_t page_size, planes, layers, outers;
    uint64_t plane_bytes;
    struct domain_slot slots[DOMAIN_SLOTS];
    uint16_t primary[DOMAIN_KEYS];  /* slot known to hold the key, NO_SLOT */
    uint32_t drops[DOMAIN_KEYS];    /* how often its last known lease ended */
    uint32_t attempts[DOMAIN_KEYS]; /* accepted registrations */
};

struct domain_op {
    bool used, submitting, completed, accepted, cancelled, orphan;
    bool no_out_keys; /* asked for the keys one by one */
    uint8_t from;     /* enum domain_from: what was submitted from one place comes in order */
    bool waited_on;   /* a thread is inside kvbm_wait_mt for it */
    bool stood;       /* was seen in line */
    uint8_t kind, delivery, group;
    int8_t port;
    uint16_t count;
    uint32_t flags; /* of the submit */
    uint32_t args_flags;
    uint32_t generation;
    uint64_t sequence;
    uint64_t deadline_ns;
    kvbm_op id, told_id;
    uint8_t priority;
    uint64_t priority_ttl_ns;
    bool computed, has_parent;
    kvbm_key parent;
    kvbm_completion inline_completion;
    kvbm_block blocks[DOMAIN_BATCH];
    kvbm_block out_blocks[DOMAIN_BATCH];
    kvbm_key keys[DOMAIN_BATCH];
    kvbm_key out_keys[DOMAIN_BATCH];
    bool out_duplicate[DOMAIN_BATCH];
    uint8_t tiers[DOMAIN_BATCH];
    uint16_t key_ids[DOMAIN_BATCH];
    bool lost[DOMAIN_BATCH];           /* the block was seen handed to somebody else: it was a duplicate */
    uint32_t must_drops[DOMAIN_BATCH]; /* UINT32_MAX: was not known to be held when submitted */
};

struct domain_port {
    kvbm_port *port;
    uint32_t capacity;
    uint32_t inflight;
    bool credit_wanted;
};

struct domain {
    struct sim sim;
    kvbm_manager *manager;
    struct kvbm_reactor *reactor;
    /* The reactor's own thread. */
    bool parked, wake_asked;
    uint64_t wake_not_before; /* step */
    uint64_t timer_ns;
    bool finished; /* closed and finished */
    bool closing;
    /* Drawn for the run. */
    uint32_t flags;
    uint32_t max_operations;
    uint32_t weights[ACT_COUNT], weight_sum;
    uint32_t drive_permille, clock_permille, park_permille, late_permille, nest_permille, other_permille;
    uint32_t wait_permille, timeout_permille, inline_permille, duplicate_permille, anonymous_permille;
    uint32_t spurious_permille, take_back_permille, budget_max, batch_max;
    uint64_t clock_ns_max;
    uint32_t check_every;
    bool exact, tracks, has_bytes;
    /* Where the thread is. */
    uint32_t callback_depth;
    uint32_t waits; /* sleeps of clients in this step */
    bool busy;      /* something happened since the last look at the balances */
    /* The model. */
    uint32_t group_count;
    struct domain_group groups[DOMAIN_GROUPS];
    uint16_t key_count, node_count;
    struct domain_key keys[DOMAIN_KEYS];
    uint32_t ops_used;
    uint64_t op_sequence;
    uint32_t batch_sequence;
    uint64_t cached_sequence;
    uint32_t orphans; /* operations whose completion nobody gets */
    struct domain_op ops[DOMAIN_OPS];
    struct domain_port ports[DOMAIN_PORTS];
};

/* sim_domain.c */
void domain_drive(struct domain *d);
bool domain_reactor_idle(const struct domain *d);
void domain_run_dry(struct domain *d);

/* sim_submit.c */
void domain_other_step(struct domain *d);
void domain_allocate(struct domain *d);
void domain_register(struct domain *d);
void domain_match(struct domain *d);
void domain_query(struct domain *d);
void domain_complete(struct domain *d, const kvbm_completion *completion, int how);
uint32_t domain_inflight(const struct domain *d);
void domain_verify(struct domain *d, struct domain_group *g, struct domain_slot *slot, const char *where);
void domain_write(struct domain *d, struct domain_group *g, struct domain_slot *slot, uint64_t stamp);

/* sim_client.c */
void domain_release_some(struct domain *d);
void domain_release_all(struct domain *d);
void domain_act(struct domain *d, enum domain_action action);
void domain_client_step(struct domain *d);
uint32_t domain_drain(struct domain *d, uint32_t port, uint32_t count);
bool domain_wait(struct domain *d, uint32_t op, uint64_t timeout_ns);
void domain_port_close(struct domain *d, uint32_t port);
/* The model's side of giving back one hold. */
void domain_unhold(struct domain *d, struct domain_group *g, struct domain_slot *slot);
bool domain_key_held(const struct domain_group *g, uint16_t key);

/* sim_exact.c: each is called where a result is known, in the order in which the manager made them */
void exact_allocated(struct domain *d, struct domain_op *op, const kvbm_completion *completion);
void exact_registered(struct domain *d, struct domain_op *op);
void exact_matched(struct domain *d, struct domain_op *op, const kvbm_completion *completion);
void exact_queried(struct domain *d, struct domain_op *op);

#endif
