/*
 * validate.h - what the validate programs share: options, a violation that ends the program, random numbers, and a
 * futex-driven reactor of a producer thread.
 *
 * A validate program runs the real runtime under load, checks every message, prints one summary line, and exits with
 * status 0, or with 1 at the first violation.
 */
#ifndef KVBM_TESTS_VALIDATE_H
#define KVBM_TESTS_VALIDATE_H

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/os.h"
#include "runtime/reactor.h"

#define PRODUCER_COUNT_MAX 32
#define NS_PER_SECOND      1000000000ull
#define STALL_NS           (60 * NS_PER_SECOND) /* waiting longer than this is a lost wake-up */

struct options {
    uint64_t messages;
    uint64_t seconds;
    uint64_t producers;
    uint64_t seed;
};

#define VIOLATION(...)                                                                                                 \
    do {                                                                                                               \
        fprintf(stderr, "violation at %s:%d: ", __FILE__, __LINE__);                                                   \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        fflush(NULL);                                                                                                  \
        _Exit(1);                                                                                                      \
    } while (0)

#define CHECK(cond, ...)                                                                                               \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            VIOLATION(__VA_ARGS__);                                                                                    \
    } while (0)

static inline uint64_t now_ns(void) {
    return kvbm_os_real()->now_ns(NULL);
}

/* --messages N --seconds N --producers N --seed N; anything else ends the program with status 2. */
static inline void options_parse(int argc, char **argv, struct options *options) {
    const struct {
        const char *name;
        uint64_t *value;
        uint64_t max;
    } known[] = {{"--messages", &options->messages, UINT64_MAX / 2},
                 {"--seconds", &options->seconds, 86400},
                 {"--producers", &options->producers, PRODUCER_COUNT_MAX},
                 {"--seed", &options->seed, UINT64_MAX}};
    for (int i = 1; i < argc; i += 2) {
        size_t k = 0;
        while (k < sizeof known / sizeof known[0] && strcmp(argv[i], known[k].name) != 0)
            k++;
        char *end = NULL;
        uint64_t value = k < sizeof known / sizeof known[0] && i + 1 < argc ? strtoull(argv[i + 1], &end, 10) : 0;
        if (end == NULL || *end != '\0' || value == 0 || value > known[k].max) {
            fprintf(stderr, "usage: %s [--messages N] [--seconds N] [--producers 1..%d] [--seed N]\n", argv[0],
                    PRODUCER_COUNT_MAX);
            exit(2);
        }
        *known[k].value = value;
    }
}

/* xorshift64* */
static inline uint64_t random_next(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545F4914F6CDD1Dull;
}

static inline void *zeroed(size_t size) {
    size = (size + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, size);
    CHECK(memory != NULL, "out of memory");
    memset(memory, 0, size);
    return memory;
}

/* A sleeper's word: a wake-up bumps it. */
static inline void word_wake(void *ctx) {
    _Atomic uint32_t *word = ctx;
    atomic_fetch_add_explicit(word, 1, memory_order_release);
    kvbm_os_real()->wake_u32(NULL, word, true);
}

/* Runs this thread's own reactor, sleeping if there is nothing to do: the driver protocol of reactor.h over a futex. */
static inline void reactor_step(struct kvbm_reactor *r, _Atomic uint32_t *word) {
    uint64_t timer_ns = KVBM_NO_DEADLINE;
    if (kvbm_reactor_turn(r, r->options.turn_budget) != 0)
        return;
    uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
    if (!kvbm_reactor_park(r, &timer_ns))
        return;
    uint64_t until = now_ns() + STALL_NS;
    while (atomic_load_explicit(&r->wake_pending, memory_order_acquire) == 0) {
        int rc = kvbm_os_real()->wait_u32(NULL, word, seen, until);
        CHECK(rc != -ETIMEDOUT, "a producer's reactor slept for %llu s", STALL_NS / NS_PER_SECOND);
        seen = atomic_load_explicit(word, memory_order_acquire);
    }
    while (!kvbm_reactor_take(r)) {
    }
}

/* Forces the receiving side to sleep: every millisecond all producers rest between bursts until it does. */
struct lull {
    bool (*asleep)(void); /* whether the receiving side sleeps, all producers being at rest */
    struct kvbm_thread thread;
    _Atomic uint32_t quiet;   /* 1: rest at the next burst; futex word */
    _Atomic uint32_t resting; /* producers at rest */
    _Atomic uint32_t active;  /* producers that have not ended */
    uint64_t count;           /* lulls, after the join */
};

/* Producer, between bursts. */
static inline void lull_rest(struct lull *lull) {
    if (atomic_load(&lull->quiet) == 0)
        return;
    atomic_fetch_add(&lull->resting, 1);
    while (atomic_load(&lull->quiet) != 0)
        kvbm_os_real()->wait_u32(NULL, &lull->quiet, 1, KVBM_NO_DEADLINE);
    atomic_fetch_sub(&lull->resting, 1);
}

/* Producer, at its end. */
static inline void lull_leave(struct lull *lull) {
    atomic_fetch_sub(&lull->active, 1);
}

static inline void lull_nap(uint64_t nap_ns) {
    static _Atomic uint32_t never; /* nobody wakes it */
    kvbm_os_real()->wait_u32(NULL, &never, 0, now_ns() + nap_ns);
}

static inline void lull_conduct(void *arg) {
    struct lull *lull = arg;
    while (atomic_load(&lull->active) != 0) {
        uint64_t until = now_ns() + STALL_NS;
        lull_nap(1000000);
        atomic_store(&lull->quiet, 1);
        while (atomic_load(&lull->resting) < atomic_load(&lull->active)) {
            CHECK(now_ns() < until, "a burst did not end within %llu s", STALL_NS / NS_PER_SECOND);
            lull_nap(20000);
        }
        while (!lull->asleep() && atomic_load(&lull->active) != 0) {
            CHECK(now_ns() < until, "the receiving side did not sleep within %llu s", STALL_NS / NS_PER_SECOND);
            lull_nap(20000);
        }
        lull->count++;
        atomic_store(&lull->quiet, 0);
        kvbm_os_real()->wake_u32(NULL, &lull->quiet, true);
        while (atomic_load(&lull->resting) != 0)
            lull_nap(20000);
    }
}

static inline void lull_start(struct lull *lull, uint32_t producers, bool (*asleep)(void)) {
    lull->asleep = asleep;
    atomic_store(&lull->active, producers);
    CHECK(kvbm_os_real()->thread_start(NULL, &lull->thread, lull_conduct, lull, "lull") == 0, "thread_start");
}

static inline void lull_join(struct lull *lull) {
    kvbm_os_real()->thread_join(NULL, &lull->thread);
}

#endif
