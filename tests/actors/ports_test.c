/*
 * ports_test.c - facts about completion queues: delivery, credit, and ports closed too early or too late.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

static struct kit_drive drive;

static bool readable(const kvbm_port *port) {
    struct pollfd poll_fd = {.fd = kvbm_port_fd(port), .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

static kvbm_submit to_port(kvbm_port *port, void *user, uint32_t flags) {
    return (kvbm_submit){.size = sizeof(kvbm_submit), .port = port, .user = user, .flags = flags};
}

static int allocate_to(kvbm_manager *m, kvbm_port *port, kvbm_block *blocks, uint64_t count, uint32_t flags,
                       kvbm_op *op) {
    kvbm_submit s = to_port(port, blocks, flags);
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = count, .blocks = blocks};
    return kvbm_allocate_mt(m, &a, &s, op);
}

START_TEST(completion_comes_through_the_port_and_its_fd) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_port *port;
    kvbm_block block;
    kvbm_completion c[2];
    kvbm_op op;
    ck_assert_int_eq(kvbm_port_open(4, &port), 0);
    ck_assert_int_eq(kvbm_port_drain(port, c, 2), 0);
    ck_assert(!readable(port));
    ck_assert_int_eq(allocate_to(m, port, &block, 1, 0, &op), 0);
    ck_assert(readable(port));
    ck_assert_int_eq(kvbm_port_drain(port, c, 2), 1);
    ck_assert_uint_eq(c[0].op, op);
    ck_assert_ptr_eq(c[0].user, &block);
    ck_assert_int_eq(c[0].kind, KVBM_OP_ALLOCATE);
    ck_assert_int_eq(c[0].status, 0);
    ck_assert_uint_eq(c[0].count, 1);
    ck_assert_int_eq(kvbm_port_drain(port, c, 2), 0);
    ck_assert(!readable(port));
    kit_release(m, &block, 1);
    kvbm_port_close(port);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(inline_answer_leaves_the_port_untouched_and_its_place_free) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_port *port;
    kvbm_block block;
    kvbm_completion c;
    ck_assert_int_eq(kvbm_port_open(1, &port), 0);
    for (int i = 0; i < 5; i++) {
        kvbm_submit s = to_port(port, NULL, KVBM_SUBMIT_INLINE);
        s.completion = &c;
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, NULL), 1);
        kit_release(m, &block, 1);
    }
    ck_assert(!readable(port));
    ck_assert_uint_eq(kvbm_port_credits_out_mt(port), 0);
    kvbm_port_close(port);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(full_port_returns_eagain_until_it_is_drained) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_port *port;
    kvbm_block blocks[3];
    kvbm_completion c[4];
    kvbm_op op;
    ck_assert_int_eq(kvbm_port_open(2, &port), 0);
    ck_assert_int_eq(allocate_to(m, port, &blocks[0], 1, 0, &op), 0);
    ck_assert_int_eq(allocate_to(m, port, &blocks[1], 1, 0, &op), 0);
    ck_assert_int_eq(allocate_to(m, port, &blocks[2], 1, 0, &op), -EAGAIN);
    ck_assert_int_eq(kvbm_port_drain(port, c, 1), 1);
    ck_assert_int_eq(allocate_to(m, port, &blocks[2], 1, 0, &op), 0);
    ck_assert_int_eq(kvbm_port_drain(port, c, 4), 2);
    ck_assert_uint_eq(c[1].op, op);
    kit_release(m, blocks, 3);
    kvbm_port_close(port);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(credit_comes_once_when_an_operation_is_free_again_even_to_a_full_port) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 1);
    options.max_operations = 16;
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_port *port;
    kvbm_block held, out;
    kvbm_completion c[20];
    kvbm_op ops[16], op;
    int user;
    ck_assert_int_eq(kvbm_port_open(16, &port), 0);
    ck_assert_int_eq(kit_allocate(m, &held, 1), 0);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(allocate_to(m, port, &out, 1, KVBM_SUBMIT_WAIT, &ops[i]), 0);
    ck_assert_int_eq(allocate_to(m, port, &out, 1, 0, &op), -EAGAIN);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, &user), 0);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, &user), -EALREADY);
    ck_assert_int_eq(kvbm_port_drain(port, c, 20), 0);
    ck_assert_int_eq(kvbm_cancel_mt(m, ops[3]), 0);
    /* Its object is in the port: free when drained. */
    int n = kvbm_port_drain(port, c, 20);
    n += kvbm_port_drain(port, c + n, (uint32_t)(20 - n));
    ck_assert_int_eq(n, 2);
    ck_assert_int_eq(c[0].status, -ECANCELED);
    ck_assert_int_eq(c[1].kind, KVBM_OP_CREDIT);
    ck_assert_ptr_eq(c[1].user, &user);
    ck_assert_int_eq(c[1].status, 0);
    /* Room already: at once. */
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, &user), 0);
    ck_assert_int_eq(kvbm_port_drain(port, c, 20), 1);
    ck_assert_int_eq(c[0].kind, KVBM_OP_CREDIT);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(kvbm_cancel_mt(m, ops[i]), 0);
    ck_assert_int_eq(kvbm_port_drain(port, c, 20), 15);
    kit_release(m, &held, 1);
    kvbm_port_close(port);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(credit_after_a_full_lane_comes_when_the_lane_has_moved) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 8);
    kvbm_manager *m = kit_driven_with(&drive, &options, 4);
    kvbm_port *port;
    kvbm_block out[8];
    kvbm_completion c[8];
    kvbm_op op;
    ck_assert_int_eq(kvbm_port_open(16, &port), 0);
    kit_take(&drive);
    int n = 0;
    while (allocate_to(m, port, &out[n], 1, 0, &op) == 0)
        n++;
    ck_assert_int_eq(n, 3);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, NULL), 0);
    ck_assert_int_eq(kvbm_port_drain(port, c, 8), 0);
    kit_park(&drive);
    ck_assert_int_eq(kvbm_port_drain(port, c, 8), 4);
    kit_release(m, out, 3);
    kvbm_port_close(port);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(credit_that_is_wanted_at_close_comes_with_shutdown) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 1);
    options.max_operations = 16;
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_port *port;
    kvbm_block held, out;
    kvbm_completion c[20];
    kvbm_op op;
    ck_assert_int_eq(kvbm_port_open(16, &port), 0);
    ck_assert_int_eq(kit_allocate(m, &held, 1), 0);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(allocate_to(m, port, &out, 1, KVBM_SUBMIT_WAIT, &op), 0);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, NULL), 0);
    kit_driven_end(&drive); /* the manager's memory stays: 17 completions are in the port */
    ck_assert_int_eq(kvbm_port_drain(port, c, 20), 17);
    int credits = 0;
    for (int i = 0; i < 17; i++) {
        ck_assert_int_eq(c[i].status, -KVBM_ESHUTDOWN);
        credits += c[i].kind == KVBM_OP_CREDIT;
    }
    ck_assert_int_eq(credits, 1);
    kvbm_port_close(port);
}
END_TEST

