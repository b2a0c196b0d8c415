/*
 * index.c - the hash index of the registry: linear probing with shift-back removal. See index.h.
 *
 * Owns two maps: the buckets and the entries. Thread: the registry's reactor.
 *
 * A bucket is tag << 32 | entry + 1, and 0 when empty, so that a fresh map is an empty table. The tag's low bits are
 * the home position: probing and shifting back never need the entry's own cache line, and a probe touches an entry only
 * where all 32 tag bits agree.
 *
 * Source of the hash: the folded 64 x 64 -> 128 bit multiplication of wyhash (Wang Yi) and XXH3. Of shifting back:
 * Knuth, The Art of Computer Programming, volume 3, section 6.4, algorithm R.
 */
#include "actors/index.h"

#include <errno.h>
#include <string.h>

#include "runtime/log.h"

#define INDEX_GROUP_FREE 0xff

/* Keys in one step of the pipeline of find_many. Two steps are in flight, so about twice as many cache misses overlap:
 * about as many as a core can have (12 to 48), few enough to stay in L1. Measured: 12, 16 and 24 do not differ. */
#define FIND_STEP 16

_Static_assert(KVBM_INDEX_CAPACITY_MAX < UINT32_MAX, "an entry number + 1 fits a bucket");

static inline uint32_t index_tag(const struct kvbm_index *index, const kvbm_key *key, uint32_t group) {
    uint64_t low, high;
    memcpy(&low, key->bytes, sizeof(low));
    memcpy(&high, key->bytes + sizeof(low), sizeof(high));
    /* The group is spread over the upper bits by an odd constant (2^64 / golden ratio), far from the key's weak ones.
     */
    unsigned __int128 product = (unsigned __int128)(low ^ index->secrets[0] ^ group * UINT64_C(0x9e3779b97f4a7c15)) *
                                (high ^ index->secrets[1]);
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    return (uint32_t)(folded ^ folded >> 32);
}

static inline uint32_t bucket_tag(uint64_t bucket) {
    return (uint32_t)(bucket >> 32);
}

static inline uint32_t bucket_entry(uint64_t bucket) {
    return (uint32_t)bucket - 1;
}

static inline bool entry_is(const struct kvbm_entry *entry, const kvbm_key *key, uint32_t group) {
    uint64_t a[2], b[2];
    memcpy(a, entry->key.bytes, sizeof(a));
    memcpy(b, key->bytes, sizeof(b));
    return ((a[0] ^ b[0]) | (a[1] ^ b[1])) == 0 && entry->group == group;
}

/* Huge pages, since random access to 4 KiB ones misses the TLB each time: measured at 10^7 entries, a third less. They
 * are to be transparent ones only: a size that is no multiple of 2 MiB keeps the explicit ones, which are reserved for
 * slabs, out of it. */
static int index_map(const struct kvbm_os *os, size_t *bytes, void **map) {
    if (*bytes % (2u << 20) == 0)
        *bytes += 4096;
    return os->map(os->ctx, *bytes, KVBM_MAP_LAZY | KVBM_MAP_HUGE, map, NULL);
}

int kvbm_index_open(struct kvbm_index *index, const struct kvbm_os *os, uint32_t entry_capacity) {
    memset(index, 0, sizeof(*index));
    if (entry_capacity == 0 || entry_capacity > KVBM_INDEX_CAPACITY_MAX)
        return -EINVAL;
    uint64_t bucket_count = 16;
    while (bucket_count * 6 < (uint64_t)entry_capacity * 10)
        bucket_count *= 2;
    index->os = os;
    index->bucket_mask = bucket_count - 1;
    index->entry_capacity = entry_capacity;
    index->free_head = KVBM_ENTRY_NONE;
    index->secrets[0] = os->random_u64(os->ctx);
    index->secrets[1] = os->random_u64(os->ctx);
    index->buckets_bytes = (size_t)(bucket_count * sizeof(uint64_t));
    index->entries_bytes = (size_t)entry_capacity * sizeof(struct kvbm_entry);

    void *buckets = NULL, *entries = NULL;
    int rc = index_map(os, &index->buckets_bytes, &buckets);
    if (rc != 0)
        return rc;
    rc = index_map(os, &index->entries_bytes, &entries);
    if (rc != 0) {
        os->unmap(os->ctx, buckets, index->buckets_bytes);
        return rc;
    }
    index->buckets = buckets;
    index->entries = entries;
    return 0;
}

