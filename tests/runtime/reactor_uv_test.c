/*
 * reactor_uv_test.c - facts about driving a reactor from libuv, on a thread of its own and on a caller's loop.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "runtime/reactor_uv.h"
#include "tests/runtime/support.h"

enum { KIND_COUNT_UP = 1, KIND_ARM, KIND_STOP, KIND_SPIN, KIND_HOLD, KIND_COUNT };

#define MS 1000000ull

static struct kvbm_reactor *r;
static struct kvbm_reactor_uv *drv;
static struct kvbm_actor actor;
static struct kvbm_msg msgs[64];
static _Atomic uint32_t handled, expired, on_caller, closed_called;
static _Atomic uint64_t expired_at_ns;
static uv_thread_t test_thread;

static uint64_t now_ns(void) {
    return kvbm_os_real()->now_ns(NULL);
}

static void bump(_Atomic uint32_t *word) {
    atomic_fetch_add(word, 1);
    kvbm_os_real()->wake_u32(NULL, word, true);
}

/* Fails the test if `word` does not reach `value` within ten seconds. */
static void await(_Atomic uint32_t *word, uint32_t value) {
    uint64_t until = now_ns() + 10000 * MS;
    for (uint32_t seen = atomic_load(word); seen < value; seen = atomic_load(word)) {
        ck_assert_msg(now_ns() < until, "waited in vain for %u, have %u", value, seen);
        kvbm_os_real()->wait_u32(NULL, word, seen, until);
    }
}

static void count_up(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    (void)msg;
    uv_thread_t self_thread = uv_thread_self();
    if (uv_thread_equal(&self_thread, &test_thread))
        atomic_fetch_add(&on_caller, 1);
    bump(&handled);
}

static void arm(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_reactor_arm(self->reactor, msg);
    bump(&handled);
}

static void on_closed(void *arg) {
    ck_assert_ptr_eq(arg, &closed_called);
    bump(&closed_called);
}

static void stop(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    (void)msg;
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
}

static void spin(struct kvbm_actor *self, struct kvbm_msg *msg) {
    bump(&handled);
    if (msg->op == 0 || --msg->op != 0)
        ck_assert_int_eq(kvbm_actor_send(self, self, msg), 0);
}

static _Atomic uint32_t holding, let_go;

/* Keeps the reactor, as a slow borrower would. */
static void hold(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    (void)msg;
    bump(&holding);
    while (atomic_load(&let_go) == 0)
        kvbm_os_real()->wait_u32(NULL, &let_go, 0, KVBM_NO_DEADLINE);
    bump(&handled);
}

static void on_deadline(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    (void)msg;
    atomic_store(&expired_at_ns, now_ns());
    bump(&expired);
}

static const kvbm_handler_fn requests[KIND_COUNT] = {
    [KIND_COUNT_UP] = count_up, [KIND_ARM] = arm, [KIND_STOP] = stop, [KIND_SPIN] = spin, [KIND_HOLD] = hold};

static void open_with(const struct kvbm_os *os, bool borrowable) {
    r = support_new(sizeof *r);
    drv = support_new(sizeof *drv);
    test_thread = uv_thread_self();
    memset(msgs, 0, sizeof msgs);
    atomic_store(&handled, 0);
    atomic_store(&expired, 0);
    atomic_store(&on_caller, 0);
    atomic_store(&closed_called, 0);
    atomic_store(&holding, 0);
    atomic_store(&let_go, 0);
    struct kvbm_reactor_options options = support_reactor_options(os, NULL);
    options.borrowable = borrowable;
    options.wake = kvbm_reactor_uv_wake;
    options.wake_ctx = drv;
    ck_assert_int_eq(kvbm_reactor_open(r, &options), 0);
    actor = (struct kvbm_actor){
        .name = "actor", .on_request = requests, .kind_count = KIND_COUNT, .on_deadline = on_deadline};
    kvbm_reactor_actor_add(r, &actor);
}

static void start_own(bool borrowable) {
    open_with(kvbm_os_real(), borrowable);
    ck_assert_int_eq(kvbm_reactor_uv_start(drv, r, NULL), 0);
    ck_assert_uint_eq(atomic_load(&r->state), KVBM_REACTOR_PARKED);
}

