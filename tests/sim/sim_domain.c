/*
 * sim_domain.c - one run of the simulated manager: draws its options, opens it, plays the reactor's thread, chooses
 * what happens next, looks at the balances, and ends it.
 *
 * Swarm testing (Groce et al.): each run draws its own weights, some of them zero, so that runs differ in kind and not
 * only in order.
 */
#include "tests/sim/sim_domain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "actors/index.h"
#include "runtime/reactor.h"

#define DRY_ROUNDS_MAX   20000 /* turns until nothing is left to do: far above what so few operations can cost */
#define ORDER_ROUNDS_MAX 400
#define WAITS_MAX        20000 /* sleeps in one step */
#define STEPS_MIN        300
#define STEPS_MAX        3000

static struct domain world; /* too large for a stack; one run at a time */

/* ---------------------------------------------------------------------------------------------------------- options */

static void draw_weights(struct domain *d) {
    static const uint32_t most[ACT_COUNT] = {
        [ACT_ALLOCATE] = 40, [ACT_REGISTER] = 40, [ACT_MATCH] = 40,  [ACT_QUERY] = 12, [ACT_RELEASE] = 50,
        [ACT_RETAIN] = 8,    [ACT_TOKENS] = 20,   [ACT_CANCEL] = 10, [ACT_WAIT] = 30,  [ACT_DRAIN] = 40,
        [ACT_PORT] = 4,      [ACT_CREDIT] = 4,    [ACT_STALE] = 3,   [ACT_BAD] = 4,    [ACT_LOOK] = 6,
    };
    struct sim *sim = &d->sim;
    d->weight_sum = 0;
    for (int i = 0; i < ACT_COUNT; i++) {
        bool needed = i == ACT_ALLOCATE || i == ACT_RELEASE || i == ACT_WAIT || i == ACT_DRAIN;
        d->weights[i] = !needed && sim_chance(sim, 150) ? 0 : (uint32_t)sim_between(sim, 1, most[i]);
        d->weight_sum += d->weights[i];
    }
}

static uint32_t draw_permille(struct sim *sim, uint32_t most) {
    return sim_chance(sim, 300) ? 0 : (uint32_t)sim_between(sim, 1, most);
}

static void draw(struct domain *d) {
    struct sim *sim = &d->sim;
    draw_weights(d);
    d->exact = sim_chance(sim, 250);
    d->drive_permille = (uint32_t)sim_between(sim, 50, 600);
    d->clock_permille = draw_permille(sim, 60);
    d->park_permille = (uint32_t)sim_between(sim, 20, 900);
    d->late_permille = draw_permille(sim, 800);
    d->nest_permille = draw_permille(sim, 500);
    d->other_permille = sim_chance(sim, 800) ? 0 : (uint32_t)sim_between(sim, 1, 60);
    d->wait_permille = draw_permille(sim, 900);
    d->timeout_permille = draw_permille(sim, 500);
    d->inline_permille = draw_permille(sim, 900);
    d->duplicate_permille = draw_permille(sim, 500);
    d->anonymous_permille = draw_permille(sim, 250);
    d->spurious_permille = draw_permille(sim, 100);
    d->take_back_permille = draw_permille(sim, 200);
    d->budget_max = sim_chance(sim, 500) ? 1 : (uint32_t)sim_between(sim, 1, 16);
    d->batch_max = (uint32_t)sim_between(sim, 1, 8);
    d->clock_ns_max = UINT64_C(1) << sim_between(sim, 6, 30);
    d->check_every = (uint32_t)sim_between(sim, 8, 64);
    d->max_operations = sim_chance(sim, 500) ? 16 : (uint32_t)sim_between(sim, 16, 64);
    d->flags = (sim_chance(sim, 120) ? KVBM_OPEN_NO_BYTES : 0u) | (sim_chance(sim, 150) ? KVBM_OPEN_NO_BORROW : 0u) |
               (sim_chance(sim, 500) ? KVBM_OPEN_TRACK_TOKENS : 0u);
    d->has_bytes = (d->flags & KVBM_OPEN_NO_BYTES) == 0;
    d->tracks = (d->flags & KVBM_OPEN_TRACK_TOKENS) != 0;
    if (d->exact)
        d->nest_permille = d->other_permille = d->late_permille = d->spurious_permille = 0;
}

