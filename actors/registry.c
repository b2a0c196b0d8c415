/*
 * registry.c - knows which key is where. See registry.h for its protocol.
 *
 * Thread: the core reactor's owner.
 */
#include "actors/registry.h"

#include <errno.h>
#include <string.h>

#include "actors/manager.h"

/* How far ahead of the slot that is leased the slots' cache lines are asked for. */
#define LEASE_AHEAD 8u

static struct kvbm_registry *registry_of(struct kvbm_actor *actor) {
    return (struct kvbm_registry *)actor;
}

static struct kvbm_registry_pool *pool_of(struct kvbm_registry *r, const struct kvbm_block_pool *pool) {
    return &r->pools[pool->number];
}

static void send_self(struct kvbm_registry *r, struct kvbm_msg *msg) {
    int rc = kvbm_actor_send(&r->actor, &r->actor, msg);
    KVBM_ASSERT(rc == 0); /* same reactor: the local queue */
}

/* ------------------------------------------------------------------------------------------------------- evictables */

/* A block of this pool became evictable, or a slot was reclaimed. */
static void evictable_grew(struct kvbm_registry_pool *p) {
    p->version++;
    struct kvbm_msg_watch *watch = p->watch;
    if (watch != NULL) {
        p->watch = NULL;
        kvbm_actor_reply(&p->registry->actor, &watch->head, 0);
    }
}

static void cached_gauge(struct kvbm_registry_pool *p) {
    struct kvbm_policy *policy = p->pool->policy;
    atomic_store_explicit(&p->pool->r.cached, policy->ops->count(policy), memory_order_relaxed);
}

/* Takes over a reset slot. */
static void reclaim(struct kvbm_registry_pool *p, uint32_t slot) {
    struct kvbm_slot *s = &p->pool->slots.slots[slot];
    KVBM_ASSERT(s->state_hint == KVBM_SLOT_FREE);
    s->next = p->reclaimed_head;
    if (p->reclaimed_count == 0)
        p->reclaimed_tail = slot;
    p->reclaimed_head = slot;
    p->reclaimed_count++;
    atomic_store_explicit(&p->pool->r.reclaimed, p->reclaimed_count, memory_order_relaxed);
    evictable_grew(p);
}

static void cache_insert(struct kvbm_registry_pool *p, uint32_t slot) {
    struct kvbm_registry *r = p->registry;
    struct kvbm_policy *policy = p->pool->policy;
    struct kvbm_slot *s = &p->pool->slots.slots[slot];
    struct kvbm_entry *entry = kvbm_index_entry(&r->index, s->entry);
    KVBM_ASSERT(s->state_hint == KVBM_SLOT_ACTIVE && entry->slots[p->pool->slots.tier] == slot);
    struct kvbm_policy_meta meta = {
        .key = entry->key,
        .parent = entry->parent,
        .depth = entry->depth,
        .priority = entry->priority,
        .expires_ns = entry->flags & KVBM_ENTRY_EXPIRES ? r->expires_ns[s->entry] : 0,
    };
    uint64_t now_ns = meta.expires_ns != 0 || policy->ops->uses_clock(policy) ? r->os->now_ns(r->os->ctx) : 0;
    policy->ops->insert(policy, slot, &meta, now_ns);
    s->state_hint = KVBM_SLOT_CACHED;
    cached_gauge(p);
    evictable_grew(p);
}

/* The last lease of a registered block came back. */
static void on_returned(void *arg, uint32_t slot) {
    struct kvbm_registry_pool *p = arg;
    struct kvbm_slots *slots = &p->pool->slots;
    uint64_t word = kvbm_slots_unqueue(slots, slot);
    KVBM_ASSERT((word & KVBM_WORD_REGISTERED) != 0);
    if (KVBM_WORD_LEASES(word) > 0)
        return; /* it was leased again meanwhile */
    kvbm__counter_add(&p->pool->r.released, 1);
    if (slots->slots[slot].entry != KVBM_ENTRY_NONE) {
        cache_insert(p, slot);
        return;
    }
    kvbm_slots_reset(slots, slot);
    kvbm__counter_sub(&p->pool->r.registered, 1);
    reclaim(p, slot);
}

void kvbm_registry_drain(struct kvbm_registry *r, uint32_t pool) {
    struct kvbm_registry_pool *p = &r->pools[pool];
    kvbm_retlane_drain(&p->pool->slots.lease_returns, on_returned, p);
}

