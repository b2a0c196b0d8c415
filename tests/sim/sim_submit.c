/*
 * sim_submit.c - clients of the simulated manager submit operations; what each completion must say.
 *
 * Arguments live in the operation's record, untouched until it has completed (kvbm.h, Ownership).
 */
#include <errno.h>
#include <string.h>

#include "tests/sim/sim_domain.h"

/* ---------------------------------------------------------------------------------------------------------- content */

static uint64_t plane_stamp(uint64_t stamp, uint32_t plane) {
    return sim_mix(stamp + plane);
}

void domain_write(struct domain *d, struct domain_group *g, struct domain_slot *slot, uint64_t stamp) {
    slot->stamp = stamp;
    for (uint32_t plane = 0; plane < g->planes; plane++) {
        void *address = NULL;
        int rc = kvbm_block_data_mt(d->manager, slot->block, plane / g->outers, plane % g->outers, &address);
        if (!d->has_bytes) {
            SIM_CHECK(&d->sim, rc == -KVBM_ENOBYTES, "data of a block without bytes: %d", rc);
            return;
        }
        SIM_CHECK(&d->sim, rc == 0, "data of a held block: %d", rc);
        uint64_t value = plane_stamp(stamp, plane);
        memcpy(address, &value, sizeof value);
        memcpy((char *)address + g->plane_bytes - sizeof value, &value, sizeof value);
    }
}

void domain_verify(struct domain *d, struct domain_group *g, struct domain_slot *slot, const char *where) {
    for (uint32_t plane = 0; d->has_bytes && plane < g->planes; plane++) {
        void *address = NULL;
        int rc = kvbm_block_data_mt(d->manager, slot->block, plane / g->outers, plane % g->outers, &address);
        SIM_CHECK(&d->sim, rc == 0, "%s: data of a held block: %d", where, rc);
        uint64_t value = plane_stamp(slot->stamp, plane);
        SIM_CHECK(&d->sim,
                  memcmp(address, &value, sizeof value) == 0 &&
                      memcmp((char *)address + g->plane_bytes - sizeof value, &value, sizeof value) == 0,
                  "%s: wrong bytes in slot %llu, plane %u", where, (unsigned long long)kvbm_block_slot(slot->block),
                  plane);
    }
}

bool domain_key_held(const struct domain_group *g, uint16_t key) {
    uint16_t number = key == NO_KEY ? NO_SLOT : g->primary[key];
    return number != NO_SLOT && g->slots[number].holds > 0 && g->slots[number].key == key && g->slots[number].primary;
}

static struct domain_slot *slot_of(struct domain *d, const struct domain_op *op, kvbm_block block) {
    SIM_CHECK(&d->sim, kvbm_block_group(block) == op->group && kvbm_block_tier(block) == KVBM_TIER_HOST,
              "a handle of group %u, tier %d for an operation on group %u", kvbm_block_group(block),
              kvbm_block_tier(block), op->group);
    uint64_t number = kvbm_block_slot(block);
    SIM_CHECK(&d->sim, number < d->groups[op->group].capacity, "slot %llu is past the capacity",
              (unsigned long long)number);
    return &d->groups[op->group].slots[number];
}

/* ------------------------------------------------------------------------------------------------------ submission */

uint32_t domain_inflight(const struct domain *d) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < DOMAIN_OPS; i++)
        count += d->ops[i].used && !d->ops[i].completed;
    return count;
}

static struct domain_op *op_new(struct domain *d, int kind) {
    for (uint32_t tries = 0; tries < DOMAIN_OPS; tries++) {
        struct domain_op *op = &d->ops[d->ops_used++ % DOMAIN_OPS];
        if (op->used)
            continue;
        uint32_t generation = op->generation + 1;
        memset(op, 0, offsetof(struct domain_op, blocks));
        op->generation = generation & 0xffffff;
        op->used = op->submitting = true;
        op->kind = (uint8_t)kind;
        op->port = -1;
        op->group = (uint8_t)sim_below(&d->sim, d->group_count);
        op->sequence = ++d->op_sequence;
        op->from = (uint8_t)(d->sim.on_other ? FROM_OTHER : d->callback_depth != 0 ? FROM_CALLBACK : FROM_MAIN);
        return op;
    }
    return NULL;
}

static void on_done(void *user, const kvbm_completion *completion);

static struct domain *current; /* for callbacks; one run at a time */

