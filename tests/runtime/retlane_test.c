/*
 * retlane_test.c - facts about return lanes.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "runtime/retlane.h"
#include "tests/runtime/support.h"

enum { CAPACITY = 64 };

static struct support_os fake;
static struct kvbm_retlane lane;
static uint32_t seen[1024];
static uint32_t seen_count;

static void see(void *arg, uint32_t id) {
    ck_assert_ptr_eq(arg, &lane);
    seen[seen_count++] = id;
}

static void open_lane(uint32_t capacity) {
    support_os_init(&fake);
    seen_count = 0;
    ck_assert_int_eq(kvbm_retlane_open(&lane, &fake.table, capacity), 0);
    ck_assert(kvbm_retlane_empty_mt(&lane));
}

START_TEST(ids_come_out_in_push_order) {
    open_lane(CAPACITY);
    const uint32_t ids[] = {7, 0, 63, 8, 1};
    for (int i = 0; i < 5; i++)
        kvbm_retlane_push_mt(&lane, ids[i]);
    ck_assert(!kvbm_retlane_empty_mt(&lane));
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, see, &lane), 5);
    ck_assert_mem_eq(seen, ids, sizeof ids);
    ck_assert(kvbm_retlane_empty_mt(&lane));
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, see, &lane), 0);
    kvbm_retlane_close(&lane);
    ck_assert_int_eq(fake.maps, 0);
}
END_TEST

START_TEST(many_ids_come_out_next_to_each_other_and_in_order) {
    open_lane(CAPACITY);
    const uint32_t many[] = {5, 4, 3, 20};
    const uint32_t expected[] = {9, 5, 4, 3, 20, 11, 2};
    kvbm_retlane_push_mt(&lane, 9);
    kvbm_retlane_push_many_mt(&lane, many, 4);
    kvbm_retlane_push_mt(&lane, 11);
    kvbm_retlane_push_many_mt(&lane, (const uint32_t[]){2}, 1);
    kvbm_retlane_push_many_mt(&lane, many, 0);
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, see, &lane), 7);
    ck_assert_mem_eq(seen, expected, sizeof expected);
    kvbm_retlane_close(&lane);
}
END_TEST

START_TEST(lane_holds_every_id_at_once) {
    open_lane(CAPACITY);
    for (uint32_t i = 0; i < CAPACITY; i++)
        kvbm_retlane_push_mt(&lane, CAPACITY - 1 - i);
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, see, &lane), CAPACITY);
    for (uint32_t i = 0; i < CAPACITY; i++)
        ck_assert_uint_eq(seen[i], CAPACITY - 1 - i);
    kvbm_retlane_close(&lane);
}
END_TEST

static void push_again_once(void *arg, uint32_t id) {
    seen[seen_count++] = id;
    if (seen_count <= 3)
        kvbm_retlane_push_mt(arg, id);
}

START_TEST(id_may_be_pushed_again_while_it_is_handed_out) {
    open_lane(CAPACITY);
    kvbm_retlane_push_many_mt(&lane, (const uint32_t[]){1, 2, 3}, 3);
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, push_again_once, &lane), 3);
    ck_assert_uint_eq(kvbm_retlane_drain(&lane, push_again_once, &lane), 3);
    const uint32_t expected[] = {1, 2, 3, 1, 2, 3};
    ck_assert_mem_eq(seen, expected, sizeof expected);
    kvbm_retlane_close(&lane);
}
END_TEST

static void push_beyond(void *arg) {
    kvbm_retlane_push_mt(arg, CAPACITY);
}

static void close_full(void *arg) {
    kvbm_retlane_push_mt(arg, 0);
    kvbm_retlane_close(arg);
}

START_TEST(misuse_is_refused_or_aborts) {
    char text[512];
    support_os_init(&fake);
    ck_assert_int_eq(kvbm_retlane_open(&lane, &fake.table, 0), -EINVAL);
    ck_assert_int_eq(kvbm_retlane_open(&lane, &fake.table, UINT32_MAX), -EINVAL);
    fake.map_fail_after = 0;
    ck_assert_int_eq(kvbm_retlane_open(&lane, &fake.table, 4), -ENOMEM);
    open_lane(CAPACITY);
    ck_assert(support_aborts(push_beyond, &lane, text, sizeof text));
    ck_assert(support_aborts(close_full, &lane, text, sizeof text));
    kvbm_retlane_close(&lane);
}
END_TEST

/* ---- several pushers: each owns ids [base, base + 16) and pushes those that are not queued, singly or in pairs */

