/*
 * reactor_test.c - facts about turns, and the borrow and wake protocol, its interleavings driven by hand on one thread.
 *
 * A handler that calls kvbm_reactor_take plays the reactor's thread waking up while the reactor is borrowed;
 * post_elsewhere plays another application thread.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/reactor.h"
#include "runtime/reactor_internal.h"
#include "tests/runtime/support.h"

enum { KIND_NOTE = 1, KIND_FORWARD, KIND_DO, KIND_UNKNOWN, KIND_COUNT };

static struct support_os fake;
static struct kvbm_reactor *r;
static struct kvbm_actor front, back;
static _Atomic uint64_t wakes;

/* What ran, by msg->user. */
static uint32_t ran[4096];
static uint32_t ran_count;
static uint32_t replies;
static uint32_t expired;

static void (*todo)(struct kvbm_msg *msg); /* what a KIND_DO does */

static void note(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    ran[ran_count++] = msg->user;
}

static void forward(struct kvbm_actor *self, struct kvbm_msg *msg) {
    msg->reply_to = self;
    ck_assert_int_eq(kvbm_actor_send(self, &back, msg), 0);
}

static void answer(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_actor_reply(self, msg, -EIO);
}

static void on_answer(struct kvbm_actor *self, struct kvbm_msg *msg) {
    ck_assert_int_eq(msg->status, -EIO);
    replies++;
    note(self, msg);
}

static void do_it(struct kvbm_actor *self, struct kvbm_msg *msg) {
    note(self, msg);
    todo(msg);
}

static void on_deadline(struct kvbm_actor *self, struct kvbm_msg *msg) {
    ck_assert_ptr_eq(self, msg->to);
    ck_assert_uint_eq(msg->deadline_slot, KVBM_DEADLINE_NONE);
    expired++;
    note(self, msg);
}

static const kvbm_handler_fn front_requests[KIND_COUNT] = {
    [KIND_NOTE] = note, [KIND_FORWARD] = forward, [KIND_DO] = do_it};
static const kvbm_handler_fn front_replies[KIND_COUNT] = {[KIND_FORWARD] = on_answer};
static const kvbm_handler_fn back_requests[KIND_COUNT] = {[KIND_FORWARD] = answer};

static const struct kvbm_msg_info kinds[KIND_COUNT] = {[KIND_NOTE] = {"NOTE", 64}, [KIND_DO] = {"DO", 64}};

static struct kvbm_msg msgs[1024];

static void open_with(struct kvbm_reactor_options options) {
    r = support_new(sizeof *r);
    memset(msgs, 0, sizeof msgs);
    ran_count = replies = expired = 0;
    options.kinds = kinds;
    options.kind_count = KIND_COUNT;
    ck_assert_int_eq(kvbm_reactor_open(r, &options), 0);
    front = (struct kvbm_actor){.name = "front",
                                .on_request = front_requests,
                                .on_reply = front_replies,
                                .kind_count = KIND_COUNT,
                                .on_deadline = on_deadline};
    back = (struct kvbm_actor){.name = "back", .on_request = back_requests, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(r, &front);
    kvbm_reactor_actor_add(r, &back);
}

static struct kvbm_reactor_options default_options(void) {
    support_os_init(&fake);
    atomic_store(&wakes, 0);
    return support_reactor_options(&fake.table, &wakes);
}

static void open_reactor(void) {
    open_with(default_options());
}

static uint32_t state(void) {
    return atomic_load(&r->state);
}

static void close_reactor(void) {
    if (state() != KVBM_REACTOR_RUNNING)
        ck_assert(kvbm_reactor_take(r));
    kvbm_reactor_close(r);
    free(r);
    ck_assert_int_eq(fake.maps, 0);
}

static struct kvbm_msg *make(uint32_t i, uint16_t kind) {
    msgs[i] = (struct kvbm_msg){.kind = kind, .user = i, .to = &front, .op = i};
    return &msgs[i];
}

static void park(void) {
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(r, &timer_ns));
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
}

static int post(uint32_t i) {
    return kvbm_reactor_post_mt(r, make(i, KIND_NOTE));
}

static void post_thread(void *arg) {
    ck_assert_int_eq(kvbm_reactor_post_mt(r, arg), 0);
}

