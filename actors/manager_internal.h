/*
 * manager_internal.h - the seam between the manager and what drives it: libuv in production, the simulation in tests.
 */
#ifndef KVBM_ACTORS_MANAGER_INTERNAL_H
#define KVBM_ACTORS_MANAGER_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "actors/kvbm.h"
#include "runtime/os.h"
#include "runtime/reactor.h"

/* How a manager's core reactor is driven when it is not libuv: the embedder parks, takes and turns it by hand
 * (runtime/reactor.h) and is told of wake-ups. */
struct kvbm__drive {
    const struct kvbm_os *os;
    void (*wake)(void *ctx);
    void *ctx;
    uint32_t thread_capacity; /* lane size, 0: default; small values make full lanes common */
    uint32_t turn_budget;     /* 0: default */
};

/* As kvbm_manager_open, with the reactor left RUNNING and owned by the caller. */
int kvbm__manager_open_driven(const kvbm_options *options, const struct kvbm__drive *drive, kvbm_manager **manager,
                              kvbm_failure *failure);
struct kvbm_reactor *kvbm__manager_reactor(kvbm_manager *manager);
/* Driven managers: begins the shutdown (kvbm_manager_close_mt without waiting). The embedder turns the reactor until
 * kvbm__manager_drained, then calls kvbm__manager_finish with the reactor RUNNING and owned. */
void kvbm__manager_close_begin(kvbm_manager *manager);
bool kvbm__manager_drained(kvbm_manager *manager);
void kvbm__manager_finish(kvbm_manager *manager);

/* The invariants that hold between any two messages (owner of the reactor only): every slot in exactly one state, and
 * the states' counts equal the gauges; free lists, policy and index agree with the slots; registry entries point at
 * registered slots and back; no operation both free and in flight; waiting line consistent. Returns the number of
 * violations and writes the first ones as text. */
uint64_t kvbm__manager_check(kvbm_manager *manager, char *text, size_t text_bytes);

#endif
