/*
 * sim_main.c - the program that runs seeds: a fixed list, given ones, or fresh ones from the clock until time is up.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/errors.h"
#include "tests/sim/sim.h"
#include "tests/sim/wake_model.h"

#define FIXED_SEEDS 400 /* of a run without arguments, then as many fresh ones */
#define GUARD_SEEDS 300 /* from so many seeds on, every event must have happened */

static struct sim_counts counts;

static uint64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void usage(FILE *to) {
    fputs("usage: sim [--seed N] [--seeds COUNT] [--first N] [--seconds S] [--steps N] [--trace] [--explore]\n"
          "  --seed N      first seed; alone: run just this one and print its hash\n"
          "  --seeds COUNT run that many seeds, from --seed or --first (default: fresh, from the clock)\n"
          "  --seconds S   run seeds until the time is up\n"
          "  --steps N     steps of each half of a run, instead of the seed's own number\n"
          "  --trace       print every event\n"
          "  --explore     the large model of the wake protocol instead\n"
          "Without arguments: a fixed list of seeds, then fresh ones.\n",
          to);
}

static uint64_t number(const char *text) {
    char *end = NULL;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != 0) {
        fprintf(stderr, "sim: %s is not a number\n", text);
        exit(2);
    }
    return value;
}

/* Seeds [first, first + count), or until `until_ns`. False at the first that fails: it was left in the middle of a
 * turn, so nothing that comes after it in this process would mean anything. */
static bool run_seeds(uint64_t first, uint64_t count, uint64_t until_ns, const struct sim_options *options) {
    for (uint64_t i = 0; i < count; i++) {
        if (until_ns != 0 && now_ns(CLOCK_MONOTONIC) >= until_ns)
            break;
        if (sim_run(first + i, options, &counts).failed)
            return false;
    }
    return true;
}

static int run_one(uint64_t seed, const struct sim_options *options) {
    struct sim_result result = sim_run(seed, options, &counts);
    printf("seed %llu steps %llu hash %016llx %s\n", (unsigned long long)seed, (unsigned long long)result.steps,
           (unsigned long long)result.hash, result.failed ? "FAILED" : "ok");
    return result.failed;
}

static const char *kind_name(int kind) {
    static const char *const names[] = {"?", "allocate", "register", "match", "query", "credit"};
    return kind >= 1 && kind <= 5 ? names[kind] : names[0];
}

static void print_summary(double seconds) {
    printf("sim:");
    for (uint32_t i = 0; i < SIM_EVENT_COUNT; i++)
        printf(" %s=%llu", sim_event_name(i), (unsigned long long)counts.events[i]);
    printf("\nsim: completions:");
    for (uint32_t i = 0; i < SIM_STATUS_COUNT && counts.statuses[i].count != 0; i++)
        printf(" %s/%s=%llu", kind_name(counts.statuses[i].kind),
               counts.statuses[i].status == 0 ? "ok" : kvbm_error_name_mt(counts.statuses[i].status),
               (unsigned long long)counts.statuses[i].count);
    const uint64_t *e = counts.events;
    uint64_t accepted = e[SIM_ALLOCATE] + e[SIM_REGISTER] + e[SIM_MATCH] + e[SIM_QUERY];
    printf(
        "\nsim: %llu seeds, %llu failed, %llu steps in %.1f s (%.2f million/s), %llu operations, %llu completions "
        "and %llu at closed ports, %llu evictions, %llu timeouts, %llu cancelled, %llu closes (%llu in mid-flight)\n",
        (unsigned long long)counts.seeds, (unsigned long long)counts.failed, (unsigned long long)counts.steps, seconds,
        (double)counts.steps / seconds / 1e6, (unsigned long long)accepted, (unsigned long long)e[SIM_DONE],
        (unsigned long long)e[SIM_PORT_DROPPED], (unsigned long long)e[SIM_EVICTED],
        (unsigned long long)e[SIM_TIMED_OUT], (unsigned long long)e[SIM_CANCELLED], (unsigned long long)e[SIM_CLOSE],
        (unsigned long long)e[SIM_CLOSE_BUSY]);
}

static int explore(void) {
    int wrong = 0;
    for (int v = 0; v < WAKE_VARIANT_COUNT; v++) {
        struct wake_result r = wake_model_explore((enum wake_variant)v, true);
        bool right = (r.violation == NULL) == (v == WAKE_WHOLE);
        printf("%s: %llu states, %llu transitions, %llu endings: %s%s\n", wake_variant_text((enum wake_variant)v),
               (unsigned long long)r.states, (unsigned long long)r.transitions, (unsigned long long)r.endings,
               r.violation != NULL ? r.violation : "holds", right ? "" : "  <-- WRONG");
        wrong += !right;
    }
    return wrong != 0;
}

static bool guard(void) {
    char missing[2000];
    if (counts.seeds < GUARD_SEEDS || sim_coverage_missing(&counts, missing, sizeof missing) == 0)
        return true;
    fprintf(stderr, "sim: these events never happened, so nothing was learnt about them:%s\n", missing);
    return false;
}

int main(int argc, char **argv) {
    enum { OPT_SEED = 1, OPT_SEEDS, OPT_FIRST, OPT_SECONDS, OPT_STEPS, OPT_TRACE, OPT_EXPLORE, OPT_HELP };
    static const struct option longs[] = {
        {"seed", 1, NULL, OPT_SEED},       {"seeds", 1, NULL, OPT_SEEDS}, {"first", 1, NULL, OPT_FIRST},
        {"seconds", 1, NULL, OPT_SECONDS}, {"steps", 1, NULL, OPT_STEPS}, {"trace", 0, NULL, OPT_TRACE},
        {"explore", 0, NULL, OPT_EXPLORE}, {"help", 0, NULL, OPT_HELP},   {NULL, 0, NULL, 0},
    };
    struct sim_options options = {0};
    uint64_t first = sim_mix(now_ns(CLOCK_REALTIME)) >> 24, seeds = 0, seconds = 0;
    bool given = false;
    for (int opt; (opt = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        switch (opt) {
        case OPT_SEED:
        case OPT_FIRST:
            first = number(optarg);
            given = opt == OPT_SEED || given;
            break;
        case OPT_SEEDS:
            seeds = number(optarg);
            break;
        case OPT_SECONDS:
            seconds = number(optarg);
            break;
        case OPT_STEPS:
            options.steps = number(optarg);
            break;
        case OPT_TRACE:
            options.trace = true;
            break;
        case OPT_EXPLORE:
            return explore();
        default:
            usage(opt == OPT_HELP ? stdout : stderr);
            return opt == OPT_HELP ? 0 : 2;
        }
    }
    uint64_t start_ns = now_ns(CLOCK_MONOTONIC);
    bool ok = true;
    if (given && seeds == 0 && seconds == 0)
        return run_one(first, &options);
    if (seeds == 0 && seconds == 0) {
        ok = run_seeds(1, FIXED_SEEDS, 0, &options);
        seeds = FIXED_SEEDS;
    }
    printf("sim: seeds from %llu\n", (unsigned long long)first);
    uint64_t until_ns = seconds != 0 ? start_ns + seconds * 1000000000 : 0;
    ok = ok && run_seeds(first, seeds != 0 ? seeds : UINT64_MAX, until_ns, &options);
    print_summary((double)(now_ns(CLOCK_MONOTONIC) - start_ns + 1) / 1e9);
    return ok && guard() ? 0 : 1;
}
