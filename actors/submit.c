/*
 * submit.c - from a request to an operation: checks everything, takes an object, submits it; cancel and wait.
 *
 * Thread: any. What may fail is done before the operation is posted; after that it is answered exactly once.
 *
 * The uncontended way costs no system call, no clock and no allocation: the calling thread borrows the parked reactor,
 * handles its own operation, and finds it ANSWERED when the call returns.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"

/* ---------------------------------------------------------------------------------------------------------- checks */

#define SUBMIT_LEAST    offsetof(kvbm_submit, failure)
#define ALLOCATE_LEAST  sizeof(kvbm_allocate_args)
#define REGISTER_LEAST  sizeof(kvbm_register_args)
#define MATCH_LEAST     sizeof(kvbm_match_args)
#define QUERY_LEAST     sizeof(kvbm_query_args)
#define NO_INDEX        UINT64_MAX
#define ARRAY_TEXT(ptr) ((ptr) == NULL ? "NULL" : "given")

/* A request on its way: the checked submit options and where to say what is wrong. */
struct submission {
    kvbm_submit submit;
    kvbm_failure *failure;
};

static int submit_checks(struct kvbm_manager *m, struct submission *s, bool has_id) {
    const kvbm_submit *submit = &s->submit;
    if ((submit->flags & ~(uint32_t)(KVBM_SUBMIT_INLINE | KVBM_SUBMIT_WAIT)) != 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX,
                          "submit.flags=0x%x: only KVBM_SUBMIT_INLINE and "
                          "KVBM_SUBMIT_WAIT are known",
                          submit->flags);
    if ((submit->flags & KVBM_SUBMIT_INLINE) != 0 && submit->completion == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX,
                          "submit.completion=NULL: must be given with KVBM_SUBMIT_INLINE");
    if (submit->done == NULL && submit->port == NULL && !has_id)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX,
                          "op=NULL: kvbm_wait_mt needs the id of an operation with neither callback nor port");
    if (submit->port != NULL && kvbm_os_forked_mt(submit->port->fork_stamp))
        return kvbm__fail(s->failure, -KVBM_EFORKED, NO_INDEX, "submit.port: belongs to the parent process");
    /* Relaxed: a first look; operation_take looks again in the order that counts. */
    if (atomic_load_explicit(&m->closed, memory_order_relaxed) != 0)
        return kvbm__fail(s->failure, -KVBM_ECLOSED, NO_INDEX, "the manager \"%s\" is closed", m->name);
    return 0;
}

/* Copies and checks what all requests share. */
static int submit_begin(struct kvbm_manager *m, const kvbm_submit *submit, bool has_id, struct submission *s) {
    s->failure = NULL;
    if (submit == NULL) {
        s->submit = (kvbm_submit){.size = sizeof(kvbm_submit)};
    } else if (submit->size == sizeof(kvbm_submit)) {
        s->submit = *submit;
    } else {
        int rc = kvbm__options_copy(&s->submit, sizeof(s->submit), submit, SUBMIT_LEAST);
        if (rc != 0)
            return rc; /* nothing in it can be trusted, `failure` neither */
    }
    s->failure = s->submit.failure;
    if (m == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "manager=NULL: must be given");
    if (kvbm_os_forked_mt(m->fork_stamp))
        return kvbm__fail(s->failure, -KVBM_EFORKED, NO_INDEX, "%s", kvbm_error_text_mt(-KVBM_EFORKED));
    return submit_checks(m, s, has_id);
}

static int refuse(struct kvbm_manager *m, int rc) {
    /* Relaxed counter, many writers. */
    if (m != NULL && !kvbm_os_forked_mt(m->fork_stamp))
        atomic_fetch_add_explicit(&m->refused_count, 1, memory_order_relaxed);
    return rc;
}