void kvbm_index_close(struct kvbm_index *index) {
    if (index->buckets == NULL)
        return;
    index->os->unmap(index->os->ctx, index->entries, index->entries_bytes);
    index->os->unmap(index->os->ctx, index->buckets, index->buckets_bytes);
    index->entries = NULL;
    index->buckets = NULL;
}

/* The entry of (key, group), looking on from `position`. */
static inline uint32_t find_from(const struct kvbm_index *index, const kvbm_key *key, uint32_t group, uint32_t tag,
                                 uint64_t position) {
    for (;; position++) {
        uint64_t bucket = index->buckets[position & index->bucket_mask];
        if (bucket == 0)
            return KVBM_ENTRY_NONE;
        if (bucket_tag(bucket) == tag && entry_is(&index->entries[bucket_entry(bucket)], key, group))
            return bucket_entry(bucket);
    }
}

uint32_t kvbm_index_find(const struct kvbm_index *index, const kvbm_key *key, uint32_t group) {
    uint32_t tag = index_tag(index, key, group);
    return find_from(index, key, group, tag, tag);
}

/* One step of the pipeline of find_many. */
struct find_step {
    uint32_t tags[FIND_STEP];
    uint32_t candidates[FIND_STEP]; /* first entry whose tag agrees, KVBM_ENTRY_NONE if none does */
};

static inline void find_hash(const struct kvbm_index *index, const kvbm_key *keys, uint32_t count, uint32_t group,
                             struct find_step *step) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t tag = index_tag(index, &keys[i], group);
        step->tags[i] = tag;
        __builtin_prefetch(&index->buckets[tag & index->bucket_mask]);
    }
}

static inline void find_probe(const struct kvbm_index *index, uint32_t count, struct find_step *step) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t tag = step->tags[i];
        uint64_t position = tag & index->bucket_mask;
        uint64_t bucket = index->buckets[position];
        while (bucket != 0 && bucket_tag(bucket) != tag) {
            position = (position + 1) & index->bucket_mask;
            bucket = index->buckets[position];
        }
        step->candidates[i] = bucket_entry(bucket); /* of an empty bucket: KVBM_ENTRY_NONE */
        if (bucket != 0)
            __builtin_prefetch(&index->entries[bucket_entry(bucket)]);
    }
}

/* Returns how many were written to found[]. */
static inline uint32_t find_compare(const struct kvbm_index *index, const kvbm_key *keys, uint32_t count,
                                    uint32_t group, const struct find_step *step, int prefix, uint32_t *found) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t entry = step->candidates[i];
        if (entry != KVBM_ENTRY_NONE && !entry_is(&index->entries[entry], &keys[i], group))
            entry = find_from(index, &keys[i], group, step->tags[i], step->tags[i]); /* two keys with one tag: rare */
        found[i] = entry;
        if (prefix && entry == KVBM_ENTRY_NONE)
            return i + 1;
    }
    return count;
}

static inline uint32_t find_step_count(uint64_t count, uint64_t start) {
    if (start >= count)
        return 0;
    return count - start < FIND_STEP ? (uint32_t)(count - start) : FIND_STEP;
}

