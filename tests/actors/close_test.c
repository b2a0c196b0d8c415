/*
 * close_test.c - facts about closing, references, the caller's own loop, and forked children.
 */
#include <check.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

static struct kit_drive drive;

static int wait_allocation(kvbm_manager *m, struct kit_done *done, kvbm_block *out, kvbm_op *op) {
    kvbm_submit s = kit_callback(done, KVBM_SUBMIT_WAIT);
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = out};
    return kvbm_allocate_mt(m, &a, &s, op);
}

START_TEST(close_ends_what_waits_and_refuses_what_comes) {
    kvbm_manager *m = kit_open(2);
    kvbm_block held[2], out;
    kvbm_key key = kit_key(1, 0);
    struct kit_done done[3];
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(wait_allocation(m, &done[i], &out, NULL), 0);
    ck_assert(!kvbm_manager_is_closed_mt(m));
    ck_assert_int_eq(kvbm_manager_close_mt(m, KIT_SECOND_NS * 10), 0);
    ck_assert(kvbm_manager_is_closed_mt(m));
    for (int i = 0; i < 3; i++) {
        ck_assert_uint_eq(done[i].count, 1);
        ck_assert_int_eq(done[i].status, -KVBM_ESHUTDOWN);
    }
    ck_assert_int_eq(kit_allocate(m, &out, 1), -KVBM_ECLOSED);
    ck_assert_int_eq(kit_register(m, held, &key, 1), -KVBM_ECLOSED);
    ck_assert_int_eq(kit_match(m, &key, 1, &out), -KVBM_ECLOSED);
    uint8_t tier;
    ck_assert_int_eq(kit_query(m, &key, 1, &tier), -KVBM_ECLOSED);
    kvbm_port *port;
    ck_assert_int_eq(kvbm_port_open(1, &port), 0);
    ck_assert_int_eq(kvbm_port_want_credit_mt(port, m, NULL), -KVBM_ECLOSED);
    kvbm_port_close(port);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    /* Holders finish in peace. */
    ck_assert_int_eq(kvbm_block_state_mt(m, held[0]), KVBM_BLOCK_PARTIAL);
    kit_release(m, held, 2);
    ck_assert_int_eq(kvbm_release_mt(m, held, 2), -KVBM_ESTALE);
    kvbm_stats stats = {.size = sizeof(stats)};
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
    ck_assert_int_ge((int)kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), 0);
    kvbm_manager_release_mt(m);
}
END_TEST

START_TEST(operations_queued_at_close_end_with_shutdown_and_give_their_blocks_back) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_block held[2], out[2];
    kvbm_key keys[2];
    struct kit_done done[4];
    uint8_t tiers[2];
    kit_keys(1, 0, 2, keys);
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    kit_take(&drive);
    kvbm_submit s[4];
    for (int i = 0; i < 4; i++)
        s[i] = kit_callback(&done[i], 0);
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 2, .blocks = out};
    kvbm_register_args r = {.size = sizeof(r), .count = 2, .blocks = held, .keys = keys, .out_blocks = held};
    kvbm_match_args mt = {.size = sizeof(mt), .count = 2, .keys = keys, .blocks = out};
    kvbm_query_args q = {.size = sizeof(q), .count = 2, .keys = keys, .tiers = tiers};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s[0], NULL), 0);
    ck_assert_int_eq(kvbm_register_mt(m, &r, &s[1], NULL), 0);
    ck_assert_int_eq(kvbm_match_mt(m, &mt, &s[2], NULL), 0);
    ck_assert_int_eq(kvbm_query_mt(m, &q, &s[3], NULL), 0);
    kvbm__manager_close_begin(m);
    ck_assert(!kvbm__manager_drained(m));
    while (!kvbm__manager_drained(m))
        kit_turn(&drive, 1);
    for (int i = 0; i < 4; i++) {
        ck_assert_uint_eq(done[i].count, 1);
        ck_assert_int_eq(done[i].status, -KVBM_ESHUTDOWN);
    }
    kit_release(m, held, 2);
    kvbm__manager_finish(m);
    kvbm_manager_release_mt(m);
}
END_TEST

