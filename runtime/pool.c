/*
 * pool.c - fixed pool of equal objects with generations. Owns one map. Thread: any, for the functions with _mt.
 *
 * Source of the free list: R. K. Treiber, "Systems Programming: Coping with Parallelism", 1986, with a tag against ABA.
 */
#include "runtime/pool.h"

#include <errno.h>

#include "runtime/log.h"
#include "runtime/message.h"

#define EMPTY UINT32_MAX

static uint64_t head_of(uint32_t tag, uint32_t index) {
    return (uint64_t)tag << 32 | index;
}

static size_t round_up(size_t n) {
    return (n + KVBM_CACHE_LINE_BYTES - 1) & ~(size_t)(KVBM_CACHE_LINE_BYTES - 1);
}

int kvbm_pool_open(struct kvbm_pool *pool, const struct kvbm_os *os, uint32_t count, size_t object_bytes) {
    if (count == 0 || count == EMPTY || object_bytes == 0 || object_bytes > SIZE_MAX / 4)
        return -EINVAL;
    size_t stride = round_up(object_bytes);
    size_t objects_bytes = 0;
    size_t words_bytes = round_up((size_t)count * sizeof(uint32_t));
    size_t mapped_bytes = 0;
    if (__builtin_mul_overflow(stride, (size_t)count, &objects_bytes) ||
        __builtin_add_overflow(objects_bytes, 2 * words_bytes, &mapped_bytes))
        return -EINVAL;
    void *map = NULL;
    int rc = os->map(os->ctx, mapped_bytes, KVBM_MAP_LAZY, &map, NULL);
    if (rc != 0)
        return rc;
    unsigned char *bytes = map;
    *pool =
        (struct kvbm_pool){.os = os, .objects = bytes, .stride = stride, .mapped_bytes = mapped_bytes, .count = count};
    pool->next = (void *)(bytes + objects_bytes);
    pool->generations = (void *)(bytes + objects_bytes + words_bytes);
    for (uint32_t i = 0; i < count; i++)
        atomic_init(&pool->next[i], i + 1 < count ? i + 1 : EMPTY);
    atomic_init(&pool->head, head_of(0, 0));
    return 0;
}

void kvbm_pool_close(struct kvbm_pool *pool) {
    uint32_t taken = kvbm_pool_taken_mt(pool);
    KVBM_ASSERT_MSG(taken == 0, "%u of %u objects were not given back", taken, pool->count);
    pool->os->unmap(pool->os->ctx, pool->objects, pool->mapped_bytes);
    pool->objects = NULL;
}

void *kvbm_pool_take_mt(struct kvbm_pool *pool, uint64_t *id) {
    /* Acquire: pairs with the release in give, so that the link is the one stored there. */
    uint64_t head = atomic_load_explicit(&pool->head, memory_order_acquire);
    uint32_t index = 0;
    uint64_t taken = 0;
    do {
        index = (uint32_t)head;
        if (index == EMPTY)
            return NULL;
        /* Relaxed: may be of another time if `head` is outdated; the tag then fails the exchange. */
        uint32_t next = atomic_load_explicit(&pool->next[index], memory_order_relaxed);
        taken = head_of((uint32_t)(head >> 32) + 1, next);
        /* Acquire: pairs with the release in give; the object is as its last user left it. */
    } while (
        !atomic_compare_exchange_weak_explicit(&pool->head, &head, taken, memory_order_acquire, memory_order_acquire));
    uint32_t generation = atomic_load_explicit(&pool->generations[index], memory_order_relaxed) + 1;
    KVBM_ASSERT((generation & 1) == 1);
    /* Release: pairs with the acquire in find. */
    atomic_store_explicit(&pool->generations[index], generation, memory_order_release);
    if (id != NULL)
        *id = (uint64_t)generation << 32 | index;
    return pool->objects + (size_t)index * pool->stride;
}

static uint32_t index_of(const struct kvbm_pool *pool, const void *object) {
    size_t offset = (size_t)((const unsigned char *)object - pool->objects);
    size_t index = offset / pool->stride;
    KVBM_ASSERT_MSG(index < pool->count && index * pool->stride == offset, "%p is not an object of this pool", object);
    return (uint32_t)index;
}

void kvbm_pool_give_mt(struct kvbm_pool *pool, void *object) {
    uint32_t index = index_of(pool, object);
    uint32_t generation = atomic_load_explicit(&pool->generations[index], memory_order_relaxed);
    KVBM_ASSERT_MSG((generation & 1) == 1, "object %u given back twice", index);
    /* Release: pairs with the acquire in find; whoever finds the id stale sees what was done with the object. */
    atomic_store_explicit(&pool->generations[index], generation + 1, memory_order_release);
    uint64_t head = atomic_load_explicit(&pool->head, memory_order_relaxed);
    uint64_t given = 0;
    do {
        atomic_store_explicit(&pool->next[index], (uint32_t)head, memory_order_relaxed);
        given = head_of((uint32_t)(head >> 32) + 1, index);
        /* Release: the link, and what this user wrote; pairs with the acquire in take. */
    } while (
        !atomic_compare_exchange_weak_explicit(&pool->head, &head, given, memory_order_release, memory_order_relaxed));
}

void *kvbm_pool_find_mt(struct kvbm_pool *pool, uint64_t id) {
    uint32_t index = (uint32_t)id;
    uint32_t generation = (uint32_t)(id >> 32);
    if (index >= pool->count || (generation & 1) == 0)
        return NULL;
    /* Acquire: pairs with the releases in take and give. */
    if (atomic_load_explicit(&pool->generations[index], memory_order_acquire) != generation)
        return NULL;
    return pool->objects + (size_t)index * pool->stride;
}

void *kvbm_pool_at(struct kvbm_pool *pool, uint32_t index) {
    KVBM_ASSERT(index < pool->count);
    return pool->objects + (size_t)index * pool->stride;
}

uint64_t kvbm_pool_id_mt(struct kvbm_pool *pool, const void *object) {
    uint32_t index = index_of(pool, object);
    /* Relaxed: the caller owns the object, so nobody changes it. */
    uint32_t generation = atomic_load_explicit(&pool->generations[index], memory_order_relaxed);
    return (uint64_t)generation << 32 | index;
}

uint32_t kvbm_pool_taken_mt(const struct kvbm_pool *pool) {
    uint32_t taken = 0;
    for (uint32_t i = 0; i < pool->count; i++)
        taken += atomic_load_explicit(&pool->generations[i], memory_order_relaxed) & 1;
    return taken;
}
