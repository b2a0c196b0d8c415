/*
 * pool_test.c - facts about fixed pools.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "runtime/pool.h"
#include "tests/runtime/support.h"

static struct support_os fake;
static struct kvbm_pool pool;

static void open_pool(uint32_t count, size_t bytes) {
    support_os_init(&fake);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, count, bytes), 0);
}

START_TEST(pool_hands_out_every_object_once_then_null) {
    open_pool(5, 100);
    unsigned char *taken[5];
    for (int i = 0; i < 5; i++) {
        uint64_t id = 0;
        taken[i] = kvbm_pool_take_mt(&pool, &id);
        ck_assert_ptr_nonnull(taken[i]);
        ck_assert_uint_eq((uintptr_t)taken[i] % 64, 0);
        ck_assert_uint_eq(id, kvbm_pool_id_mt(&pool, taken[i]));
        ck_assert_ptr_eq(kvbm_pool_find_mt(&pool, id), taken[i]);
        ck_assert_ptr_eq(kvbm_pool_at(&pool, (uint32_t)id), taken[i]);
        memset(taken[i], i, 100);
        for (int j = 0; j < i; j++)
            ck_assert_ptr_ne(taken[i], taken[j]);
    }
    ck_assert_ptr_null(kvbm_pool_take_mt(&pool, NULL));
    ck_assert_uint_eq(kvbm_pool_taken_mt(&pool), 5);
    for (int i = 0; i < 5; i++) {
        ck_assert_uint_eq(taken[i][0], (unsigned)i);
        ck_assert_uint_eq(taken[i][99], (unsigned)i);
        kvbm_pool_give_mt(&pool, taken[i]);
    }
    ck_assert_uint_eq(kvbm_pool_taken_mt(&pool), 0);
    kvbm_pool_close(&pool);
    ck_assert_int_eq(fake.maps, 0);
}
END_TEST

START_TEST(id_is_stale_as_soon_as_the_object_is_given_back) {
    open_pool(1, 64);
    uint64_t first = 0;
    uint64_t second = 0;
    void *object = kvbm_pool_take_mt(&pool, &first);
    kvbm_pool_give_mt(&pool, object);
    ck_assert_ptr_null(kvbm_pool_find_mt(&pool, first));
    ck_assert_ptr_eq(kvbm_pool_take_mt(&pool, &second), object);
    ck_assert_uint_ne(first, second);
    ck_assert_ptr_null(kvbm_pool_find_mt(&pool, first));
    ck_assert_ptr_eq(kvbm_pool_find_mt(&pool, second), object);
    kvbm_pool_give_mt(&pool, object);
    kvbm_pool_close(&pool);
}
END_TEST

START_TEST(malformed_ids_find_nothing) {
    open_pool(2, 64);
    const uint64_t ids[] = {0, 1, 2, 1ull << 32 | 2, UINT64_MAX, 2ull << 32, 3ull << 32};
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        ck_assert_ptr_null(kvbm_pool_find_mt(&pool, ids[i]));
    kvbm_pool_close(&pool);
}
END_TEST

START_TEST(memory_is_as_its_last_user_left_it_and_zero_at_first) {
    open_pool(1, 64);
    unsigned char *object = kvbm_pool_take_mt(&pool, NULL);
    for (int i = 0; i < 64; i++)
        ck_assert_uint_eq(object[i], 0);
    memset(object, 0xab, 64);
    kvbm_pool_give_mt(&pool, object);
    object = kvbm_pool_take_mt(&pool, NULL);
    for (int i = 0; i < 64; i++)
        ck_assert_uint_eq(object[i], 0xab);
    kvbm_pool_give_mt(&pool, object);
    kvbm_pool_close(&pool);
}
END_TEST

START_TEST(absurd_sizes_are_refused) {
    support_os_init(&fake);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, 0, 64), -EINVAL);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, 4, 0), -EINVAL);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, UINT32_MAX, 64), -EINVAL);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, UINT32_MAX - 1, SIZE_MAX / 4), -EINVAL);
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, 4, SIZE_MAX), -EINVAL);
    fake.map_fail_after = 0;
    ck_assert_int_eq(kvbm_pool_open(&pool, &fake.table, 4, 64), -ENOMEM);
    ck_assert_int_eq(fake.maps, 0);
}
END_TEST

static void give_twice(void *object) {
    kvbm_pool_give_mt(&pool, object);
    kvbm_pool_give_mt(&pool, object);
}

static void give_foreign(void *object) {
    kvbm_pool_give_mt(&pool, (unsigned char *)object + 1);
}

static void close_early(void *object) {
    (void)object;
    kvbm_pool_close(&pool);
}

START_TEST(misuse_aborts_and_says_why) {
    char text[512];
    open_pool(2, 64);
    void *object = kvbm_pool_take_mt(&pool, NULL);
    ck_assert(support_aborts(give_twice, object, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "given back twice"));
    ck_assert(support_aborts(give_foreign, object, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "not an object of this pool"));
    ck_assert(support_aborts(close_early, object, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "1 of 2 objects were not given back"));
    kvbm_pool_give_mt(&pool, object);
    kvbm_pool_close(&pool);
}
END_TEST

struct worker {
    uint64_t seed;
    uint64_t takes;
    uint64_t collisions;
};

static void take_and_give(void *arg) {
    struct worker *worker = arg;
    uint64_t *held[4] = {0};
    uint64_t ids[4] = {0};
    for (int i = 0; i < 20000; i++) {
        uint64_t slot = support_random(&worker->seed) % 4;
        if (held[slot] == NULL) {
            held[slot] = kvbm_pool_take_mt(&pool, &ids[slot]);
            if (held[slot] != NULL) {
                worker->takes++;
                *held[slot] = ids[slot];
            }
        } else {
            /* Plain memory: another holder would show as a race or a foreign id. */
            if (*held[slot] != ids[slot] || kvbm_pool_find_mt(&pool, ids[slot]) != held[slot])
                worker->collisions++;
            kvbm_pool_give_mt(&pool, held[slot]);
            held[slot] = NULL;
        }
    }
    for (int i = 0; i < 4; i++) {
        if (held[i] != NULL)
            kvbm_pool_give_mt(&pool, held[i]);
    }
}