static void geometry_draw(struct domain *d, kvbm_group_options *options, struct domain_group *g, uint32_t page_size) {
    static const int dtypes[] = {KVBM_DTYPE_FP8_E4M3, KVBM_DTYPE_BF16, KVBM_DTYPE_FP32, KVBM_DTYPE_U8};
    struct sim *sim = &d->sim;
    g->capacity = (uint32_t)(sim_chance(sim, 600) ? sim_between(sim, 4, 12) : sim_between(sim, 4, DOMAIN_SLOTS));
    g->page_size = page_size;
    g->layers = (uint32_t)sim_between(sim, 1, 2);
    g->outers = (uint32_t)sim_between(sim, 1, 2);
    g->planes = g->layers * g->outers;
    static const char *const policies[] = {"lru", "s3fifo", "prefix"};
    *options = (kvbm_group_options){.size = sizeof *options, .host_blocks = g->capacity};
    options->policy = policies[sim_below(sim, 3)];
    g->lru = options->policy == policies[0];
    options->geometry = (struct kvbm_geometry){
        .num_layers = g->layers,
        .outer_dim = g->outers,
        .page_size = page_size,
        .inner_dim = (uint32_t)sim_between(sim, 16, 24), /* a plane has room for two stamps */
        .dtype = dtypes[sim_below(sim, 4)],
        .form = (int)sim_between(sim, KVBM_LAYOUT_FULLY_CONTIGUOUS, KVBM_LAYOUT_LAYER_OUTER_MAJOR),
        .alignment = sim_chance(sim, 500) ? 0 : UINT64_C(1) << sim_between(sim, 0, 9),
    };
    for (uint32_t i = 0; i < DOMAIN_SLOTS; i++)
        g->slots[i] = (struct domain_slot){.key = NO_KEY};
    for (uint32_t i = 0; i < DOMAIN_KEYS; i++) {
        g->primary[i] = NO_SLOT;
        g->drops[i] = g->attempts[i] = 0;
    }
}

/* A tree of prompts: each node continues its parent by one block, or starts a prompt under one of three salts. */
static void keys_make(struct domain *d, uint32_t page_size) {
    struct sim *sim = &d->sim;
    uint32_t root_permille = (uint32_t)sim_between(sim, 30, 400);
    d->node_count = (uint16_t)sim_between(sim, 8, DOMAIN_NODES);
    d->key_count = d->node_count;
    for (uint16_t i = 0; i < d->node_count; i++) {
        struct domain_key *key = &d->keys[i];
        key->stamp = sim_random(sim);
        bool root = i == 0 || sim_chance(sim, root_permille);
        uint16_t window = (uint16_t)(i < 6 ? i : 6);
        key->parent = root ? NO_KEY : (uint16_t)(i - 1 - sim_below(sim, window));
        key->depth = root ? 0 : (uint16_t)(d->keys[key->parent].depth + 1);
        for (uint32_t t = 0; t < page_size; t++)
            key->tokens[t] = t == 0 ? i : (uint32_t)sim_random(sim); /* distinct nodes, distinct keys */
        uint8_t salt = (uint8_t)(i % 3);
        kvbm_keys_compute_mt(key->tokens, 1, page_size, &salt, root && salt != 0 ? 1 : 0,
                             root ? NULL : &d->keys[key->parent].key, &key->key);
    }
}

/* ---------------------------------------------------------------------------------------------------------- reactor */

static void on_wake(void *ctx) {
    struct domain *d = ctx;
    sim_event(&d->sim, SIM_WAKE_ASKED, 0, 0);
    SIM_CHECK(&d->sim, !d->wake_asked, "the reactor is woken twice in one sleep");
    d->wake_not_before = d->sim.step + (sim_chance(&d->sim, d->late_permille) ? sim_below(&d->sim, 100) : 0);
    d->wake_asked = true;
}

static void on_log(void *user, int level, const char *component, const char *text) {
    (void)user, (void)level, (void)component, (void)text;
}

bool domain_reactor_idle(const struct domain *d) {
    return d->parked && !d->wake_asked && d->timer_ns > d->sim.now_ns;
}

static void reactor_take(struct domain *d, uint32_t event) {
    sim_event(&d->sim, event, 0, 0);
    d->wake_asked = false;
    SIM_CHECK(&d->sim, kvbm_reactor_take(d->reactor), "take of a parked reactor was refused");
    d->parked = false;
}

