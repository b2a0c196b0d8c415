/*
 * allocator_test.c - facts about handing out free blocks and about the line of those that wait.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

static struct kit_drive drive;

/* A waiting allocation left to a callback. */
struct waiter {
    struct kit_done done;
    kvbm_block blocks[16];
    kvbm_op op;
};

static int wait_for(kvbm_manager *m, struct waiter *w, uint64_t count, uint64_t timeout_ns) {
    kvbm_submit submit = kit_callback(&w->done, KVBM_SUBMIT_WAIT);
    submit.timeout_ns = timeout_ns;
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = count, .blocks = w->blocks};
    return kvbm_allocate_mt(m, &args, &submit, &w->op);
}

START_TEST(blocks_are_distinct_and_within_the_pool) {
    kvbm_manager *m = kit_driven(&drive, 100);
    kvbm_block blocks[100];
    bool seen[100] = {false};
    ck_assert_int_eq(kit_allocate(m, blocks, 100), 0);
    for (int i = 0; i < 100; i++) {
        uint64_t slot = kvbm_block_slot(blocks[i]);
        ck_assert_uint_lt(slot, 100);
        ck_assert(!seen[slot]);
        seen[slot] = true;
        ck_assert_uint_eq(kvbm_block_group(blocks[i]), 0);
        ck_assert_int_eq(kvbm_block_tier(blocks[i]), KVBM_TIER_HOST);
        ck_assert_int_eq(kvbm_block_state_mt(m, blocks[i]), KVBM_BLOCK_PARTIAL);
    }
    kit_balance(m, 0, 0, 0, 100);
    kit_release(m, blocks, 100);
    kit_balance(m, 100, 0, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(shortage_takes_nothing_and_tells_both_numbers) {
    kvbm_manager *m = kit_driven(&drive, 10);
    kvbm_block blocks[16];
    kvbm_completion c;
    ck_assert_int_eq(kit_allocate(m, blocks, 7), 0);
    ck_assert_int_eq(kit_allocate_c(m, 0, blocks + 8, 4, &c), -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(c.requested, 4);
    ck_assert_uint_eq(c.available, 3);
    ck_assert_uint_eq(c.count, 0);
    kit_balance(m, 3, 0, 0, 7);
    ck_assert_int_eq(kit_allocate(m, blocks + 7, 3), 0);
    ck_assert_int_eq(kit_allocate_c(m, 0, blocks + 10, 1, &c), -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(c.available, 0);
    ck_assert_uint_eq(kit_stats(m).shortage_count, 2);
    kit_release(m, blocks, 10);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(count_above_the_capacity_fails_at_once_even_when_it_may_wait) {
    kvbm_manager *m = kit_driven(&drive, 8);
    struct waiter w;
    kvbm_block held[2];
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    ck_assert_int_eq(wait_for(m, &w, 9, 0), 0);
    ck_assert_uint_eq(w.done.count, 1);
    ck_assert_int_eq(w.done.status, -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(w.done.completion.requested, 9);
    ck_assert_uint_eq(w.done.completion.available, 6);
    kit_release(m, held, 2);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(release_then_allocate_sees_the_block_in_every_order_of_lanes) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block blocks[4];
    ck_assert_int_eq(kit_allocate(m, blocks, 4), 0);
    /* Held: the turn has drained its lanes before; both pushes come while it runs. */
    kit_take(&drive);
    struct waiter w;
    kvbm_submit submit = kit_callback(&w.done, 0);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = 4, .blocks = w.blocks};
    kit_release(m, blocks, 4);
    ck_assert_int_eq(kvbm_allocate_mt(m, &args, &submit, NULL), 0);
    kit_park(&drive);
    ck_assert_int_eq(w.done.status, 0);
    kit_release(m, w.blocks, 4);
    /* And from inside a turn: a callback releases and allocates. */
    kit_driven_end(&drive);
}
END_TEST

static struct {
    kvbm_manager *m;
    kvbm_block first[4], second[4];
    struct kit_done inner;
} nested;

static void release_and_allocate(void *user, const kvbm_completion *c) {
    (void)user;
    ck_assert_int_eq(c->status, 0);
    ck_assert_int_eq(kvbm_release_mt(nested.m, nested.first, 4), 0);
    kvbm_submit submit = kit_callback(&nested.inner, 0);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = 4, .blocks = nested.second};
    ck_assert_int_eq(kvbm_allocate_mt(nested.m, &args, &submit, NULL), 0);
}

START_TEST(callback_that_releases_and_allocates_sees_its_blocks) {
    nested.m = kit_driven(&drive, 4);
    kvbm_submit submit = {.size = sizeof(submit), .done = release_and_allocate};
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = 4, .blocks = nested.first};
    ck_assert_int_eq(kvbm_allocate_mt(nested.m, &args, &submit, NULL), 0);
    ck_assert_uint_eq(nested.inner.count, 1);
    ck_assert_int_eq(nested.inner.status, 0);
    kit_release(nested.m, nested.second, 4);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(reset_blocks_go_before_cached_ones) {
    kvbm_manager *m = kit_driven(&drive, 6);
    kvbm_key keys[3];
    kvbm_block blocks[6];
    kit_keys(1, 0, 3, keys);
    kit_cache(m, keys, 3);
    kit_balance(m, 3, 3, 0, 0);
    ck_assert_int_eq(kit_allocate(m, blocks, 3), 0);
    kit_balance(m, 0, 3, 0, 3);
    ck_assert_uint_eq(kit_stats(m).evicted_count, 0);
    ck_assert_int_eq(kit_allocate(m, blocks + 3, 2), 0);
    kit_balance(m, 0, 1, 0, 5);
    ck_assert_uint_eq(kit_stats(m).evicted_count, 2);
    ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), 1);
    kit_release(m, blocks, 5);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(shortage_with_cached_blocks_counts_them_and_evicts_none) {
    kvbm_manager *m = kit_driven(&drive, 6);
    kvbm_key keys[2];
    kvbm_block blocks[6], leased[2];
    kvbm_completion c;
    kit_keys(1, 0, 2, keys);
    kit_cache(m, keys, 2);
    ck_assert_int_eq(kit_allocate(m, blocks, 2), 0);
    ck_assert_int_eq(kit_allocate_c(m, 0, blocks + 2, 5, &c), -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(c.available, 4);
    kit_balance(m, 2, 2, 0, 2);
    ck_assert_int_eq(kit_match(m, keys, 2, leased), 2);
    ck_assert_int_eq(kit_allocate_c(m, 0, blocks + 2, 3, &c), -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(c.available, 2);
    kit_release(m, leased, 2);
    kit_release(m, blocks, 2);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(waiting_allocations_are_served_in_order) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_block held[8];
    struct waiter w[3];
    ck_assert_int_eq(kit_allocate(m, held, 8), 0);
    ck_assert_int_eq(wait_for(m, &w[0], 5, 0), 0);
    ck_assert_int_eq(wait_for(m, &w[1], 1, 0), 0);
    ck_assert_int_eq(wait_for(m, &w[2], 2, 0), 0);
    ck_assert_uint_eq(kit_stats(m).waiting_count, 3);
    /* Enough for the second, but the first comes first. */
    kit_release(m, held, 3);
    kit_run(&drive);
    ck_assert_uint_eq(w[0].done.count + w[1].done.count + w[2].done.count, 0);
    kit_release(m, held + 3, 3);
    kit_run(&drive);
    ck_assert_int_eq(w[0].done.status, 0);
    ck_assert_int_eq(w[1].done.status, 0);
    ck_assert_uint_eq(w[2].done.count, 0);
    kit_release(m, held + 6, 2);
    kit_run(&drive);
    ck_assert_int_eq(w[2].done.status, 0);
    ck_assert_uint_eq(kit_stats(m).waiting_count, 0);
    kit_release(m, w[0].blocks, 5);
    kit_release(m, w[1].blocks, 1);
    kit_release(m, w[2].blocks, 2);
    kit_balance(m, 8, 0, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(release_wakes_the_reactor_only_while_somebody_waits) {
    kvbm_manager *m = kit_driven(&drive, 2);
    kvbm_block held[2];
    struct waiter w;
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    uint64_t wakes = drive.wakes;
    kit_release(m, held, 2);
    ck_assert_uint_eq(drive.wakes, wakes);
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    ck_assert_int_eq(wait_for(m, &w, 1, 0), 0);
    wakes = drive.wakes;
    kit_release(m, held, 1);
    ck_assert_uint_eq(drive.wakes, wakes + 1);
    kit_run(&drive);
    ck_assert_int_eq(w.done.status, 0);
    wakes = drive.wakes;
    kit_release(m, held + 1, 1);
    ck_assert_uint_eq(drive.wakes, wakes);
    kit_release(m, w.blocks, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(while_others_wait_a_request_that_does_not_gets_nothing) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block held[4], one;
    struct waiter w;
    kvbm_completion c;
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    ck_assert_int_eq(wait_for(m, &w, 3, 0), 0);
    ck_assert_int_eq(kit_allocate_c(m, 0, &one, 1, &c), -KVBM_ENOBLOCKS);
    ck_assert_uint_eq(c.requested, 1);
    ck_assert_uint_eq(c.available, 0);
    kit_release(m, held, 2);
    kit_run(&drive);
    ck_assert_int_eq(w.done.status, 0);
    ck_assert_int_eq(kit_allocate(m, &one, 1), 0);
    kit_release(m, w.blocks, 3);
    kit_release(m, &one, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(lease_that_ends_serves_a_waiting_allocation_by_eviction) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key keys[4];
    kvbm_block blocks[4];
    struct waiter w;
    kit_keys(1, 0, 4, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, 4), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, 4), 0);
    ck_assert_int_eq(wait_for(m, &w, 3, 0), 0);
    kit_release(m, blocks, 1);
    kit_run(&drive);
    kit_release(m, blocks + 1, 1);
    kit_run(&drive);
    ck_assert_uint_eq(w.done.count, 0);
    kit_release(m, blocks + 2, 1);
    kit_run(&drive);
    ck_assert_int_eq(w.done.status, 0);
    kit_balance(m, 0, 0, 1, 3);
    kit_release(m, blocks + 3, 1);
    kit_release(m, w.blocks, 3);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(mixed_returns_of_mutable_and_cached_blocks_add_up_for_a_waiter) {
    /* What is evictable falls and rises again, and free blocks come between: no order of the two may strand it. */
    for (int order = 0; order < 6; order++) {
        kvbm_manager *m = kit_driven(&drive, 6);
        kvbm_key keys[3];
        kvbm_block cached[3], held[3], again[3];
        struct waiter w;
        kit_keys(1, 0, 3, keys);
        ck_assert_int_eq(kit_allocate(m, cached, 3), 0);
        ck_assert_int_eq(kit_register(m, cached, keys, 3), 0);
        ck_assert_int_eq(kit_allocate(m, held, 3), 0);
        kit_release(m, cached, 2);
        ck_assert_int_eq(wait_for(m, &w, 5, 0), 0);
        ck_assert_int_eq(kit_match(m, keys, 1, again), 1); /* evictable: 1 */
        for (int step = 0; step < 3; step++) {
            switch ((order + step * (order < 3 ? 1 : 2)) % 3) {
            case 0:
                kit_release(m, again, 1);
                break;
            case 1:
                kit_release(m, held, 3);
                break;
            default:
                kit_release(m, cached + 2, 1);
                break;
            }
            kit_run(&drive);
        }
        ck_assert_uint_eq(w.done.count, 1);
        ck_assert_int_eq(w.done.status, 0);
        kit_release(m, w.blocks, 5);
        kit_driven_end(&drive);
    }
}
END_TEST

START_TEST(waiting_allocation_times_out_at_its_deadline_and_lets_the_next_one_through) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block held[4];
    struct waiter w[2];
    ck_assert_int_eq(kit_allocate(m, held, 3), 0);
    ck_assert_int_eq(wait_for(m, &w[0], 2, 1000), 0);
    ck_assert_int_eq(wait_for(m, &w[1], 1, 0), 0);
    kit_advance(&drive, 999);
    ck_assert_uint_eq(w[0].done.count, 0);
    kit_advance(&drive, 1);
    ck_assert_int_eq(w[0].done.status, -ETIMEDOUT);
    ck_assert_uint_eq(w[0].done.completion.requested, 2);
    ck_assert_int_eq(w[1].done.status, 0);
    kvbm_stats stats = {.size = sizeof(stats)};
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
    ck_assert_uint_eq(stats.timed_out_count, 1);
    kit_release(m, held, 3);
    kit_release(m, w[1].blocks, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(cancelled_waiter_leaves_the_line_wherever_it_stands) {
    for (int victim = 0; victim < 3; victim++) {
        kvbm_manager *m = kit_driven(&drive, 6);
        kvbm_block held[6];
        struct waiter w[3];
        ck_assert_int_eq(kit_allocate(m, held, 6), 0);
        for (int i = 0; i < 3; i++)
            ck_assert_int_eq(wait_for(m, &w[i], 2, 0), 0);
        ck_assert_int_eq(kvbm_cancel_mt(m, w[victim].op), 0);
        ck_assert_int_eq(kvbm_cancel_mt(m, w[victim].op), 0);
        ck_assert_uint_eq(w[victim].done.count, 1);
        ck_assert_int_eq(w[victim].done.status, -ECANCELED);
        kit_release(m, held, 4);
        kit_run(&drive);
        for (int i = 0; i < 3; i++) {
            ck_assert_uint_eq(w[i].done.count, 1);
            if (i != victim) {
                ck_assert_int_eq(w[i].done.status, 0);
                kit_release(m, w[i].blocks, 2);
            }
        }
        kit_release(m, held + 4, 2);
        kit_balance(m, 6, 0, 0, 0);
        kit_driven_end(&drive);
    }
}
END_TEST

START_TEST(request_that_could_be_served_waits_behind_an_earlier_one) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block held[4];
    struct waiter w[2];
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    ck_assert_int_eq(wait_for(m, &w[0], 4, 0), 0);
    ck_assert_int_eq(wait_for(m, &w[1], 1, 0), 0);
    ck_assert_uint_eq(w[1].done.count, 0);
    ck_assert_int_eq(kvbm_cancel_mt(m, w[0].op), 0);
    kit_run(&drive);
    ck_assert_int_eq(w[0].done.status, -ECANCELED);
    ck_assert_int_eq(w[1].done.status, 0);
    kit_release(m, w[1].blocks, 1);
    kit_release(m, held, 2);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(two_shortages_in_flight_share_what_comes_free_without_a_loss) {
    /* Messages one by one: while one EVICT is on its way the other request sets free slots aside. */
    for (uint32_t budget = 1; budget < 5; budget++) {
        kvbm_manager *m = kit_driven(&drive, 8);
        kvbm_key keys[4];
        kvbm_block held[2];
        struct waiter w[3];
        kit_keys(1, 0, 4, keys);
        kit_cache(m, keys, 4);
        ck_assert_int_eq(kit_allocate(m, held, 2), 0); /* 2 free, 4 cached */
        kit_take(&drive);
        for (int i = 0; i < 3; i++)
            ck_assert_int_eq(wait_for(m, &w[i], 5, 0), 0);
        for (int i = 0; i < 40; i++)
            kit_turn(&drive, budget);
        uint32_t served = w[0].done.count + w[1].done.count + w[2].done.count;
        ck_assert_uint_eq(served, 1);
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < 3; i++) {
                if (w[i].done.count == 1 && w[i].done.status == 0) {
                    kit_release(m, w[i].blocks, 5);
                    w[i].done.status = 1;
                    break;
                }
            }
            for (int i = 0; i < 40; i++)
                kit_turn(&drive, budget);
        }
        for (int i = 0; i < 3; i++)
            ck_assert_int_eq(w[i].done.status, 1);
        kit_park(&drive);
        kit_release(m, held, 2);
        ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), 8);
        kit_driven_end(&drive);
    }
}
END_TEST

START_TEST(batch_larger_than_a_step_is_handed_out_whole_and_lets_others_in_between) {
    static kvbm_block blocks[3 * KVBM_STEP_BLOCKS + 5];
    const uint64_t count = 3 * KVBM_STEP_BLOCKS + 5;
    kvbm_manager *m = kit_driven(&drive, count + 10);
    struct kit_done big;
    struct waiter small;
    kit_take(&drive);
    kvbm_submit submit = kit_callback(&big, 0);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = count, .blocks = blocks};
    ck_assert_int_eq(kvbm_allocate_mt(m, &args, &submit, NULL), 0);
    ck_assert_int_eq(wait_for(m, &small, 10, 0), 0);
    kit_turn(&drive, 1);
    ck_assert_uint_eq(big.count, 0);
    ck_assert_uint_eq(kit_stats(m).mutable_blocks, count); /* set aside already: nobody else gets them */
    kit_park(&drive);
    ck_assert_int_eq(big.status, 0);
    ck_assert_int_eq(small.done.status, 0);
    kit_release(m, blocks, count);
    kit_release(m, small.blocks, 10);
    kit_balance(m, count + 10, 0, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(eviction_larger_than_a_step_ends_whole) {
    static kvbm_block blocks[2 * KVBM_STEP_BLOCKS + 100];
    static kvbm_key keys[2 * KVBM_STEP_BLOCKS + 100];
    const uint64_t count = 2 * KVBM_STEP_BLOCKS + 100;
    kvbm_manager *m = kit_driven(&drive, count);
    kit_keys(1, 0, count, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, count), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, count), 0);
    kit_release(m, blocks, count);
    kit_balance(m, 0, count, 0, 0);
    ck_assert_int_eq(kit_allocate(m, blocks, count), 0);
    kit_balance(m, 0, 0, 0, count);
    ck_assert_uint_eq(kit_stats(m).evicted_count, count);
    kit_release(m, blocks, count);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(eviction_that_falls_short_between_two_steps_gives_everything_back) {
    static kvbm_block blocks[KVBM_STEP_BLOCKS + 100], leased[100];
    static kvbm_key keys[KVBM_STEP_BLOCKS + 100];
    const uint64_t count = KVBM_STEP_BLOCKS + 100;
    kvbm_manager *m = kit_driven(&drive, count);
    kit_keys(1, 0, count, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, count), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, count), 0);
    kit_release(m, blocks, count);
    kit_take(&drive);
    struct kit_done big, match;
    kvbm_submit submit = kit_callback(&big, 0);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = count, .blocks = blocks};
    ck_assert_int_eq(kvbm_allocate_mt(m, &args, &submit, NULL), 0);
    kit_turn(&drive, 2); /* ALLOCATE, then the first step of EVICT */
    submit = kit_callback(&match, 0);
    kvbm_match_args margs = {.size = sizeof(margs), .count = 50, .keys = keys, .blocks = leased};
    ck_assert_int_eq(kvbm_match_mt(m, &margs, &submit, NULL), 0);
    /* The turn prefers what it has begun; run it so that the match gets in between by filling a streak. */
    kit_park(&drive);
    if (match.completion.count > 0) {
        ck_assert_int_eq(big.status, -KVBM_ENOBLOCKS);
        ck_assert_uint_eq(big.completion.available, count - match.completion.count);
        kit_release(m, leased, match.completion.count);
    } else {
        ck_assert_int_eq(big.status, 0);
        kit_release(m, blocks, count);
    }
    ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), (int64_t)count);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(pool_of_the_largest_size_opens_without_touching_its_slots) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, KVBM_SLOT_COUNT_MAX);
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_block blocks[3];
    /* The checker walks all slots: not here. */
    ck_assert_int_eq(kit_allocate(m, blocks, 3), 0);
    ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), (int64_t)KVBM_SLOT_COUNT_MAX - 3);
    kit_release(m, blocks, 3);
    kit_take(&drive);
    kvbm__manager_close_begin(m);
    while (!kvbm__manager_drained(m))
        kvbm_reactor_turn(kvbm__manager_reactor(m), 16);
    kvbm__manager_finish(m);
    kvbm_manager_release_mt(m);
}
END_TEST

