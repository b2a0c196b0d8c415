/*
 * wake_model.h - an exhaustive explorer of the wake and borrow protocol of runtime/reactor.h.
 *
 * The protocol is written down once more at the level of its atomic steps, for two producers, a thread that returns
 * ids, a borrower, the reactor's own thread and one spurious wake-up; every thread has a store buffer (total store
 * order: the weakest that x86 shows, and what a full fence is there to empty), whose entries reach memory at any later
 * time. The explorer visits every reachable state. A variant leaves out one step that the protocol rests on; each must
 * be caught. Thread: any, one exploration at a time.
 */
#ifndef KVBM_TESTS_SIM_WAKE_MODEL_H
#define KVBM_TESTS_SIM_WAKE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* X(NAME, text): the step that the variant leaves out. WHOLE leaves out none. */
#define WAKE_VARIANTS(X)                                                                                               \
    X(WHOLE, "the protocol as it is")                                                                                  \
    X(NO_RECHECK, "the parker does not look at the lanes again")                                                       \
    X(NO_PARKER_FENCE, "the parker does not fence between PARKED and the look")                                        \
    X(NO_PRODUCER_FENCE, "the producer does not fence between enqueue and the test")                                   \
    X(PENDING_CLEARED_LATE, "the thread clears wake_pending after it looked at the lanes")                             \
    X(PENDING_NOT_CLEARED, "the thread never clears wake_pending")                                                     \
    X(NO_RETURN_RECHECK, "the borrower hands back without looking at the lanes again")                                 \
    X(WANTED_FORGOTTEN, "a borrower's return does not wake a thread that wants the reactor")                           \
    X(NO_TIMER_WAKE, "a borrower that armed an earlier deadline does not wake the thread")                             \
    X(RETURNS_NOT_DRAINED, "an actor that starts to wait for returns neither drains once more nor is looked after")    \
    X(NO_RETURNS_FENCE, "who pushes a return does not fence before testing whether it is wanted")                      \
    X(BORROW_WITHOUT_EXCHANGE, "the borrower tests for PARKED and then stores BORROWED")

enum wake_variant {
#define X(name, text) WAKE_##name,
    WAKE_VARIANTS(X)
#undef X
        WAKE_VARIANT_COUNT
};

struct wake_result {
    uint64_t states; /* distinct states visited */
    uint64_t transitions;
    uint64_t endings;      /* states in which nothing more can happen */
    const char *violation; /* NULL, or the first one found; static */
};

/* Explores every interleaving; `large` adds two messages and a wake-up for no reason (seconds rather than
 * milliseconds). Aborts when memory for the visited set cannot be had. */
struct wake_result wake_model_explore(enum wake_variant variant, bool large);
const char *wake_variant_text(enum wake_variant variant);

#endif