static int args_copy(const struct submission *s, void *to, size_t to_size, const void *args, size_t least) {
    if (args == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "args=NULL: must be given");
    int rc = kvbm__options_copy(to, to_size, args, least);
    if (rc == -E2BIG)
        return kvbm__fail(s->failure, rc, NO_INDEX, "args: has fields that this library does not know");
    if (rc != 0)
        return kvbm__fail(s->failure, rc, NO_INDEX, "args.size=%zu: must be at least %zu", *(const size_t *)args,
                          least);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- operations */

/* An operation, visible to a closer, its port credit taken. */
static int operation_take(struct kvbm_manager *m, const struct submission *s, struct kvbm_actor *to, uint16_t kind,
                          int op_kind, struct kvbm_operation **taken) {
    uint64_t id;
    struct kvbm_operation *op = kvbm_pool_take_mt(&m->operations, &id);
    if (op == NULL)
        return kvbm__fail(s->failure, -EAGAIN, NO_INDEX, "all %u operations of the manager are in flight",
                          m->operations.count);
    bool in_line = (s->submit.flags & KVBM_SUBMIT_INLINE) != 0;
    op->manager = m;
    /* Sequentially consistent, as the load after it: pairs with the closer, which stores `closed` and then loads every
     * state. Either it waits for this operation, or this submit sees that it is late. */
    atomic_exchange_explicit(&op->state, in_line ? KVBM_OPERATION_SUBMITTING : KVBM_OPERATION_PENDING,
                             memory_order_seq_cst);
    if (atomic_load_explicit(&m->closed, memory_order_seq_cst) != 0) {
        kvbm__operation_give(op);
        return kvbm__fail(s->failure, -KVBM_ECLOSED, NO_INDEX, "the manager \"%s\" is closed", m->name);
    }
    if (s->submit.port != NULL) {
        if (!kvbm__port_credit_take(s->submit.port)) {
            kvbm__operation_give(op);
            return kvbm__fail(s->failure, -EAGAIN, NO_INDEX, "submit.port: all its places are taken: drain it");
        }
    }
    op->head = (struct kvbm_msg){.kind = kind, .op = id, .to = to, .reply_to = &m->actor};
    op->done = s->submit.done;
    op->user = s->submit.user;
    op->port = s->submit.port;
    op->submit_ns = 0;
    op->kind = (uint8_t)op_kind;
    op->begun = false;
    op->count = op->requested = op->available = op->index = 0;
    bool timed = !in_line || kvbm__operation_sampled(id);
    if (timed || s->submit.timeout_ns != 0) {
        uint64_t now_ns = m->os->now_ns(m->os->ctx);
        op->submit_ns = timed ? now_ns : 0;
        if (s->submit.timeout_ns != 0)
            op->head.deadline_ns =
                s->submit.timeout_ns < UINT64_MAX - now_ns ? now_ns + s->submit.timeout_ns : KVBM_NO_DEADLINE - 1;
    }
    *taken = op;
    return 0;
}

/* The submit failed after all. */
static void operation_untake(struct kvbm_operation *op) {
    if (op->port != NULL)
        kvbm_port_credit_give_mt(op->port);
    kvbm__operation_give(op);
}

/* The submitter leaves, or takes the answer with it. */
static int operation_leave(struct kvbm_manager *m, struct kvbm_operation *op, const struct submission *s) {
    /* Acquire pairs with the completer's release of ANSWERED: the result is seen. */
    uint32_t state = atomic_load_explicit(&op->state, memory_order_acquire);
    if (state == KVBM_OPERATION_SUBMITTING) {
        if (!kvbm__operation_sampled(op->head.op))
            op->submit_ns = m->os->now_ns(m->os->ctx); /* what came before was a try on this thread */
        /* Release: the completer that sees PENDING sees submit_ns. */
        if (atomic_compare_exchange_strong_explicit(&op->state, &state, KVBM_OPERATION_PENDING, memory_order_acq_rel,
                                                    memory_order_acquire))
            return 0;
    }
    KVBM_ASSERT(state == KVBM_OPERATION_ANSWERED);
    kvbm__operation_completion(op, s->submit.completion);
    if (op->port != NULL)
        kvbm_port_credit_give_mt(op->port);
    kvbm__operation_give(op);
    return 1;
}

/* Moves the operation to the reactor. -EAGAIN: the lane is full and the operation is still the caller's. */
static int operation_submit(struct kvbm_manager *m, struct kvbm_operation *op, const struct submission *s,
                            kvbm_op *id) {
    if (id != NULL)
        *id = op->head.op;
    int rc;
    if ((s->submit.flags & KVBM_SUBMIT_INLINE) != 0) {
        rc = kvbm_reactor_call_mt(&m->reactor, &op->head);
        if (rc == 0)
            return operation_leave(m, op, s);
    } else {
        /* The operation may be answered and reused before the call returns: `inside` tells a closer that a thread is
         * still there. No look at `closed`: until it is posted the operation itself holds the closer off. */
        atomic_fetch_add_explicit(&m->inside, 1, memory_order_seq_cst);
        rc = kvbm_reactor_call_mt(&m->reactor, &op->head);
        kvbm__leave(m);
    }
    if (rc != 0) {
        if (id != NULL)
            *id = 0;
        kvbm__failure_set(s->failure, rc, NO_INDEX, "the calling thread's lane into the reactor is full");
    }
    return rc;
}

/* -------------------------------------------------------------------------------------------------------- allocate */

static int allocate_check(struct kvbm_manager *m, const struct submission *s, const kvbm_allocate_args *args,
                          struct kvbm_block_pool **pool) {
    *pool = kvbm__pool_find(m, args->group, args->tier);
    if (*pool == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "group=%u, tier=%d: no such pool", args->group, args->tier);
    if (args->count == 0 || args->count > KVBM_BATCH_COUNT_MAX)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "count=%llu: must be 1 .. %u", (unsigned long long)args->count,
                          KVBM_BATCH_COUNT_MAX);
    if (args->blocks == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "blocks=NULL: must have room for count handles");
    return 0;
}

