/*
 * block_pool.h - the blocks of one group and tier: slots, layout, bytes, and the counters of both actors that look
 * after them. Owned by the manager. The allocator writes the counters under its heading, the registry those under its
 * own.
 */
#ifndef KVBM_ACTORS_BLOCK_POOL_H
#define KVBM_ACTORS_BLOCK_POOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/policy.h"
#include "actors/slots.h"
#include "storage/layout.h"
#include "storage/slab.h"

/* Relaxed counters with one writer, the reactor's owner; anybody reads. */
typedef _Atomic uint64_t kvbm_counter;

static inline void kvbm__counter_add(kvbm_counter *counter, uint64_t n) {
    /* One writer: no locked instruction is needed. Pairs with nothing: readers take any recent value. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}
static inline void kvbm__counter_sub(kvbm_counter *counter, uint64_t n) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) - n, memory_order_relaxed);
}
static inline uint64_t kvbm__counter_get(const kvbm_counter *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

struct kvbm_block_pool {
    uint32_t number; /* position in the manager's array, and in those of the actors */
    struct kvbm_slots slots;
    struct kvbm_layout layout;
    struct kvbm_slab slab; /* base NULL: bookkeeping only */
    struct kvbm_policy *policy;
    kvbm_key *duplicate_keys; /* of kept duplicates, by slot; lazily touched */
    size_t duplicate_keys_bytes;
    uint64_t generation_seed; /* first generations of the slots are made from it */
    struct {                  /* by the allocator */
        kvbm_counter free;    /* gauge: free slots here, reserved ones not counted */
        kvbm_counter waiting; /* gauge: allocations in line */
        kvbm_counter allocated, returned, shortages;
    } a;
    struct {                     /* by the registry */
        kvbm_counter reclaimed;  /* gauge: free slots there */
        kvbm_counter cached;     /* gauge: in the policy */
        kvbm_counter registered; /* gauge: cached or leased */
        kvbm_counter published, duplicates, evicted, released, matched, missed;
    } r;
};

/* Blocks that nobody holds and that hold nothing. */
static inline uint64_t kvbm__pool_free(const struct kvbm_block_pool *pool) {
    return kvbm__counter_get(&pool->a.free) + kvbm__counter_get(&pool->r.reclaimed);
}

#endif
