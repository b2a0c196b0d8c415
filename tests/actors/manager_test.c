/*
 * manager_test.c - facts about opening: what is refused and how it is said, sizes of option structs, pools and layouts,
 * statistics, and what a failed open leaves behind.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

static struct kit_drive drive;

static kvbm_group_options group;
static kvbm_options options;
static kvbm_failure failure;
static kvbm_manager *opened;

static void reset(void) {
    options = kit_options(&group, 8);
    failure = (kvbm_failure){.size = sizeof(failure)};
    opened = (kvbm_manager *)&group;
}

/* The open was refused with `error` and a text with `wanted` in it; then starts anew. */
#define REFUSED(error, wanted)                                                                                         \
    do {                                                                                                               \
        ck_assert_int_eq(kvbm_manager_open(&options, &opened, &failure), error);                                       \
        ck_assert_int_eq(failure.code, error);                                                                         \
        ck_assert_msg(strstr(failure.text, wanted) != NULL, "\"%s\" lacks \"%s\"", failure.text, wanted);              \
        ck_assert_ptr_null(opened);                                                                                    \
        reset();                                                                                                       \
    } while (0)

START_TEST(open_refuses_each_bad_option_by_name) {
    reset();
    options.group_count = 0;
    REFUSED(-EINVAL, "group_count=0: must be 1 .. 8");
    options.group_count = 9;
    REFUSED(-EINVAL, "group_count=9");
    options.groups = NULL;
    REFUSED(-EINVAL, "groups=NULL");
    options.flags = 64;
    REFUSED(-EINVAL, "flags=0x40");
    options.max_operations = 15;
    REFUSED(-EINVAL, "max_operations=15: must be 16 .. 1048576");
    options.max_operations = (1u << 20) + 1;
    REFUSED(-EINVAL, "max_operations=1048577");
    options.name = "a name that is too long";
    REFUSED(-EINVAL, "name=\"a name that is too long\": must be at most 15 characters");
    options.huge_pages = 3;
    REFUSED(-EINVAL, "huge_pages=3");
    options.numa_node = -1;
    REFUSED(-EINVAL, "numa_node=-1");
    options.touch_threads = 5000;
    REFUSED(-EINVAL, "touch_threads=5000");
    options.log_level = 10;
    REFUSED(-EINVAL, "log_level=10");
    options.size = 3;
    REFUSED(-EINVAL, "options.size=3");
    group.size = 0;
    REFUSED(-EINVAL, "groups[0].size");
    group.host_blocks = 0;
    REFUSED(-EINVAL, "groups[].host_blocks=0: at least one group must have blocks");
    kvbm_group_options two[2] = {kit_group(3), kit_group(3)};
    two[1].size = 60000; /* is not read as far as that */
    options.groups = two;
    options.group_count = 2;
    REFUSED(-EINVAL, "groups[1].size");
    group.host_blocks = KVBM_SLOT_COUNT_MAX + UINT64_C(1);
    REFUSED(-EINVAL, "groups[0].host_blocks=67108865: must be 0 .. 67108864");
    group.policy = "no such";
    REFUSED(-EINVAL, "groups[0].policy=\"no such\": must be one of ");
    group.geometry.page_size = 0;
    REFUSED(-KVBM_EGEOMETRY, "page_size");
    group.geometry.num_layers = 0;
    REFUSED(-KVBM_EGEOMETRY, "num_layers");
    group.geometry.outer_dim = 3;
    REFUSED(-KVBM_EGEOMETRY, "outer_dim");
    group.geometry.dtype = 99;
    REFUSED(-KVBM_EGEOMETRY, "dtype");
    ck_assert_int_eq(kvbm_manager_open(NULL, &opened, &failure), -EINVAL);
    ck_assert_int_eq(kvbm_manager_open(&options, NULL, &failure), -EINVAL);
    /* No place for the story, or a place of an older header: only the code. */
    options.group_count = 0;
    ck_assert_int_eq(kvbm_manager_open(&options, &opened, NULL), -EINVAL);
    failure = (kvbm_failure){.size = offsetof(kvbm_failure, index), .index = 77};
    ck_assert_int_eq(kvbm_manager_open(&options, &opened, &failure), -EINVAL);
    ck_assert_uint_eq(failure.index, 77);
    ck_assert(failure.text[0] != '\0');
}
END_TEST