static bool drained_in_callback;

static void look_drained(void *user, const kvbm_completion *c) {
    kit_on_done(user, c);
    drained_in_callback = kvbm__manager_drained(drive.manager);
}

/* The last operation of a shutdown ends with a callback; a closer that went on to stop the reactor's thread would wait
 * for it beyond its time limit. */
START_TEST(callback_that_runs_holds_off_the_end_of_a_close) {
    enum { COUNT = 40 * KVBM_STEP_BLOCKS };
    static kvbm_key keys[COUNT];
    static uint8_t tiers[COUNT];
    kvbm_manager *m = kit_driven(&drive, 1);
    struct kit_done done;
    kvbm_submit s = kit_callback(&done, 0);
    kvbm_query_args q = {.size = sizeof(q), .count = COUNT, .keys = keys, .tiers = tiers};
    s.done = look_drained;
    kit_take(&drive);
    ck_assert_int_eq(kvbm_query_mt(m, &q, &s, NULL), 0);
    kit_turn(&drive, 1);
    kvbm__manager_close_begin(m);
    kit_turn(&drive, 256); /* the actors answer the shutdown between two steps of the query */
    ck_assert_uint_eq(done.count, 1);
    ck_assert_int_eq(done.status, 0);
    ck_assert(!drained_in_callback);
    ck_assert(kvbm__manager_drained(m));
    kvbm__manager_finish(m);
    kvbm_manager_release_mt(m);
}
END_TEST

static kvbm_block leased;

static void release_leased(void *user, const kvbm_completion *c) {
    kit_on_done(user, c);
    ck_assert_int_eq(kvbm_release_mt(drive.manager, &leased, 1), 0);
}

/* The last operation ends in a turn without budget for the WATCH that the registry then answers. The operations are 46
 * allocations in line, all but the second cancelled at once; the block released meanwhile ends the WATCH before. */
START_TEST(message_between_actors_may_outlive_the_last_operation) {
    enum { COUNT = 46 };
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block held[4], out[2];
    kvbm_key key = kit_key(1, 0);
    struct kit_done done[COUNT];
    kvbm_op ops[COUNT];
    struct kvbm_reactor *reactor = kvbm__manager_reactor(m);
    ck_assert_int_eq(kit_allocate(m, held, 4), 0);
    ck_assert_int_eq(kit_register(m, held, &key, 1), 0);
    leased = held[0];
    for (int i = 0; i < COUNT; i++) {
        kvbm_submit s = kit_callback(&done[i], KVBM_SUBMIT_WAIT);
        if (i == 0)
            s.done = release_leased;
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 2, .blocks = out};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &ops[i]), 0);
    }
    kit_take(&drive);
    for (int i = 0; i < COUNT; i++)
        if (i != 1)
            ck_assert_int_eq(kvbm_cancel_mt(m, ops[i]), 0);
    kvbm__manager_close_begin(m);
    ck_assert_uint_eq(kit_turn(&drive, 34), 34); /* SWEEP, 32 of what came of it, CLOSE */
    while (!kvbm__manager_drained(m))
        kit_turn(&drive, 1);
    for (int i = 0; i < COUNT; i++)
        ck_assert_int_eq(done[i].status, i == 1 ? -KVBM_ESHUTDOWN : -ECANCELED);
    ck_assert(kvbm_reactor_has_work(reactor));
    kvbm__manager_finish(m);
    kvbm_manager_release_mt(m);
}
END_TEST

START_TEST(operation_nobody_waited_for_does_not_hold_up_a_close) {
    kvbm_manager *m = kit_open(2);
    kvbm_block block;
    kvbm_op op;
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, NULL, &op), 0);
    ck_assert_int_eq(kvbm_manager_close_mt(m, KIT_SECOND_NS * 10), 0);
    kvbm_completion c;
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), 0); /* still to be had */
    ck_assert_int_eq(c.status, 0);
    kit_release(m, &block, 1);
    kvbm_manager_release_mt(m);
    m = kit_open(2);
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, NULL, &op), 0);
    kvbm_manager_release_mt(m); /* closes by itself, nobody collects */
}
END_TEST

