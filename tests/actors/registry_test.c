/*
 * registry_test.c - facts about registering, matching, duplicates, eviction order and priorities.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

static struct kit_drive drive;

static void fill_tokens(kvbm_manager *m, kvbm_block block, uint32_t first) {
    uint32_t tokens[KIT_PAGE_SIZE];
    for (uint32_t i = 0; i < KIT_PAGE_SIZE; i++)
        tokens[i] = first + i;
    ck_assert_int_eq(kvbm_block_set_tokens(m, block, tokens, KIT_PAGE_SIZE), 0);
}

static bool keys_equal(const kvbm_key *a, const kvbm_key *b) {
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* Which of keys[0..count) are resident, without touching their recency. */
static uint32_t resident_bits(kvbm_manager *m, const kvbm_key *keys, uint32_t count) {
    uint8_t tiers[32];
    uint32_t bits = 0;
    ck_assert_int_ge(kit_query(m, keys, count, tiers), 0);
    for (uint32_t i = 0; i < count; i++)
        bits |= (uint32_t)(tiers[i] != 0) << i;
    return bits;
}

START_TEST(registered_block_keeps_its_handle_and_is_matched_by_its_key) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_key keys[3], key;
    kvbm_block blocks[3], out[3], matched[3];
    bool duplicate[3] = {true, true, true};
    kit_keys(1, 0, 3, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, 3), 0);
    kvbm_register_args args = {.size = sizeof(args),
                               .count = 3,
                               .blocks = blocks,
                               .keys = keys,
                               .out_blocks = out,
                               .out_duplicate = duplicate};
    ck_assert_int_eq(kit_register_args(m, &args), 0);
    for (int i = 0; i < 3; i++) {
        ck_assert_uint_eq(out[i].bits, blocks[i].bits);
        ck_assert(!duplicate[i]);
        ck_assert_int_eq(kvbm_block_state_mt(m, out[i]), KVBM_BLOCK_REGISTERED);
        ck_assert_int_eq(kvbm_block_key_mt(m, out[i], &key), 0);
        ck_assert(keys_equal(&key, &keys[i]));
    }
    ck_assert_int_eq(kit_match(m, keys, 3, matched), 3);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(matched[i].bits, out[i].bits);
    kit_balance(m, 5, 0, 3, 0);
    kit_release(m, out, 3);
    kit_balance(m, 5, 0, 3, 0);
    kit_release(m, matched, 3);
    kit_balance(m, 5, 3, 0, 0);
    ck_assert_int_eq(kvbm_release_mt(m, matched, 3), -KVBM_ESTALE);
    ck_assert_int_eq(kit_match(m, keys, 3, matched), 3);
    ck_assert_uint_eq(matched[0].bits, out[0].bits);
    kit_release(m, matched, 3);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(match_ends_at_the_first_absent_key) {
    kvbm_manager *m = kit_driven(&drive, 16);
    kvbm_key keys[8];
    kvbm_block blocks[8];
    kit_keys(1, 0, 8, keys);
    kit_cache(m, keys, 3);
    kit_cache(m, keys + 4, 4);
    ck_assert_int_eq(kit_match(m, keys, 8, blocks), 3);
    kit_balance(m, 9, 4, 3, 0);
    kvbm_pool_stats s = kit_stats(m);
    ck_assert_uint_eq(s.matched_count, 3);
    ck_assert_uint_eq(s.missed_count, 5);
    kit_release(m, blocks, 3);
    ck_assert_int_eq(kit_match(m, keys + 3, 5, blocks), 0);
    ck_assert_int_eq(kit_match(m, keys, 0, NULL), 0);
    uint8_t tiers[8];
    ck_assert_int_eq(kit_query(m, keys, 8, tiers), 7);
    for (int i = 0; i < 8; i++)
        ck_assert_uint_eq(tiers[i], i == 3 ? 0 : KVBM_TIER_BIT(KVBM_TIER_HOST));
    kit_driven_end(&drive);
}
END_TEST

