/*
 * sim_client.c - what a client of the simulated manager does besides submitting: releases, retains, tokens, cancels,
 * waits, ports, handles that have gone stale, and arguments that are no good.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/sim/sim_domain.h"

static uint64_t number_of(const struct domain_slot *slot) {
    return kvbm_block_slot(slot->block);
}

static struct domain_group *any_group(struct domain *d) {
    return &d->groups[sim_below(&d->sim, d->group_count)];
}

/* May be released by a client: held, and in no operation. */
static bool releasable(const struct domain_slot *slot) {
    return slot->state == SLOT_MUTABLE || slot->holds > 0;
}

/* ---------------------------------------------------------------------------------------------------------- release */

void domain_unhold(struct domain *d, struct domain_group *g, struct domain_slot *slot) {
    if (slot->holds == 0) {
        SIM_CHECK(&d->sim, slot->state == SLOT_MUTABLE, "the model releases what nobody holds");
        slot->state = SLOT_IDLE;
        slot->key = NO_KEY;
        slot->resident = false;
        return;
    }
    if (--slot->holds > 0)
        return;
    if (!slot->primary)
        slot->resident = false;
    else if (slot->key != NO_KEY)
        g->drops[slot->key]++;
    slot->cached_at = ++d->cached_sequence;
    slot->ran_out = slot->expires_ns != 0 && slot->expires_ns <= d->sim.now_ns;
}

static void release_blocks(struct domain *d, struct domain_group *g, const kvbm_block *blocks, uint32_t count) {
    struct sim *sim = &d->sim;
    /* The last one first, as the manager does: so `cached_at` is the order of eviction. */
    for (uint32_t i = count; i-- > 0;)
        domain_unhold(d, g, &g->slots[kvbm_block_slot(blocks[i])]);
    d->busy = true;
    int rc = kvbm_release_mt(d->manager, blocks, count);
    SIM_CHECK(sim, rc == 0, "release of %u held blocks: %d", count, rc);
    sim_event(sim, d->closing ? SIM_RELEASE_AFTER_CLOSE : SIM_RELEASE, count, kvbm_block_slot(blocks[0]));
}

void domain_release_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    kvbm_block blocks[DOMAIN_SLOTS * 2];
    uint32_t count = 0, limit = (uint32_t)sim_between(sim, 1, d->batch_max);
    uint32_t start = (uint32_t)sim_below(sim, g->capacity);
    for (uint32_t i = 0; i < g->capacity && count < limit; i++) {
        struct domain_slot *slot = &g->slots[(start + i) % g->capacity];
        if (!releasable(slot))
            continue;
        blocks[count++] = slot->block;
        if (slot->holds > 1 && sim_chance(sim, 200)) /* two of its leases in one call */
            blocks[count++] = slot->block;
    }
    if (count != 0)
        release_blocks(d, g, blocks, count);
}

void domain_release_all(struct domain *d) {
    for (uint32_t i = 0; i < d->group_count; i++) {
        struct domain_group *g = &d->groups[i];
        for (uint32_t number = 0; number < g->capacity; number++)
            while (releasable(&g->slots[number]))
                release_blocks(d, g, &g->slots[number].block, 1);
    }
}

static void retain_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    struct domain_slot *slot = &g->slots[sim_below(sim, g->capacity)];
    if (!releasable(slot))
        return;
    int rc = kvbm_block_retain_mt(d->manager, &slot->block, 1);
    if (slot->holds == 0) {
        SIM_CHECK(sim, rc == -KVBM_EMUTABLE, "retain of a mutable block: %d", rc);
        return;
    }
    SIM_CHECK(sim, rc == 0, "retain of a held block: %d", rc);
    sim_event(sim, SIM_RETAIN, number_of(slot), 0);
    slot->holds++;
}

/* ----------------------------------------------------------------------------------------------------------- tokens */

