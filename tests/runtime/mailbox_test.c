/*
 * mailbox_test.c - facts about the lanes into a reactor.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "runtime/mailbox.h"
#include "tests/runtime/support.h"

enum { SLOTS = 8, HELD = SLOTS - 1, BATCH = 3 };

static struct support_os fake;
static struct kvbm_mailbox box;
static struct kvbm_msg msgs[1024];

static void open_box(void) {
    support_os_init(&fake);
    memset(msgs, 0, sizeof msgs);
    for (uint32_t i = 0; i < sizeof msgs / sizeof msgs[0]; i++)
        msgs[i].user = i;
    const struct kvbm_mailbox_options options = {
        .control_capacity = SLOTS, .data_capacity = SLOTS, .thread_capacity = SLOTS, .lane_batch = BATCH};
    ck_assert_int_eq(kvbm_mailbox_open(&box, &fake.table, &options), 0);
    ck_assert(kvbm_mailbox_empty_mt(&box));
}

static void close_box(void) {
    ck_assert(kvbm_mailbox_empty_mt(&box));
    ck_assert_ptr_null(kvbm_mailbox_take(&box));
    kvbm_mailbox_close(&box);
    ck_assert_int_eq(fake.maps, 0);
}

static void expect(const uint32_t *users, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct kvbm_msg *msg = kvbm_mailbox_take(&box);
        ck_assert_ptr_nonnull(msg);
        ck_assert_uint_eq(msg->user, users[i]);
    }
    ck_assert_ptr_null(kvbm_mailbox_take(&box));
}
#define EXPECT(...) expect((const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

typedef int (*post_fn)(struct kvbm_mailbox *, struct kvbm_msg *);

START_TEST(full_lane_returns_eagain_and_keeps_ownership) {
    const post_fn posts[] = {kvbm_mailbox_post_control_mt, kvbm_mailbox_post_data_mt, kvbm_mailbox_post_thread_mt};
    for (int lane = 0; lane < 3; lane++) {
        open_box();
        for (int lap = 0; lap < 5; lap++) {
            for (int i = 0; i < HELD; i++)
                ck_assert_int_eq(posts[lane](&box, &msgs[i]), 0);
            struct kvbm_msg before = msgs[HELD];
            ck_assert_int_eq(posts[lane](&box, &msgs[HELD]), -EAGAIN);
            ck_assert_mem_eq(&before, &msgs[HELD], sizeof before);
            ck_assert_uint_eq(kvbm_mailbox_depth_mt(&box), HELD);
            ck_assert(!kvbm_mailbox_empty_mt(&box));
            ck_assert_uint_eq(kvbm_mailbox_take(&box)->user, 0);
            ck_assert_int_eq(posts[lane](&box, &msgs[HELD]), 0);
            EXPECT(1, 2, 3, 4, 5, 6, 7);
        }
        close_box();
    }
}
END_TEST

START_TEST(replies_go_first_then_control_then_requests) {
    open_box();
    ck_assert_int_eq(kvbm_mailbox_post_thread_mt(&box, &msgs[0]), 0);
    ck_assert_int_eq(kvbm_mailbox_post_data_mt(&box, &msgs[1]), 0);
    ck_assert_int_eq(kvbm_mailbox_post_control_mt(&box, &msgs[2]), 0);
    kvbm_mailbox_post_reply_mt(&box, &msgs[3]);
    kvbm_mailbox_post_reply_mt(&box, &msgs[4]);
    ck_assert_uint_eq(kvbm_mailbox_take(&box)->user, 3);
    kvbm_mailbox_post_reply_mt(&box, &msgs[5]);
    ck_assert(!kvbm_mailbox_empty_mt(&box));
    EXPECT(4, 5, 2, 1, 0);
    close_box();
}
END_TEST

START_TEST(replies_are_never_refused_and_keep_their_order) {
    open_box();
    for (uint32_t i = 0; i < 1000; i++)
        kvbm_mailbox_post_reply_mt(&box, &msgs[i]);
    for (uint32_t i = 0; i < 1000; i++)
        ck_assert_uint_eq(kvbm_mailbox_take(&box)->user, i);
    close_box();
}
END_TEST

START_TEST(a_reply_taken_in_a_batch_still_counts_as_work) {
    open_box();
    kvbm_mailbox_post_reply_mt(&box, &msgs[0]);
    kvbm_mailbox_post_reply_mt(&box, &msgs[1]);
    ck_assert_uint_eq(kvbm_mailbox_take(&box)->user, 0);
    ck_assert(!kvbm_mailbox_empty_mt(&box));
    EXPECT(1);
    close_box();
}
END_TEST

struct poster {
    uint32_t first;
    uint32_t count;
    int rc;
    int number;
};

static void post_some(void *arg) {
    struct poster *poster = arg;
    poster->number = kvbm_os_thread_number_mt();
    for (uint32_t i = 0; i < poster->count; i++)
        poster->rc |= kvbm_mailbox_post_thread_mt(&box, &msgs[poster->first + i]);
}

static void post_on_thread(uint32_t first, uint32_t count) {
    struct poster poster = {.first = first, .count = count};
    struct kvbm_thread thread;
    const struct kvbm_os *os = kvbm_os_real();
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, post_some, &poster, "post"), 0);
    os->thread_join(os->ctx, &thread);
    ck_assert_int_eq(poster.rc, 0);
}

START_TEST(lanes_take_turns_of_at_most_lane_batch_messages) {
    open_box();
    /* This thread's lane, then the data lane, wherever the cursor stands. */
    for (uint32_t i = 0; i < 7; i++) {
        ck_assert_int_eq(kvbm_mailbox_post_thread_mt(&box, &msgs[i]), 0);
        ck_assert_int_eq(kvbm_mailbox_post_data_mt(&box, &msgs[100 + i]), 0);
    }
    uint32_t run = 0;
    bool was_data = false;
    uint32_t next[2] = {0, 100};
    uint32_t longest = 0;
    for (int i = 0; i < 14; i++) {
        uint32_t user = kvbm_mailbox_take(&box)->user;
        bool is_data = user >= 100;
        ck_assert_uint_eq(user, next[is_data]++);
        run = i > 0 && is_data == was_data ? run + 1 : 1;
        was_data = is_data;
        bool both_hold = next[0] < 7 && next[1] < 107;
        if (both_hold && run > longest)
            longest = run;
    }
    ck_assert_uint_eq(longest, BATCH);
    close_box();
}
END_TEST

