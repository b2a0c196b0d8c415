/*
 * sim.h - the seeded simulation: what both halves (sim_runtime.c, sim_domain.c) share.
 *
 * A run is a pure function of its seed. One thread plays every thread of the real program: a chooser seeded by the run
 * picks what happens next, the clock is a number, wake-ups and events are recorded and delivered when the chooser says
 * so, and checkers look at everything after each step. Where the code under test keeps state in a thread-local
 * variable, a second OS thread lends its identity for one call at a time (sim_other_run): it runs only while the first
 * one waits, so the run stays a function of the seed.
 *
 * A failed check prints the seed, the step, what failed, the last events and the command that replays it, and unwinds
 * to the driver; a panic or a crash prints the same from a signal handler.
 */
#ifndef KVBM_TESTS_SIM_SIM_H
#define KVBM_TESTS_SIM_SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/os.h"

/* ---------------------------------------------------------------------------------------------------------- events */

/* X(NAME, half): half says over which part the coverage guard asks for it: R runtime, D domain, N none (failures of a
 * kind that a particular build of the library need not show). */
#define SIM_EVENTS(X)                                                                                                  \
    X(OPEN, D)          /* a manager was opened */                                                                     \
    X(OPEN_NOMEM, D)    /* opening was refused for want of memory */                                                   \
    X(TURN, D)          /* the reactor's owner ran a turn */                                                           \
    X(PARK, D)          /* parked */                                                                                   \
    X(PARK_REFUSED, D)  /* the re-check found work */                                                                  \
    X(WAKE_ASKED, D)    /* a wake-up was asked for */                                                                  \
    X(WAKE, D)          /* ... and delivered */                                                                        \
    X(TAKE_SPURIOUS, D) /* taken with no wake-up */                                                                    \
    X(TAKE_REFUSED, D)  /* taken while borrowed: the borrower is asked to wake */                                      \
    X(TIMER, D)         /* taken because a deadline came */                                                            \
    X(CLOCK, D)         /* time went on */                                                                             \
    X(ALLOCATE, D)      /* accepted operations, by kind */                                                             \
    X(REGISTER, D)                                                                                                     \
    X(MATCH, D)                                                                                                        \
    X(QUERY, D)                                                                                                        \
    X(DONE, D)             /* a completion came */                                                                     \
    X(DONE_INLINE, D)      /* ... at submit */                                                                         \
    X(DONE_IN_SUBMIT, D)   /* ... by callback, before the submit returned */                                           \
    X(DONE_WAITED, D)      /* ... to kvbm_wait_mt */                                                                   \
    X(DONE_PORT, D)        /* ... through a port */                                                                    \
    X(REFUSED_AGAIN, D)    /* submit: -EAGAIN */                                                                       \
    X(REFUSED_CLOSED, D)   /* submit: -KVBM_ECLOSED */                                                                 \
    X(REFUSED_ARGUMENT, D) /* submit: the arguments */                                                                 \
    X(REFUSED_BLOCK, D)    /* register: a handle that will not do */                                                   \
    X(SUBMIT_IN_CALLBACK, D)                                                                                           \
    X(OTHER_THREAD, D) /* a second thread acted while a callback ran */                                                \
    X(NOBLOCKS, D)                                                                                                     \
    X(WAITED, D) /* an allocation stood in line and was served */                                                      \
    X(TIMED_OUT, D)                                                                                                    \
    X(CANCEL, D)    /* cancel asked */                                                                                 \
    X(CANCELLED, D) /* -ECANCELED came */                                                                              \
    X(SHUT_DOWN, D) /* -KVBM_ESHUTDOWN came */                                                                         \
    X(EVICTED, D)                                                                                                      \
    X(HIT, D)       /* match found every key */                                                                        \
    X(PARTIAL, D)   /* ... a prefix */                                                                                 \
    X(MISS, D)      /* ... nothing */                                                                                  \
    X(DUPLICATE, D) /* register found its key resident */                                                              \
    X(DUPLICATE_KEPT, D)                                                                                               \
    X(ANONYMOUS, D)                                                                                                    \
    X(COMPUTED, D)                                                                                                     \
    X(RELEASE, D)                                                                                                      \
    X(RELEASE_STALE, D)                                                                                                \
    X(RELEASE_CLAIMED, D) /* release of a block inside an operation: -KVBM_ENOTOWNED */                                \
    X(RETAIN, D)                                                                                                       \
    X(STALE_USE, D)                                                                                                    \
    X(TOKENS, D)                                                                                                       \
    X(TOKENS_OVERFLOW, D)                                                                                              \
    X(WAIT_INTERRUPTED, D)                                                                                             \
    X(WAIT_TIMED_OUT, D)                                                                                               \
    X(PORT_OPEN, D)                                                                                                    \
    X(PORT_DRAIN, D)                                                                                                   \
    X(PORT_CLOSE, D)                                                                                                   \
    X(PORT_CLOSE_BUSY, D) /* with operations in flight */                                                              \
    X(PORT_DROPPED, D)    /* an answer to a closed port that nobody asked for elsewhere */                             \
    X(PORT_SIGNAL, D)                                                                                                  \
    X(CREDIT_WANTED, D)                                                                                                \
    X(CREDIT_CAME, D)                                                                                                  \
    X(CLOSE, D)                                                                                                        \
    X(CLOSE_BUSY, D) /* with operations in flight */                                                                   \
    X(RELEASE_AFTER_CLOSE, D)                                                                                          \
    X(QUIET, D)            /* nothing left to do: the exact balances were checked */                                   \
    X(EXACT, D)            /* a result was compared with the exact model */                                            \
    X(EXACT_EVICTION, D)   /* ... and so was an order of eviction */                                                   \
    X(PRIORITY_EXPIRED, D) /* ... with a priority that had run out */                                                  \
    X(SHUTDOWN_ENDED, D)                                                                                               \
    X(R_POST, R)        /* from here on the runtime half: an application thread posted */                              \
    X(R_CALL, R)        /* ... called, and so perhaps borrowed */                                                      \
    X(R_BORROWED, R)    /* ... and did */                                                                              \
    X(R_BORROW_LOST, R) /* ... and the reactor had an owner */                                                         \
    X(R_LANE_FULL, R)   /* a post was refused */                                                                       \
    X(R_SEND_FULL, R)   /* an actor's send was refused */                                                              \
    X(R_CREDIT_WANTED, R)                                                                                              \
    X(R_CREDIT_CAME, R)                                                                                                \
    X(R_HANDLED, R)                                                                                                    \
    X(R_REPLIED, R)                                                                                                    \
    X(R_FORWARDED, R)                                                                                                  \
    X(R_CHILD, R) /* an actor asked another on behalf of its caller */                                                 \
    X(R_ARMED, R)                                                                                                      \
    X(R_EXPIRED, R)                                                                                                    \
    X(R_DISARMED, R)                                                                                                   \
    X(R_CANCEL, R)                                                                                                     \
    X(R_CANCELLED, R)                                                                                                  \
    X(R_RETURNS_WOKE, R) /* a push to a return lane woke a parked reactor */                                           \
    X(R_PARK, R)                                                                                                       \
    X(R_PARK_REFUSED, R)                                                                                               \
    X(R_WAKE_ASKED, R)                                                                                                 \
    X(R_WAKE, R)                                                                                                       \
    X(R_TAKE_SPURIOUS, R)                                                                                              \
    X(R_TAKE_REFUSED, R)                                                                                               \
    X(R_TIMER, R)                                                                                                      \
    X(R_OTHER_THREAD, R)                                                                                               \
    X(R_DRAINED, R) /* a run ended with everything answered and every balance zero */

