/*
 * turn.h - gives an object a call on each turn of a libuv loop, right before and right after the loop waits for events,
 * and at a time it asks for. Owns four handles of the loop. Thread: the loop's.
 *
 * It keeps a loop alive. libuv counts milliseconds: a time is met late by up to two of them, never early.
 */
#ifndef KVBM_STORAGE_TURN_H
#define KVBM_STORAGE_TURN_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/os.h"

struct kvbm_turn {
    const struct kvbm_os *os;
    void (*fn)(void *arg);
    void *arg;
    void (*closed)(void *arg);
    void *closed_arg;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t timer;
    uint64_t timer_ns; /* KVBM_NO_DEADLINE: it does not run */
    uint32_t open_handles;
    bool again;
};

/* fn(arg) is called twice on every turn from now on. `turn` must not move until closed. */
void kvbm_turn_open(struct kvbm_turn *turn, const struct kvbm_os *os, uv_loop_t *loop, void (*fn)(void *arg),
                    void *arg);
/* From fn: whether the loop must not wait before the next call. */
void kvbm_turn_again(struct kvbm_turn *turn, bool again);
/* A turn happens at or soon after now_ns (monotonic); replaces the time set before. KVBM_NO_DEADLINE: none. */
void kvbm_turn_at(struct kvbm_turn *turn, uint64_t at_ns);
/* No further fn; closed(arg) once the handles are the caller's again. */
void kvbm_turn_close(struct kvbm_turn *turn, void (*closed)(void *arg), void *arg);

#endif