static void release_reactor(void) {
    ck_assert_uint_eq(atomic_load(&r->state), KVBM_REACTOR_RUNNING);
    kvbm_reactor_close(r);
    free(r);
    free(drv);
}

static void stop_own(void) {
    kvbm_reactor_uv_stop(drv, NULL, NULL);
    release_reactor();
}

static struct kvbm_msg *make(uint32_t i, uint16_t kind) {
    msgs[i] = (struct kvbm_msg){.kind = kind, .to = &actor, .user = i};
    return &msgs[i];
}

/* ------------------------------------------------------------------------------------------------------- own thread */

START_TEST(own_thread_runs_what_is_posted) {
    start_own(false);
    for (uint32_t i = 1; i <= 200; i++) {
        ck_assert_int_eq(kvbm_reactor_post_mt(r, make(0, KIND_COUNT_UP)), 0);
        await(&handled, i);
    }
    ck_assert_uint_eq(on_caller, 0);
    stop_own();
}
END_TEST

START_TEST(caller_borrows_a_sleeping_reactor) {
    start_own(true);
    uint32_t calls = 0;
    while (calls < 1000) {
        ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_COUNT_UP)), 0);
        calls++;
        await(&handled, calls);
    }
    ck_assert_uint_eq(on_caller, 1000);
    ck_assert_uint_eq(r->wake_count, 0);
    stop_own();
}
END_TEST

START_TEST(start_and_stop_leave_nothing_behind) {
    for (int i = 0; i < 20; i++) {
        start_own(i % 2 == 0);
        stop_own(); /* asserts uv_loop_close() == 0 on the thread */
    }
    start_own(true);
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
    ck_assert_uint_eq(closed_called, 1);
    release_reactor();
}
END_TEST

START_TEST(deadline_fires_on_time_whoever_armed_it) {
    for (int borrowed = 0; borrowed < 2; borrowed++) {
        start_own(borrowed != 0);
        for (uint32_t i = 0; i < 3; i++) {
            struct kvbm_msg *msg = make(i, KIND_ARM);
            msg->deadline_ns = now_ns() + (30 - 10 * i) * MS; /* each earlier than the one before */
            ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
        }
        await(&expired, 1);
        ck_assert_uint_ge(atomic_load(&expired_at_ns), msgs[2].deadline_ns);
        await(&expired, 3);
        ck_assert_uint_ge(atomic_load(&expired_at_ns), msgs[0].deadline_ns);
        ck_assert_uint_lt(atomic_load(&expired_at_ns), msgs[0].deadline_ns + 2000 * MS);
        stop_own();
    }
}
END_TEST

START_TEST(disarmed_deadline_fires_never) {
    start_own(true);
    struct kvbm_msg *msg = make(0, KIND_ARM);
    msg->deadline_ns = now_ns() + 20 * MS;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
    ck_assert(kvbm_reactor_settle_mt(r) || true);
    await(&handled, 1);
    kvbm_reactor_uv_stop(drv, NULL, NULL);
    bool was_armed = msg->deadline_slot != KVBM_DEADLINE_NONE;
    kvbm_reactor_disarm(r, msg);
    ck_assert(was_armed || expired == 1);
    release_reactor();
}
END_TEST

static void call_hold(void *arg) {
    ck_assert_int_eq(kvbm_reactor_call_mt(r, arg), 0);
}

static void let_go_soon(void *arg) {
    (void)arg;
    kvbm_os_real()->wait_u32(NULL, &let_go, 0, now_ns() + 30 * MS);
    bump(&let_go);
}

START_TEST(stop_waits_out_a_borrower) {
    start_own(true);
    struct kvbm_thread borrower, timer;
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &borrower, call_hold, make(0, KIND_HOLD), "borrower"), 0);
    await(&holding, 1);
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &timer, let_go_soon, NULL, "timer"), 0);
    kvbm_reactor_uv_stop(drv, NULL, NULL);
    ck_assert_uint_eq(handled, 1);
    kvbm_os_real()->thread_join(NULL, &borrower);
    kvbm_os_real()->thread_join(NULL, &timer);
    release_reactor();
}
END_TEST