/* Posts from another application thread. */
static void post_elsewhere(struct kvbm_msg *msg) {
    struct kvbm_thread thread;
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &thread, post_thread, msg, "elsewhere"), 0);
    kvbm_os_real()->thread_join(NULL, &thread);
}

static void expect(const uint32_t *users, size_t count) {
    ck_assert_uint_eq(ran_count, count);
    for (size_t i = 0; i < count; i++)
        ck_assert_uint_eq(ran[i], users[i]);
}
#define EXPECT(...) expect((const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))

/* ------------------------------------------------------------------------------------------------------------- open */

START_TEST(reactor_opens_running_and_a_failed_open_leaves_nothing_mapped) {
    open_reactor();
    ck_assert_uint_eq(state(), KVBM_REACTOR_RUNNING);
    ck_assert(!kvbm_reactor_has_work(r));
    close_reactor();
    for (int fail = 0; fail < 2; fail++) {
        struct kvbm_reactor_options options = default_options();
        fake.map_fail_after = fail;
        r = support_new(sizeof *r);
        ck_assert_int_eq(kvbm_reactor_open(r, &options), -ENOMEM);
        ck_assert_int_eq(fake.maps, 0);
        free(r);
    }
}
END_TEST

START_TEST(bad_options_are_refused) {
    struct kvbm_reactor_options bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = default_options();
    bad[0].os = NULL;
    bad[1].name = NULL;
    bad[2].wake = NULL;
    bad[3].turn_budget = 0;
    bad[4].mailbox.data_capacity = 5;
    bad[5].deadline_capacity = UINT32_MAX;
    r = support_new(sizeof *r);
    for (int i = 0; i < 6; i++)
        ck_assert_int_eq(kvbm_reactor_open(r, &bad[i]), -EINVAL);
    ck_assert_int_eq(fake.maps, 0);
    free(r);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------------ turns */

START_TEST(turn_runs_at_most_its_budget) {
    open_reactor();
    for (uint32_t i = 0; i < 5; i++)
        ck_assert_int_eq(post(i), 0);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 1);
    EXPECT(0);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 3), 3);
    ck_assert(kvbm_reactor_has_work(r));
    ck_assert_uint_eq(kvbm_reactor_turn(r, 64), 1);
    ck_assert(!kvbm_reactor_has_work(r));
    ck_assert_uint_eq(kvbm_reactor_turn(r, 64), 0);
    EXPECT(0, 1, 2, 3, 4);
    ck_assert_uint_eq(r->turn_count, 4);
    ck_assert_uint_eq(r->message_count, 5);
    ck_assert_uint_eq(front.handled_count, 5);
    close_reactor();
}
END_TEST

START_TEST(turn_of_one_message_is_one_hop) {
    open_reactor();
    ck_assert_int_eq(kvbm_reactor_post_mt(r, make(0, KIND_FORWARD)), 0);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 1); /* front forwards */
    ck_assert_uint_eq(replies + ran_count, 0);
    ck_assert(kvbm_reactor_has_work(r));
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 1); /* back answers */
    ck_assert_uint_eq(replies, 0);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 1); /* front hears of it */
    ck_assert_uint_eq(replies, 1);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 0);
    close_reactor();
}
END_TEST

START_TEST(operations_under_way_end_before_others_begin) {
    open_reactor();
    ck_assert_int_eq(kvbm_reactor_post_mt(r, make(0, KIND_FORWARD)), 0);
    ck_assert_int_eq(post(1), 0);
    kvbm_reactor_turn(r, 64);
    EXPECT(0, 1);
    close_reactor();
}
END_TEST

static void send_self_again(struct kvbm_msg *msg) {
    if (ran_count < 40)
        ck_assert_int_eq(kvbm_actor_send(&front, &front, msg), 0);
}

START_TEST(actors_that_talk_for_ever_do_not_starve_the_lanes) {
    open_reactor();
    todo = send_self_again;
    ck_assert_int_eq(kvbm_reactor_post_mt(r, make(7, KIND_DO)), 0);
    ck_assert_int_eq(post(1), 0);
    ck_assert_int_eq(post(2), 0);
    kvbm_reactor_turn(r, 64);
    /* lane_batch is 4: one from the lanes after four local ones. */
    const uint32_t expected[] = {7, 7, 7, 7, 7, 1, 7, 7, 7, 7, 2, 7};
    ck_assert_mem_eq(ran, expected, sizeof expected);
    close_reactor();
}
END_TEST

