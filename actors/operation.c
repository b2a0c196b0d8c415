/*
 * operation.c - the manager's actor: operations come back to it when they are done, and it delivers them.
 *
 * Thread: the core reactor's owner, except where _give and _completion are called by whoever collects an operation.
 * The states of an operation are in messages.h.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"

const struct kvbm_msg_info kvbm__messages[KVBM_MSG_KIND_COUNT] = {KVBM_MESSAGES(KVBM_MSG_INFO_)};

static struct kvbm_manager *manager_of(struct kvbm_actor *actor) {
    return (struct kvbm_manager *)((char *)actor - offsetof(struct kvbm_manager, actor));
}

/* ----------------------------------------------------------------------------------------------------------- begin */

bool kvbm__operation_begin(struct kvbm_actor *self, struct kvbm_operation *op, bool closing) {
    if (op->begun)
        return true;
    struct kvbm_manager *m = op->manager;
    op->begun = true;
    kvbm__counter_add(&m->accepted_count, 1);
    /* A SWEEP that found its lane full was not sent: whoever filled the lane comes through here. */
    if (!kvbm_retlane_empty_mt(&m->cancels))
        kvbm__cancels_sweep(m);
    int32_t status = 0;
    if (closing)
        status = -KVBM_ESHUTDOWN;
    else if (op->cancelled_id == op->head.op)
        status = -ECANCELED;
    else if (op->head.deadline_ns != 0 && m->os->now_ns(m->os->ctx) >= op->head.deadline_ns)
        status = -ETIMEDOUT;
    if (status == 0)
        return true;
    kvbm_actor_reply(self, &op->head, status);
    return false;
}

/* ------------------------------------------------------------------------------------------------------------- end */

void kvbm__operation_completion(const struct kvbm_operation *op, kvbm_completion *completion) {
    *completion = (kvbm_completion){
        .op = op->head.op,
        .user = op->user,
        .kind = op->kind,
        .status = op->head.status,
        .count = op->count,
        .requested = op->requested,
        .available = op->available,
        .index = op->index,
    };
}

void kvbm__operation_give(struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    /* Release pairs with the acquire of a closer that looks at all states: it sees what was done with the operation. */
    atomic_store_explicit(&op->state, KVBM_OPERATION_FREE, memory_order_release);
    kvbm_pool_give_mt(&m->operations, op);
    /* Pairs with the fence in kvbm_port_want_credit_mt: either this sees the request, or that sees the object. */
    kvbm__fence_given();
    if (atomic_load_explicit(&m->credit_requests, memory_order_relaxed) > 0)
        kvbm__credits_fire(m);
}

void kvbm__operation_disown(struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    if (op->head.status != 0)
        return;
    if (op->kind == KVBM_OP_ALLOCATE)
        kvbm__blocks_release(m, ((struct kvbm_msg_allocate *)op)->blocks, op->count);
    else if (op->kind == KVBM_OP_REGISTER)
        kvbm__blocks_release(m, ((struct kvbm_msg_register *)op)->out_blocks, op->count);
    else if (op->kind == KVBM_OP_MATCH)
        kvbm__blocks_release(m, ((struct kvbm_msg_match *)op)->blocks, op->count);
}

static void deliver_callback(struct kvbm_operation *op, kvbm_done_callback done) {
    struct kvbm_manager *m = op->manager;
    kvbm_completion completion;
    kvbm__operation_completion(op, &completion);
    /* In a turn the callback counts as inside: a closer waits for it where it keeps its time limit, and not for the
     * thread that it holds up. Sequentially consistent, as in kvbm__enter; before the operation lets the closer go. */
    bool in_turn = kvbm__inside_callback(m);
    if (in_turn)
        atomic_fetch_add_explicit(&m->inside, 1, memory_order_seq_cst);
    /* First the object, then the callback: it may submit the next operation. */
    kvbm__operation_give(op);
    done(completion.user, &completion);
    if (in_turn)
        kvbm__leave(m);
}