enum { PUSHER_COUNT = 4, IDS_EACH = 16, PUSHES_EACH = 30000 };

struct item {
    _Atomic uint32_t queued; /* cleared by the drainer, before the id may be pushed again */
    uint64_t sequence;       /* plain: the lane's release/acquire must carry it */
};

static struct item items[PUSHER_COUNT * IDS_EACH];
static uint64_t sequence_seen[PUSHER_COUNT];
static uint64_t drained, disorder;

static void push_own(void *arg) {
    const uint32_t base = (uint32_t)(uintptr_t)arg * IDS_EACH;
    uint64_t sequence = 0;
    uint32_t next = 0;
    while (sequence < PUSHES_EACH) {
        uint32_t pair[2] = {base + next, base + (next + 1) % IDS_EACH};
        uint32_t free_count = 0;
        while (free_count < 2 && atomic_load_explicit(&items[pair[free_count]].queued, memory_order_acquire) == 0)
            free_count++;
        if (free_count == 0) {
            kvbm_os_real()->wait_u32(NULL, &items[pair[0]].queued, 1, kvbm_os_real()->now_ns(NULL) + 100000);
            continue;
        }
        for (uint32_t i = 0; i < free_count; i++) {
            items[pair[i]].sequence = ++sequence;
            atomic_store_explicit(&items[pair[i]].queued, 1, memory_order_relaxed);
        }
        if (free_count == 2)
            kvbm_retlane_push_many_mt(&lane, pair, 2);
        else
            kvbm_retlane_push_mt(&lane, pair[0]);
        next = (next + free_count) % IDS_EACH;
    }
}

static void drain_one(void *arg, uint32_t id) {
    (void)arg;
    uint32_t pusher = id / IDS_EACH;
    if (items[id].sequence != sequence_seen[pusher] + 1)
        disorder++;
    sequence_seen[pusher] = items[id].sequence;
    drained++;
    atomic_store_explicit(&items[id].queued, 0, memory_order_release);
}

START_TEST(several_pushers_lose_nothing_and_keep_their_order) {
    open_lane(PUSHER_COUNT * IDS_EACH);
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[PUSHER_COUNT];
    for (uintptr_t t = 0; t < PUSHER_COUNT; t++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[t], push_own, (void *)t, "push"), 0);
    bool all = false;
    while (!all) {
        kvbm_retlane_drain(&lane, drain_one, NULL);
        all = true;
        for (int t = 0; t < PUSHER_COUNT; t++)
            all = all && sequence_seen[t] >= PUSHES_EACH;
    }
    for (int t = 0; t < PUSHER_COUNT; t++)
        os->thread_join(os->ctx, &threads[t]);
    kvbm_retlane_drain(&lane, drain_one, NULL);
    ck_assert_uint_eq(disorder, 0);
    ck_assert_uint_ge(drained, PUSHER_COUNT * PUSHES_EACH);
    kvbm_retlane_close(&lane);
}
END_TEST

SUPPORT_MAIN("retlane", ids_come_out_in_push_order, many_ids_come_out_next_to_each_other_and_in_order,
             lane_holds_every_id_at_once, id_may_be_pushed_again_while_it_is_handed_out, misuse_is_refused_or_aborts,
             several_pushers_lose_nothing_and_keep_their_order)