START_TEST(control_messages_overtake_requests) {
    open_reactor();
    ck_assert_int_eq(post(0), 0);
    struct kvbm_msg *msg = make(1, KIND_NOTE);
    msg->flags = KVBM_MSG_CONTROL;
    ck_assert_int_eq(kvbm_reactor_post_mt(r, msg), 0);
    kvbm_reactor_turn(r, 64);
    EXPECT(1, 0);
    close_reactor();
}
END_TEST

START_TEST(post_clears_the_reply_flag_of_a_recycled_message) {
    open_reactor();
    struct kvbm_msg *msg = make(0, KIND_FORWARD);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(kvbm_reactor_post_mt(r, msg), 0);
        kvbm_reactor_turn(r, 64);
        ck_assert_int_ne(msg->flags & KVBM_MSG_REPLY, 0);
    }
    park();
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
    ck_assert_uint_eq(replies, 4);
    close_reactor();
}
END_TEST

/* ------------------------------------------------------------------------------------------------- park, take, wake */

START_TEST(reactor_with_work_does_not_park) {
    open_reactor();
    uint64_t timer_ns = 0;
    ck_assert_int_eq(post(0), 0);
    ck_assert(!kvbm_reactor_park(r, &timer_ns));
    ck_assert_uint_eq(state(), KVBM_REACTOR_RUNNING);
    kvbm_reactor_turn(r, 64);
    kvbm_mailbox_post_reply_mt(&r->mailbox, make(1, KIND_FORWARD));
    msgs[1].reply_to = &front;
    msgs[1].flags = KVBM_MSG_REPLY;
    msgs[1].status = -EIO;
    ck_assert(!kvbm_reactor_park(r, &timer_ns));
    kvbm_reactor_turn(r, 64);
    ck_assert_int_eq(kvbm_actor_send(&back, &front, make(2, KIND_NOTE)), 0);
    ck_assert(!kvbm_reactor_park(r, &timer_ns));
    kvbm_reactor_turn(r, 64);
    ck_assert(kvbm_reactor_park(r, &timer_ns));
    ck_assert_uint_eq(timer_ns, KVBM_NO_DEADLINE);
    EXPECT(0, 1, 2);
    close_reactor();
}
END_TEST

START_TEST(post_wakes_a_parked_reactor_once_a_sleep_and_a_running_one_never) {
    open_reactor();
    ck_assert_int_eq(post(0), 0);
    ck_assert_uint_eq(wakes, 0);
    kvbm_reactor_turn(r, 64);
    for (uint64_t sleep = 1; sleep <= 5; sleep++) {
        park();
        ck_assert_uint_eq(wakes, sleep - 1);
        for (uint32_t i = 0; i < 3; i++)
            ck_assert_int_eq(post(i), 0);
        ck_assert_uint_eq(wakes, sleep);
        ck_assert_uint_eq(r->wake_pending, 1);
        ck_assert(kvbm_reactor_take(r));
        ck_assert_uint_eq(r->wake_pending, 0);
        ck_assert_uint_eq(state(), KVBM_REACTOR_RUNNING);
        ck_assert_int_eq(post(3), 0);
        ck_assert_uint_eq(kvbm_reactor_turn(r, 64), 4);
        ck_assert_uint_eq(wakes, sleep);
    }
    ck_assert_uint_eq(r->wake_count, 5);
    close_reactor();
}
END_TEST

START_TEST(wake_up_that_hit_a_moment_s_parking_does_not_silence_the_next_sleep) {
    open_reactor();
    /* What is left when a producer saw PARKED, the re-check found its message and took the reactor back, and the driver
     * consumed the signal while it ran. */
    atomic_store(&r->wake_pending, 1);
    park();
    ck_assert_uint_eq(r->wake_pending, 0);
    ck_assert_int_eq(post(0), 0);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_take(r));
    kvbm_reactor_turn(r, 64);
    close_reactor();
}
END_TEST

