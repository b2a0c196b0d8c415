/*
 * slab_test.c - the host slab with each refinement refused in turn: it degrades, says so once, and leaks nothing.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/memory.h"
#include "storage/slab.h"
#include "tests/support/refusing_os.h"

#define MIB (UINT64_C(1) << 20)

struct lines {
    int count;
    char component[32];
    char text[256];
};

static void on_line(void *user, int level, const char *component, const char *text) {
    struct lines *lines = user;
    ck_assert_int_ge(level, KVBM_LOG_INFO);
    lines->count++;
    (void)snprintf(lines->component, sizeof(lines->component), "%s", component);
    (void)snprintf(lines->text, sizeof(lines->text), "%s", text);
}

/* One slab opened on a table that refuses. */
struct bench {
    struct refusing_os os;
    struct kvbm_logger log;
    struct lines lines;
    struct kvbm_slab slab;
};

static int bench_open(struct bench *b, const struct kvbm_slab_options *options) {
    refusing_os_init(&b->os);
    kvbm_logger_init(&b->log, &b->os.os, on_line, &b->lines, KVBM_LOG_INFO, 0);
    return kvbm_slab_open(&b->slab, &b->os.os, &b->log, options);
}

static void bench_close(struct bench *b) {
    kvbm_slab_close(&b->slab);
    kvbm_slab_close(&b->slab);
    ck_assert_uint_eq(b->os.open_maps, 0);
    ck_assert_uint_eq(b->os.open_bytes, 0);
    ck_assert_uint_eq(b->os.open_threads, 0);
}

static void check_usable(const struct kvbm_slab *slab) {
    for (uint64_t at = 0; at < slab->bytes; at += 4096)
        ck_assert_uint_eq(slab->base[at], 0);
    slab->base[0] = 1;
    slab->base[slab->bytes - 1] = 1;
    slab->base[slab->mapped_bytes - 1] = 1;
}

static const struct kvbm_slab_options everything = {
    .bytes = 70 * MIB + 12345, .huge = KVBM_SLAB_HUGE_TRY, .numa_node = 0, .touch_threads = 3};

