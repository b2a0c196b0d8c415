/*
 * disk_test.c - the disk store moves bytes: sizes, segments, alignments, stripes, both backends, through closing and
 * opening.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/errors.h"
#include "tests/storage/disk_kit.h"

/* The loop index of a test: backend and O_DIRECT. */
static void choose(struct kit *kit, int form) {
    kit->options.backend = form % 2 == 0 ? KVBM_DISK_URING : KVBM_DISK_THREADS;
    kit->options.files.no_direct = form >= 2;
}

START_TEST(what_is_written_is_read_before_and_after_opening_again) {
    struct kit kit;
    kit_init(&kit, NULL, 2, 65536, 9);
    choose(&kit, _i);
    ck_assert_msg(kit_open(&kit, KVBM_DISK_CREATE) == 0, "%s", kit.failure.text);
    for (uint32_t slot = 0; slot < 9; slot++) {
        ck_assert_int_eq(kit_read(&kit, slot, 1), -ENOENT);
        ck_assert_int_eq(kit_write(&kit, slot, 1), 0);
        ck_assert_int_eq(kit_read(&kit, slot, 1), 0);
        ck_assert_int_eq(kit_read(&kit, slot, 2), -ENOENT);
    }
    ck_assert_int_eq(kit_write(&kit, 3, 2), 0);
    ck_assert_int_eq(kit_erase(&kit, 4), 0);
    ck_assert_int_eq(kit_flush(&kit), 0);
    struct kvbm_tier_stats stats = kit_stats(&kit);
    ck_assert_uint_eq(stats.resident_blocks, 8);
    ck_assert_uint_eq(stats.write_count, 10);
    ck_assert_uint_eq(stats.read_count, 9);
    ck_assert_uint_eq(stats.miss_count, 18);
    ck_assert_uint_eq(stats.erase_count, 1);
    ck_assert_uint_eq(stats.flush_count, 1);
    kit_close(&kit);
    ck_assert_msg(kit_open(&kit, KVBM_DISK_OPEN) == 0, "%s", kit.failure.text);
    ck_assert_uint_eq(kit_stats(&kit).resident_blocks, 8);
    for (uint32_t slot = 0; slot < 9; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, slot == 3 ? 2 : 1), slot == 4 ? -ENOENT : 0);
    ck_assert_int_eq(kit_read(&kit, 3, 1), -ENOENT);
    kit_end(&kit);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("disk");
    TCase *tc = tcase_create("disk");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_is_written_is_read_before_and_after_opening_again, 0, 4);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