START_TEST(work_posted_while_a_slow_borrower_holds_the_reactor_is_run) {
    start_own(true);
    struct kvbm_thread borrower;
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &borrower, call_hold, make(0, KIND_HOLD), "borrower"), 0);
    await(&holding, 1);
    for (uint32_t i = 1; i <= 5; i++)
        ck_assert_int_eq(kvbm_reactor_post_mt(r, make(i, KIND_COUNT_UP)), 0);
    bump(&let_go);
    await(&handled, 6);
    kvbm_os_real()->thread_join(NULL, &borrower);
    stop_own();
}
END_TEST

static void stop_from_handler_of_own_thread(void *arg) {
    (void)arg;
    start_own(true);
    kvbm_reactor_call_mt(r, make(0, KIND_STOP));
}

static void stop_twice(void *arg) {
    (void)arg;
    uv_loop_t loop;
    uv_loop_init(&loop);
    open_with(kvbm_os_real(), true);
    kvbm_reactor_uv_start(drv, r, &loop);
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
}

START_TEST(misuse_aborts) {
    char text[512];
    ck_assert(support_aborts(stop_from_handler_of_own_thread, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "stops its own thread"));
    ck_assert(support_aborts(stop_twice, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "is stopped twice"));
}
END_TEST

static int no_thread(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg, const char *name) {
    (void)ctx;
    (void)thread;
    (void)run;
    (void)arg;
    (void)name;
    return -EAGAIN;
}

START_TEST(failed_start_leaves_the_reactor_with_the_caller) {
    struct kvbm_os os = *kvbm_os_real();
    os.thread_start = no_thread;
    open_with(&os, true);
    ck_assert_int_eq(kvbm_reactor_uv_start(drv, r, NULL), -EAGAIN);
    release_reactor();
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- caller's loop */

static uv_loop_t loop;

static void start_on_loop(void) {
    ck_assert_int_eq(uv_loop_init(&loop), 0);
    open_with(kvbm_os_real(), true);
    ck_assert_int_eq(kvbm_reactor_uv_start(drv, r, &loop), 0);
    ck_assert_uint_eq(atomic_load(&r->state), KVBM_REACTOR_PARKED);
}

static void finish_loop(void) {
    ck_assert_int_eq(uv_run(&loop, UV_RUN_DEFAULT), 0);
    ck_assert_uint_eq(closed_called, 1);
    ck_assert_int_eq(uv_loop_close(&loop), 0);
    release_reactor();
}

static void stop_on_loop(void) {
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
    finish_loop();
}

START_TEST(caller_s_loop_is_kept_alive_until_stop) {
    start_on_loop();
    ck_assert_int_ne(uv_loop_alive(&loop), 0);
    ck_assert_int_ne(uv_run(&loop, UV_RUN_NOWAIT), 0);
    stop_on_loop();
}
END_TEST

static bool backend_readable(int timeout_ms) {
    struct pollfd poll_fd = {.fd = uv_backend_fd(&loop), .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

static void post_one(void *arg) {
    ck_assert_int_eq(kvbm_reactor_post_mt(r, arg), 0);
}

static void post_from_thread(struct kvbm_msg *msg) {
    struct kvbm_thread thread;
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &thread, post_one, msg, "post"), 0);
    kvbm_os_real()->thread_join(NULL, &thread);
}

START_TEST(loop_run_in_pieces_is_told_of_work_between_the_pieces) {
    start_on_loop();
    uv_run(&loop, UV_RUN_NOWAIT); /* libuv adds descriptors to its backend when it first polls */
    for (uint32_t i = 1; i <= 20; i++) {
        while (backend_readable(0))
            uv_run(&loop, UV_RUN_NOWAIT);
        post_from_thread(make(0, KIND_COUNT_UP));
        ck_assert(backend_readable(10000));
        for (int turn = 0; turn < 10 && atomic_load(&handled) < i; turn++)
            uv_run(&loop, UV_RUN_NOWAIT);
        ck_assert_uint_eq(handled, i);
    }
    stop_on_loop();
}
END_TEST

static uv_timer_t user_timer;
static uint32_t user_ticks;

static void on_user_timer(uv_timer_t *timer) {
    user_ticks++;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, make(user_ticks, KIND_COUNT_UP)), 0);
    ck_assert_uint_eq(handled, user_ticks); /* borrowed: the loop's own callbacks find the reactor parked */
    if (user_ticks == 5) {
        uv_close((uv_handle_t *)timer, NULL);
        kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
    }
}

