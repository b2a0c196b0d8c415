/*
 * stats.c - counters, read without stopping anything.
 *
 * Thread: any. Counters have one writer, the reactor's owner; a reader sees each as it was at some recent instant, not
 * all at the same one.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"

static void latency_read(const struct kvbm_histogram *h, kvbm_latency *out) {
    struct kvbm_histogram_summary s;
    kvbm_histogram_summarize_mt(h, &s);
    *out = (kvbm_latency){.count = s.count,
                          .mean_ns = s.mean_ns,
                          .p50_ns = s.p50_ns,
                          .p90_ns = s.p90_ns,
                          .p99_ns = s.p99_ns,
                          .p999_ns = s.p999_ns,
                          .max_ns = s.max_ns};
}

static uint64_t tracked_bytes(const struct kvbm_manager *m) {
    uint64_t bytes = sizeof(*m) + sizeof(*m->registry) + m->operations.mapped_bytes + m->cancels.mapped_bytes +
                     m->reactor.mailbox.arena_bytes + m->reactor.deadlines.mapped_bytes +
                     kvbm_index_bytes(&m->registry->index) + m->registry->expires_bytes;
    for (uint32_t i = 0; i < m->pool_count; i++) {
        const struct kvbm_block_pool *pool = &m->pools[i];
        bytes += sizeof(*pool) + kvbm_slots_bytes(&pool->slots) + pool->policy->ops->bytes(pool->policy) +
                 pool->duplicate_keys_bytes;
    }
    return bytes;
}

int kvbm_manager_stats_mt(kvbm_manager *m, kvbm_stats *stats) {
    if (m == NULL || stats == NULL || stats->size < offsetof(kvbm_stats, allocate))
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    /* completed before accepted: an operation is never seen to end before it began. */
    uint64_t completed = kvbm__counter_get(&m->completed_count);
    kvbm_stats s = {
        .size = stats->size,
        .operations_in_flight = kvbm_pool_taken_mt(&m->operations),
        .operations_max = m->operations.count,
        .completed_count = completed,
        .accepted_count = kvbm__counter_get(&m->accepted_count),
        .cancelled_count = kvbm__counter_get(&m->cancelled_count),
        .timed_out_count = kvbm__counter_get(&m->timed_out_count),
        .refused_count = atomic_load_explicit(&m->refused_count, memory_order_relaxed),
        .turn_count = kvbm__counter_get(&m->reactor.turn_count),
        .message_count = kvbm__counter_get(&m->reactor.message_count),
        .borrow_count = kvbm__counter_get(&m->reactor.borrow_count),
        .borrow_lost_count = kvbm__counter_get(&m->reactor.borrow_lost_count),
        .wake_count = kvbm__counter_get(&m->reactor.wake_count),
        .queue_depth = kvbm_mailbox_depth_mt(&m->reactor.mailbox),
        .registry_entries = kvbm__counter_get(&m->registry->entry_count),
        .tracked_bytes = tracked_bytes(m),
        .slab_bytes = m->slab_bytes,
    };
    latency_read(&m->latency[KVBM_OP_ALLOCATE], &s.allocate);
    latency_read(&m->latency[KVBM_OP_REGISTER], &s.registering);
    latency_read(&m->latency[KVBM_OP_MATCH], &s.match);
    latency_read(&m->latency[KVBM_OP_QUERY], &s.query);
    memcpy(stats, &s, stats->size < sizeof(s) ? stats->size : sizeof(s));
    return 0;
}

int kvbm_pool_stats_mt(kvbm_manager *m, uint32_t group, int tier, kvbm_pool_stats *stats) {
    if (m == NULL || stats == NULL || stats->size < offsetof(kvbm_pool_stats, allocated_count))
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    struct kvbm_block_pool *pool = kvbm__pool_find(m, group, tier);
    if (pool == NULL)
        return -EINVAL;
    kvbm__settle(m, pool);
    uint64_t capacity = pool->slots.capacity;
    uint64_t free_blocks = kvbm__pool_free(pool);
    uint64_t cached = kvbm__counter_get(&pool->r.cached);
    uint64_t registered = kvbm__counter_get(&pool->r.registered);
    uint64_t returned = kvbm__counter_get(&pool->a.returned) + kvbm__counter_get(&pool->r.released);
    kvbm_pool_stats s = {
        .size = stats->size,
        .capacity_blocks = capacity,
        .free_blocks = free_blocks,
        .cached_blocks = cached,
        /* Differences of gauges that were read at different instants: never below zero. */
        .leased_blocks = registered > cached ? registered - cached : 0,
        .mutable_blocks = capacity > free_blocks + registered ? capacity - free_blocks - registered : 0,
        .block_bytes = pool->layout.payload_bytes,
        .allocated_count = kvbm__counter_get(&pool->a.allocated),
        .released_count = returned,
        .registered_count = kvbm__counter_get(&pool->r.published),
        .duplicate_count = kvbm__counter_get(&pool->r.duplicates),
        .evicted_count = kvbm__counter_get(&pool->r.evicted),
        .matched_count = kvbm__counter_get(&pool->r.matched),
        .missed_count = kvbm__counter_get(&pool->r.missed),
        .shortage_count = kvbm__counter_get(&pool->a.shortages),
        .waiting_count = kvbm__counter_get(&pool->a.waiting),
    };
    memcpy(stats, &s, stats->size < sizeof(s) ? stats->size : sizeof(s));
    return 0;
}

int64_t kvbm_pool_available_mt(kvbm_manager *m, uint32_t group, int tier) {
    if (m == NULL)
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    struct kvbm_block_pool *pool = kvbm__pool_find(m, group, tier);
    if (pool == NULL)
        return -EINVAL;
    kvbm__settle(m, pool);
    return (int64_t)(kvbm__pool_free(pool) + kvbm__counter_get(&pool->r.cached));
}
