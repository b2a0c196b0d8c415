/*
 * index_test.c - the index against a naive map, at high load, with every tag alike, and at its edges.
 */
#include "actors/index.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/dies.h"
#include "tests/support/random.h"
#include "tests/support/refusing_os.h"

/* The first two random numbers that an index takes. A key whose first eight bytes equal SECRET has hash 0 in group 0,
 * so that keys with one and the same tag can be made. */
#define SECRET UINT64_C(0x0123456789abcdef)
static const uint64_t secrets[2] = {SECRET, UINT64_C(0xfedcba9876543210)};

static kvbm_key key_make(uint64_t low, uint64_t high) {
    kvbm_key key;
    memcpy(key.bytes, &low, 8);
    memcpy(key.bytes + 8, &high, 8);
    return key;
}

/* Distinct for distinct n; `alike`: of one tag. */
static kvbm_key key_of(uint64_t n, bool alike) {
    uint64_t state = n;
    return alike ? key_make(SECRET, n) : key_make(random_next(&state), n);
}

static void open_index(struct kvbm_index *index, struct refusing_os *os, uint32_t capacity) {
    os->random = secrets;
    os->random_count = 2;
    refusing_os_init(os);
    ck_assert_int_eq(kvbm_index_open(index, &os->os, capacity), 0);
}

static void close_index(struct kvbm_index *index, struct refusing_os *os) {
    kvbm_index_close(index);
    kvbm_index_close(index);
    ck_assert_uint_eq(os->open_maps, 0);
}

/* ------------------------------------------------------------------------------------------------------- the model */

#define UNIVERSE 96
#define GROUPS   3

struct model {
    uint32_t entry[GROUPS][UNIVERSE]; /* KVBM_ENTRY_NONE: absent */
    uint32_t count;
    bool alike;
};

static void model_init(struct model *m, bool alike) {
    memset(m->entry, 0xff, sizeof(m->entry));
    m->count = 0;
    m->alike = alike;
}

static void check_find_all(const struct kvbm_index *index, const struct model *m) {
    for (uint32_t g = 0; g < GROUPS; g++) {
        for (uint32_t n = 0; n < UNIVERSE; n++) {
            kvbm_key key = key_of(n, m->alike);
            uint32_t found = kvbm_index_find(index, &key, g);
            ck_assert_uint_eq(found, m->entry[g][n]);
            if (found != KVBM_ENTRY_NONE)
                ck_assert(memcmp(&kvbm_index_entry(index, found)->key, &key, sizeof(key)) == 0);
        }
    }
}

static void check_find_many(const struct kvbm_index *index, const struct model *m, uint64_t *state) {
    kvbm_key keys[200];
    uint32_t names[200], found[201];
    uint64_t count = random_below(state, 201);
    uint32_t g = random_below(state, GROUPS);
    for (uint64_t i = 0; i < count; i++) {
        names[i] = random_below(state, UNIVERSE);
        keys[i] = key_of(names[i], m->alike);
    }
    memset(found, 0x5a, sizeof(found));
    ck_assert_uint_eq(kvbm_index_find_many(index, keys, count, g, 0, found), count);
    for (uint64_t i = 0; i < count; i++)
        ck_assert_uint_eq(found[i], m->entry[g][names[i]]);
    ck_assert_uint_eq(found[count], 0x5a5a5a5a);
    uint64_t expected = 0;
    while (expected < count && m->entry[g][names[expected]] != KVBM_ENTRY_NONE)
        expected++;
    expected += expected < count; /* the absent one is written too */
    memset(found, 0x5a, sizeof(found));
    ck_assert_uint_eq(kvbm_index_find_many(index, keys, count, g, 1, found), expected);
    for (uint64_t i = 0; i < expected; i++)
        ck_assert_uint_eq(found[i], m->entry[g][names[i]]);
    ck_assert_uint_eq(found[expected], 0x5a5a5a5a);
}

