/*
 * operations_test.c - facts about requests: what is refused and why, how they end, and who hears of it.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"
#include "tests/support/random.h"

static struct kit_drive drive;

static kvbm_failure failure;

static kvbm_submit reporting(void) {
    static kvbm_completion completion;
    failure = (kvbm_failure){.size = sizeof(failure)};
    return (kvbm_submit){
        .size = sizeof(kvbm_submit), .flags = KVBM_SUBMIT_INLINE, .completion = &completion, .failure = &failure};
}

/* The submit was refused with `code`, and says `text`. */
#define REFUSED(call, error, wanted)                                                                                   \
    do {                                                                                                               \
        int refused_rc = (call);                                                                                       \
        ck_assert_msg(refused_rc == (error), "%s: %s", #call, kvbm_error_name_mt(refused_rc));                         \
        ck_assert_msg(strstr(failure.text, wanted) != NULL, "\"%s\" lacks \"%s\"", failure.text, wanted);              \
        ck_assert_int_eq(failure.code, error);                                                                         \
    } while (0)

START_TEST(allocate_refuses_each_bad_argument_by_name) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_submit s = reporting();
    kvbm_block block;
    kvbm_op op;
    const kvbm_allocate_args good = {.size = sizeof(good), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
    kvbm_allocate_args a = good;
    a.count = 0;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "count=0: must be 1 .. 1048576");
    a.count = KVBM_BATCH_COUNT_MAX + 1;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "count=1048577");
    a = good, a.blocks = NULL;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "blocks=NULL");
    a = good, a.group = 1;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "group=1, tier=1: no such pool");
    static const int tiers[] = {KVBM_TIER_DEVICE, KVBM_TIER_DISK, KVBM_TIER_REMOTE, 4, -1};
    for (int i = 0; i < 5; i++) {
        a = good, a.tier = tiers[i];
        REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "no such pool");
    }
    a = good, a.group = UINT32_MAX;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "no such pool");
    a = good, a.size = 8;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "args.size=8");
    REFUSED(kvbm_allocate_mt(m, NULL, &s, &op), -EINVAL, "args=NULL");
    ck_assert_int_eq(kvbm_allocate_mt(NULL, &good, &s, &op), -EINVAL);
    kvbm_stats stats = {.size = sizeof(stats)};
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
    ck_assert_uint_eq(stats.refused_count, 12);
    ck_assert_uint_eq(stats.operations_in_flight, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(submit_options_are_checked) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block block;
    kvbm_op op;
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
    kvbm_submit s = reporting();
    s.flags = 8;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "submit.flags=0x8");
    s = reporting(), s.completion = NULL;
    REFUSED(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL, "submit.completion=NULL");
    s = reporting();
    REFUSED(kvbm_allocate_mt(m, &a, &s, NULL), -EINVAL, "op=NULL");
    kvbm_key key = kit_key(1, 1);
    kvbm_match_args match = {.size = sizeof(match), .count = 1, .keys = &key, .blocks = &block};
    s = reporting(), s.flags |= KVBM_SUBMIT_WAIT;
    REFUSED(kvbm_match_mt(m, &match, &s, &op), -EINVAL, "KVBM_SUBMIT_WAIT");
    s = reporting(), s.size = 4;
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), -EINVAL);
    /* A header of before `failure` was added. */
    s = reporting(), s.size = offsetof(kvbm_submit, failure);
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 1);
    kit_release(m, &block, 1);
    /* One of after: unknown fields must be zero. */
    struct {
        kvbm_submit submit;
        uint64_t more;
    } later = {.submit = reporting()};
    later.submit.size = sizeof(later);
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &later.submit, &op), 1);
    kit_release(m, &block, 1);
    later.more = 1;
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &later.submit, &op), -E2BIG);
    /* No options at all: for kvbm_wait_mt. */
    kvbm_completion c;
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, NULL, &op), 0);
    ck_assert_int_eq(kvbm_wait_mt(m, op, KIT_SECOND_NS, &c), 0);
    ck_assert_int_eq(c.status, 0);
    kit_release(m, &block, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(register_refuses_each_bad_argument_by_name) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 4);
    options.flags = KVBM_OPEN_NO_BYTES;
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_submit s = reporting();
    kvbm_block block;
    kvbm_key key = kit_key(1, 1);
    kvbm_op op;
    ck_assert_int_eq(kit_allocate(m, &block, 1), 0);
    const kvbm_register_args good = {
        .size = sizeof(good), .count = 1, .blocks = &block, .keys = &key, .out_blocks = &block};
    kvbm_register_args a = good;
    a.count = 0;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "count=0");
    a = good, a.blocks = NULL;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "blocks=NULL");
    a = good, a.out_blocks = NULL;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "out_blocks=NULL");
    a = good, a.flags = 16;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "flags=0x10");
    a = good, a.priority = 8;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "priority=8: must be 0 .. 7");
    a = good, a.salt_bytes = 3;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "salt=NULL");
    a = good, a.flags = KVBM_REGISTER_ANONYMOUS;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "keys: must be NULL");
    a = good, a.keys = NULL;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "keys=NULL");
    /* Results would be written over blocks and keys that are still to be read. */
    kvbm_block blocks[3] = {block, block, block};
    kvbm_key keys[3] = {{{0}}};
    a = good, a.count = 2, a.blocks = blocks, a.out_blocks = blocks + 1, a.keys = keys;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "out_blocks: must be `blocks` itself or apart from it");
    a.blocks = blocks + 1, a.out_blocks = blocks;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "out_blocks: must be");
    a.out_blocks = blocks + 1, a.out_keys = keys + 1;
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -EINVAL, "out_keys: must be `keys` itself or apart from it");
    ck_assert_int_eq(kvbm_block_append_tokens(m, block, (uint32_t[]){1}, 1), -ENOTSUP);
    ck_assert_int_eq(kvbm_block_tokens(m, block, NULL, 0), -ENOTSUP);
    ck_assert_int_eq(kvbm_block_state_mt(m, block), KVBM_BLOCK_PARTIAL);
    kit_release(m, &block, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(register_that_is_refused_leaves_every_block_with_its_holder) {
    kvbm_group_options groups[2] = {kit_group(8), kit_group(8)};
    kvbm_options options = {.size = sizeof(options),
                            .groups = groups,
                            .group_count = 2,
                            .max_operations = 64,
                            .flags = KVBM_OPEN_NO_BYTES | KVBM_OPEN_TRACK_TOKENS};
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_block b[4], other, registered, stale;
    kvbm_key keys[4], key = kit_key(2, 0);
    kvbm_completion c;
    kit_keys(1, 0, 4, keys);
    ck_assert_int_eq(kit_allocate(m, b, 4), 0);
    ck_assert_int_eq(kit_allocate_c(m, 1, &other, 1, &c), 0);
    ck_assert_int_eq(kit_allocate(m, &registered, 1), 0);
    ck_assert_int_eq(kit_register(m, &registered, &key, 1), 0);
    ck_assert_int_eq(kit_allocate(m, &stale, 1), 0);
    kit_release(m, &stale, 1);
    const struct {
        kvbm_block third;
        int code;
    } cases[] = {{other, -KVBM_EWRONGMANAGER},
                 {registered, -KVBM_EIMMUTABLE},
                 {stale, -KVBM_ESTALE},
                 {b[0], -KVBM_EDUPLICATE},
                 {{0}, -KVBM_ESTALE},
                 {{b[0].bits | 0x3ffffff}, -KVBM_EWRONGMANAGER},
                 {{b[0].bits ^ (UINT64_C(1) << 40)}, -KVBM_ESTALE}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        kvbm_block blocks[4] = {b[0], b[1], cases[i].third, b[3]};
        kvbm_submit s = reporting();
        kvbm_op op;
        kvbm_register_args a = {.size = sizeof(a), .count = 4, .blocks = blocks, .keys = keys, .out_blocks = blocks};
        REFUSED(kvbm_register_mt(m, &a, &s, &op), cases[i].code, "blocks[2]: ");
        ck_assert_uint_eq(failure.index, 2);
        for (int j = 0; j < 4; j++)
            ck_assert_int_eq(kvbm_block_state_mt(m, b[j]), KVBM_BLOCK_PARTIAL);
    }
    /* Without keys the tokens must fill the page. */
    uint32_t tokens[KIT_PAGE_SIZE + 1] = {1, 2, 3, 4, 5};
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[0], tokens, KIT_PAGE_SIZE), 0);
    ck_assert_int_eq(kvbm_block_state_mt(m, b[0]), KVBM_BLOCK_COMPLETE);
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[1], tokens, KIT_PAGE_SIZE - 1), 0);
    kvbm_submit s = reporting();
    kvbm_op op;
    kvbm_register_args a = {.size = sizeof(a), .count = 2, .blocks = b, .out_blocks = b};
    REFUSED(kvbm_register_mt(m, &a, &s, &op), -KVBM_EINCOMPLETE, "blocks[1]: ");
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[1], tokens, 2), -EOVERFLOW);
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[1], tokens, 1), 0);
    ck_assert_int_eq(kvbm_block_set_tokens(m, b[1], tokens, KIT_PAGE_SIZE + 1), -EOVERFLOW);
    ck_assert_int_eq(kvbm_block_tokens(m, b[1], NULL, 0), KIT_PAGE_SIZE);
    ck_assert_int_eq(kvbm_register_mt(m, &a, &s, &op), 1);
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[0], tokens, 0), -KVBM_EIMMUTABLE);
    kit_release(m, b, 4);
    kit_release(m, &other, 1);
    kit_release(m, &registered, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(match_and_query_refuse_each_bad_argument_by_name) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_submit s = reporting();
    kvbm_block block;
    uint8_t tier;
    kvbm_key key = kit_key(1, 1);
    kvbm_op op;
    const kvbm_match_args good = {.size = sizeof(good), .count = 1, .keys = &key, .blocks = &block};
    kvbm_match_args a = good;
    a.group = 1;
    REFUSED(kvbm_match_mt(m, &a, &s, &op), -EINVAL, "group=1: must be 0 .. 0");
    a = good, a.count = KVBM_BATCH_COUNT_MAX + 1;
    REFUSED(kvbm_match_mt(m, &a, &s, &op), -EINVAL, "count=1048577");
    a = good, a.keys = NULL;
    REFUSED(kvbm_match_mt(m, &a, &s, &op), -EINVAL, "keys=NULL, blocks=given");
    a = good, a.tiers = 16;
    REFUSED(kvbm_match_mt(m, &a, &s, &op), -EINVAL, "tiers=0x10");
    a = good, a.tiers = KVBM_TIER_BIT(KVBM_TIER_DISK);
    REFUSED(kvbm_match_mt(m, &a, &s, &op), -EINVAL, "no such pool");
    a = good, a.tiers = KVBM_TIER_BIT(KVBM_TIER_DISK) | KVBM_TIER_BIT(KVBM_TIER_HOST);
    ck_assert_int_eq(kvbm_match_mt(m, &a, &s, &op), 1);
    kvbm_query_args q = {.size = sizeof(q), .count = 1, .keys = &key};
    REFUSED(kvbm_query_mt(m, &q, &s, &op), -EINVAL, "tiers=NULL");
    q.tiers = &tier, q.group = 9;
    REFUSED(kvbm_query_mt(m, &q, &s, &op), -EINVAL, "group=9");
    kit_driven_end(&drive);
}
END_TEST