int kvbm_allocate_mt(kvbm_manager *m, const kvbm_allocate_args *given, const kvbm_submit *submit, kvbm_op *id) {
    struct submission s;
    kvbm_allocate_args copy;
    const kvbm_allocate_args *args = given;
    int rc = submit_begin(m, submit, id != NULL, &s);
    if (rc == 0 && (given == NULL || given->size != sizeof(*given))) {
        rc = args_copy(&s, &copy, sizeof(copy), given, ALLOCATE_LEAST);
        args = &copy;
    }
    struct kvbm_block_pool *pool = NULL;
    struct kvbm_operation *op = NULL;
    if (rc == 0)
        rc = allocate_check(m, &s, args, &pool);
    if (rc == 0)
        rc = operation_take(m, &s, &m->allocator.actor, KVBM_MSG_ALLOCATE, KVBM_OP_ALLOCATE, &op);
    if (rc != 0)
        return refuse(m, rc);
    struct kvbm_msg_allocate *a = (struct kvbm_msg_allocate *)op;
    a->pool = pool;
    a->blocks = args->blocks;
    a->count = (uint32_t)args->count;
    a->reserved = a->handed = 0;
    a->may_wait = (s.submit.flags & KVBM_SUBMIT_WAIT) != 0;
    a->served = false;
    a->line_previous = a->line_next = NULL;
    rc = operation_submit(m, op, &s, id);
    if (rc >= 0)
        return rc;
    operation_untake(op);
    return refuse(m, rc);
}

/* -------------------------------------------------------------------------------------------------------- register */

static int no_wait_check(const struct submission *s) {
    if ((s->submit.flags & KVBM_SUBMIT_WAIT) != 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "submit.flags: KVBM_SUBMIT_WAIT is for kvbm_allocate_mt");
    return 0;
}

/* Two arrays of `count` items share some of their memory, but are not the same array. */
static bool arrays_collide(const void *a, const void *b, uint64_t count, size_t item_bytes) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x != y && (x < y ? y - x : x - y) < count * item_bytes;
}