START_TEST(replies_and_credit_requests_wake_too) {
    open_reactor();
    struct kvbm_reactor *first = r;
    static _Atomic uint64_t other_wakes;
    struct kvbm_reactor_options options = support_reactor_options(&fake.table, &other_wakes);
    struct kvbm_reactor *other = support_new(sizeof *other);
    ck_assert_int_eq(kvbm_reactor_open(other, &options), 0);
    struct kvbm_actor far = {.name = "far", .on_request = back_requests, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(other, &far);
    park();
    struct kvbm_msg *msg = make(0, KIND_FORWARD);
    msg->reply_to = &front;
    kvbm_actor_reply(&far, msg, -EIO);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_take(r));
    kvbm_reactor_turn(r, 64);
    ck_assert_uint_eq(replies, 1);
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(other, &timer_ns));
    msg = make(1, KIND_FORWARD);
    msg->reply_to = &front;
    kvbm_actor_want_credit(&front, &far, msg);
    ck_assert_uint_eq(other_wakes, 1);
    ck_assert(kvbm_reactor_take(other));
    ck_assert_uint_eq(kvbm_reactor_turn(other, 64), 0);
    ck_assert(kvbm_reactor_has_work(r));
    kvbm_mailbox_take(&r->mailbox);
    kvbm_reactor_close(other);
    free(other);
    r = first;
    close_reactor();
}
END_TEST

/* ----------------------------------------------------------------------------------------------------------- borrow */

START_TEST(call_on_a_parked_reactor_is_handled_before_it_returns) {
    open_reactor();
    park();
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_FORWARD)), 0);
    ck_assert_uint_eq(replies, 1);
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    ck_assert_uint_eq(wakes, 0);
    ck_assert_uint_eq(r->borrow_count, 1);
    ck_assert_uint_eq(r->message_count, 3);
    ck_assert_uint_eq(fake.clock_reads, 0); /* no deadline armed: no clock read */
    close_reactor();
}
END_TEST

START_TEST(call_on_a_running_reactor_is_queued) {
    open_reactor();
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_NOTE)), 0);
    ck_assert_uint_eq(ran_count, 0);
    ck_assert_uint_eq(r->borrow_lost_count, 1);
    ck_assert_uint_eq(wakes, 0);
    ck_assert_uint_eq(kvbm_reactor_turn(r, 64), 1);
    close_reactor();
}
END_TEST

START_TEST(call_on_an_unborrowable_reactor_is_queued_and_wakes) {
    struct kvbm_reactor_options options = default_options();
    options.borrowable = false;
    open_with(options);
    park();
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_NOTE)), 0);
    ck_assert(!kvbm_reactor_settle_mt(r));
    ck_assert_uint_eq(ran_count, 0);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_take(r));
    kvbm_reactor_turn(r, 64);
    EXPECT(0);
    close_reactor();
}
END_TEST

START_TEST(call_comes_after_what_stood_in_the_lanes) {
    open_reactor();
    park();
    for (uint32_t i = 0; i < 6; i++)
        ck_assert_int_eq(post(i), 0);
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(6, KIND_NOTE)), 0);
    EXPECT(0, 1, 2, 3, 4, 5, 6);
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    close_reactor();
}
END_TEST

START_TEST(settle_runs_what_this_thread_posted) {
    open_reactor();
    ck_assert(!kvbm_reactor_settle_mt(r)); /* RUNNING: its owner's business */
    park();
    ck_assert_int_eq(post(0), 0);
    ck_assert(kvbm_reactor_settle_mt(r));
    EXPECT(0);
    ck_assert(kvbm_reactor_settle_mt(r));
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    close_reactor();
}
END_TEST

static void take_as_thread(struct kvbm_msg *msg) {
    (void)msg;
    ck_assert_uint_eq(state() & KVBM_REACTOR_BORROWED, KVBM_REACTOR_BORROWED);
    ck_assert(!kvbm_reactor_take(r));
    ck_assert_uint_eq(state(), KVBM_REACTOR_BORROWED | KVBM_REACTOR_WANTED);
    ck_assert_uint_eq(r->wake_pending, 0);
}

START_TEST(borrower_wakes_the_thread_that_wants_the_reactor_back) {
    open_reactor();
    park();
    todo = take_as_thread;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    ck_assert_uint_eq(wakes, 1);
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    ck_assert(kvbm_reactor_take(r));
    ck_assert_uint_eq(state(), KVBM_REACTOR_RUNNING);
    close_reactor();
}
END_TEST

