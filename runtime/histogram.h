/*
 * histogram.h - latency histogram in HDR form: log-linear buckets, 32 sub-buckets to each power of two (error <= 3.2
 * %), 1 ns to 2^41 ns (36 minutes); larger values count in the last bucket. One or many writers (relaxed add); readers
 * never stop them and see some recent state. Source of the form: Gil Tene, HdrHistogram.
 */
#ifndef KVBM_RUNTIME_HISTOGRAM_H
#define KVBM_RUNTIME_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define KVBM_HISTOGRAM_SUB_BITS     5
#define KVBM_HISTOGRAM_BUCKET_COUNT ((41 - KVBM_HISTOGRAM_SUB_BITS + 1) << KVBM_HISTOGRAM_SUB_BITS)

struct kvbm_histogram {
    _Atomic uint64_t buckets[KVBM_HISTOGRAM_BUCKET_COUNT];
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t max_ns;
};

struct kvbm_histogram_summary {
    uint64_t count;
    uint64_t mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns;
};

void kvbm_histogram_record_mt(struct kvbm_histogram *h, uint64_t value_ns);
/* As record_mt where there is one writer at a time (a reactor's owner): no locked instruction. */
void kvbm_histogram_record(struct kvbm_histogram *h, uint64_t value_ns);
void kvbm_histogram_summarize_mt(const struct kvbm_histogram *h, struct kvbm_histogram_summary *out);
/* Smallest value v such that at least quantile * count recorded values are <= v; 0 if empty. */
uint64_t kvbm_histogram_quantile_ns_mt(const struct kvbm_histogram *h, double quantile);

#endif