START_TEST(holders_calls_tell_each_wrong_use) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block b[2], wrong = {0};
    kvbm_key key = kit_key(1, 0);
    void *address;
    ck_assert_int_eq(kit_allocate(m, b, 2), 0);
    ck_assert_int_eq(kvbm_block_retain_mt(m, b, 1), -KVBM_EMUTABLE);
    ck_assert_int_eq(kvbm_block_key_mt(m, b[0], &key), -KVBM_EMUTABLE);
    ck_assert_int_eq(kvbm_block_data_mt(m, b[0], 0, 0, &address), -KVBM_ENOBYTES);
    ck_assert_int_eq(kvbm_release_mt(m, &wrong, 1), -KVBM_ESTALE);
    wrong.bits = b[0].bits | (UINT64_C(1) << 28);
    ck_assert_int_eq(kvbm_release_mt(m, &wrong, 1), -KVBM_EWRONGMANAGER);
    ck_assert_int_eq(kvbm_block_state_mt(m, wrong), -KVBM_EWRONGMANAGER);
    ck_assert_int_eq(kvbm_release_mt(m, NULL, 1), -EINVAL);
    ck_assert_int_eq(kvbm_release_mt(m, NULL, 0), 0);
    ck_assert_int_eq(kvbm_release_mt(NULL, b, 1), -EINVAL);
    ck_assert_int_eq(kvbm_block_append_tokens(m, b[0], NULL, 1), -EINVAL);
    /* One stale handle among good ones: those are released all the same. */
    kvbm_block three[3] = {b[0], wrong, b[1]};
    ck_assert_int_eq(kvbm_release_mt(m, three, 3), -KVBM_EWRONGMANAGER);
    kit_balance(m, 4, 0, 0, 0);
    ck_assert_int_eq(kvbm_release_mt(m, b, 2), -KVBM_ESTALE);
    kit_balance(m, 4, 0, 0, 0);
    /* Retain: all or none. */
    ck_assert_int_eq(kit_allocate(m, b, 2), 0);
    ck_assert_int_eq(kit_register(m, b, &key, 1), 0);
    ck_assert_int_eq(kvbm_block_retain_mt(m, b, 2), -KVBM_EMUTABLE);
    kit_release(m, b, 2);
    kit_balance(m, 3, 1, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(handle_of_another_manager_is_refused) {
    struct kit_drive other;
    kvbm_manager *a = kit_driven(&drive, 64), *b = kit_driven(&other, 64);
    kvbm_block mine[64], theirs[64];
    ck_assert_int_eq(kit_allocate(a, mine, 64), 0);
    ck_assert_int_eq(kit_allocate(b, theirs, 64), 0);
    for (int i = 0; i < 64; i++) {
        ck_assert_int_eq(kvbm_block_state_mt(a, theirs[i]), -KVBM_ESTALE);
        ck_assert_int_eq(kvbm_release_mt(b, &mine[i], 1), -KVBM_ESTALE);
    }
    kit_release(a, mine, 64);
    kit_release(b, theirs, 64);
    kit_driven_end(&other);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(full_operation_pool_returns_eagain_and_takes_nothing) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 4);
    options.max_operations = 16;
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_block held[4], out, blocks[2];
    struct kit_done done[16];
    kvbm_op ops[16];
    kvbm_key keys[2];
    kit_keys(1, 0, 2, keys);
    ck_assert_int_eq(kit_allocate(m, held, 4), 0);
    memcpy(blocks, held, sizeof(blocks));
    for (int i = 0; i < 16; i++) {
        kvbm_submit s = kit_callback(&done[i], KVBM_SUBMIT_WAIT);
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &ops[i]), 0);
    }
    kvbm_submit s = reporting();
    kvbm_op op;
    kvbm_register_args r = {.size = sizeof(r), .count = 2, .blocks = blocks, .keys = keys, .out_blocks = blocks};
    REFUSED(kvbm_register_mt(m, &r, &s, &op), -EAGAIN, "all 16 operations");
    ck_assert_int_eq(kvbm_block_state_mt(m, held[0]), KVBM_BLOCK_PARTIAL);
    for (int i = 0; i < 16; i++) {
        ck_assert_int_eq(kvbm_cancel_mt(m, ops[i]), 0);
        ck_assert_int_eq(done[i].status, -ECANCELED);
    }
    ck_assert_int_eq(kvbm_register_mt(m, &r, &s, &op), 1);
    kit_release(m, held, 4);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(full_lane_returns_eagain_and_keeps_ownership) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 16);
    kvbm_manager *m = kit_driven_with(&drive, &options, 4);
    kvbm_block held[4], out[8];
    kvbm_key keys[4];
    struct kit_done done[8];
    kit_keys(1, 0, 4, keys);
    ck_assert_int_eq(kit_allocate(m, held, 4), 0);
    kit_take(&drive);
    int accepted = 0;
    kvbm_op op = 77, cancelled = 0;
    for (; accepted < 8; accepted++) {
        kvbm_submit s = kit_callback(&done[accepted], 0);
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out[accepted]};
        int rc = kvbm_allocate_mt(m, &a, &s, &op);
        if (rc == -EAGAIN)
            break;
        ck_assert_int_eq(rc, 0);
        cancelled = op;
    }
    ck_assert_int_eq(accepted, 3); /* a ring of 4 holds 3 */
    ck_assert_uint_eq(op, 0);
    kvbm_submit s = reporting();
    kvbm_register_args r = {.size = sizeof(r), .count = 4, .blocks = held, .keys = keys, .out_blocks = held};
    REFUSED(kvbm_register_mt(m, &r, &s, &op), -EAGAIN, "lane");
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(kvbm_block_append_tokens(m, held[i], NULL, 0), 0); /* not claimed */
    /* Cancelling needs no room in that lane. */
    ck_assert_int_eq(kvbm_cancel_mt(m, cancelled), 0);
    kit_park(&drive);
    ck_assert_int_eq(done[0].status, 0);
    ck_assert_int_eq(done[1].status, 0);
    ck_assert_int_eq(done[2].status, -ECANCELED);
    kit_release(m, held, 4);
    kit_release(m, out, 2);
    kit_balance(m, 16, 0, 0, 0);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(operation_cancelled_or_late_before_its_turn_has_no_effect) {
    for (int late = 0; late < 2; late++) {
        kvbm_manager *m = kit_driven(&drive, 8);
        kvbm_block held[2], out[2];
        kvbm_key keys[2];
        struct kit_done done[4];
        uint8_t tiers[2];
        kvbm_op ops[4];
        kit_keys(1, 0, 2, keys);
        ck_assert_int_eq(kit_allocate(m, held, 2), 0);
        kit_take(&drive);
        kvbm_submit s[4];
        for (int i = 0; i < 4; i++) {
            s[i] = kit_callback(&done[i], 0);
            s[i].timeout_ns = late ? 100 : 0;
        }
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 2, .blocks = out};
        kvbm_register_args r = {.size = sizeof(r), .count = 2, .blocks = held, .keys = keys, .out_blocks = held};
        kvbm_match_args mt = {.size = sizeof(mt), .count = 2, .keys = keys, .blocks = out};
        kvbm_query_args q = {.size = sizeof(q), .count = 2, .keys = keys, .tiers = tiers};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s[0], &ops[0]), 0);
        ck_assert_int_eq(kvbm_register_mt(m, &r, &s[1], &ops[1]), 0);
        ck_assert_int_eq(kvbm_match_mt(m, &mt, &s[2], &ops[2]), 0);
        ck_assert_int_eq(kvbm_query_mt(m, &q, &s[3], &ops[3]), 0);
        ck_assert_int_eq(kvbm_release_mt(m, held, 2), -KVBM_ENOTOWNED);
        if (late)
            atomic_fetch_add(&drive.now_ns, 100);
        else
            for (int i = 0; i < 4; i++)
                ck_assert_int_eq(kvbm_cancel_mt(m, ops[i]), 0);
        kit_park(&drive);
        for (int i = 0; i < 4; i++) {
            ck_assert_uint_eq(done[i].count, 1);
            ck_assert_int_eq(done[i].status, late ? -ETIMEDOUT : -ECANCELED);
            ck_assert_uint_eq(done[i].completion.count, 0);
            ck_assert_int_eq(kvbm_cancel_mt(m, ops[i]), 0); /* has ended */
        }
        kit_balance(m, 6, 0, 0, 2);
        kit_release(m, held, 2); /* unclaimed */
        kvbm_stats stats = {.size = sizeof(stats)};
        ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
        ck_assert_uint_eq(late ? stats.timed_out_count : stats.cancelled_count, 4);
        kit_driven_end(&drive);
    }
}
END_TEST

