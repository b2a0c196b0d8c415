/*
 * reactor_uv.h - drives a reactor from a libuv loop: its own thread's, or the caller's.
 *
 * One uv_async_t (wake), one uv_timer_t (earliest deadline), one uv_prepare_t (turn, then park), one uv_check_t (take
 * back, turn). The only file pair, with later storage tiers, that sees libuv.
 */
#ifndef KVBM_RUNTIME_REACTOR_UV_H
#define KVBM_RUNTIME_REACTOR_UV_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/reactor.h"

struct kvbm_reactor_uv {
    struct kvbm_reactor *reactor;
    uv_loop_t *loop;
    uv_loop_t own_loop;
    bool owns_loop; /* own thread */
    struct kvbm_thread thread;
    uv_async_t async;
    uv_timer_t timer;
    uv_prepare_t prepare;
    uv_check_t check;
    uint32_t open_handles;
    _Atomic uint32_t stop;     /* set by stop; acted on by the loop's thread */
    _Atomic uint32_t finished; /* 1 once every handle is closed; futex word */
    void (*on_closed)(void *arg);
    void *on_closed_arg;
};

/* The reactor's options.wake must be kvbm_reactor_uv_wake with wake_ctx = drv.
 * loop == NULL: makes a loop and a thread of its own; returns once the thread runs. Otherwise attaches to `loop`; must
 * be called on that loop's thread. The reactor is handed over in state RUNNING. 0, -ENOMEM, -errno of libuv. */
int kvbm_reactor_uv_start(struct kvbm_reactor_uv *drv, struct kvbm_reactor *r, uv_loop_t *loop);
void kvbm_reactor_uv_wake(void *drv);
/* Stops driving. Own thread: takes the reactor back, closes all handles, asserts uv_loop_close() == 0, joins the thread,
 * and returns with the reactor RUNNING, owned by the caller; any thread but the reactor's own. Caller's loop: call on the
 * loop's thread; takes the reactor (waiting out a borrower), starts closing the handles and returns; `on_closed` is
 * called from the loop when they are closed, after which *drv may be freed. on_closed may be NULL for an own thread. */
void kvbm_reactor_uv_stop(struct kvbm_reactor_uv *drv, void (*on_closed)(void *arg), void *arg);

#endif
