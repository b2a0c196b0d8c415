/*
 * fault_test.c - the store of faults does what its rules say, and keeps the contracts of a tier while it does.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/fault.h"
#include "tests/storage/disk_kit.h"

#define MS UINT64_C(1000000)

/* A disk store with the faults in front; the kit's from then on. */
static void start(struct kit *kit) {
    kit_init(kit, NULL, 1, 8192, 8);
    kit->options.backend = KVBM_DISK_THREADS;
    ck_assert_int_eq(kit_open(kit, KVBM_DISK_CREATE), 0);
    struct kvbm_fault_options options = {.os = kvbm_os_real(), .loop = &kit->loop, .seed = 7, .io_count = 4};
    struct kvbm_store *outer = NULL;
    ck_assert_int_eq(kvbm_fault_open(&outer, kit->store, &options), 0);
    kit->store = outer;
    for (uint32_t slot = 0; slot < 8; slot++)
        ck_assert_int_eq(kit_write(kit, slot, 1), 0);
}

static int add(struct kit *kit, struct kvbm_fault_rule rule) {
    int number = kvbm_fault_add(kit->store, &rule);
    ck_assert_int_ge(number, 0);
    return number;
}

static uint64_t now_ns(void) {
    return kvbm_os_real()->now_ns(kvbm_os_real()->ctx);
}

START_TEST(without_rules_it_is_the_store_behind_it) {
    struct kit kit;
    start(&kit);
    for (uint32_t slot = 0; slot < 8; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, 1), 0);
    ck_assert_int_eq(kit_read(&kit, 0, 2), -ENOENT);
    ck_assert_int_eq(kit_erase(&kit, 0), 0);
    ck_assert_int_eq(kit_flush(&kit), 0);
    ck_assert_uint_eq(kit_stats(&kit).resident_blocks, 7);
    kit_end(&kit);
}
END_TEST

START_TEST(a_transient_failure_hits_the_nth_and_as_many_as_it_says) {
    struct kit kit;
    start(&kit);
    int rule = add(&kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_FAIL,
                                                  .ops = 1u << KVBM_TIER_READ,
                                                  .slot = KVBM_FAULT_ANY,
                                                  .after_count = 2,
                                                  .count = 3});
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_int_eq(kit_read(&kit, i, 1), i >= 2 && i < 5 ? -EIO : 0);
    ck_assert_uint_eq(kvbm_fault_hits(kit.store, rule), 3);
    kit_end(&kit);
}
END_TEST

START_TEST(a_persistent_failure_of_one_slot_lasts_until_cleared) {
    struct kit kit;
    start(&kit);
    add(&kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_FAIL, .slot = 3, .error = -ENOSPC});
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(kit_write(&kit, 3, 2), -ENOSPC);
        ck_assert_int_eq(kit_write(&kit, 4, 2), 0);
    }
    kvbm_fault_clear(kit.store);
    ck_assert_int_eq(kit_read(&kit, 3, 1), 0); /* nothing was performed */
    kit_end(&kit);
}
END_TEST

START_TEST(probability_is_drawn_from_the_seed) {
    uint64_t hits[2];
    for (int run = 0; run < 2; run++) {
        struct kit kit;
        start(&kit);
        int rule = add(
            &kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_FAIL, .slot = KVBM_FAULT_ANY, .per_million = 300000});
        for (uint32_t i = 0; i < 200; i++)
            (void)kit_read(&kit, i % 8, 1);
        hits[run] = kvbm_fault_hits(kit.store, rule);
        kit_end(&kit);
    }
    ck_assert_uint_eq(hits[0], hits[1]);
    ck_assert(hits[0] > 30 && hits[0] < 90);
}
END_TEST

START_TEST(what_fails_after_it_was_performed_was_performed) {
    struct kit kit;
    start(&kit);
    add(&kit, (struct kvbm_fault_rule){
                  .effect = KVBM_FAULT_FAIL_AFTER, .ops = 1u << KVBM_TIER_WRITE, .slot = KVBM_FAULT_ANY, .count = 1});
    ck_assert_int_eq(kit_write(&kit, 1, 2), -EIO);
    ck_assert_int_eq(kit_read(&kit, 1, 2), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(what_never_ends_is_told_late_and_ends_when_released) {
    struct kit kit;
    struct kit_io io;
    start(&kit);
    add(&kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_NEVER, .slot = KVBM_FAULT_ANY, .count = 1});
    kit_io_init(&kit, &io, KVBM_TIER_READ, 1, 1);
    io.io.deadline_ns = now_ns() + 10 * MS;
    ck_assert_int_eq(kit_submit(&kit, &io), 0);
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0); /* others pass */
    kit_until(&kit, &io.late);
    kit_run_ms(&kit, 20);
    ck_assert(!io.done);
    kvbm_fault_release(kit.store);
    kit_until(&kit, &io.done);
    ck_assert_int_eq(io.item.status, -ETIMEDOUT);
    kit_io_free(&io);
    kit_end(&kit);
}
END_TEST

START_TEST(cancelling_what_never_ends_keeps_its_memory_until_released_or_closed) {
    struct kit kit;
    struct kit_io io;
    start(&kit);
    add(&kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_NEVER, .slot = KVBM_FAULT_ANY});
    kit_io_init(&kit, &io, KVBM_TIER_WRITE, 1, 2);
    ck_assert_int_eq(kit_submit(&kit, &io), 0);
    kit.store->ops->cancel(kit.store, &io.io);
    kit_run_ms(&kit, 10);
    ck_assert(!io.done);
    kit_close(&kit);
    ck_assert(io.done);
    ck_assert_int_eq(io.item.status, -ECANCELED);
    kit_io_free(&io);
    kit_end(&kit);
}
END_TEST