START_TEST(everything_granted_is_recorded_and_says_nothing) {
    struct bench b = {0};
    ck_assert_int_eq(bench_open(&b, &everything), 0);
    ck_assert_uint_eq(b.slab.bytes, everything.bytes);
    ck_assert_uint_eq(b.slab.mapped_bytes, 72 * MIB);
    ck_assert_uint_eq(b.slab.touch_threads, 3);
    ck_assert_uint_gt(b.slab.touch_ns, 0);
    ck_assert(b.slab.got_numa);
    ck_assert_uint_eq(b.os.bind_bytes, 72 * MIB);
    ck_assert_int_eq(b.os.bind_node, 0);
    if ((b.slab.got_map & KVBM_MAP_HUGE) != 0)
        ck_assert_int_eq(b.lines.count, 0);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(refused_huge_pages_degrade_to_small_ones_with_one_line) {
    struct bench b = {.os = {.map_flags_refused = KVBM_MAP_HUGE}};
    ck_assert_int_eq(bench_open(&b, &everything), 0);
    ck_assert_int_eq(b.lines.count, 1);
    ck_assert_str_eq(b.lines.component, "slab");
    ck_assert_ptr_nonnull(strstr(b.lines.text, "huge pages"));
    ck_assert_uint_eq(b.slab.got_map & KVBM_MAP_HUGE, 0);
    ck_assert_uint_eq(b.slab.mapped_bytes, everything.bytes);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(huge_pages_not_honoured_are_one_line_too) {
    struct bench b = {.os = {.map_flags_ignored = KVBM_MAP_HUGE}};
    ck_assert_int_eq(bench_open(&b, &everything), 0);
    ck_assert_int_eq(b.lines.count, 1);
    ck_assert_ptr_nonnull(strstr(b.lines.text, "huge pages"));
    ck_assert_uint_eq(b.slab.got_map & KVBM_MAP_HUGE, 0);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(required_huge_pages_that_are_refused_fail_and_leave_nothing) {
    struct kvbm_slab_options options = everything;
    options.huge = KVBM_SLAB_HUGE_REQUIRE;
    struct bench refused = {.os = {.map_flags_refused = KVBM_MAP_HUGE}};
    ck_assert_int_eq(bench_open(&refused, &options), -ENOTSUP);
    ck_assert_int_eq(refused.lines.count, 1);
    ck_assert_uint_eq(refused.os.thread_count + refused.os.bind_count, 0);
    bench_close(&refused);
    struct bench ignored = {.os = {.map_flags_ignored = KVBM_MAP_HUGE}};
    ck_assert_int_eq(bench_open(&ignored, &options), -ENOTSUP);
    ck_assert_int_eq(ignored.lines.count, 1);
    ck_assert_uint_eq(ignored.os.map_count, 1);
    bench_close(&ignored);
}
END_TEST

START_TEST(a_map_a_child_inherits_is_one_line) {
    struct bench b = {.os = {.map_flags_ignored = KVBM_MAP_NO_FORK}};
    struct kvbm_slab_options options = everything;
    options.huge = KVBM_SLAB_HUGE_OFF;
    ck_assert_int_eq(bench_open(&b, &options), 0);
    ck_assert_int_eq(b.lines.count, 1);
    ck_assert_ptr_nonnull(strstr(b.lines.text, "child"));
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(refused_binding_degrades_with_one_line) {
    struct bench b = {.os = {.bind_result = -EPERM}};
    struct kvbm_slab_options options = everything;
    options.huge = KVBM_SLAB_HUGE_OFF;
    ck_assert_int_eq(bench_open(&b, &options), 0);
    ck_assert_int_eq(b.lines.count, 1);
    ck_assert_ptr_nonnull(strstr(b.lines.text, "binding refused node=0 error=EPERM"));
    ck_assert(!b.slab.got_numa);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(refused_threads_leave_the_touch_to_the_others_with_one_line) {
    /* _i: the thread from which on all are refused. The caller is one of the three. */
    struct bench b = {.os = {.thread_refuse_from = (uint32_t)_i}};
    struct kvbm_slab_options options = everything;
    options.huge = KVBM_SLAB_HUGE_OFF;
    ck_assert_int_eq(bench_open(&b, &options), 0);
    ck_assert_int_eq(b.lines.count, 1);
    ck_assert_ptr_nonnull(strstr(b.lines.text, "fewer threads"));
    ck_assert_uint_eq(b.slab.touch_threads, (uint32_t)_i);
    ck_assert_uint_eq(b.os.thread_count, (uint32_t)_i); /* it does not go on asking */
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(a_refused_map_fails_and_leaves_nothing) {
    struct kvbm_slab_options options = everything;
    options.huge = KVBM_SLAB_HUGE_OFF;
    struct bench b = {.os = {.map_refuse_at = 1}};
    ck_assert_int_eq(bench_open(&b, &options), -ENOMEM);
    ck_assert_int_eq(b.lines.count, 1);
    bench_close(&b);
    /* Huge pages refused, then small ones. */
    struct bench both = {.os = {.map_flags_refused = KVBM_MAP_HUGE, .map_refuse_at = 2}};
    ck_assert_int_eq(bench_open(&both, &everything), -ENOMEM);
    ck_assert_uint_eq(both.os.refused_count, 2);
    ck_assert_int_eq(both.lines.count, 2);
    bench_close(&both);
}
END_TEST

START_TEST(everything_refused_at_once_still_gives_memory) {
    struct bench b = {
        .os = {.map_flags_ignored = KVBM_MAP_HUGE | KVBM_MAP_NO_FORK, .bind_result = -ENOSYS, .thread_refuse_from = 1}};
    ck_assert_int_eq(bench_open(&b, &everything), 0);
    ck_assert_int_eq(b.lines.count, 4);
    ck_assert_uint_eq(b.slab.touch_threads, 1);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(nothing_asked_for_is_nothing_done) {
    struct bench b = {0};
    struct kvbm_slab_options options = {.bytes = 1, .huge = KVBM_SLAB_HUGE_OFF, .numa_node = KVBM_SLAB_NUMA_ANY};
    ck_assert_int_eq(bench_open(&b, &options), 0);
    ck_assert_uint_eq(b.os.thread_count + b.os.bind_count, 0);
    ck_assert_uint_eq(b.slab.touch_threads, 0);
    ck_assert_uint_eq(b.slab.touch_ns, 0);
    ck_assert_int_eq(b.lines.count, 0);
    check_usable(&b.slab);
    bench_close(&b);
}
END_TEST

START_TEST(absurd_sizes_are_refused_before_anything_is_mapped) {
    static const uint64_t sizes[] = {UINT64_C(1) << 50, UINT64_C(1) << 62};
    for (int i = 0; i < 2; i++) {
        for (uint32_t threads = 0; threads <= 2; threads += 2) {
            struct bench b = {.os = {.map_refuse_at = 1}};
            struct kvbm_slab_options options = everything;
            options.bytes = sizes[i];
            options.touch_threads = threads;
            ck_assert_int_eq(bench_open(&b, &options), -ENOMEM);
            ck_assert_uint_eq(b.os.map_count, 0);
            ck_assert_int_eq(b.lines.count, 1);
            ck_assert_ptr_nonnull(strstr(b.lines.text, "not enough memory"));
            bench_close(&b);
        }
    }
}
END_TEST

START_TEST(a_touched_slab_must_fit_what_is_available_and_an_untouched_one_what_exists) {
    struct kvbm_memory memory;
    kvbm_memory_read("", &memory);
    ck_assert_uint_ne(memory.available_bytes, KVBM_MEMORY_UNKNOWN);
    struct kvbm_slab_options options = {
        .bytes = memory.available_bytes, .numa_node = KVBM_SLAB_NUMA_ANY, .touch_threads = 1};
    /* A map that gets as far as being asked for is refused, so that a wrong answer here does not use up the machine. */
    struct bench touched = {.os = {.map_refuse_at = 1}};
    ck_assert_int_eq(bench_open(&touched, &options), -ENOMEM);
    ck_assert_uint_eq(touched.os.map_count, 0);
    bench_close(&touched);
    options.touch_threads = 0;
    options.bytes = memory.total_bytes + 1;
    struct bench untouched = {.os = {.map_refuse_at = 1}};
    ck_assert_int_eq(bench_open(&untouched, &options), -ENOMEM);
    ck_assert_uint_eq(untouched.os.map_count, 0);
    bench_close(&untouched);
    /* Where nothing can be read, the map itself decides. */
    struct bench blind = {.os = {.map_refuse_at = 1}};
    options.system_root = "/nonexistent";
    ck_assert_int_eq(bench_open(&blind, &options), -ENOMEM);
    ck_assert_uint_eq(blind.os.map_count, 1);
    bench_close(&blind);
}
END_TEST

START_TEST(bad_options_are_refused) {
    struct kvbm_slab_options bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = everything;
    bad[0].bytes = 0;
    bad[1].bytes = (UINT64_C(1) << 62) + 1;
    bad[2].huge = -1;
    bad[3].huge = 3;
    bad[4].numa_node = -2;
    bad[5].bytes = UINT64_MAX;
    for (int i = 0; i < 6; i++) {
        struct bench b = {0};
        ck_assert_int_eq(bench_open(&b, &bad[i]), -EINVAL);
        ck_assert_uint_eq(b.os.map_count, 0);
        bench_close(&b);
    }
}
END_TEST

START_TEST(more_threads_than_pieces_or_than_the_maximum_are_not_started) {
    struct bench b = {0};
    struct kvbm_slab_options options = everything;
    options.touch_threads = UINT32_MAX;
    ck_assert_int_eq(bench_open(&b, &options), 0);
    ck_assert_uint_eq(b.slab.touch_threads, 3); /* 70 MiB in pieces of 32 */
    bench_close(&b);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("slab");
    TCase *tc = tcase_create("slab");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, everything_granted_is_recorded_and_says_nothing);
    tcase_add_test(tc, refused_huge_pages_degrade_to_small_ones_with_one_line);
    tcase_add_test(tc, huge_pages_not_honoured_are_one_line_too);
    tcase_add_test(tc, required_huge_pages_that_are_refused_fail_and_leave_nothing);
    tcase_add_test(tc, a_map_a_child_inherits_is_one_line);
    tcase_add_test(tc, refused_binding_degrades_with_one_line);
    tcase_add_loop_test(tc, refused_threads_leave_the_touch_to_the_others_with_one_line, 1, 3);
    tcase_add_test(tc, a_refused_map_fails_and_leaves_nothing);
    tcase_add_test(tc, everything_refused_at_once_still_gives_memory);
    tcase_add_test(tc, nothing_asked_for_is_nothing_done);
    tcase_add_test(tc, absurd_sizes_are_refused_before_anything_is_mapped);
    tcase_add_test(tc, a_touched_slab_must_fit_what_is_available_and_an_untouched_one_what_exists);
    tcase_add_test(tc, bad_options_are_refused);
    tcase_add_test(tc, more_threads_than_pieces_or_than_the_maximum_are_not_started);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
