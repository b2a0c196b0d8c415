/*
 * reactor_uv.c - drives a reactor from a libuv loop (reactor_uv.h). Owns the two handles, the eventfd and, with an own
 * thread, the loop. Callbacks: the loop's thread.
 *
 * The eventfd is a level: a write before the loop sleeps keeps it awake, and the callback reads it before it takes the
 * reactor. So a write that comes after the read is seen by the next sleep, and one that came before it belongs to a
 * wake_pending that the take has yet to clear.
 */
#include "runtime/reactor_uv.h"

#include <errno.h>

#include "runtime/log.h"

/* Turns in one callback before other handles of the loop have their say. */
#define ROUND_COUNT_MAX 4
#define NS_PER_MS       1000000ull

static void on_timer(uv_timer_t *timer);

/* Makes the timer fire at or soon after `timer_ns`. */
static void timer_set(struct kvbm_reactor_uv *drv, uint64_t timer_ns) {
    if (timer_ns == drv->timer_ns)
        return;
    if (timer_ns == KVBM_NO_DEADLINE) {
        uv_timer_stop(&drv->timer);
        drv->timer_ns = KVBM_NO_DEADLINE;
        return;
    }
    uv_update_time(drv->loop); /* the timer counts from the loop's idea of now */
    uint64_t now_ns = drv->reactor->os->now_ns(drv->reactor->os->ctx);
    uint64_t delay_ns = timer_ns > now_ns ? timer_ns - now_ns : 0;
    /* Rounded up, and at least 1: libuv of old runs a timer of 0 ms started in a timer's callback for ever. */
    uint64_t delay_ms = delay_ns / NS_PER_MS + (delay_ns % NS_PER_MS != 0);
    int rc = uv_timer_start(&drv->timer, on_timer, delay_ms != 0 ? delay_ms : 1, 0);
    KVBM_ASSERT(rc == 0);
    drv->timer_ns = timer_ns;
}

static void on_handle_closed(uv_handle_t *handle) {
    struct kvbm_reactor_uv *drv = handle->data;
    KVBM_ASSERT(drv->open_handles > 0);
    drv->open_handles--;
    if (drv->open_handles != 0)
        return;
    drv->reactor->os->event_close(drv->reactor->os->ctx, drv->wake_fd);
    if (!drv->owns_loop && drv->on_closed != NULL)
        drv->on_closed(drv->on_closed_arg); /* may free drv */
}

static void close_handles(struct kvbm_reactor_uv *drv) {
    const struct kvbm_os *os = drv->reactor->os;
    /* Sequentially consistent, as in kvbm_reactor_uv_wake: a waker sees closing, or this sees the waker. */
    atomic_store_explicit(&drv->closing, 1, memory_order_seq_cst);
    for (;;) {
        uint32_t wakers = atomic_load_explicit(&drv->wakers, memory_order_seq_cst);
        if (wakers == 0)
            break;
        /* It is within a few instructions and one write of leaving; nobody wakes this, it looks again. */
        os->wait_u32(os->ctx, &drv->wakers, wakers, os->now_ns(os->ctx) + 50000);
    }
    uv_close((uv_handle_t *)&drv->wake, on_handle_closed);
    uv_close((uv_handle_t *)&drv->timer, on_handle_closed);
}

static void signal_loop(struct kvbm_reactor_uv *drv) {
    drv->reactor->os->event_signal(drv->reactor->os->ctx, drv->wake_fd);
}

/* Turns until nothing is left, then parks, and the timer knows the next deadline. False: a handler asked for the stop,
 * or it is time for others, and the loop's thread still holds the reactor. */
static bool run(struct kvbm_reactor_uv *drv) {
    struct kvbm_reactor *r = drv->reactor;
    for (uint32_t round = 0; round < ROUND_COUNT_MAX; round++) {
        uint64_t timer_ns = KVBM_NO_DEADLINE;
        kvbm_reactor_turn(r, r->options.turn_budget);
        if (kvbm_reactor_park(r, &timer_ns)) {
            drv->holding = false;
            timer_set(drv, timer_ns);
            return true;
        }
        /* A handler may have asked for the stop. Acquire: pairs with the release there. */
        if (atomic_load_explicit(&drv->stop, memory_order_acquire) != 0)
            break;
    }
    signal_loop(drv); /* work is left: come back at once, after the loop's other handles */
    return false;
}