static void reactor_park(struct domain *d) {
    uint64_t timer_ns = 0;
    bool parked = kvbm_reactor_park(d->reactor, &timer_ns);
    sim_event(&d->sim, parked ? SIM_PARK : SIM_PARK_REFUSED, 0, 0);
    if (parked) {
        d->parked = true;
        d->timer_ns = timer_ns;
    }
}

static void reactor_turn(struct domain *d) {
    uint32_t ran = kvbm_reactor_turn(d->reactor, (uint32_t)sim_between(&d->sim, 1, d->budget_max));
    sim_event(&d->sim, SIM_TURN, ran, 0);
    d->busy = d->busy || ran != 0;
}

/* One step of the reactor's own thread. */
void domain_drive(struct domain *d) {
    struct sim *sim = &d->sim;
    if (d->finished)
        return;
    if (!d->parked) {
        if (sim_chance(sim, d->park_permille))
            reactor_park(d);
        else
            reactor_turn(d);
    } else if (d->wake_asked && sim->step >= d->wake_not_before) {
        reactor_take(d, SIM_WAKE);
    } else if (d->timer_ns <= sim->now_ns) {
        reactor_take(d, SIM_TIMER);
    } else if (sim_chance(sim, d->spurious_permille)) {
        reactor_take(d, SIM_TAKE_SPURIOUS);
    }
}

/* Until the reactor sleeps and nothing will wake it at this time. */
void domain_run_dry(struct domain *d) {
    for (uint32_t round = 0; round < DRY_ROUNDS_MAX; round++) {
        if (d->finished || domain_reactor_idle(d))
            return;
        if (d->parked)
            reactor_take(d, d->wake_asked ? SIM_WAKE : SIM_TIMER);
        reactor_turn(d);
        reactor_park(d);
    }
    sim_fail(&d->sim, "the reactor is still busy after %u turns", DRY_ROUNDS_MAX);
}

/* Dry, and with every release looked at: a driven manager's statistics do not settle where nobody may borrow. */
static void settle(struct domain *d) {
    domain_run_dry(d);
    if (d->finished)
        return;
    if (d->parked)
        reactor_take(d, SIM_TAKE_SPURIOUS);
    reactor_turn(d);
    domain_run_dry(d);
}

/* A client sleeps: the reactor's thread and the clock go on. */
static int on_wait(struct sim *sim, _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns) {
    struct domain *d = (struct domain *)sim;
    SIM_CHECK(sim, d->callback_depth == 0, "the library sleeps inside a callback");
    SIM_CHECK(sim, ++d->waits < WAITS_MAX, "the library waits for what never comes");
    for (uint32_t round = 0; round < 200; round++) {
        if (atomic_load(word) != expected || sim_chance(sim, 30))
            return 0; /* woken, or spuriously */
        if (sim_chance(sim, 20))
            return -EINTR;
        sim->step++;
        if (!domain_reactor_idle(d)) {
            domain_drive(d);
            continue;
        }
        uint64_t next_ns = d->timer_ns < deadline_ns ? d->timer_ns : deadline_ns;
        if (next_ns == KVBM_NO_DEADLINE)
            return -EINTR;
        sim->now_ns = next_ns;
        sim_event(sim, SIM_CLOCK, 0, 0);
        if (deadline_ns <= sim->now_ns)
            return -ETIMEDOUT;
    }
    return -EINTR;
}

/* ----------------------------------------------------------------------------------------------------------- checks */

/* After every step. */
static void check_step(struct domain *d) {
    struct sim *sim = &d->sim;
    if (d->parked && !d->wake_asked && !d->finished) {
        struct kvbm_reactor *r = d->reactor;
        bool work = !kvbm_mailbox_empty_mt(&r->mailbox) || r->local_head != NULL ||
                    (atomic_load(&r->returns_wanted) != 0 && kvbm_reactor_has_work(r));
        SIM_CHECK(sim, !work, "lost wake: a parked reactor has work and no wake-up is pending");
        SIM_CHECK(sim, kvbm_deadlines_next_ns(&r->deadlines) >= d->timer_ns,
                  "lost timer: the thread sleeps past the earliest deadline");
    }
    for (uint32_t i = 0; i < DOMAIN_PORTS; i++) {
        const struct kvbm_port *port = d->ports[i].port;
        if (port == NULL)
            continue;
        bool waiting = port->fifo != NULL || atomic_load(&port->head) != NULL;
        SIM_CHECK(sim, !waiting || sim->fds[port->fd - 1000].signalled != 0,
                  "port %u holds completions and its fd is not readable", i);
    }
}