START_TEST(threads_never_hold_the_same_object) {
    open_pool(10, 64); /* fewer than four threads times four: empty at times */
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[4];
    struct worker workers[4] = {{.seed = 1}, {.seed = 2}, {.seed = 3}, {.seed = 4}};
    for (int t = 0; t < 4; t++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[t], take_and_give, &workers[t], "pool"), 0);
    for (int t = 0; t < 4; t++) {
        os->thread_join(os->ctx, &threads[t]);
        ck_assert_uint_eq(workers[t].collisions, 0);
        ck_assert_uint_gt(workers[t].takes, 0);
    }
    ck_assert_uint_eq(kvbm_pool_taken_mt(&pool), 0);
    for (int i = 0; i < 10; i++)
        ck_assert_ptr_nonnull(kvbm_pool_take_mt(&pool, NULL));
    ck_assert_ptr_null(kvbm_pool_take_mt(&pool, NULL));
    for (uint32_t i = 0; i < 10; i++)
        kvbm_pool_give_mt(&pool, kvbm_pool_at(&pool, i));
    kvbm_pool_close(&pool);
}
END_TEST

SUPPORT_MAIN("pool", pool_hands_out_every_object_once_then_null, id_is_stale_as_soon_as_the_object_is_given_back,
             malformed_ids_find_nothing, memory_is_as_its_last_user_left_it_and_zero_at_first, absurd_sizes_are_refused,
             misuse_aborts_and_says_why, threads_never_hold_the_same_object)