static void submit_fill(struct domain *d, struct domain_op *op, kvbm_submit *submit) {
    struct sim *sim = &d->sim;
    current = d;
    *submit = (kvbm_submit){.size = sizeof *submit};
    submit->user = (void *)((uintptr_t)op->generation << 8 | (uintptr_t)(op - d->ops));
    uint64_t choice = d->exact ? 0 : sim_below(sim, 10);
    uint32_t port = (uint32_t)sim_below(sim, DOMAIN_PORTS);
    if (choice >= 4 && choice < 8 && d->ports[port].port != NULL) {
        op->delivery = choice < 7 ? DELIVER_PORT : DELIVER_PORT_OR_CALLBACK;
        op->port = (int8_t)port;
        submit->port = d->ports[port].port;
        d->ports[port].inflight++;
    } else {
        op->delivery = choice >= 8 ? DELIVER_WAIT : DELIVER_CALLBACK;
    }
    if (op->delivery == DELIVER_CALLBACK || op->delivery == DELIVER_PORT_OR_CALLBACK)
        submit->done = on_done;
    /* In an exact run results must come in the order in which they were made: one that is collected by the submitter
     * would be told after what it let somebody else have. */
    if (d->exact ? domain_inflight(d) == 1 : sim_chance(sim, d->inline_permille)) {
        op->flags |= KVBM_SUBMIT_INLINE;
        submit->completion = &op->inline_completion;
    }
    if (op->kind == KVBM_OP_ALLOCATE && sim_chance(sim, d->wait_permille))
        op->flags |= KVBM_SUBMIT_WAIT;
    if (sim_chance(sim, d->timeout_permille)) {
        submit->timeout_ns = sim_between(sim, 1, d->clock_ns_max * 4);
        op->deadline_ns = sim->now_ns + submit->timeout_ns;
    }
    submit->flags = op->flags;
}

static void op_free(struct domain_op *op) {
    op->used = false;
}

static void claims_return(struct domain *d, struct domain_op *op) {
    struct domain_group *g = &d->groups[op->group];
    for (uint32_t i = 0; i < op->count; i++) {
        struct domain_slot *slot = &g->slots[kvbm_block_slot(op->blocks[i])];
        SIM_CHECK(&d->sim, !op->lost[i] && slot->state == SLOT_CLAIMED && &d->ops[slot->claimed_by] == op,
                  "the model lost a claim on slot %llu", (unsigned long long)kvbm_block_slot(op->blocks[i]));
        SIM_CHECK(&d->sim, slot->holds == 0, "a registration that failed was matched");
        slot->state = SLOT_MUTABLE;
        if (op->key_ids[i] != NO_KEY)
            g->attempts[op->key_ids[i]]--;
    }
}

/* Why -EAGAIN may be: the port is full, so is the pool of operations, or messages may stand in the lane. */
static void check_again(struct domain *d, const struct domain_op *op) {
    const struct domain_port *port = op->port >= 0 ? &d->ports[op->port] : NULL;
    bool port_full = port != NULL && port->inflight + port->credit_wanted > port->capacity;
    bool pool_full = domain_inflight(d) + d->orphans >= d->max_operations;
    bool lane_full = !d->parked || d->callback_depth != 0 || d->sim.on_other || d->wake_asked;
    SIM_CHECK(&d->sim, port_full || pool_full || lane_full,
              "-EAGAIN with room everywhere: %u operations of %u in flight", domain_inflight(d), d->max_operations);
}

static void submitted(struct domain *d, struct domain_op *op, int rc, kvbm_op id) {
    struct sim *sim = &d->sim;
    static const uint32_t events[] = {
        [KVBM_OP_ALLOCATE] = SIM_ALLOCATE,
        [KVBM_OP_REGISTER] = SIM_REGISTER,
        [KVBM_OP_MATCH] = SIM_MATCH,
        [KVBM_OP_QUERY] = SIM_QUERY,
    };
    d->busy = true;
    op->submitting = false;
    if (rc == 0) {
        SIM_CHECK(sim, id != 0, "accepted without an id");
        sim_event(sim, events[op->kind], (uint64_t)(op - d->ops), op->count);
        if (op->completed) {
            sim_event(sim, SIM_DONE_IN_SUBMIT, (uint64_t)(op - d->ops), 0);
            SIM_CHECK(sim, op->told_id == id, "the completion's id is not the one that submit returned");
            op_free(op);
            return;
        }
        op->accepted = true;
        op->id = id;
        return;
    }
    SIM_CHECK(sim, !op->completed, "submit returned %d after the completion came", rc);
    if (rc == 1) {
        SIM_CHECK(sim, (op->flags & KVBM_SUBMIT_INLINE) != 0, "done inline without being asked");
        sim_event(sim, events[op->kind], (uint64_t)(op - d->ops), op->count);
        sim_event(sim, SIM_DONE_INLINE, (uint64_t)(op - d->ops), 0);
        domain_complete(d, &op->inline_completion, SIM_DONE_INLINE);
        return;
    }
    if (op->kind == KVBM_OP_REGISTER)
        claims_return(d, op);
    if (rc == -EAGAIN) {
        check_again(d, op);
        sim_event(sim, SIM_REFUSED_AGAIN, op->kind, 0);
    } else {
        SIM_CHECK(sim, rc == -KVBM_ECLOSED && d->closing, "a sound submit of kind %u was refused: %d", op->kind, rc);
        sim_event(sim, SIM_REFUSED_CLOSED, op->kind, 0);
    }
    if (op->port >= 0)
        d->ports[op->port].inflight--;
    op_free(op);
}