uint64_t kvbm_index_find_many(const struct kvbm_index *index, const kvbm_key *keys, uint64_t count, uint32_t group,
                              int prefix, uint32_t *found) {
    struct find_step steps[3];
    uint32_t turn = 0; /* steps[turn] is hashed, the one before is probed, the one before that is compared */
    if (count == 0)
        return 0;
    find_hash(index, keys, find_step_count(count, 0), group, &steps[0]);
    find_hash(index, keys + find_step_count(count, 0), find_step_count(count, FIND_STEP), group, &steps[1]);
    find_probe(index, find_step_count(count, 0), &steps[0]);
    for (uint64_t start = 0; start < count; start += FIND_STEP) {
        struct find_step *compared = &steps[turn];
        struct find_step *probed = &steps[turn == 2 ? 0 : turn + 1];
        struct find_step *hashed = &steps[turn == 0 ? 2 : turn - 1];
        uint32_t ahead = find_step_count(count, start + 2 * FIND_STEP);
        if (ahead > 0)
            find_hash(index, keys + start + 2 * FIND_STEP, ahead, group, hashed);
        find_probe(index, find_step_count(count, start + FIND_STEP), probed);
        uint32_t written =
            find_compare(index, keys + start, find_step_count(count, start), group, compared, prefix, found + start);
        if (prefix && found[start + written - 1] == KVBM_ENTRY_NONE)
            return start + written;
        turn = turn == 2 ? 0 : turn + 1;
    }
    return count;
}

static uint32_t entry_take(struct kvbm_index *index) {
    uint32_t entry;
    if (index->free_head != KVBM_ENTRY_NONE) {
        entry = index->free_head;
        index->free_head = index->entries[entry].next_free;
    } else if (index->entry_fresh < index->entry_capacity) {
        entry = index->entry_fresh++;
    } else {
        return KVBM_ENTRY_NONE;
    }
    index->entry_count++;
    return entry;
}

uint32_t kvbm_index_insert(struct kvbm_index *index, const kvbm_key *key, uint32_t group) {
    KVBM_ASSERT(group < KVBM_GROUP_COUNT_MAX);
    uint32_t number = entry_take(index);
    if (number == KVBM_ENTRY_NONE)
        return KVBM_ENTRY_NONE;
    uint32_t tag = index_tag(index, key, group);
    uint64_t position = tag & index->bucket_mask;
    for (uint64_t bucket; (bucket = index->buckets[position]) != 0; position = (position + 1) & index->bucket_mask)
        KVBM_ASSERT_MSG(bucket_tag(bucket) != tag || !entry_is(&index->entries[bucket_entry(bucket)], key, group),
                        "the key is in the index already, as entry %u", bucket_entry(bucket));
    index->buckets[position] = (uint64_t)tag << 32 | (number + 1);

    struct kvbm_entry *entry = &index->entries[number];
    *entry = (struct kvbm_entry){.key = *key, .group = (uint8_t)group};
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++)
        entry->slots[tier] = KVBM_SLOT_NONE;
    return number;
}

/* Empties the bucket at `hole`: each follower that may stand there (its home is not cyclically behind the hole) moves
 * up, and leaves the next hole. */
static void buckets_shift_back(struct kvbm_index *index, uint64_t hole) {
    uint64_t mask = index->bucket_mask;
    for (uint64_t position = (hole + 1) & mask;; position = (position + 1) & mask) {
        uint64_t bucket = index->buckets[position];
        if (bucket == 0)
            break;
        uint64_t home = bucket_tag(bucket) & mask;
        if (((position - home) & mask) >= ((position - hole) & mask)) {
            index->buckets[hole] = bucket;
            hole = position;
        }
    }
    index->buckets[hole] = 0;
}