START_TEST(prefix_of_fifty_thousand_keys_is_matched_in_one_request) {
    enum { COUNT = 50000, CUT = 43210 };
    static kvbm_key keys[COUNT];
    static kvbm_block blocks[COUNT];
    kvbm_manager *m = kit_open(COUNT + 10);
    kit_keys(7, 0, COUNT, keys);
    kit_cache(m, keys, CUT);
    kit_cache(m, keys + CUT + 1, COUNT - CUT - 1);
    ck_assert_int_eq(kit_match(m, keys, COUNT, blocks), CUT);
    for (uint32_t i = 0; i < CUT; i += 977) {
        kvbm_key key;
        ck_assert_int_eq(kvbm_block_key_mt(m, blocks[i], &key), 0);
        ck_assert(keys_equal(&key, &keys[i]));
    }
    kit_balance(m, 11, COUNT - CUT - 1, CUT, 0);
    kit_release(m, blocks, CUT);
    kit_balance(m, 11, COUNT - 1, 0, 0);
    kit_end(m);
}
END_TEST

START_TEST(match_and_register_in_steps_let_others_in_between_and_stay_prefixes) {
    enum { COUNT = 2 * KVBM_STEP_BLOCKS + 17 };
    static kvbm_key keys[COUNT];
    static kvbm_block blocks[COUNT], matched[COUNT];
    kvbm_manager *m = kit_driven(&drive, COUNT);
    struct kit_done reg, match;
    kit_keys(1, 0, COUNT, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, COUNT), 0);
    kit_take(&drive);
    kvbm_submit submit = kit_callback(&reg, 0);
    kvbm_register_args rargs = {
        .size = sizeof(rargs), .count = COUNT, .blocks = blocks, .keys = keys, .out_blocks = blocks};
    ck_assert_int_eq(kvbm_register_mt(m, &rargs, &submit, NULL), 0);
    kit_turn(&drive, 1);
    ck_assert_int_eq(kvbm_block_state_mt(m, blocks[KVBM_STEP_BLOCKS - 1]), KVBM_BLOCK_REGISTERED);
    ck_assert_int_eq(kvbm_block_state_mt(m, blocks[KVBM_STEP_BLOCKS]), KVBM_BLOCK_PARTIAL);
    ck_assert_int_eq(kvbm_release_mt(m, &blocks[KVBM_STEP_BLOCKS], 1), -KVBM_ENOTOWNED);
    submit = kit_callback(&match, 0);
    kvbm_match_args margs = {.size = sizeof(margs), .count = COUNT, .keys = keys, .blocks = matched};
    ck_assert_int_eq(kvbm_match_mt(m, &margs, &submit, NULL), 0);
    for (int i = 0; i < 100; i++)
        kit_turn(&drive, 1);
    ck_assert_int_eq(reg.status, 0);
    ck_assert_int_eq(match.status, 0);
    for (uint64_t i = 0; i < match.completion.count; i++)
        ck_assert_uint_eq(matched[i].bits, blocks[i].bits);
    kit_park(&drive);
    kit_release(m, matched, match.completion.count);
    kit_release(m, blocks, COUNT);
    kit_balance(m, 0, COUNT, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(duplicate_returns_the_primary_and_its_own_block_goes_back) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_key keys[3];
    kvbm_block first[3], second[3], given[3];
    bool duplicate[3];
    kit_keys(1, 0, 3, keys);
    ck_assert_int_eq(kit_allocate(m, first, 2), 0);
    ck_assert_int_eq(kit_register(m, first, keys, 2), 0);
    kit_release(m, first, 1); /* one cached, one leased */
    ck_assert_int_eq(kit_allocate(m, second, 3), 0);
    memcpy(given, second, sizeof(given));
    kvbm_register_args args = {.size = sizeof(args),
                               .count = 3,
                               .blocks = second,
                               .keys = keys,
                               .out_blocks = second,
                               .out_duplicate = duplicate};
    ck_assert_int_eq(kit_register_args(m, &args), 0);
    ck_assert(duplicate[0] && duplicate[1] && !duplicate[2]);
    ck_assert_uint_eq(second[0].bits, first[0].bits);
    ck_assert_uint_eq(second[1].bits, first[1].bits);
    ck_assert_uint_eq(second[2].bits, given[2].bits);
    ck_assert_int_eq(kvbm_release_mt(m, given, 1), -KVBM_ESTALE);
    kit_balance(m, 5, 0, 3, 0);
    kvbm_pool_stats s = kit_stats(m);
    ck_assert_uint_eq(s.duplicate_count, 2);
    ck_assert_uint_eq(s.registered_count, 3);
    kit_release(m, second, 3);
    kit_release(m, first + 1, 1);
    kit_balance(m, 5, 3, 0, 0);
    /* The reclaimed blocks are free ones: all five can be had without an eviction. */
    kvbm_block all[5];
    ck_assert_int_eq(kit_allocate(m, all, 5), 0);
    ck_assert_uint_eq(kit_stats(m).evicted_count, 0);
    kit_release(m, all, 5);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(kept_duplicate_is_registered_not_matchable_and_resets_when_its_last_lease_ends) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key key = kit_key(1, 0), got;
    kvbm_block first, second, matched;
    ck_assert_int_eq(kit_allocate(m, &first, 1), 0);
    ck_assert_int_eq(kit_register(m, &first, &key, 1), 0);
    ck_assert_int_eq(kit_allocate(m, &second, 1), 0);
    kvbm_block given = second;
    bool duplicate = false;
    kvbm_register_args args = {.size = sizeof(args),
                               .count = 1,
                               .blocks = &second,
                               .keys = &key,
                               .out_blocks = &second,
                               .out_duplicate = &duplicate,
                               .flags = KVBM_REGISTER_KEEP_DUPLICATES};
    ck_assert_int_eq(kit_register_args(m, &args), 0);
    ck_assert(duplicate);
    ck_assert_uint_eq(second.bits, given.bits);
    ck_assert_int_eq(kvbm_block_state_mt(m, second), KVBM_BLOCK_REGISTERED);
    ck_assert_int_eq(kvbm_block_key_mt(m, second, &got), 0);
    ck_assert(keys_equal(&got, &key));
    ck_assert_int_eq(kit_match(m, &key, 1, &matched), 1);
    ck_assert_uint_eq(matched.bits, first.bits);
    kit_balance(m, 2, 0, 2, 0);
    ck_assert_int_eq(kvbm_block_retain_mt(m, &second, 1), 0);
    kit_release(m, &second, 1);
    kit_balance(m, 2, 0, 2, 0);
    kit_release(m, &second, 1);
    kit_balance(m, 3, 0, 1, 0);
    ck_assert_int_eq(kvbm_block_state_mt(m, second), -KVBM_ESTALE);
    kit_release(m, &first, 1);
    kit_release(m, &matched, 1);
    kit_balance(m, 3, 1, 0, 0);
    kvbm_block all[4];
    ck_assert_int_eq(kit_allocate(m, all, 4), 0);
    kit_release(m, all, 4);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(same_key_twice_in_one_request_is_a_duplicate_of_itself) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key keys[2] = {kit_key(1, 0), kit_key(1, 0)};
    kvbm_block blocks[2];
    ck_assert_int_eq(kit_allocate(m, blocks, 2), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, 2), 0);
    ck_assert_uint_eq(blocks[0].bits, blocks[1].bits);
    kit_balance(m, 3, 0, 1, 0);
    kit_release(m, blocks, 2);
    kit_balance(m, 3, 1, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(waiting_allocation_gets_the_block_of_a_duplicate) {
    kvbm_manager *m = kit_driven(&drive, 2);
    kvbm_key key = kit_key(1, 0);
    kvbm_block a, b, got;
    struct kit_done done;
    ck_assert_int_eq(kit_allocate(m, &a, 1), 0);
    ck_assert_int_eq(kit_register(m, &a, &key, 1), 0);
    ck_assert_int_eq(kit_allocate(m, &b, 1), 0);
    kvbm_submit submit = kit_callback(&done, KVBM_SUBMIT_WAIT);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &got};
    ck_assert_int_eq(kvbm_allocate_mt(m, &args, &submit, NULL), 0);
    ck_assert_uint_eq(done.count, 0);
    ck_assert_int_eq(kit_register(m, &b, &key, 1), 0);
    kit_run(&drive);
    ck_assert_int_eq(done.status, 0);
    kit_release(m, &a, 1);
    kit_release(m, &b, 1);
    kit_release(m, &got, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(keys_from_tokens_are_the_sequence_hashes) {
    for (int with_room = 0; with_room < 2; with_room++) {
        for (int with_parent = 0; with_parent < 2; with_parent++) {
            kvbm_manager *m = kit_driven(&drive, 8);
            uint32_t tokens[5 * KIT_PAGE_SIZE];
            kvbm_key expected[5], out[5], parent = kit_key(9, 9), got;
            kvbm_block blocks[5], matched[5];
            for (uint32_t i = 0; i < 5 * KIT_PAGE_SIZE; i++)
                tokens[i] = 70 + i;
            kvbm_keys_compute_mt(tokens, 5, KIT_PAGE_SIZE, "salt", 4, with_parent ? &parent : NULL, expected);
            ck_assert_int_eq(kit_allocate(m, blocks, 5), 0);
            for (uint32_t i = 0; i < 5; i++)
                fill_tokens(m, blocks[i], 70 + i * KIT_PAGE_SIZE);
            kvbm_register_args args = {.size = sizeof(args),
                                       .count = 5,
                                       .blocks = blocks,
                                       .out_blocks = blocks,
                                       .salt = "salt",
                                       .salt_bytes = 4,
                                       .parent = with_parent ? &parent : NULL,
                                       .out_keys = with_room ? out : NULL};
            ck_assert_int_eq(kit_register_args(m, &args), 0);
            for (int i = 0; i < 5; i++) {
                ck_assert_int_eq(kvbm_block_key_mt(m, blocks[i], &got), 0);
                ck_assert(keys_equal(&got, &expected[i]));
                if (with_room)
                    ck_assert(keys_equal(&out[i], &expected[i]));
            }
            ck_assert_int_eq(kit_match(m, expected, 5, matched), 5);
            uint32_t back[KIT_PAGE_SIZE];
            ck_assert_int_eq(kvbm_block_tokens(m, matched[4], back, KIT_PAGE_SIZE), KIT_PAGE_SIZE);
            ck_assert_uint_eq(back[0], 70 + 4 * KIT_PAGE_SIZE);
            kit_release(m, blocks, 5);
            kit_release(m, matched, 5);
            kit_driven_end(&drive);
        }
    }
}
END_TEST

START_TEST(anonymous_blocks_get_keys_of_their_own_by_which_they_match) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_key keys[6];
    kvbm_block blocks[6], matched[6];
    ck_assert_int_eq(kit_allocate(m, blocks, 6), 0);
    for (int half = 0; half < 2; half++) {
        kvbm_register_args args = {.size = sizeof(args),
                                   .count = 3,
                                   .blocks = blocks + 3 * half,
                                   .out_blocks = blocks + 3 * half,
                                   .out_keys = keys + 3 * half,
                                   .flags = KVBM_REGISTER_ANONYMOUS};
        ck_assert_int_eq(kit_register_args(m, &args), 0);
    }
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < i; j++)
            ck_assert(!keys_equal(&keys[i], &keys[j]));
    ck_assert_int_eq(kit_match(m, keys, 6, matched), 6);
    kit_release(m, blocks, 6);
    kit_release(m, matched, 6);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(lru_evicts_the_least_recently_released_and_of_a_chain_its_end) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 9);
    group.policy = "lru";
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_key keys[9];
    kvbm_block blocks[9], one;
    kit_keys(1, 0, 9, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, 9), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, 9), 0);
    kit_release(m, blocks + 6, 3);
    kit_release(m, blocks, 3);
    kit_release(m, blocks + 3, 3);
    static const uint32_t order[9] = {8, 7, 6, 2, 1, 0, 5, 4, 3};
    uint32_t left = (1u << 9) - 1;
    kvbm_block held[9];
    for (int i = 0; i < 9; i++) {
        ck_assert_int_eq(kit_allocate(m, &one, 1), 0);
        held[i] = one;
        left &= ~(1u << order[i]);
        ck_assert_uint_eq(resident_bits(m, keys, 9), left);
    }
    kit_release(m, held, 9);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(match_makes_recent_and_query_does_not) {
    kvbm_manager *m = kit_driven(&drive, 3);
    kvbm_key keys[3];
    kvbm_block matched, taken[2];
    kit_keys(1, 0, 3, keys);
    for (int i = 0; i < 3; i++)
        kit_cache(m, keys + i, 1);
    ck_assert_uint_eq(resident_bits(m, keys, 1), 1);
    ck_assert_int_eq(kit_match(m, keys + 1, 1, &matched), 1);
    kit_release(m, &matched, 1);
    ck_assert_int_eq(kit_allocate(m, taken, 2), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 3), 2);
    kit_release(m, taken, 2);
    kit_driven_end(&drive);
}
END_TEST