void kvbm__operation_orphaned(struct kvbm_operation *op) {
    /* `done` gets the result as it is, and owns what it brought: told of anything else it would take blocks that were
     * registered meanwhile for its own. */
    if (op->done != NULL) {
        deliver_callback(op, op->done);
        return;
    }
    kvbm__operation_disown(op);
    kvbm__operation_give(op);
}

static void deliver_port(struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    kvbm__hold(m); /* the message that waits in the port is part of the manager's memory */
    /* Release: as in operation_give. From here on it does not keep the manager from closing. */
    atomic_store_explicit(&op->state, KVBM_OPERATION_PARKED, memory_order_release);
    if (kvbm_port_push_mt(op->port, &op->head))
        return;
    kvbm__operation_orphaned(op);
    kvbm__unhold(m);
}

static void deliver_waiter(struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    /* Release pairs with the waiter's acquire: it sees the result. Acquire: with its exchange to SLEEPING. */
    uint32_t old = atomic_exchange_explicit(&op->state, KVBM_OPERATION_DONE, memory_order_acq_rel);
    KVBM_ASSERT(old == KVBM_OPERATION_PENDING || old == KVBM_OPERATION_SLEEPING);
    /* The waiter may have given the object back by now: waking whoever sleeps on its word next is harmless. */
    if (old == KVBM_OPERATION_SLEEPING)
        m->os->wake_u32(m->os->ctx, &op->state, true);
}

static void latency_record(const struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    if (op->submit_ns == 0 || op->kind == 0)
        return;
    uint64_t now_ns = m->os->now_ns(m->os->ctx);
    kvbm_histogram_record(&m->latency[op->kind], now_ns > op->submit_ns ? now_ns - op->submit_ns : 0);
}

static void operation_finish(struct kvbm_operation *op) {
    struct kvbm_manager *m = op->manager;
    if (op->kind != 0)
        kvbm__counter_add(&m->completed_count, 1);
    if (op->head.status == -ECANCELED)
        kvbm__counter_add(&m->cancelled_count, 1);
    else if (op->head.status == -ETIMEDOUT)
        kvbm__counter_add(&m->timed_out_count, 1);

    bool sampled = kvbm__operation_sampled(op->head.op);
    if (sampled)
        latency_record(op);
    /* Acquire pairs with the submitter's SUBMITTING -> PENDING: its last words in the object (submit_ns) are seen. */
    uint32_t state = atomic_load_explicit(&op->state, memory_order_acquire);
    if (state == KVBM_OPERATION_SUBMITTING) {
        /* Release pairs with the submitter's acquire of ANSWERED: it sees the result. */
        if (atomic_compare_exchange_strong_explicit(&op->state, &state, KVBM_OPERATION_ANSWERED, memory_order_acq_rel,
                                                    memory_order_acquire))
            return;
    }
    KVBM_ASSERT(state == KVBM_OPERATION_PENDING || state == KVBM_OPERATION_SLEEPING);
    if (!sampled)
        latency_record(op);
    if (op->port != NULL)
        deliver_port(op);
    else if (op->done != NULL)
        deliver_callback(op, op->done);
    else
        deliver_waiter(op);
    /* A lane that was full has moved on: see kvbm_port_want_credit_mt. */
    if (atomic_load_explicit(&m->credit_requests, memory_order_relaxed) > 0)
        kvbm__credits_fire(m);
}

static void on_done(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    operation_finish((struct kvbm_operation *)msg);
}

/* A register that never began gives its blocks back to their holder, in steps. */
static void on_register_done(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_msg_register *r = (struct kvbm_msg_register *)msg;
    if (msg->status != 0) {
        uint32_t end = r->count - r->done < KVBM_STEP_BLOCKS ? r->count : r->done + KVBM_STEP_BLOCKS;
        for (; r->done < end; r->done++)
            kvbm_slots_unclaim_mt(&r->pool->slots, r->blocks[r->done]);
        if (r->done < r->count) {
            kvbm_actor_reply(self, msg, msg->status);
            return;
        }
    }
    operation_finish(&r->op);
}