static int register_check(struct kvbm_manager *m, const struct submission *s, const kvbm_register_args *args) {
    if (args->count == 0 || args->count > KVBM_BATCH_COUNT_MAX)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "count=%llu: must be 1 .. %u", (unsigned long long)args->count,
                          KVBM_BATCH_COUNT_MAX);
    if (args->blocks == NULL || args->out_blocks == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "blocks=%s, out_blocks=%s: both must be given",
                          ARRAY_TEXT(args->blocks), ARRAY_TEXT(args->out_blocks));
    /* Results are written while later blocks and keys are still to be read. */
    if (arrays_collide(args->blocks, args->out_blocks, args->count, sizeof(kvbm_block)))
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "out_blocks: must be `blocks` itself or apart from it");
    if (args->keys != NULL && args->out_keys != NULL &&
        arrays_collide(args->keys, args->out_keys, args->count, sizeof(kvbm_key)))
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "out_keys: must be `keys` itself or apart from it");
    if ((args->flags & ~(uint32_t)(KVBM_REGISTER_KEEP_DUPLICATES | KVBM_REGISTER_ANONYMOUS)) != 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX,
                          "flags=0x%x: only KVBM_REGISTER_KEEP_DUPLICATES and KVBM_REGISTER_ANONYMOUS are known",
                          args->flags);
    if (args->priority > KVBM_PRIORITY_MAX)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "priority=%u: must be 0 .. %u", args->priority,
                          KVBM_PRIORITY_MAX);
    if (args->salt_bytes > 0 && args->salt == NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "salt=NULL with salt_bytes=%zu", args->salt_bytes);
    bool anonymous = (args->flags & KVBM_REGISTER_ANONYMOUS) != 0;
    if (anonymous && args->keys != NULL)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "keys: must be NULL with KVBM_REGISTER_ANONYMOUS");
    if (args->keys == NULL && !anonymous && (m->flags & KVBM_OPEN_TRACK_TOKENS) == 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX,
                          "keys=NULL: must be given, or KVBM_REGISTER_ANONYMOUS set, in a manager that does not keep "
                          "tokens (KVBM_OPEN_TRACK_TOKENS)");
    return no_wait_check(s);
}

static void register_unclaim(struct kvbm_block_pool *pool, const kvbm_block *blocks, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        kvbm_slots_unclaim_mt(&pool->slots, blocks[i]);
}

/* Claims one block; says why not. */
static int register_claim_one(struct kvbm_manager *m, const kvbm_register_args *args, struct kvbm_block_pool *pool,
                              uint64_t i) {
    kvbm_block block = args->blocks[i];
    if (block.bits == 0)
        return -KVBM_ESTALE;
    if (pool == NULL || kvbm__pool_of_block(m, block) != pool || kvbm__block_slot(block) >= pool->slots.capacity)
        return -KVBM_EWRONGMANAGER;
    int rc = kvbm_slots_claim_mt(&pool->slots, block);
    if (rc == -KVBM_ENOTOWNED) {
        for (uint64_t j = 0; j < i; j++)
            if (args->blocks[j].bits == block.bits)
                return -KVBM_EDUPLICATE;
    }
    if (rc != 0)
        return rc;
    /* Relaxed: the claim acquired what the holder wrote. */
    uint32_t tokens =
        atomic_load_explicit(&pool->slots.slots[kvbm__block_slot(block)].token_count, memory_order_relaxed);
    if (args->keys != NULL || (args->flags & KVBM_REGISTER_ANONYMOUS) != 0 || tokens == pool->slots.page_size)
        return 0;
    kvbm_slots_unclaim_mt(&pool->slots, block);
    return -KVBM_EINCOMPLETE;
}

static int register_claim(struct kvbm_manager *m, const struct submission *s, const kvbm_register_args *args,
                          struct kvbm_block_pool **pool) {
    *pool = kvbm__pool_of_block(m, args->blocks[0]);
    for (uint64_t i = 0; i < args->count; i++) {
        int rc = register_claim_one(m, args, *pool, i);
        if (rc != 0) {
            if (*pool != NULL)
                register_unclaim(*pool, args->blocks, i);
            return kvbm__fail(s->failure, rc, i, "blocks[%llu]: %s", (unsigned long long)i, kvbm_error_text_mt(rc));
        }
    }
    return 0;
}