START_TEST(callbacks_of_the_caller_s_loop_borrow_the_reactor) {
    start_on_loop();
    user_ticks = 0;
    uv_timer_init(&loop, &user_timer);
    uv_timer_start(&user_timer, on_user_timer, 1, 1);
    finish_loop();
    ck_assert_uint_eq(on_caller, 5);
}
END_TEST

START_TEST(stop_from_inside_a_handler_is_deferred_to_the_loop) {
    for (int borrowed = 0; borrowed < 2; borrowed++) {
        start_on_loop();
        if (borrowed)
            ck_assert_int_eq(kvbm_reactor_call_mt(r, make(0, KIND_STOP)), 0);
        else
            ck_assert_int_eq(kvbm_reactor_post_mt(r, make(0, KIND_STOP)), 0);
        finish_loop();
    }
}
END_TEST

START_TEST(stop_on_a_caller_s_loop_waits_for_a_borrower_without_blocking_the_loop) {
    start_on_loop();
    struct kvbm_thread borrower;
    ck_assert_int_eq(kvbm_os_real()->thread_start(NULL, &borrower, call_hold, make(0, KIND_HOLD), "borrower"), 0);
    await(&holding, 1);
    kvbm_reactor_uv_stop(drv, on_closed, &closed_called);
    for (int i = 0; i < 5; i++)
        uv_run(&loop, UV_RUN_NOWAIT);
    ck_assert_uint_eq(closed_called, 0);
    bump(&let_go);
    kvbm_os_real()->thread_join(NULL, &borrower);
    finish_loop();
    ck_assert_uint_eq(handled, 1);
}
END_TEST

START_TEST(endless_work_leaves_the_loop_s_other_handles_their_turn) {
    start_on_loop();
    user_ticks = 0;
    struct kvbm_msg *msg = make(63, KIND_SPIN);
    msg->op = 200000;
    ck_assert_int_eq(kvbm_reactor_post_mt(r, msg), 0);
    uv_timer_init(&loop, &user_timer);
    uint32_t iterations = 0;
    while (atomic_load(&handled) < 200000) {
        uint32_t before = atomic_load(&handled);
        uv_run(&loop, UV_RUN_ONCE);
        ck_assert_uint_le(atomic_load(&handled) - before, 4 * 64); /* one callback: four turns */
        iterations++;
    }
    ck_assert_uint_gt(iterations, 100);
    uv_close((uv_handle_t *)&user_timer, NULL);
    stop_on_loop();
}
END_TEST

START_TEST(deadline_fires_on_a_caller_s_loop) {
    start_on_loop();
    struct kvbm_msg *msg = make(0, KIND_ARM);
    msg->deadline_ns = now_ns() + 15 * MS;
    ck_assert_int_eq(kvbm_reactor_call_mt(r, msg), 0);
    while (atomic_load(&expired) == 0)
        uv_run(&loop, UV_RUN_ONCE);
    ck_assert_uint_ge(atomic_load(&expired_at_ns), msg->deadline_ns);
    stop_on_loop();
}
END_TEST

SUPPORT_MAIN("reactor_uv", own_thread_runs_what_is_posted, caller_borrows_a_sleeping_reactor,
             start_and_stop_leave_nothing_behind, deadline_fires_on_time_whoever_armed_it,
             disarmed_deadline_fires_never, stop_waits_out_a_borrower,
             work_posted_while_a_slow_borrower_holds_the_reactor_is_run, misuse_aborts,
             failed_start_leaves_the_reactor_with_the_caller, caller_s_loop_is_kept_alive_until_stop,
             loop_run_in_pieces_is_told_of_work_between_the_pieces, callbacks_of_the_caller_s_loop_borrow_the_reactor,
             stop_from_inside_a_handler_is_deferred_to_the_loop,
             stop_on_a_caller_s_loop_waits_for_a_borrower_without_blocking_the_loop,
             endless_work_leaves_the_loop_s_other_handles_their_turn, deadline_fires_on_a_caller_s_loop)