/* ----------------------------------------------------------------------------------------------------------- leases */

/* One lease on a resident slot; {0} if its lease count is full. */
static kvbm_block lease(struct kvbm_registry_pool *p, uint32_t slot) {
    struct kvbm_policy *policy = p->pool->policy;
    bool was_unleased;
    kvbm_block block = kvbm_slots_lease(&p->pool->slots, slot, &was_unleased);
    if (block.bits == 0)
        return block;
    policy->ops->hit(policy, slot);
    if (was_unleased)
        policy->ops->remove(policy, slot); /* not there if its last release is not drained yet */
    return block;
}

/* The fastest of `tiers` in which the entry is resident; KVBM_TIER_COUNT if none. */
static int fastest_tier(const struct kvbm_entry *entry, uint32_t tiers) {
    uint32_t there = entry->tiers & tiers;
    return there == 0 ? KVBM_TIER_COUNT : __builtin_ctz(there);
}

/* ------------------------------------------------------------------------------------------------------------ match */

static void match_count_missed(struct kvbm_registry *r, const struct kvbm_msg_match *m) {
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++) {
        struct kvbm_block_pool *pool = kvbm__pool_find(r->manager, m->group, tier);
        if (pool != NULL && (m->tiers & KVBM_TIER_BIT(tier)) != 0) {
            kvbm__counter_add(&pool->r.missed, m->count - m->op.count);
            return; /* in the fastest tier asked for: once */
        }
    }
}

/* Leases found[0..n); false at the first that is not to be had. */
static bool match_lease(struct kvbm_registry *r, struct kvbm_msg_match *m, uint32_t n) {
    uint64_t leased[KVBM_TIER_COUNT] = {0};
    struct kvbm_registry_pool *by_tier[KVBM_TIER_COUNT] = {0};
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++) {
        struct kvbm_block_pool *pool = kvbm__pool_find(r->manager, m->group, tier);
        by_tier[tier] = pool != NULL ? pool_of(r, pool) : NULL;
    }
    bool complete = true;
    for (uint32_t i = 0; i < n; i++) {
        if (i + LEASE_AHEAD < n && r->found[i + LEASE_AHEAD] != KVBM_ENTRY_NONE) {
            struct kvbm_entry *ahead = kvbm_index_entry(&r->index, r->found[i + LEASE_AHEAD]);
            int tier = fastest_tier(ahead, m->tiers);
            if (tier < KVBM_TIER_COUNT)
                __builtin_prefetch(&by_tier[tier]->pool->slots.slots[ahead->slots[tier]], 1);
        }
        if (r->found[i] == KVBM_ENTRY_NONE) {
            complete = false;
            break;
        }
        struct kvbm_entry *entry = kvbm_index_entry(&r->index, r->found[i]);
        int tier = fastest_tier(entry, m->tiers);
        kvbm_block block = tier < KVBM_TIER_COUNT ? lease(by_tier[tier], entry->slots[tier]) : (kvbm_block){0};
        if (block.bits == 0) {
            complete = false;
            break;
        }
        if (entry->hit_count != UINT32_MAX)
            entry->hit_count++;
        leased[tier]++;
        m->blocks[m->op.count++] = block;
    }
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++) {
        if (leased[tier] > 0) {
            kvbm__counter_add(&by_tier[tier]->pool->r.matched, leased[tier]);
            cached_gauge(by_tier[tier]);
        }
    }
    return complete;
}

static void on_match(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    struct kvbm_msg_match *m = (struct kvbm_msg_match *)msg;
    if (!kvbm__operation_begin(self, &m->op, r->closing))
        return;
    KVBM_ASSERT(m->op.count == m->done);
    uint32_t n = m->count - m->done < KVBM_STEP_BLOCKS ? m->count - m->done : KVBM_STEP_BLOCKS;
    uint32_t written = (uint32_t)kvbm_index_find_many(&r->index, m->keys + m->done, n, m->group, 1, r->found);
    bool complete = match_lease(r, m, written);
    m->done += n;
    if (complete && m->done < m->count) {
        send_self(r, msg);
        return;
    }
    match_count_missed(r, m);
    kvbm_actor_reply(self, msg, 0);
}

/* ------------------------------------------------------------------------------------------------------------ query */

