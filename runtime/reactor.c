/*
 * reactor.c - the turn, the borrow protocol and the wake protocol (reactor.h). Owns mailbox and deadline heap.
 *
 * Owner-only fields pass from owner to owner through `state`: stored with release (park, give_back), exchanged with
 * acquire (take, try_borrow).
 */
#include "runtime/reactor.h"

#include <errno.h>
#include <stdio.h>

#include "runtime/fence_internal.h"
#include "runtime/log_internal.h"
#include "runtime/reactor_internal.h"

/* How often a borrower runs work that came while it handed the reactor back, before it leaves that to the thread. */
#define BORROW_ROUND_COUNT_MAX 4

/* The reactor whose turn this thread is inside of. */
static _Thread_local struct kvbm_reactor *current_reactor;

/* One writer at a time (the owner). Relaxed: a statistic, paired with nothing. */
static inline void count(_Atomic uint64_t *counter, uint64_t n) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

/* ----------------------------------------------------------------------------------------------------- open, close */

static void describe_current(char *text, size_t size) {
    const struct kvbm_reactor *r = current_reactor;
    if (r == NULL || r->current_actor == NULL)
        return;
    const char *kind = r->options.kinds != NULL && r->current_kind < r->options.kind_count
                           ? r->options.kinds[r->current_kind].name
                           : NULL;
    snprintf(text, size, "reactor=%s actor=%s %s=%s(%u) op=%llx", r->options.name, r->current_actor->name,
             (r->current_flags & KVBM_MSG_REPLY) != 0 ? "reply" : "message", kind != NULL ? kind : "?",
             (unsigned)r->current_kind, (unsigned long long)r->current_op);
}

int kvbm_reactor_open(struct kvbm_reactor *r, const struct kvbm_reactor_options *options) {
    if (options->os == NULL || options->name == NULL || options->wake == NULL || options->turn_budget == 0)
        return -EINVAL;
    *r = (struct kvbm_reactor){.options = *options, .os = options->os, .timer_armed_ns = KVBM_NO_DEADLINE};
    r->local_tail = &r->local_head;
    atomic_init(&r->state, KVBM_REACTOR_RUNNING);
    int rc = kvbm_mailbox_open(&r->mailbox, r->os, &options->mailbox);
    if (rc != 0)
        return rc;
    rc = kvbm_deadlines_open(&r->deadlines, r->os, options->deadline_capacity);
    if (rc != 0) {
        kvbm_mailbox_close(&r->mailbox);
        return rc;
    }
    kvbm__panic_describe_set_mt(describe_current);
    return 0;
}

void kvbm_reactor_close(struct kvbm_reactor *r) {
    KVBM_ASSERT(atomic_load_explicit(&r->state, memory_order_relaxed) == KVBM_REACTOR_RUNNING);
    KVBM_ASSERT(current_reactor != r && r->local_head == NULL);
    kvbm_deadlines_close(&r->deadlines);
    kvbm_mailbox_close(&r->mailbox);
}

void kvbm_reactor_actor_add(struct kvbm_reactor *r, struct kvbm_actor *actor) {
    KVBM_ASSERT(actor->reactor == NULL && actor->name != NULL);
    KVBM_ASSERT(actor->kind_count == 0 || actor->on_request != NULL || actor->on_reply != NULL);
    actor->reactor = r;
}

void kvbm_reactor_retlane_add(struct kvbm_reactor *r, struct kvbm_retlane *lane, void (*fn)(void *arg, uint32_t id),
                              void *arg) {
    KVBM_ASSERT(r->retlane_count < KVBM_REACTOR_RETLANE_COUNT_MAX && fn != NULL);
    r->retlanes[r->retlane_count].lane = lane;
    r->retlanes[r->retlane_count].fn = fn;
    r->retlanes[r->retlane_count].arg = arg;
    r->retlane_count++;
}

/* ----------------------------------------------------------------------------------------------------------- a turn */

