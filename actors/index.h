/*
 * index.h - the hash index of the registry: (key, group) -> entry, over all tiers.
 *
 * Linear probing over 8-byte buckets (32 hash bits beside a 32-bit entry number), at most 60 % full by construction, so
 * it never grows and never allocates after open; removal shifts back, so there are no tombstones. Keys are digests
 * already: the hash is one multiplication that folds the key's two halves, the group and two random secrets of the
 * index together (so that a chosen set of keys cannot crowd one place). Entries are 64 bytes, one cache line, in a
 * fixed array with a free list. Maps are touched lazily.
 *
 * Memory of one tracked block, all of the bookkeeping, bytes touched:
 *      64      entry
 *      13..27  buckets: 8 / load, the load of a full index being between 30 and 60 %
 *      24      slot (slots.h)
 *       8      links of its two return lanes
 *       8      node of the policy (policy_lru.c; 72..92 policy_prefix.c, 23..33 policy_s3fifo.c; 20 more for a slot
 *              with a priority that expires)
 *     117..131 in all with lru; page_size * 4 more with KVBM_OPEN_TRACK_TOKENS
 *
 * Thread: the registry's reactor.
 */
#ifndef KVBM_ACTORS_INDEX_H
#define KVBM_ACTORS_INDEX_H

#include <stdint.h>

#include "actors/kvbm.h"
#include "runtime/os.h"

#define KVBM_ENTRY_NONE         UINT32_MAX
#define KVBM_SLOT_NONE          UINT32_MAX
#define KVBM_INDEX_CAPACITY_MAX (1u << 30)

struct kvbm_entry {
    kvbm_key key;
    kvbm_key parent;                 /* zero for the first block of a chain */
    uint32_t slots[KVBM_TIER_COUNT]; /* slot in each tier's pool, KVBM_SLOT_NONE: not resident there */
    uint8_t group;                   /* < KVBM_GROUP_COUNT_MAX; 0xff while free */
    uint8_t tiers;                   /* KVBM_TIER_BIT of slots that are set */
    uint8_t priority;
    uint8_t flags;
    uint32_t hit_count; /* saturating */
    uint32_t next_free; /* free list; meaningless while in use */
    uint32_t depth;     /* blocks before it in its chain, as far as known */
};
_Static_assert(sizeof(struct kvbm_entry) == 64, "one cache line");

struct kvbm_index {
    const struct kvbm_os *os;
    uint64_t *buckets;
    uint64_t bucket_mask;
    struct kvbm_entry *entries;
    uint32_t entry_capacity;
    uint32_t entry_count;
    uint32_t entry_fresh; /* entries never used yet start here */
    uint32_t free_head;
    uint64_t secrets[2];
    size_t buckets_bytes, entries_bytes;
};

/* 0, -EINVAL (0 or more than 2^30 entries), -ENOMEM */
int kvbm_index_open(struct kvbm_index *index, const struct kvbm_os *os, uint32_t entry_capacity);
void kvbm_index_close(struct kvbm_index *index);
/* Entry number, KVBM_ENTRY_NONE if absent. */
uint32_t kvbm_index_find(const struct kvbm_index *index, const kvbm_key *key, uint32_t group);
/* Finds keys[0..count) into found[0..count), with the memory accesses of many keys overlapped (prefetch of buckets,
 * then of entries). Stops after the first absent key if `prefix`; returns how many of found[] were written (found
 * counts the absent one as written, KVBM_ENTRY_NONE). */
uint64_t kvbm_index_find_many(const struct kvbm_index *index, const kvbm_key *keys, uint64_t count, uint32_t group,
                              int prefix, uint32_t *found);
/* The key must be absent (asserted). KVBM_ENTRY_NONE when the capacity is used up. The entry has key and group set,
 * nothing resident and zeros in the rest. */
uint32_t kvbm_index_insert(struct kvbm_index *index, const kvbm_key *key, uint32_t group);
/* The entry must be in use (asserted). */
void kvbm_index_remove(struct kvbm_index *index, uint32_t entry);
/* Hints for long runs: starts loading the bucket where `key` is looked for or inserted; the entry itself; the bucket of
 * an entry, whose own line should have been prefetched earlier. To remove many entries at full speed: _entry some
 * sixteen ahead, _bucket some eight ahead, then remove. */
void kvbm_index_prefetch_key(const struct kvbm_index *index, const kvbm_key *key, uint32_t group);
void kvbm_index_prefetch_entry(const struct kvbm_index *index, uint32_t entry);
void kvbm_index_prefetch_bucket(const struct kvbm_index *index, uint32_t entry);
static inline struct kvbm_entry *kvbm_index_entry(const struct kvbm_index *index, uint32_t entry) {
    return &index->entries[entry];
}
/* Memory mapped. */
uint64_t kvbm_index_bytes(const struct kvbm_index *index);
/* Walks every bucket and entry; returns the number of violations (tests and the simulation's checker). */
uint64_t kvbm_index_check(const struct kvbm_index *index);

#endif