static void check_manager(struct domain *d) {
    char text[400] = "";
    if (d->finished || (!d->parked && atomic_load(&d->reactor->state) != KVBM_REACTOR_RUNNING))
        return;
    uint64_t violations = kvbm__manager_check(d->manager, text, sizeof text);
    SIM_CHECK(&d->sim, violations == 0, "%llu violations: %s", (unsigned long long)violations, text);
}

/* What may be in flight when nothing is left to run: allocations in line, and completions in ports. */
static void check_left(struct domain *d) {
    struct sim *sim = &d->sim;
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        struct domain_op *op = &d->ops[i];
        if (!op->used || !op->accepted || op->completed || op->port >= 0 || op->delivery == DELIVER_WAIT)
            continue;
        if (op->orphan)
            continue;
        SIM_CHECK(sim, op->kind == KVBM_OP_ALLOCATE && (op->flags & KVBM_SUBMIT_WAIT) != 0,
                  "operation %u of kind %u is left and nothing will end it", i, op->kind);
        SIM_CHECK(sim, !op->cancelled, "allocation %u was cancelled and stays in line", i);
        SIM_CHECK(sim, op->deadline_ns == 0 || op->deadline_ns > sim->now_ns, "allocation %u is past its deadline", i);
        SIM_CHECK(sim, op->count <= d->groups[op->group].capacity, "allocation %u can never be served", i);
        op->stood = true;
    }
}

/* The head of a group's line must want more than there is. Of those submitted from one place (thread, or inside a
 * callback) the oldest is first; how the places meet is not known. */
static void check_line(struct domain *d, uint32_t group) {
    struct sim *sim = &d->sim;
    const struct domain_op *heads[FROM_COUNT] = {NULL};
    uint32_t standing = 0;
    bool certain = d->orphans == 0;
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        const struct domain_op *op = &d->ops[i];
        if (!op->used || !op->accepted || op->completed || op->group != group || op->kind != KVBM_OP_ALLOCATE)
            continue;
        certain = certain && op->port < 0 && op->delivery != DELIVER_WAIT;
        standing++;
        if (heads[op->from] == NULL || heads[op->from]->sequence > op->sequence)
            heads[op->from] = op;
    }
    settle(d);
    if (!certain)
        return;
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) /* settling may have ended some */
        standing -= d->ops[i].completed && d->ops[i].used && d->ops[i].group == group;
    kvbm_pool_stats stats = {.size = sizeof(stats)};
    int rc = kvbm_pool_stats_mt(d->manager, group, KVBM_TIER_HOST, &stats);
    SIM_CHECK(sim, rc == 0, "pool statistics: %d", rc);
    if (standing != stats.waiting_count)
        return;
    uint64_t available = stats.free_blocks + stats.cached_blocks;
    bool short_of = standing == 0;
    for (int i = 0; i < FROM_COUNT; i++)
        short_of |= heads[i] != NULL && heads[i]->used && !heads[i]->completed && heads[i]->count > available;
    SIM_CHECK(sim, short_of, "group %u: the line's head could be served: %llu blocks are available", group,
              (unsigned long long)available);
}

/* With no result under way, the gauges are what the model says. */
static void check_gauges(struct domain *d) {
    struct sim *sim = &d->sim;
    settle(d);
    uint32_t waiting[DOMAIN_GROUPS] = {0};
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        const struct domain_op *op = &d->ops[i];
        if (!op->used || op->completed)
            continue;
        if (op->kind != KVBM_OP_ALLOCATE || !op->accepted)
            return;
        waiting[op->group]++;
    }
    for (uint32_t i = 0; i < d->group_count; i++) {
        const struct domain_group *g = &d->groups[i];
        uint64_t mutable_count = 0, leased_count = 0;
        for (uint32_t number = 0; number < g->capacity; number++) {
            mutable_count += g->slots[number].state == SLOT_MUTABLE;
            leased_count += g->slots[number].holds > 0;
        }
        kvbm_pool_stats s = {.size = sizeof(s)};
        SIM_CHECK(sim, kvbm_pool_stats_mt(d->manager, i, KVBM_TIER_HOST, &s) == 0, "pool statistics");
        int64_t available = kvbm_pool_available_mt(d->manager, i, KVBM_TIER_HOST);
        SIM_CHECK(sim, available == (int64_t)(s.free_blocks + s.cached_blocks) || available == -EAGAIN,
                  "available: %lld", (long long)available);
        SIM_CHECK(sim, s.waiting_count == waiting[i], "group %u: %llu wait, not %u", i,
                  (unsigned long long)s.waiting_count, waiting[i]);
        SIM_CHECK(sim,
                  s.mutable_blocks == mutable_count && s.leased_blocks == leased_count &&
                      s.capacity_blocks == g->capacity &&
                      s.free_blocks + s.cached_blocks + mutable_count + leased_count == g->capacity,
                  "group %u of %u blocks: %llu free, %llu cached, %llu leased (held: %llu), %llu mutable (held: %llu)",
                  i, g->capacity, (unsigned long long)s.free_blocks, (unsigned long long)s.cached_blocks,
                  (unsigned long long)s.leased_blocks, (unsigned long long)leased_count,
                  (unsigned long long)s.mutable_blocks, (unsigned long long)mutable_count);
    }
    sim_event(sim, SIM_QUIET, 0, 0);
}