static void dispatch(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    bool reply = (msg->flags & KVBM_MSG_REPLY) != 0;
    struct kvbm_actor *actor = reply ? msg->reply_to : msg->to;
    r->current_actor = actor;
    r->current_kind = msg->kind;
    r->current_flags = msg->flags;
    r->current_op = msg->op;
    KVBM_ASSERT(actor != NULL && actor->reactor == r);
    const kvbm_handler_fn *handlers = reply ? actor->on_reply : actor->on_request;
    KVBM_ASSERT_MSG(handlers != NULL && msg->kind < actor->kind_count && handlers[msg->kind] != NULL,
                    "actor %s has no handler for %s of kind %u", actor->name, reply ? "replies" : "requests",
                    (unsigned)msg->kind);
    count(&actor->handled_count, 1);
    handlers[msg->kind](actor, msg);
}

static inline struct kvbm_msg *local_pop(struct kvbm_reactor *r) {
    struct kvbm_msg *msg = r->local_head;
    r->local_head = msg->next;
    if (r->local_head == NULL)
        r->local_tail = &r->local_head;
    return msg;
}

/* Runs up to `budget` messages. The local queue goes first, which ends operations before others begin; but after
 * lane_batch of them in a row the lanes get one, so that actors that talk to each other for ever starve nobody. */
static uint32_t run_messages(struct kvbm_reactor *r, uint32_t budget) {
    uint32_t ran = 0;
    uint32_t streak = 0;
    while (ran < budget) {
        struct kvbm_msg *msg = NULL;
        if (r->local_head == NULL || streak == r->options.mailbox.lane_batch) {
            msg = kvbm_mailbox_take(&r->mailbox);
            streak = 0;
        }
        if (msg == NULL && r->local_head != NULL) {
            msg = local_pop(r);
            streak++;
        }
        if (msg == NULL)
            break;
        dispatch(r, msg);
        ran++;
    }
    return ran;
}

static void drain_returns(struct kvbm_reactor *r) {
    for (uint32_t i = 0; i < r->retlane_count; i++) {
        if (!kvbm_retlane_empty_mt(r->retlanes[i].lane))
            kvbm_retlane_drain(r->retlanes[i].lane, r->retlanes[i].fn, r->retlanes[i].arg);
    }
}

static bool returns_waiting(const struct kvbm_reactor *r) {
    for (uint32_t i = 0; i < r->retlane_count; i++) {
        if (!kvbm_retlane_empty_mt(r->retlanes[i].lane))
            return true;
    }
    return false;
}

static void expire_deadlines(struct kvbm_reactor *r) {
    if (r->deadlines.count == 0)
        return;
    uint64_t now_ns = r->os->now_ns(r->os->ctx);
    /* Bounded, as a handler may arm again what is due at once. */
    for (uint32_t left = r->deadlines.count; left != 0; left--) {
        struct kvbm_msg *msg = kvbm_deadlines_expire(&r->deadlines, now_ns);
        if (msg == NULL)
            break;
        struct kvbm_actor *actor = msg->to;
        r->current_actor = actor;
        r->current_kind = msg->kind;
        r->current_flags = msg->flags;
        r->current_op = msg->op;
        KVBM_ASSERT_MSG(actor->on_deadline != NULL, "actor %s armed a deadline and has no on_deadline", actor->name);
        count(&r->expired_count, 1);
        actor->on_deadline(actor, msg);
    }
}

/* Tells those who wait for credit that the data lane has room. */
static void hand_out_credits(struct kvbm_reactor *r) {
    for (;;) {
        struct kvbm_msg *credit = kvbm_mailbox_take_credit(&r->mailbox);
        if (credit == NULL)
            return;
        kvbm_actor_reply(credit->to, credit, 0);
    }
}

/* Begins and ends what runs handlers: names this reactor as the thread's current one. */
static inline struct kvbm_reactor *turn_enter(struct kvbm_reactor *r, struct kvbm_reactor **slot) {
    struct kvbm_reactor *outer = *slot;
    KVBM_ASSERT_MSG(outer != r, "a turn inside a turn of reactor %s", r->options.name);
    *slot = r;
    return outer;
}