START_TEST(late_cancel_does_not_hit_the_next_operation_of_the_object) {
    kvbm_manager *m = kit_driven(&drive, 2);
    kvbm_block held[2], out;
    struct kit_done done;
    kvbm_completion c;
    kvbm_op first, second;
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &held[0]};
    kvbm_submit s = {.size = sizeof(s), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &first), 1);
    a.blocks = &held[1];
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &second), 1);
    s = kit_callback(&done, KVBM_SUBMIT_WAIT);
    a.blocks = &out;
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &second), 0);
    ck_assert_uint_eq((uint32_t)first, (uint32_t)second);
    ck_assert_int_eq(kvbm_cancel_mt(m, first), 0);
    ck_assert_uint_eq(done.count, 0);
    ck_assert_int_eq(kvbm_cancel_mt(m, second + (UINT64_C(2) << 32)), -EINVAL); /* not given out yet */
    ck_assert_int_eq(kvbm_cancel_mt(m, second + (UINT64_C(1) << 32)), -EINVAL);
    ck_assert_int_eq(kvbm_cancel_mt(m, 0), -EINVAL);
    ck_assert_int_eq(kvbm_cancel_mt(m, 12345678), -EINVAL);
    ck_assert_int_eq(kvbm_cancel_mt(m, second), 0);
    ck_assert_int_eq(done.status, -ECANCELED);
    kit_release(m, held, 2);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(inline_submit_returns_one_and_nothing_follows) {
    kvbm_manager *m = kit_driven(&drive, 4);
    kvbm_block block;
    kvbm_op op;
    kvbm_completion c;
    struct kit_done done;
    kvbm_submit s = kit_callback(&done, KVBM_SUBMIT_INLINE);
    s.completion = &c;
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &block};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 1);
    ck_assert_int_eq(c.status, 0);
    ck_assert_int_eq(c.kind, KVBM_OP_ALLOCATE);
    ck_assert_ptr_eq(c.user, &done);
    ck_assert_uint_eq(done.count, 0);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), -EINVAL);
    /* Not answerable on the spot: the callback follows, once. */
    kit_take(&drive);
    kvbm_block second;
    a.blocks = &second;
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 0);
    kit_park(&drive);
    ck_assert_uint_eq(done.count, 1);
    ck_assert_int_eq(done.status, 0);
    kit_release(m, &block, 1);
    kit_release(m, &second, 1);
    kit_driven_end(&drive);
}
END_TEST