START_TEST(thread_that_takes_over_a_number_continues_its_lane_in_order) {
    open_box();
    for (uint32_t i = 0; i < 6; i++)
        post_on_thread(i, 1); /* each ends before the next: the same number, hence the same lane */
    EXPECT(0, 1, 2, 3, 4, 5);
    close_box();
}
END_TEST

START_TEST(lane_emptied_and_filled_again_is_found_again) {
    open_box();
    for (int lap = 0; lap < 100; lap++) {
        ck_assert_int_eq(kvbm_mailbox_post_thread_mt(&box, &msgs[0]), 0);
        ck_assert(!kvbm_mailbox_empty_mt(&box));
        EXPECT(0);
        ck_assert(kvbm_mailbox_empty_mt(&box));
    }
    close_box();
}
END_TEST

static _Atomic uint32_t crowd_arrived, crowd_leave;

static void post_and_stay(void *arg) {
    post_some(arg);
    atomic_fetch_add(&crowd_arrived, 1);
    while (atomic_load(&crowd_leave) == 0)
        kvbm_os_real()->wait_u32(NULL, &crowd_leave, 0, KVBM_NO_DEADLINE);
}

START_TEST(threads_without_a_number_use_the_data_lane) {
    enum { CROWD = KVBM_THREAD_COUNT_MAX + 4 };
    open_box();
    const struct kvbm_os *os = kvbm_os_real();
    static struct poster posters[CROWD];
    struct kvbm_thread threads[CROWD];
    uint32_t unnumbered = 0;
    atomic_store(&crowd_arrived, 0);
    atomic_store(&crowd_leave, 0);
    for (uint32_t i = 0; i < CROWD; i++) {
        posters[i] = (struct poster){.first = i, .count = 1};
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], post_and_stay, &posters[i], "crowd"), 0);
        while (atomic_load(&crowd_arrived) <= i)
            os->wait_u32(os->ctx, &crowd_arrived, i, os->now_ns(os->ctx) + 1000000);
        ck_assert_int_eq(posters[i].rc, 0);
        unnumbered += posters[i].number < 0;
    }
    ck_assert_uint_ge(unnumbered, 4);
    bool seen[CROWD] = {false};
    for (uint32_t i = 0; i < CROWD; i++) {
        struct kvbm_msg *msg = kvbm_mailbox_take(&box);
        ck_assert_ptr_nonnull(msg);
        ck_assert(!seen[msg->user]);
        seen[msg->user] = true;
    }
    atomic_store(&crowd_leave, 1);
    os->wake_u32(os->ctx, &crowd_leave, true);
    for (uint32_t i = 0; i < CROWD; i++)
        os->thread_join(os->ctx, &threads[i]);
    close_box();
}
END_TEST

START_TEST(credit_waits_until_the_data_lane_is_at_most_half_full) {
    open_box();
    for (uint32_t i = 0; i < HELD; i++)
        ck_assert_int_eq(kvbm_mailbox_post_data_mt(&box, &msgs[i]), 0);
    kvbm_mailbox_want_credit_mt(&box, &msgs[100]);
    kvbm_mailbox_want_credit_mt(&box, &msgs[101]);
    for (uint32_t left = HELD; left > SLOTS / 2; left--) {
        ck_assert_ptr_null(kvbm_mailbox_take_credit(&box));
        ck_assert_ptr_nonnull(kvbm_mailbox_take(&box));
    }
    ck_assert_uint_eq(kvbm_mailbox_take_credit(&box)->user, 100);
    while (kvbm_mailbox_take(&box) != NULL) {
    }
    ck_assert(!kvbm_mailbox_empty_mt(&box)); /* a waiter that may be told is work */
    ck_assert_uint_eq(kvbm_mailbox_take_credit(&box)->user, 101);
    ck_assert_ptr_null(kvbm_mailbox_take_credit(&box));
    close_box();
}
END_TEST