static kvbm_manager *waited;
static kvbm_op waited_op;
static kvbm_completion waited_completion;

static void wait_run(void *arg) {
    *(int *)arg = kvbm_wait_mt(waited, waited_op, 30 * KIT_SECOND_NS, &waited_completion);
}

START_TEST(thread_in_wait_hears_of_the_close) {
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread thread;
    kvbm_block held, out;
    int rc = 1;
    waited = kit_open(1);
    ck_assert_int_eq(kit_allocate(waited, &held, 1), 0);
    kvbm_submit s = {.size = sizeof(s), .flags = KVBM_SUBMIT_WAIT};
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
    ck_assert_int_eq(kvbm_allocate_mt(waited, &a, &s, &waited_op), 0);
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, wait_run, &rc, "wait"), 0);
    usleep(2000);
    ck_assert_int_eq(kvbm_manager_close_mt(waited, KIT_SECOND_NS * 10), 0);
    os->thread_join(os->ctx, &thread);
    ck_assert_int_eq(rc, 0);
    ck_assert_int_eq(waited_completion.status, -KVBM_ESHUTDOWN);
    kit_release(waited, &held, 1);
    kvbm_manager_release_mt(waited);
}
END_TEST

START_TEST(references_keep_memory_and_bytes_readable_after_close) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 4);
    options.flags = 0;
    kvbm_manager *m = kit_open_with(&options);
    kvbm_block block;
    void *address;
    kvbm_manager_retain_mt(m);
    ck_assert_int_eq(kit_allocate(m, &block, 1), 0);
    ck_assert_int_eq(kvbm_block_data_mt(m, block, 1, 1, &address), 0);
    uint64_t bytes = kvbm_manager_layout_mt(m, 0, KVBM_TIER_HOST)->plane_bytes;
    memset(address, 0x5a, bytes);
    ck_assert_int_eq(kvbm_block_data_mt(m, block, 2, 0, &address), -EINVAL);
    ck_assert_int_eq(kvbm_block_data_mt(m, block, 0, 2, &address), -EINVAL);
    kit_end(m);
    void *again;
    ck_assert_int_eq(kvbm_block_data_mt(m, block, 1, 1, &again), 0);
    ck_assert_uint_eq(((unsigned char *)again)[bytes - 1], 0x5a);
    kit_release(m, &block, 1);
    ck_assert_int_eq(kvbm_block_data_mt(m, block, 1, 1, &again), -KVBM_ESTALE);
    kvbm_manager_release_mt(m);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- races */

#define RACE_THREADS 4

struct race {
    kvbm_manager *m;
    _Atomic uint32_t *go;
    uint64_t accepted, answered;
    int kind, rc;
};

static void race_run(void *arg) {
    struct race *r = arg;
    kvbm_block block;
    kvbm_completion c;
    while (atomic_load(r->go) == 0)
        ;
    if (r->kind == 0) {
        r->rc = kvbm_manager_close_mt(r->m, 30 * KIT_SECOND_NS);
        return;
    }
    for (;;) {
        kvbm_op op;
        kvbm_submit s = {
            .size = sizeof(s), .flags = r->kind == 1 ? KVBM_SUBMIT_INLINE : KVBM_SUBMIT_WAIT, .completion = &c};
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
        int rc = kvbm_allocate_mt(r->m, &a, &s, &op);
        if (rc == -KVBM_ECLOSED)
            return;
        KVBM_ASSERT(rc >= 0);
        r->accepted++;
        if (rc == 0)
            KVBM_ASSERT(kvbm_wait_mt(r->m, op, 30 * KIT_SECOND_NS, &c) == 0);
        r->answered++;
        KVBM_ASSERT(c.status == 0 || c.status == -KVBM_ESHUTDOWN || c.status == -KVBM_ENOBLOCKS);
        if (c.status == 0)
            KVBM_ASSERT(kvbm_release_mt(r->m, &block, 1) == 0);
        kvbm_pool_available_mt(r->m, 0, KVBM_TIER_HOST);
        kvbm_cancel_mt(r->m, op);
    }
}