#define ASK_ROUNDS 40 /* fewer than the manager has places for requests */

static struct {
    kvbm_port *ports[ASK_ROUNDS];
    _Atomic uint32_t here[ASK_ROUNDS], accepted[ASK_ROUNDS];
} ask;

static void ask_run(void *arg) {
    for (int i = 0; i < ASK_ROUNDS; i++) {
        atomic_fetch_add(&ask.here[i], 1);
        while (atomic_load(&ask.here[i]) < 2)
            ;
        int rc = kvbm_port_want_credit_mt(ask.ports[i], arg, NULL);
        KVBM_ASSERT(rc == 0 || rc == -EALREADY);
        atomic_fetch_add(&ask.accepted[i], rc == 0);
    }
}

START_TEST(of_two_threads_that_want_credit_at_once_one_is_told_that_it_is_asked_for) {
    const struct kvbm_os *os = kvbm_os_real();
    for (int lap = 0; lap < 20; lap++) {
        kvbm_group_options group;
        kvbm_options options = kit_options(&group, 1);
        options.max_operations = 16;
        kvbm_manager *m = kit_driven_with(&drive, &options, 0);
        kvbm_block out;
        kvbm_op op;
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
        memset(&ask, 0, sizeof(ask));
        kit_take(&drive);
        for (int i = 0; i < 16; i++)
            ck_assert_int_eq(kvbm_allocate_mt(m, &a, NULL, &op), 0); /* all operations stand in the lane */
        for (int i = 0; i < ASK_ROUNDS; i++)
            ck_assert_int_eq(kvbm_port_open(1, &ask.ports[i]), 0);
        struct kvbm_thread threads[2];
        for (int i = 0; i < 2; i++)
            ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], ask_run, m, "ask"), 0);
        for (int i = 0; i < 2; i++)
            os->thread_join(os->ctx, &threads[i]);
        kit_driven_end(&drive);
        for (int i = 0; i < ASK_ROUNDS; i++) {
            kvbm_completion c[2];
            ck_assert_uint_eq(ask.accepted[i], 1);
            ck_assert_int_eq(kvbm_port_drain(ask.ports[i], c, 2), 1);
            kvbm_port_close(ask.ports[i]);
        }
    }
}
END_TEST