START_TEST(slab_that_the_machine_lacks_is_refused_without_touching_it) {
    reset();
    options.flags = 0;
    group.host_blocks = 1u << 26;
    group.geometry.inner_dim = 1u << 16;
    REFUSED(-ENOMEM, "groups[0].host_blocks=67108864");
}
END_TEST

START_TEST(option_structs_of_older_and_newer_headers_are_read) {
    reset();
    options.size = offsetof(kvbm_options, flags);
    options.flags = 0xffffffff; /* past its size: not read */
    group.host_blocks = 2;
    ck_assert_int_eq(kvbm_manager_open(&options, &opened, &failure), 0);
    kvbm_manager_release_mt(opened);
    struct {
        kvbm_options options;
        uint64_t more;
    } later = {.options = kit_options(&group, 2)};
    later.options.size = sizeof(later);
    ck_assert_int_eq(kvbm_manager_open(&later.options, &opened, &failure), 0);
    kvbm_manager_release_mt(opened);
    later.more = 1;
    ck_assert_int_eq(kvbm_manager_open(&later.options, &opened, &failure), -E2BIG);
    /* An array of groups is walked by the caller's size of a group. */
    struct {
        kvbm_group_options group;
        uint64_t more;
    } groups[2] = {{.group = kit_group(3)}, {.group = kit_group(5)}};
    groups[0].group.size = groups[1].group.size = sizeof(groups[0]);
    reset();
    options.groups = &groups[0].group;
    options.group_count = 2;
    kvbm_manager *m = kit_open_with(&options);
    ck_assert_int_eq(kvbm_pool_available_mt(m, 0, KVBM_TIER_HOST), 3);
    ck_assert_int_eq(kvbm_pool_available_mt(m, 1, KVBM_TIER_HOST), 5);
    kit_end(m);
}
END_TEST

