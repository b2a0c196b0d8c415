/*
 * kit.h - what the tests of the manager share: managers of all three drives, requests in one call each, keys, and a
 * clock that stands still until moved.
 *
 * A "driven" manager has no thread: the test owns its reactor, parked (so that requests borrow it and end at once) or
 * held (so that they stand in its lanes until kit_turn).
 */
#ifndef KVBM_TESTS_ACTORS_KIT_H
#define KVBM_TESTS_ACTORS_KIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/kvbm.h"
#include "actors/manager_internal.h"

/* A suite over an array of START_TEST names. */
#define KIT_MAIN(suite_name, ...)                                                                                      \
    int main(void) {                                                                                                   \
        const TTest *const tests[] = {__VA_ARGS__};                                                                    \
        Suite *suite = suite_create(suite_name);                                                                       \
        TCase *tcase = tcase_create(suite_name);                                                                       \
        tcase_set_timeout(tcase, 240);                                                                                 \
        for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++)                                                    \
            tcase_add_test(tcase, tests[i]);                                                                           \
        suite_add_tcase(suite, tcase);                                                                                 \
        SRunner *runner = srunner_create(suite);                                                                       \
        srunner_run_all(runner, CK_ENV);                                                                               \
        int failed = srunner_ntests_failed(runner);                                                                    \
        srunner_free(runner);                                                                                          \
        return failed == 0 ? 0 : 1;                                                                                    \
    }

#define KIT_PAGE_SIZE 4u
#define KIT_SECOND_NS UINT64_C(1000000000)

/* Geometry of 2 layers, keys and values, pages of KIT_PAGE_SIZE tokens of 8 elements of 2 bytes. */
kvbm_group_options kit_group(uint64_t host_blocks);
/* One group of kit_group(host_blocks), no bytes, tokens tracked. The caller changes what it likes; `group` must live as
 * long as the options. */
kvbm_options kit_options(kvbm_group_options *group, uint64_t host_blocks);
/* On its own thread. */
kvbm_manager *kit_open(uint64_t host_blocks);
kvbm_manager *kit_open_with(const kvbm_options *options);
/* Checks all invariants once it is closed, and drops the reference. */
void kit_end(kvbm_manager *manager);

/* ---- driven ---- */
struct kit_drive {
    struct kvbm_os os;
    _Atomic uint64_t now_ns;
    _Atomic uint64_t wakes;
    kvbm_manager *manager;
};
/* The drive's clock starts at 1000 s. Parked. */
kvbm_manager *kit_driven(struct kit_drive *drive, uint64_t host_blocks);
kvbm_manager *kit_driven_with(struct kit_drive *drive, const kvbm_options *options, uint32_t thread_capacity);
/* Parked -> held: requests queue from now on. */
void kit_take(struct kit_drive *drive);
/* Held: runs one turn of at most `budget` messages and checks the invariants; returns how many ran. */
uint32_t kit_turn(struct kit_drive *drive, uint32_t budget);
/* Held: runs until nothing is left, checking after each turn, and parks. */
void kit_park(struct kit_drive *drive);
/* Parked: what a driver does when woken. */
void kit_run(struct kit_drive *drive);
/* Parked: moves the clock and runs what is due. */
void kit_advance(struct kit_drive *drive, uint64_t ns);
void kit_check(kvbm_manager *manager);
/* Parked or held: closes, drains, finishes, drops the reference. */
void kit_driven_end(struct kit_drive *drive);

/* ---- requests: done when they return; the status of the completion, or what the submit refused with ---- */
int kit_allocate(kvbm_manager *manager, kvbm_block *blocks, uint64_t count);
int kit_allocate_c(kvbm_manager *manager, uint32_t group, kvbm_block *blocks, uint64_t count, kvbm_completion *c);
int kit_register(kvbm_manager *manager, kvbm_block *blocks, const kvbm_key *keys, uint64_t count);
int kit_register_args(kvbm_manager *manager, const kvbm_register_args *args);
/* How many matched, or what it was refused with. */
int64_t kit_match(kvbm_manager *manager, const kvbm_key *keys, uint64_t count, kvbm_block *blocks);
int64_t kit_query(kvbm_manager *manager, const kvbm_key *keys, uint64_t count, uint8_t *tiers);
void kit_release(kvbm_manager *manager, const kvbm_block *blocks, uint64_t count);
/* Allocates, registers under keys and releases: cached afterwards. */
void kit_cache(kvbm_manager *manager, const kvbm_key *keys, uint64_t count);
/* Leaves the request to a callback that counts and keeps the last completion. */
struct kit_done {
    _Atomic uint32_t count;
    kvbm_completion completion;
    int status; /* of the completion; INT32_MIN before */
};
kvbm_submit kit_callback(struct kit_done *done, uint32_t flags);
void kit_on_done(void *user, const kvbm_completion *completion);
bool kit_wait_count(_Atomic uint32_t *count, uint32_t wanted);

/* Key number n of a family; different for different (family, n). */
kvbm_key kit_key(uint32_t family, uint64_t n);
void kit_keys(uint32_t family, uint64_t first, uint64_t count, kvbm_key *keys);
kvbm_pool_stats kit_stats(kvbm_manager *manager);
/* free + cached + leased + mutable is the capacity, and so are these. */
void kit_balance(kvbm_manager *manager, uint64_t free_blocks, uint64_t cached, uint64_t leased,
                 uint64_t mutable_blocks);

#endif