START_TEST(wait_tells_what_it_cannot_wait_for) {
    kvbm_manager *m = kit_driven(&drive, 2);
    kvbm_block held[2], out;
    kvbm_op op;
    kvbm_completion c;
    struct kit_done done;
    ck_assert_int_eq(kit_allocate(m, held, 2), 0);
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &out};
    kvbm_submit s = kit_callback(&done, KVBM_SUBMIT_WAIT);
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 0);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), -EINVAL); /* has a callback */
    ck_assert_int_eq(kvbm_cancel_mt(m, op), 0);
    s = (kvbm_submit){.size = sizeof(s), .flags = KVBM_SUBMIT_WAIT};
    ck_assert_int_eq(kvbm_allocate_mt(m, &a, &s, &op), 0);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), -ETIMEDOUT);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, NULL), -EINVAL);
    ck_assert_int_eq(kvbm_wait_mt(m, op + 1, 0, &c), -EINVAL);
    ck_assert_int_eq(kvbm_wait_mt(NULL, op, 0, &c), -EINVAL);
    ck_assert_int_eq(kvbm_cancel_mt(m, op), 0);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), 0);
    ck_assert_int_eq(c.status, -ECANCELED);
    ck_assert_int_eq(kvbm_wait_mt(m, op, 0, &c), -EINVAL);
    kit_release(m, held, 2);
    kit_driven_end(&drive);
}
END_TEST