static struct kit_done told;

static void on_orphan(void *user, const kvbm_completion *c) {
    (void)user;
    kit_on_done(&told, c);
}

START_TEST(port_closed_with_operations_in_flight_releases_what_they_bring_or_tells_their_callback) {
    for (int when = 0; when < 2; when++) { /* 0: done and not drained, 1: still in flight */
        kvbm_manager *m = kit_driven(&drive, 16);
        kvbm_port *port;
        kvbm_block a[2], r[2], mt[2];
        kvbm_key keys[4];
        kit_keys(1, 0, 4, keys);
        kit_cache(m, keys, 2);
        ck_assert_int_eq(kit_allocate(m, r, 2), 0);
        ck_assert_int_eq(kvbm_port_open(8, &port), 0);
        if (when == 1)
            kit_take(&drive);
        ck_assert_int_eq(allocate_to(m, port, a, 2, 0, NULL), 0);
        kvbm_submit s = to_port(port, NULL, 0);
        kvbm_register_args ra = {.size = sizeof(ra), .count = 2, .blocks = r, .keys = keys + 2, .out_blocks = r};
        ck_assert_int_eq(kvbm_register_mt(m, &ra, &s, NULL), 0);
        atomic_store(&told.count, 0);
        s.done = on_orphan;
        kvbm_match_args ma = {.size = sizeof(ma), .count = 2, .keys = keys, .blocks = mt};
        ck_assert_int_eq(kvbm_match_mt(m, &ma, &s, NULL), 0);
        kvbm_port_close(port);
        ck_assert_uint_eq(told.count, when == 0 ? 1 : 0);
        if (when == 1)
            kit_park(&drive);
        ck_assert_uint_eq(told.count, 1);
        /* Who gave a callback beside the port gets the result, blocks and all. */
        ck_assert_int_eq(told.status, 0);
        ck_assert_uint_eq(told.completion.count, 2);
        kit_balance(m, 12, 2, 2, 0);
        kit_release(m, mt, 2);
        kit_balance(m, 12, 4, 0, 0);
        kit_driven_end(&drive);
    }
}
END_TEST

START_TEST(port_outlives_its_manager_and_the_manager_its_port) {
    kvbm_manager *m = kit_open(4);
    kvbm_port *port;
    kvbm_block blocks[2];
    kvbm_completion c[4];
    ck_assert_int_eq(kvbm_port_open(8, &port), 0);
    ck_assert_int_eq(allocate_to(m, port, blocks, 2, 0, NULL), 0);
    kit_end(m); /* closed and released; the completion is in the port */
    while (kvbm_port_drain(port, c, 4) == 0)
        ;
    ck_assert_ptr_eq(c[0].user, blocks);
    kvbm_port_close(port);
    /* And dropped undrained. */
    m = kit_open(4);
    ck_assert_int_eq(kvbm_port_open(8, &port), 0);
    ck_assert_int_eq(allocate_to(m, port, blocks, 2, 0, NULL), 0);
    kit_end(m);
    kvbm_port_close(port);
}
END_TEST

START_TEST(one_port_serves_several_managers) {
    kvbm_manager *m[3];
    kvbm_port *port;
    kvbm_block blocks[3];
    kvbm_completion c;
    ck_assert_int_eq(kvbm_port_open(8, &port), 0);
    for (int i = 0; i < 3; i++) {
        m[i] = kit_open(4);
        ck_assert_int_eq(allocate_to(m[i], port, &blocks[i], 1, 0, NULL), 0);
    }
    for (int seen = 0; seen < 3;) {
        struct pollfd fd = {.fd = kvbm_port_fd(port), .events = POLLIN};
        ck_assert_int_eq(poll(&fd, 1, 10000), 1);
        int n = kvbm_port_drain(port, &c, 1);
        if (n == 1)
            ck_assert_int_eq(c.status, 0);
        seen += n;
    }
    for (int i = 0; i < 3; i++) {
        kit_release(m[i], &blocks[i], 1);
        kit_end(m[i]);
    }
    kvbm_port_close(port);
}
END_TEST