static void take_as_thread_twice(struct kvbm_msg *msg) {
    take_as_thread(msg);
    take_as_thread(msg); /* woken by something else meanwhile */
}

START_TEST(thread_that_asks_twice_is_woken_once) {
    open_reactor();
    park();
    todo = take_as_thread_twice;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    ck_assert_uint_eq(wakes, 1);
    close_reactor();
}
END_TEST

START_TEST(wake_up_under_way_when_the_reactor_is_borrowed_is_not_lost) {
    open_reactor();
    park();
    ck_assert_int_eq(post(0), 0); /* wakes: pending */
    ck_assert_uint_eq(wakes, 1);
    todo = take_as_thread; /* the thread arrives while we hold the reactor, clears pending and sleeps again */
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(1, KIND_DO)), 0);
    EXPECT(0, 1);
    ck_assert_uint_eq(wakes, 2); /* owed because of WANTED, though pending was set when the borrow began */
    close_reactor();
}
END_TEST

static void post_two_elsewhere(struct kvbm_msg *msg) {
    (void)msg;
    post_elsewhere(make(100, KIND_NOTE));
    post_elsewhere(make(101, KIND_NOTE));
}

START_TEST(work_that_comes_during_a_borrow_is_run_by_the_borrower) {
    open_reactor();
    park();
    todo = post_two_elsewhere;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    EXPECT(0, 100, 101);
    ck_assert_uint_eq(wakes, 0);
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    close_reactor();
}
END_TEST

static void repost_for_ever(struct kvbm_msg *msg) {
    ck_assert_int_eq(kvbm_reactor_post_mt(r, msg), 0);
}

START_TEST(borrow_ends_after_a_bounded_number_of_messages_and_wakes_for_the_rest) {
    struct kvbm_reactor_options options = default_options();
    options.turn_budget = 8;
    open_with(options);
    park();
    todo = repost_for_ever;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    ck_assert_uint_ge(ran_count, 8);
    ck_assert_uint_le(ran_count, 8 * 5);
    ck_assert_uint_eq(wakes, 1);
    ck_assert_uint_eq(state(), KVBM_REACTOR_PARKED);
    ck_assert(kvbm_reactor_take(r));
    ck_assert(kvbm_reactor_has_work(r));
    r->local_head = NULL; /* drop the message that would never end */
    r->local_tail = &r->local_head;
    close_reactor();
}
END_TEST

START_TEST(call_beyond_the_budget_is_queued_behind_and_not_lost) {
    struct kvbm_reactor_options options = default_options();
    options.turn_budget = 2;
    open_with(options);
    park();
    for (uint32_t i = 0; i < 15; i++)
        ck_assert_int_eq(post(i), 0);
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(15, KIND_NOTE)), 0);
    ck_assert_uint_lt(ran_count, 16);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_take(r));
    while (kvbm_reactor_turn(r, 2) != 0) {
    }
    ck_assert_uint_eq(ran_count, 16);
    for (uint32_t i = 0; i < 16; i++)
        ck_assert_uint_eq(ran[i], i);
    close_reactor();
}
END_TEST

START_TEST(full_lane_returns_eagain_and_keeps_ownership) {
    open_reactor();
    for (uint32_t i = 0; i < 15; i++)
        ck_assert_int_eq(post(i), 0);
    struct kvbm_msg *msg = make(15, KIND_NOTE);
    ck_assert_int_eq(kvbm_reactor_post_mt(r, msg), -EAGAIN);
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), -EAGAIN);
    kvbm_reactor_turn(r, 64);
    ck_assert_uint_eq(ran_count, 15);
    park();
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
    ck_assert_uint_eq(ran_count, 16);
    close_reactor();
}
END_TEST

/* ------------------------------------------------------------------------------------------------------- reentrancy */

static void reenter(struct kvbm_msg *msg) {
    (void)msg;
    ck_assert_ptr_eq(kvbm_reactor_current_mt(), r);
    ck_assert(!kvbm_reactor_settle_mt(r));
    ck_assert_int_eq(post(1), 0);
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(2, KIND_NOTE)), 0);
    ck_assert_uint_eq(ran_count, 1); /* a handler runs to completion: they wait */
    ck_assert_uint_eq(kvbm_mailbox_depth_mt(&r->mailbox), 0);
}