static struct {
    kvbm_manager *m;
    int wait_rc, close_rc, depth;
    kvbm_op op;
    kvbm_block blocks[64];
    _Atomic uint32_t ended;
} chain;

/* Submits the next allocation from inside the callback of the last, and releases what that one got. */
static void on_chain(void *user, const kvbm_completion *c) {
    (void)user;
    kvbm_completion none;
    ck_assert_int_eq(c->status, 0);
    chain.wait_rc = kvbm_wait_mt(chain.m, c->op, 0, &none);
    chain.close_rc = kvbm_manager_close_mt(chain.m, 0);
    kit_release(chain.m, &chain.blocks[chain.depth], 1);
    ck_assert_int_ge((int)kvbm_pool_available_mt(chain.m, 0, KVBM_TIER_HOST), 1);
    if (++chain.depth == 64) {
        atomic_store(&chain.ended, 1);
        return;
    }
    kvbm_submit s = {.size = sizeof(s), .done = on_chain};
    kvbm_allocate_args a = {
        .size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = &chain.blocks[chain.depth]};
    ck_assert_int_eq(kvbm_allocate_mt(chain.m, &a, &s, &chain.op), 0);
}

START_TEST(callbacks_submit_and_release_and_must_not_wait_or_close) {
    chain.m = kit_open(1);
    chain.depth = 0;
    kvbm_submit s = {.size = sizeof(s), .done = on_chain};
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = chain.blocks};
    ck_assert_int_eq(kvbm_allocate_mt(chain.m, &a, &s, NULL), 0);
    ck_assert(kit_wait_count(&chain.ended, 1));
    ck_assert_int_eq(chain.wait_rc, -EDEADLK);
    ck_assert_int_eq(chain.close_rc, -EDEADLK);
    kit_end(chain.m);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ hammering */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define HAMMER_ROUNDS 3000