static void tokens_check(struct domain *d, struct domain_group *g, const struct domain_slot *slot) {
    uint32_t tokens[DOMAIN_PAGE_MAX + 1];
    int count = kvbm_block_tokens(d->manager, slot->block, tokens, g->page_size);
    SIM_CHECK(&d->sim, count == slot->token_count, "a block has %d tokens, not %u", count, slot->token_count);
    SIM_CHECK(&d->sim, memcmp(tokens, d->keys[slot->node].tokens, slot->token_count * sizeof tokens[0]) == 0,
              "a block has other tokens than were set");
    int state = kvbm_block_state_mt(d->manager, slot->block);
    SIM_CHECK(&d->sim, state == (slot->token_count == g->page_size ? KVBM_BLOCK_COMPLETE : KVBM_BLOCK_PARTIAL),
              "a block with %u tokens is in state %d", slot->token_count, state);
}

static void append_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    uint32_t start = (uint32_t)sim_below(sim, g->capacity);
    struct domain_slot *slot = NULL;
    for (uint32_t i = 0; i < g->capacity && slot == NULL; i++)
        if (g->slots[(start + i) % g->capacity].state == SLOT_MUTABLE)
            slot = &g->slots[(start + i) % g->capacity];
    if (slot == NULL)
        return;
    const uint32_t *tokens = d->keys[slot->node].tokens;
    uint32_t left = g->page_size - slot->token_count;
    if (!d->tracks) {
        int rc = kvbm_block_append_tokens(d->manager, slot->block, tokens, 1);
        SIM_CHECK(sim, rc == -ENOTSUP, "tokens where none are kept: %d", rc);
        return;
    }
    if (sim_chance(sim, 100)) {
        uint32_t many[DOMAIN_PAGE_MAX + 2] = {0};
        int rc = kvbm_block_append_tokens(d->manager, slot->block, many, left + 1);
        SIM_CHECK(sim, rc == -EOVERFLOW, "tokens past the page: %d", rc);
        sim_event(sim, SIM_TOKENS_OVERFLOW, number_of(slot), 0);
    } else if (sim_chance(sim, 100)) {
        uint32_t count = (uint32_t)sim_below(sim, g->page_size + 1);
        int rc = kvbm_block_set_tokens(d->manager, slot->block, tokens, count);
        SIM_CHECK(sim, rc == 0, "set tokens: %d", rc);
        slot->token_count = (uint8_t)count;
    } else {
        uint32_t count = sim_chance(sim, 700) ? left : (uint32_t)sim_below(sim, left + 1);
        int rc = kvbm_block_append_tokens(d->manager, slot->block, tokens + slot->token_count, count);
        SIM_CHECK(sim, rc == 0, "append tokens: %d", rc);
        slot->token_count = (uint8_t)(slot->token_count + count);
        sim_event(sim, SIM_TOKENS, number_of(slot), slot->token_count);
    }
    tokens_check(d, g, slot);
}

/* Most clients fill every block that they have before they go on. */
static void append_all(struct domain *d) {
    struct domain_group *g = any_group(d);
    for (uint32_t i = 0; d->tracks && i < g->capacity; i++) {
        struct domain_slot *slot = &g->slots[i];
        if (slot->state != SLOT_MUTABLE || slot->token_count == g->page_size)
            continue;
        int rc = kvbm_block_append_tokens(d->manager, slot->block, d->keys[slot->node].tokens + slot->token_count,
                                          g->page_size - slot->token_count);
        SIM_CHECK(&d->sim, rc == 0, "append tokens: %d", rc);
        slot->token_count = (uint8_t)g->page_size;
        sim_event(&d->sim, SIM_TOKENS, i, slot->token_count);
    }
}

/* ----------------------------------------------------------------------------------------------------- cancel, wait */

static struct domain_op *any_op(struct domain *d) {
    uint32_t start = (uint32_t)sim_below(&d->sim, DOMAIN_OPS);
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        struct domain_op *op = &d->ops[(start + i) % DOMAIN_OPS];
        if (op->used && op->accepted && !op->completed && !op->orphan)
            return op;
    }
    return NULL;
}

