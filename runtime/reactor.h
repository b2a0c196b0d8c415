/*
 * reactor.h - runs the actors of one mailbox, one message at a time; and the borrow protocol.
 *
 * A reactor has one owner at every instant, said by `state`:
 *
 *     RUNNING   its own thread (or the simulation) runs the actors' turn
 *     PARKED    nobody does; its thread sleeps in libuv, or is on its way there or back
 *     BORROWED  an application thread runs the turn on its own stack
 *     WANTED    (a bit beside BORROWED) the reactor's thread woke up meanwhile and wants it back
 *
 *     reactor thread   RUNNING --park--> PARKED --take--> RUNNING;  take while BORROWED sets WANTED and sleeps again
 *     borrower         PARKED --borrow--> BORROWED --return--> PARKED; if WANTED was set or work is left: wake
 *
 * No message is lost: a producer enqueues, fences, loads `state`, and wakes the reactor if it reads PARKED. The parker
 * (thread or borrower) stores PARKED, fences, re-checks the lanes. One of the two sees the other. A producer that reads
 * BORROWED or RUNNING relies on that owner's re-check. `wake_pending` limits wake-ups to one a sleep: it is exchanged
 * by the producer before os wake, and cleared by the thread when it parks and after it took the reactor, both before it
 * looks at the lanes.
 *
 * Return lanes (retlane.h) do not wake anybody: they are drained at the start of each turn, so an actor that waits for
 * a returned id says so (`kvbm_reactor_want_returns`), and then a push wakes like a message.
 *
 * A borrower never calls libuv. If a borrowed turn armed an earlier deadline than the thread's timer knows, the return
 * wakes the thread, which re-arms.
 *
 * A borrower takes PARKED with acquire and gives it back with release, so plain fields of the reactor and its actors
 * pass from owner to owner. It still looks at the lanes after it gave the reactor back: whoever closes a reactor first
 * sees to it that no application thread is inside one of its functions.
 *
 * The driver (reactor_uv.h, or the simulation) supplies `wake` and calls park / take / turn.
 */
#ifndef KVBM_RUNTIME_REACTOR_H
#define KVBM_RUNTIME_REACTOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/actor.h"
#include "runtime/deadline.h"
#include "runtime/log.h"
#include "runtime/mailbox.h"
#include "runtime/os.h"
#include "runtime/retlane.h"

#define KVBM_REACTOR_RETLANE_COUNT_MAX 16

enum kvbm_reactor_state {
    KVBM_REACTOR_RUNNING = 0,
    KVBM_REACTOR_PARKED = 1,
    KVBM_REACTOR_BORROWED = 2,
    KVBM_REACTOR_WANTED = 4, /* only together with BORROWED */
};

struct kvbm_reactor_options {
    const char *name; /* at most 15 characters; becomes the thread's name */
    const struct kvbm_os *os;
    struct kvbm_logger *log; /* may be NULL */
    struct kvbm_mailbox_options mailbox;
    uint32_t deadline_capacity; /* all messages that can be armed at once */
    uint32_t turn_budget;       /* messages a turn, e.g. 256 */
    bool borrowable;
    void (*wake)(void *wake_ctx); /* any thread; e.g. kvbm_reactor_uv_wake */
    void *wake_ctx;
    const struct kvbm_msg_info *kinds; /* names for panics; may be NULL */
    uint16_t kind_count;
};