#else
#define HAMMER_ROUNDS 30000
#endif
#define HAMMER_THREADS 4
#define HAMMER_BLOCKS  96
#define HAMMER_KEYS    160

struct hammer {
    kvbm_manager *m;
    uint64_t seed;
    /* Who holds a slot mutable: no two at once. */
    _Atomic uint32_t *owner;
    uint32_t number;
    uint64_t allocated, matched, refused, cancelled;
};

static int hammer_finish(kvbm_manager *m, int rc, kvbm_op op, kvbm_completion *c, uint64_t *random) {
    if (rc < 0)
        return rc;
    if (rc == 0) {
        if (random_below(random, 8) == 0)
            kvbm_cancel_mt(m, op);
        do {
            rc = kvbm_wait_mt(m, op, 60 * KIT_SECOND_NS, c);
        } while (rc == -EINTR);
        if (rc != 0)
            return rc;
    }
    return c->status;
}

static void hammer_allocate(struct hammer *h) {
    kvbm_block blocks[8];
    kvbm_key keys[8];
    kvbm_op op;
    kvbm_completion c;
    uint32_t n = 1 + random_below(&h->seed, 8);
    kvbm_submit s = {.size = sizeof(s), .flags = random_below(&h->seed, 2) ? KVBM_SUBMIT_INLINE : 0, .completion = &c};
    if (random_below(&h->seed, 4) == 0) {
        s.flags |= KVBM_SUBMIT_WAIT;
        s.timeout_ns = 200000;
    }
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = n, .blocks = blocks};
    int rc = kvbm_allocate_mt(h->m, &a, &s, &op);
    int status = hammer_finish(h->m, rc, op, &c, &h->seed);
    if (status != 0) {
        KVBM_ASSERT(status == -KVBM_ENOBLOCKS || status == -ETIMEDOUT || status == -ECANCELED || status == -EAGAIN);
        h->refused++;
        return;
    }
    h->allocated += n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t before = atomic_exchange(&h->owner[kvbm_block_slot(blocks[i])], h->number);
        KVBM_ASSERT(before == 0);
        keys[i] = kit_key(1, random_below(&h->seed, HAMMER_KEYS));
    }
    for (uint32_t i = 0; i < n; i++)
        atomic_store(&h->owner[kvbm_block_slot(blocks[i])], 0);
    if (random_below(&h->seed, 3) != 0) {
        kvbm_register_args r = {.size = sizeof(r),
                                .count = n,
                                .blocks = blocks,
                                .keys = keys,
                                .out_blocks = blocks,
                                .flags = random_below(&h->seed, 4) == 0 ? KVBM_REGISTER_KEEP_DUPLICATES : 0,
                                .priority = random_below(&h->seed, 8)};
        s.flags = random_below(&h->seed, 2) ? KVBM_SUBMIT_INLINE : 0;
        s.timeout_ns = 0;
        rc = kvbm_register_mt(h->m, &r, &s, &op);
        status = hammer_finish(h->m, rc, op, &c, &h->seed);
        KVBM_ASSERT(status == 0 || status == -ECANCELED);
        if (status == 0 && random_below(&h->seed, 2)) {
            KVBM_ASSERT(kvbm_block_retain_mt(h->m, blocks, n) == 0);
            KVBM_ASSERT(kvbm_release_mt(h->m, blocks, n) == 0);
        }
    }
    KVBM_ASSERT(kvbm_release_mt(h->m, blocks, n) == 0);
}