static inline void turn_leave(struct kvbm_reactor *r, struct kvbm_reactor **slot, struct kvbm_reactor *outer,
                              uint32_t ran) {
    hand_out_credits(r);
    /* Relaxed: written by this owner, in kvbm_reactor_want_returns. */
    if (atomic_load_explicit(&r->returns_wanted, memory_order_relaxed) != 0)
        drain_returns(r);
    count(&r->turn_count, 1);
    count(&r->message_count, ran);
    r->current_actor = NULL;
    *slot = outer;
}

uint32_t kvbm_reactor_turn(struct kvbm_reactor *r, uint32_t budget) {
    KVBM_ASSERT(atomic_load_explicit(&r->state, memory_order_relaxed) != KVBM_REACTOR_PARKED);
    struct kvbm_reactor **slot = &current_reactor;
    struct kvbm_reactor *outer = turn_enter(r, slot);
    drain_returns(r);
    expire_deadlines(r);
    uint32_t ran = run_messages(r, budget);
    turn_leave(r, slot, outer, ran);
    return ran;
}

bool kvbm_reactor_has_work(struct kvbm_reactor *r) {
    return r->local_head != NULL || !kvbm_mailbox_empty_mt(&r->mailbox) || returns_waiting(r);
}

void kvbm_reactor_arm(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    KVBM_ASSERT(msg->to != NULL && msg->to->reactor == r);
    kvbm_deadlines_arm(&r->deadlines, msg);
}

void kvbm_reactor_disarm(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    kvbm_deadlines_disarm(&r->deadlines, msg);
}

void kvbm_reactor_want_returns(struct kvbm_reactor *r, int delta) {
    KVBM_ASSERT(delta == 1 || delta == -1);
    /* Sequentially consistent: pairs with kvbm_reactor_returned_mt. A pusher that still reads zero pushed before this,
     * and the drain at the end of this turn, or the re-check after parking, finds it. */
    uint32_t before = atomic_fetch_add_explicit(&r->returns_wanted, (uint32_t)delta, memory_order_seq_cst);
    KVBM_ASSERT(delta == 1 || before > 0);
    kvbm__fence_after_rmw();
}

/* ----------------------------------------------------------------------------------------- wake, park, take, borrow */

void kvbm__reactor_wake_mt(struct kvbm_reactor *r) {
    /* The load spares an exchange while a wake-up is under way; it is ordered after the caller's enqueue by the post's
     * fence, and pairs with the fence in kvbm_reactor_take: if this reads an old 1, that thread sees the message. */
    if (atomic_load_explicit(&r->wake_pending, memory_order_relaxed) != 0 ||
        atomic_exchange_explicit(&r->wake_pending, 1, memory_order_seq_cst) != 0)
        return;
    atomic_fetch_add_explicit(&r->wake_count, 1, memory_order_relaxed);
    r->options.wake(r->options.wake_ctx);
}

/* What a former owner may look at after it stored PARKED and fenced. Return lanes count only if an actor waits. */
static bool shared_work(const struct kvbm_reactor *r) {
    if (!kvbm_mailbox_empty_mt(&r->mailbox))
        return true;
    /* Relaxed: after the fence of the caller's. */
    return atomic_load_explicit(&r->returns_wanted, memory_order_relaxed) != 0 && returns_waiting(r);
}

