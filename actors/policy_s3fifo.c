/*
 * policy_s3fifo.c - the policy "s3fifo": two queues and a memory of evicted keys, which a one-time scan cannot flush.
 *
 * Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023. New keys enter
 * the small queue. At its head a key that was hit meanwhile moves to the main queue, another is evicted and its digest
 * remembered; a key that comes back while it is remembered enters the main queue at once. At the head of the main queue
 * a key that was hit (a counter up to 3) goes round again with one hit less. Victims come from the small queue while
 * that is larger than its share.
 *
 * Adapted: a block leaves the policy while it is leased, and holds its place in no queue then. So the queues are
 * ordered by the end of the last lease instead of by entry; a block comes back to the queue it was in. What was hit,
 * and which queue is a block's own, belongs to the slot until `forget`. The queues exist once for each level of
 * priority, and the small queue's share is of all slots. Within one call of `victim` at most REQUEUES_MAX blocks go
 * round, so that it takes bounded time: then the next at a head goes, hit or not. The share is a quarter where the
 * paper has a tenth, and keys are remembered for as many evictions as there are slots: measured on prompts, whose
 * blocks come in long chains (docs/core/eviction.md).
 *
 * Memory of a slot, touched on first use: 13 bytes, 10 to 20 of remembered keys, and 20 more once its priority expires.
 * Thread: the registry's reactor.
 */
#include <errno.h>

#include "actors/policy_parts.h"

#define LEVEL_COUNT  (KVBM_PRIORITY_MAX + 1u)
#define LIST_COUNT   (2u * LEVEL_COUNT) /* small and main queue of each level */
#define HITS_MAX     3u
#define REQUEUES_MAX 4096u
#define SMALL_SHARE  4u /* the small queue's: one in so many slots */

/* A node's tag: list + 1:5 | timed:1. */
#define TAG_LIST_MASK 31u
#define TAG_TIMED     32u

/* What is kept of a slot until it is forgotten. */
#define STATE_HITS      3u
#define STATE_PUBLISHED 4u
#define STATE_MAIN      8u

_Static_assert(KVBM_SLOT_COUNT_MAX + LIST_COUNT <= KVBM_NODE_LINK_MASK, "a link names every slot and every head");

struct s3fifo {
    struct kvbm_policy policy;
    const struct kvbm_os *os;
    uint64_t *nodes; /* slot_count slots, then LIST_COUNT heads */
    uint32_t *digests;
    uint8_t *states;
    struct kvbm__timers timers;
    struct kvbm__ghosts ghosts;
    uint64_t mapped_bytes;
    uint32_t slot_count;
    uint32_t held_count;
    uint32_t small_count; /* held in small queues */
    uint32_t list_counts[LIST_COUNT];
};

static inline struct s3fifo *s3fifo_of(struct kvbm_policy *policy) {
    return (struct s3fifo *)policy;
}

/* The digest that is remembered, widened from what is kept beside the slot. */
static inline uint64_t s3fifo_digest(uint32_t kept) {
    return (uint64_t)kept * UINT64_C(0x9e3779b97f4a7c15);
}

static void s3fifo_append(struct s3fifo *s, uint32_t slot, uint32_t level, bool timed) {
    bool is_main = (s->states[slot] & STATE_MAIN) != 0;
    uint32_t list = 2 * level + is_main;
    kvbm__list_append(s->nodes, s->slot_count + list, slot, (list + 1) | (timed ? TAG_TIMED : 0));
    s->list_counts[list]++;
    s->held_count++;
    s->small_count += !is_main;
}

/* Returns the slot's level. */
static uint32_t s3fifo_unlink(struct s3fifo *s, uint32_t slot) {
    uint32_t list = (kvbm__node_tag(s->nodes[slot]) & TAG_LIST_MASK) - 1;
    KVBM_ASSERT(list < LIST_COUNT && s->list_counts[list] > 0);
    (void)kvbm__list_unlink(s->nodes, slot);
    s->list_counts[list]--;
    s->held_count--;
    s->small_count -= (list & 1) == 0;
    return list / 2;
}

/* --------------------------------------------------------------------------------------------------- open and close */