static void cancel_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_op *op = any_op(d);
    d->busy = true;
    if (op != NULL && !sim_chance(sim, 100)) {
        op->cancelled = true;
        sim_event(sim, SIM_CANCEL, op->kind, (uint64_t)(op - d->ops));
        int rc = kvbm_cancel_mt(d->manager, op->id);
        SIM_CHECK(sim, rc == 0, "cancel: %d", rc);
        return;
    }
    op = &d->ops[sim_below(sim, DOMAIN_OPS)];
    if (!op->used && op->told_id != 0) { /* ended already */
        int rc = kvbm_cancel_mt(d->manager, op->told_id);
        SIM_CHECK(sim, rc == 0, "cancel of an operation that has ended: %d", rc);
    }
    SIM_CHECK(sim, kvbm_cancel_mt(d->manager, 0) == -EINVAL, "cancel of nothing");
    SIM_CHECK(sim, kvbm_cancel_mt(d->manager, UINT64_MAX) == -EINVAL, "cancel of what never was");
}

bool domain_wait(struct domain *d, uint32_t index, uint64_t timeout_ns) {
    struct sim *sim = &d->sim;
    struct domain_op *op = &d->ops[index];
    kvbm_completion completion;
    op->waited_on = true;
    int rc = kvbm_wait_mt(d->manager, op->id, timeout_ns, &completion);
    op->waited_on = false;
    if (rc == -ETIMEDOUT || rc == -EINTR) {
        sim_event(sim, rc == -EINTR ? SIM_WAIT_INTERRUPTED : SIM_WAIT_TIMED_OUT, index, 0);
        return false;
    }
    SIM_CHECK(sim, rc == 0, "wait: %d", rc);
    SIM_CHECK(sim, completion.op == op->id, "wait gave another's completion");
    domain_complete(d, &completion, SIM_DONE_WAITED);
    SIM_CHECK(sim, kvbm_wait_mt(d->manager, completion.op, 0, &completion) == -EINVAL,
              "waited twice for one operation");
    return true;
}

static void wait_some(struct domain *d) {
    struct sim *sim = &d->sim;
    kvbm_completion completion;
    if (kvbm_reactor_current_mt() == d->reactor) { /* in a callback of this thread's turn */
        const struct domain_op *any = any_op(d);
        if (any != NULL && any->delivery == DELIVER_WAIT) {
            int rc = kvbm_wait_mt(d->manager, any->id, 0, &completion);
            SIM_CHECK(sim, rc == -EDEADLK, "a wait inside a callback: %d", rc);
        }
        return;
    }
    uint32_t start = (uint32_t)sim_below(sim, DOMAIN_OPS);
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        uint32_t index = (start + i) % DOMAIN_OPS;
        const struct domain_op *op = &d->ops[index];
        if (!op->used || !op->accepted || op->completed || op->delivery != DELIVER_WAIT || op->waited_on)
            continue;
        /* Where a callback waits below, nothing can move: only ask. */
        domain_wait(d, index,
                    d->callback_depth != 0 || sim_chance(sim, 500) ? 0 : sim_between(sim, 1, d->clock_ns_max));
        return;
    }
}

/* ------------------------------------------------------------------------------------------------------------ ports */

uint32_t domain_drain(struct domain *d, uint32_t index, uint32_t count) {
    struct sim *sim = &d->sim;
    struct domain_port *port = &d->ports[index];
    kvbm_completion completions[8];
    if (count > 8)
        count = 8;
    int got = kvbm_port_drain(port->port, completions, count);
    SIM_CHECK(sim, got >= 0 && (uint32_t)got <= count, "drain of %u gave %d", count, got);
    sim_event(sim, SIM_PORT_DRAIN, index, (uint64_t)got);
    for (int i = 0; i < got; i++) {
        if (completions[i].kind == KVBM_OP_CREDIT) {
            SIM_CHECK(sim, port->credit_wanted && completions[i].user == port, "a credit that nobody wanted");
            port->credit_wanted = false;
            sim_event(sim, SIM_CREDIT_CAME, index, (uint64_t)(uint32_t)completions[i].status);
            continue;
        }
        uintptr_t user = (uintptr_t)completions[i].user;
        SIM_CHECK(sim, (user & 255) < DOMAIN_OPS && d->ops[user & 255].port == (int)index,
                  "a completion came to another's port");
        domain_complete(d, &completions[i], SIM_DONE_PORT);
    }
    return (uint32_t)got;
}