static void hammer_match(struct hammer *h) {
    kvbm_block blocks[4];
    kvbm_key keys[4], key;
    kvbm_op op;
    kvbm_completion c;
    kvbm_submit s = {.size = sizeof(s), .flags = random_below(&h->seed, 2) ? KVBM_SUBMIT_INLINE : 0, .completion = &c};
    for (int i = 0; i < 4; i++)
        keys[i] = kit_key(1, random_below(&h->seed, HAMMER_KEYS));
    kvbm_match_args a = {.size = sizeof(a), .count = 4, .keys = keys, .blocks = blocks};
    int rc = kvbm_match_mt(h->m, &a, &s, &op);
    int status = hammer_finish(h->m, rc, op, &c, &h->seed);
    if (status == -ECANCELED) {
        h->cancelled++;
        return;
    }
    KVBM_ASSERT(status == 0);
    for (uint64_t i = 0; i < c.count; i++) {
        KVBM_ASSERT(kvbm_block_key_mt(h->m, blocks[i], &key) == 0);
        KVBM_ASSERT(memcmp(&key, &keys[i], sizeof(key)) == 0);
    }
    h->matched += c.count;
    if (c.count > 0)
        KVBM_ASSERT(kvbm_release_mt(h->m, blocks, c.count) == 0);
}

