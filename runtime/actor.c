/*
 * actor.c - sending between actors. Owns nothing. Thread: the owner of the sending actor's reactor.
 */
#include "runtime/actor.h"

#include <errno.h>

#include "runtime/log.h"
#include "runtime/reactor_internal.h"

int kvbm_actor_send(struct kvbm_actor *from, struct kvbm_actor *to, struct kvbm_msg *msg) {
    struct kvbm_reactor *r = to->reactor;
    KVBM_ASSERT(r != NULL && msg->kind != 0);
    msg->to = to;
    msg->flags = (uint16_t)(msg->flags & ~KVBM_MSG_REPLY);
    if (r == from->reactor) {
        kvbm__reactor_local_push(r, msg);
        return 0;
    }
    KVBM_ASSERT_MSG(msg->deadline_slot == KVBM_DEADLINE_NONE, "an armed message leaves its reactor");
    int rc = (msg->flags & KVBM_MSG_CONTROL) != 0 ? kvbm_mailbox_post_control_mt(&r->mailbox, msg)
                                                  : kvbm_mailbox_post_data_mt(&r->mailbox, msg);
    if (rc == 0)
        kvbm__reactor_notify_mt(r);
    return rc;
}

void kvbm_actor_reply(struct kvbm_actor *from, struct kvbm_msg *msg, int32_t status) {
    KVBM_ASSERT_MSG(msg->reply_to != NULL, "actor %s replies to a message without reply_to", from->name);
    struct kvbm_reactor *r = msg->reply_to->reactor;
    msg->status = status;
    msg->flags = (uint16_t)(msg->flags | KVBM_MSG_REPLY);
    if (r == from->reactor) {
        kvbm__reactor_local_push(r, msg);
        return;
    }
    KVBM_ASSERT_MSG(msg->deadline_slot == KVBM_DEADLINE_NONE, "an armed message leaves its reactor");
    kvbm_mailbox_post_reply_mt(&r->mailbox, msg);
    kvbm__reactor_notify_mt(r);
}

void kvbm_actor_want_credit(struct kvbm_actor *from, struct kvbm_actor *to, struct kvbm_msg *credit) {
    KVBM_ASSERT(credit->reply_to == from && credit->kind != 0);
    credit->to = to;
    if (to->reactor == from->reactor) {
        kvbm_actor_reply(to, credit, 0); /* the local queue is never full */
        return;
    }
    kvbm_mailbox_want_credit_mt(&to->reactor->mailbox, credit);
    kvbm__reactor_notify_mt(to->reactor);
}