static void close_full(void *arg) {
    (void)arg;
    kvbm_mailbox_post_data_mt(&box, &msgs[0]);
    kvbm_mailbox_close(&box);
}

static void close_with_reply(void *arg) {
    (void)arg;
    kvbm_mailbox_post_reply_mt(&box, &msgs[0]);
    kvbm_mailbox_close(&box);
}

START_TEST(misuse_is_refused_or_aborts) {
    char text[512];
    support_os_init(&fake);
    const struct kvbm_mailbox_options good = {4, 4, 4, 1};
    struct kvbm_mailbox_options bad[7] = {good, good, good, good, good, good, good};
    bad[0].control_capacity = 0;
    bad[1].data_capacity = 3;
    bad[2].thread_capacity = 2;
    bad[3].lane_batch = 0;
    bad[4].data_capacity = 12;
    bad[5].thread_capacity = 1u << 31;
    bad[6].control_capacity = UINT32_MAX;
    for (int i = 0; i < 7; i++)
        ck_assert_int_eq(kvbm_mailbox_open(&box, &fake.table, &bad[i]), -EINVAL);
    fake.map_fail_after = 0;
    ck_assert_int_eq(kvbm_mailbox_open(&box, &fake.table, &good), -ENOMEM);
    open_box();
    ck_assert(support_aborts(close_full, NULL, text, sizeof text));
    ck_assert(support_aborts(close_with_reply, NULL, text, sizeof text));
    close_box();
}
END_TEST

/* ---- producers against the consumer */

enum { PRODUCER_COUNT = 4, POSTS_EACH = 20000 };

static struct kvbm_msg own[PRODUCER_COUNT][64];
static _Atomic uint32_t own_free[PRODUCER_COUNT][64];

static void produce(void *arg) {
    const uint32_t producer = (uint32_t)(uintptr_t)arg;
    uint64_t next = 0;
    uint32_t slot = 0;
    while (next < POSTS_EACH) {
        struct kvbm_msg *msg = &own[producer][slot];
        if (atomic_load_explicit(&own_free[producer][slot], memory_order_acquire) == 0) {
            kvbm_os_real()->wait_u32(NULL, &own_free[producer][slot], 0, kvbm_os_real()->now_ns(NULL) + 50000);
            continue;
        }
        atomic_store_explicit(&own_free[producer][slot], 0, memory_order_relaxed);
        msg->op = next;
        msg->user = producer * 64 + slot;
        int rc = 0;
        if (producer % 2 == 0)
            rc = kvbm_mailbox_post_thread_mt(&box, msg);
        else
            rc = kvbm_mailbox_post_data_mt(&box, msg);
        if (rc == 0) {
            next++;
            slot = (slot + 1) % 64;
        } else {
            atomic_store_explicit(&own_free[producer][slot], 1, memory_order_relaxed);
        }
    }
}

START_TEST(every_message_of_every_producer_comes_once_and_in_order) {
    open_box();
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[PRODUCER_COUNT];
    uint64_t next[PRODUCER_COUNT] = {0};
    for (int p = 0; p < PRODUCER_COUNT; p++) {
        for (int s = 0; s < 64; s++)
            atomic_store(&own_free[p][s], 1);
    }
    for (uintptr_t p = 0; p < PRODUCER_COUNT; p++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[p], produce, (void *)p, "produce"), 0);
    for (uint64_t total = 0; total < PRODUCER_COUNT * POSTS_EACH;) {
        struct kvbm_msg *msg = kvbm_mailbox_take(&box);
        if (msg == NULL)
            continue;
        uint32_t producer = msg->user / 64;
        ck_assert_uint_eq(msg->op, next[producer]);
        next[producer]++;
        total++;
        atomic_store_explicit(&own_free[producer][msg->user % 64], 1, memory_order_release);
    }
    for (int p = 0; p < PRODUCER_COUNT; p++)
        os->thread_join(os->ctx, &threads[p]);
    close_box();
}
END_TEST

SUPPORT_MAIN("mailbox", full_lane_returns_eagain_and_keeps_ownership, replies_go_first_then_control_then_requests,
             replies_are_never_refused_and_keep_their_order, a_reply_taken_in_a_batch_still_counts_as_work,
             lanes_take_turns_of_at_most_lane_batch_messages,
             thread_that_takes_over_a_number_continues_its_lane_in_order, lane_emptied_and_filled_again_is_found_again,
             threads_without_a_number_use_the_data_lane, credit_waits_until_the_data_lane_is_at_most_half_full,
             misuse_is_refused_or_aborts, every_message_of_every_producer_comes_once_and_in_order)