static void on_query(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    struct kvbm_msg_query *m = (struct kvbm_msg_query *)msg;
    if (!kvbm__operation_begin(self, &m->op, r->closing))
        return;
    uint32_t n = m->count - m->done < KVBM_STEP_BLOCKS ? m->count - m->done : KVBM_STEP_BLOCKS;
    kvbm_index_find_many(&r->index, m->keys + m->done, n, m->group, 0, r->found);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t tiers = r->found[i] == KVBM_ENTRY_NONE ? 0 : kvbm_index_entry(&r->index, r->found[i])->tiers;
        m->tiers[m->done + i] = tiers;
        m->op.count += tiers != 0;
    }
    m->done += n;
    if (m->done < m->count)
        send_self(r, msg);
    else
        kvbm_actor_reply(self, msg, 0);
}

/* --------------------------------------------------------------------------------------------------------- register */

/* A key that nobody has: a counter, hashed with a seed drawn at open. */
static kvbm_key anonymous_key(struct kvbm_registry *r) {
    uint64_t unique[3] = {r->anonymous_seed[0], r->anonymous_seed[1], r->anonymous_count++};
    kvbm_key key;
    kvbm_key_from_bytes_mt(unique, sizeof(unique), &key);
    return key;
}

/* The key of block m->done. Reads the block's tokens: it is claimed, so nobody changes them. */
static kvbm_key register_key(struct kvbm_registry *r, const struct kvbm_msg_register *m, kvbm_block block) {
    if (m->keys != NULL)
        return m->keys[m->done];
    if (m->flags & KVBM_REGISTER_ANONYMOUS)
        return anonymous_key(r);
    if (m->done == 0 && m->first_key_known)
        return m->first_key;
    KVBM_ASSERT(m->has_parent);
    const struct kvbm_slots *slots = &m->pool->slots;
    const uint32_t *tokens = slots->tokens + (size_t)kvbm__block_slot(block) * slots->page_size;
    kvbm_key key;
    kvbm_keys_compute_mt(tokens, 1, slots->page_size, NULL, 0, &m->previous, &key);
    return key;
}

static void entry_set_priority(struct kvbm_registry *r, uint32_t number, const struct kvbm_msg_register *m) {
    struct kvbm_entry *entry = kvbm_index_entry(&r->index, number);
    entry->priority = m->priority;
    entry->flags = (uint8_t)(entry->flags & ~KVBM_ENTRY_EXPIRES);
    if (m->expires_ns != 0 && m->priority > 0) {
        entry->flags |= KVBM_ENTRY_EXPIRES;
        r->expires_ns[number] = m->expires_ns;
    }
}

/* Where m->previous is in the block's tier; KVBM_SLOT_NONE if nowhere. */
static uint32_t register_parent_slot(struct kvbm_registry *r, const struct kvbm_msg_register *m) {
    uint32_t parent = m->has_parent ? kvbm_index_find(&r->index, &m->previous, m->pool->slots.group) : KVBM_ENTRY_NONE;
    return parent == KVBM_ENTRY_NONE ? KVBM_SLOT_NONE : kvbm_index_entry(&r->index, parent)->slots[m->pool->slots.tier];
}

/* The key is not resident in the block's tier: publishes the block. */
static void register_primary(struct kvbm_registry *r, struct kvbm_msg_register *m, uint32_t number, uint32_t slot,
                             uint32_t parent_slot) {
    struct kvbm_slots *slots = &m->pool->slots;
    struct kvbm_entry *entry = kvbm_index_entry(&r->index, number);
    KVBM_ASSERT((entry->tiers & KVBM_TIER_BIT(slots->tier)) == 0);
    if (entry->tiers == 0) {
        entry->parent = m->has_parent ? m->previous : (kvbm_key){{0}};
        entry->depth = m->depth;
        for (int tier = 0; tier < KVBM_TIER_COUNT; tier++)
            entry->slots[tier] = KVBM_SLOT_NONE;
    }
    entry->slots[slots->tier] = slot;
    entry->tiers |= (uint8_t)KVBM_TIER_BIT(slots->tier);
    entry_set_priority(r, number, m);
    struct kvbm_policy_place place = {
        .key = &entry->key,
        .parent = m->has_parent ? &m->previous : NULL,
        .parent_slot = parent_slot,
        .tokens_before = (uint64_t)m->depth * slots->page_size,
    };
    m->pool->policy->ops->publish(m->pool->policy, slot, &place);
    kvbm_slots_publish(slots, slot, number);
    kvbm__counter_add(&m->pool->r.registered, 1);
    kvbm__counter_add(&m->pool->r.published, 1);
}