static void model_insert(struct kvbm_index *index, struct model *m, uint32_t g, uint32_t n) {
    kvbm_key key = key_of(n, m->alike);
    uint32_t entry = kvbm_index_insert(index, &key, g);
    if (m->count == index->entry_capacity) {
        ck_assert_uint_eq(entry, KVBM_ENTRY_NONE);
        return;
    }
    ck_assert_uint_lt(entry, index->entry_capacity);
    const struct kvbm_entry *e = kvbm_index_entry(index, entry);
    ck_assert_uint_eq(e->group, g);
    ck_assert_uint_eq(e->tiers | e->priority | e->flags | e->hit_count | e->depth, 0);
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++)
        ck_assert_uint_eq(e->slots[tier], KVBM_SLOT_NONE);
    m->entry[g][n] = entry;
    m->count++;
}

static void model_run(uint32_t capacity, bool alike, uint64_t seed) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    struct model m;
    uint64_t state = seed;
    open_index(&index, &os, capacity);
    model_init(&m, alike);
    for (int step = 0; step < 1500; step++) {
        uint32_t g = random_below(&state, GROUPS), n = random_below(&state, UNIVERSE);
        /* Phases of growth and of shrinking, so that the table is full and is empty for long. */
        bool grow = random_below(&state, 8) < (step / 250 % 2 ? 2 : 6);
        if (m.entry[g][n] == KVBM_ENTRY_NONE && grow) {
            model_insert(&index, &m, g, n);
        } else if (m.entry[g][n] != KVBM_ENTRY_NONE && !grow) {
            kvbm_index_remove(&index, m.entry[g][n]);
            m.entry[g][n] = KVBM_ENTRY_NONE;
            m.count--;
        }
        ck_assert_uint_eq(index.entry_count, m.count);
        ck_assert_uint_eq(kvbm_index_check(&index), 0);
        if (step % 16 == 0)
            check_find_all(&index, &m);
        check_find_many(&index, &m, &state);
    }
    close_index(&index, &os);
}

START_TEST(random_use_agrees_with_a_naive_map) {
    static const uint32_t capacities[] = {1, 2, 9, 10, 19, 76, 150, 288};
    for (uint64_t seed = 1; seed <= 3; seed++)
        model_run(capacities[_i], false, seed * 100 + (uint64_t)_i);
}
END_TEST