START_TEST(misuse_is_refused) {
    kvbm_port *port;
    kvbm_completion c;
    kvbm_manager *m = kit_driven(&drive, 1);
    ck_assert_int_eq(kvbm_port_open(0, &port), -EINVAL);
    ck_assert_int_eq(kvbm_port_open((1u << 20) + 1, &port), -EINVAL);
    ck_assert_int_eq(kvbm_port_open(1, NULL), -EINVAL);
    ck_assert_int_eq(kvbm_port_fd(NULL), -EINVAL);
    ck_assert_int_eq(kvbm_port_drain(NULL, &c, 1), -EINVAL);
    ck_assert_int_eq(kvbm_port_open(1 << 20, &port), 0);
    ck_assert_int_eq(kvbm_port_drain(port, NULL, 1), -EINVAL);
    ck_assert_int_eq(kvbm_port_drain(port, NULL, 0), 0);
    ck_assert_int_eq(kvbm_port_want_credit_mt(NULL, m, NULL), -EINVAL);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, NULL, NULL), -EINVAL);
    kvbm_port_close(port);
    kvbm_port_close(NULL);
    kit_driven_end(&drive);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ under fire */

#define FIRE_THREADS 3
#define FIRE_ROUNDS  400

struct fire {
    kvbm_manager *m;
    uint32_t number;
};

/* A loop of its own each: submits to its port, drains, sometimes closes the port with everything in flight. The arrays
 * stay valid: they are the thread's for good. */
static void fire_run(void *arg) {
    struct fire *f = arg;
    static kvbm_block arrays[FIRE_THREADS][FIRE_ROUNDS][16][2];
    for (uint32_t round = 0; round < FIRE_ROUNDS; round++) {
        kvbm_port *port;
        KVBM_ASSERT(kvbm_port_open(16, &port) == 0);
        uint32_t sent = 0, seen = 0;
        for (uint32_t i = 0; i < 16; i++) {
            int rc = allocate_to(f->m, port, arrays[f->number][round][i], 2, 0, NULL);
            KVBM_ASSERT(rc == 0 || rc == -EAGAIN);
            sent += rc == 0;
        }
        uint32_t stop = round % 2 == 0 ? sent : sent / 2;
        while (seen < stop) {
            kvbm_completion c[4];
            struct pollfd fd = {.fd = kvbm_port_fd(port), .events = POLLIN};
            KVBM_ASSERT(poll(&fd, 1, 20000) == 1);
            int n = kvbm_port_drain(port, c, 4);
            for (int i = 0; i < n; i++)
                if (c[i].status == 0)
                    KVBM_ASSERT(kvbm_release_mt(f->m, c[i].user, 2) == 0);
            seen += (uint32_t)n;
        }
        kvbm_port_close(port);
    }
}

START_TEST(ports_opened_and_closed_under_load_lose_no_block) {
    for (int borrow = 0; borrow < 2; borrow++) {
        kvbm_group_options group;
        kvbm_options options = kit_options(&group, 64);
        options.flags |= borrow ? 0 : KVBM_OPEN_NO_BORROW;
        kvbm_manager *m = kit_open_with(&options);
        const struct kvbm_os *os = kvbm_os_real();
        struct kvbm_thread threads[FIRE_THREADS];
        struct fire fires[FIRE_THREADS];
        for (uint32_t i = 0; i < FIRE_THREADS; i++) {
            fires[i] = (struct fire){.m = m, .number = i};
            ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], fire_run, &fires[i], "fire"), 0);
        }
        for (uint32_t i = 0; i < FIRE_THREADS; i++)
            os->thread_join(os->ctx, &threads[i]);
        /* What was in flight when its port closed comes back a little later. */
        kvbm_stats stats = {.size = sizeof(stats)};
        do {
            ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
        } while (stats.operations_in_flight > 0);
        kit_balance(m, 64, 0, 0, 0);
        kit_end(m);
    }
}
END_TEST

KIT_MAIN("ports", completion_comes_through_the_port_and_its_fd,
         inline_answer_leaves_the_port_untouched_and_its_place_free, full_port_returns_eagain_until_it_is_drained,
         credit_comes_once_when_an_operation_is_free_again_even_to_a_full_port,
         credit_after_a_full_lane_comes_when_the_lane_has_moved, credit_that_is_wanted_at_close_comes_with_shutdown,
         of_two_threads_that_want_credit_at_once_one_is_told_that_it_is_asked_for,
         port_closed_with_operations_in_flight_releases_what_they_bring_or_tells_their_callback,
         port_outlives_its_manager_and_the_manager_its_port, one_port_serves_several_managers, misuse_is_refused,
         ports_opened_and_closed_under_load_lose_no_block)
