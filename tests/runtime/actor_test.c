/*
 * actor_test.c - facts about sending between actors of one and of two reactors, driven by hand.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/actor.h"
#include "runtime/reactor.h"
#include "tests/runtime/support.h"

enum { KIND_WORK = 1, KIND_CREDIT, KIND_COUNT };

static struct support_os fake;
static struct kvbm_reactor *near, *far; /* of client, of server */
static struct kvbm_actor client, neighbour, server;
static _Atomic uint64_t near_wakes, far_wakes;
static struct kvbm_msg msgs[64];
static uint32_t served, answered, credited;
static int32_t last_status;

static void serve(struct kvbm_actor *self, struct kvbm_msg *msg) {
    ck_assert_int_eq(msg->flags & KVBM_MSG_REPLY, 0);
    ck_assert_ptr_eq(msg->to, self);
    served++;
    kvbm_actor_reply(self, msg, (int32_t)msg->user);
}

static void on_work_done(struct kvbm_actor *self, struct kvbm_msg *msg) {
    ck_assert_ptr_eq(msg->reply_to, self);
    ck_assert_int_eq(msg->flags & KVBM_MSG_REPLY, KVBM_MSG_REPLY);
    answered++;
    last_status = msg->status;
}

static void on_credit(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    ck_assert_int_eq(msg->status, 0);
    credited++;
}

static const kvbm_handler_fn requests[KIND_COUNT] = {[KIND_WORK] = serve};
static const kvbm_handler_fn replies[KIND_COUNT] = {[KIND_WORK] = on_work_done, [KIND_CREDIT] = on_credit};

static void setup(void) {
    support_os_init(&fake);
    near = support_new(sizeof *near);
    far = support_new(sizeof *far);
    atomic_store(&near_wakes, 0);
    atomic_store(&far_wakes, 0);
    memset(msgs, 0, sizeof msgs);
    served = answered = credited = 0;
    const struct kvbm_reactor_options near_options = support_reactor_options(&fake.table, &near_wakes);
    const struct kvbm_reactor_options far_options = support_reactor_options(&fake.table, &far_wakes);
    ck_assert_int_eq(kvbm_reactor_open(near, &near_options), 0);
    ck_assert_int_eq(kvbm_reactor_open(far, &far_options), 0);
    client = (struct kvbm_actor){.name = "client", .on_reply = replies, .kind_count = KIND_COUNT};
    neighbour = (struct kvbm_actor){.name = "neighbour", .on_request = requests, .kind_count = KIND_COUNT};
    server = (struct kvbm_actor){.name = "server", .on_request = requests, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(near, &client);
    kvbm_reactor_actor_add(near, &neighbour);
    kvbm_reactor_actor_add(far, &server);
}

static void teardown(void) {
    kvbm_reactor_close(near);
    kvbm_reactor_close(far);
    free(near);
    free(far);
    ck_assert_int_eq(fake.maps, 0);
}

static struct kvbm_msg *make(uint32_t i, uint16_t kind) {
    msgs[i] = (struct kvbm_msg){.kind = kind, .user = i, .reply_to = &client};
    return &msgs[i];
}

START_TEST(send_within_a_reactor_cannot_fail_and_uses_no_lane) {
    setup();
    for (uint32_t i = 0; i < 60; i++) /* far more than any lane holds */
        ck_assert_int_eq(kvbm_actor_send(&client, &neighbour, make(i, KIND_WORK)), 0);
    ck_assert_uint_eq(kvbm_mailbox_depth_mt(&near->mailbox), 0);
    while (kvbm_reactor_turn(near, 64) != 0) {
    }
    ck_assert_uint_eq(served, 60);
    ck_assert_uint_eq(answered, 60);
    ck_assert_int_eq(last_status, 59);
    teardown();
}
END_TEST

START_TEST(send_to_another_reactor_goes_there_and_the_reply_comes_home) {
    setup();
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(far, &timer_ns));
    ck_assert_int_eq(kvbm_actor_send(&client, &server, make(7, KIND_WORK)), 0);
    ck_assert_uint_eq(far_wakes, 1);
    ck_assert_uint_eq(kvbm_mailbox_depth_mt(&far->mailbox), 1);
    ck_assert(kvbm_reactor_take(far));
    ck_assert(kvbm_reactor_park(near, &timer_ns));
    ck_assert_uint_eq(kvbm_reactor_turn(far, 64), 1);
    ck_assert_uint_eq(near_wakes, 1);
    ck_assert_uint_eq(answered, 0);
    ck_assert(kvbm_reactor_take(near));
    ck_assert_uint_eq(kvbm_reactor_turn(near, 64), 1);
    ck_assert_uint_eq(answered, 1);
    ck_assert_int_eq(last_status, 7);
    teardown();
}
END_TEST