enum sim_event_kind {
#define X(name, half) SIM_##name,
    SIM_EVENTS(X)
#undef X
        SIM_EVENT_COUNT
};

#define SIM_STATUS_COUNT 24  /* distinct (kind, status) pairs that are counted */
#define SIM_RING_COUNT   48  /* events kept for the report of a failure */
#define SIM_MAP_COUNT    256 /* maps that may be open at once */
#define SIM_FD_COUNT     256

struct sim_event {
    uint64_t step, a, b;
    uint32_t kind;
};

/* What a number of runs did; the driver sums them up. */
struct sim_counts {
    uint64_t seeds, steps, failed;
    uint64_t events[SIM_EVENT_COUNT];
    struct {
        int kind, status;
        uint64_t count;
    } statuses[SIM_STATUS_COUNT];
};

/* ------------------------------------------------------------------------------------------------------------- run */

struct sim_options {
    uint64_t steps; /* at most this many steps of chaos before the orderly end; 0: the seed draws it */
    bool trace;     /* print each event */
    bool quiet;     /* print nothing on a failed check (tests that expect one) */
};

struct sim_map {
    void *address;
    size_t bytes;
    bool heap;
};

struct sim_fd {
    bool open;
    uint64_t signalled;
};

struct sim {
    uint64_t seed;
    uint64_t random[4]; /* xoshiro256** */
    uint64_t hash;
    uint64_t step;
    uint64_t now_ns;
    struct sim_options options;
    struct sim_counts *counts;
    struct sim_event ring[SIM_RING_COUNT];
    uint64_t event_count;
    jmp_buf *unwind; /* where a failed check goes */
    char failure[512];
    /* The table of functions that the library runs on, and what it handed out. */
    struct kvbm_os os;
    struct sim_map maps[SIM_MAP_COUNT];
    uint32_t map_count;
    uint64_t map_fail_in; /* 0: never; else the n-th map from now fails with -ENOMEM */
    struct sim_fd fds[SIM_FD_COUNT];
    /* What a plain wait does: runs other things until it returns. Set by the half that runs. */
    int (*wait)(struct sim *sim, _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns);
    bool on_other; /* the second thread is acting */
};

