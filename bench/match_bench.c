/*
 * match_bench.c - longest-prefix match of 8,192 keys, all resident: a prompt of 128 K tokens at 16 tokens a block.
 *
 *   c_match_8192          nobody holds the blocks, and earlier releases have been settled
 *   c_match_8192_held     another request holds the same blocks
 *   c_match_release_8192  the whole cycle: match, release, settle
 *   c_match_8192_of_1e6   as the first, in a registry of 10^6 blocks: the keys are cold in the processor's caches
 *   c_keys_8192           making the 8,192 keys from 131,072 tokens
 */
#include "bench/bench.h"

#define KEYS 8192
#define PAGE 16

struct subject {
    kvbm_manager *manager;
    struct bench_call call;
    const kvbm_key *keys; /* ranges of KEYS, taken in turn */
    uint64_t range_count;
    uint64_t turn;
    kvbm_block *blocks;
    bool whole_cycle;
};

static uint64_t match(void *arg, uint64_t iterations) {
    struct subject *subject = arg;
    uint64_t ns = 0;
    for (uint64_t i = 0; i < iterations; i++) {
        const kvbm_key *keys = subject->keys + subject->turn++ % subject->range_count * KEYS;
        uint64_t start = bench_now_ns();
        uint64_t found = bench_match(subject->manager, &subject->call, keys, subject->blocks, KEYS);
        uint64_t end = bench_now_ns();
        if (found != KEYS)
            bench_die("keys matched", (long)found);
        bench_release(subject->manager, subject->blocks, KEYS);
        bench_must("settle", (long)kvbm_pool_available_mt(subject->manager, 0, KVBM_TIER_HOST));
        ns += (subject->whole_cycle ? bench_now_ns() : end) - start;
    }
    return ns;
}

/* The floor of a lookup: one dependent load from a table of cache lines for each key, in a random order. */
struct floor {
    struct {
        uint64_t value, pad[7];
    } * lines;
    uint32_t *order;
};

static uint64_t floor_run(void *arg, uint64_t iterations) {
    struct floor *floor = arg;
    uint64_t sum = 0, start = bench_now_ns();
    for (uint64_t n = 0; n < iterations; n++)
        for (uint32_t i = 0; i < KEYS; i++)
            sum += floor->lines[floor->order[i]].value++;
    uint64_t ns = bench_now_ns() - start;
    __asm__ volatile("" : : "r"(sum));
    return ns;
}

static void floor_init(struct floor *floor) {
    floor->lines = bench_alloc(KEYS, 64);
    floor->order = bench_alloc(KEYS, sizeof(uint32_t));
    for (uint32_t i = 0; i < KEYS; i++)
        floor->order[i] = i;
    for (uint32_t i = KEYS - 1; i > 0; i--) {
        uint64_t other;
        kvbm_key key = bench_key(i);
        memcpy(&other, key.bytes, 8);
        uint32_t swap = floor->order[i];
        floor->order[i] = floor->order[other % (i + 1)];
        floor->order[other % (i + 1)] = swap;
    }
}

static void subject_init(struct subject *subject, uint64_t registry_blocks, bool whole_cycle) {
    *subject = (struct subject){.manager = bench_manager(registry_blocks + KEYS, 0), .whole_cycle = whole_cycle};
    subject->range_count = registry_blocks / KEYS;
    bench_fill(subject->manager, 0, subject->range_count * KEYS);
    kvbm_key *keys = bench_alloc(subject->range_count * KEYS, sizeof(kvbm_key));
    for (uint64_t i = 0; i < subject->range_count * KEYS; i++)
        keys[i] = bench_key(i);
    subject->keys = keys;
    subject->blocks = bench_alloc(KEYS, sizeof(kvbm_block));
    bench_call_init(&subject->call);
}

static void bench_matches(void) {
    struct subject cached, held, cycle, large;
    subject_init(&cached, KEYS, false);
    subject_init(&held, KEYS, false);
    subject_init(&cycle, KEYS, true);
    subject_init(&large, 1000000, false);
    struct floor floor;
    floor_init(&floor);
    struct bench_call call;
    kvbm_block *others = bench_alloc(KEYS, sizeof(kvbm_block));
    bench_call_init(&call);
    bench_match(held.manager, &call, held.keys, others, KEYS);
    struct bench_subject subjects[] = {
        {.fn = match, .arg = &cached, .iterations = 1},    {.fn = match, .arg = &held, .iterations = 1},
        {.fn = match, .arg = &cycle, .iterations = 1},     {.fn = match, .arg = &large, .iterations = 1},
        {.fn = floor_run, .arg = &floor, .iterations = 1},
    };
    bench_run(subjects, 5, 400);
    bench_release(held.manager, others, KEYS);
    static const char *const names[] = {"c_match_8192", "c_match_8192_held", "c_match_release_8192",
                                        "c_match_8192_of_1e6"};
    for (int i = 0; i < 4; i++)
        bench_report(&(struct bench_result){.name = names[i],
                                            .unit = "ns",
                                            .value = subjects[i].result,
                                            .reference_name = i == 0 ? "target: 0.3 ms" : "c_match_8192",
                                            .reference_value = i == 0 ? 300000 : subjects[0].result.median,
                                            .target_value = i == 0 ? 300000 : 0},
                     "\"keys\": %d, \"registry_blocks\": %llu, \"floor_one_line_a_key_ns\": %.4g", KEYS,
                     (unsigned long long)((struct subject *)subjects[i].arg)->range_count * KEYS,
                     subjects[4].result.median);
    for (int i = 0; i < 4; i++) {
        struct subject *subject = subjects[i].arg;
        bench_manager_end(subject->manager);
        free((void *)subject->keys);
        free(subject->blocks);
    }
    free(others);
    free(floor.lines);
    free(floor.order);
}

struct prompt {
    uint32_t *tokens;
    kvbm_key *keys;
};

static uint64_t keys_run(void *arg, uint64_t iterations) {
    struct prompt *prompt = arg;
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++)
        kvbm_keys_compute_mt(prompt->tokens, KEYS, PAGE, NULL, 0, NULL, prompt->keys);
    return bench_now_ns() - start;
}

static uint64_t copy_run(void *arg, uint64_t iterations) {
    struct prompt *prompt = arg;
    static uint32_t copy[(size_t)KEYS * PAGE];
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++) {
        memcpy(copy, prompt->tokens, sizeof copy);
        __asm__ volatile("" : : "r"(copy) : "memory");
    }
    return bench_now_ns() - start;
}

static void bench_keys(void) {
    struct prompt prompt = {.tokens = bench_alloc((size_t)KEYS * PAGE, sizeof(uint32_t)),
                            .keys = bench_alloc(KEYS, sizeof(kvbm_key))};
    for (uint32_t i = 0; i < KEYS * PAGE; i++)
        prompt.tokens[i] = i * UINT32_C(2654435761);
    struct bench_subject subjects[] = {
        {.fn = keys_run, .arg = &prompt, .iterations = 1},
        {.fn = copy_run, .arg = &prompt, .iterations = 4},
    };
    bench_run(subjects, 2, 400);
    bench_report(&(struct bench_result){.name = "c_keys_8192",
                                        .unit = "ns",
                                        .value = subjects[0].result,
                                        .reference_name = "memcpy of the tokens",
                                        .reference_value = subjects[1].result.median},
                 "\"keys\": %d, \"page_size\": %d", KEYS, PAGE);
    free(prompt.tokens);
    free(prompt.keys);
}

int main(void) {
    bench_matches();
    bench_keys();
    return 0;
}