static void keys_note(struct domain *d, struct domain_op *op, bool attempt) {
    struct domain_group *g = &d->groups[op->group];
    for (uint32_t i = 0; i < op->count; i++) {
        uint16_t key = op->key_ids[i];
        op->lost[i] = false;
        op->must_drops[i] = domain_key_held(g, key) ? g->drops[key] : UINT32_MAX;
        if (attempt && key != NO_KEY)
            g->attempts[key]++;
    }
}

void domain_allocate(struct domain *d) {
    struct domain_op *op = op_new(d, KVBM_OP_ALLOCATE);
    if (op == NULL)
        return;
    kvbm_submit submit;
    kvbm_op id = 0;
    submit_fill(d, op, &submit);
    op->count = (uint16_t)sim_between(&d->sim, 1, d->batch_max);
    if (sim_chance(&d->sim, 20)) /* now and then more than there are */
        op->count = (uint16_t)sim_between(&d->sim, 1, DOMAIN_BATCH);
    kvbm_allocate_args args = {
        .size = sizeof args,
        .group = op->group,
        .tier = KVBM_TIER_HOST,
        .count = op->count,
        .blocks = op->out_blocks,
    };
    int rc = kvbm_allocate_mt(d->manager, &args, &submit, &id);
    submitted(d, op, rc, id);
}

/* Keys of a path of the tree, the root's first; returns how many. */
static uint16_t path_keys(struct domain *d, struct domain_op *op) {
    uint16_t node = (uint16_t)sim_below(&d->sim, d->node_count);
    for (int tries = 0; tries < 4 && d->groups[op->group].attempts[node] == 0;
         tries++) /* rather one that may be there */
        node = (uint16_t)sim_below(&d->sim, d->node_count);
    if (d->key_count > d->node_count && sim_chance(&d->sim, 150)) { /* an anonymous one */
        op->key_ids[0] = (uint16_t)sim_between(&d->sim, d->node_count, d->key_count - 1u);
        op->keys[0] = d->keys[op->key_ids[0]].key;
        return 1;
    }
    uint16_t count = (uint16_t)(d->keys[node].depth + 1);
    for (uint16_t i = count; i-- > 0; node = d->keys[node].parent) {
        op->key_ids[i] = node;
        op->keys[i] = d->keys[node].key;
    }
    if (sim_chance(&d->sim, 100) && count < DOMAIN_BATCH) { /* and one that never was */
        op->key_ids[count] = NO_KEY;
        for (int i = 0; i < 16; i++)
            op->keys[count].bytes[i] = (uint8_t)sim_random(&d->sim);
        count++;
    }
    return sim_chance(&d->sim, 30) ? 0 : count;
}

void domain_match(struct domain *d) {
    struct domain_op *op = op_new(d, KVBM_OP_MATCH);
    if (op == NULL)
        return;
    kvbm_submit submit;
    kvbm_op id = 0;
    submit_fill(d, op, &submit);
    op->count = path_keys(d, op);
    keys_note(d, op, false);
    kvbm_match_args args = {
        .size = sizeof args,
        .group = op->group,
        .tiers = sim_chance(&d->sim, 500) ? 0 : KVBM_TIER_BIT(KVBM_TIER_HOST),
        .count = op->count,
        .keys = op->keys,
        .blocks = op->out_blocks,
    };
    int rc = kvbm_match_mt(d->manager, &args, &submit, &id);
    submitted(d, op, rc, id);
}

void domain_query(struct domain *d) {
    struct domain_op *op = op_new(d, KVBM_OP_QUERY);
    if (op == NULL)
        return;
    kvbm_submit submit;
    kvbm_op id = 0;
    submit_fill(d, op, &submit);
    op->count = path_keys(d, op);
    keys_note(d, op, false);
    kvbm_query_args args = {
        .size = sizeof args,
        .group = op->group,
        .count = op->count,
        .keys = op->keys,
        .tiers = op->tiers,
    };
    int rc = kvbm_query_mt(d->manager, &args, &submit, &id);
    submitted(d, op, rc, id);
}