START_TEST(full_data_lane_returns_eagain_while_control_still_passes) {
    setup();
    for (uint32_t i = 0; i < 15; i++)
        ck_assert_int_eq(kvbm_actor_send(&client, &server, make(i, KIND_WORK)), 0);
    struct kvbm_msg *msg = make(15, KIND_WORK);
    ck_assert_int_eq(kvbm_actor_send(&client, &server, msg), -EAGAIN);
    msg->flags = KVBM_MSG_CONTROL;
    ck_assert_int_eq(kvbm_actor_send(&client, &server, msg), 0);
    ck_assert_uint_eq(kvbm_reactor_turn(far, 1), 1);
    ck_assert_uint_eq(kvbm_reactor_turn(near, 1), 1);
    ck_assert_int_eq(last_status, 15); /* control goes first */
    ck_assert_uint_eq(kvbm_reactor_turn(far, 64), 15);
    ck_assert_uint_eq(kvbm_reactor_turn(near, 64), 15);
    ck_assert_uint_eq(answered, 16);
    teardown();
}
END_TEST

START_TEST(credit_comes_once_the_lane_is_half_empty_and_the_retry_then_passes) {
    setup();
    uint32_t sent = 0;
    while (kvbm_actor_send(&client, &server, make(sent, KIND_WORK)) == 0)
        sent++;
    ck_assert_uint_eq(sent, 15);
    kvbm_actor_want_credit(&client, &server, make(40, KIND_CREDIT));
    for (int i = 0; i < 6; i++)
        kvbm_reactor_turn(far, 1);
    kvbm_reactor_turn(near, 64);
    ck_assert_uint_eq(credited, 0); /* 9 left, half is 8 */
    kvbm_reactor_turn(far, 1);
    kvbm_reactor_turn(near, 64);
    ck_assert_uint_eq(credited, 1);
    ck_assert_int_eq(kvbm_actor_send(&client, &server, &msgs[sent]), 0);
    kvbm_reactor_turn(far, 64);
    kvbm_reactor_turn(near, 64);
    ck_assert_uint_eq(answered, 16);
    teardown();
}
END_TEST

START_TEST(credit_asked_of_a_lane_that_has_room_comes_at_once) {
    setup();
    uint64_t timer_ns = 0;
    ck_assert(kvbm_reactor_park(far, &timer_ns));
    kvbm_actor_want_credit(&client, &server, make(0, KIND_CREDIT));
    ck_assert_uint_eq(far_wakes, 1);
    ck_assert(kvbm_reactor_take(far));
    ck_assert(!kvbm_reactor_park(far, &timer_ns));
    kvbm_reactor_turn(far, 64);
    kvbm_reactor_turn(near, 64);
    ck_assert_uint_eq(credited, 1);
    kvbm_actor_want_credit(&client, &neighbour, make(1, KIND_CREDIT)); /* within a reactor there is always room */
    kvbm_reactor_turn(near, 64);
    ck_assert_uint_eq(credited, 2);
    teardown();
}
END_TEST

START_TEST(recycled_message_is_a_request_again) {
    setup();
    struct kvbm_msg *msg = make(3, KIND_WORK);
    for (uint32_t lap = 1; lap <= 4; lap++) {
        ck_assert_int_eq(kvbm_actor_send(&client, lap % 2 == 0 ? &server : &neighbour, msg), 0);
        kvbm_reactor_turn(near, 64);
        kvbm_reactor_turn(far, 64);
        kvbm_reactor_turn(near, 64);
        ck_assert_uint_eq(answered, lap);
    }
    teardown();
}
END_TEST

static void send_armed(void *arg) {
    struct kvbm_msg *msg = arg;
    msg->to = &client;
    msg->deadline_ns = 5;
    kvbm_reactor_arm(near, msg);
    kvbm_actor_send(&client, &server, msg);
}

static void reply_armed(void *arg) {
    struct kvbm_msg *msg = arg;
    msg->to = &server;
    msg->deadline_ns = 5;
    kvbm_reactor_arm(far, msg);
    kvbm_actor_reply(&server, msg, 0);
}

static void reply_to_nobody(void *arg) {
    ((struct kvbm_msg *)arg)->reply_to = NULL;
    kvbm_actor_reply(&server, arg, 0);
}

static void arm_elsewhere(void *arg) {
    struct kvbm_msg *msg = arg;
    msg->to = &server;
    msg->deadline_ns = 5;
    kvbm_reactor_arm(near, msg);
}

static void add_twice(void *arg) {
    (void)arg;
    kvbm_reactor_actor_add(far, &client);
}

START_TEST(misuse_aborts) {
    char text[512];
    setup();
    struct kvbm_msg *msg = make(0, KIND_WORK);
    ck_assert(support_aborts(send_armed, msg, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "an armed message leaves its reactor"));
    ck_assert(support_aborts(reply_armed, msg, text, sizeof text));
    ck_assert(support_aborts(reply_to_nobody, msg, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "without reply_to"));
    ck_assert(support_aborts(arm_elsewhere, msg, text, sizeof text));
    ck_assert(support_aborts(add_twice, NULL, text, sizeof text));
    teardown();
}
END_TEST

SUPPORT_MAIN("actor", send_within_a_reactor_cannot_fail_and_uses_no_lane,
             send_to_another_reactor_goes_there_and_the_reply_comes_home,
             full_data_lane_returns_eagain_while_control_still_passes,
             credit_comes_once_the_lane_is_half_empty_and_the_retry_then_passes,
             credit_asked_of_a_lane_that_has_room_comes_at_once, recycled_message_is_a_request_again, misuse_aborts)