/* ---------------------------------------------------------------------------------------------------------- cancel */

static void cancel_one(void *arg, uint32_t index) {
    struct kvbm_manager *m = arg;
    struct kvbm_operation *op = kvbm_pool_at(&m->operations, index);
    /* Acquire-release: from here on the object may be pushed again. */
    uint64_t id = atomic_exchange_explicit(&op->cancel_id, 0, memory_order_acq_rel);
    KVBM_ASSERT((uint32_t)id == index);
    /* An id older than one already cancelled belongs to an operation that has ended. */
    if (op->cancelled_id != 0 && (int32_t)((uint32_t)(id >> 32) - (uint32_t)(op->cancelled_id >> 32)) < 0)
        return;
    op->cancelled_id = id;
    if (op->waiting && op->head.op == id)
        kvbm_allocator_unqueue(&m->allocator, (struct kvbm_msg_allocate *)op, -ECANCELED);
}

void kvbm__cancels_sweep(struct kvbm_manager *m) {
    kvbm_retlane_drain(&m->cancels, cancel_one, m);
}

static void on_sweep(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)msg;
    struct kvbm_manager *m = manager_of(self);
    /* Cleared before the lane is drained: whoever pushes after the drain sees 0 and sends SWEEP again. An exchange and
     * not a store: it acquires the push of whoever found 1 and left the drain to this. */
    atomic_exchange_explicit(&m->sweep_sent, 0, memory_order_acq_rel);
    kvbm__cancels_sweep(m);
    if (atomic_load_explicit(&m->credit_requests, memory_order_relaxed) > 0)
        kvbm__credits_fire(m);
}

/* ----------------------------------------------------------------------------------------------------------- close */

static void on_close(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)msg;
    struct kvbm_manager *m = manager_of(self);
    KVBM_ASSERT(atomic_load_explicit(&m->closed, memory_order_relaxed) != 0);
    kvbm__cancels_sweep(m);
    struct kvbm_msg *messages[] = {&m->shutdown_allocator.head, &m->shutdown_registry.head};
    struct kvbm_actor *actors[] = {&m->allocator.actor, &m->registry->actor};
    for (int i = 0; i < 2; i++) {
        *messages[i] = (struct kvbm_msg){.kind = KVBM_MSG_SHUTDOWN, .reply_to = self};
        int rc = kvbm_actor_send(self, actors[i], messages[i]);
        KVBM_ASSERT(rc == 0);
    }
    kvbm__credits_fire(m);
}

static void on_shutdown_reply(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)msg;
    /* Release pairs with the closer's acquire: it sees both actors at rest. */
    atomic_fetch_sub_explicit(&manager_of(self)->shutdown_missing, 1, memory_order_release);
}

static const kvbm_handler_fn manager_requests[KVBM_MSG_KIND_COUNT] = {
    [KVBM_MSG_SWEEP] = on_sweep,
    [KVBM_MSG_CLOSE] = on_close,
};
static const kvbm_handler_fn manager_replies[KVBM_MSG_KIND_COUNT] = {
    [KVBM_MSG_ALLOCATE] = on_done, [KVBM_MSG_REGISTER] = on_register_done,
    [KVBM_MSG_MATCH] = on_done,    [KVBM_MSG_QUERY] = on_done,
    [KVBM_MSG_SETTLE] = on_done,   [KVBM_MSG_SHUTDOWN] = on_shutdown_reply,
};

void kvbm__manager_actor_init(struct kvbm_manager *m) {
    m->actor = (struct kvbm_actor){.name = "manager",
                                   .on_request = manager_requests,
                                   .on_reply = manager_replies,
                                   .kind_count = KVBM_MSG_KIND_COUNT};
    m->shutdown_missing = 2;
    m->sweep.head = (struct kvbm_msg){.kind = KVBM_MSG_SWEEP, .flags = KVBM_MSG_CONTROL, .to = &m->actor};
    m->close.head = (struct kvbm_msg){.kind = KVBM_MSG_CLOSE, .flags = KVBM_MSG_CONTROL, .to = &m->actor};
}
