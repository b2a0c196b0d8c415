/*
 * policy_lru.c - the policy "lru": least recently used first, within eight levels of priority that may expire.
 *
 * One map holds the struct, a node for each slot, and the heap of slots whose priority expires. A slot stands in one of
 * nine circular lists, least recent first: one for each level, and before them the list of slots whose priority ran out
 * while they were held. Insert appends; victim takes the first of the first list that is not empty. Thread: the
 * registry's reactor.
 *
 * Memory of a slot, touched on first use: 8 bytes (node), and 20 more (heap item, heap position) for a slot that was
 * ever inserted with a priority that expires.
 */
#include <errno.h>

#include "actors/policy_parts.h"

/* A node's tag: list + 1:4 | timed:1. */
#define TAG_LIST_MASK 15u
#define TAG_TIMED     16u

#define LIST_EXPIRED 0u /* before the lists of the levels: list = 1 + level */
#define LIST_COUNT   (1u + KVBM_PRIORITY_MAX + 1u)

_Static_assert(KVBM_SLOT_COUNT_MAX + LIST_COUNT <= KVBM_NODE_LINK_MASK, "a link names every slot and every head");
_Static_assert(LIST_COUNT + 1 <= TAG_LIST_MASK, "a tag has 4 bits for its list");

struct lru {
    struct kvbm_policy policy;
    const struct kvbm_os *os;
    uint64_t *nodes; /* slot_count slots, then LIST_COUNT heads */
    struct kvbm__timers timers;
    uint64_t mapped_bytes;
    uint32_t slot_count;
    uint32_t held_count;
    uint32_t list_counts[LIST_COUNT];
};

static inline struct lru *lru_of(struct kvbm_policy *policy) {
    return (struct lru *)policy;
}

static inline void lru_append(struct lru *lru, uint32_t list, uint32_t slot, bool timed) {
    kvbm__list_append(lru->nodes, lru->slot_count + list, slot, (list + 1) | (timed ? TAG_TIMED : 0));
    lru->list_counts[list]++;
    lru->held_count++;
}

static inline void lru_unlink(struct lru *lru, uint32_t slot) {
    uint32_t list = (kvbm__node_tag(lru->nodes[slot]) & TAG_LIST_MASK) - 1;
    KVBM_ASSERT(list < LIST_COUNT && lru->list_counts[list] > 0);
    (void)kvbm__list_unlink(lru->nodes, slot);
    lru->list_counts[list]--;
    lru->held_count--;
}

/* ---------------------------------------------------------------------------------------------------- the interface */

static int lru_open(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy) {
    if (slot_count == 0 || slot_count > KVBM_SLOT_COUNT_MAX)
        return -EINVAL;
    uint64_t head_bytes = (sizeof(struct lru) + 63) / 64 * 64;
    uint64_t heap_bytes = (uint64_t)slot_count * sizeof(struct kvbm__timer);
    uint64_t nodes_bytes = ((uint64_t)slot_count + LIST_COUNT) * sizeof(uint64_t);
    uint64_t mapped_bytes = head_bytes + heap_bytes + nodes_bytes + (uint64_t)slot_count * sizeof(uint32_t);
    void *map = NULL;
    unsigned got;
    int rc = os->map(os->ctx, (size_t)mapped_bytes, KVBM_MAP_LAZY, &map, &got);
    if (rc != 0)
        return rc;
    unsigned char *at = map;
    struct lru *lru = map;
    lru->policy.ops = &kvbm_policy_lru;
    lru->os = os;
    lru->timers.heap = (struct kvbm__timer *)(void *)(at + head_bytes);
    lru->nodes = (uint64_t *)(void *)(at + head_bytes + heap_bytes);
    lru->timers.positions = (uint32_t *)(void *)(at + head_bytes + heap_bytes + nodes_bytes);
    lru->mapped_bytes = mapped_bytes;
    lru->slot_count = slot_count;
    for (uint32_t list = 0; list < LIST_COUNT; list++)
        kvbm__list_init(lru->nodes, slot_count + list);
    *policy = &lru->policy;
    return 0;
}

static void lru_close(struct kvbm_policy *policy) {
    struct lru *lru = lru_of(policy);
    lru->os->unmap(lru->os->ctx, lru, (size_t)lru->mapped_bytes);
}