START_TEST(keys_of_one_tag_are_told_apart) {
    model_run(60, true, 4711);
    model_run(9, true, 4712);
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- single facts */

START_TEST(removal_shifts_back_so_that_probes_never_break) {
    /* Every key has home 0: one cluster, from which each is removed in turn while the others stay findable. */
    enum { N = 9 };
    for (uint32_t removed = 0; removed < N; removed++) {
        struct refusing_os os = {0};
        struct kvbm_index index;
        open_index(&index, &os, N);
        uint32_t entries[N];
        for (uint32_t n = 0; n < N; n++) {
            kvbm_key key = key_of(n, true);
            entries[n] = kvbm_index_insert(&index, &key, 0);
        }
        kvbm_index_remove(&index, entries[removed]);
        for (uint32_t n = 0; n < N; n++) {
            kvbm_key key = key_of(n, true);
            ck_assert_uint_eq(kvbm_index_find(&index, &key, 0), n == removed ? KVBM_ENTRY_NONE : entries[n]);
        }
        ck_assert_uint_eq(kvbm_index_check(&index), 0);
        close_index(&index, &os);
    }
}
END_TEST

START_TEST(clusters_wrap_around_the_end_of_the_table) {
    uint64_t wrapped = 0, state = 5;
    for (int round = 0; round < 400; round++) {
        struct refusing_os os = {0};
        struct kvbm_index index;
        open_index(&index, &os, 9); /* 16 buckets */
        uint32_t entries[9];
        for (uint32_t n = 0; n < 9; n++) {
            kvbm_key key = key_make(random_next(&state), random_next(&state));
            entries[n] = kvbm_index_insert(&index, &key, 0);
        }
        bool last = index.buckets[15] != 0, first = index.buckets[0] != 0;
        /* A bucket at 0 whose home is not 0 came round the end. */
        wrapped += last && first && (index.buckets[0] >> 32 & 15) != 0;
        for (uint32_t n = 0; n < 9; n++) {
            kvbm_index_remove(&index, entries[n]);
            ck_assert_uint_eq(kvbm_index_check(&index), 0);
        }
        for (uint32_t b = 0; b < 16; b++)
            ck_assert_uint_eq(index.buckets[b], 0);
        close_index(&index, &os);
    }
    ck_assert_uint_gt(wrapped, 20);
}
END_TEST

START_TEST(the_table_is_at_most_sixty_percent_full) {
    for (uint32_t capacity = 1; capacity < 3000; capacity++) {
        struct refusing_os os = {0};
        struct kvbm_index index;
        open_index(&index, &os, capacity);
        ck_assert_uint_le((uint64_t)capacity * 10, (index.bucket_mask + 1) * 6);
        ck_assert_uint_eq(kvbm_index_bytes(&index), (index.bucket_mask + 1) * 8 + (uint64_t)capacity * 64);
        ck_assert_uint_eq(os.open_bytes, kvbm_index_bytes(&index));
        close_index(&index, &os);
    }
}
END_TEST

START_TEST(a_full_index_refuses_and_takes_again_after_a_removal) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    uint32_t last = KVBM_ENTRY_NONE;
    open_index(&index, &os, 1000);
    for (uint32_t n = 0; n < 1000; n++) {
        kvbm_key key = key_of(n, false);
        last = kvbm_index_insert(&index, &key, 0);
        ck_assert_uint_eq(last, n); /* fresh entries in order: the map is touched from its start */
    }
    kvbm_key more = key_of(1000, false);
    for (int i = 0; i < 3; i++)
        ck_assert_uint_eq(kvbm_index_insert(&index, &more, 0), KVBM_ENTRY_NONE);
    ck_assert_uint_eq(kvbm_index_find(&index, &more, 0), KVBM_ENTRY_NONE);
    ck_assert_uint_eq(kvbm_index_check(&index), 0);
    kvbm_index_remove(&index, 17);
    ck_assert_uint_eq(kvbm_index_insert(&index, &more, 0), 17);
    ck_assert_uint_eq(kvbm_index_find(&index, &more, 0), 17);
    ck_assert_uint_eq(kvbm_index_check(&index), 0);
    close_index(&index, &os);
}
END_TEST

START_TEST(groups_are_separate_key_spaces) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    kvbm_key key = key_of(1, false);
    uint32_t entries[KVBM_GROUP_COUNT_MAX];
    open_index(&index, &os, 64);
    for (uint32_t g = 0; g < KVBM_GROUP_COUNT_MAX; g++) {
        ck_assert_uint_eq(kvbm_index_find(&index, &key, g), KVBM_ENTRY_NONE);
        entries[g] = kvbm_index_insert(&index, &key, g);
    }
    for (uint32_t g = 0; g < KVBM_GROUP_COUNT_MAX; g++)
        ck_assert_uint_eq(kvbm_index_find(&index, &key, g), entries[g]);
    kvbm_index_remove(&index, entries[3]);
    for (uint32_t g = 0; g < KVBM_GROUP_COUNT_MAX; g++)
        ck_assert_uint_eq(kvbm_index_find(&index, &key, g), g == 3 ? KVBM_ENTRY_NONE : entries[g]);
    close_index(&index, &os);
}
END_TEST

START_TEST(groups_are_told_apart_even_where_their_tags_agree) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    kvbm_key key = key_make(7, secrets[1]); /* the hash is 0 whatever the group */
    uint32_t entries[KVBM_GROUP_COUNT_MAX], found;
    open_index(&index, &os, 64);
    for (uint32_t g = 0; g < KVBM_GROUP_COUNT_MAX; g++) {
        ck_assert_uint_eq(kvbm_index_find(&index, &key, g), KVBM_ENTRY_NONE);
        entries[g] = kvbm_index_insert(&index, &key, g);
        ck_assert_uint_eq(index.buckets[g] >> 32, 0);
    }
    for (uint32_t g = 0; g < KVBM_GROUP_COUNT_MAX; g++) {
        ck_assert_uint_eq(kvbm_index_find(&index, &key, g), entries[g]);
        ck_assert_uint_eq(kvbm_index_find_many(&index, &key, 1, g, 1, &found), 1);
        ck_assert_uint_eq(found, entries[g]);
    }
    close_index(&index, &os);
}
END_TEST

