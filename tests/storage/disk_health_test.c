/*
 * disk_health_test.c - what a failing device does to a disk store: it degrades, says so once, keeps answering, and
 * recovers by itself.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "tests/storage/disk_kit.h"

#define MS UINT64_C(1000000)

static const uint32_t any_transfer = 1u << KVBM_DISK_READ | 1u << KVBM_DISK_WRITE;

static void open_faulty(struct kit *kit) {
    kit_init(kit, NULL, 2, 8192, 16);
    kit->faulty = true;
    kit->options.backend = KVBM_DISK_THREADS;
    kit->options.depth = 4;
    kit->options.probe_ns = 20 * MS;
    kit->options.stall_ns = 60 * MS;
    kit->options.error_limit = 3;
    int rc = kit_open(kit, KVBM_DISK_CREATE);
    ck_assert_msg(rc == 0, "%d %s", rc, kit->failure.text);
    for (uint32_t slot = 0; slot < 8; slot++)
        ck_assert_int_eq(kit_write(kit, slot, 1), 0);
}

static uint32_t lines_with(const struct kit *kit, const char *text) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < kit->line_count; i++)
        count += strstr(kit->lines[i], text) != NULL;
    return count;
}

static int try_submit(struct kit *kit, int op, uint32_t slot) {
    struct kit_io io;
    kit_io_init(kit, &io, op, slot, 1);
    int rc = kit_submit(kit, &io);
    if (rc == 0) {
        kit_until(kit, &io.done);
        rc = io.io.status;
    }
    kit_io_free(&io);
    return rc;
}

static void until_healthy(struct kit *kit) {
    for (int i = 0; i < 1000 && kit_stats(kit).degraded; i++)
        kit_run_ms(kit, 5);
    ck_assert(!kit_stats(kit).degraded);
}

START_TEST(single_errors_are_passed_on_and_change_nothing_else) {
    struct kit kit;
    open_faulty(&kit);
    for (uint32_t i = 0; i < 6; i++) {
        kit.fault = (struct kit_fault){.kinds = any_transfer, .count = 1, .error = -EIO};
        ck_assert_int_eq(kit_read(&kit, i, 1), -EIO);
        ck_assert_int_eq(kit_read(&kit, i, 1), 0);
    }
    ck_assert(!kit_stats(&kit).degraded);
    ck_assert_uint_eq(kit_stats(&kit).io_error_count, 6);
    kit_end(&kit);
}
END_TEST

START_TEST(a_failed_write_leaves_an_empty_slot_also_after_opening_again) {
    struct kit kit;
    open_faulty(&kit);
    /* The payload, or the record. */
    kit.fault = (struct kit_fault){
        .kinds = 1u << KVBM_DISK_WRITE, .payloads_only = _i == 0, .records_only = _i == 1, .count = 1, .error = -EIO};
    ck_assert_int_eq(kit_write(&kit, 2, 2), -EIO);
    ck_assert_int_eq(kit_read(&kit, 2, 1), -ENOENT);
    ck_assert_int_eq(kit_read(&kit, 2, 2), -ENOENT);
    ck_assert_uint_eq(kit_stats(&kit).resident_blocks, 7);
    kit_close(&kit);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kit_read(&kit, 2, 1), -ENOENT);
    ck_assert_int_eq(kit_read(&kit, 2, 2), -ENOENT);
    ck_assert_int_eq(kit_write(&kit, 2, 3), 0);
    ck_assert_int_eq(kit_read(&kit, 2, 3), 0);
    kit_end(&kit);
}
END_TEST

/* The k-th request of a write, an overwrite, an erasure, a read and a flush fails, for every k. */
START_TEST(whichever_request_fails_nothing_wrong_is_served) {
    static const int errors[] = {-EIO, -ENOSPC, -ENODEV, -EINTR, -EAGAIN};
    for (uint32_t k = 0; k < 10; k++) {
        struct kit kit;
        open_faulty(&kit);
        kit.fault = (struct kit_fault){
            .kinds = any_transfer | 1u << KVBM_DISK_SYNC, .skip = k, .count = 1, .error = errors[_i]};
        int wrote = try_submit(&kit, KVBM_TIER_WRITE, 9);
        int again = try_submit(&kit, KVBM_TIER_WRITE, 1);
        int erased = try_submit(&kit, KVBM_TIER_ERASE, 2);
        int read = try_submit(&kit, KVBM_TIER_READ, 3);
        int flushed = try_submit(&kit, KVBM_TIER_FLUSH, 0);
        bool transient = errors[_i] == -EINTR || errors[_i] == -EAGAIN;
        if (transient || k >= 8)
            ck_assert(wrote == 0 && again == 0 && erased == 0 && read == 0 && flushed == 0);
        kit.fault.kinds = 0;
        until_healthy(&kit);
        for (int opened = 0; opened < 2; opened++) {
            int status = kit_read(&kit, 9, 1);
            ck_assert_int_eq(status, wrote == 0 ? 0 : -ENOENT);
            ck_assert_int_eq(kit_read(&kit, 3, 1), 0);
            if (erased == 0)
                ck_assert_int_eq(kit_read(&kit, 2, 1), -ENOENT);
            kit_close(&kit);
            ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
        }
        kit_end(&kit);
    }
}
END_TEST