void kvbm_index_remove(struct kvbm_index *index, uint32_t entry) {
    KVBM_ASSERT(entry < index->entry_fresh);
    struct kvbm_entry *e = &index->entries[entry];
    KVBM_ASSERT_MSG(e->group != INDEX_GROUP_FREE, "entry %u was removed already", entry);
    uint32_t tag = index_tag(index, &e->key, e->group);
    uint64_t wanted = (uint64_t)tag << 32 | (entry + 1);
    uint64_t position = tag & index->bucket_mask;
    while (index->buckets[position] != wanted) {
        KVBM_ASSERT_MSG(index->buckets[position] != 0, "entry %u is not in the table: its key was changed", entry);
        position = (position + 1) & index->bucket_mask;
    }
    buckets_shift_back(index, position);
    e->group = INDEX_GROUP_FREE;
    e->next_free = index->free_head;
    index->free_head = entry;
    KVBM_ASSERT(index->entry_count > 0);
    index->entry_count--;
}

void kvbm_index_prefetch_key(const struct kvbm_index *index, const kvbm_key *key, uint32_t group) {
    __builtin_prefetch(&index->buckets[index_tag(index, key, group) & index->bucket_mask], 1);
}

void kvbm_index_prefetch_entry(const struct kvbm_index *index, uint32_t entry) {
    KVBM_ASSERT(entry < index->entry_capacity);
    __builtin_prefetch(&index->entries[entry], 1);
}

void kvbm_index_prefetch_bucket(const struct kvbm_index *index, uint32_t entry) {
    KVBM_ASSERT(entry < index->entry_capacity);
    const struct kvbm_entry *e = &index->entries[entry];
    kvbm_index_prefetch_key(index, &e->key, e->group);
}

uint64_t kvbm_index_bytes(const struct kvbm_index *index) {
    return (uint64_t)index->buckets_bytes + index->entries_bytes;
}

/* Every bucket names an entry in use, carries its tag, and no empty bucket lies between it and its home. */
static uint64_t check_buckets(const struct kvbm_index *index, uint64_t *used) {
    uint64_t violations = 0;
    *used = 0;
    for (uint64_t position = 0; position <= index->bucket_mask; position++) {
        uint64_t bucket = index->buckets[position];
        if (bucket == 0)
            continue;
        ++*used;
        if (bucket_entry(bucket) >= index->entry_fresh) {
            violations++;
            continue;
        }
        const struct kvbm_entry *e = &index->entries[bucket_entry(bucket)];
        if (e->group == INDEX_GROUP_FREE || index_tag(index, &e->key, e->group) != bucket_tag(bucket))
            violations++;
        for (uint64_t p = bucket_tag(bucket) & index->bucket_mask; p != position; p = (p + 1) & index->bucket_mask) {
            if (index->buckets[p] == 0) {
                violations++;
                break;
            }
        }
    }
    return violations;
}

uint64_t kvbm_index_check(const struct kvbm_index *index) {
    uint64_t used_buckets, used_entries = 0, free_entries = 0;
    uint64_t violations = check_buckets(index, &used_buckets);
    if (violations > 0)
        return violations; /* what follows relies on sound buckets */
    for (uint32_t entry = 0; entry < index->entry_fresh; entry++) {
        const struct kvbm_entry *e = &index->entries[entry];
        if (e->group == INDEX_GROUP_FREE)
            continue;
        used_entries++;
        violations += kvbm_index_find(index, &e->key, e->group) != entry;
        for (int tier = 0; tier < KVBM_TIER_COUNT; tier++)
            violations += ((e->tiers & KVBM_TIER_BIT(tier)) != 0) != (e->slots[tier] != KVBM_SLOT_NONE);
    }
    for (uint32_t entry = index->free_head; entry != KVBM_ENTRY_NONE; entry = index->entries[entry].next_free) {
        if (entry >= index->entry_fresh || index->entries[entry].group != INDEX_GROUP_FREE ||
            ++free_entries > index->entry_fresh)
            return violations + 1; /* not a list of free entries, or a ring */
    }
    violations += used_buckets != index->entry_count;
    violations += used_entries != index->entry_count;
    violations += free_entries != index->entry_fresh - index->entry_count;
    violations += index->entry_fresh > index->entry_capacity;
    return violations;
}