static void register_kept(struct kvbm_msg_register *m, const kvbm_key *key, uint32_t slot) {
    m->pool->duplicate_keys[slot] = *key;
    kvbm_slots_publish(&m->pool->slots, slot, KVBM_ENTRY_NONE);
    kvbm__counter_add(&m->pool->r.registered, 1);
    kvbm__counter_add(&m->pool->r.published, 1);
}

/* The key is resident in the block's tier already. Returns the handle that replaces the block's. */
static kvbm_block register_duplicate(struct kvbm_registry *r, struct kvbm_msg_register *m, uint32_t number,
                                     kvbm_block block) {
    struct kvbm_registry_pool *p = pool_of(r, m->pool);
    struct kvbm_entry *entry = kvbm_index_entry(&r->index, number);
    uint32_t primary = entry->slots[m->pool->slots.tier];
    kvbm__counter_add(&m->pool->r.duplicates, 1);
    /* A register counts as use of the key; its priority can be raised by it, not lowered. A cached primary is out of
     * the policy first, so that it goes back with what it is now. */
    kvbm_block leased = {0};
    if ((m->flags & KVBM_REGISTER_KEEP_DUPLICATES) == 0)
        leased = lease(p, primary);
    if (leased.bits == 0) {
        register_kept(m, &entry->key, kvbm__block_slot(block));
        return block;
    }
    if (m->priority > entry->priority)
        entry_set_priority(r, number, m);
    cached_gauge(p);
    kvbm_slots_reset(&m->pool->slots, kvbm__block_slot(block));
    reclaim(p, kvbm__block_slot(block));
    return leased;
}

/* *parent_slot: where m->previous is, before and after. */
static void register_one(struct kvbm_registry *r, struct kvbm_msg_register *m, uint32_t *parent_slot) {
    kvbm_block block = m->blocks[m->done];
    kvbm_key key = register_key(r, m, block);
    uint32_t number = kvbm_index_find(&r->index, &key, m->pool->slots.group);
    bool duplicate = false;
    if (number == KVBM_ENTRY_NONE) {
        number = kvbm_index_insert(&r->index, &key, m->pool->slots.group);
        KVBM_ASSERT(number != KVBM_ENTRY_NONE); /* as many entries as there are slots */
        kvbm__counter_add(&r->entry_count, 1);
    } else {
        duplicate = (kvbm_index_entry(&r->index, number)->tiers & KVBM_TIER_BIT(m->pool->slots.tier)) != 0;
    }
    if (duplicate)
        block = register_duplicate(r, m, number, block);
    else
        register_primary(r, m, number, kvbm__block_slot(block), *parent_slot);
    *parent_slot = kvbm_index_entry(&r->index, number)->slots[m->pool->slots.tier];
    m->out_blocks[m->done] = block;
    if (m->out_keys != NULL)
        m->out_keys[m->done] = key;
    if (m->out_duplicate != NULL)
        m->out_duplicate[m->done] = duplicate;
    m->previous = key;
    m->has_parent = true;
    m->depth++;
    m->done++;
}

/* What of the request is known only here: depth of its first block, end of its priority. */
static void register_begin(struct kvbm_registry *r, struct kvbm_msg_register *m) {
    m->depth = 0;
    if (m->has_parent) {
        uint32_t parent = kvbm_index_find(&r->index, &m->previous, m->pool->slots.group);
        if (parent != KVBM_ENTRY_NONE)
            m->depth = kvbm_index_entry(&r->index, parent)->depth + 1;
    }
    m->expires_ns = 0;
    if (m->priority_ttl_ns != 0 && m->priority > 0) {
        uint64_t now_ns = r->os->now_ns(r->os->ctx);
        m->expires_ns = m->priority_ttl_ns < UINT64_MAX - now_ns ? now_ns + m->priority_ttl_ns : 0;
    }
}

