/*
 * policy_parts.h - what the eviction policies share: lists of slots, timers of priorities, memory of evicted keys.
 *
 * All of it works in memory that the policy mapped, allocates nothing, and belongs to the policy's thread.
 *
 *   lists    circular, doubly linked, a node for each slot and, behind them, one for each list's head. A node is one
 *            word: previous:27 | next:27 | tag:10, and the tag is the policy's. Zero: in no list, as a fresh map is.
 *   timers   a binary heap of the slots whose priority expires, earliest first. Touched by slots that use it.
 *   ghosts   the keys of the last so many evictions, each with 14 bits of the policy's. Sets of eight, a cache line
 *            each; the oldest of a full set is lost early. 32 bits tell keys of a set apart: one look-up in 2^29 finds
 *            what is not there, which costs a little of the policy's judgement and nothing else.
 */
#ifndef KVBM_ACTORS_POLICY_PARTS_H
#define KVBM_ACTORS_POLICY_PARTS_H

#include "actors/policy.h"
#include "runtime/log.h"

/* ------------------------------------------------------------------------------------------------------------ lists */

#define KVBM_NODE_LINK_BITS 27
#define KVBM_NODE_LINK_MASK ((UINT64_C(1) << KVBM_NODE_LINK_BITS) - 1)
#define KVBM_NODE_TAG_SHIFT (2 * KVBM_NODE_LINK_BITS)

static inline uint32_t kvbm__node_previous(uint64_t node) {
    return (uint32_t)(node & KVBM_NODE_LINK_MASK);
}

static inline uint32_t kvbm__node_next(uint64_t node) {
    return (uint32_t)(node >> KVBM_NODE_LINK_BITS & KVBM_NODE_LINK_MASK);
}

static inline uint32_t kvbm__node_tag(uint64_t node) {
    return (uint32_t)(node >> KVBM_NODE_TAG_SHIFT);
}

static inline uint64_t kvbm__node_make(uint32_t previous, uint32_t next, uint32_t tag) {
    return previous | (uint64_t)next << KVBM_NODE_LINK_BITS | (uint64_t)tag << KVBM_NODE_TAG_SHIFT;
}

static inline void kvbm__node_set_previous(uint64_t *node, uint32_t previous) {
    *node = (*node & ~KVBM_NODE_LINK_MASK) | previous;
}

static inline void kvbm__node_set_next(uint64_t *node, uint32_t next) {
    *node = (*node & ~(KVBM_NODE_LINK_MASK << KVBM_NODE_LINK_BITS)) | (uint64_t)next << KVBM_NODE_LINK_BITS;
}

/* `head`: index of the list's head among the nodes. */
static inline void kvbm__list_init(uint64_t *nodes, uint32_t head) {
    nodes[head] = kvbm__node_make(head, head, 0);
}

static inline bool kvbm__list_empty(const uint64_t *nodes, uint32_t head) {
    return kvbm__node_next(nodes[head]) == head;
}

/* The slot is in no list. tag: not 0. */
static inline void kvbm__list_append(uint64_t *nodes, uint32_t head, uint32_t slot, uint32_t tag) {
    uint32_t last = kvbm__node_previous(nodes[head]);
    nodes[slot] = kvbm__node_make(last, head, tag);
    kvbm__node_set_next(&nodes[last], slot);
    kvbm__node_set_previous(&nodes[head], slot);
}

/* Takes the slot out of the list that it is in. Returns the head of that list if it is empty now, else
 * KVBM_SLOT_NONE. */
static inline uint32_t kvbm__list_unlink(uint64_t *nodes, uint32_t slot) {
    uint32_t previous = kvbm__node_previous(nodes[slot]), next = kvbm__node_next(nodes[slot]);
    kvbm__node_set_next(&nodes[previous], next);
    kvbm__node_set_previous(&nodes[next], previous);
    nodes[slot] = 0;
    return previous == next ? previous : KVBM_SLOT_NONE;
}

/* Moves all of list `from` to the end of list `to`. */
static inline void kvbm__list_splice(uint64_t *nodes, uint32_t from, uint32_t to) {
    if (kvbm__list_empty(nodes, from))
        return;
    uint32_t first = kvbm__node_next(nodes[from]), last = kvbm__node_previous(nodes[from]);
    uint32_t before = kvbm__node_previous(nodes[to]);
    kvbm__node_set_next(&nodes[before], first);
    kvbm__node_set_previous(&nodes[first], before);
    kvbm__node_set_next(&nodes[last], to);
    kvbm__node_set_previous(&nodes[to], last);
    kvbm__list_init(nodes, from);
}

/* ----------------------------------------------------------------------------------------------------------- timers */

/* Ordered by time, then by order of insertion (which starts anew after 2^32: ties across that instant come in a wrong
 * order, nothing else does). */
struct kvbm__timer {
    uint64_t expires_ns;
    uint32_t sequence;
    uint32_t slot;
};

struct kvbm__timers {
    struct kvbm__timer *heap; /* slot_count places */
    uint32_t *positions;      /* of each slot that has a timer */
    uint32_t count;
    uint32_t sequence;
};

/* The slot has no timer. */
void kvbm__timers_add(struct kvbm__timers *timers, uint32_t slot, uint64_t expires_ns);
/* The slot has one. */
void kvbm__timers_remove(struct kvbm__timers *timers, uint32_t slot);
/* Removes and returns the next slot that has run out by now_ns; KVBM_SLOT_NONE if none has. */
uint32_t kvbm__timers_expired(struct kvbm__timers *timers, uint64_t now_ns);

/* The level of an insertion: priority, or 0 if it ran out already; *timed: it can run out yet. */
static inline uint32_t kvbm__policy_level(const struct kvbm_policy_meta *meta, uint64_t now_ns, bool *timed) {
    KVBM_ASSERT(meta->priority <= KVBM_PRIORITY_MAX);
    bool expires = meta->priority > 0 && meta->expires_ns != 0;
    bool over = expires && now_ns >= meta->expires_ns;
    *timed = expires && !over;
    return over ? 0 : meta->priority;
}

/* ----------------------------------------------------------------------------------------------------------- ghosts */

#define KVBM_GHOST_WAYS      8u
#define KVBM_GHOST_NOTE_BITS 14

struct kvbm__ghosts {
    uint64_t *entries; /* tag:32 | clock:16 | note:14 | used:1 */
    uint32_t set_mask;
    uint32_t clock, additions, additions_a_tick;
};

/* How many entries remember about `window` keys: a power of two, at least 1.25 times as many. */
uint64_t kvbm__ghosts_entries(uint64_t window);
/* `entries`: zeros, 64-byte aligned. */
void kvbm__ghosts_init(struct kvbm__ghosts *ghosts, uint64_t *entries, uint64_t window);
/* Remembers a key. digest: 64 well-mixed bits of it. note: 14 bits. */
void kvbm__ghosts_add(struct kvbm__ghosts *ghosts, uint64_t digest, uint32_t note);
/* Forgets the key and returns its note in *note; false if it is not among the last `window` added. */
bool kvbm__ghosts_take(struct kvbm__ghosts *ghosts, uint64_t digest, uint32_t *note);

/* Spreads a key (splitmix64's finaliser over its folded halves). */
static inline uint64_t kvbm__policy_digest(const kvbm_key *key, uint64_t secret) {
    uint64_t low, high;
    __builtin_memcpy(&low, key->bytes, sizeof(low));
    __builtin_memcpy(&high, key->bytes + sizeof(low), sizeof(high));
    uint64_t x = (low ^ secret) + (high << 29 | high >> 35);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

#endif