struct kvbm_reactor {
    struct kvbm_reactor_options options;
    const struct kvbm_os *os;
    struct kvbm_mailbox mailbox;
    _Alignas(64) _Atomic uint32_t state;
    _Atomic uint32_t wake_pending;
    _Atomic uint32_t returns_wanted; /* count of actors that wait for returned ids */
    /* Owner only. */
    _Alignas(64) struct kvbm_msg *local_head; /* FIFO of messages between actors of this reactor */
    struct kvbm_msg **local_tail;
    struct kvbm_deadlines deadlines;
    uint64_t timer_armed_ns; /* what the thread's timer is set to; written by the thread in park, read by the owner */
    struct {
        struct kvbm_retlane *lane;
        void (*fn)(void *arg, uint32_t id);
        void *arg;
    } retlanes[KVBM_REACTOR_RETLANE_COUNT_MAX];
    uint32_t retlane_count;
    /* What runs now, for panics. Copies: a handler may free its message. */
    struct kvbm_actor *current_actor;
    uint64_t current_op;
    uint16_t current_kind;
    uint16_t current_flags;
    /* Statistics: single writer (the owner), read anywhere, relaxed. */
    _Atomic uint64_t turn_count, message_count, borrow_count, borrow_lost_count, wake_count, expired_count;
};

/* Opens in state RUNNING, owned by the caller. 0, -EINVAL, -ENOMEM. */
int kvbm_reactor_open(struct kvbm_reactor *r, const struct kvbm_reactor_options *options);
/* Owner only, with everything drained (asserted). */
void kvbm_reactor_close(struct kvbm_reactor *r);

/* Set-up, before anything is posted. */
void kvbm_reactor_actor_add(struct kvbm_reactor *r, struct kvbm_actor *actor);
void kvbm_reactor_retlane_add(struct kvbm_reactor *r, struct kvbm_retlane *lane, void (*fn)(void *arg, uint32_t id),
                              void *arg);

/* ---- owner (handlers run inside these) ---- */
/* Drains return lanes, expires deadlines, then runs up to `budget` messages: the local queue first, but after
 * `lane_batch` local messages in a row one from the lanes. Returns how many ran. */
uint32_t kvbm_reactor_turn(struct kvbm_reactor *r, uint32_t budget);
/* True if a turn would find something (messages, local queue, return lanes; not deadlines). */
bool kvbm_reactor_has_work(struct kvbm_reactor *r);
void kvbm_reactor_arm(struct kvbm_reactor *r, struct kvbm_msg *msg);
void kvbm_reactor_disarm(struct kvbm_reactor *r, struct kvbm_msg *msg);
/* +1 / -1 to the number of actors that want pushes to return lanes to wake the reactor. Fenced; the caller drains once
 * more after +1 (the running turn does so before it ends). */
void kvbm_reactor_want_returns(struct kvbm_reactor *r, int delta);

/* ---- driver ---- */
/* RUNNING -> PARKED, unless work is found on the re-check: then false, and the caller still owns it. Sets
 * timer_armed_ns = *timer_ns = the next deadline (KVBM_NO_DEADLINE: none). */
bool kvbm_reactor_park(struct kvbm_reactor *r, uint64_t *timer_ns);
/* PARKED -> RUNNING (true); BORROWED -> BORROWED|WANTED (false: the borrower will wake us). Clears wake_pending. */
bool kvbm_reactor_take(struct kvbm_reactor *r);

/* ---- application threads ---- */
/* Moves `msg` (msg->to set) to the reactor, waking it if need be. 0 or -EAGAIN (the caller keeps it). From inside a
 * handler of this same reactor it goes to the local queue. */
int kvbm_reactor_post_mt(struct kvbm_reactor *r, struct kvbm_msg *msg);
/* As post, but first tries to borrow: then `msg` is handled on this thread, after what already stood in the lanes,
 * within the turn budget. 0: moved, and either already handled or queued; -EAGAIN. */
int kvbm_reactor_call_mt(struct kvbm_reactor *r, struct kvbm_msg *msg);
/* Runs a turn on this thread if the reactor is parked. True if it ran (then everything pushed or posted by this thread
 * before has been handled, unless the budget ended). */
bool kvbm_reactor_settle_mt(struct kvbm_reactor *r);
/* Directly after kvbm_retlane_push*, whose exchange is this call's fence: wakes the reactor if an actor wants returns.
 */
void kvbm_reactor_returned_mt(struct kvbm_reactor *r);
/* The reactor whose turn the calling thread is inside of, or NULL. */
struct kvbm_reactor *kvbm_reactor_current_mt(void);

#endif