START_TEST(every_bit_of_a_key_counts) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    kvbm_key key = key_make(SECRET, 42); /* whatever the second half: one tag, so the comparison alone decides */
    open_index(&index, &os, 200);
    uint32_t entry = kvbm_index_insert(&index, &key, 0);
    for (int bit = 0; bit < 128; bit++) {
        kvbm_key other = key;
        other.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        ck_assert_uint_eq(kvbm_index_find(&index, &other, 0), KVBM_ENTRY_NONE);
        uint32_t second;
        ck_assert_uint_eq(kvbm_index_find_many(&index, &other, 1, 0, 0, &second), 1);
        ck_assert_uint_eq(second, KVBM_ENTRY_NONE);
    }
    ck_assert_uint_eq(kvbm_index_find(&index, &key, 0), entry);
    close_index(&index, &os);
}
END_TEST

START_TEST(keys_that_differ_in_little_spread_evenly) {
    /* Counters in either half, as an engine might bring that does not hash: the longest cluster stays short. */
    for (int half = 0; half < 2; half++) {
        struct refusing_os os = {0};
        struct kvbm_index index;
        enum { N = 100000 };
        os.random = NULL;
        refusing_os_init(&os);
        ck_assert_int_eq(kvbm_index_open(&index, &os.os, N), 0);
        for (uint64_t n = 0; n < N; n++) {
            kvbm_key key = half ? key_make(0, n) : key_make(n, 0);
            ck_assert_uint_ne(kvbm_index_insert(&index, &key, 1), KVBM_ENTRY_NONE);
        }
        uint64_t run = 0, longest = 0;
        for (uint64_t b = 0; b <= index.bucket_mask; b++) {
            run = index.buckets[b] != 0 ? run + 1 : 0;
            longest = run > longest ? run : longest;
        }
        ck_assert_uint_lt(longest, 200);
        close_index(&index, &os);
    }
}
END_TEST

START_TEST(two_indexes_place_the_same_keys_differently) {
    struct kvbm_index a, b;
    uint32_t same = 0;
    ck_assert_int_eq(kvbm_index_open(&a, kvbm_os_real(), 600), 0);
    ck_assert_int_eq(kvbm_index_open(&b, kvbm_os_real(), 600), 0);
    for (uint32_t n = 0; n < 500; n++) {
        kvbm_key key = key_of(n, false);
        (void)kvbm_index_insert(&a, &key, 0);
        (void)kvbm_index_insert(&b, &key, 0);
    }
    for (uint32_t i = 0; i <= a.bucket_mask; i++)
        same += a.buckets[i] != 0 && a.buckets[i] == b.buckets[i];
    ck_assert_uint_lt(same, 10);
    kvbm_index_close(&a);
    kvbm_index_close(&b);
}
END_TEST

START_TEST(prefetches_change_nothing) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    open_index(&index, &os, 100);
    for (uint32_t n = 0; n < 100; n++) {
        kvbm_key key = key_of(n, false);
        kvbm_index_prefetch_key(&index, &key, 0);
        uint32_t entry = kvbm_index_insert(&index, &key, 0);
        kvbm_index_prefetch_entry(&index, entry);
        kvbm_index_prefetch_bucket(&index, entry);
    }
    ck_assert_uint_eq(kvbm_index_check(&index), 0);
    close_index(&index, &os);
}
END_TEST

START_TEST(bad_capacities_are_refused) {
    struct kvbm_index index;
    struct refusing_os os = {0};
    refusing_os_init(&os);
    ck_assert_int_eq(kvbm_index_open(&index, &os.os, 0), -EINVAL);
    ck_assert_int_eq(kvbm_index_open(&index, &os.os, (1u << 30) + 1), -EINVAL);
    ck_assert_uint_eq(os.map_count, 0);
    kvbm_index_close(&index);
}
END_TEST