/* Keys from tokens are computed here, on the submitting thread, where the caller gave room for them; else only the
 * first one, into which the salt goes, and the others when their turn comes. */
static void register_keys(struct kvbm_msg_register *r, const kvbm_register_args *args) {
    r->keys = args->keys;
    r->has_parent = args->parent != NULL;
    r->previous = args->parent != NULL ? *args->parent : (kvbm_key){{0}};
    r->first_key_known = false;
    if (args->keys != NULL || (args->flags & KVBM_REGISTER_ANONYMOUS) != 0)
        return;
    const struct kvbm_slots *slots = &r->pool->slots;
    const kvbm_key *parent = args->parent;
    uint64_t count = args->out_keys != NULL ? args->count : 1;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t *tokens = slots->tokens + (size_t)kvbm__block_slot(args->blocks[i]) * slots->page_size;
        kvbm_key *key = args->out_keys != NULL ? &args->out_keys[i] : &r->first_key;
        kvbm_keys_compute_mt(tokens, 1, slots->page_size, args->salt, args->salt_bytes, parent, key);
        parent = key;
    }
    if (args->out_keys != NULL)
        r->keys = args->out_keys;
    else
        r->first_key_known = true;
}

int kvbm_register_mt(kvbm_manager *m, const kvbm_register_args *given, const kvbm_submit *submit, kvbm_op *id) {
    struct submission s;
    kvbm_register_args args;
    int rc = submit_begin(m, submit, id != NULL, &s);
    if (rc == 0)
        rc = args_copy(&s, &args, sizeof(args), given, REGISTER_LEAST);
    if (rc == 0)
        rc = register_check(m, &s, &args);
    struct kvbm_operation *op = NULL;
    if (rc == 0)
        rc = operation_take(m, &s, &m->registry->actor, KVBM_MSG_REGISTER, KVBM_OP_REGISTER, &op);
    if (rc != 0)
        return refuse(m, rc);
    struct kvbm_msg_register *r = (struct kvbm_msg_register *)op;
    rc = register_claim(m, &s, &args, &r->pool);
    if (rc == 0) {
        r->blocks = args.blocks;
        r->out_blocks = args.out_blocks;
        r->out_keys = args.out_keys;
        r->out_duplicate = args.out_duplicate;
        r->count = (uint32_t)args.count;
        r->done = 0;
        r->flags = args.flags;
        r->priority = (uint8_t)args.priority;
        r->priority_ttl_ns = args.priority_ttl_ns;
        register_keys(r, &args);
        struct kvbm_block_pool *pool = r->pool;
        rc = operation_submit(m, op, &s, id);
        if (rc >= 0)
            return rc;
        register_unclaim(pool, args.blocks, args.count);
    }
    operation_untake(op);
    return refuse(m, rc);
}

/* ----------------------------------------------------------------------------------------------- match and query */

static int keys_check(const struct kvbm_manager *m, const struct submission *s, uint32_t group, uint64_t count,
                      const void *keys, const void *out, const char *out_name) {
    if (group >= m->group_count)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "group=%u: must be 0 .. %u", group, m->group_count - 1);
    if (count > KVBM_BATCH_COUNT_MAX)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "count=%llu: must be 0 .. %u", (unsigned long long)count,
                          KVBM_BATCH_COUNT_MAX);
    if (count > 0 && (keys == NULL || out == NULL))
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "keys=%s, %s=%s: both must be given", ARRAY_TEXT(keys),
                          out_name, ARRAY_TEXT(out));
    return no_wait_check(s);
}