bool kvbm_reactor_park(struct kvbm_reactor *r, uint64_t *timer_ns) {
    KVBM_ASSERT(atomic_load_explicit(&r->state, memory_order_relaxed) == KVBM_REACTOR_RUNNING);
    if (kvbm_reactor_has_work(r))
        return false;
    r->timer_armed_ns = kvbm_deadlines_next_ns(&r->deadlines);
    *timer_ns = r->timer_armed_ns;
    /* A producer that saw the PARKED of an attempt which found work set this while we ran, and its signal may have been
     * consumed since. Whoever sets it from here on also sends its signal from here on. Relaxed: the exchange below is
     * the fence between this and the look at the lanes, as in kvbm_reactor_take. */
    atomic_store_explicit(&r->wake_pending, 0, memory_order_relaxed);
    /* Release: everything the owner wrote; pairs with the acquire in try_borrow and kvbm_reactor_take. Then the fence
     * of the wake protocol; pairs with the one at the end of each post. */
    atomic_exchange_explicit(&r->state, KVBM_REACTOR_PARKED, memory_order_seq_cst);
    kvbm__fence_after_rmw();
    if (!shared_work(r))
        return true;
    uint32_t parked = KVBM_REACTOR_PARKED;
    /* Acquire: pairs with a borrower's release in give_back. Failure: a borrower has it and will look at the lanes. */
    return !atomic_compare_exchange_strong_explicit(&r->state, &parked, KVBM_REACTOR_RUNNING, memory_order_acquire,
                                                    memory_order_relaxed);
}

bool kvbm_reactor_take(struct kvbm_reactor *r) {
    uint32_t state = atomic_load_explicit(&r->state, memory_order_relaxed);
    for (;;) {
        KVBM_ASSERT(state != KVBM_REACTOR_RUNNING);
        if (state == KVBM_REACTOR_PARKED) {
            /* Acquire: pairs with the release in kvbm_reactor_park or give_back. */
            if (!atomic_compare_exchange_weak_explicit(&r->state, &state, KVBM_REACTOR_RUNNING, memory_order_acquire,
                                                       memory_order_relaxed))
                continue;
            /* Cleared before the lanes are looked at; the fence pairs with the posts' (see kvbm__reactor_wake_mt). */
            atomic_store_explicit(&r->wake_pending, 0, memory_order_relaxed);
            kvbm__fence_full();
            return true;
        }
        /* Cleared before WANTED is set: the borrower that sees WANTED must find it clear, else it would not wake us. */
        atomic_store_explicit(&r->wake_pending, 0, memory_order_relaxed);
        /* Release: orders the clear before; pairs with the exchange in give_back. */
        if (atomic_compare_exchange_weak_explicit(&r->state, &state, KVBM_REACTOR_BORROWED | KVBM_REACTOR_WANTED,
                                                  memory_order_release, memory_order_relaxed))
            return false;
    }
}

static inline bool try_borrow(struct kvbm_reactor *r) {
    uint32_t parked = KVBM_REACTOR_PARKED;
    if (!r->options.borrowable || atomic_load_explicit(&r->state, memory_order_relaxed) != KVBM_REACTOR_PARKED)
        return false;
    /* Acquire: pairs with the release in kvbm_reactor_park or give_back. */
    if (!atomic_compare_exchange_strong_explicit(&r->state, &parked, KVBM_REACTOR_BORROWED, memory_order_acquire,
                                                 memory_order_relaxed))
        return false;
    count(&r->borrow_count, 1);
    return true;
}

/* BORROWED -> PARKED, and sees to it that work left behind, or come meanwhile, has somebody to run it. */
static void give_back(struct kvbm_reactor *r) {
    for (uint32_t round = 0;; round++) {
        /* Relaxed: a hint. The thread was woken in vain, perhaps by its timer: do what it came for. */
        if (atomic_load_explicit(&r->state, memory_order_relaxed) != KVBM_REACTOR_BORROWED && r->deadlines.count != 0)
            kvbm_reactor_turn(r, 1);
        if (r->local_head != NULL && round < BORROW_ROUND_COUNT_MAX) {
            kvbm_reactor_turn(r, r->options.turn_budget);
            continue;
        }
        bool wake = r->local_head != NULL || kvbm_deadlines_next_ns(&r->deadlines) < r->timer_armed_ns;
        /* Release: everything this owner wrote; pairs with the acquire in try_borrow and kvbm_reactor_take. Acquire:
         * pairs with the release that set WANTED. Then the fence of the wake protocol, as in kvbm_reactor_park. */
        uint32_t before = atomic_exchange_explicit(&r->state, KVBM_REACTOR_PARKED, memory_order_seq_cst);
        kvbm__fence_after_rmw();
        if (wake || (before & KVBM_REACTOR_WANTED) != 0) {
            kvbm__reactor_wake_mt(r);
            return;
        }
        if (!shared_work(r))
            return;
        if (round >= BORROW_ROUND_COUNT_MAX) {
            kvbm__reactor_wake_mt(r);
            return;
        }
        if (!try_borrow(r))
            return; /* another owner, who looks at the lanes after this one */
        kvbm_reactor_turn(r, r->options.turn_budget);
    }
}