START_TEST(pools_that_are_not_there_are_einval) {
    kvbm_group_options groups[2] = {kit_group(3), kit_group(0)};
    reset();
    options.groups = groups;
    options.group_count = 2;
    kvbm_manager *m = kit_open_with(&options);
    kvbm_pool_stats stats = {.size = sizeof(stats)};
    kvbm_block block;
    kvbm_completion c;
    ck_assert_ptr_nonnull(kvbm_manager_layout_mt(m, 0, KVBM_TIER_HOST));
    ck_assert_ptr_null(kvbm_manager_layout_mt(m, 1, KVBM_TIER_HOST));
    ck_assert_ptr_null(kvbm_manager_layout_mt(m, 0, KVBM_TIER_DEVICE));
    ck_assert_ptr_null(kvbm_manager_layout_mt(m, 0, -1));
    ck_assert_ptr_null(kvbm_manager_layout_mt(m, 99, 1));
    ck_assert_ptr_null(kvbm_manager_layout_mt(NULL, 0, 1));
    ck_assert_int_eq(kvbm_pool_available_mt(m, 1, KVBM_TIER_HOST), -EINVAL);
    ck_assert_int_eq(kvbm_pool_available_mt(NULL, 0, KVBM_TIER_HOST), -EINVAL);
    ck_assert_int_eq(kvbm_pool_stats_mt(m, 0, KVBM_TIER_DISK, &stats), -EINVAL);
    ck_assert_int_eq(kvbm_pool_stats_mt(m, 0, KVBM_TIER_HOST, NULL), -EINVAL);
    ck_assert_int_eq(kit_allocate_c(m, 1, &block, 1, &c), -EINVAL);
    /* A group without a pool can be asked for keys: it has none. */
    kvbm_key key = kit_key(1, 0);
    kvbm_submit s = {.size = sizeof(s), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    kvbm_op op;
    kvbm_match_args a = {.size = sizeof(a), .group = 1, .count = 1, .keys = &key, .blocks = &block};
    int rc = kvbm_match_mt(m, &a, &s, &op);
    if (rc == 0)
        rc = kvbm_wait_mt(m, op, KIT_SECOND_NS, &c);
    ck_assert_int_ge(rc, 0);
    ck_assert_uint_eq(c.count, 0);
    kit_end(m);
}
END_TEST

START_TEST(eight_groups_with_a_pool_each_work) {
    kvbm_group_options groups[8];
    for (uint32_t i = 0; i < 8; i++)
        groups[i] = kit_group(i + 1);
    reset();
    options.groups = groups;
    options.group_count = 8;
    kvbm_manager *m = kit_driven_with(&drive, &options, 0);
    kvbm_block blocks[8][8];
    kvbm_completion c;
    for (uint32_t i = 0; i < 8; i++) {
        ck_assert_int_eq(kit_allocate_c(m, i, blocks[i], i + 1, &c), 0);
        ck_assert_int_eq(kit_allocate_c(m, i, blocks[i], 1, &c), -KVBM_ENOBLOCKS);
    }
    for (uint32_t i = 0; i < 8; i++) {
        kit_release(m, blocks[i], i + 1);
        ck_assert_int_eq(kvbm_pool_available_mt(m, i, KVBM_TIER_HOST), (int64_t)i + 1);
    }
    kit_driven_end(&drive);
}
END_TEST

START_TEST(planes_of_all_blocks_are_apart_and_inside_the_slab) {
    static const int forms[] = {KVBM_LAYOUT_FULLY_CONTIGUOUS, KVBM_LAYOUT_LAYER_BLOCK_MAJOR,
                                KVBM_LAYOUT_LAYER_OUTER_MAJOR};
    for (int f = 0; f < 3; f++) {
        reset();
        options.flags = 0;
        group.geometry.form = forms[f];
        kvbm_manager *m = kit_open_with(&options);
        const struct kvbm_layout *layout = kvbm_manager_layout_mt(m, 0, KVBM_TIER_HOST);
        kvbm_block blocks[8];
        ck_assert_int_eq(kit_allocate(m, blocks, 8), 0);
        for (int pass = 0; pass < 2; pass++) {
            for (uint32_t b = 0; b < 8; b++) {
                for (uint32_t plane = 0; plane < 4; plane++) {
                    void *address;
                    ck_assert_int_eq(kvbm_block_data_mt(m, blocks[b], plane / 2, plane % 2, &address), 0);
                    if (pass == 0)
                        memset(address, (int)(b * 4 + plane + 1), layout->plane_bytes);
                    else
                        for (uint64_t i = 0; i < layout->plane_bytes; i++)
                            ck_assert_uint_eq(((unsigned char *)address)[i], b * 4 + plane + 1);
                }
            }
        }
        kvbm_stats stats = {.size = sizeof(stats)};
        ck_assert_int_eq(kvbm_manager_stats_mt(m, &stats), 0);
        ck_assert_uint_eq(stats.slab_bytes, layout->total_bytes);
        ck_assert_uint_gt(stats.tracked_bytes, 0);
        kit_release(m, blocks, 8);
        kit_end(m);
    }
}
END_TEST

START_TEST(statistics_count_what_happened) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_key keys[4];
    kvbm_block blocks[8], matched[4];
    uint8_t tiers[4];
    kit_keys(1, 0, 4, keys);
    ck_assert_int_eq(kit_allocate(m, blocks, 4), 0);
    ck_assert_int_eq(kit_register(m, blocks, keys, 3), 0);
    ck_assert_int_eq(kit_match(m, keys, 4, matched), 3);
    ck_assert_int_eq(kit_query(m, keys, 4, tiers), 3);
    kit_release(m, blocks, 4);
    kit_release(m, matched, 3);
    ck_assert_int_eq(kit_allocate(m, blocks, 7), 0);
    kvbm_stats s = {.size = sizeof(s)};
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &s), 0);
    ck_assert_uint_eq(s.accepted_count, 5);
    ck_assert_uint_eq(s.completed_count, 5);
    ck_assert_uint_eq(s.operations_in_flight, 0);
    ck_assert_uint_eq(s.operations_max, 256);
    ck_assert_uint_eq(s.registry_entries, 1);
    ck_assert_uint_eq(s.queue_depth, 0);
    ck_assert_uint_ge(s.borrow_count, 5);
    kvbm_pool_stats p = kit_stats(m);
    ck_assert_uint_eq(p.allocated_count, 11);
    ck_assert_uint_eq(p.released_count, 4);
    ck_assert_uint_eq(p.registered_count, 3);
    ck_assert_uint_eq(p.evicted_count, 2);
    ck_assert_uint_eq(p.matched_count, 3);
    ck_assert_uint_eq(p.missed_count, 1);
    ck_assert_uint_eq(p.block_bytes, 2 * 2 * KIT_PAGE_SIZE * 8 * 2);
    kit_release(m, blocks, 7);
    /* One in 64 of the operations answered at submit is timed, all others are. */
    for (int i = 0; i < 640; i++) {
        ck_assert_int_eq(kit_allocate(m, blocks, 1), 0);
        kit_release(m, blocks, 1);
    }
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &s), 0);
    ck_assert_uint_ge(s.allocate.count, 9);
    ck_assert_uint_le(s.allocate.count, 13);
    uint64_t before = s.allocate.count;
    struct kit_done done;
    for (int i = 0; i < 10; i++) {
        kvbm_submit submit = kit_callback(&done, 0);
        kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = 1, .blocks = blocks};
        ck_assert_int_eq(kvbm_allocate_mt(m, &a, &submit, NULL), 0);
        kit_release(m, blocks, 1);
    }
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &s), 0);
    ck_assert_uint_eq(s.allocate.count, before + 10);
    /* A struct of an older header gets what it has room for. */
    kvbm_stats old = {.size = offsetof(kvbm_stats, match)};
    old.query.count = 12345;
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &old), 0);
    ck_assert_uint_eq(old.query.count, 12345);
    old.size = 8;
    ck_assert_int_eq(kvbm_manager_stats_mt(m, &old), -EINVAL);
    kit_driven_end(&drive);
}
END_TEST