START_TEST(post_and_call_from_inside_a_handler_go_to_the_local_queue) {
    for (int borrowed = 0; borrowed < 2; borrowed++) {
        open_reactor();
        todo = reenter;
        ck_assert_ptr_null(kvbm_reactor_current_mt());
        if (borrowed) {
            park();
            ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
        } else {
            ck_assert_int_eq(kvbm_reactor_post_mt(r, make(0, KIND_DO)), 0);
            kvbm_reactor_turn(r, 64);
        }
        ck_assert_ptr_null(kvbm_reactor_current_mt());
        EXPECT(0, 1, 2);
        ck_assert_uint_eq(wakes, 0);
        close_reactor();
    }
}
END_TEST

static struct kvbm_reactor *second;
static struct kvbm_actor second_actor;
static uint32_t second_ran;

static void second_note(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)msg;
    ck_assert_ptr_eq(kvbm_reactor_current_mt(), self->reactor);
    second_ran++;
    ck_assert_int_eq(post(9), 0); /* to the first, which this very thread holds: it waits in a lane */
}

static void call_second(struct kvbm_msg *msg) {
    static struct kvbm_msg inner;
    (void)msg;
    inner = (struct kvbm_msg){.kind = KIND_NOTE, .to = &second_actor};
    ck_assert_int_eq(kvbm_reactor_call_mt(second, &inner), 0);
    ck_assert_uint_eq(second_ran, 1);
    ck_assert_ptr_eq(kvbm_reactor_current_mt(), r);
}

START_TEST(handler_may_borrow_another_reactor) {
    open_reactor();
    static const kvbm_handler_fn requests[KIND_COUNT] = {[KIND_NOTE] = second_note};
    static _Atomic uint64_t second_wakes;
    struct kvbm_reactor_options options = support_reactor_options(&fake.table, &second_wakes);
    second = support_new(sizeof *second);
    second_ran = 0;
    second_actor = (struct kvbm_actor){.name = "second", .on_request = requests, .kind_count = KIND_COUNT};
    ck_assert_int_eq(kvbm_reactor_open(second, &options), 0);
    kvbm_reactor_actor_add(second, &second_actor);
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(second, &timer_ns));
    park();
    todo = call_second;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    EXPECT(0, 9);
    ck_assert(kvbm_reactor_take(second));
    kvbm_reactor_close(second);
    free(second);
    close_reactor();
}
END_TEST

/* ---------------------------------------------------------------------------------------------------------- returns */

static struct kvbm_retlane lane;
static uint32_t returned;

static void on_return(void *arg, uint32_t id) {
    ck_assert_ptr_eq(arg, &lane);
    ck_assert_uint_lt(id, 8);
    returned++;
}

static void open_with_lane(void) {
    open_reactor();
    returned = 0;
    ck_assert_int_eq(kvbm_retlane_open(&lane, &fake.table, 8), 0);
    kvbm_reactor_retlane_add(r, &lane, on_return, &lane);
}

static void close_with_lane(void) {
    kvbm_retlane_close(&lane);
    close_reactor();
}

START_TEST(returned_ids_are_drained_at_the_start_of_a_turn_and_wake_nobody) {
    open_with_lane();
    kvbm_retlane_push_mt(&lane, 3);
    kvbm_reactor_returned_mt(r);
    ck_assert(kvbm_reactor_has_work(r));
    ck_assert_uint_eq(kvbm_reactor_turn(r, 1), 0);
    ck_assert_uint_eq(returned, 1);
    park();
    kvbm_retlane_push_mt(&lane, 4);
    kvbm_reactor_returned_mt(r);
    ck_assert_uint_eq(wakes, 0);
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_NOTE)), 0);
    ck_assert_uint_eq(returned, 2);
    ck_assert_uint_eq(wakes, 0);
    close_with_lane();
}
END_TEST

START_TEST(returned_ids_wake_once_an_actor_wants_them) {
    open_with_lane();
    kvbm_reactor_want_returns(r, 1);
    kvbm_reactor_want_returns(r, 1);
    kvbm_reactor_want_returns(r, -1);
    park();
    kvbm_retlane_push_mt(&lane, 3);
    kvbm_reactor_returned_mt(r);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_take(r));
    uint64_t timer_ns = 0;
    ck_assert(!kvbm_reactor_park(r, &timer_ns));
    kvbm_reactor_turn(r, 64);
    ck_assert_uint_eq(returned, 1);
    kvbm_reactor_want_returns(r, -1);
    park();
    kvbm_retlane_push_mt(&lane, 3);
    kvbm_reactor_returned_mt(r);
    ck_assert_uint_eq(wakes, 1);
    ck_assert(kvbm_reactor_settle_mt(r));
    ck_assert_uint_eq(returned, 2);
    close_with_lane();
}
END_TEST