static void cache_with_priority(kvbm_manager *m, const kvbm_key *key, uint32_t priority, uint64_t ttl_ns) {
    kvbm_block block;
    ck_assert_int_eq(kit_allocate(m, &block, 1), 0);
    kvbm_register_args args = {.size = sizeof(args),
                               .count = 1,
                               .blocks = &block,
                               .keys = key,
                               .out_blocks = &block,
                               .priority = priority,
                               .priority_ttl_ns = ttl_ns};
    ck_assert_int_eq(kit_register_args(m, &args), 0);
    kit_release(m, &block, 1);
}

START_TEST(lower_priority_goes_first_and_an_expired_one_counts_as_none) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key keys[4];
    kvbm_block taken[4];
    kit_keys(1, 0, 4, keys);
    cache_with_priority(m, keys, 7, 1000);
    cache_with_priority(m, keys + 1, 3, 0);
    cache_with_priority(m, keys + 2, 0, 0);
    cache_with_priority(m, keys + 3, 7, 0);
    kit_run(&drive);
    ck_assert_int_eq(kit_allocate(m, taken, 1), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 4), 0xb);
    kit_advance(&drive, 999);
    ck_assert_int_eq(kit_allocate(m, taken + 1, 1), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 4), 0x9);
    kit_advance(&drive, 1);
    ck_assert_int_eq(kit_allocate(m, taken + 2, 1), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 4), 0x8);
    kit_release(m, taken, 3);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(registering_again_raises_a_priority_and_never_lowers_it) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key keys[3];
    kvbm_block taken[3];
    kit_keys(1, 0, 3, keys);
    cache_with_priority(m, keys, 1, 0);
    cache_with_priority(m, keys + 1, 5, 0);
    cache_with_priority(m, keys + 2, 3, 0);
    cache_with_priority(m, keys, 7, 0);
    cache_with_priority(m, keys + 1, 0, 0);
    ck_assert_int_eq(kit_allocate(m, taken, 2), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 3), 3);
    ck_assert_int_eq(kit_allocate(m, taken + 2, 1), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 3), 1);
    kit_release(m, taken, 3);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(leased_blocks_are_never_evicted) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_key keys[4];
    kvbm_block leased[4], taken[4];
    kit_keys(1, 0, 4, keys);
    kit_cache(m, keys, 4);
    ck_assert_int_eq(kit_match(m, keys, 2, leased), 2);
    ck_assert_int_eq(kit_allocate(m, taken, 3), -KVBM_ENOBLOCKS);
    ck_assert_int_eq(kit_allocate(m, taken, 2), 0);
    ck_assert_uint_eq(resident_bits(m, keys, 4), 3);
    kit_release(m, leased, 2);
    kit_release(m, taken, 2);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(evicted_block_makes_every_old_handle_stale) {
    kvbm_manager *m = kit_driven(&drive, 1);
    kvbm_key key = kit_key(1, 0), got;
    kvbm_block old, now;
    void *address;
    ck_assert_int_eq(kit_allocate(m, &old, 1), 0);
    ck_assert_int_eq(kit_register(m, &old, &key, 1), 0);
    kit_release(m, &old, 1);
    ck_assert_int_eq(kit_allocate(m, &now, 1), 0);
    ck_assert_uint_eq(kvbm_block_slot(now), kvbm_block_slot(old));
    ck_assert_int_eq(kvbm_release_mt(m, &old, 1), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_retain_mt(m, &old, 1), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_state_mt(m, old), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_key_mt(m, old, &got), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_data_mt(m, old, 0, 0, &address), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_tokens(m, old, NULL, 0), -KVBM_ESTALE);
    ck_assert_int_eq(kit_register(m, &old, &key, 1), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_block_state_mt(m, now), KVBM_BLOCK_PARTIAL);
    kit_release(m, &now, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(groups_do_not_see_each_others_keys) {
    kvbm_group_options groups[2] = {kit_group(4), kit_group(4)};
    kvbm_options options = {
        .size = sizeof(options), .groups = groups, .group_count = 2, .flags = KVBM_OPEN_NO_BYTES, .max_operations = 64};
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_key key = kit_key(1, 0);
    kvbm_block a, b[2], out;
    kvbm_completion c;
    ck_assert_int_eq(kit_allocate_c(m, 0, &a, 1, &c), 0);
    ck_assert_int_eq(kit_allocate_c(m, 1, b, 1, &c), 0);
    ck_assert_uint_eq(kvbm_block_group(b[0]), 1);
    ck_assert_int_eq(kit_register(m, &a, &key, 1), 0);
    kvbm_submit submit = {.size = sizeof(submit), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    kvbm_op op;
    kvbm_match_args args = {.size = sizeof(args), .group = 1, .count = 1, .keys = &key, .blocks = &out};
    ck_assert_int_eq(kvbm_match_mt(m, &args, &submit, &op), 1);
    ck_assert_uint_eq(c.count, 0);
    ck_assert_int_eq(kit_register(m, b, &key, 1), 0);
    ck_assert_int_eq(kvbm_match_mt(m, &args, &submit, &op), 1);
    ck_assert_uint_eq(c.count, 1);
    ck_assert_uint_eq(out.bits, b[0].bits);
    kit_release(m, &a, 1);
    kit_release(m, b, 1);
    kit_release(m, &out, 1);
    kit_driven_end(&drive);
}
END_TEST

KIT_MAIN("registry", registered_block_keeps_its_handle_and_is_matched_by_its_key, match_ends_at_the_first_absent_key,
         prefix_of_fifty_thousand_keys_is_matched_in_one_request,
         match_and_register_in_steps_let_others_in_between_and_stay_prefixes,
         duplicate_returns_the_primary_and_its_own_block_goes_back,
         kept_duplicate_is_registered_not_matchable_and_resets_when_its_last_lease_ends,
         same_key_twice_in_one_request_is_a_duplicate_of_itself, waiting_allocation_gets_the_block_of_a_duplicate,
         keys_from_tokens_are_the_sequence_hashes, anonymous_blocks_get_keys_of_their_own_by_which_they_match,
         lru_evicts_the_least_recently_released_and_of_a_chain_its_end, match_makes_recent_and_query_does_not,
         lower_priority_goes_first_and_an_expired_one_counts_as_none,
         registering_again_raises_a_priority_and_never_lowers_it, leased_blocks_are_never_evicted,
         evicted_block_makes_every_old_handle_stale, groups_do_not_see_each_others_keys)