/* ---- register */

static void take_block(struct domain_op *op, struct domain_slot *slot, uint16_t key) {
    op->blocks[op->count] = slot->block;
    op->key_ids[op->count] = key;
    op->count++;
}

/* Any mutable blocks, each under some key. */
static void choose_loose(struct domain *d, struct domain_op *op, uint32_t limit) {
    struct domain_group *g = &d->groups[op->group];
    uint32_t start = (uint32_t)sim_below(&d->sim, g->capacity);
    for (uint32_t i = 0; i < g->capacity && op->count < limit; i++) {
        struct domain_slot *slot = &g->slots[(start + i) % g->capacity];
        if (slot->state != SLOT_MUTABLE)
            continue;
        bool other = sim_chance(&d->sim, d->duplicate_permille);
        take_block(op, slot, other ? (uint16_t)sim_below(&d->sim, d->node_count) : slot->node);
    }
}

/* A chain: complete blocks of one batch whose keys follow each other. */
static void choose_chain(struct domain *d, struct domain_op *op, uint32_t limit) {
    struct domain_group *g = &d->groups[op->group];
    uint32_t start = (uint32_t)sim_below(&d->sim, g->capacity);
    struct domain_slot *last = NULL;
    for (uint32_t round = 0; round < limit; round++) {
        struct domain_slot *next = NULL;
        for (uint32_t i = 0; i < g->capacity && next == NULL; i++) {
            struct domain_slot *slot = &g->slots[(start + i) % g->capacity];
            if (slot->state != SLOT_MUTABLE || slot->token_count != g->page_size)
                continue;
            if (last == NULL || (slot->batch == last->batch && slot->batch_at == last->batch_at + 1 &&
                                 d->keys[slot->node].parent == last->node))
                next = slot;
        }
        if (next == NULL)
            return;
        take_block(op, next, next->node);
        last = next;
    }
}

static void register_fill(struct domain *d, struct domain_op *op, kvbm_register_args *args, uint8_t *salt) {
    struct domain_group *g = &d->groups[op->group];
    uint32_t limit = (uint32_t)sim_between(&d->sim, 1, d->batch_max);
    bool anonymous = sim_chance(&d->sim, d->anonymous_permille);
    op->computed = !anonymous && d->tracks && sim_chance(&d->sim, 500);
    if (op->computed)
        choose_chain(d, op, limit);
    else
        choose_loose(d, op, limit);
    for (uint32_t i = 0; i < op->count; i++) {
        struct domain_slot *slot = &g->slots[kvbm_block_slot(op->blocks[i])];
        if (anonymous) {
            op->key_ids[i] = NO_KEY;
        } else {
            op->keys[i] = d->keys[op->key_ids[i]].key;
            domain_write(d, g, slot, d->keys[op->key_ids[i]].stamp);
        }
        slot->state = SLOT_CLAIMED;
        slot->claimed_by = (uint16_t)(op - d->ops);
    }
    if (op->count == 0)
        return;
    if (sim_chance(&d->sim, 200))
        op->args_flags |= KVBM_REGISTER_KEEP_DUPLICATES;
    if (anonymous)
        op->args_flags |= KVBM_REGISTER_ANONYMOUS;
    if (sim_chance(&d->sim, 300)) {
        op->priority = (uint8_t)sim_between(&d->sim, 1, KVBM_PRIORITY_MAX);
        op->priority_ttl_ns = sim_chance(&d->sim, 500) ? sim_between(&d->sim, 1, d->clock_ns_max * 20) : 0;
    }
    uint16_t parent = anonymous ? NO_KEY : d->keys[op->key_ids[0]].parent;
    if (parent != NO_KEY) {
        op->parent = d->keys[parent].key;
        op->has_parent = true;
    } else if (op->computed && op->key_ids[0] % 3 != 0) { /* as in domain_keys_make */
        *salt = (uint8_t)(op->key_ids[0] % 3);
        args->salt = salt;
        args->salt_bytes = 1;
    }
    args->count = op->count;
    args->blocks = op->blocks;
    args->keys = anonymous || op->computed ? NULL : op->keys;
    args->parent = op->has_parent ? &op->parent : NULL;
    args->flags = op->args_flags;
    args->priority = op->priority;
    args->priority_ttl_ns = op->priority_ttl_ns;
    args->out_blocks = op->out_blocks;
    op->no_out_keys = sim_chance(&d->sim, 300);
    args->out_keys = op->no_out_keys ? NULL : op->out_keys;
    args->out_duplicate = op->out_duplicate;
}

