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

#include "actors/policy.h"
#include "runtime/log.h"

/* A node is one word: previous:27 | next:27 | list + 1:4 | timed:1. All zero: not held, as a fresh map is. 27 bits name
 * 2^26 slots and, behind them, the heads of the lists. */
#define NODE_LINK_BITS  27
#define NODE_LINK_MASK  ((UINT64_C(1) << NODE_LINK_BITS) - 1)
#define NODE_LIST_SHIFT (2 * NODE_LINK_BITS)
#define NODE_LIST_MASK  (UINT64_C(15) << NODE_LIST_SHIFT)
#define NODE_TIMED      (UINT64_C(1) << (NODE_LIST_SHIFT + 4))

#define LIST_EXPIRED 0u /* before the lists of the levels: list = 1 + level */
#define LIST_COUNT   (1u + KVBM_PRIORITY_MAX + 1u)

_Static_assert(KVBM_SLOT_COUNT_MAX + LIST_COUNT <= NODE_LINK_MASK, "a link names every slot and every head");
_Static_assert(LIST_COUNT + 1 <= 16, "a node has 4 bits for its list");

/* Ordered by time, then by order of insertion (which starts anew after 2^32: ties across that instant come in a wrong
 * order, nothing else does). */
struct lru_timer {
    uint64_t expires_ns;
    uint32_t sequence;
    uint32_t slot;
};

struct lru {
    struct kvbm_policy policy;
    const struct kvbm_os *os;
    uint64_t *nodes;         /* slot_count slots, then LIST_COUNT heads */
    struct lru_timer *heap;  /* binary heap, earliest first */
    uint32_t *heap_position; /* of each slot whose node is TIMED */
    uint64_t mapped_bytes;
    uint32_t slot_count;
    uint32_t held_count;
    uint32_t heap_count;
    uint32_t sequence;
    uint32_t list_counts[LIST_COUNT];
};

static inline struct lru *lru_of(struct kvbm_policy *policy) {
    return (struct lru *)policy;
}

/* ------------------------------------------------------------------------------------------------------------ lists */

static inline uint32_t node_previous(uint64_t node) {
    return (uint32_t)(node & NODE_LINK_MASK);
}

static inline uint32_t node_next(uint64_t node) {
    return (uint32_t)(node >> NODE_LINK_BITS & NODE_LINK_MASK);
}

static inline uint64_t node_make(uint32_t previous, uint32_t next, uint32_t list) {
    return previous | (uint64_t)next << NODE_LINK_BITS | (uint64_t)(list + 1) << NODE_LIST_SHIFT;
}

static inline uint32_t node_list(uint64_t node) {
    return (uint32_t)((node & NODE_LIST_MASK) >> NODE_LIST_SHIFT) - 1;
}

static inline void node_set_previous(uint64_t *node, uint32_t previous) {
    *node = (*node & ~NODE_LINK_MASK) | previous;
}

static inline void node_set_next(uint64_t *node, uint32_t next) {
    *node = (*node & ~(NODE_LINK_MASK << NODE_LINK_BITS)) | (uint64_t)next << NODE_LINK_BITS;
}

/* The slot is in no list. Its node's TIMED bit is cleared. */
static inline void list_append(struct lru *lru, uint32_t list, uint32_t slot) {
    uint32_t head = lru->slot_count + list;
    uint32_t last = node_previous(lru->nodes[head]);
    lru->nodes[slot] = node_make(last, head, list);
    node_set_next(&lru->nodes[last], slot);
    node_set_previous(&lru->nodes[head], slot);
    lru->list_counts[list]++;
    lru->held_count++;
}

static inline void list_unlink(struct lru *lru, uint32_t slot) {
    uint64_t node = lru->nodes[slot];
    uint32_t previous = node_previous(node), next = node_next(node), list = node_list(node);
    KVBM_ASSERT(list < LIST_COUNT && lru->list_counts[list] > 0);
    node_set_next(&lru->nodes[previous], next);
    node_set_previous(&lru->nodes[next], previous);
    lru->nodes[slot] = 0;
    lru->list_counts[list]--;
    lru->held_count--;
}

/* ------------------------------------------------------------------------------------------------- heap of expiries */

static inline bool timer_before(const struct lru_timer *a, const struct lru_timer *b) {
    return a->expires_ns != b->expires_ns ? a->expires_ns < b->expires_ns : a->sequence < b->sequence;
}

static inline void heap_place(struct lru *lru, uint32_t position, struct lru_timer timer) {
    lru->heap[position] = timer;
    lru->heap_position[timer.slot] = position;
}