static void hammer_run(void *arg) {
    struct hammer *h = arg;
    for (int i = 0; i < HAMMER_ROUNDS; i++) {
        if (random_below(&h->seed, 2))
            hammer_allocate(h);
        else
            hammer_match(h);
        if (random_below(&h->seed, 64) == 0) {
            kvbm_pool_stats p = {.size = sizeof(p)};
            KVBM_ASSERT(kvbm_pool_stats_mt(h->m, 0, KVBM_TIER_HOST, &p) == 0);
        }
    }
}

static void hammer(uint32_t flags) {
    static _Atomic uint32_t owner[HAMMER_BLOCKS];
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, HAMMER_BLOCKS);
    options.flags |= flags;
    kvbm_manager *m = kit_open_with(&options);
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[HAMMER_THREADS];
    struct hammer h[HAMMER_THREADS];
    uint64_t allocated = 0, matched = 0;
    for (uint32_t i = 0; i < HAMMER_THREADS; i++) {
        h[i] = (struct hammer){.m = m, .seed = i + 1, .owner = owner, .number = i + 1};
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], hammer_run, &h[i], "hammer"), 0);
    }
    for (int i = 0; i < HAMMER_THREADS; i++) {
        os->thread_join(os->ctx, &threads[i]);
        allocated += h[i].allocated;
        matched += h[i].matched;
    }
    kvbm_pool_stats s = kit_stats(m);
    ck_assert_uint_eq(s.leased_blocks + s.mutable_blocks + s.waiting_count, 0);
    ck_assert_uint_eq(s.free_blocks + s.cached_blocks, HAMMER_BLOCKS);
    ck_assert_uint_eq(s.allocated_count, allocated);
    ck_assert_uint_eq(s.matched_count, matched);
    ck_assert_uint_gt(matched, 0);
    kvbm_stats stats = {.size = sizeof(stats)};
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
    ck_assert_uint_eq(stats.operations_in_flight, 0);
    ck_assert_uint_eq(stats.accepted_count, stats.completed_count);
    kit_end(m);
}

START_TEST(threads_that_do_everything_at_once_lose_no_block_by_borrowing) {
    hammer(0);
}
END_TEST

START_TEST(threads_that_do_everything_at_once_lose_no_block_through_the_thread) {
    hammer(KVBM_OPEN_NO_BORROW);
}
END_TEST

KIT_MAIN("operations", allocate_refuses_each_bad_argument_by_name, submit_options_are_checked,
         register_refuses_each_bad_argument_by_name, register_that_is_refused_leaves_every_block_with_its_holder,
         match_and_query_refuse_each_bad_argument_by_name, holders_calls_tell_each_wrong_use,
         handle_of_another_manager_is_refused, full_operation_pool_returns_eagain_and_takes_nothing,
         full_lane_returns_eagain_and_keeps_ownership, operation_cancelled_or_late_before_its_turn_has_no_effect,
         late_cancel_does_not_hit_the_next_operation_of_the_object, inline_submit_returns_one_and_nothing_follows,
         wait_tells_what_it_cannot_wait_for, callbacks_submit_and_release_and_must_not_wait_or_close,
         threads_that_do_everything_at_once_lose_no_block_by_borrowing,
         threads_that_do_everything_at_once_lose_no_block_through_the_thread)