/* It stands in the lane of a reactor that has an owner, who has not turned since: its blocks are nobody's to release.
 */
static void release_claimed(struct domain *d, const struct domain_op *op) {
    if (!op->used || !op->accepted || d->parked || d->callback_depth != 0 || d->sim.on_other)
        return;
    int rc = kvbm_release_mt(d->manager, op->blocks, 1);
    SIM_CHECK(&d->sim, rc == -KVBM_ENOTOWNED, "release of a block inside an operation: %d", rc);
    sim_event(&d->sim, SIM_RELEASE_CLAIMED, op->count, 0);
}

void domain_register(struct domain *d) {
    struct domain_op *op = op_new(d, KVBM_OP_REGISTER);
    if (op == NULL)
        return;
    kvbm_submit submit;
    kvbm_register_args args = {.size = sizeof args};
    uint8_t salt = 0;
    kvbm_op id = 0;
    register_fill(d, op, &args, &salt);
    if (op->count == 0) {
        op_free(op);
        return;
    }
    keys_note(d, op, true);
    submit_fill(d, op, &submit);
    int rc = kvbm_register_mt(d->manager, &args, &submit, &id);
    if ((rc == 0 || rc == 1) && args.keys == NULL)
        sim_event(&d->sim, (op->args_flags & KVBM_REGISTER_ANONYMOUS) != 0 ? SIM_ANONYMOUS : SIM_COMPUTED, op->count,
                  0);
    submitted(d, op, rc, id);
    if (rc == 0 && sim_chance(&d->sim, 50))
        release_claimed(d, op);
}

/* ------------------------------------------------------------------------------------------------------ completion */

static void status_check(struct domain *d, const struct domain_op *op, const kvbm_completion *c) {
    struct sim *sim = &d->sim;
    const struct domain_group *g = &d->groups[op->group];
    switch (c->status) {
    case 0:
        return;
    case -ECANCELED:
        SIM_CHECK(sim, op->cancelled, "cancelled, and nobody asked");
        sim_event(sim, SIM_CANCELLED, op->kind, 0);
        return;
    case -ETIMEDOUT:
        SIM_CHECK(sim, op->deadline_ns != 0 && sim->now_ns >= op->deadline_ns, "timed out too early");
        sim_event(sim, SIM_TIMED_OUT, op->kind, 0);
        return;
    case -KVBM_ESHUTDOWN:
        SIM_CHECK(sim, d->closing, "ended by a shutdown that was not");
        sim_event(sim, SIM_SHUT_DOWN, op->kind, 0);
        return;
    case -KVBM_ENOBLOCKS:
        SIM_CHECK(sim, op->kind == KVBM_OP_ALLOCATE, "no blocks for an operation of kind %u", op->kind);
        SIM_CHECK(sim, c->requested == op->count && c->available < c->requested && c->available <= g->capacity,
                  "no blocks: requested %llu, available %llu, asked for %u", (unsigned long long)c->requested,
                  (unsigned long long)c->available, op->count);
        SIM_CHECK(sim, (op->flags & KVBM_SUBMIT_WAIT) == 0 || op->count > g->capacity,
                  "no blocks for one that was to wait");
        sim_event(sim, SIM_NOBLOCKS, c->requested, c->available);
        return;
    default:
        sim_fail(sim, "status %d for an operation of kind %u", c->status, op->kind);
    }
}

/* The node that a new block is to be filled for: down some path, so that batches are chains. */
static uint16_t next_node(struct domain *d, uint16_t node) {
    if (node != NO_KEY) {
        for (uint16_t i = (uint16_t)(node + 1); i < d->node_count; i++)
            if (d->keys[i].parent == node)
                return i;
    }
    uint16_t start = (uint16_t)sim_below(&d->sim, d->node_count);
    while (d->keys[start].parent != NO_KEY && sim_chance(&d->sim, 700)) /* prompts begin at their beginning */
        start = d->keys[start].parent;
    return start;
}

/* The slot was handed out while the model has it inside a registration: that was done, found a duplicate and gave the
 * slot back, and its completion is still under way. Remembered, so that it must say so. */
static void claim_lose(struct domain *d, struct domain_slot *slot) {
    if (slot->state != SLOT_CLAIMED || slot->holds != 0)
        return;
    struct domain_op *by = &d->ops[slot->claimed_by];
    SIM_CHECK(&d->sim, by->used && !by->completed, "a block inside a registration was handed out");
    for (uint32_t i = 0; i < by->count; i++)
        if (by->blocks[i].bits == slot->block.bits)
            by->lost[i] = true;
    slot->state = SLOT_IDLE;
}

