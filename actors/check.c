/*
 * check.c - the invariants that hold between any two messages: kvbm__manager_check.
 *
 * Thread: the reactor's owner, outside of handlers. Walks everything: for tests and the simulation.
 */
#include <stdarg.h>
#include <stdio.h>

#include "actors/manager.h"

struct report {
    uint64_t violations;
    char *text;
    size_t left;
};

static void __attribute__((format(printf, 3, 4))) expect(struct report *r, bool holds, const char *format, ...) {
    if (holds)
        return;
    r->violations++;
    if (r->left < 2)
        return;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(r->text, r->left, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : (size_t)n < r->left ? (size_t)n : r->left - 1;
    r->text += used;
    r->left -= used;
    if (r->left > 1) {
        *r->text++ = '\n';
        *r->text = '\0';
        r->left--;
    }
}

/* What one walk over a pool's slots found. */
struct census {
    uint64_t free, mutable, active, cached, primaries;
};

static void check_slot(struct report *r, struct kvbm_manager *m, struct kvbm_block_pool *pool, uint32_t number,
                       struct census *c) {
    const struct kvbm_slot *s = &pool->slots.slots[number];
    uint64_t word = atomic_load_explicit(&s->word, memory_order_acquire);
    bool registered = (word & KVBM_WORD_REGISTERED) != 0;
    uint32_t leases = KVBM_WORD_LEASES(word);
    switch (s->state_hint) {
    case KVBM_SLOT_FREE:
        c->free++;
        expect(r, leases == 0 && !registered, "pool %u slot %u: free with word %#llx", pool->number, number,
               (unsigned long long)word);
        break;
    case KVBM_SLOT_MUTABLE:
        c->mutable ++;
        expect(r, !registered && leases <= 1, "pool %u slot %u: mutable with word %#llx", pool->number, number,
               (unsigned long long)word);
        expect(r, leases == 1 || (word & KVBM_WORD_QUEUED) != 0, "pool %u slot %u: mutable, released, not queued",
               pool->number, number);
        break;
    case KVBM_SLOT_ACTIVE:
        c->active++;
        expect(r, registered, "pool %u slot %u: active, not registered", pool->number, number);
        expect(r, leases > 0 || (word & KVBM_WORD_QUEUED) != 0, "pool %u slot %u: active, unleased, not queued",
               pool->number, number);
        break;
    case KVBM_SLOT_CACHED:
        c->cached++;
        expect(r, registered && leases == 0, "pool %u slot %u: cached with word %#llx", pool->number, number,
               (unsigned long long)word);
        expect(r, s->entry != KVBM_ENTRY_NONE, "pool %u slot %u: cached without an entry", pool->number, number);
        break;
    default:
        expect(r, false, "pool %u slot %u: state %u", pool->number, number, s->state_hint);
    }
    bool has_entry =
        (s->state_hint == KVBM_SLOT_ACTIVE || s->state_hint == KVBM_SLOT_CACHED) && s->entry != KVBM_ENTRY_NONE;
    if (!has_entry)
        return;
    c->primaries++;
    const struct kvbm_entry *entry = kvbm_index_entry(&m->registry->index, s->entry);
    expect(r, entry->slots[pool->slots.tier] == number && (entry->tiers & KVBM_TIER_BIT(pool->slots.tier)) != 0,
           "pool %u slot %u: entry %u points at slot %u", pool->number, number, s->entry,
           entry->slots[pool->slots.tier]);
    expect(r, entry->group == pool->slots.group, "pool %u slot %u: entry %u of group %u", pool->number, number,
           s->entry, entry->group);
    expect(r, kvbm_index_find(&m->registry->index, &entry->key, entry->group) == s->entry,
           "pool %u slot %u: entry %u is not found by its key", pool->number, number, s->entry);
}

/* Length of a chain of free slots; more than `limit` means a cycle. */
static uint64_t chain_length(const struct kvbm_block_pool *pool, uint32_t head, uint64_t limit, uint32_t *last) {
    uint64_t n = 0;
    while (n < limit) {
        if (head >= pool->slots.capacity || pool->slots.slots[head].state_hint != KVBM_SLOT_FREE)
            return UINT64_MAX;
        *last = head;
        head = pool->slots.slots[head].next;
        n++;
    }
    return n;
}

static void check_line(struct report *r, struct kvbm_manager *m, const struct kvbm_allocator_pool *a) {
    const struct kvbm_msg_allocate *previous = NULL;
    uint32_t n = 0;
    for (const struct kvbm_msg_allocate *op = a->line_head; op != NULL && n <= a->line_count; op = op->line_next) {
        uint32_t state = atomic_load_explicit(&op->op.state, memory_order_relaxed);
        expect(r, state != KVBM_OPERATION_FREE, "operation %llx: waits and is free",
               (unsigned long long)op->op.head.op);
        expect(r, kvbm_pool_find_mt(&m->operations, op->op.head.op) == op, "operation %llx: waits and its id is stale",
               (unsigned long long)op->op.head.op);
        expect(r, op->op.waiting && op->may_wait && op->reserved == 0 && op->handed == 0,
               "operation %llx: waits and holds blocks", (unsigned long long)op->op.head.op);
        expect(r, op->line_previous == previous, "operation %llx: broken line", (unsigned long long)op->op.head.op);
        previous = op;
        n++;
    }
    expect(r, n == a->line_count && a->line_tail == previous, "pool %u: line of %u, %u counted", a->pool->number, n,
           a->line_count);
    uint32_t waiting = a->line_count + (a->serving != NULL);
    expect(r, kvbm__counter_get(&a->pool->a.waiting) == waiting, "pool %u: gauge waiting", a->pool->number);
    expect(r, a->wants_returns == (waiting > 0), "pool %u: %u wait, wants_returns is %d", a->pool->number, waiting,
           a->wants_returns);
    expect(r, a->line_head == NULL || a->watching || a->serving != NULL || a->serve_sent,
           "pool %u: allocations wait and nothing will look at them", a->pool->number);
}

static uint64_t check_pool(struct report *r, struct kvbm_manager *m, uint32_t number) {
    struct kvbm_block_pool *pool = &m->pools[number];
    const struct kvbm_allocator_pool *a = &m->allocator_pools[number];
    const struct kvbm_registry_pool *g = &m->registry_pools[number];
    struct census c = {0};
    uint32_t capacity = pool->slots.capacity, last = KVBM_SLOT_NONE;
    for (uint32_t i = 0; i < capacity; i++)
        check_slot(r, m, pool, i, &c);
    uint64_t moving = g->sent_count - a->received_count;
    uint64_t fresh = capacity - a->fresh;
    expect(r, c.free == a->free_count + fresh + g->reclaimed_count + moving,
           "pool %u: %llu slots are free; %u stacked, %llu fresh, %u reclaimed, %llu moving", number,
           (unsigned long long)c.free, a->free_count, (unsigned long long)fresh, g->reclaimed_count,
           (unsigned long long)moving);
    expect(r, chain_length(pool, a->free_head, a->free_count, &last) == a->free_count, "pool %u: broken free stack",
           number);
    last = KVBM_SLOT_NONE;
    expect(r, chain_length(pool, g->reclaimed_head, g->reclaimed_count, &last) == g->reclaimed_count,
           "pool %u: broken reclaimed chain", number);
    expect(r, g->reclaimed_count == 0 || last == g->reclaimed_tail, "pool %u: reclaimed chain ends at %u, not %u",
           number, last, g->reclaimed_tail);
    expect(r, a->reserved <= a->free_count + fresh, "pool %u: %u reserved of %llu", number, a->reserved,
           (unsigned long long)(a->free_count + fresh));
    expect(r, kvbm__counter_get(&pool->a.free) == a->free_count + fresh - a->reserved, "pool %u: gauge free", number);
    expect(r, kvbm__counter_get(&pool->r.reclaimed) == g->reclaimed_count, "pool %u: gauge reclaimed", number);
    expect(r, pool->policy->ops->count(pool->policy) == c.cached, "pool %u: %llu slots cached, the policy has %u",
           number, (unsigned long long)c.cached, pool->policy->ops->count(pool->policy));
    expect(r, pool->policy->ops->check(pool->policy) == 0, "pool %u: the policy contradicts itself", number);
    expect(r, kvbm__counter_get(&pool->r.cached) == c.cached, "pool %u: gauge cached", number);
    expect(r, kvbm__counter_get(&pool->r.registered) == c.cached + c.active, "pool %u: gauge registered", number);
    expect(r, g->watch == NULL || a->watching, "pool %u: a WATCH that nobody sent", number);
    check_line(r, m, a);
    return c.primaries;
}

static void check_operations(struct report *r, struct kvbm_manager *m) {
    for (uint32_t i = 0; i < m->operations.count; i++) {
        const struct kvbm_operation *op = kvbm_pool_at(&m->operations, i);
        bool taken = (atomic_load_explicit(&m->operations.generations[i], memory_order_acquire) & 1) != 0;
        uint32_t state = atomic_load_explicit(&op->state, memory_order_acquire);
        expect(r, state <= KVBM_OPERATION_PARKED, "operation %u: state %u", i, state);
        expect(r, taken || !op->waiting, "operation %u: free and waiting", i);
        /* An object is taken a little before its state is set and given back a little after. */
        expect(r, taken || state == KVBM_OPERATION_FREE, "operation %u: free and in state %u", i, state);
    }
}

uint64_t kvbm__manager_check(kvbm_manager *m, char *text, size_t text_bytes) {
    struct report r = {.text = text, .left = text != NULL ? text_bytes : 0};
    if (r.left > 0)
        *text = '\0';
    uint64_t primaries = 0, resident = 0;
    for (uint32_t i = 0; i < m->pool_count; i++)
        primaries += check_pool(&r, m, i);
    const struct kvbm_index *index = &m->registry->index;
    for (uint32_t i = 0; i < index->entry_fresh; i++) {
        const struct kvbm_entry *entry = kvbm_index_entry(index, i);
        if (entry->group < KVBM_GROUP_COUNT_MAX)
            resident += (uint64_t)__builtin_popcount(entry->tiers);
    }
    expect(&r, resident == primaries, "index: %llu residencies, %llu slots with an entry", (unsigned long long)resident,
           (unsigned long long)primaries);
    uint64_t broken = kvbm_index_check(index);
    expect(&r, broken == 0, "index: %llu violations", (unsigned long long)broken);
    expect(&r, kvbm__counter_get(&m->registry->entry_count) == index->entry_count, "gauge registry_entries");
    check_operations(&r, m);
    return r.violations;
}
