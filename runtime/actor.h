/*
 * actor.h - an actor: a state machine pinned to one reactor.
 *
 * A handler runs to completion on its reactor and never waits. Only the reactor's current owner (its thread, or a
 * borrower) runs handlers, so actor state needs no locks and no atomics. Handlers are looked up by message kind in two
 * tables (requests, replies) of `kind_count` entries; a message without a handler is a programming error.
 */
#ifndef KVBM_RUNTIME_ACTOR_H
#define KVBM_RUNTIME_ACTOR_H

#include <stdint.h>

#include "runtime/message.h"
#include "runtime/retlane.h"

struct kvbm_reactor;
struct kvbm_actor;

/* Owns `msg` from here on. */
typedef void (*kvbm_handler_fn)(struct kvbm_actor *self, struct kvbm_msg *msg);

struct kvbm_actor {
    const char *name;
    struct kvbm_reactor *reactor; /* set by kvbm_reactor_actor_add */
    const kvbm_handler_fn *on_request;
    const kvbm_handler_fn *on_reply;
    uint16_t kind_count;
    /* An armed message of this actor (head.to == self) passed its deadline. The message is disarmed; its owner is
     * whoever owned it: the actor looks at its own state and settles it. NULL if the actor arms none. */
    kvbm_handler_fn on_deadline;
    /* Statistics, written by the reactor's owner, read anywhere. */
    _Atomic uint64_t handled_count;
};

/* Moves `msg` to `to`. Same reactor: the local queue, cannot fail. Another reactor: its data lane (control lane for
 * KVBM_MSG_CONTROL); -EAGAIN leaves ownership with the caller, which may kvbm_actor_want_credit. Sets msg->to. Called
 * from a handler of `from`. */
int kvbm_actor_send(struct kvbm_actor *from, struct kvbm_actor *to, struct kvbm_msg *msg);
/* Moves `msg` back to msg->reply_to with `status`; never fails. msg->reply_to must not be NULL. */
void kvbm_actor_reply(struct kvbm_actor *from, struct kvbm_msg *msg, int32_t status);
/* After -EAGAIN from kvbm_actor_send: moves `credit` (credit->reply_to == from) to the receiver's reactor, which
 * replies it with status 0 as soon as its data lane is at most half full. */
void kvbm_actor_want_credit(struct kvbm_actor *from, struct kvbm_actor *to, struct kvbm_msg *credit);

#endif