static void collect(struct domain *d) {
    for (uint32_t i = 0; i < DOMAIN_PORTS; i++)
        while (d->ports[i].port != NULL && domain_drain(d, i, 8) != 0) {
        }
    for (uint32_t i = 0; i < DOMAIN_OPS; i++)
        if (d->ops[i].used && d->ops[i].accepted && !d->ops[i].completed && d->ops[i].delivery == DELIVER_WAIT)
            domain_wait(d, i, 0);
}

/* Nothing is left to run: everything is told, and the balances are exact. */
static void check_quiet(struct domain *d) {
    d->busy = false;
    check_left(d);
    if (d->closing || d->finished)
        return;
    for (uint32_t i = 0; i < d->group_count; i++)
        if (d->exact || sim_chance(&d->sim, 300)) /* it settles, and released blocks must also be found unsettled */
            check_line(d, i);
    if (d->exact || sim_chance(&d->sim, 300)) {
        collect(d);
        domain_run_dry(d);
        if (d->orphans == 0)
            check_gauges(d);
    }
    check_manager(d);
    d->busy = false;
}

/* ------------------------------------------------------------------------------------------------------------ steps */

static void clock_step(struct domain *d) {
    struct sim *sim = &d->sim;
    if (d->parked && d->timer_ns != KVBM_NO_DEADLINE && d->timer_ns > sim->now_ns && sim_chance(sim, 400))
        sim->now_ns = d->timer_ns;
    else
        sim->now_ns += sim_between(sim, 1, d->clock_ns_max);
    sim_event(sim, SIM_CLOCK, 0, 0);
}

static void step(struct domain *d) {
    struct sim *sim = &d->sim;
    sim->step++;
    d->waits = 0;
    uint64_t choice = sim_below(sim, 1000);
    if (choice < d->drive_permille && !d->exact)
        domain_drive(d);
    else if (choice < d->drive_permille + d->clock_permille)
        clock_step(d);
    else if (sim_chance(sim, d->other_permille))
        domain_other_step(d);
    else
        domain_client_step(d);
    if (d->exact)
        settle(d);
    check_step(d);
    if (sim->step % d->check_every == 0)
        check_manager(d);
    if (d->busy && domain_reactor_idle(d))
        check_quiet(d);
}

/* -------------------------------------------------------------------------------------------------------- the orderly
 * end */

/* Blocks inside registrations that nobody was told of: registered and released, or still the caller's. */
static void release_orphans(struct domain *d) {
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        struct domain_op *op = &d->ops[i];
        if (!op->used || !op->orphan || op->kind != KVBM_OP_REGISTER)
            continue;
        for (uint32_t k = 0; k < op->count; k++) {
            struct domain_slot *slot = &d->groups[op->group].slots[kvbm_block_slot(op->blocks[k])];
            if (op->lost[k] || slot->state != SLOT_CLAIMED || slot->claimed_by != i || slot->holds != 0)
                continue;
            int rc = kvbm_release_mt(d->manager, &op->blocks[k], 1);
            SIM_CHECK(&d->sim, rc == 0 || rc == -KVBM_ESTALE, "release of an orphan's block: %d", rc);
            slot->state = SLOT_IDLE;
        }
    }
}