static uint64_t rounded(uint64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static int s3fifo_open(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy) {
    if (slot_count == 0 || slot_count > KVBM_SLOT_COUNT_MAX)
        return -EINVAL;
    uint64_t at[7], end = 0;
    uint64_t sizes[7] = {sizeof(struct s3fifo),
                         ((uint64_t)slot_count + LIST_COUNT) * sizeof(uint64_t),
                         (uint64_t)slot_count * sizeof(struct kvbm__timer),
                         (uint64_t)slot_count * sizeof(uint32_t),
                         (uint64_t)slot_count * sizeof(uint32_t),
                         kvbm__ghosts_entries(slot_count) * sizeof(uint64_t),
                         slot_count};
    for (uint32_t i = 0; i < 7; i++) {
        at[i] = end;
        end += rounded(sizes[i]);
    }
    void *map = NULL;
    unsigned got;
    int rc = os->map(os->ctx, (size_t)end, KVBM_MAP_LAZY, &map, &got);
    if (rc != 0)
        return rc;
    unsigned char *base = map;
    struct s3fifo *s = map;
    s->policy.ops = &kvbm_policy_s3fifo;
    s->os = os;
    s->nodes = (uint64_t *)(void *)(base + at[1]);
    s->timers.heap = (struct kvbm__timer *)(void *)(base + at[2]);
    s->timers.positions = (uint32_t *)(void *)(base + at[3]);
    s->digests = (uint32_t *)(void *)(base + at[4]);
    kvbm__ghosts_init(&s->ghosts, (uint64_t *)(void *)(base + at[5]), slot_count);
    s->states = base + at[6];
    s->mapped_bytes = end;
    s->slot_count = slot_count;
    for (uint32_t list = 0; list < LIST_COUNT; list++)
        kvbm__list_init(s->nodes, slot_count + list);
    *policy = &s->policy;
    return 0;
}

static void s3fifo_close(struct kvbm_policy *policy) {
    struct s3fifo *s = s3fifo_of(policy);
    s->os->unmap(s->os->ctx, s, (size_t)s->mapped_bytes);
}

/* ---------------------------------------------------------------------------------------------------- the interface */

static void s3fifo_publish(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_place *place) {
    struct s3fifo *s = s3fifo_of(policy);
    KVBM_ASSERT(slot < s->slot_count);
    KVBM_ASSERT(s->nodes[slot] == 0 && s->states[slot] == 0);
    uint32_t note;
    s->digests[slot] = (uint32_t)kvbm__policy_digest(place->key, 0);
    bool known = kvbm__ghosts_take(&s->ghosts, s3fifo_digest(s->digests[slot]), &note);
    s->states[slot] = (uint8_t)(STATE_PUBLISHED | (known ? STATE_MAIN : 0));
}

static void s3fifo_insert(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_meta *meta,
                          uint64_t now_ns) {
    struct s3fifo *s = s3fifo_of(policy);
    KVBM_ASSERT(slot < s->slot_count);
    KVBM_ASSERT(s->nodes[slot] == 0 && (s->states[slot] & STATE_PUBLISHED) != 0);
    bool timed;
    uint32_t level = kvbm__policy_level(meta, now_ns, &timed);
    s3fifo_append(s, slot, level, timed);
    if (timed)
        kvbm__timers_add(&s->timers, slot, meta->expires_ns);
}

static bool s3fifo_remove(struct kvbm_policy *policy, uint32_t slot) {
    struct s3fifo *s = s3fifo_of(policy);
    KVBM_ASSERT(slot < s->slot_count);
    if (s->nodes[slot] == 0)
        return false;
    if (kvbm__node_tag(s->nodes[slot]) & TAG_TIMED)
        kvbm__timers_remove(&s->timers, slot);
    (void)s3fifo_unlink(s, slot);
    return true;
}

/* Sends a slot that was hit round again; false: it was not. */
static bool s3fifo_spare(struct s3fifo *s, uint32_t slot) {
    uint8_t state = s->states[slot];
    if ((state & STATE_HITS) == 0)
        return false;
    bool timed = (kvbm__node_tag(s->nodes[slot]) & TAG_TIMED) != 0;
    uint32_t level = s3fifo_unlink(s, slot);
    if (state & STATE_MAIN)
        s->states[slot] = (uint8_t)(state - 1);
    else
        s->states[slot] = (uint8_t)((state & ~STATE_HITS) | STATE_MAIN);
    s3fifo_append(s, slot, level, timed);
    return true;
}

static uint32_t s3fifo_victim(struct kvbm_policy *policy, uint64_t now_ns) {
    struct s3fifo *s = s3fifo_of(policy);
    for (uint32_t slot; (slot = kvbm__timers_expired(&s->timers, now_ns)) != KVBM_SLOT_NONE;) {
        (void)s3fifo_unlink(s, slot);
        s3fifo_append(s, slot, 0, false);
    }
    if (s->held_count == 0)
        return KVBM_SLOT_NONE;
    uint32_t level = 0;
    while (s->list_counts[2 * level] + s->list_counts[2 * level + 1] == 0)
        level++;
    KVBM_ASSERT(level < LEVEL_COUNT);
    for (uint32_t round = 0;; round++) {
        bool small = s->list_counts[2 * level] > 0 &&
                     (s->small_count > s->slot_count / SMALL_SHARE || s->list_counts[2 * level + 1] == 0);
        uint32_t slot = kvbm__node_next(s->nodes[s->slot_count + 2 * level + !small]);
        KVBM_ASSERT(slot < s->slot_count);
        if (round < REQUEUES_MAX && s3fifo_spare(s, slot))
            continue;
        bool held = s3fifo_remove(policy, slot);
        KVBM_ASSERT(held);
        if (small)
            kvbm__ghosts_add(&s->ghosts, s3fifo_digest(s->digests[slot]), 0);
        return slot;
    }
}

static void s3fifo_hit(struct kvbm_policy *policy, uint32_t slot) {
    struct s3fifo *s = s3fifo_of(policy);
    KVBM_ASSERT(slot < s->slot_count && (s->states[slot] & STATE_PUBLISHED) != 0);
    if ((s->states[slot] & STATE_HITS) < HITS_MAX)
        s->states[slot]++;
}

static void s3fifo_forget(struct kvbm_policy *policy, uint32_t slot) {
    struct s3fifo *s = s3fifo_of(policy);
    KVBM_ASSERT(slot < s->slot_count);
    KVBM_ASSERT(s->nodes[slot] == 0);
    s->states[slot] = 0;
}

static uint32_t s3fifo_count(const struct kvbm_policy *policy) {
    return ((const struct s3fifo *)policy)->held_count;
}

static uint64_t s3fifo_bytes(const struct kvbm_policy *policy) {
    return ((const struct s3fifo *)policy)->mapped_bytes;
}

static bool s3fifo_uses_clock(const struct kvbm_policy *policy) {
    return ((const struct s3fifo *)policy)->timers.count > 0;
}

static uint64_t s3fifo_check(const struct kvbm_policy *policy) {
    const struct s3fifo *s = (const struct s3fifo *)policy;
    uint64_t violations = 0, held = 0, timed = 0, small = 0;
    for (uint32_t list = 0; list < LIST_COUNT; list++) {
        uint32_t head = s->slot_count + list, count = 0, previous = head;
        for (uint32_t at = kvbm__node_next(s->nodes[head]); at != head && count <= s->slot_count; count++) {
            uint32_t tag = kvbm__node_tag(s->nodes[at]);
            violations += kvbm__node_previous(s->nodes[at]) != previous || (tag & TAG_LIST_MASK) != list + 1;
            violations += (s->states[at] & STATE_PUBLISHED) == 0;
            violations += ((s->states[at] & STATE_MAIN) != 0) != ((list & 1) != 0);
            timed += (tag & TAG_TIMED) != 0;
            previous = at;
            at = kvbm__node_next(s->nodes[at]);
        }
        violations += count != s->list_counts[list];
        held += count;
        small += (list & 1) == 0 ? count : 0;
    }
    return violations + (held != s->held_count) + (small != s->small_count) + (timed != s->timers.count);
}

const struct kvbm_policy_ops kvbm_policy_s3fifo = {
    .name = "s3fifo",
    .open = s3fifo_open,
    .close = s3fifo_close,
    .publish = s3fifo_publish,
    .insert = s3fifo_insert,
    .remove = s3fifo_remove,
    .victim = s3fifo_victim,
    .hit = s3fifo_hit,
    .forget = s3fifo_forget,
    .count = s3fifo_count,
    .bytes = s3fifo_bytes,
    .uses_clock = s3fifo_uses_clock,
    .check = s3fifo_check,
};