static void allocated(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    struct sim *sim = &d->sim;
    struct domain_group *g = &d->groups[op->group];
    SIM_CHECK(sim, c->count == op->count, "allocated %llu of %u", (unsigned long long)c->count, op->count);
    uint16_t node = NO_KEY;
    uint32_t batch = ++d->batch_sequence;
    for (uint32_t i = 0; i < op->count; i++) {
        struct domain_slot *slot = slot_of(d, op, op->out_blocks[i]);
        claim_lose(d, slot);
        SIM_CHECK(sim, slot->state == SLOT_IDLE && slot->holds == 0, "slot %llu was handed to two holders",
                  (unsigned long long)kvbm_block_slot(op->out_blocks[i]));
        SIM_CHECK(sim, slot->block.bits != op->out_blocks[i].bits, "an old handle came again");
        if (slot->key != NO_KEY && g->primary[slot->key] == (uint16_t)(slot - g->slots))
            g->primary[slot->key] = NO_SLOT;
        slot->block = op->out_blocks[i];
        slot->state = SLOT_MUTABLE;
        slot->key = NO_KEY;
        slot->primary = slot->resident = false;
        slot->token_count = 0;
        slot->node = node = next_node(d, node);
        slot->batch = batch;
        slot->batch_at = i;
        int state = kvbm_block_state_mt(d->manager, slot->block);
        SIM_CHECK(sim, state == KVBM_BLOCK_PARTIAL, "a new block is in state %d", state);
        domain_write(d, g, slot, sim_random(sim));
    }
}

static uint16_t anonymous_key(struct domain *d, const kvbm_key *key, uint64_t stamp) {
    for (uint16_t i = 0; i < d->key_count; i++)
        SIM_CHECK(&d->sim, memcmp(&d->keys[i].key, key, sizeof *key) != 0, "an anonymous key came twice");
    if (d->key_count == DOMAIN_KEYS)
        return NO_KEY;
    d->keys[d->key_count] = (struct domain_key){.key = *key, .stamp = stamp, .parent = NO_KEY};
    for (uint32_t i = 0; i < d->group_count; i++) {
        d->groups[i].primary[d->key_count] = NO_SLOT;
        d->groups[i].drops[d->key_count] = d->groups[i].attempts[d->key_count] = 0;
    }
    return d->key_count++;
}

/* A lease on the block that holds `key`, wherever that is. */
static void leased(struct domain *d, struct domain_op *op, kvbm_block block, uint16_t key, bool primary,
                   const char *where) {
    struct sim *sim = &d->sim;
    struct domain_group *g = &d->groups[op->group];
    struct domain_slot *slot = slot_of(d, op, block);
    uint16_t number = (uint16_t)(slot - g->slots);
    SIM_CHECK(sim, slot->state != SLOT_MUTABLE, "%s: slot %u is held mutable", where, number);
    if (slot->state == SLOT_CLAIMED) { /* registered by an operation whose completion is under way */
        const struct domain_op *by = &d->ops[slot->claimed_by];
        bool under_key = false;
        for (uint32_t i = 0; i < by->count; i++)
            under_key |= by->blocks[i].bits == block.bits &&
                         (by->key_ids[i] == key || (by->args_flags & KVBM_REGISTER_ANONYMOUS) != 0);
        SIM_CHECK(sim, by->used && under_key, "%s: slot %u is claimed under another key", where, number);
    } else if (slot->holds > 0) {
        SIM_CHECK(sim, slot->key == key && slot->block.bits == block.bits, "%s: slot %u holds another key", where,
                  number);
        SIM_CHECK(sim, slot->primary == primary, "%s: slot %u is no primary", where, number);
    }
    SIM_CHECK(sim, !primary || !domain_key_held(g, key) || g->primary[key] == number,
              "%s: two blocks are primary under one key, slots %u and %u", where, g->primary[key], number);
    slot->block = block;
    slot->key = key;
    slot->primary = primary;
    slot->resident = true;
    slot->holds++;
    if (key != NO_KEY) {
        slot->stamp = d->keys[key].stamp;
        if (primary)
            g->primary[key] = number;
    }
    domain_verify(d, g, slot, where);
}

/* A new key has the priority that it was registered with; a duplicate can raise it. */
static void priority_set(const struct domain *d, const struct domain_op *op, struct domain_slot *slot, bool duplicate) {
    if (duplicate && op->priority <= slot->priority)
        return;
    slot->priority = op->priority;
    slot->expires_ns = op->priority != 0 && op->priority_ttl_ns != 0 ? d->sim.now_ns + op->priority_ttl_ns : 0;
}