START_TEST(late_is_as_late_as_it_says_and_right) {
    struct kit kit;
    start(&kit);
    add(&kit,
        (struct kvbm_fault_rule){.effect = KVBM_FAULT_LATE, .slot = KVBM_FAULT_ANY, .count = 1, .delay_ns = 30 * MS});
    uint64_t start_ns = now_ns();
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0);
    ck_assert_uint_ge(now_ns() - start_ns, 30 * MS);
    kit_end(&kit);
}
END_TEST

START_TEST(corrupt_and_short_reads_are_errors_with_other_bytes) {
    struct kit kit;
    struct kit_io io;
    start(&kit);
    for (int i = 0; i < 3; i++) {
        kvbm_fault_clear(kit.store);
        add(&kit, (struct kvbm_fault_rule){.effect = i < 2 ? KVBM_FAULT_CORRUPT : KVBM_FAULT_SHORT,
                                           .slot = KVBM_FAULT_ANY,
                                           .count = 1,
                                           .silent = i == 1});
        kit_io_init(&kit, &io, KVBM_TIER_READ, 1, 1);
        ck_assert_int_eq(kit_submit(&kit, &io), 0);
        kit_until(&kit, &io.done);
        ck_assert_int_eq(io.item.status, i == 0 ? -KVBM_ECORRUPT : i == 1 ? 0 : -EIO);
        ck_assert(!kit_is(io.memory, io.bytes, 1, 1));
        kit_io_free(&io);
        ck_assert_int_eq(kit_read(&kit, 1, 1), 0); /* what is stored is whole */
    }
    kit_end(&kit);
}
END_TEST

START_TEST(a_lost_device_refuses_until_healed) {
    struct kit kit;
    struct kit_io io;
    start(&kit);
    add(&kit,
        (struct kvbm_fault_rule){.effect = KVBM_FAULT_LOST, .slot = KVBM_FAULT_ANY, .after_count = 1, .count = 1});
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0);
    ck_assert_int_eq(kit_read(&kit, 1, 1), -ENODEV);
    kit_io_init(&kit, &io, KVBM_TIER_READ, 1, 1);
    ck_assert_int_eq(kit_submit(&kit, &io), -KVBM_EDEGRADED);
    kit_io_free(&io);
    kvbm_fault_heal(kit.store);
    ck_assert_int_eq(kit_read(&kit, 1, 1), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(items_of_one_request_fail_one_by_one) {
    struct kit kit;
    struct kit_io io;
    struct kvbm_tier_item items[4];
    start(&kit);
    add(&kit, (struct kvbm_fault_rule){.effect = KVBM_FAULT_FAIL, .slot = 2});
    kit_io_init(&kit, &io, KVBM_TIER_READ, 0, 1);
    uint8_t *memory = aligned_alloc(4096, 4 * 8192);
    struct kvbm_tier_segment segments[4];
    ck_assert_ptr_nonnull(memory);
    for (uint32_t i = 0; i < 4; i++) {
        segments[i] = (struct kvbm_tier_segment){memory + i * 8192, 8192};
        items[i] = (struct kvbm_tier_item){.slot = i, .segments = &segments[i], .segment_count = 1, .status = 77};
        kit_label(i, 1, &items[i].label);
    }
    io.io.items = items;
    io.io.item_count = 4;
    ck_assert_int_eq(kit_submit(&kit, &io), 0);
    kit_until(&kit, &io.done);
    ck_assert_int_eq(io.io.status, -EIO);
    for (uint32_t i = 0; i < 4; i++) {
        ck_assert_int_eq(items[i].status, i == 2 ? -EIO : 0);
        ck_assert(i == 2 || kit_is(memory + i * 8192, 8192, i, 1));
    }
    kit_io_free(&io);
    free(memory);
    kit_end(&kit);
}
END_TEST

START_TEST(more_requests_than_shadows_are_refused) {
    struct kit kit;
    struct kit_io ios[5];
    start(&kit);
    for (uint32_t i = 0; i < 5; i++) {
        kit_io_init(&kit, &ios[i], KVBM_TIER_READ, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), i < 4 ? 0 : -EAGAIN);
    }
    for (uint32_t i = 0; i < 4; i++)
        kit_until(&kit, &ios[i].done);
    for (uint32_t i = 0; i < 5; i++)
        kit_io_free(&ios[i]);
    kit_end(&kit);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("fault");
    TCase *tc = tcase_create("fault");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, without_rules_it_is_the_store_behind_it);
    tcase_add_test(tc, a_transient_failure_hits_the_nth_and_as_many_as_it_says);
    tcase_add_test(tc, a_persistent_failure_of_one_slot_lasts_until_cleared);
    tcase_add_test(tc, probability_is_drawn_from_the_seed);
    tcase_add_test(tc, what_fails_after_it_was_performed_was_performed);
    tcase_add_test(tc, what_never_ends_is_told_late_and_ends_when_released);
    tcase_add_test(tc, cancelling_what_never_ends_keeps_its_memory_until_released_or_closed);
    tcase_add_test(tc, late_is_as_late_as_it_says_and_right);
    tcase_add_test(tc, corrupt_and_short_reads_are_errors_with_other_bytes);
    tcase_add_test(tc, a_lost_device_refuses_until_healed);
    tcase_add_test(tc, items_of_one_request_fail_one_by_one);
    tcase_add_test(tc, more_requests_than_shadows_are_refused);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