START_TEST(submits_that_race_with_closes_are_answered_or_refused) {
    const struct kvbm_os *os = kvbm_os_real();
    for (int round = 0; round < 60; round++) {
        kvbm_group_options group;
        kvbm_options options = kit_options(&group, 3);
        options.flags |= round % 3 == 0 ? KVBM_OPEN_NO_BORROW : 0;
        kvbm_manager *m = kit_open_with(&options);
        _Atomic uint32_t go = 0;
        struct kvbm_thread threads[RACE_THREADS];
        struct race r[RACE_THREADS];
        for (int i = 0; i < RACE_THREADS; i++) {
            /* Two that submit, two that close. */
            r[i] = (struct race){.m = m, .go = &go, .kind = i < 2 ? 0 : i - 1};
            ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], race_run, &r[i], "race"), 0);
        }
        atomic_store(&go, 1);
        for (int i = 0; i < RACE_THREADS; i++) {
            os->thread_join(os->ctx, &threads[i]);
            ck_assert_int_eq(r[i].rc, 0);
            ck_assert_uint_eq(r[i].accepted, r[i].answered);
        }
        kit_check(m);
        kvbm_manager_release_mt(m);
    }
}
END_TEST

/* ----------------------------------------------------------------------------------------------- caller's loop */

static struct {
    uv_loop_t loop;
    uv_timer_t timer;
    kvbm_manager *m;
    kvbm_block blocks[8];
    int done, close_rc;
} lp;

static kvbm_manager *loop_open(uint32_t flags, uint64_t host_blocks) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, host_blocks);
    options.flags |= flags;
    options.uv_loop = &lp.loop;
    memset(&lp, 0, sizeof(lp));
    ck_assert_int_eq(uv_loop_init(&lp.loop), 0);
    lp.m = kit_open_with(&options);
    return lp.m;
}

static void loop_end(void) {
    uv_run(&lp.loop, UV_RUN_DEFAULT);
    ck_assert_int_eq(kvbm_manager_close_mt(lp.m, 0), 0);
    kit_check(lp.m);
    kvbm_manager_release_mt(lp.m);
    ck_assert_int_eq(uv_loop_close(&lp.loop), 0);
}

static void loop_close(uv_timer_t *timer) {
    lp.close_rc = kvbm_manager_close_mt(lp.m, 0);
    uv_close((uv_handle_t *)timer, NULL);
}

static void loop_stop(uv_timer_t *timer) {
    (void)timer;
}

static void loop_done(void *user, const kvbm_completion *c) {
    (void)user;
    ck_assert_int_eq(c->status, 0);
    lp.done++;
    ck_assert_int_eq(kvbm_manager_close_mt(lp.m, 0), -EDEADLK);
    uv_timer_start(&lp.timer, loop_close, 0, 0);
}

START_TEST(manager_on_a_callers_loop_answers_there_and_leaves_it_clean) {
    for (int i = 0; i < 2; i++) {
        kvbm_manager *m = loop_open(i ? KVBM_OPEN_NO_BORROW : 0, 8);
        uv_timer_init(&lp.loop, &lp.timer);
        kvbm_submit s = {.size = sizeof(s), .done = loop_done};
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 8, .blocks = lp.blocks};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, NULL), 0);
        ck_assert_int_eq(lp.done, i == 0 ? 1 : 0); /* borrowed on the spot, or on the loop's next turn */
        uv_run(&lp.loop, UV_RUN_DEFAULT);
        ck_assert_int_eq(lp.done, 1);
        ck_assert_int_eq(lp.close_rc, 0);
        kit_release(m, lp.blocks, 8);
        loop_end();
    }
}
END_TEST