void domain_port_close(struct domain *d, uint32_t index) {
    struct sim *sim = &d->sim;
    struct domain_port *port = &d->ports[index];
    sim_event(sim, SIM_PORT_CLOSE, index, port->inflight);
    if (port->inflight != 0)
        sim_event(sim, SIM_PORT_CLOSE_BUSY, index, port->inflight);
    d->busy = true;
    /* Those with a callback will be told by it, some from inside the call. */
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        struct domain_op *op = &d->ops[i];
        if (!op->used || op->completed || op->port != (int)index)
            continue;
        op->port = -1;
        if (op->delivery == DELIVER_PORT) {
            op->orphan = true;
            d->orphans++;
            sim_event(sim, SIM_PORT_DROPPED, index, i);
        }
    }
    kvbm_port *closed = port->port;
    *port = (struct domain_port){0};
    kvbm_port_close(closed);
}

static void port_some(struct domain *d) {
    struct sim *sim = &d->sim;
    uint32_t index = (uint32_t)sim_below(sim, DOMAIN_PORTS);
    struct domain_port *port = &d->ports[index];
    if (port->port == NULL) {
        uint32_t capacity = (uint32_t)sim_between(sim, 1, 6);
        int rc = kvbm__port_open(&sim->os, capacity + KVBM_PORT_RESERVE, &port->port); /* as kvbm_port_open does */
        SIM_CHECK(sim, rc == 0, "port: %d", rc);
        port->capacity = capacity;
        sim_event(sim, SIM_PORT_OPEN, index, capacity);
    } else if (sim_chance(sim, 60) && d->orphans < 4 && d->callback_depth == 0) {
        domain_port_close(d, index);
    }
}

static void credit_some(struct domain *d) {
    struct sim *sim = &d->sim;
    uint32_t index = (uint32_t)sim_below(sim, DOMAIN_PORTS);
    struct domain_port *port = &d->ports[index];
    if (port->port == NULL || d->closing)
        return;
    int rc = kvbm_port_want_credit_mt(port->port, d->manager, port);
    SIM_CHECK(sim, rc == (port->credit_wanted ? -EALREADY : 0), "want credit: %d", rc);
    if (rc == 0) {
        port->credit_wanted = true;
        d->busy = true;
        sim_event(sim, SIM_CREDIT_WANTED, index, 0);
    }
}

/* --------------------------------------------------------------------------------------------- what must be refused */

/* True if some result is under way that could hold a lease which the model does not know of. */
static bool leases_under_way(const struct domain *d) {
    if (d->orphans != 0)
        return true;
    for (uint32_t i = 0; i < DOMAIN_OPS; i++)
        if (d->ops[i].used && !d->ops[i].completed &&
            (d->ops[i].kind == KVBM_OP_MATCH || d->ops[i].kind == KVBM_OP_REGISTER))
            return true;
    return false;
}