static void registered(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    struct sim *sim = &d->sim;
    struct domain_group *g = &d->groups[op->group];
    SIM_CHECK(sim, c->count == op->count, "registered %llu of %u", (unsigned long long)c->count, op->count);
    for (uint32_t i = 0; i < op->count; i++) {
        struct domain_slot *slot = slot_of(d, op, op->blocks[i]);
        uint16_t key = op->key_ids[i];
        bool anonymous = (op->args_flags & KVBM_REGISTER_ANONYMOUS) != 0, duplicate = op->out_duplicate[i];
        bool keep = (op->args_flags & KVBM_REGISTER_KEEP_DUPLICATES) != 0;
        if (op->no_out_keys)
            SIM_CHECK(sim, kvbm_block_key_mt(d->manager, op->out_blocks[i], &op->out_keys[i]) == 0, "key of a block");
        if (op->lost[i])
            SIM_CHECK(sim, duplicate && !keep, "a block was handed to another inside its registration");
        else
            SIM_CHECK(sim, slot->state == SLOT_CLAIMED && &d->ops[slot->claimed_by] == op, "the model lost a claim");
        if (anonymous)
            key = op->key_ids[i] = anonymous_key(d, &op->out_keys[i], slot->stamp);
        else
            SIM_CHECK(sim, memcmp(&op->out_keys[i], &op->keys[i], sizeof op->keys[i]) == 0,
                      "registered under another key than asked for (%s)", op->computed ? "computed" : "given");
        SIM_CHECK(sim, !duplicate || (!anonymous && g->attempts[key] >= 2), "a duplicate of what never was");
        if (!anonymous && op->must_drops[i] != UINT32_MAX && domain_key_held(g, key) &&
            g->drops[key] == op->must_drops[i])
            SIM_CHECK(sim, duplicate, "a held key was registered anew");
        if (duplicate)
            sim_event(sim, keep ? SIM_DUPLICATE_KEPT : SIM_DUPLICATE, op->group, key);
        SIM_CHECK(sim, (op->out_blocks[i].bits == op->blocks[i].bits) == (!duplicate || keep),
                  "a registration's handle: duplicate %d, keep %d, same %d", duplicate, keep,
                  op->out_blocks[i].bits == op->blocks[i].bits);
        if (!op->lost[i])
            slot->state = SLOT_IDLE;
        if (duplicate && !keep && !op->lost[i]) {
            SIM_CHECK(sim, slot->holds == 0, "a duplicate that was given back had been matched");
            slot->key = NO_KEY;
            slot->resident = false;
            slot->block = op->blocks[i];
        }
        leased(d, op, op->out_blocks[i], key, !(duplicate && keep), "register");
        if (!(duplicate && keep))
            priority_set(d, op, slot_of(d, op, op->out_blocks[i]), duplicate);
    }
}

static void matched(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    struct sim *sim = &d->sim;
    struct domain_group *g = &d->groups[op->group];
    SIM_CHECK(sim, c->count <= op->count, "matched %llu of %u", (unsigned long long)c->count, op->count);
    uint16_t n = (uint16_t)c->count;
    for (uint16_t i = 0; i < n; i++) {
        SIM_CHECK(sim, op->key_ids[i] != NO_KEY && (g->attempts[op->key_ids[i]] > 0 || op->key_ids[i] >= d->node_count),
                  "matched key %u that was never registered", op->key_ids[i]);
        leased(d, op, op->out_blocks[i], op->key_ids[i], true, "match");
    }
    if (n < op->count) {
        uint16_t key = op->key_ids[n];
        SIM_CHECK(sim,
                  op->must_drops[n] == UINT32_MAX || !domain_key_held(g, key) || g->drops[key] != op->must_drops[n],
                  "a held key was not matched");
    }
    if (op->count != 0)
        sim_event(sim, n == op->count ? SIM_HIT : n == 0 ? SIM_MISS : SIM_PARTIAL, n, op->count);
}