static void push_then_want(struct kvbm_msg *msg) {
    (void)msg;
    kvbm_retlane_push_mt(&lane, 5); /* by another thread, just before the actor finds nothing and says so */
    kvbm_reactor_returned_mt(r);
    kvbm_reactor_want_returns(r, 1);
}

START_TEST(id_returned_just_before_an_actor_wants_it_is_drained_by_the_same_turn) {
    for (int borrowed = 0; borrowed < 2; borrowed++) {
        open_with_lane();
        todo = push_then_want;
        if (borrowed)
            park();
        ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
        if (!borrowed)
            kvbm_reactor_turn(r, 64);
        ck_assert_uint_eq(returned, 1);
        ck_assert_uint_eq(wakes, 0);
        close_with_lane();
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- deadlines */

static void arm_at(struct kvbm_msg *msg, uint64_t when) {
    msg->deadline_ns = when;
    kvbm_reactor_arm(r, msg);
}

static void arm_in_op(struct kvbm_msg *msg) {
    arm_at(msg, 1000000000 + msg->op);
}

static void call_arming(uint32_t i, uint64_t in_ns) {
    struct kvbm_msg *msg = make(i, KIND_DO);
    msg->op = in_ns;
    todo = arm_in_op;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
}

START_TEST(turn_expires_what_is_due_and_park_tells_the_next_deadline) {
    open_reactor();
    arm_at(make(0, KIND_NOTE), fake.now_ns + 30);
    arm_at(make(1, KIND_NOTE), fake.now_ns + 10);
    arm_at(make(2, KIND_NOTE), fake.now_ns + 20);
    kvbm_reactor_disarm(r, &msgs[2]);
    kvbm_reactor_turn(r, 64);
    ck_assert_uint_eq(expired, 0);
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(r, &timer_ns));
    ck_assert_uint_eq(timer_ns, fake.now_ns + 10);
    ck_assert_uint_eq(r->timer_armed_ns, timer_ns);
    fake.now_ns += 10;
    ck_assert(kvbm_reactor_take(r));
    kvbm_reactor_turn(r, 64);
    EXPECT(1);
    fake.now_ns += 1000;
    kvbm_reactor_turn(r, 64);
    EXPECT(1, 0);
    ck_assert_uint_eq(r->expired_count, 2);
    close_reactor();
}
END_TEST

START_TEST(borrowed_turn_that_arms_an_earlier_deadline_wakes_the_thread) {
    open_reactor();
    park();
    call_arming(0, 500);
    ck_assert_uint_eq(wakes, 1); /* the thread knew of none */
    ck_assert(kvbm_reactor_take(r));
    park();
    call_arming(1, 600);
    call_arming(2, 500);
    ck_assert_uint_eq(wakes, 1); /* its timer fires in time */
    call_arming(3, 499);
    ck_assert_uint_eq(wakes, 2);
    ck_assert(kvbm_reactor_take(r));
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(r, &timer_ns));
    ck_assert_uint_eq(timer_ns, 1000000499);
    ck_assert(kvbm_reactor_take(r));
    fake.now_ns += 1000;
    kvbm_reactor_turn(r, 64);
    ck_assert_uint_eq(expired, 4);
    close_reactor();
}
END_TEST

static void arm_and_disarm(struct kvbm_msg *msg) {
    arm_in_op(msg);
    kvbm_reactor_disarm(r, msg);
}

START_TEST(deadline_armed_and_disarmed_within_a_borrow_wakes_nobody) {
    open_reactor();
    park();
    todo = arm_and_disarm;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    ck_assert_uint_eq(wakes, 0);
    close_reactor();
}
END_TEST

static void expire_while_wanted(struct kvbm_msg *msg) {
    arm_at(msg, fake.now_ns + 5);
    fake.now_ns += 10;
    take_as_thread(msg); /* the timer fired, and finds the reactor borrowed */
}