/* The pools of the group that were asked for; none: no such pool. */
static int match_tiers(const struct kvbm_manager *m, const struct submission *s, const kvbm_match_args *args,
                       uint32_t *tiers) {
    uint32_t all = (1u << KVBM_TIER_COUNT) - 1;
    if ((args->tiers & ~all) != 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "tiers=0x%x: only the bits 0x%x are tiers", args->tiers, all);
    *tiers = 0;
    for (int tier = 0; tier < KVBM_TIER_COUNT; tier++)
        if (kvbm__pool_find(m, args->group, tier) != NULL)
            *tiers |= KVBM_TIER_BIT(tier);
    if (args->tiers == 0)
        return 0;
    *tiers &= args->tiers;
    if (*tiers == 0)
        return kvbm__fail(s->failure, -EINVAL, NO_INDEX, "group=%u, tiers=0x%x: no such pool", args->group,
                          args->tiers);
    return 0;
}

int kvbm_match_mt(kvbm_manager *m, const kvbm_match_args *given, const kvbm_submit *submit, kvbm_op *id) {
    struct submission s;
    kvbm_match_args args;
    uint32_t tiers = 0;
    int rc = submit_begin(m, submit, id != NULL, &s);
    if (rc == 0)
        rc = args_copy(&s, &args, sizeof(args), given, MATCH_LEAST);
    if (rc == 0)
        rc = keys_check(m, &s, args.group, args.count, args.keys, args.blocks, "blocks");
    if (rc == 0)
        rc = match_tiers(m, &s, &args, &tiers);
    struct kvbm_operation *op = NULL;
    if (rc == 0)
        rc = operation_take(m, &s, &m->registry->actor, KVBM_MSG_MATCH, KVBM_OP_MATCH, &op);
    if (rc != 0)
        return refuse(m, rc);
    struct kvbm_msg_match *r = (struct kvbm_msg_match *)op;
    r->keys = args.keys;
    r->blocks = args.blocks;
    r->count = (uint32_t)args.count;
    r->done = 0;
    r->group = args.group;
    r->tiers = tiers;
    rc = operation_submit(m, op, &s, id);
    if (rc >= 0)
        return rc;
    operation_untake(op);
    return refuse(m, rc);
}

int kvbm_query_mt(kvbm_manager *m, const kvbm_query_args *given, const kvbm_submit *submit, kvbm_op *id) {
    struct submission s;
    kvbm_query_args args;
    int rc = submit_begin(m, submit, id != NULL, &s);
    if (rc == 0)
        rc = args_copy(&s, &args, sizeof(args), given, QUERY_LEAST);
    if (rc == 0)
        rc = keys_check(m, &s, args.group, args.count, args.keys, args.tiers, "tiers");
    struct kvbm_operation *op = NULL;
    if (rc == 0)
        rc = operation_take(m, &s, &m->registry->actor, KVBM_MSG_QUERY, KVBM_OP_QUERY, &op);
    if (rc != 0)
        return refuse(m, rc);
    struct kvbm_msg_query *r = (struct kvbm_msg_query *)op;
    r->keys = args.keys;
    r->tiers = args.tiers;
    r->count = (uint32_t)args.count;
    r->done = 0;
    r->group = args.group;
    rc = operation_submit(m, op, &s, id);
    if (rc >= 0)
        return rc;
    operation_untake(op);
    return refuse(m, rc);
}

/* -------------------------------------------------------------------------------------------------- cancel and wait */

/* The generation of an id is odd; a later one of the object tells that the operation has ended. */
static int id_check(struct kvbm_manager *m, kvbm_op id) {
    uint32_t index = (uint32_t)id, generation = (uint32_t)(id >> 32);
    if (index >= m->operations.count || (generation & 1) == 0)
        return -EINVAL;
    /* Relaxed: only compared. */
    uint32_t now = atomic_load_explicit(&m->operations.generations[index], memory_order_relaxed);
    return (int32_t)(now - generation) >= 0 ? 0 : -EINVAL;
}

/* Tells the reactor that the cancel lane is not empty. */
static void sweep_send(struct kvbm_manager *m) {
    /* Sequentially consistent exchange after the push; pairs with on_sweep, which clears and then drains. */
    if (atomic_exchange_explicit(&m->sweep_sent, 1, memory_order_seq_cst) != 0)
        return;
    if (kvbm_reactor_call_mt(&m->reactor, &m->sweep.head) != 0)
        /* The lane is full of operations, and the next one to begin sweeps. */
        atomic_store_explicit(&m->sweep_sent, 0, memory_order_seq_cst);
}