START_TEST(errors_in_a_row_degrade_and_a_probe_recovers) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = any_transfer, .count = UINT32_MAX, .error = -EIO};
    for (uint32_t i = 0; i < 3; i++)
        ck_assert_int_eq(try_submit(&kit, KVBM_TIER_READ, i), -EIO);
    ck_assert(kit_stats(&kit).degraded);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_READ, 0), -KVBM_EDEGRADED);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_WRITE, 0), -KVBM_EDEGRADED);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_FLUSH, 0), -KVBM_EDEGRADED);
    kit_run_ms(&kit, 150);
    ck_assert(kit_stats(&kit).degraded); /* probes fail, too */
    ck_assert_uint_eq(lines_with(&kit, "degraded"), 1);
    kit.fault.kinds = 0;
    until_healthy(&kit);
    ck_assert_uint_eq(lines_with(&kit, "degraded"), 1);
    ck_assert_uint_eq(lines_with(&kit, "recovered"), 1);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_int_eq(kit_read(&kit, i, 1), 0);
    struct kvbm_tier_stats stats = kit_stats(&kit);
    ck_assert_uint_eq(stats.degraded_count, 1);
    ck_assert_uint_eq(stats.recovered_count, 1);
    kit_end(&kit);
}
END_TEST

START_TEST(no_space_stops_writes_and_leaves_reads) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = UINT32_MAX, .error = -ENOSPC};
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_WRITE, 9), -ENOSPC);
    ck_assert(kit_stats(&kit).degraded);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_WRITE, 9), -KVBM_EDEGRADED);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_int_eq(kit_read(&kit, i, 1), 0);
    ck_assert_uint_ge(kit_stats(&kit).no_space_count, 1);
    kit.fault.kinds = 0;
    until_healthy(&kit);
    ck_assert_int_eq(kit_write(&kit, 9, 1), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_lost_device_degrades_at_once_and_ends_what_is_in_line) {
    struct kit kit;
    struct kit_io ios[12];
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = any_transfer, .count = UINT32_MAX, .error = -ENODEV};
    for (uint32_t i = 0; i < 12; i++) {
        kit_io_init(&kit, &ios[i], i % 2 == 0 ? KVBM_TIER_READ : KVBM_TIER_WRITE, i % 8, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), 0);
    }
    for (uint32_t i = 0; i < 12; i++) {
        kit_until(&kit, &ios[i].done);
        ck_assert_int_ne(ios[i].item.status, 0);
        kit_io_free(&ios[i]);
    }
    ck_assert_uint_eq(lines_with(&kit, "degraded"), 1);
    kit.fault.kinds = 0;
    until_healthy(&kit);
    kit_end(&kit);
}
END_TEST

START_TEST(a_request_that_does_not_come_back_degrades_and_its_coming_back_recovers) {
    struct kit kit;
    struct kit_io stuck, waiting[6];
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_READ, .count = 4, .hold = true, .after = true};
    kit_io_init(&kit, &stuck, KVBM_TIER_READ, 0, 1);
    ck_assert_int_eq(kit_submit(&kit, &stuck), 0);
    for (uint32_t i = 0; i < 6; i++) {
        kit_io_init(&kit, &waiting[i], KVBM_TIER_READ, 1 + i, 1);
        ck_assert_int_eq(kit_submit(&kit, &waiting[i]), 0);
    }
    kit_until(&kit, &waiting[5].done); /* it was in line */
    ck_assert_int_eq(waiting[5].item.status, -KVBM_EDEGRADED);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_READ, 1), -KVBM_EDEGRADED);
    kit_run_ms(&kit, 100);
    ck_assert(kit_stats(&kit).degraded); /* probes pass, but something is overdue */
    ck_assert(!stuck.done);
    kit_release(&kit);
    kit_until(&kit, &stuck.done);
    ck_assert_int_eq(stuck.item.status, 0);
    for (uint32_t i = 0; i < 6; i++) {
        kit_until(&kit, &waiting[i].done);
        kit_io_free(&waiting[i]);
    }
    kit_io_free(&stuck);
    until_healthy(&kit);
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_probe_that_does_not_come_back_does_not_hang_and_close_waits_for_it) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = any_transfer, .count = 1, .error = -ENXIO};
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_READ, 1), -ENXIO);
    kit.fault = (struct kit_fault){.kinds = any_transfer, .count = 1, .hold = true, .after = true};
    kit_run_ms(&kit, 100);
    ck_assert_uint_eq(kit_held(&kit), 1);
    ck_assert_int_eq(try_submit(&kit, KVBM_TIER_READ, 1), -KVBM_EDEGRADED);
    kit_close_begin(&kit);
    kit_run_ms(&kit, 20);
    ck_assert(!kit.closed);
    kit_release(&kit);
    kit_until(&kit, &kit.closed);
    kit_end(&kit);
}
END_TEST