static _Atomic uint32_t log_lines;

static void count_log(void *user, int level, const char *component, const char *text) {
    (void)user, (void)level, (void)component, (void)text;
    atomic_fetch_add(&log_lines, 1);
}

START_TEST(versions_and_odd_uses_of_references) {
    ck_assert_str_eq(kvbm_version_mt(), KVBM_VERSION);
    kvbm_manager_retain_mt(NULL);
    kvbm_manager_release_mt(NULL);
    ck_assert_int_eq(kvbm_manager_close_mt(NULL, 0), -EINVAL);
    ck_assert(kvbm_manager_is_closed_mt(NULL));
    reset();
    options.log = count_log;
    options.name = "fifteen letters";
    kvbm_manager *m = kit_open_with(&options);
    kvbm_manager_retain_mt(m);
    kvbm_manager_release_mt(m);
    ck_assert(!kvbm_manager_is_closed_mt(m));
    kvbm_manager_release_mt(m); /* closes by itself */
    ck_assert_uint_eq(log_lines, 0);
}
END_TEST

START_TEST(checker_sees_what_is_broken) {
    kvbm_manager *m = kit_driven(&drive, 8);
    kvbm_key keys[3];
    char text[500];
    kit_keys(1, 0, 3, keys);
    kit_cache(m, keys, 3);
    kit_run(&drive);
    struct kvbm_slots *slots = &m->pools[0].slots;
    uint32_t cached = KVBM_SLOT_NONE;
    for (uint32_t i = 0; i < 8; i++)
        if (slots->slots[i].state_hint == KVBM_SLOT_CACHED)
            cached = i;
    ck_assert_uint_ne(cached, KVBM_SLOT_NONE);
    slots->slots[cached].state_hint = KVBM_SLOT_FREE;
    ck_assert_uint_gt(kvbm__manager_check(m, text, sizeof(text)), 0);
    slots->slots[cached].state_hint = KVBM_SLOT_CACHED;
    m->allocator_pools[0].free_count++;
    ck_assert_uint_gt(kvbm__manager_check(m, text, sizeof(text)), 0);
    m->allocator_pools[0].free_count--;
    m->allocator_pools[0].line_count++;
    ck_assert_uint_gt(kvbm__manager_check(m, NULL, 0), 0);
    m->allocator_pools[0].line_count--;
    kvbm__counter_add(&m->pools[0].r.registered, 1);
    ck_assert_uint_gt(kvbm__manager_check(m, text, 20), 0);
    ck_assert_uint_lt(strlen(text), 20);
    kvbm__counter_sub(&m->pools[0].r.registered, 1);
    kvbm_index_entry(&m->registry->index, slots->slots[cached].entry)->slots[KVBM_TIER_HOST] = 7;
    ck_assert_uint_gt(kvbm__manager_check(m, text, sizeof(text)), 0);
    kvbm_index_entry(&m->registry->index, slots->slots[cached].entry)->slots[KVBM_TIER_HOST] = cached;
    kit_check(m);
    kit_driven_end(&drive);
}
END_TEST