struct sim_result {
    bool failed;
    uint64_t hash, steps;
    char failure[512];
};

/* One run of each half. `counts` is added to. */
struct sim_result sim_runtime_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts);
struct sim_result sim_domain_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts);
/* Both halves of a seed, one after the other; the hashes are folded into one. */
struct sim_result sim_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts);

/* Names of events that the guard wants and that did not happen, into text; returns how many. */
uint32_t sim_coverage_missing(const struct sim_counts *counts, char *text, size_t text_bytes);
const char *sim_event_name(uint32_t kind);
void sim_count_status(struct sim_counts *counts, int kind, int status);

/* ---------------------------------------------------------------------------------------- for the halves themselves */

void sim_begin(struct sim *sim, uint64_t seed, uint64_t salt, const struct sim_options *options,
               struct sim_counts *counts);
/* Gives back what a failed run left mapped. */
void sim_end(struct sim *sim);
/* Fails unless every map and every fd was given back. */
void sim_check_balance(struct sim *sim);
/* Never returns. */
_Noreturn void sim_fail(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define SIM_CHECK(sim, cond, ...)                                                                                      \
    do {                                                                                                               \
        if (__builtin_expect(!(cond), 0))                                                                              \
            sim_fail(sim, __VA_ARGS__);                                                                                \
    } while (0)

void sim_event(struct sim *sim, uint32_t kind, uint64_t a, uint64_t b);

uint64_t sim_random(struct sim *sim);
static inline uint64_t sim_below(struct sim *sim, uint64_t bound) {
    return (uint64_t)(((unsigned __int128)sim_random(sim) * bound) >> 64);
}
static inline uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high) {
    return low + sim_below(sim, high - low + 1);
}
/* True with probability permille / 1000. */
static inline bool sim_chance(struct sim *sim, uint32_t permille) {
    return sim_below(sim, 1000) < permille;
}
uint64_t sim_mix(uint64_t value);

/* Runs fn(arg) on the second OS thread and waits for it. Not nested. A failed check there unwinds here. */
void sim_other_run(struct sim *sim, void (*fn)(void *arg), void *arg);

#endif