START_TEST(wait_on_the_loops_own_thread_runs_the_reactor) {
    for (int i = 0; i < 2; i++) {
        kvbm_manager *m = loop_open(i ? KVBM_OPEN_NO_BORROW : 0, 2);
        kvbm_block held[2], out;
        kvbm_op op;
        kvbm_completion c;
        ck_assert_int_eq(kit_allocate(m, held, 2), 0);
        kit_release(m, held, 2);
        ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), 2);
        ck_assert_int_eq(kit_allocate(m, held, 2), 0);
        kvbm_submit s = {.size = sizeof(s), .flags = KVBM_SUBMIT_WAIT, .timeout_ns = 3000000};
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 0);
        ck_assert_int_eq(kvbm_wait_mt(m, op, 10 * KIT_SECOND_NS, &c), 0);
        ck_assert_int_eq(c.status, -ETIMEDOUT);
        kit_release(m, held, 2);
        ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
        loop_end();
    }
}
END_TEST

START_TEST(waiting_allocation_times_out_on_a_callers_loop) {
    kvbm_manager *m = loop_open(0, 1);
    kvbm_block held, out;
    struct kit_done done;
    ck_assert_int_eq(kit_allocate(m, &held, 1), 0);
    kvbm_submit s = kit_callback(&done, KVBM_SUBMIT_WAIT);
    s.timeout_ns = 2000000;
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, NULL), 0);
    while (done.count == 0)
        uv_run(&lp.loop, UV_RUN_ONCE);
    ck_assert_int_eq(done.status, -ETIMEDOUT);
    kit_release(m, &held, 1);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    loop_end();
}
END_TEST

/* The loop's thread takes the reactor in a wait, and the loop's timer must know what was armed meanwhile. */
START_TEST(deadline_outlives_a_wait_on_the_loops_own_thread) {
    for (int i = 0; i < 2; i++) {
        kvbm_manager *m = loop_open(i ? KVBM_OPEN_NO_BORROW : 0, 1);
        kvbm_block held, out[2];
        struct kit_done done;
        kvbm_op op;
        kvbm_completion c;
        ck_assert_int_eq(kit_allocate(m, &held, 1), 0);
        kvbm_submit later = kit_callback(&done, KVBM_SUBMIT_WAIT);
        later.timeout_ns = 50000000;
        kvbm_submit sooner = {.size = sizeof(sooner), .flags = KVBM_SUBMIT_WAIT, .timeout_ns = 1000000};
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out[0]};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &later, NULL), 0);
        a.blocks = &out[1];
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &sooner, &op), 0);
        ck_assert_int_eq(kvbm_wait_mt(m, op, 10 * KIT_SECOND_NS, &c), 0);
        ck_assert_int_eq(c.status, -ETIMEDOUT);
        uv_timer_init(&lp.loop, &lp.timer);
        uv_timer_start(&lp.timer, loop_stop, 5000, 0);
        while (done.count == 0 && uv_is_active((uv_handle_t *)&lp.timer))
            uv_run(&lp.loop, UV_RUN_ONCE);
        ck_assert_uint_eq(done.count, 1);
        ck_assert_int_eq(done.status, -ETIMEDOUT);
        uv_close((uv_handle_t *)&lp.timer, NULL);
        kit_release(m, &held, 1);
        ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
        ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0); /* once more, before the handles are closed */
        loop_end();
    }
}
END_TEST

static struct {
    kvbm_manager *other;
    kvbm_block blocks[2], others;
    int depth, depth_max, done;
} nest;

static void nest_inner(void *user, const kvbm_completion *c) {
    (void)user;
    (void)c;
    ck_assert_int_ge((int)kvbm_pool_available_mt(lp.m, 0, KVBM_TIER_HOST), 0);
}

static void nest_outer(void *user, const kvbm_completion *c) {
    (void)user;
    ck_assert_int_eq(c->status, 0);
    nest.depth++;
    if (nest.depth > nest.depth_max)
        nest.depth_max = nest.depth;
    kvbm_submit s = {.size = sizeof(s), .done = nest_inner};
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &nest.others};
    ck_assert_int_eq(kvbm_allocate_mt(nest.other, &a, &s, NULL), 0);
    nest.depth--;
    nest.done++;
}