/* --------------------------------------------------------------------------------- failures while opening */

static struct {
    const struct kvbm_os *real;
    uint32_t fail_at, calls;
    int64_t open_maps;
} maps;

static int failing_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    if (++maps.calls == maps.fail_at)
        return -ENOMEM;
    int rc = maps.real->map(ctx, size, flags, address, got);
    maps.open_maps += rc == 0;
    return rc;
}

static void counting_unmap(void *ctx, void *address, size_t size) {
    maps.open_maps--;
    maps.real->unmap(ctx, address, size);
}

static void no_wake(void *ctx) {
    (void)ctx;
}

START_TEST(open_that_runs_out_of_memory_anywhere_leaves_nothing_behind) {
    struct kvbm_os os = *kvbm_os_real();
    maps.real = kvbm_os_real();
    os.map = failing_map;
    os.unmap = counting_unmap;
    struct kvbm__drive d = {.os = &os, .wake = no_wake};
    uint32_t failures = 0;
    bool refused = true;
    for (maps.fail_at = 1; refused; maps.fail_at++) {
        reset();
        options.touch_threads = UINT32_MAX;
        options.flags = KVBM_OPEN_TRACK_TOKENS;
        options.log_level = KVBM_LOG_OFF;
        maps.calls = 0;
        int rc = kvbm__manager_open_driven(&options, &d, &opened, &failure);
        refused = maps.calls >= maps.fail_at;
        if (rc == 0) { /* nothing was refused, or only a refinement of the slab */
            kvbm__manager_close_begin(opened);
            while (!kvbm__manager_drained(opened))
                kvbm_reactor_turn(kvbm__manager_reactor(opened), 16);
            kvbm__manager_finish(opened);
            kvbm_manager_release_mt(opened);
        } else {
            ck_assert_int_eq(rc, -ENOMEM);
            ck_assert_ptr_null(opened);
            failures++;
        }
        ck_assert_int_eq(maps.open_maps, 0);
    }
    ck_assert_uint_ge(failures, 10);
}
END_TEST

KIT_MAIN("manager", open_refuses_each_bad_option_by_name, slab_that_the_machine_lacks_is_refused_without_touching_it,
         option_structs_of_older_and_newer_headers_are_read, pools_that_are_not_there_are_einval,
         eight_groups_with_a_pool_each_work, planes_of_all_blocks_are_apart_and_inside_the_slab,
         statistics_count_what_happened, versions_and_odd_uses_of_references, checker_sees_what_is_broken,
         open_that_runs_out_of_memory_anywhere_leaves_nothing_behind)
