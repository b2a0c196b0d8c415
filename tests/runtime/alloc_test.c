/*
 * alloc_test.c - no allocation in the steady state: posts, calls, turns, replies, deadlines, returns, pools, ports.
 *
 * The whole process is counted (alloc_count.c), the reactor's thread and libuv's loop included. Check's own assertions
 * allocate, so none stands in what is measured.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/pool.h"
#include "runtime/port.h"
#include "runtime/reactor_uv.h"
#include "tests/runtime/support.h"

enum { KIND_ECHO = 1, KIND_COUNT };

static struct kvbm_reactor *r;
static struct kvbm_reactor_uv *drv;
static struct kvbm_actor front, back;
static struct kvbm_pool pool;
static struct kvbm_port *port;
static struct kvbm_retlane lane;
static _Atomic uint32_t finished, returned;

static void forward(struct kvbm_actor *self, struct kvbm_msg *msg) {
    msg->reply_to = self;
    kvbm_reactor_arm(self->reactor, msg);
    KVBM_ASSERT(kvbm_actor_send(self, &back, msg) == 0);
}

static void answer(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_actor_reply(self, msg, 0);
}

static void on_answer(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_reactor_disarm(self->reactor, msg);
    atomic_fetch_add(&finished, 1);
    KVBM_ASSERT(kvbm_port_push_mt(port, msg));
}

static void on_deadline(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    (void)msg;
}

static void on_return(void *arg, uint32_t id) {
    (void)arg;
    (void)id;
    atomic_fetch_add(&returned, 1);
}

static const kvbm_handler_fn front_requests[KIND_COUNT] = {[KIND_ECHO] = forward};
static const kvbm_handler_fn front_replies[KIND_COUNT] = {[KIND_ECHO] = on_answer};
static const kvbm_handler_fn back_requests[KIND_COUNT] = {[KIND_ECHO] = answer};

static void take_all(uint32_t count) {
    while (count != 0) {
        struct kvbm_msg *msg = kvbm_port_take(port);
        if (msg == NULL) {
            struct pollfd poll_fd = {.fd = port->fd, .events = POLLIN};
            KVBM_ASSERT(poll(&poll_fd, 1, 10000) == 1);
            continue;
        }
        kvbm_pool_give_mt(&pool, msg);
        count--;
    }
}

static void submit(int (*how)(struct kvbm_reactor *, struct kvbm_msg *)) {
    struct kvbm_msg *msg = kvbm_pool_take_mt(&pool, NULL);
    KVBM_ASSERT(msg != NULL);
    KVBM_ASSERT(kvbm_port_credit_take_mt(port) == 0);
    *msg = (struct kvbm_msg){.kind = KIND_ECHO, .to = &front, .deadline_ns = UINT64_MAX - 1};
    KVBM_ASSERT(how(r, msg) == 0);
}

static void one_round(void) {
    for (int i = 0; i < 8; i++)
        submit(kvbm_reactor_call_mt);
    for (int i = 0; i < 8; i++)
        submit(kvbm_reactor_post_mt);
    kvbm_retlane_push_many_mt(&lane, (const uint32_t[]){1, 2, 3}, 3);
    kvbm_reactor_returned_mt(r);
    take_all(16);
    while (atomic_load(&returned) % 3 != 0 || !kvbm_retlane_empty_mt(&lane))
        kvbm_reactor_settle_mt(r);
}

START_TEST(steady_state_allocates_nothing) {
    const struct kvbm_os *os = kvbm_os_real();
    r = support_new(sizeof *r);
    drv = support_new(sizeof *drv);
    struct kvbm_reactor_options options = support_reactor_options(os, NULL);
    options.mailbox.thread_capacity = 64;
    options.wake = kvbm_reactor_uv_wake;
    options.wake_ctx = drv;
    ck_assert_int_eq(kvbm_reactor_open(r, &options), 0);
    front = (struct kvbm_actor){.name = "front",
                                .on_request = front_requests,
                                .on_reply = front_replies,
                                .kind_count = KIND_COUNT,
                                .on_deadline = on_deadline};
    back = (struct kvbm_actor){.name = "back", .on_request = back_requests, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(r, &front);
    kvbm_reactor_actor_add(r, &back);
    ck_assert_int_eq(kvbm_retlane_open(&lane, os, 8), 0);
    kvbm_reactor_retlane_add(r, &lane, on_return, NULL);
    ck_assert_int_eq(kvbm_pool_open(&pool, os, 32, sizeof(struct kvbm_msg)), 0);
    ck_assert_int_eq(kvbm__port_open(os, 32, &port), 0);
    ck_assert_int_eq(kvbm_reactor_uv_start(drv, r, NULL), 0);

    for (int i = 0; i < 100; i++)
        one_round();
    uint64_t before = support_allocation_count();
    for (int i = 0; i < 2000; i++)
        one_round();
    uint64_t after = support_allocation_count();
    ck_assert_uint_eq(after - before, 0);
    ck_assert_uint_eq(finished, 2100 * 16);
    ck_assert_uint_gt(r->wake_count, 0); /* the thread had its part */
    ck_assert_uint_gt(r->borrow_count, 0);

    kvbm_reactor_uv_stop(drv, NULL, NULL);
    kvbm_reactor_close(r);
    ck_assert_ptr_null(kvbm__port_close(port));
    kvbm_pool_close(&pool);
    kvbm_retlane_close(&lane);
    free(r);
    free(drv);
}
END_TEST

START_TEST(counter_counts) {
    if (!support_counts_allocations())
        return;
    uint64_t before = support_allocation_count();
    void *volatile memory = malloc(10);
    free(memory);
    memory = aligned_alloc(64, 64);
    free(memory);
    ck_assert_uint_ge(support_allocation_count() - before, 2);
}
END_TEST

SUPPORT_MAIN("alloc", counter_counts, steady_state_allocates_nothing)