/* The loop's thread takes the reactor, unless it has it. False: a borrower does, and will wake it. */
static bool hold(struct kvbm_reactor_uv *drv) {
    if (!drv->holding && !kvbm_reactor_take(drv->reactor))
        return false;
    drv->timer_due = false;
    drv->holding = true;
    return true;
}

/* Takes the reactor if this thread is asked to, runs it, parks it. */
static void serve(struct kvbm_reactor_uv *drv) {
    /* Acquire: pairs with the release in kvbm_reactor_uv_stop. */
    bool stop = atomic_load_explicit(&drv->stop, memory_order_acquire) != 0;
    if (uv_is_closing((uv_handle_t *)&drv->wake))
        return;
    /* Relaxed: whoever needs this thread set wake_pending and then made this loop run. */
    if (!drv->holding && !stop && !drv->timer_due &&
        atomic_load_explicit(&drv->reactor->wake_pending, memory_order_relaxed) == 0)
        return;
    if (!hold(drv))
        return;
    if (stop)
        close_handles(drv);
    else
        run(drv);
}

bool kvbm_reactor_uv_turn(struct kvbm_reactor_uv *drv) {
    KVBM_ASSERT(!drv->owns_loop && kvbm_reactor_current_mt() == NULL);
    /* Acquire: as in serve. Being stopped: what is left is the loop's to do. */
    if (atomic_load_explicit(&drv->stop, memory_order_acquire) != 0 || !hold(drv))
        return false;
    run(drv);
    return true;
}

/* In a forked child: the reactor is the parent's. */
static bool left_to_parent(struct kvbm_reactor_uv *drv) {
    if (!kvbm_os_forked_mt(drv->fork_stamp))
        return false;
    uv_poll_stop(&drv->wake);
    uv_timer_stop(&drv->timer);
    return true;
}

/* An error of the poll (status < 0) is served like a wake-up: there is nothing to read, and nothing is lost. */
static void on_wake(uv_poll_t *wake, int status, int events) {
    struct kvbm_reactor_uv *drv = wake->data;
    (void)status;
    (void)events;
    if (left_to_parent(drv))
        return;
    drv->reactor->os->event_clear(drv->reactor->os->ctx, drv->wake_fd);
    serve(drv);
}

static void on_timer(uv_timer_t *timer) {
    struct kvbm_reactor_uv *drv = timer->data;
    if (left_to_parent(drv))
        return;
    drv->timer_due = true;
    drv->timer_ns = KVBM_NO_DEADLINE; /* it stands at nothing now */
    serve(drv);
}

/* Makes the eventfd and the handles; on failure there are none. */
static int open_handles(struct kvbm_reactor_uv *drv) {
    const struct kvbm_os *os = drv->reactor->os;
    drv->wake_fd = os->event_open(os->ctx);
    if (drv->wake_fd < 0)
        return drv->wake_fd;
    int rc = uv_poll_init(drv->loop, &drv->wake, drv->wake_fd);
    if (rc != 0) {
        os->event_close(os->ctx, drv->wake_fd);
        return rc;
    }
    /* libuv: these only fill in and link the handles and cannot fail. */
    uv_timer_init(drv->loop, &drv->timer);
    rc = uv_poll_start(&drv->wake, UV_READABLE, on_wake);
    KVBM_ASSERT(rc == 0);
    uv_handle_set_data((uv_handle_t *)&drv->wake, drv);
    uv_handle_set_data((uv_handle_t *)&drv->timer, drv);
    uv_unref((uv_handle_t *)&drv->timer);
    drv->open_handles = 2;
    return 0;
}