static void use_stale(struct domain *d, kvbm_block block, bool forged) {
    struct sim *sim = &d->sim;
    kvbm_key key;
    void *address = NULL;
    kvbm_block out;
    kvbm_register_args args = {
        .size = sizeof args, .count = 1, .blocks = &block, .keys = &d->keys[0].key, .out_blocks = &out};
    kvbm_submit submit = {.size = sizeof submit};
    kvbm_op id;
    int registering = d->closing ? -KVBM_ESTALE : kvbm_register_mt(d->manager, &args, &submit, &id);
    int rcs[] = {
        kvbm_release_mt(d->manager, &block, 1),
        kvbm_block_retain_mt(d->manager, &block, 1),
        kvbm_block_state_mt(d->manager, block),
        kvbm_block_key_mt(d->manager, block, &key),
        d->has_bytes ? kvbm_block_data_mt(d->manager, block, 0, 0, &address) : -KVBM_ESTALE,
        d->tracks ? kvbm_block_append_tokens(d->manager, block, d->keys[0].tokens, 1) : -KVBM_ESTALE,
        registering == -EAGAIN ? -KVBM_ESTALE : registering,
    };
    for (uint32_t i = 0; i < sizeof rcs / sizeof rcs[0]; i++)
        SIM_CHECK(sim, rcs[i] == -KVBM_ESTALE || (forged && rcs[i] == -KVBM_EWRONGMANAGER),
                  "a stale handle, use %u: %d", i, rcs[i]);
    sim_event(sim, SIM_STALE_USE, kvbm_block_slot(block), forged);
}

static void stale_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    struct domain_slot *slot = &g->slots[sim_below(sim, g->capacity)];
    if (slot->block.bits != 0) {
        /* The slot as it was long ago, and places where no slot is. */
        use_stale(d, (kvbm_block){slot->block.bits ^ UINT64_C(1) << sim_between(sim, 44, 62)}, true);
        use_stale(d, (kvbm_block){slot->block.bits ^ UINT64_C(1) << sim_between(sim, 7, 31)}, true);
        if (!releasable(slot) && slot->state == SLOT_IDLE && !leases_under_way(d)) {
            sim_event(sim, SIM_RELEASE_STALE, number_of(slot), 0);
            use_stale(d, slot->block, false);
        } else if (slot->state == SLOT_CLAIMED && slot->holds == 0 && !leases_under_way(d)) {
            sim_fail(sim, "the model has a claim without an operation");
        }
    }
    use_stale(d, (kvbm_block){0}, true);
}

static void bad_register(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    struct domain_slot *slot = &g->slots[sim_below(sim, g->capacity)];
    if (!releasable(slot) || slot->state == SLOT_CLAIMED)
        return;
    kvbm_block blocks[2] = {slot->block, slot->block}, out[2];
    kvbm_key keys[2] = {d->keys[0].key, d->keys[1].key};
    kvbm_register_args args = {.size = sizeof args, .count = 2, .blocks = blocks, .keys = keys, .out_blocks = out};
    kvbm_submit submit = {.size = sizeof submit};
    kvbm_op id;
    bool computed = d->tracks && slot->token_count != g->page_size && sim_chance(sim, 500);
    if (computed)
        args.keys = NULL;
    int rc = kvbm_register_mt(d->manager, &args, &submit, &id);
    int want = d->closing        ? -KVBM_ECLOSED
               : slot->holds > 0 ? -KVBM_EIMMUTABLE
               : computed        ? -KVBM_EINCOMPLETE
                                 : -KVBM_EDUPLICATE;
    SIM_CHECK(sim, rc == want || rc == -EAGAIN, "register of one block twice: %d, not %d", rc, want);
    sim_event(sim, SIM_REFUSED_BLOCK, (uint64_t)-rc, 0);
    if (slot->holds == 0) { /* and it is still the caller's */
        int state = kvbm_block_state_mt(d->manager, slot->block);
        SIM_CHECK(sim, state == KVBM_BLOCK_PARTIAL || state == KVBM_BLOCK_COMPLETE, "after a refusal: state %d", state);
    }
}