static void on_register(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    struct kvbm_msg_register *m = (struct kvbm_msg_register *)msg;
    bool first = !m->op.begun;
    if (!kvbm__operation_begin(self, &m->op, r->closing))
        return;
    if (first)
        register_begin(r, m);
    uint32_t end = m->count - m->done < KVBM_STEP_BLOCKS ? m->count : m->done + KVBM_STEP_BLOCKS;
    /* Between two steps others run, and may evict a parent that nobody leases. */
    uint32_t parent_slot = register_parent_slot(r, m);
    while (m->done < end)
        register_one(r, m, &parent_slot);
    if (m->done < m->count) {
        send_self(r, msg);
        return;
    }
    m->op.count = m->count;
    kvbm_actor_reply(self, msg, 0);
}

/* ------------------------------------------------------------------------------------------------------------ evict */

/* The slot is out of the policy: its key goes, the slot is reset. */
static void evict_slot(struct kvbm_registry_pool *p, uint32_t slot) {
    struct kvbm_registry *r = p->registry;
    struct kvbm_slots *slots = &p->pool->slots;
    uint32_t number = slots->slots[slot].entry;
    struct kvbm_entry *entry = kvbm_index_entry(&r->index, number);
    KVBM_ASSERT(slots->slots[slot].state_hint == KVBM_SLOT_CACHED);
    KVBM_ASSERT(entry->slots[slots->tier] == slot);
    p->pool->policy->ops->forget(p->pool->policy, slot);
    entry->slots[slots->tier] = KVBM_SLOT_NONE;
    entry->tiers = (uint8_t)(entry->tiers & ~KVBM_TIER_BIT(slots->tier));
    if (entry->tiers == 0) {
        kvbm_index_remove(&r->index, number);
        kvbm__counter_sub(&r->entry_count, 1);
    }
    kvbm_slots_reset(slots, slot);
}

static void evict_chain(struct kvbm_registry_pool *p, struct kvbm_msg_evict *m, uint32_t slot) {
    p->pool->slots.slots[slot].next = m->chain_head;
    if (m->chain_count == 0)
        m->chain_tail = slot;
    m->chain_head = slot;
    m->chain_count++;
    p->sent_count++;
}

static void evict_reply(struct kvbm_registry_pool *p, struct kvbm_msg_evict *m) {
    struct kvbm_policy *policy = p->pool->policy;
    int32_t status = m->chain_count >= m->need ? 0 : -KVBM_ENOBLOCKS;
    m->available = policy->ops->count(policy) + p->reclaimed_count; /* beside the chain */
    m->version = p->version;
    kvbm_actor_reply(&p->registry->actor, &m->head, status);
}

/* All reclaimed slots move to the chain. */
static void evict_reclaimed(struct kvbm_registry_pool *p, struct kvbm_msg_evict *m) {
    KVBM_ASSERT(m->chain_count == 0);
    if (p->reclaimed_count == 0)
        return;
    m->chain_head = p->reclaimed_head;
    m->chain_tail = p->reclaimed_tail;
    m->chain_count = p->reclaimed_count;
    p->sent_count += m->chain_count;
    p->reclaimed_count = 0;
    p->reclaimed_head = p->reclaimed_tail = KVBM_SLOT_NONE;
    atomic_store_explicit(&p->pool->r.reclaimed, 0, memory_order_relaxed);
}

static void on_evict(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    struct kvbm_msg_evict *m = (struct kvbm_msg_evict *)msg;
    struct kvbm_registry_pool *p = pool_of(r, m->pool);
    struct kvbm_policy *policy = p->pool->policy;
    if (m->done == 0) {
        if (policy->ops->count(policy) + p->reclaimed_count < m->need)
            kvbm_registry_drain(r, p->pool->number);
        if (policy->ops->count(policy) + p->reclaimed_count < m->need) {
            evict_reply(p, m);
            return;
        }
        evict_reclaimed(p, m);
        m->done = 1;
    }
    uint64_t now_ns = policy->ops->uses_clock(policy) ? r->os->now_ns(r->os->ctx) : 0;
    uint32_t evicted = 0;
    while (m->chain_count < m->need && evicted < KVBM_STEP_BLOCKS) {
        uint32_t slot = policy->ops->victim(policy, now_ns);
        if (slot == KVBM_SLOT_NONE)
            break; /* blocks were leased between two steps */
        evict_slot(p, slot);
        evict_chain(p, m, slot);
        evicted++;
    }
    kvbm__counter_add(&p->pool->r.evicted, evicted);
    kvbm__counter_sub(&p->pool->r.registered, evicted);
    cached_gauge(p);
    if (m->chain_count < m->need && evicted == KVBM_STEP_BLOCKS)
        send_self(r, msg);
    else
        evict_reply(p, m);
}