/* Everything is released and told, until nothing is in flight but what nobody will be told of. */
static void put_in_order(struct domain *d) {
    for (uint32_t round = 0; round < ORDER_ROUNDS_MAX; round++) {
        d->waits = 0;
        domain_release_all(d);
        domain_run_dry(d);
        collect(d);
        release_orphans(d);
        bool held = false;
        for (uint32_t i = 0; i < d->group_count; i++)
            for (uint32_t n = 0; n < d->groups[i].capacity; n++)
                held |= d->groups[i].slots[n].holds > 0 || d->groups[i].slots[n].state == SLOT_MUTABLE;
        if (!held && domain_inflight(d) == d->orphans)
            return;
        settle(d);
    }
    sim_fail(&d->sim, "%u operations never end", domain_inflight(d));
}

static void check_empty(struct domain *d) {
    struct sim *sim = &d->sim;
    for (uint32_t i = 0; i < DOMAIN_PORTS; i++)
        SIM_CHECK(sim, !d->ports[i].credit_wanted, "port %u still waits for credit, and there is room", i);
    if (d->orphans == 0)
        check_gauges(d);
    kvbm_stats stats = {.size = sizeof stats};
    SIM_CHECK(sim, kvbm_manager_stats_mt(d->manager, &stats) == 0, "statistics");
    SIM_CHECK(sim, stats.operations_in_flight <= d->orphans, "%llu operations are in flight, and all are answered",
              (unsigned long long)stats.operations_in_flight);
    for (uint32_t i = 0; i < d->group_count; i++) {
        kvbm_pool_stats s = {.size = sizeof(s)};
        if (kvbm_pool_stats_mt(d->manager, i, KVBM_TIER_HOST, &s) == 0)
            sim->counts->events[SIM_EVICTED] += s.evicted_count;
    }
    check_manager(d);
}

static void close_begin(struct domain *d) {
    struct sim *sim = &d->sim;
    uint32_t inflight = domain_inflight(d);
    sim_event(sim, SIM_CLOSE, inflight, 0);
    if (inflight != 0)
        sim_event(sim, SIM_CLOSE_BUSY, inflight, 0);
    d->closing = true;
    kvbm__manager_close_begin(d->manager);
    SIM_CHECK(sim, kvbm_manager_is_closed_mt(d->manager), "closed, and says it is not");
}

static void close_finish(struct domain *d) {
    struct sim *sim = &d->sim;
    for (uint32_t round = 0; !kvbm__manager_drained(d->manager); round++) {
        SIM_CHECK(sim, round < DRY_ROUNDS_MAX, "shutdown does not end: %u operations in flight", domain_inflight(d));
        sim->step++;
        if (d->parked && !d->wake_asked && d->timer_ns > sim->now_ns) {
            SIM_CHECK(sim, !kvbm_reactor_has_work(d->reactor), "lost wake during shutdown");
            sim_fail(sim, "shutdown is stuck: nothing is left to run and the manager is not drained");
        }
        domain_drive(d);
    }
    check_manager(d);
    if (d->parked)
        reactor_take(d, SIM_TAKE_SPURIOUS);
    kvbm__manager_finish(d->manager);
    d->finished = true;
}

static void end(struct domain *d) {
    struct sim *sim = &d->sim;
    if (!d->closing && sim_chance(sim, 700)) {
        put_in_order(d);
        check_empty(d);
    }
    if (!d->closing)
        close_begin(d);
    bool early = sim_chance(sim, 500); /* release what is held before, or after, the reactor has stopped */
    if (early)
        domain_release_all(d);
    close_finish(d);
    collect(d);
    for (uint32_t i = 0; i < DOMAIN_OPS; i++)
        SIM_CHECK(sim, !d->ops[i].used || d->ops[i].completed || d->ops[i].orphan,
                  "operation %u of kind %u was accepted and never answered", i, d->ops[i].kind);
    domain_release_all(d);
    release_orphans(d);
    bool ports_last = sim_chance(sim, 500);
    if (ports_last)
        kvbm_manager_release_mt(d->manager);
    for (uint32_t i = 0; i < DOMAIN_PORTS; i++) {
        SIM_CHECK(sim, d->ports[i].inflight == 0, "port %u: %u completions are missing", i, d->ports[i].inflight);
        if (d->ports[i].port != NULL)
            domain_port_close(d, i);
    }
    if (!ports_last)
        kvbm_manager_release_mt(d->manager);
    sim_event(sim, SIM_SHUTDOWN_ENDED, 0, 0);
    sim_check_balance(sim);
}

