/*
 * histogram_test.c - facts about the latency histogram.
 */
#include <check.h>
#include <stdlib.h>

#include "runtime/histogram.h"
#include "tests/runtime/support.h"

static struct kvbm_histogram h;

static void reset(void) {
    static const struct kvbm_histogram empty;
    h = empty;
}

START_TEST(empty_histogram_is_all_zero) {
    reset();
    struct kvbm_histogram_summary s;
    kvbm_histogram_summarize_mt(&h, &s);
    ck_assert_uint_eq(s.count | s.mean_ns | s.p50_ns | s.p90_ns | s.p99_ns | s.p999_ns | s.max_ns, 0);
    ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 1.0), 0);
}
END_TEST

START_TEST(one_value_is_every_quantile_exactly) {
    const uint64_t values[] = {0, 1, 31, 32, 33, 63, 64, 1000, 123456789, (1ull << 41) - 1, 1ull << 41, UINT64_MAX / 2};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        reset();
        kvbm_histogram_record_mt(&h, values[i]);
        ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 0.0), values[i]);
        ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 0.5), values[i]);
        ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 1.0), values[i]);
    }
}
END_TEST

START_TEST(values_up_to_31_are_exact) {
    reset();
    for (uint64_t v = 0; v < 32; v++)
        kvbm_histogram_record(&h, v);
    for (uint64_t rank = 1; rank <= 32; rank++)
        ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, (double)rank / 32), rank - 1);
}
END_TEST

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

START_TEST(quantiles_are_within_one_sub_bucket_of_the_sorted_values) {
    enum { COUNT = 20000 };
    static uint64_t values[COUNT];
    uint64_t seed = 42;
    reset();
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT; i++) {
        values[i] = support_random(&seed) >> (24 + support_random(&seed) % 38); /* log-uniform up to 2^40 */
        sum += values[i];
        if (i % 2 == 0)
            kvbm_histogram_record(&h, values[i]);
        else
            kvbm_histogram_record_mt(&h, values[i]);
    }
    qsort(values, COUNT, sizeof values[0], by_value);
    for (uint32_t permille = 1; permille <= 1000; permille++) {
        uint64_t exact = values[(size_t)permille * COUNT / 1000 - 1];
        uint64_t got = kvbm_histogram_quantile_ns_mt(&h, permille / 1000.0);
        ck_assert_uint_ge(got, exact);
        ck_assert_uint_le(got, exact + exact / 32 + 1);
    }
    struct kvbm_histogram_summary s;
    kvbm_histogram_summarize_mt(&h, &s);
    ck_assert_uint_eq(s.count, COUNT);
    ck_assert_uint_eq(s.mean_ns, sum / COUNT);
    ck_assert_uint_eq(s.max_ns, values[COUNT - 1]);
    ck_assert_uint_le(s.p50_ns, s.p90_ns);
    ck_assert_uint_le(s.p90_ns, s.p99_ns);
    ck_assert_uint_le(s.p99_ns, s.p999_ns);
    ck_assert_uint_le(s.p999_ns, s.max_ns);
}
END_TEST

START_TEST(values_beyond_the_range_count_in_the_last_bucket) {
    reset();
    kvbm_histogram_record_mt(&h, 5);
    kvbm_histogram_record_mt(&h, UINT64_MAX / 4);
    ck_assert_uint_eq(h.buckets[KVBM_HISTOGRAM_BUCKET_COUNT - 1], 1);
    ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 0.5), 5);
    ck_assert_uint_eq(kvbm_histogram_quantile_ns_mt(&h, 1.0), UINT64_MAX / 4);
}
END_TEST

static void record_many(void *arg) {
    (void)arg;
    for (uint64_t i = 1; i <= 10000; i++)
        kvbm_histogram_record_mt(&h, i);
}

START_TEST(many_writers_lose_nothing) {
    reset();
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[4];
    for (int t = 0; t < 4; t++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[t], record_many, NULL, "record"), 0);
    for (int t = 0; t < 4; t++)
        os->thread_join(os->ctx, &threads[t]);
    struct kvbm_histogram_summary s;
    kvbm_histogram_summarize_mt(&h, &s);
    ck_assert_uint_eq(s.count, 40000);
    ck_assert_uint_eq(h.sum_ns, 4 * 10000ull * 10001 / 2);
    ck_assert_uint_eq(s.max_ns, 10000);
}
END_TEST

SUPPORT_MAIN("histogram", empty_histogram_is_all_zero, one_value_is_every_quantile_exactly, values_up_to_31_are_exact,
             quantiles_are_within_one_sub_bucket_of_the_sorted_values, values_beyond_the_range_count_in_the_last_bucket,
             many_writers_lose_nothing)
