/*
 * port_test.c - facts about ports.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "runtime/port.h"
#include "tests/runtime/support.h"

static struct support_os fake;
static struct kvbm_port *port;
static struct kvbm_msg msgs[256];

static void open_port(uint32_t capacity) {
    support_os_init(&fake);
    memset(msgs, 0, sizeof msgs);
    for (uint32_t i = 0; i < 256; i++)
        msgs[i].user = i;
    ck_assert_int_eq(kvbm__port_open(&fake.table, capacity, &port), 0);
}

static bool readable(void) {
    struct pollfd poll_fd = {.fd = port->fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

static void push(uint32_t i) {
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    ck_assert(kvbm_port_push_mt(port, &msgs[i]));
}

START_TEST(messages_come_in_push_order) {
    open_port(8);
    ck_assert_ptr_null(kvbm_port_take(port));
    push(0);
    push(1);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 0);
    push(2);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 1);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 2);
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert_uint_eq(port->taken_count, 3);
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(credits_bound_what_is_out_and_come_back_with_the_take) {
    open_port(2);
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), -EAGAIN);
    ck_assert_uint_eq(kvbm_port_credits_out_mt(port), 2);
    kvbm_port_credit_give_mt(port);
    ck_assert_uint_eq(kvbm_port_credits_out_mt(port), 1);
    ck_assert(kvbm_port_push_mt(port, &msgs[0]));
    ck_assert_uint_eq(kvbm_port_credits_out_mt(port), 1);
    push(1);
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), -EAGAIN);
    ck_assert_ptr_nonnull(kvbm_port_take(port));
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    kvbm_port_credit_give_mt(port);
    ck_assert_ptr_nonnull(kvbm_port_take(port));
    ck_assert_uint_eq(kvbm_port_credits_out_mt(port), 0);
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(eventfd_is_written_once_a_sleep) {
    open_port(64);
    /* A port opens armed: who polls before the first take is told too. */
    push(0);
    ck_assert(readable());
    ck_assert_uint_eq(fake.signals, 1);
    for (uint32_t i = 1; i < 10; i++)
        push(i);
    ck_assert_uint_eq(fake.signals, 1);
    for (uint32_t i = 0; i < 10; i++) {
        ck_assert(readable()); /* level: until everything is taken */
        ck_assert_uint_eq(kvbm_port_take(port)->user, i);
    }
    push(10); /* still awake: not told again */
    ck_assert_uint_eq(fake.signals, 1);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 10);
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert(!readable());
    ck_assert_uint_eq(fake.clears, 1);
    for (uint64_t sleep = 0; sleep < 20; sleep++) {
        push(0);
        push(1);
        ck_assert_uint_eq(fake.signals, 2 + sleep);
        ck_assert(readable());
        while (kvbm_port_take(port) != NULL) {
        }
        ck_assert(!readable());
    }
    ck_assert_uint_eq(port->signal_count, fake.signals);
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(taking_from_an_empty_armed_port_costs_no_system_call) {
    open_port(4);
    push(0);
    ck_assert_ptr_nonnull(kvbm_port_take(port));
    for (int i = 0; i < 100; i++)
        ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert_uint_eq(fake.clears, 1);
    ck_assert_uint_eq(fake.signals, 1);
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(a_consumer_that_polls_without_sleeping_is_still_told_the_next_time) {
    open_port(4);
    ck_assert_ptr_null(kvbm_port_take(port));
    push(0);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 0); /* taken without looking at the fd */
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert(!readable());
    push(1);
    ck_assert(readable());
    ck_assert_uint_eq(kvbm_port_take(port)->user, 1);
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert(!readable());
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(late_write_of_the_eventfd_is_cleared_by_the_next_empty_take) {
    open_port(4);
    /* The order of a pusher that is descheduled between its exchange of `armed` and its write, by hand. */
    ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    atomic_store(&port->armed, 0);
    ck_assert(kvbm_port_push_mt(port, &msgs[0]));
    ck_assert_uint_eq(kvbm_port_take(port)->user, 0);
    ck_assert_ptr_null(kvbm_port_take(port)); /* arms */
    fake.table.event_signal(&fake, port->fd);
    atomic_fetch_add(&port->signalled_count, 1);
    ck_assert(readable());
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert(!readable());
    push(1);
    ck_assert(readable());
    ck_assert_uint_eq(kvbm_port_take(port)->user, 1);
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(close_hands_back_what_was_not_taken_in_order) {
    open_port(8);
    for (uint32_t i = 0; i < 4; i++)
        push(i);
    ck_assert_uint_eq(kvbm_port_take(port)->user, 0); /* 1, 2, 3 now stand in the consumer's list */
    push(4);
    struct kvbm_msg *rest = kvbm__port_close(port);
    for (uint32_t i = 1; i <= 4; i++, rest = rest->next) {
        ck_assert_ptr_nonnull(rest);
        ck_assert_uint_eq(rest->user, i);
    }
    ck_assert_ptr_null(rest);
}
END_TEST

START_TEST(push_after_close_is_refused_and_memory_lives_until_the_last_operation_is_through) {
    open_port(8);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
    ck_assert_ptr_null(kvbm__port_close(port));
    /* The sanitizers hold "memory lives"; the descriptor shows in fcntl. */
    int fd = port->fd;
    ck_assert(!kvbm_port_push_mt(port, &msgs[0]));
    ck_assert_ptr_null(msgs[0].next);
    kvbm_port_credit_give_mt(port);
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    ck_assert_int_eq(poll(&poll_fd, 1, 0), 0);
    ck_assert(!kvbm_port_push_mt(port, &msgs[1]));
    ck_assert_int_eq(poll(&poll_fd, 1, 0), 1);
    ck_assert_int_ne(poll_fd.revents & POLLNVAL, 0); /* closed with the last one */
}
END_TEST

static void close_twice(void *arg) {
    (void)arg;
    kvbm_port_credit_take_mt(port);
    (void)kvbm__port_close(port);
    (void)kvbm__port_close(port);
}

static void give_too_many(void *arg) {
    (void)arg;
    kvbm_port_credit_give_mt(port);
}

START_TEST(misuse_is_refused_or_aborts) {
    char text[512];
    support_os_init(&fake);
    ck_assert_int_eq(kvbm__port_open(&fake.table, 0, &port), -EINVAL);
    ck_assert_int_eq(kvbm__port_open(&fake.table, UINT32_MAX, &port), -EINVAL);
    fake.event_open_rc = -EMFILE;
    ck_assert_int_eq(kvbm__port_open(&fake.table, 4, &port), -EMFILE);
    open_port(4);
    ck_assert(support_aborts(close_twice, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "closed twice"));
    ck_assert(support_aborts(give_too_many, NULL, text, sizeof text));
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

/* ---- pushers against a consumer that sleeps whenever it can */

enum { PUSHER_COUNT = 4, PUSHES_EACH = 10000 };

static struct kvbm_msg pool[PUSHER_COUNT][32];
static _Atomic uint32_t pool_free[PUSHER_COUNT][32];
static _Atomic uint32_t refused[PUSHER_COUNT];

static void push_many(void *arg) {
    const uint32_t pusher = (uint32_t)(uintptr_t)arg;
    const struct kvbm_os *os = kvbm_os_real();
    for (uint64_t next = 0; next < PUSHES_EACH;) {
        uint32_t slot = (uint32_t)(next % 32);
        while (atomic_load_explicit(&pool_free[pusher][slot], memory_order_acquire) == 0)
            os->wait_u32(os->ctx, &pool_free[pusher][slot], 0, os->now_ns(os->ctx) + 50000);
        while (kvbm_port_credit_take_mt(port) != 0)
            os->wait_u32(os->ctx, &pool_free[pusher][slot], 1, os->now_ns(os->ctx) + 20000);
        atomic_store_explicit(&pool_free[pusher][slot], 0, memory_order_relaxed);
        pool[pusher][slot].op = next++;
        pool[pusher][slot].user = pusher;
        if (!kvbm_port_push_mt(port, &pool[pusher][slot])) {
            atomic_fetch_add(&refused[pusher], 1);
            return; /* the port may be gone */
        }
    }
}

static void start_pushers(struct kvbm_thread *threads) {
    const struct kvbm_os *os = kvbm_os_real();
    for (uintptr_t p = 0; p < PUSHER_COUNT; p++) {
        atomic_store(&refused[p], 0);
        for (int s = 0; s < 32; s++)
            atomic_store(&pool_free[p][s], 1);
    }
    for (uintptr_t p = 0; p < PUSHER_COUNT; p++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[p], push_many, (void *)p, "push"), 0);
}

START_TEST(sleeping_consumer_gets_every_message_in_order_per_pusher) {
    open_port(PUSHER_COUNT * 8);
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[PUSHER_COUNT];
    uint64_t next[PUSHER_COUNT] = {0};
    uint64_t sleeps = 0;
    start_pushers(threads);
    for (uint64_t total = 0; total < PUSHER_COUNT * PUSHES_EACH;) {
        struct kvbm_msg *msg = kvbm_port_take(port);
        if (msg == NULL) {
            struct pollfd poll_fd = {.fd = port->fd, .events = POLLIN};
            ck_assert_int_eq(poll(&poll_fd, 1, 30000), 1); /* a lost wake-up would sleep for ever */
            sleeps++;
            continue;
        }
        ck_assert_uint_eq(msg->op, next[msg->user]);
        next[msg->user]++;
        total++;
        atomic_store_explicit(&pool_free[msg->user][msg->op % 32], 1, memory_order_release);
    }
    for (int p = 0; p < PUSHER_COUNT; p++)
        os->thread_join(os->ctx, &threads[p]);
    ck_assert_uint_gt(sleeps, 0);
    ck_assert_uint_le(fake.signals, sleeps + 1 + fake.clears);
    ck_assert_ptr_null(kvbm_port_take(port));
    ck_assert_ptr_null(kvbm__port_close(port));
}
END_TEST

START_TEST(closing_under_fire_loses_no_message_and_frees_once) {
    for (int round = 0; round < 50; round++) {
        open_port(PUSHER_COUNT * 8);
        const struct kvbm_os *os = kvbm_os_real();
        struct kvbm_thread threads[PUSHER_COUNT];
        uint64_t taken = 0;
        /* Each pusher may end by a refusal, after which it must not touch the port: a reference of its own each. */
        for (int p = 0; p < PUSHER_COUNT; p++)
            ck_assert_int_eq(kvbm_port_credit_take_mt(port), 0);
        start_pushers(threads);
        while (taken < 200) {
            struct kvbm_msg *msg = kvbm_port_take(port);
            if (msg == NULL)
                continue;
            taken++;
            atomic_store_explicit(&pool_free[msg->user][msg->op % 32], 1, memory_order_release);
        }
        for (struct kvbm_msg *msg = kvbm__port_close(port); msg != NULL;) {
            struct kvbm_msg *next = msg->next;
            atomic_store_explicit(&pool_free[msg->user][msg->op % 32], 1, memory_order_release);
            msg = next;
        }
        for (int p = 0; p < PUSHER_COUNT; p++)
            os->thread_join(os->ctx, &threads[p]);
        for (int p = 0; p < PUSHER_COUNT; p++)
            ck_assert_uint_eq(refused[p], 1);
        ck_assert_uint_eq(kvbm_port_credits_out_mt(port), PUSHER_COUNT);
        for (int p = 0; p < PUSHER_COUNT; p++)
            ck_assert(!kvbm_port_push_mt(port, &msgs[p]));
    }
}
END_TEST

SUPPORT_MAIN("port", messages_come_in_push_order, credits_bound_what_is_out_and_come_back_with_the_take,
             eventfd_is_written_once_a_sleep, taking_from_an_empty_armed_port_costs_no_system_call,
             a_consumer_that_polls_without_sleeping_is_still_told_the_next_time,
             late_write_of_the_eventfd_is_cleared_by_the_next_empty_take, close_hands_back_what_was_not_taken_in_order,
             push_after_close_is_refused_and_memory_lives_until_the_last_operation_is_through,
             misuse_is_refused_or_aborts, sleeping_consumer_gets_every_message_in_order_per_pusher,
             closing_under_fire_loses_no_message_and_frees_once)