/* --------------------------------------------------------------------------------------------- application threads */

static inline void check_request(const struct kvbm_reactor *r, struct kvbm_msg *msg) {
    KVBM_ASSERT(msg->to != NULL && msg->to->reactor == r && msg->kind != 0);
    msg->flags = (uint16_t)(msg->flags & ~KVBM_MSG_REPLY);
}

static int enqueue(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    return (msg->flags & KVBM_MSG_CONTROL) != 0 ? kvbm_mailbox_post_control_mt(&r->mailbox, msg)
                                                : kvbm_mailbox_post_thread_mt(&r->mailbox, msg);
}

int kvbm_reactor_post_mt(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    check_request(r, msg);
    if (current_reactor == r) {
        kvbm__reactor_local_push(r, msg);
        return 0;
    }
    int rc = enqueue(r, msg);
    if (rc == 0)
        kvbm__reactor_notify_mt(r);
    return rc;
}

/* The reactor is borrowed: what stands in the lanes, then `msg`, then what came of it. */
static int call_borrowed(struct kvbm_reactor *r, struct kvbm_msg *msg, struct kvbm_reactor **slot) {
    struct kvbm_reactor *outer = turn_enter(r, slot);
    const uint32_t budget = r->options.turn_budget;
    uint32_t ran = 0;
    int rc = 0;
    drain_returns(r);
    if (r->local_head != NULL || !kvbm_mailbox_empty_mt(&r->mailbox))
        ran = run_messages(r, budget);
    if (ran < budget) {
        dispatch(r, msg);
        ran++;
        if (ran < budget && r->local_head != NULL)
            ran += run_messages(r, budget - ran);
    } else {
        rc = enqueue(r, msg);
    }
    turn_leave(r, slot, outer, ran);
    give_back(r);
    return rc;
}

/* Somebody else has the reactor: leave the message with them, or run it after all if they have gone. */
static int call_contended(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    atomic_fetch_add_explicit(&r->borrow_lost_count, 1, memory_order_relaxed);
    int rc = enqueue(r, msg);
    if (rc != 0)
        return rc;
    /* Not PARKED: the owner looks at the lanes after it stores PARKED (the fences pair as in kvbm__reactor_notify_mt).
     */
    if (!kvbm_reactor_settle_mt(r))
        kvbm__reactor_notify_mt(r);
    return 0;
}

int kvbm_reactor_call_mt(struct kvbm_reactor *r, struct kvbm_msg *msg) {
    struct kvbm_reactor **slot = &current_reactor;
    check_request(r, msg);
    if (*slot == r) {
        kvbm__reactor_local_push(r, msg);
        return 0;
    }
    return try_borrow(r) ? call_borrowed(r, msg, slot) : call_contended(r, msg);
}

bool kvbm_reactor_settle_mt(struct kvbm_reactor *r) {
    if (current_reactor == r || !try_borrow(r))
        return false;
    kvbm_reactor_turn(r, r->options.turn_budget);
    give_back(r);
    return true;
}

void kvbm_reactor_returned_mt(struct kvbm_reactor *r) {
    kvbm__fence_after_rmw(); /* after the push's exchange; pairs with kvbm_reactor_want_returns and the parking fence */
    if (atomic_load_explicit(&r->returns_wanted, memory_order_relaxed) != 0)
        kvbm__reactor_notify_mt(r);
}

struct kvbm_reactor *kvbm_reactor_current_mt(void) {
    return current_reactor;
}