/* ---------------------------------------------------------------------------------------------------------- control */

static void on_watch(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    struct kvbm_msg_watch *m = (struct kvbm_msg_watch *)msg;
    struct kvbm_registry_pool *p = pool_of(r, m->pool);
    KVBM_ASSERT(p->watch == NULL); /* one a pool */
    if (r->closing || m->version != p->version)
        kvbm_actor_reply(self, msg, 0);
    else
        p->watch = m;
}

static void on_settle(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_msg_settle *m = (struct kvbm_msg_settle *)msg;
    kvbm_registry_drain(registry_of(self), m->pool->number);
    kvbm_actor_reply(self, msg, 0);
}

static void on_shutdown(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_registry *r = registry_of(self);
    KVBM_ASSERT(!r->closing);
    r->closing = true;
    for (uint32_t i = 0; i < r->pool_count; i++) {
        struct kvbm_msg_watch *watch = r->pools[i].watch;
        r->pools[i].watch = NULL;
        if (watch != NULL)
            kvbm_actor_reply(self, &watch->head, 0);
    }
    kvbm_actor_reply(self, msg, 0);
}

static const kvbm_handler_fn registry_requests[KVBM_MSG_KIND_COUNT] = {
    [KVBM_MSG_REGISTER] = on_register, [KVBM_MSG_MATCH] = on_match, [KVBM_MSG_QUERY] = on_query,
    [KVBM_MSG_EVICT] = on_evict,       [KVBM_MSG_WATCH] = on_watch, [KVBM_MSG_SETTLE] = on_settle,
    [KVBM_MSG_SHUTDOWN] = on_shutdown,
};
static const kvbm_handler_fn registry_replies[KVBM_MSG_KIND_COUNT];

/* --------------------------------------------------------------------------------------------------- open and close */

int kvbm_registry_open(struct kvbm_registry *r, struct kvbm_manager *manager, const struct kvbm_os *os,
                       struct kvbm_registry_pool *pools, struct kvbm_block_pool *block_pools, uint32_t pool_count) {
    r->actor = (struct kvbm_actor){.name = "registry",
                                   .on_request = registry_requests,
                                   .on_reply = registry_replies,
                                   .kind_count = KVBM_MSG_KIND_COUNT};
    r->manager = manager;
    r->os = os;
    r->pools = pools;
    r->pool_count = pool_count;
    uint64_t entry_count = 0;
    for (uint32_t i = 0; i < pool_count; i++) {
        pools[i].registry = r;
        pools[i].pool = &block_pools[i];
        pools[i].reclaimed_head = pools[i].reclaimed_tail = KVBM_SLOT_NONE;
        entry_count += block_pools[i].slots.capacity;
    }
    if (entry_count > KVBM_INDEX_CAPACITY_MAX)
        return -EINVAL;
    r->anonymous_seed[0] = os->random_u64(os->ctx);
    r->anonymous_seed[1] = os->random_u64(os->ctx);
    int rc = kvbm_index_open(&r->index, os, (uint32_t)entry_count);
    if (rc != 0)
        return rc;
    void *map = NULL;
    r->expires_bytes = (size_t)entry_count * sizeof(uint64_t);
    unsigned got;
    rc = os->map(os->ctx, r->expires_bytes, KVBM_MAP_LAZY, &map, &got);
    if (rc != 0) {
        kvbm_index_close(&r->index);
        return rc;
    }
    r->expires_ns = map;
    return 0;
}

void kvbm_registry_close(struct kvbm_registry *r) {
    if (r->expires_ns == NULL)
        return;
    r->os->unmap(r->os->ctx, r->expires_ns, r->expires_bytes);
    r->expires_ns = NULL;
    kvbm_index_close(&r->index);
}

void kvbm_registry_attach(struct kvbm_registry *r, struct kvbm_reactor *reactor) {
    kvbm_reactor_actor_add(reactor, &r->actor);
    for (uint32_t i = 0; i < r->pool_count; i++)
        kvbm_reactor_retlane_add(reactor, &r->pools[i].pool->slots.lease_returns, on_returned, &r->pools[i]);
}