START_TEST(a_refused_map_leaves_nothing_open) {
    for (uint32_t at = 1; at <= 2; at++) {
        struct refusing_os os = {.map_refuse_at = at};
        struct kvbm_index index;
        refusing_os_init(&os);
        ck_assert_int_eq(kvbm_index_open(&index, &os.os, 100), -ENOMEM);
        ck_assert_uint_eq(os.map_count, at);
        ck_assert_uint_eq(os.open_maps, 0);
        kvbm_index_close(&index);
    }
}
END_TEST

START_TEST(the_checker_sees_damage) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    open_index(&index, &os, 50);
    for (uint32_t n = 0; n < 40; n++) {
        kvbm_key key = key_of(n, false);
        (void)kvbm_index_insert(&index, &key, 0);
    }
    kvbm_index_remove(&index, 7);
    ck_assert_uint_eq(kvbm_index_check(&index), 0);
    kvbm_index_entry(&index, 3)->key.bytes[0] ^= 1;
    ck_assert_uint_gt(kvbm_index_check(&index), 0);
    kvbm_index_entry(&index, 3)->key.bytes[0] ^= 1;
    kvbm_index_entry(&index, 3)->tiers = KVBM_TIER_BIT(KVBM_TIER_HOST); /* without a slot */
    ck_assert_uint_gt(kvbm_index_check(&index), 0);
    kvbm_index_entry(&index, 3)->tiers = 0;
    index.entry_count++;
    ck_assert_uint_gt(kvbm_index_check(&index), 0);
    index.entry_count--;
    kvbm_index_entry(&index, 7)->next_free = 7; /* a ring */
    ck_assert_uint_gt(kvbm_index_check(&index), 0);
    kvbm_index_entry(&index, 7)->next_free = KVBM_ENTRY_NONE;
    for (uint32_t b = 0; b <= index.bucket_mask; b++) {
        uint64_t bucket = index.buckets[b];
        index.buckets[b] = bucket == 0 ? UINT64_C(0x1234) << 32 | 1 : 0;
        ck_assert_uint_gt(kvbm_index_check(&index), 0);
        index.buckets[b] = bucket;
    }
    ck_assert_uint_eq(kvbm_index_check(&index), 0);
    close_index(&index, &os);
}
END_TEST

static void insert_twice(void *arg) {
    kvbm_key key = key_of(1, false);
    (void)kvbm_index_insert(arg, &key, 0);
    (void)kvbm_index_insert(arg, &key, 0);
}

static void remove_twice(void *arg) {
    kvbm_key key = key_of(2, false);
    uint32_t entry = kvbm_index_insert(arg, &key, 0);
    kvbm_index_remove(arg, entry);
    kvbm_index_remove(arg, entry);
}

static void remove_unknown(void *arg) {
    kvbm_index_remove(arg, 5);
}

START_TEST(misuse_is_a_programming_error) {
    struct refusing_os os = {0};
    struct kvbm_index index;
    open_index(&index, &os, 10);
    ck_assert(dies(insert_twice, &index));
    ck_assert(dies(remove_twice, &index));
    ck_assert(dies(remove_unknown, &index));
    close_index(&index, &os);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("index");
    TCase *tc = tcase_create("index");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, random_use_agrees_with_a_naive_map, 0, 8);
    tcase_add_test(tc, keys_of_one_tag_are_told_apart);
    tcase_add_test(tc, removal_shifts_back_so_that_probes_never_break);
    tcase_add_test(tc, clusters_wrap_around_the_end_of_the_table);
    tcase_add_test(tc, the_table_is_at_most_sixty_percent_full);
    tcase_add_test(tc, a_full_index_refuses_and_takes_again_after_a_removal);
    tcase_add_test(tc, groups_are_separate_key_spaces);
    tcase_add_test(tc, groups_are_told_apart_even_where_their_tags_agree);
    tcase_add_test(tc, every_bit_of_a_key_counts);
    tcase_add_test(tc, keys_that_differ_in_little_spread_evenly);
    tcase_add_test(tc, two_indexes_place_the_same_keys_differently);
    tcase_add_test(tc, prefetches_change_nothing);
    tcase_add_test(tc, bad_capacities_are_refused);
    tcase_add_test(tc, a_refused_map_leaves_nothing_open);
    tcase_add_test(tc, the_checker_sees_damage);
    tcase_add_test(tc, misuse_is_a_programming_error);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