/* -------------------------------------------------------------------------------------------------------------- run */

static void open_manager(struct domain *d) {
    struct sim *sim = &d->sim;
    kvbm_group_options groups[DOMAIN_GROUPS];
    uint32_t page_size = (uint32_t)sim_between(sim, 1, DOMAIN_PAGE_MAX);
    d->group_count = (uint32_t)sim_between(sim, 1, DOMAIN_GROUPS);
    for (uint32_t i = 0; i < d->group_count; i++)
        geometry_draw(d, &groups[i], &d->groups[i], page_size);
    keys_make(d, page_size);
    kvbm_options options = {
        .size = sizeof options,
        .name = "sim",
        .groups = groups,
        .group_count = d->group_count,
        .flags = d->flags,
        .max_operations = d->max_operations,
        .huge_pages = 1,
        .touch_threads = UINT32_MAX,
        .log_level = sim_chance(sim, 200) ? 1 : 9,
        .log = on_log,
    };
    struct kvbm__drive drive = {
        .os = &sim->os,
        .wake = on_wake,
        .ctx = d,
        .thread_capacity = UINT32_C(1) << sim_between(sim, 2, 5),
        .turn_budget = sim_chance(sim, 300) ? (uint32_t)sim_between(sim, 1, 4) : 0,
    };
    kvbm_failure failure = {.size = sizeof failure};
    if (sim_chance(sim, 60)) { /* memory runs out somewhere on the way */
        sim->map_fail_in = sim_between(sim, 1, 16);
        int rc = kvbm__manager_open_driven(&options, &drive, &d->manager, &failure);
        sim->map_fail_in = 0;
        if (rc == 0) {
            sim_event(sim, SIM_OPEN, d->group_count, 0);
            return;
        }
        SIM_CHECK(sim, rc == -ENOMEM && failure.code == rc, "open without memory: %d: %s", rc, failure.text);
        sim_check_balance(sim);
        sim_event(sim, SIM_OPEN_NOMEM, 0, 0);
    }
    int rc = kvbm__manager_open_driven(&options, &drive, &d->manager, &failure);
    SIM_CHECK(sim, rc == 0, "open: %d: %s", rc, failure.text);
    sim_event(sim, SIM_OPEN, d->group_count, 0);
}

static void run(struct domain *d) {
    struct sim *sim = &d->sim;
    draw(d);
    open_manager(d);
    d->reactor = kvbm__manager_reactor(d->manager);
    for (uint32_t i = 0; i < d->group_count; i++) {
        const struct kvbm_layout *layout = kvbm_manager_layout_mt(d->manager, i, KVBM_TIER_HOST);
        SIM_CHECK(sim, layout != NULL && layout->block_count == d->groups[i].capacity, "layout of group %u", i);
        d->groups[i].plane_bytes = layout->plane_bytes;
    }
    uint64_t steps = sim_between(sim, STEPS_MIN, STEPS_MAX);
    uint64_t close_at = sim_chance(sim, 250) ? sim_between(sim, 1, steps) : UINT64_MAX;
    if (sim->options.steps != 0)
        steps = sim->options.steps;
    for (uint64_t i = 0; i < steps; i++) {
        if (i == close_at)
            close_begin(d);
        step(d);
    }
    end(d);
}

struct sim_result sim_domain_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts) {
    struct domain *d = &world;
    jmp_buf unwind;
    struct sim_result result = {0};
    uint32_t generations[DOMAIN_OPS];
    for (uint32_t i = 0; i < DOMAIN_OPS; i++)
        generations[i] = 0;
    memset(d, 0, offsetof(struct domain, groups));
    memset(d->ports, 0, sizeof d->ports);
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        d->ops[i].used = false;
        d->ops[i].told_id = 0;
        d->ops[i].generation = generations[i];
    }
    d->ops_used = 0;
    d->op_sequence = d->cached_sequence = 0;
    d->batch_sequence = d->orphans = 0;
    sim_begin(&d->sim, seed, 0xd0, options, counts);
    d->sim.wait = on_wait;
    d->sim.unwind = &unwind;
    if (setjmp(unwind) == 0)
        run(d);
    else
        result.failed = true;
    result.hash = d->sim.hash;
    result.steps = d->sim.step;
    memcpy(result.failure, d->sim.failure, sizeof result.failure);
    sim_end(&d->sim);
    return result;
}
