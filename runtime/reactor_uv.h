/*
 * reactor_uv.h - drives a reactor from a libuv loop: its own thread's, or the caller's.
 *
 * Two handles: a uv_poll_t on an eventfd of its own (wake) and a uv_timer_t (earliest deadline). Not a uv_async_t: its
 * receiver spins and yields while a sender is descheduled inside uv_async_send. With it a cross-thread await was
 * measured at 1.7 times the echo floor, with this at 1.2 (one CPU; different runs).
 *
 * The callbacks take the reactor, run its turns and park it again, so between callbacks it is parked: any thread may
 * borrow it, the loop's own other callbacks included; and a loop that is run in pieces (UV_RUN_NOWAIT, UV_RUN_ONCE, an
 * embedded backend fd) is woken for what comes between the pieces. A callback that leaves work behind wakes its own
 * loop and lets other handles have their say first. The only file pair, with later storage tiers, that sees libuv.
 *
 * A forked child that runs its copy of a caller's loop (uv_loop_fork) shares the eventfd with its parent: there the
 * handles stop, so that the child does not swallow the parent's wake-ups.
 *
 * On a caller's loop the wake handle is referenced: uv_run serves until kvbm_reactor_uv_stop. The timer is not.
 */
#ifndef KVBM_RUNTIME_REACTOR_UV_H
#define KVBM_RUNTIME_REACTOR_UV_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/reactor.h"

struct kvbm_reactor_uv {
    struct kvbm_reactor *reactor;
    uint32_t fork_stamp;
    uv_loop_t *loop;
    uv_loop_t own_loop;
    bool owns_loop; /* own thread */
    struct kvbm_thread thread;
    uv_poll_t wake;
    int wake_fd;
    uv_timer_t timer;
    /* Loop thread only. */
    uint32_t open_handles;
    bool holding;      /* the loop's thread owns the reactor between callbacks: work was left */
    bool timer_due;    /* the timer fired since the last take */
    uint64_t timer_ns; /* what the timer stands at; KVBM_NO_DEADLINE: stopped */
    /* Any thread. */
    _Atomic uint32_t stop;    /* set by stop; acted on by the loop's thread */
    _Atomic uint32_t closing; /* the handles are about to close: no more writes of wake_fd */
    _Atomic uint32_t wakers;  /* threads inside kvbm_reactor_uv_wake */
    _Atomic uint32_t started; /* 1 once the own thread has run its first turns; futex word */
    void (*on_closed)(void *arg);
    void *on_closed_arg;
};

/* The reactor's options.wake must be kvbm_reactor_uv_wake with wake_ctx = drv.
 * loop == NULL: makes a loop and a thread of its own; returns once the thread runs. Otherwise attaches to `loop`; must
 * be called on that loop's thread. The reactor is handed over in state RUNNING and is PARKED on return. 0, or -errno,
 * of libuv too (then the reactor is the caller's as before). */
int kvbm_reactor_uv_start(struct kvbm_reactor_uv *drv, struct kvbm_reactor *r, uv_loop_t *loop);
void kvbm_reactor_uv_wake(void *drv);
/* Caller's loop, on its thread, outside of handlers of any reactor: runs what there is now, as the loop's next turn
 * would, for a caller that must not return to the loop yet. False: a borrower has the reactor and will wake the loop,
 * or it is being stopped. */
bool kvbm_reactor_uv_turn(struct kvbm_reactor_uv *drv);
/* Stops driving. The caller sees to it that no application thread is inside, or will call, a function of the reactor.
 * Own thread: waits out a borrower, takes the reactor back, closes all handles, asserts uv_loop_close() == 0, joins the
 * thread, calls on_closed (may be NULL), and returns with the reactor RUNNING, owned by the caller. From any thread but
 * the reactor's own, and not from inside one of its handlers (asserted).
 * Caller's loop: on the loop's thread, from anywhere there, a handler included; returns at once. The loop's next
 * iterations take the reactor (a borrower is waited for without blocking the loop) and close the handles; then
 * `on_closed` is called from the loop with the reactor RUNNING and owned by the loop's thread, and *drv may be freed.
 */
void kvbm_reactor_uv_stop(struct kvbm_reactor_uv *drv, void (*on_closed)(void *arg), void *arg);

#endif