/* Puts `timer` where it belongs, coming from the free position `hole`. */
static void heap_up(struct lru *lru, uint32_t hole, struct lru_timer timer) {
    while (hole > 0) {
        uint32_t parent = (hole - 1) / 2;
        if (!timer_before(&timer, &lru->heap[parent]))
            break;
        heap_place(lru, hole, lru->heap[parent]);
        hole = parent;
    }
    heap_place(lru, hole, timer);
}

static void heap_down(struct lru *lru, uint32_t hole, struct lru_timer timer) {
    for (;;) {
        uint32_t child = 2 * hole + 1;
        if (child >= lru->heap_count)
            break;
        if (child + 1 < lru->heap_count && timer_before(&lru->heap[child + 1], &lru->heap[child]))
            child++;
        if (!timer_before(&lru->heap[child], &timer))
            break;
        heap_place(lru, hole, lru->heap[child]);
        hole = child;
    }
    heap_place(lru, hole, timer);
}

static void heap_add(struct lru *lru, uint32_t slot, uint64_t expires_ns) {
    KVBM_ASSERT(lru->heap_count < lru->slot_count);
    heap_up(lru, lru->heap_count++, (struct lru_timer){expires_ns, lru->sequence++, slot});
}

static void heap_remove(struct lru *lru, uint32_t slot) {
    uint32_t position = lru->heap_position[slot];
    KVBM_ASSERT(position < lru->heap_count && lru->heap[position].slot == slot);
    struct lru_timer last = lru->heap[--lru->heap_count];
    if (last.slot == slot)
        return;
    if (position > 0 && timer_before(&last, &lru->heap[(position - 1) / 2]))
        heap_up(lru, position, last);
    else
        heap_down(lru, position, last);
}

/* ---------------------------------------------------------------------------------------------------- the interface */

static int lru_open(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy) {
    if (slot_count == 0 || slot_count > KVBM_SLOT_COUNT_MAX)
        return -EINVAL;
    uint64_t head_bytes = (sizeof(struct lru) + 63) / 64 * 64;
    uint64_t heap_bytes = (uint64_t)slot_count * sizeof(struct lru_timer);
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
    lru->heap = (struct lru_timer *)(void *)(at + head_bytes);
    lru->nodes = (uint64_t *)(void *)(at + head_bytes + heap_bytes);
    lru->heap_position = (uint32_t *)(void *)(at + head_bytes + heap_bytes + nodes_bytes);
    lru->mapped_bytes = mapped_bytes;
    lru->slot_count = slot_count;
    for (uint32_t list = 0; list < LIST_COUNT; list++)
        lru->nodes[slot_count + list] = node_make(slot_count + list, slot_count + list, list);
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
    KVBM_ASSERT(meta->priority <= KVBM_PRIORITY_MAX);
    uint32_t level = meta->priority;
    if (level > 0 && meta->expires_ns != 0 && now_ns >= meta->expires_ns)
        level = 0; /* it ran out while the slot was leased: an ordinary slot, just used */
    list_append(lru, 1 + level, slot);
    if (level > 0 && meta->expires_ns != 0) {
        lru->nodes[slot] |= NODE_TIMED;
        heap_add(lru, slot, meta->expires_ns);
    }
}

static bool lru_remove(struct kvbm_policy *policy, uint32_t slot) {
    struct lru *lru = lru_of(policy);
    KVBM_ASSERT(slot < lru->slot_count);
    if (lru->nodes[slot] == 0)
        return false;
    if (lru->nodes[slot] & NODE_TIMED)
        heap_remove(lru, slot);
    list_unlink(lru, slot);
    return true;
}

/* Moves what ran out to the list of the expired. */
static void lru_expire(struct lru *lru, uint64_t now_ns) {
    while (lru->heap_count > 0 && lru->heap[0].expires_ns <= now_ns) {
        uint32_t slot = lru->heap[0].slot;
        heap_remove(lru, slot);
        list_unlink(lru, slot);
        list_append(lru, LIST_EXPIRED, slot);
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
    uint32_t slot = node_next(lru->nodes[lru->slot_count + list]);
    KVBM_ASSERT(slot < lru->slot_count);
    /* Victims come in runs: have the next one's node, and its successor's, on the way. */
    uint32_t next = node_next(lru->nodes[slot]);
    __builtin_prefetch(&lru->nodes[node_next(lru->nodes[next])], 1);
    bool held = lru_remove(policy, slot);
    KVBM_ASSERT(held);
    return slot;
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
    return ((const struct lru *)policy)->heap_count > 0;
}

const struct kvbm_policy_ops kvbm_policy_lru = {
    .name = "lru",
    .open = lru_open,
    .close = lru_close,
    .insert = lru_insert,
    .remove = lru_remove,
    .victim = lru_victim,
    .hit = lru_hit,
    .forget = lru_forget,
    .count = lru_count,
    .bytes = lru_bytes,
    .uses_clock = lru_uses_clock,
};
