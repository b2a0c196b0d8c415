/*
 * sim_test.c - the simulation's own tests: a fixed list of seeds, that a seed is replayed bit for bit, that every event
 * that the guard asks for happens, and that the model of the wake protocol holds and that of each broken variant fails.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"
#include "tests/sim/wake_model.h"

#define FIXED_SEEDS  400
#define REPLAY_SEEDS 12

START_TEST(fixed_seeds_hold_and_cover_every_event) {
    static struct sim_counts counts;
    const struct sim_options options = {0};
    for (uint64_t seed = 1; seed <= FIXED_SEEDS; seed++) {
        struct sim_result result = sim_run(seed, &options, &counts);
        ck_assert_msg(!result.failed, "seed %llu: %s", (unsigned long long)seed, result.failure);
    }
    char missing[2000];
    ck_assert_msg(sim_coverage_missing(&counts, missing, sizeof missing) == 0, "never happened:%s", missing);
}
END_TEST

START_TEST(a_seed_is_replayed_bit_for_bit) {
    static struct sim_counts counts;
    const struct sim_options options = {0};
    for (uint64_t seed = 1000; seed < 1000 + REPLAY_SEEDS; seed++) {
        struct sim_result first = sim_run(seed, &options, &counts);
        struct sim_result second = sim_run(seed, &options, &counts);
        ck_assert(!first.failed && !second.failed);
        ck_assert_uint_eq(first.hash, second.hash);
        ck_assert_uint_eq(first.steps, second.steps);
    }
}
END_TEST

START_TEST(seeds_differ) {
    static struct sim_counts counts;
    const struct sim_options options = {.steps = 200};
    ck_assert_uint_ne(sim_run(1, &options, &counts).hash, sim_run(2, &options, &counts).hash);
}
END_TEST

START_TEST(the_wake_protocol_holds_in_every_interleaving) {
    struct wake_result result = wake_model_explore(WAKE_WHOLE, false);
    ck_assert_msg(result.violation == NULL, "%s", result.violation);
    ck_assert_uint_gt(result.states, 100000);
    ck_assert_uint_gt(result.endings, 0);
}
END_TEST

START_TEST(each_missing_step_of_the_wake_protocol_is_caught) {
    enum wake_variant variant = (enum wake_variant)_i;
    struct wake_result result = wake_model_explore(variant, false);
    ck_assert_msg(result.violation != NULL, "not caught: %s", wake_variant_text(variant));
}
END_TEST

int main(void) {
    Suite *suite = suite_create("sim");
    TCase *seeds = tcase_create("seeds");
    tcase_set_timeout(seeds, 300);
    tcase_add_test(seeds, fixed_seeds_hold_and_cover_every_event);
    tcase_add_test(seeds, a_seed_is_replayed_bit_for_bit);
    tcase_add_test(seeds, seeds_differ);
    suite_add_tcase(suite, seeds);
    TCase *model = tcase_create("wake protocol");
    tcase_set_timeout(model, 300);
    tcase_add_test(model, the_wake_protocol_holds_in_every_interleaving);
    tcase_add_loop_test(model, each_missing_step_of_the_wake_protocol_is_caught, WAKE_WHOLE + 1, WAKE_VARIANT_COUNT);
    suite_add_tcase(suite, model);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