static void available_run(void *arg) {
    _Atomic uint32_t *done = arg;
    ck_assert_int_eq((int)kvbm_pool_available_mt(lp.m, 0, KVBM_TIER_HOST), 4);
    atomic_fetch_add(done, 1);
}

/* Only the loop's thread could settle, and it waits for the one that asks. */
START_TEST(pool_is_told_even_while_the_loops_thread_does_not_run) {
    const struct kvbm_os *os = kvbm_os_real();
    kvbm_manager *m = loop_open(KVBM_OPEN_NO_BORROW, 4);
    struct kvbm_thread thread;
    _Atomic uint32_t done = 0;
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, available_run, &done, "asks"), 0);
    ck_assert(kit_wait_count(&done, 1));
    os->thread_join(os->ctx, &thread);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    loop_end();
}
END_TEST

/* A callback of the loop's manager calls another manager, whose callback asks the first one for its pool. */
START_TEST(callback_of_another_manager_does_not_run_the_loops_reactor_inside_itself) {
    kvbm_manager *m = loop_open(KVBM_OPEN_NO_BORROW, 4);
    memset(&nest, 0, sizeof(nest));
    nest.other = kit_open(4);
    for (int i = 0; i < 2; i++) {
        kvbm_submit s = {.size = sizeof(s), .done = nest_outer};
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &nest.blocks[i]};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, NULL), 0);
    }
    while (nest.done < 2)
        uv_run(&lp.loop, UV_RUN_ONCE);
    ck_assert_int_eq(nest.depth_max, 1);
    kit_release(m, nest.blocks, 2);
    kvbm_manager_release_mt(nest.other);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    loop_end();
}
END_TEST

static void other_thread_run(void *arg) {
    int *rc = arg;
    kvbm_block block;
    ck_assert_int_eq(kit_allocate(lp.m, &block, 1), 0);
    ck_assert_int_eq(kvbm_release_mt(lp.m, &block, 1), 0);
    *rc = kvbm_manager_close_mt(lp.m, 0);
}

START_TEST(other_threads_use_a_manager_on_a_callers_loop_and_may_not_close_it) {
    const struct kvbm_os *os = kvbm_os_real();
    kvbm_manager *m = loop_open(0, 4);
    struct kvbm_thread thread;
    int rc = 0;
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, other_thread_run, &rc, "other"), 0);
    os->thread_join(os->ctx, &thread);
    ck_assert_int_eq(rc, -EPERM);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    loop_end();
}
END_TEST

/* ------------------------------------------------------------------------------------------------------------ fork */

