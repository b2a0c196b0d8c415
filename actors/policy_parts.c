/*
 * policy_parts.c - timers of priorities and memory of evicted keys, for the eviction policies. See policy_parts.h.
 *
 * Thread: the policy's.
 */
#include "actors/policy_parts.h"

/* ----------------------------------------------------------------------------------------------------------- timers */

static inline bool timer_before(const struct kvbm__timer *a, const struct kvbm__timer *b) {
    return a->expires_ns != b->expires_ns ? a->expires_ns < b->expires_ns : a->sequence < b->sequence;
}

static inline void timer_place(struct kvbm__timers *t, uint32_t position, struct kvbm__timer timer) {
    t->heap[position] = timer;
    t->positions[timer.slot] = position;
}

/* Puts `timer` where it belongs, coming from the free position `hole`. */
static void timer_up(struct kvbm__timers *t, uint32_t hole, struct kvbm__timer timer) {
    while (hole > 0) {
        uint32_t parent = (hole - 1) / 2;
        if (!timer_before(&timer, &t->heap[parent]))
            break;
        timer_place(t, hole, t->heap[parent]);
        hole = parent;
    }
    timer_place(t, hole, timer);
}

static void timer_down(struct kvbm__timers *t, uint32_t hole, struct kvbm__timer timer) {
    for (;;) {
        uint32_t child = 2 * hole + 1;
        if (child >= t->count)
            break;
        if (child + 1 < t->count && timer_before(&t->heap[child + 1], &t->heap[child]))
            child++;
        if (!timer_before(&t->heap[child], &timer))
            break;
        timer_place(t, hole, t->heap[child]);
        hole = child;
    }
    timer_place(t, hole, timer);
}

void kvbm__timers_add(struct kvbm__timers *t, uint32_t slot, uint64_t expires_ns) {
    timer_up(t, t->count++, (struct kvbm__timer){expires_ns, t->sequence++, slot});
}

void kvbm__timers_remove(struct kvbm__timers *t, uint32_t slot) {
    uint32_t position = t->positions[slot];
    KVBM_ASSERT(position < t->count && t->heap[position].slot == slot);
    struct kvbm__timer last = t->heap[--t->count];
    if (last.slot == slot)
        return;
    if (position > 0 && timer_before(&last, &t->heap[(position - 1) / 2]))
        timer_up(t, position, last);
    else
        timer_down(t, position, last);
}

uint32_t kvbm__timers_expired(struct kvbm__timers *t, uint64_t now_ns) {
    if (t->count == 0 || t->heap[0].expires_ns > now_ns)
        return KVBM_SLOT_NONE;
    uint32_t slot = t->heap[0].slot;
    kvbm__timers_remove(t, slot);
    return slot;
}

/* ----------------------------------------------------------------------------------------------------------- ghosts */

#define WINDOW_TICKS 32u /* while the clock ticks so often, a window of keys is added */
#define NOTE_MASK    ((1u << KVBM_GHOST_NOTE_BITS) - 1)
#define CLOCK_SHIFT  16
#define TAG_SHIFT    32

static inline uint64_t *ghost_set(const struct kvbm__ghosts *g, uint64_t digest) {
    return &g->entries[(size_t)((uint32_t)digest & g->set_mask) * KVBM_GHOST_WAYS];
}

static inline uint32_t ghost_ticks(const struct kvbm__ghosts *g, uint64_t entry) {
    return (uint16_t)(g->clock - (uint32_t)(entry >> CLOCK_SHIFT));
}

static inline bool ghost_is(uint64_t entry, uint64_t digest) {
    return (entry & 1) != 0 && entry >> TAG_SHIFT == digest >> TAG_SHIFT;
}

uint64_t kvbm__ghosts_entries(uint64_t window) {
    uint64_t entries = KVBM_GHOST_WAYS;
    while (entries < window + window / 4)
        entries *= 2;
    return entries;
}

void kvbm__ghosts_init(struct kvbm__ghosts *g, uint64_t *entries, uint64_t window) {
    g->entries = entries;
    g->set_mask = (uint32_t)(kvbm__ghosts_entries(window) / KVBM_GHOST_WAYS - 1);
    g->additions_a_tick = (uint32_t)((window + WINDOW_TICKS - 1) / WINDOW_TICKS);
}

void kvbm__ghosts_add(struct kvbm__ghosts *g, uint64_t digest, uint32_t note) {
    KVBM_ASSERT(note <= NOTE_MASK);
    uint64_t *set = ghost_set(g, digest);
    uint32_t at = 0;
    for (uint32_t i = 0; i < KVBM_GHOST_WAYS; i++) {
        if ((set[i] & 1) == 0 || ghost_is(set[i], digest)) {
            at = i;
            break;
        }
        if (ghost_ticks(g, set[i]) > ghost_ticks(g, set[at]))
            at = i;
    }
    set[at] = digest >> TAG_SHIFT << TAG_SHIFT | (uint64_t)(g->clock & UINT16_MAX) << CLOCK_SHIFT | note << 1 | 1;
    if (++g->additions >= g->additions_a_tick) {
        g->additions = 0;
        g->clock++;
    }
}

bool kvbm__ghosts_take(struct kvbm__ghosts *g, uint64_t digest, uint32_t *note) {
    uint64_t *set = ghost_set(g, digest);
    for (uint32_t i = 0; i < KVBM_GHOST_WAYS; i++) {
        if (!ghost_is(set[i], digest))
            continue;
        bool fresh = ghost_ticks(g, set[i]) <= WINDOW_TICKS;
        *note = (uint32_t)(set[i] >> 1) & NOTE_MASK;
        set[i] = 0;
        return fresh;
    }
    return false;
}