static void lru_insert(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_meta *meta,
                       uint64_t now_ns) {
    struct lru *lru = lru_of(policy);
    KVBM_ASSERT(slot < lru->slot_count);
    KVBM_ASSERT(lru->nodes[slot] == 0);
    bool timed; /* a priority that ran out while the slot was leased makes an
                 ordinary slot, just used */
    uint32_t level = kvbm__policy_level(meta, now_ns, &timed);
    lru_append(lru, 1 + level, slot, timed);
    if (timed)
        kvbm__timers_add(&lru->timers, slot, meta->expires_ns);
}

static bool lru_remove(struct kvbm_policy *policy, uint32_t slot) {
    struct lru *lru = lru_of(policy);
    KVBM_ASSERT(slot < lru->slot_count);
    if (lru->nodes[slot] == 0)
        return false;
    if (kvbm__node_tag(lru->nodes[slot]) & TAG_TIMED)
        kvbm__timers_remove(&lru->timers, slot);
    lru_unlink(lru, slot);
    return true;
}

/* Moves what ran out to the list of the expired. */
static void lru_expire(struct lru *lru, uint64_t now_ns) {
    for (uint32_t slot; (slot = kvbm__timers_expired(&lru->timers, now_ns)) != KVBM_SLOT_NONE;) {
        lru_unlink(lru, slot);
        lru_append(lru, LIST_EXPIRED, slot, false);
    }
}

static uint32_t lru_victim(struct kvbm_policy *policy, uint64_t now_ns) {
    struct lru *lru = lru_of(policy);
    lru_expire(lru, now_ns);
    if (lru->held_count == 0)
        return KVBM_SLOT_NONE;
    uint32_t list = 0;
    while (lru->list_counts[list] == 0)
        list++;
    KVBM_ASSERT(list < LIST_COUNT);
    uint32_t slot = kvbm__node_next(lru->nodes[lru->slot_count + list]);
    KVBM_ASSERT(slot < lru->slot_count);
    /* Victims come in runs: have the next one's node, and its successor's, on the way. */
    uint32_t next = kvbm__node_next(lru->nodes[slot]);
    __builtin_prefetch(&lru->nodes[kvbm__node_next(lru->nodes[next])], 1);
    bool held = lru_remove(policy, slot);
    KVBM_ASSERT(held);
    return slot;
}

static void lru_publish(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_place *place) {
    (void)place;
    KVBM_ASSERT(slot < lru_of(policy)->slot_count);
    KVBM_ASSERT(lru_of(policy)->nodes[slot] == 0);
}

static void lru_hit(struct kvbm_policy *policy, uint32_t slot) {
    /* Recency is the order of insertion, and a slot that was hit will be inserted anew. */
    KVBM_ASSERT(slot < lru_of(policy)->slot_count);
}

static void lru_forget(struct kvbm_policy *policy, uint32_t slot) {
    /* There is no history beyond the lists, and a slot that lost its key is in none. */
    KVBM_ASSERT(slot < lru_of(policy)->slot_count);
    KVBM_ASSERT(lru_of(policy)->nodes[slot] == 0);
}

static uint32_t lru_count(const struct kvbm_policy *policy) {
    return ((const struct lru *)policy)->held_count;
}

static uint64_t lru_bytes(const struct kvbm_policy *policy) {
    return ((const struct lru *)policy)->mapped_bytes;
}

static bool lru_uses_clock(const struct kvbm_policy *policy) {
    return ((const struct lru *)policy)->timers.count > 0;
}

static uint64_t lru_check(const struct kvbm_policy *policy) {
    const struct lru *lru = (const struct lru *)policy;
    uint64_t violations = 0, held = 0, timed = 0;
    for (uint32_t list = 0; list < LIST_COUNT; list++) {
        uint32_t head = lru->slot_count + list, count = 0, previous = head;
        for (uint32_t at = kvbm__node_next(lru->nodes[head]); at != head && count <= lru->slot_count; count++) {
            uint32_t tag = kvbm__node_tag(lru->nodes[at]);
            violations += kvbm__node_previous(lru->nodes[at]) != previous || (tag & TAG_LIST_MASK) != list + 1;
            timed += (tag & TAG_TIMED) != 0;
            previous = at;
            at = kvbm__node_next(lru->nodes[at]);
        }
        violations += count != lru->list_counts[list];
        held += count;
    }
    return violations + (held != lru->held_count) + (timed != lru->timers.count);
}

const struct kvbm_policy_ops kvbm_policy_lru = {
    .name = "lru",
    .open = lru_open,
    .close = lru_close,
    .publish = lru_publish,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
    .hit = lru_hit,
    .forget = lru_forget,
    .count = lru_count,
    .bytes = lru_bytes,
    .uses_clock = lru_uses_clock,
    .check = lru_check,
};
