/*
 * histogram.c - log-linear latency histogram. Thread: any.
 *
 * Bucket of v: below 32, v itself; else with m the highest set bit of v, shift = m - 5, the bucket
 * (shift + 1) * 32 + (v >> shift) - 32, which holds 2^shift values.
 */
#include "runtime/histogram.h"

#include <stddef.h>

#include "runtime/log.h"

#define SUB_COUNT (1u << KVBM_HISTOGRAM_SUB_BITS)

static size_t bucket_of(uint64_t value_ns) {
    if (value_ns < SUB_COUNT)
        return (size_t)value_ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value_ns) - KVBM_HISTOGRAM_SUB_BITS;
    size_t bucket = ((size_t)shift + 1) * SUB_COUNT + (size_t)(value_ns >> shift) - SUB_COUNT;
    return bucket < KVBM_HISTOGRAM_BUCKET_COUNT ? bucket : KVBM_HISTOGRAM_BUCKET_COUNT - 1;
}

/* The largest value that counts in `bucket`. */
static uint64_t bucket_last_ns(size_t bucket) {
    if (bucket < SUB_COUNT)
        return bucket;
    unsigned shift = (unsigned)(bucket / SUB_COUNT) - 1;
    return ((uint64_t)(SUB_COUNT + bucket % SUB_COUNT + 1) << shift) - 1;
}

void kvbm_histogram_record_mt(struct kvbm_histogram *h, uint64_t value_ns) {
    /* All relaxed: statistics, paired with nothing. */
    atomic_fetch_add_explicit(&h->buckets[bucket_of(value_ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, value_ns, memory_order_relaxed);
    uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
    while (value_ns > max && !atomic_compare_exchange_weak_explicit(&h->max_ns, &max, value_ns, memory_order_relaxed,
                                                                    memory_order_relaxed)) {
    }
}

static void add_relaxed(_Atomic uint64_t *counter, uint64_t n) {
    /* One writer: a load and a store are enough. Relaxed: a statistic, paired with nothing. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

void kvbm_histogram_record(struct kvbm_histogram *h, uint64_t value_ns) {
    add_relaxed(&h->buckets[bucket_of(value_ns)], 1);
    add_relaxed(&h->sum_ns, value_ns);
    if (value_ns > atomic_load_explicit(&h->max_ns, memory_order_relaxed))
        atomic_store_explicit(&h->max_ns, value_ns, memory_order_relaxed);
}

static uint64_t count_of(const struct kvbm_histogram *h) {
    uint64_t count = 0;
    for (size_t i = 0; i < KVBM_HISTOGRAM_BUCKET_COUNT; i++)
        count += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
    return count;
}

/* The value at which `rank` (>= 1) recorded values are reached. */
static uint64_t value_at_rank(const struct kvbm_histogram *h, uint64_t rank) {
    uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
    uint64_t seen = 0;
    for (size_t i = 0; i < KVBM_HISTOGRAM_BUCKET_COUNT - 1; i++) {
        seen += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
        if (seen >= rank) {
            uint64_t last = bucket_last_ns(i);
            return last < max ? last : max;
        }
    }
    return max;
}

static uint64_t quantile_of(const struct kvbm_histogram *h, uint64_t count, double quantile) {
    if (count == 0)
        return 0;
    double exact = quantile * (double)count;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact)
        rank++;
    if (rank < 1)
        rank = 1;
    return value_at_rank(h, rank < count ? rank : count);
}

uint64_t kvbm_histogram_quantile_ns_mt(const struct kvbm_histogram *h, double quantile) {
    KVBM_ASSERT(quantile >= 0.0 && quantile <= 1.0);
    return quantile_of(h, count_of(h), quantile);
}

void kvbm_histogram_summarize_mt(const struct kvbm_histogram *h, struct kvbm_histogram_summary *out) {
    uint64_t count = count_of(h);
    out->count = count;
    out->mean_ns = count == 0 ? 0 : atomic_load_explicit(&h->sum_ns, memory_order_relaxed) / count;
    out->p50_ns = quantile_of(h, count, 0.5);
    out->p90_ns = quantile_of(h, count, 0.9);
    out->p99_ns = quantile_of(h, count, 0.99);
    out->p999_ns = quantile_of(h, count, 0.999);
    out->max_ns = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
}
