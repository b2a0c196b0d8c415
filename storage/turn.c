/*
 * turn.c - see turn.h. Thread: the loop's.
 */
#include "storage/turn.h"

#include "runtime/log.h"

#define NS_PER_MS UINT64_C(1000000)

static void on_prepare(uv_prepare_t *prepare) {
    struct kvbm_turn *turn = prepare->data;
    turn->fn(turn->arg);
}

static void on_check(uv_check_t *check) {
    struct kvbm_turn *turn = check->data;
    turn->fn(turn->arg);
}

/* Does nothing: its being active keeps the loop from waiting. */
static void on_idle(uv_idle_t *idle) {
    (void)idle;
}

/* The turn follows in the same round of the loop. */
static void on_timer(uv_timer_t *timer) {
    struct kvbm_turn *turn = timer->data;
    turn->timer_ns = KVBM_NO_DEADLINE;
}

void kvbm_turn_open(struct kvbm_turn *turn, const struct kvbm_os *os, uv_loop_t *loop, void (*fn)(void *arg),
                    void *arg) {
    *turn = (struct kvbm_turn){.os = os, .fn = fn, .arg = arg, .timer_ns = KVBM_NO_DEADLINE, .open_handles = 4};
    turn->prepare.data = turn->check.data = turn->idle.data = turn->timer.data = turn;
    int rc = uv_prepare_init(loop, &turn->prepare); /* none of these can fail */
    KVBM_ASSERT(rc == 0);
    rc = uv_check_init(loop, &turn->check);
    KVBM_ASSERT(rc == 0);
    rc = uv_idle_init(loop, &turn->idle);
    KVBM_ASSERT(rc == 0);
    rc = uv_timer_init(loop, &turn->timer);
    KVBM_ASSERT(rc == 0);
    rc = uv_prepare_start(&turn->prepare, on_prepare);
    KVBM_ASSERT(rc == 0);
    rc = uv_check_start(&turn->check, on_check);
    KVBM_ASSERT(rc == 0);
}

void kvbm_turn_again(struct kvbm_turn *turn, bool again) {
    if (again == turn->again)
        return;
    turn->again = again;
    int rc = again ? uv_idle_start(&turn->idle, on_idle) : uv_idle_stop(&turn->idle);
    KVBM_ASSERT(rc == 0);
}

void kvbm_turn_at(struct kvbm_turn *turn, uint64_t at_ns) {
    if (at_ns == turn->timer_ns)
        return;
    if (at_ns == KVBM_NO_DEADLINE) {
        uv_timer_stop(&turn->timer);
    } else {
        uv_update_time(turn->timer.loop); /* the timer counts from the loop's idea of now */
        /* Whole milliseconds, of which the loop has begun one: two more are never early. */
        uint64_t now_ns = turn->os->now_ns(turn->os->ctx);
        uint64_t delay_ns = at_ns > now_ns ? at_ns - now_ns : 0;
        int rc = uv_timer_start(&turn->timer, on_timer, delay_ns / NS_PER_MS + 2, 0);
        KVBM_ASSERT(rc == 0);
    }
    turn->timer_ns = at_ns;
}

static void on_closed(uv_handle_t *handle) {
    struct kvbm_turn *turn = handle->data;
    KVBM_ASSERT(turn->open_handles > 0);
    if (--turn->open_handles == 0)
        turn->closed(turn->closed_arg); /* may free turn */
}

void kvbm_turn_close(struct kvbm_turn *turn, void (*closed)(void *arg), void *arg) {
    KVBM_ASSERT(!uv_is_closing((uv_handle_t *)&turn->prepare));
    turn->closed = closed;
    turn->closed_arg = arg;
    uv_close((uv_handle_t *)&turn->prepare, on_closed);
    uv_close((uv_handle_t *)&turn->check, on_closed);
    uv_close((uv_handle_t *)&turn->idle, on_closed);
    uv_close((uv_handle_t *)&turn->timer, on_closed);
}