static void thread_run(void *arg) {
    struct kvbm_reactor_uv *drv = arg;
    serve(drv);
    /* Release: pairs with the acquire in start_own. */
    atomic_store_explicit(&drv->started, 1, memory_order_release);
    drv->reactor->os->wake_u32(drv->reactor->os->ctx, &drv->started, true);
    uv_run(drv->loop, UV_RUN_DEFAULT);
    KVBM_ASSERT(drv->open_handles == 0);
    int rc = uv_loop_close(drv->loop);
    KVBM_ASSERT_MSG(rc == 0, "uv_loop_close: %s", uv_err_name(rc));
}

static int start_own(struct kvbm_reactor_uv *drv) {
    const struct kvbm_os *os = drv->reactor->os;
    drv->loop = &drv->own_loop;
    int rc = uv_loop_init(drv->loop);
    if (rc != 0)
        return rc;
    rc = open_handles(drv);
    if (rc != 0) {
        uv_loop_close(drv->loop);
        return rc;
    }
    rc = os->thread_start(os->ctx, &drv->thread, thread_run, drv, drv->reactor->options.name);
    if (rc != 0) {
        close_handles(drv);
        uv_run(drv->loop, UV_RUN_DEFAULT);
        int closed = uv_loop_close(drv->loop);
        KVBM_ASSERT(closed == 0);
        return rc;
    }
    /* Acquire: pairs with the release in thread_run. */
    while (atomic_load_explicit(&drv->started, memory_order_acquire) == 0)
        os->wait_u32(os->ctx, &drv->started, 0, KVBM_NO_DEADLINE);
    return 0;
}

int kvbm_reactor_uv_start(struct kvbm_reactor_uv *drv, struct kvbm_reactor *r, uv_loop_t *loop) {
    KVBM_ASSERT(r->options.wake == kvbm_reactor_uv_wake && r->options.wake_ctx == drv);
    KVBM_ASSERT(atomic_load_explicit(&r->state, memory_order_relaxed) == KVBM_REACTOR_RUNNING);
    *drv = (struct kvbm_reactor_uv){.reactor = r, .loop = loop, .owns_loop = loop == NULL};
    drv->fork_stamp = kvbm_os_fork_stamp_mt();
    drv->holding = true;
    drv->timer_ns = KVBM_NO_DEADLINE;
    if (drv->owns_loop)
        return start_own(drv);
    int rc = open_handles(drv);
    if (rc == 0)
        serve(drv); /* parks: borrowable before the loop first runs */
    return rc;
}

void kvbm_reactor_uv_wake(void *arg) {
    struct kvbm_reactor_uv *drv = arg;
    /* Sequentially consistent: pairs with close_handles. */
    atomic_fetch_add_explicit(&drv->wakers, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&drv->closing, memory_order_seq_cst) == 0)
        signal_loop(drv);
    /* Release: the write is over; pairs with the load in close_handles. */
    atomic_fetch_sub_explicit(&drv->wakers, 1, memory_order_release);
}

void kvbm_reactor_uv_stop(struct kvbm_reactor_uv *drv, void (*on_closed)(void *arg), void *arg) {
    const struct kvbm_os *os = drv->reactor->os;
    KVBM_ASSERT_MSG(!drv->owns_loop || kvbm_reactor_current_mt() != drv->reactor,
                    "a handler of reactor %s stops its own thread", drv->reactor->options.name);
    KVBM_ASSERT(drv->owns_loop || on_closed != NULL);
    drv->on_closed = on_closed;
    drv->on_closed_arg = arg;
    /* Release: on_closed; pairs with the acquire in serve. */
    uint32_t before = atomic_exchange_explicit(&drv->stop, 1, memory_order_acq_rel);
    KVBM_ASSERT_MSG(before == 0, "reactor %s is stopped twice", drv->reactor->options.name);
    kvbm_reactor_uv_wake(drv);
    if (!drv->owns_loop)
        return;
    os->thread_join(os->ctx, &drv->thread);
    if (on_closed != NULL)
        on_closed(arg);
}