START_TEST(short_transfers_go_on_where_they_ended) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault =
        (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .payloads_only = true, .count = 1, .short_bytes = 4096};
    ck_assert_int_eq(kit_write(&kit, 9, 1), 0);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_READ, .count = 1, .short_bytes = 4096};
    ck_assert_int_eq(kit_read(&kit, 9, 1), 0);
    ck_assert_uint_eq(kit.hit_count, 2);
    kit_end(&kit);
}
END_TEST

START_TEST(a_file_cut_while_open_is_an_error_and_never_a_hit) {
    struct kit kit;
    open_faulty(&kit);
    ck_assert_int_eq(truncate(kit.paths[0], 8192), 0);
    ck_assert_int_eq(kit_read(&kit, 0, 1), -EIO);
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0); /* in the other file */
    kit_end(&kit);
}
END_TEST

START_TEST(a_device_that_lies_about_a_write_is_found_out) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .payloads_only = true, .count = 1};
    ck_assert_int_eq(kit_write(&kit, 9, 1), 0); /* so it says */
    ck_assert_int_eq(kit_read(&kit, 9, 1), -KVBM_ECORRUPT);
    ck_assert_int_eq(kit_read(&kit, 9, 1), -ENOENT);
    struct kvbm_tier_stats stats = kit_stats(&kit);
    ck_assert_uint_eq(stats.checksum_mismatch_count, 1);
    ck_assert_uint_eq(stats.quarantined_blocks, 1);
    kit_close(&kit);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kit_read(&kit, 9, 1), -ENOENT);
    ck_assert_int_eq(kit_write(&kit, 9, 2), 0);
    ck_assert_int_eq(kit_read(&kit, 9, 2), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_written_block_ends_the_quarantine) {
    struct kit kit;
    open_faulty(&kit);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .payloads_only = true, .count = 1};
    ck_assert_int_eq(kit_write(&kit, 9, 1), 0);
    ck_assert_int_eq(kit_read(&kit, 9, 1), -KVBM_ECORRUPT);
    ck_assert_int_eq(kit_write(&kit, 9, 2), 0);
    ck_assert_uint_eq(kit_stats(&kit).quarantined_blocks, 0);
    ck_assert_int_eq(kit_read(&kit, 9, 2), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_full_file_system_refuses_the_format_and_leaves_nothing) {
    char folder[] = "/tmp/kvbm-full-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(folder));
    if (mount("none", folder, "tmpfs", 0, "size=1m") != 0) {
        (void)fprintf(stderr, "skipped: no file system can be mounted here\n");
        rmdir(folder);
        return;
    }
    struct kit kit;
    kit_init(&kit, folder, 2, 65536, 64);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_CREATE), -ENOSPC);
    ck_assert_msg(strstr(kit.failure.text, "no space") != NULL, "%s", kit.failure.text);
    struct stat status;
    for (int i = 0; i < 2; i++) {
        char fresh[256];
        (void)snprintf(fresh, sizeof fresh, "%s.new", kit.paths[i]);
        ck_assert_int_ne(stat(fresh, &status), 0);
        ck_assert_int_ne(stat(kit.paths[i], &status), 0);
    }
    /* What fits is whole, and full to the brim it stays right. */
    kit.options.files.capacity_blocks = 12;
    int rc = kit_open(&kit, KVBM_DISK_CREATE);
    ck_assert_msg(rc == 0, "%s", kit.failure.text);
    for (uint32_t slot = 0; slot < 12; slot++)
        ck_assert_int_eq(kit_write(&kit, slot, 1), 0);
    for (uint32_t slot = 0; slot < 12; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, 1), 0);
    kit_end(&kit);
    ck_assert_int_eq(umount(folder), 0);
    rmdir(folder);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("disk_health");
    TCase *tc = tcase_create("disk_health");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, single_errors_are_passed_on_and_change_nothing_else);
    tcase_add_loop_test(tc, a_failed_write_leaves_an_empty_slot_also_after_opening_again, 0, 2);
    tcase_add_loop_test(tc, whichever_request_fails_nothing_wrong_is_served, 0, 5);
    tcase_add_test(tc, errors_in_a_row_degrade_and_a_probe_recovers);
    tcase_add_test(tc, no_space_stops_writes_and_leaves_reads);
    tcase_add_test(tc, a_lost_device_degrades_at_once_and_ends_what_is_in_line);
    tcase_add_test(tc, a_request_that_does_not_come_back_degrades_and_its_coming_back_recovers);
    tcase_add_test(tc, a_probe_that_does_not_come_back_does_not_hang_and_close_waits_for_it);
    tcase_add_test(tc, short_transfers_go_on_where_they_ended);
    tcase_add_test(tc, a_file_cut_while_open_is_an_error_and_never_a_hit);
    tcase_add_test(tc, a_device_that_lies_about_a_write_is_found_out);
    tcase_add_test(tc, a_written_block_ends_the_quarantine);
    tcase_add_test(tc, a_full_file_system_refuses_the_format_and_leaves_nothing);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