static void queried(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    struct sim *sim = &d->sim;
    struct domain_group *g = &d->groups[op->group];
    uint64_t resident = 0;
    for (uint16_t i = 0; i < op->count; i++) {
        uint16_t key = op->key_ids[i];
        SIM_CHECK(sim, op->tiers[i] == 0 || op->tiers[i] == KVBM_TIER_BIT(KVBM_TIER_HOST), "tiers %u", op->tiers[i]);
        resident += op->tiers[i] != 0;
        if (op->tiers[i] != 0)
            SIM_CHECK(sim, key != NO_KEY && (g->attempts[key] > 0 || key >= d->node_count),
                      "resident, and never registered");
        else
            SIM_CHECK(sim,
                      op->must_drops[i] == UINT32_MAX || !domain_key_held(g, key) || g->drops[key] != op->must_drops[i],
                      "a held key is not resident");
    }
    SIM_CHECK(sim, c->count == resident, "query counts %llu of %llu", (unsigned long long)c->count,
              (unsigned long long)resident);
}

/* In the exact mode the naive cache is asked first: it looks at the slots as they were. */
static void result_apply(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    if (op->kind == KVBM_OP_ALLOCATE) {
        if (d->exact)
            exact_allocated(d, op, c);
        if (c->status == 0)
            allocated(d, op, c);
    } else if (op->kind == KVBM_OP_REGISTER) {
        if (d->exact && c->status == 0)
            exact_registered(d, op);
        if (c->status == 0)
            registered(d, op, c);
        else
            claims_return(d, op);
    } else if (c->status == 0 && op->kind == KVBM_OP_MATCH) {
        if (d->exact)
            exact_matched(d, op, c);
        matched(d, op, c);
    } else if (c->status == 0) {
        if (d->exact)
            exact_queried(d, op);
        queried(d, op, c);
    }
}

void domain_complete(struct domain *d, const kvbm_completion *c, int how) {
    struct sim *sim = &d->sim;
    uintptr_t user = (uintptr_t)c->user;
    SIM_CHECK(sim, (user & 255) < DOMAIN_OPS, "a completion for nobody");
    struct domain_op *op = &d->ops[user & 255];
    SIM_CHECK(sim, op->used && op->generation == user >> 8 && !op->completed, "answered twice: kind %d status %d",
              c->kind, c->status);
    SIM_CHECK(sim, !op->orphan, "a dropped completion was delivered");
    SIM_CHECK(sim, c->kind == op->kind, "answered as kind %d, asked as %u", c->kind, op->kind);
    SIM_CHECK(sim, !op->accepted || c->op == op->id, "the completion's id is another's");
    d->busy = true;
    sim_count_status(sim->counts, c->kind, c->status);
    sim_event(sim, SIM_DONE, user & 255, (uint64_t)(uint32_t)c->status);
    status_check(d, op, c);
    if (op->stood && c->status == 0)
        sim_event(sim, SIM_WAITED, op->count, 0);
    if (how != SIM_DONE && how != SIM_DONE_INLINE)
        sim_event(sim, (uint32_t)how, user & 255, 0);
    op->told_id = c->op;
    result_apply(d, op, c);
    if (op->port >= 0)
        d->ports[op->port].inflight--;
    op->completed = true;
    if (!op->submitting)
        op_free(op);
}

/* ------------------------------------------------------------------------------------------------------- callbacks */

static void other_step(void *arg) {
    struct domain *d = arg;
    sim_event(&d->sim, SIM_OTHER_THREAD, 0, 0);
    domain_client_step(d);
}

void domain_other_step(struct domain *d) {
    sim_other_run(&d->sim, other_step, d);
}

static void on_done(void *user, const kvbm_completion *completion) {
    struct domain *d = current;
    struct sim *sim = &d->sim;
    const struct domain_op *op = &d->ops[(uintptr_t)user & 255];
    SIM_CHECK(sim, completion->user == user, "a callback got another's user");
    SIM_CHECK(sim, op->delivery == DELIVER_CALLBACK || op->delivery == DELIVER_PORT_OR_CALLBACK,
              "a callback for an operation of another delivery");
    d->callback_depth++;
    domain_complete(d, completion, SIM_DONE);
    if (d->parked && kvbm_reactor_current_mt() == d->reactor && sim_chance(sim, d->take_back_permille)) {
        /* The reactor's own thread wakes up in the middle of a borrowed turn. */
        bool taken = kvbm_reactor_take(d->reactor);
        sim_event(sim, SIM_TAKE_REFUSED, taken, 0);
        SIM_CHECK(sim, !taken, "two owners of one reactor");
        d->wake_asked = false;
    }
    if (!d->exact && d->callback_depth == 1 && sim_chance(sim, d->nest_permille)) {
        sim_event(sim, SIM_SUBMIT_IN_CALLBACK, 0, 0);
        domain_client_step(d);
    }
    if (!d->exact && d->callback_depth == 1 && !sim->on_other && sim_chance(sim, d->other_permille))
        domain_other_step(d);
    d->callback_depth--;
}