int kvbm_cancel_mt(kvbm_manager *m, kvbm_op id) {
    if (m == NULL)
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    int rc = id_check(m, id);
    if (rc != 0)
        return rc;
    struct kvbm_operation *op = kvbm_pool_find_mt(&m->operations, id);
    if (op == NULL || !kvbm__enter(m))
        return 0; /* it has ended, or the shutdown ends it */
    uint64_t queued = atomic_load_explicit(&op->cancel_id, memory_order_relaxed);
    for (;;) {
        if (queued != 0 && (int32_t)((uint32_t)(queued >> 32) - (uint32_t)(id >> 32)) >= 0)
            break; /* asked for already */
        /* Release pairs with cancel_one. The thread that turns 0 into an id pushes the object. */
        if (atomic_compare_exchange_weak_explicit(&op->cancel_id, &queued, id, memory_order_acq_rel,
                                                  memory_order_relaxed)) {
            if (queued == 0)
                kvbm_retlane_push_mt(&m->cancels, (uint32_t)id);
            sweep_send(m);
            break;
        }
    }
    kvbm__leave(m);
    return 0;
}

/* Sleeps until the state may have changed. 0, -ETIMEDOUT, -EINTR. */
static int wait_once(struct kvbm_manager *m, struct kvbm_operation *op, uint32_t state, uint64_t deadline_ns) {
    const struct kvbm_os *os = m->os;
    if (state == KVBM_OPERATION_PENDING) {
        /* Acquire-release pairs with deliver_waiter's exchange: it wakes whom it finds SLEEPING. */
        if (!atomic_compare_exchange_strong_explicit(&op->state, &state, KVBM_OPERATION_SLEEPING, memory_order_acq_rel,
                                                     memory_order_acquire))
            return 0;
        state = KVBM_OPERATION_SLEEPING;
    }
    uint64_t until_ns = deadline_ns;
    bool helping = kvbm__is_loop_thread(m);
    if (helping || state == KVBM_OPERATION_SUBMITTING) {
        /* On the loop's own thread nobody else would run the reactor; and a submitter that has not left yet wakes
         * nobody. */
        if (helping && kvbm__loop_turn(m) && atomic_load_explicit(&op->state, memory_order_acquire) != state)
            return 0;
        uint64_t soon_ns = os->now_ns(os->ctx) + (kvbm__loop_busy(m) ? 0 : 200000);
        until_ns = soon_ns < deadline_ns ? soon_ns : deadline_ns;
    }
    int rc = os->wait_u32(os->ctx, &op->state, state, until_ns);
    if (rc == -ETIMEDOUT)
        return until_ns == deadline_ns ? -ETIMEDOUT : 0;
    return rc == -EINTR ? -EINTR : 0;
}

int kvbm_wait_mt(kvbm_manager *m, kvbm_op id, uint64_t timeout_ns, kvbm_completion *completion) {
    if (m == NULL || completion == NULL)
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    if (kvbm_reactor_current_mt() != NULL)
        return -EDEADLK; /* of another manager: it would stand still meanwhile */
    uint64_t deadline_ns = KVBM_NO_DEADLINE;
    if (timeout_ns != UINT64_MAX && timeout_ns != 0) {
        uint64_t now_ns = m->os->now_ns(m->os->ctx);
        deadline_ns = timeout_ns < UINT64_MAX - now_ns ? now_ns + timeout_ns : KVBM_NO_DEADLINE;
    }
    for (;;) {
        struct kvbm_operation *op = kvbm_pool_find_mt(&m->operations, id);
        if (op == NULL || op->done != NULL || op->port != NULL)
            return -EINVAL;
        /* Acquire pairs with deliver_waiter: the result is seen. */
        uint32_t state = atomic_load_explicit(&op->state, memory_order_acquire);
        if (state == KVBM_OPERATION_DONE) {
            if (!atomic_compare_exchange_strong_explicit(&op->state, &state, KVBM_OPERATION_ANSWERED,
                                                         memory_order_acq_rel, memory_order_acquire))
                return -EINVAL; /* another thread collected it */
            kvbm__operation_completion(op, completion);
            kvbm__operation_give(op);
            return 0;
        }
        if (state != KVBM_OPERATION_PENDING && state != KVBM_OPERATION_SLEEPING && state != KVBM_OPERATION_SUBMITTING)
            return -EINVAL;
        if (timeout_ns == 0)
            return -ETIMEDOUT;
        int rc = wait_once(m, op, state, deadline_ns);
        if (rc != 0)
            return rc;
    }
}