START_TEST(forked_child_is_refused_everywhere_and_the_parent_goes_on) {
    kvbm_manager *m = kit_open(4);
    kvbm_port *port;
    kvbm_block block;
    kvbm_key key = kit_key(1, 0);
    kvbm_completion c;
    kvbm_stats stats = {.size = sizeof(stats)};
    kvbm_pool_stats pool = {.size = sizeof(pool)};
    void *address;
    ck_assert_int_eq(kvbm_port_open(4, &port), 0);
    ck_assert_int_eq(kit_allocate(m, &block, 1), 0);
    pid_t child = fork();
    if (child == 0) {
        int bad = 0;
        uint8_t tier;
        kvbm_block out;
        bad += kit_allocate(m, &out, 1) != -KVBM_EFORKED;
        bad += kit_register(m, &block, &key, 1) != -KVBM_EFORKED;
        bad += kit_match(m, &key, 1, &out) != -KVBM_EFORKED;
        bad += kit_query(m, &key, 1, &tier) != -KVBM_EFORKED;
        bad += kvbm_cancel_mt(m, 1) != -KVBM_EFORKED;
        bad += kvbm_wait_mt(m, 1, 0, &c) != -KVBM_EFORKED;
        bad += kvbm_release_mt(m, &block, 1) != -KVBM_EFORKED;
        bad += kvbm_block_retain_mt(m, &block, 1) != -KVBM_EFORKED;
        bad += kvbm_block_state_mt(m, block) != -KVBM_EFORKED;
        bad += kvbm_block_key_mt(m, block, &key) != -KVBM_EFORKED;
        bad += kvbm_block_data_mt(m, block, 0, 0, &address) != -KVBM_EFORKED;
        bad += kvbm_block_append_tokens(m, block, NULL, 0) != -KVBM_EFORKED;
        bad += kvbm_block_tokens(m, block, NULL, 0) != -KVBM_EFORKED;
        bad += kvbm_manager_stats_mt(m, &stats) != -KVBM_EFORKED;
        bad += kvbm_pool_stats_mt(m, 0, KVBM_TIER_HOST, &pool) != -KVBM_EFORKED;
        bad += kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST) != -KVBM_EFORKED;
        bad += kvbm_manager_close_mt(m, 0) != -KVBM_EFORKED;
        bad += kvbm_port_drain(port, &c, 1) != -KVBM_EFORKED;
        bad += kvbm_port_fd(port) != -KVBM_EFORKED;
        bad += kvbm_port_want_credit_mt(port, m, NULL) != -KVBM_EFORKED;
        kvbm_port_close(port);
        kvbm_manager_release_mt(m);
        _exit(bad);
    }
    int status = -1;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_eq(WEXITSTATUS(status), 0);
    kit_release(m, &block, 1);
    kit_balance(m, 4, 0, 0, 0);
    kvbm_port_close(port);
    kit_end(m);
}
END_TEST

/* A child that goes on with its copy of the loop shares the eventfd by which the parent is woken. */
START_TEST(forked_child_that_runs_the_loop_takes_no_wake_up_from_the_parent) {
    kvbm_manager *m = loop_open(KVBM_OPEN_NO_BORROW, 1);
    kvbm_block block;
    struct kit_done done;
    kvbm_submit s = kit_callback(&done, 0);
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
    uv_run(&lp.loop, UV_RUN_NOWAIT);
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, NULL), 0); /* the wake-up is on its way */
    pid_t child = fork();
    if (child == 0) {
        int rc = uv_loop_fork(&lp.loop);
        for (int i = 0; i < 3 && rc == 0; i++)
            uv_run(&lp.loop, UV_RUN_NOWAIT);
        _exit(rc != 0 || done.count != 0);
    }
    int status = -1;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uv_timer_init(&lp.loop, &lp.timer);
    uv_timer_start(&lp.timer, loop_stop, 5000, 0);
    while (done.count == 0 && uv_is_active((uv_handle_t *)&lp.timer))
        uv_run(&lp.loop, UV_RUN_ONCE);
    ck_assert_uint_eq(done.count, 1);
    uv_close((uv_handle_t *)&lp.timer, NULL);
    kit_release(m, &block, 1);
    ck_assert_int_eq(kvbm_manager_close_mt(m, 0), 0);
    loop_end();
}
END_TEST

KIT_MAIN("close", close_ends_what_waits_and_refuses_what_comes,
         operations_queued_at_close_end_with_shutdown_and_give_their_blocks_back,
         callback_that_runs_holds_off_the_end_of_a_close, message_between_actors_may_outlive_the_last_operation,
         operation_nobody_waited_for_does_not_hold_up_a_close, thread_in_wait_hears_of_the_close,
         references_keep_memory_and_bytes_readable_after_close, submits_that_race_with_closes_are_answered_or_refused,
         manager_on_a_callers_loop_answers_there_and_leaves_it_clean, wait_on_the_loops_own_thread_runs_the_reactor,
         waiting_allocation_times_out_on_a_callers_loop, deadline_outlives_a_wait_on_the_loops_own_thread,
         pool_is_told_even_while_the_loops_thread_does_not_run,
         callback_of_another_manager_does_not_run_the_loops_reactor_inside_itself,
         other_threads_use_a_manager_on_a_callers_loop_and_may_not_close_it,
         forked_child_is_refused_everywhere_and_the_parent_goes_on,
         forked_child_that_runs_the_loop_takes_no_wake_up_from_the_parent)
