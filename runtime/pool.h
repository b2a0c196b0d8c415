/*
 * pool.h - a fixed pool of equal objects, each with an index and a generation.
 *
 * Made once with all its memory; taking and giving never allocate. The free list is an index stack whose head carries a
 * 32-bit tag, so a compare-and-swap cannot be fooled by reuse (a thread would have to sleep through 2^32 takes).
 * An id is generation << 32 | index. An object's generation is odd while it is taken and even while it is free, and
 * changes at every take and give, so a stale id is told from a live one; 0 is never a live id. Thread: any, for the
 * functions with _mt.
 */
#ifndef KVBM_RUNTIME_POOL_H
#define KVBM_RUNTIME_POOL_H

#include <stdatomic.h>
#include <stdint.h>

#include "runtime/os.h"

struct kvbm_pool {
    const struct kvbm_os *os;
    unsigned char *objects; /* count * stride bytes, cache-line aligned */
    _Atomic uint32_t *next; /* free-list links */
    _Atomic uint32_t *generations;
    size_t stride;
    size_t mapped_bytes;
    uint32_t count;
    _Alignas(64) _Atomic uint64_t head; /* tag << 32 | index; index UINT32_MAX: empty */
};

/* `object_bytes` is rounded up to a cache line. 0, -EINVAL, -ENOMEM. */
int kvbm_pool_open(struct kvbm_pool *pool, const struct kvbm_os *os, uint32_t count, size_t object_bytes);
/* Every object must have been given back (asserted). */
void kvbm_pool_close(struct kvbm_pool *pool);
/* An object, whose memory is as its last user left it, and its id; NULL when the pool is empty. Moves it to the caller.
 */
void *kvbm_pool_take_mt(struct kvbm_pool *pool, uint64_t *id);
/* Moves the object back. Its id becomes stale. */
void kvbm_pool_give_mt(struct kvbm_pool *pool, void *object);
/* The object of a live id, NULL if the id is stale or malformed. The answer can be outdated at once unless the caller
 * otherwise knows that the object cannot be given back meanwhile. */
void *kvbm_pool_find_mt(struct kvbm_pool *pool, uint64_t id);
void *kvbm_pool_at(struct kvbm_pool *pool, uint32_t index);
uint64_t kvbm_pool_id_mt(struct kvbm_pool *pool, const void *object);
/* How many are taken: counts them, O(count), so that take and give pay nothing for it. Exact when neither runs. */
uint32_t kvbm_pool_taken_mt(const struct kvbm_pool *pool);

#endif