/* ---------------------------------------------------------------------------------------------------------- settle */

#define SETTLE_TRIES        32
#define SETTLE_TIMEOUT_NS   UINT64_C(1000000000)
#define SETTLE_PAUSE_NS_MIN UINT64_C(10000)
#define SETTLE_PAUSE_NS_MAX UINT64_C(1000000)

static void settle_done(void *user, const kvbm_completion *completion) {
    (void)user;
    (void)completion;
}

/* Through the reactor's own thread: SETTLE behind whatever it does now. It has a callback and nobody's array, so that
 * it can be left to itself when a second has passed: a caller's loop may not run for long, or wait for this thread. */
static int settle_wait(struct kvbm_manager *m, struct kvbm_block_pool *pool) {
    const struct kvbm_os *os = m->os;
    struct submission s = {.submit = {.size = sizeof(kvbm_submit), .done = settle_done}};
    struct kvbm_operation *op;
    int rc = operation_take(m, &s, &m->allocator.actor, KVBM_MSG_SETTLE, 0, &op);
    if (rc != 0)
        return rc;
    ((struct kvbm_msg_settle *)op)->pool = pool;
    kvbm_op id;
    rc = operation_submit(m, op, &s, &id);
    if (rc != 0) {
        operation_untake(op);
        return rc;
    }
    _Atomic uint32_t nobody_wakes = 0;
    uint64_t pause_ns = SETTLE_PAUSE_NS_MIN;
    uint64_t now_ns = os->now_ns(os->ctx);
    for (uint64_t end_ns = now_ns + SETTLE_TIMEOUT_NS; now_ns < end_ns; now_ns = os->now_ns(os->ctx)) {
        if (kvbm__is_loop_thread(m))
            kvbm__loop_turn(m);
        if (kvbm_pool_find_mt(&m->operations, id) == NULL)
            return 0;
        os->wait_u32(os->ctx, &nobody_wakes, 0, now_ns + pause_ns);
        if (pause_ns < SETTLE_PAUSE_NS_MAX)
            pause_ns *= 2;
    }
    return -ETIMEDOUT;
}

int kvbm__settle(struct kvbm_manager *m, struct kvbm_block_pool *pool) {
    if (kvbm__inside_callback(m)) {
        /* This thread owns the reactor. */
        kvbm_allocator_drain(&m->allocator, pool->number);
        kvbm_registry_drain(m->registry, pool->number);
        return 0;
    }
    if (!kvbm__enter(m))
        return -KVBM_ECLOSED;
    bool settled = false;
    for (int i = 0; i < SETTLE_TRIES && !settled; i++)
        settled = kvbm_reactor_settle_mt(&m->reactor);
    /* Not from a callback of another manager, which may be inside of one of this manager's. */
    if (!settled && kvbm__is_loop_thread(m) && kvbm_reactor_current_mt() == NULL)
        settled = kvbm__loop_turn(m);
    kvbm__leave(m);
    if (settled)
        return 0;
    /* Who turns the reactor by hand may be this very thread, and a callback of another manager must not wait. */
    if (m->drive == KVBM_DRIVE_EMBEDDER || kvbm_reactor_current_mt() != NULL)
        return -EAGAIN;
    return settle_wait(m, pool);
}