START_TEST(borrower_runs_the_deadlines_that_the_thread_was_kept_from) {
    open_reactor();
    park();
    todo = expire_while_wanted;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_DO)), 0);
    ck_assert_uint_eq(expired, 1);
    ck_assert_uint_eq(wakes, 1);
    close_reactor();
}
END_TEST

/* ----------------------------------------------------------------------------------------------------------- panics */

static void fail_here(struct kvbm_msg *msg) {
    KVBM_ASSERT_MSG(msg == NULL, "as asked");
}

static void run_failing(void *arg) {
    (void)arg;
    struct kvbm_msg *msg = make(0, KIND_DO);
    msg->op = 0x700000002a;
    todo = fail_here;
    kvbm_reactor_call_mt(r, msg);
}

static void run_unknown(void *arg) {
    (void)arg;
    kvbm_reactor_call_mt(r, make(0, KIND_UNKNOWN));
}

static void turn_parked(void *arg) {
    (void)arg;
    kvbm_reactor_turn(r, 1);
}

static void turn_inside(struct kvbm_msg *msg) {
    (void)msg;
    kvbm_reactor_turn(r, 1);
}

static void run_nested(void *arg) {
    (void)arg;
    todo = turn_inside;
    kvbm_reactor_call_mt(r, make(0, KIND_DO));
}

static void close_with_work(void *arg) {
    (void)arg;
    post(0);
    kvbm_reactor_take(r);
    kvbm_reactor_close(r);
}

START_TEST(panic_names_reactor_actor_message_and_operation) {
    char text[512];
    open_reactor();
    park();
    ck_assert(support_aborts(run_failing, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "msg == NULL: as asked while running reactor=test actor=front "
                                       "message=DO(3) op=700000002a\n"));
    ck_assert(support_aborts(run_unknown, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "actor front has no handler for requests of kind 4"));
    ck_assert(support_aborts(turn_parked, NULL, text, sizeof text));
    ck_assert(support_aborts(run_nested, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "a turn inside a turn of reactor test"));
    ck_assert(support_aborts(close_with_work, NULL, text, sizeof text));
    close_reactor();
}
END_TEST

SUPPORT_MAIN("reactor", reactor_opens_running_and_a_failed_open_leaves_nothing_mapped, bad_options_are_refused,
             turn_runs_at_most_its_budget, turn_of_one_message_is_one_hop, operations_under_way_end_before_others_begin,
             actors_that_talk_for_ever_do_not_starve_the_lanes, control_messages_overtake_requests,
             post_clears_the_reply_flag_of_a_recycled_message, reactor_with_work_does_not_park,
             post_wakes_a_parked_reactor_once_a_sleep_and_a_running_one_never,
             wake_up_that_hit_a_moment_s_parking_does_not_silence_the_next_sleep, replies_and_credit_requests_wake_too,
             call_on_a_parked_reactor_is_handled_before_it_returns, call_on_a_running_reactor_is_queued,
             call_on_an_unborrowable_reactor_is_queued_and_wakes, call_comes_after_what_stood_in_the_lanes,
             settle_runs_what_this_thread_posted, borrower_wakes_the_thread_that_wants_the_reactor_back,
             thread_that_asks_twice_is_woken_once, wake_up_under_way_when_the_reactor_is_borrowed_is_not_lost,
             work_that_comes_during_a_borrow_is_run_by_the_borrower,
             borrow_ends_after_a_bounded_number_of_messages_and_wakes_for_the_rest,
             call_beyond_the_budget_is_queued_behind_and_not_lost, full_lane_returns_eagain_and_keeps_ownership,
             post_and_call_from_inside_a_handler_go_to_the_local_queue, handler_may_borrow_another_reactor,
             returned_ids_are_drained_at_the_start_of_a_turn_and_wake_nobody,
             returned_ids_wake_once_an_actor_wants_them,
             id_returned_just_before_an_actor_wants_it_is_drained_by_the_same_turn,
             turn_expires_what_is_due_and_park_tells_the_next_deadline,
             borrowed_turn_that_arms_an_earlier_deadline_wakes_the_thread,
             deadline_armed_and_disarmed_within_a_borrow_wakes_nobody,
             borrower_runs_the_deadlines_that_the_thread_was_kept_from, panic_names_reactor_actor_message_and_operation)