static void bad_some(struct domain *d) {
    struct sim *sim = &d->sim;
    kvbm_block out[2];
    kvbm_allocate_args good = {.size = sizeof good, .tier = KVBM_TIER_HOST, .count = 1, .blocks = out};
    kvbm_submit submit = {.size = sizeof submit};
    kvbm_allocate_args args = good;
    switch (sim_below(sim, 10)) {
    case 0:
        args.group = (uint32_t)sim_between(sim, d->group_count, 20);
        break;
    case 1:
        args.tier = (int)sim_below(sim, 9) - 3;
        if (args.tier == KVBM_TIER_HOST)
            args.tier = INT32_MIN;
        break;
    case 2:
        args.count = sim_chance(sim, 500) ? 0 : sim_between(sim, KVBM_BATCH_COUNT_MAX + 1, UINT64_MAX - 1);
        break;
    case 3:
        args.blocks = NULL;
        break;
    case 4:
        args.size = sim_below(sim, 8);
        break;
    case 5:
        submit.flags = KVBM_SUBMIT_INLINE; /* and no completion */
        break;
    case 6:
        submit.flags = 1u << sim_between(sim, 2, 31);
        break;
    case 7:
        submit.size = sim_below(sim, 8);
        break;
    default:
        bad_register(d);
        return;
    }
    kvbm_op id;
    int rc = kvbm_allocate_mt(d->manager, &args, &submit, &id);
    SIM_CHECK(sim, rc == -EINVAL || (d->closing && rc == -KVBM_ECLOSED), "bad arguments: %d", rc);
    sim_event(sim, SIM_REFUSED_ARGUMENT, (uint64_t)-rc, 0);
}

/* ------------------------------------------------------------------------------------------------------------ looks */

static void look_some(struct domain *d) {
    struct sim *sim = &d->sim;
    struct domain_group *g = any_group(d);
    uint32_t start = (uint32_t)sim_below(sim, g->capacity);
    for (uint32_t i = 0; i < 4 && i < g->capacity; i++) {
        struct domain_slot *slot = &g->slots[(start + i) % g->capacity];
        if (!releasable(slot) || slot->state == SLOT_CLAIMED)
            continue;
        domain_verify(d, g, slot, "look");
        kvbm_key key;
        int state = kvbm_block_state_mt(d->manager, slot->block);
        int rc = kvbm_block_key_mt(d->manager, slot->block, &key);
        if (slot->holds == 0) {
            SIM_CHECK(sim, rc == -KVBM_EMUTABLE, "key of a mutable block: %d", rc);
            if (d->tracks)
                tokens_check(d, g, slot);
            continue;
        }
        SIM_CHECK(sim, state == KVBM_BLOCK_REGISTERED && rc == 0, "a registered block: state %d, key %d", state, rc);
        SIM_CHECK(sim, slot->key == NO_KEY || memcmp(&key, &d->keys[slot->key].key, sizeof key) == 0,
                  "a registered block has another key");
    }
}

void domain_act(struct domain *d, enum domain_action action) {
    static void (*const acts[ACT_COUNT])(struct domain *) = {
        [ACT_ALLOCATE] = domain_allocate,
        [ACT_REGISTER] = domain_register,
        [ACT_MATCH] = domain_match,
        [ACT_QUERY] = domain_query,
        [ACT_RELEASE] = domain_release_some,
        [ACT_RETAIN] = retain_some,
        [ACT_TOKENS] = append_some,
        [ACT_CANCEL] = cancel_some,
        [ACT_WAIT] = wait_some,
        [ACT_PORT] = port_some,
        [ACT_CREDIT] = credit_some,
        [ACT_STALE] = stale_some,
        [ACT_BAD] = bad_some,
        [ACT_LOOK] = look_some,
    };
    if (action == ACT_DRAIN) {
        uint32_t port = (uint32_t)sim_below(&d->sim, DOMAIN_PORTS);
        if (d->ports[port].port != NULL && (d->callback_depth == 0 || !d->sim.on_other))
            domain_drain(d, port, (uint32_t)sim_between(&d->sim, 1, 8));
        return;
    }
    if (action == ACT_REGISTER && d->tracks && sim_chance(&d->sim, 700))
        append_all(d);
    acts[action](d);
}

void domain_client_step(struct domain *d) {
    uint64_t at = sim_below(&d->sim, d->weight_sum);
    for (int action = 0; action < ACT_COUNT; action++) {
        if (at < d->weights[action]) {
            domain_act(d, (enum domain_action)action);
            return;
        }
        at -= d->weights[action];
    }
}