KIT_MAIN("allocator", blocks_are_distinct_and_within_the_pool, shortage_takes_nothing_and_tells_both_numbers,
         count_above_the_capacity_fails_at_once_even_when_it_may_wait,
         release_then_allocate_sees_the_block_in_every_order_of_lanes,
         callback_that_releases_and_allocates_sees_its_blocks, reset_blocks_go_before_cached_ones,
         shortage_with_cached_blocks_counts_them_and_evicts_none, waiting_allocations_are_served_in_order,
         release_wakes_the_reactor_only_while_somebody_waits, while_others_wait_a_request_that_does_not_gets_nothing,
         lease_that_ends_serves_a_waiting_allocation_by_eviction,
         mixed_returns_of_mutable_and_cached_blocks_add_up_for_a_waiter,
         waiting_allocation_times_out_at_its_deadline_and_lets_the_next_one_through,
         cancelled_waiter_leaves_the_line_wherever_it_stands, request_that_could_be_served_waits_behind_an_earlier_one,
         two_shortages_in_flight_share_what_comes_free_without_a_loss,
         batch_larger_than_a_step_is_handed_out_whole_and_lets_others_in_between,
         eviction_larger_than_a_step_ends_whole, eviction_that_falls_short_between_two_steps_gives_everything_back,
         pool_of_the_largest_size_opens_without_touching_its_slots)
