/*
 * sim_exact.c - a naive cache beside the real one.
 *
 * In an exact run each operation is done before the next one is submitted, and what was released is settled at once, so
 * the order of all events is known. Then everything about a result follows from the slots of the model as they were
 * before it: how long a prefix is resident, what is a duplicate, how many blocks could be had, and which blocks the
 * policy "lru" gives up and in which order (policy.h: lower effective priority first, then least recently released). Of
 * the other policies it knows how many blocks they give up.
 */
#include "tests/sim/sim_domain.h"

static bool resident(const struct domain_group *g, uint16_t key) {
    for (uint32_t i = 0; key != NO_KEY && i < g->capacity; i++)
        if (g->slots[i].resident && g->slots[i].primary && g->slots[i].key == key)
            return true;
    return false;
}

static bool cached(const struct domain_slot *slot) {
    return slot->state == SLOT_IDLE && slot->holds == 0 && slot->resident && slot->primary;
}

static bool idle(const struct domain_slot *slot) {
    return slot->state == SLOT_IDLE && slot->holds == 0 && !slot->resident;
}

/* What ran out while it was cached goes first, in the order of running out; then by level; then by age. */
static uint64_t rank(const struct domain *d, const struct domain_slot *slot, uint64_t *age) {
    *age = slot->cached_at;
    if (slot->priority == 0 || slot->ran_out)
        return 1;
    if (slot->expires_ns != 0 && slot->expires_ns <= d->sim.now_ns) {
        *age = slot->expires_ns;
        return 0;
    }
    return 1u + slot->priority;
}

/* The next one to be evicted of those that are not in `gone`; NO_SLOT if there is none. */
static uint16_t victim(const struct domain *d, const struct domain_group *g, const bool *gone) {
    uint16_t best = NO_SLOT;
    uint64_t best_rank = 0, best_age = 0;
    for (uint16_t i = 0; i < g->capacity; i++) {
        if (gone[i] || !cached(&g->slots[i]))
            continue;
        uint64_t age, own = rank(d, &g->slots[i], &age);
        bool before = own != best_rank  ? own < best_rank
                      : age != best_age ? age < best_age
                                        : best != NO_SLOT && g->slots[i].cached_at < g->slots[best].cached_at;
        if (best == NO_SLOT || before) {
            best = i;
            best_rank = own;
            best_age = age;
        }
    }
    return best;
}

static void compare_victims(struct domain *d, const struct domain_op *op, uint32_t expected) {
    const struct domain_group *g = &d->groups[op->group];
    bool gone[DOMAIN_SLOTS] = {false}, taken[DOMAIN_SLOTS] = {false};
    uint32_t evicted = 0;
    for (uint32_t i = 0; i < op->count; i++) {
        uint64_t number = kvbm_block_slot(op->out_blocks[i]);
        SIM_CHECK(&d->sim, number < g->capacity && !taken[number], "one slot twice in one allocation");
        taken[number] = true;
        evicted += g->slots[number].resident;
    }
    SIM_CHECK(&d->sim, evicted == expected, "an allocation of %u evicted %u blocks, not %u", op->count, evicted,
              expected);
    for (uint32_t i = 0; i < expected && g->lru; i++) {
        uint16_t next = victim(d, g, gone);
        SIM_CHECK(&d->sim, next != NO_SLOT && taken[next], "slot %u was to be evicted before another", next);
        if (g->slots[next].expires_ns != 0 && g->slots[next].expires_ns <= d->sim.now_ns)
            sim_event(&d->sim, SIM_PRIORITY_EXPIRED, next, g->slots[next].priority);
        gone[next] = true;
    }
    if (expected != 0)
        sim_event(&d->sim, SIM_EXACT_EVICTION, expected, op->group);
}

void exact_allocated(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    const struct domain_group *g = &d->groups[op->group];
    uint32_t free_count = 0, cached_count = 0;
    bool waiters = false, older = false;
    for (uint32_t i = 0; i < g->capacity; i++) {
        free_count += idle(&g->slots[i]);
        cached_count += cached(&g->slots[i]);
    }
    for (uint32_t i = 0; i < DOMAIN_OPS; i++) {
        const struct domain_op *other = &d->ops[i];
        if (!other->used || other == op || other->group != op->group || !other->accepted || other->completed ||
            other->kind != KVBM_OP_ALLOCATE)
            continue;
        waiters = true;
        older |= other->sequence < op->sequence;
    }
    sim_event(&d->sim, SIM_EXACT, KVBM_OP_ALLOCATE, free_count + cached_count);
    if (c->status == 0) {
        SIM_CHECK(&d->sim, !older, "an allocation of %u passed those that stand in line", op->count);
        SIM_CHECK(&d->sim, op->count <= free_count + cached_count, "%u blocks were had of %u", op->count,
                  free_count + cached_count);
        compare_victims(d, op, op->count > free_count ? op->count - free_count : 0);
    } else if (c->status == -KVBM_ENOBLOCKS && !waiters) {
        SIM_CHECK(&d->sim, c->available == free_count + cached_count, "%llu are said to be available, not %u",
                  (unsigned long long)c->available, free_count + cached_count);
    }
}

void exact_registered(struct domain *d, struct domain_op *op) {
    const struct domain_group *g = &d->groups[op->group];
    for (uint32_t i = 0; i < op->count; i++) {
        uint16_t key = op->key_ids[i];
        bool duplicate = resident(g, key);
        for (uint32_t j = 0; j < i; j++)
            duplicate |= key != NO_KEY && op->key_ids[j] == key;
        SIM_CHECK(&d->sim, op->out_duplicate[i] == duplicate, "block %u of %u: duplicate %d, not %d", i, op->count,
                  op->out_duplicate[i], duplicate);
    }
    sim_event(&d->sim, SIM_EXACT, KVBM_OP_REGISTER, op->count);
}

void exact_matched(struct domain *d, struct domain_op *op, const kvbm_completion *c) {
    uint32_t n = 0;
    while (n < op->count && resident(&d->groups[op->group], op->key_ids[n]))
        n++;
    SIM_CHECK(&d->sim, c->count == n, "matched %llu of %u, not %u", (unsigned long long)c->count, op->count, n);
    sim_event(&d->sim, SIM_EXACT, KVBM_OP_MATCH, n);
}

void exact_queried(struct domain *d, struct domain_op *op) {
    for (uint32_t i = 0; i < op->count; i++)
        SIM_CHECK(&d->sim, (op->tiers[i] != 0) == resident(&d->groups[op->group], op->key_ids[i]),
                  "key %u is%s resident", op->key_ids[i], op->tiers[i] != 0 ? "" : " not");
    sim_event(&d->sim, SIM_EXACT, KVBM_OP_QUERY, op->count);
}
