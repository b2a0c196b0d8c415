/*
 * allocator.c - hands out free blocks. See allocator.h for its protocol.
 *
 * Thread: the core reactor's owner.
 */
#include "actors/allocator.h"

#include <errno.h>

#include "actors/manager.h"

static struct kvbm_allocator *allocator_of(struct kvbm_actor *actor) {
    return (struct kvbm_allocator *)actor;
}

static struct kvbm_allocator_pool *pool_of(struct kvbm_allocator *allocator, const struct kvbm_block_pool *pool) {
    return &allocator->pools[pool->number];
}

/* ------------------------------------------------------------------------------------------------------ free slots */

static uint32_t free_total(const struct kvbm_allocator_pool *p) {
    return p->free_count + (p->pool->slots.capacity - p->fresh);
}

static uint32_t free_unreserved(const struct kvbm_allocator_pool *p) {
    KVBM_ASSERT(p->reserved <= free_total(p));
    return free_total(p) - p->reserved;
}

static void free_publish_gauge(struct kvbm_allocator_pool *p) {
    /* Relaxed gauge, one writer. */
    atomic_store_explicit(&p->pool->a.free, free_unreserved(p), memory_order_relaxed);
}

/* SplitMix64's finalizer (Steele, Lea, Flood 2014): the first generation of a slot, so that a handle of another manager
 * is taken for one of this one with probability 2^-32 only. */
static uint32_t first_generation(const struct kvbm_block_pool *pool, uint32_t slot) {
    uint64_t z = pool->generation_seed + (slot + UINT64_C(1)) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z ^ (z >> 31));
}

static uint32_t free_pop(struct kvbm_allocator_pool *p) {
    struct kvbm_slots *slots = &p->pool->slots;
    if (p->free_count > 0) {
        uint32_t slot = p->free_head;
        KVBM_ASSERT(slot < slots->capacity);
        p->free_head = slots->slots[slot].next;
        p->free_count--;
        return slot;
    }
    KVBM_ASSERT(p->fresh < slots->capacity);
    uint32_t slot = p->fresh++;
    /* Relaxed: no handle of this slot exists yet; hand_out publishes. */
    atomic_store_explicit(&slots->slots[slot].word, (uint64_t)first_generation(p->pool, slot) << 32,
                          memory_order_relaxed);
    return slot;
}

/* A mutable block came back. */
static void on_returned(void *arg, uint32_t slot) {
    struct kvbm_allocator_pool *p = arg;
    struct kvbm_slots *slots = &p->pool->slots;
    uint64_t word = kvbm_slots_unqueue(slots, slot);
    KVBM_ASSERT(KVBM_WORD_LEASES(word) == 0 && (word & KVBM_WORD_REGISTERED) == 0);
    kvbm_slots_reset(slots, slot);
    slots->slots[slot].next = p->free_head;
    p->free_head = slot;
    p->free_count++;
    p->free_version++;
    free_publish_gauge(p);
    kvbm__counter_add(&p->pool->a.returned, 1);
    if (p->line_head != NULL && !p->serve_sent) {
        p->serve_sent = true;
        p->serve.head.flags = 0;
        int rc = kvbm_actor_send(&p->allocator->actor, &p->allocator->actor, &p->serve.head);
        KVBM_ASSERT(rc == 0);
    }
}

void kvbm_allocator_drain(struct kvbm_allocator *allocator, uint32_t pool) {
    struct kvbm_allocator_pool *p = &allocator->pools[pool];
    kvbm_retlane_drain(&p->pool->slots.mutable_returns, on_returned, p);
}

/* ------------------------------------------------------------------------------------------------------------ line */

/* Pushes to return lanes wake the reactor while anybody waits. */
static void returns_want(struct kvbm_allocator_pool *p) {
    bool want = p->line_head != NULL || p->serving != NULL;
    if (want == p->wants_returns)
        return;
    p->wants_returns = want;
    kvbm_reactor_want_returns(p->allocator->actor.reactor, want ? 1 : -1);
}

static void line_gauge(struct kvbm_allocator_pool *p) {
    atomic_store_explicit(&p->pool->a.waiting, p->line_count + (p->serving != NULL), memory_order_relaxed);
}

static void line_insert(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m, bool at_front) {
    KVBM_ASSERT(!m->op.waiting && m->may_wait);
    KVBM_ASSERT((p->line_count == 0) == (p->line_head == NULL));
    m->line_previous = at_front ? NULL : p->line_tail;
    m->line_next = at_front ? p->line_head : NULL;
    *(m->line_previous != NULL ? &m->line_previous->line_next : &p->line_head) = m;
    *(m->line_next != NULL ? &m->line_next->line_previous : &p->line_tail) = m;
    m->op.waiting = true;
    p->line_count++;
    line_gauge(p);
    returns_want(p);
    if (m->op.head.deadline_ns != 0)
        kvbm_reactor_arm(p->allocator->actor.reactor, &m->op.head);
}

static void line_remove(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m) {
    KVBM_ASSERT(m->op.waiting && p->line_count > 0);
    *(m->line_previous != NULL ? &m->line_previous->line_next : &p->line_head) = m->line_next;
    *(m->line_next != NULL ? &m->line_next->line_previous : &p->line_tail) = m->line_previous;
    m->line_previous = m->line_next = NULL;
    m->op.waiting = false;
    p->line_count--;
    KVBM_ASSERT((p->line_count == 0) == (p->line_head == NULL));
    kvbm_reactor_disarm(p->allocator->actor.reactor, &m->op.head);
}

static void line_watch(struct kvbm_allocator_pool *p, uint64_t version) {
    if (p->watching || p->line_head == NULL || p->allocator->closing)
        return;
    p->watching = true;
    p->watch.version = version;
    p->watch.head.flags = 0;
    int rc = kvbm_actor_send(&p->allocator->actor, &p->allocator->registry->actor, &p->watch.head);
    KVBM_ASSERT(rc == 0);
}

/* ------------------------------------------------------------------------------------------------------- allocation */

static void line_serve(struct kvbm_allocator_pool *p);

static void allocate_end(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m, int32_t status) {
    KVBM_ASSERT(m->reserved == 0 && !m->op.waiting);
    KVBM_ASSERT(status != 0 || m->handed == m->count);
    kvbm_actor_reply(&p->allocator->actor, &m->op.head, status);
}

static void allocate_fail(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m, uint64_t available) {
    m->op.requested = m->count;
    m->op.available = available;
    allocate_end(p, m, -KVBM_ENOBLOCKS);
}

/* Everything is set aside: writes handles, at most a step of them. */
static void allocate_hand_out(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m) {
    uint32_t n = m->count - m->handed;
    KVBM_ASSERT(m->reserved == n && n > 0);
    if (n > KVBM_STEP_BLOCKS)
        n = KVBM_STEP_BLOCKS;
    for (uint32_t i = 0; i < n; i++)
        m->blocks[m->handed + i] = kvbm_slots_hand_out(&p->pool->slots, free_pop(p));
    m->handed += n;
    m->reserved -= n;
    p->reserved -= n;
    kvbm__counter_add(&p->pool->a.allocated, n);
    free_publish_gauge(p);
    if (m->handed < m->count) {
        int rc = kvbm_actor_send(&p->allocator->actor, &p->allocator->actor, &m->op.head);
        KVBM_ASSERT(rc == 0);
        return;
    }
    m->op.count = m->count;
    allocate_end(p, m, 0);
}

/* Sets aside what is free and asks the registry for the rest. */
static void allocate_try(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m) {
    KVBM_ASSERT(m->reserved == 0 && m->handed == 0);
    if (free_unreserved(p) < m->count)
        kvbm_allocator_drain(p->allocator, p->pool->number);
    uint32_t have = free_unreserved(p);
    m->reserved = have < m->count ? have : m->count;
    p->reserved += m->reserved;
    free_publish_gauge(p);
    if (m->reserved == m->count) {
        allocate_hand_out(p, m);
        return;
    }
    if (m->served) {
        KVBM_ASSERT(p->serving == NULL);
        p->serving = m;
        line_gauge(p);
    }
    struct kvbm_msg_evict *evict = &m->evict;
    evict->head = (struct kvbm_msg){.kind = KVBM_MSG_EVICT, .op = m->op.head.op, .reply_to = &p->allocator->actor};
    evict->pool = p->pool;
    evict->allocate = m;
    evict->need = m->count - m->reserved;
    evict->free_version = p->free_version;
    evict->done = 0;
    evict->chain_count = 0;
    evict->chain_head = evict->chain_tail = KVBM_SLOT_NONE;
    int rc = kvbm_actor_send(&p->allocator->actor, &p->allocator->registry->actor, &evict->head);
    KVBM_ASSERT(rc == 0);
}

/* Takes waiting operations off the line's head while they can be served; stops at the first that needs an EVICT. */
static void line_serve(struct kvbm_allocator_pool *p) {
    while (p->line_head != NULL && p->serving == NULL) {
        struct kvbm_msg_allocate *m = p->line_head;
        line_remove(p, m);
        m->served = true;
        allocate_try(p, m);
    }
    line_gauge(p);
    returns_want(p);
}

/* Short: an operation that may wait stands in line, any other fails. */
static void allocate_short(struct kvbm_allocator_pool *p, struct kvbm_msg_allocate *m, uint64_t available,
                           uint64_t version) {
    if (!m->served)
        kvbm__counter_add(&p->pool->a.shortages, 1);
    if (!m->may_wait || p->allocator->closing) {
        if (p->allocator->closing)
            allocate_end(p, m, -KVBM_ESHUTDOWN);
        else
            allocate_fail(p, m, available);
        return;
    }
    if (m->op.cancelled_id == m->op.head.op) {
        allocate_end(p, m, -ECANCELED);
        return;
    }
    line_insert(p, m, m->served);
    line_watch(p, version);
}

/* --------------------------------------------------------------------------------------------------------- handlers */

static void on_allocate(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_allocator *allocator = allocator_of(self);
    struct kvbm_msg_allocate *m = (struct kvbm_msg_allocate *)msg;
    struct kvbm_allocator_pool *p = pool_of(allocator, m->pool);
    if (m->handed > 0) {
        allocate_hand_out(p, m);
        return;
    }
    if (!kvbm__operation_begin(self, &m->op, allocator->closing))
        return;
    if (m->count > p->pool->slots.capacity) {
        kvbm__counter_add(&p->pool->a.shortages, 1);
        kvbm_allocator_drain(allocator, p->pool->number);
        allocate_fail(p, m, kvbm__pool_free(p->pool) + kvbm__counter_get(&p->pool->r.cached));
        return;
    }
    if (p->line_head != NULL || p->serving != NULL) {
        kvbm__counter_add(&p->pool->a.shortages, 1);
        if (!m->may_wait) {
            allocate_fail(p, m, 0);
            return;
        }
        line_insert(p, m, false);
        return;
    }
    allocate_try(p, m);
}

static void on_evict_reply(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_allocator *allocator = allocator_of(self);
    struct kvbm_msg_evict *evict = (struct kvbm_msg_evict *)msg;
    struct kvbm_msg_allocate *m = evict->allocate;
    struct kvbm_allocator_pool *p = pool_of(allocator, evict->pool);
    KVBM_ASSERT(m->handed == 0 && m->reserved < m->count);
    p->received_count += evict->chain_count;
    if (evict->chain_count > 0) {
        p->pool->slots.slots[evict->chain_tail].next = p->free_head;
        p->free_head = evict->chain_head;
        p->free_count += evict->chain_count;
    }
    bool was_serving = p->serving == m;
    if (was_serving)
        p->serving = NULL;
    p->reserved -= m->reserved;
    m->reserved = 0;
    if (evict->head.status == 0) {
        m->reserved = m->count;
        p->reserved += m->count;
        KVBM_ASSERT(p->reserved <= free_total(p));
        free_publish_gauge(p);
        allocate_hand_out(p, m);
        line_serve(p);
        return;
    }
    free_publish_gauge(p);
    if (evict->free_version != p->free_version && !allocator->closing) {
        allocate_try(p, m); /* slots came back meanwhile */
        line_serve(p);      /* and if they were enough, there may be some for those behind it */
        return;
    }
    p->free_version++; /* what was set aside is free again, for operations whose EVICT is in flight */
    allocate_short(p, m, free_unreserved(p) + evict->available, evict->version);
    /* If it is the head of the line now, nothing has changed since it found itself short: no use to try again. */
    if (p->line_head != m)
        line_serve(p);
    line_gauge(p);
    returns_want(p);
}

static void on_watch_reply(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_msg_watch *watch = (struct kvbm_msg_watch *)msg;
    struct kvbm_allocator_pool *p = pool_of(allocator_of(self), watch->pool);
    KVBM_ASSERT(p->watching && watch == &p->watch);
    p->watching = false;
    line_serve(p);
}

static void on_serve(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_allocator_pool *p = ((struct kvbm_msg_serve *)msg)->pool;
    KVBM_ASSERT(p->serve_sent && p->allocator == allocator_of(self));
    p->serve_sent = false;
    line_serve(p);
}

static void on_settle(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_allocator *allocator = allocator_of(self);
    struct kvbm_msg_settle *m = (struct kvbm_msg_settle *)msg;
    kvbm_allocator_drain(allocator, m->pool->number);
    int rc = kvbm_actor_send(self, &allocator->registry->actor, msg);
    KVBM_ASSERT(rc == 0);
}

static void on_shutdown(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct kvbm_allocator *allocator = allocator_of(self);
    KVBM_ASSERT(!allocator->closing);
    allocator->closing = true;
    for (uint32_t i = 0; i < allocator->pool_count; i++) {
        struct kvbm_allocator_pool *p = &allocator->pools[i];
        while (p->line_head != NULL) {
            struct kvbm_msg_allocate *m = p->line_head;
            line_remove(p, m);
            allocate_end(p, m, -KVBM_ESHUTDOWN);
        }
        line_gauge(p);
        returns_want(p);
    }
    kvbm_actor_reply(self, msg, 0);
}

static void on_deadline(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_allocator_unqueue(allocator_of(self), (struct kvbm_msg_allocate *)msg, -ETIMEDOUT);
}

void kvbm_allocator_unqueue(struct kvbm_allocator *allocator, struct kvbm_msg_allocate *m, int32_t status) {
    struct kvbm_allocator_pool *p = pool_of(allocator, m->pool);
    bool was_head = p->line_head == m;
    line_remove(p, m);
    m->op.requested = m->count;
    allocate_end(p, m, status);
    if (was_head)
        line_serve(p); /* the next one may want less */
    line_gauge(p);
    returns_want(p);
}

static const kvbm_handler_fn allocator_requests[KVBM_MSG_KIND_COUNT] = {
    [KVBM_MSG_ALLOCATE] = on_allocate,
    [KVBM_MSG_SERVE] = on_serve,
    [KVBM_MSG_SETTLE] = on_settle,
    [KVBM_MSG_SHUTDOWN] = on_shutdown,
};
static const kvbm_handler_fn allocator_replies[KVBM_MSG_KIND_COUNT] = {
    [KVBM_MSG_EVICT] = on_evict_reply,
    [KVBM_MSG_WATCH] = on_watch_reply,
};

void kvbm_allocator_init(struct kvbm_allocator *allocator, struct kvbm_manager *manager, struct kvbm_registry *registry,
                         struct kvbm_allocator_pool *pools, struct kvbm_block_pool *block_pools, uint32_t pool_count) {
    *allocator = (struct kvbm_allocator){
        .actor = {.name = "allocator",
                  .on_request = allocator_requests,
                  .on_reply = allocator_replies,
                  .kind_count = KVBM_MSG_KIND_COUNT,
                  .on_deadline = on_deadline},
        .manager = manager,
        .registry = registry,
        .pools = pools,
        .pool_count = pool_count,
    };
    for (uint32_t i = 0; i < pool_count; i++) {
        struct kvbm_allocator_pool *p = &pools[i];
        KVBM_ASSERT(block_pools[i].number == i);
        p->allocator = allocator;
        p->pool = &block_pools[i];
        p->free_head = KVBM_SLOT_NONE;
        p->watch.head.kind = KVBM_MSG_WATCH;
        p->watch.head.reply_to = &allocator->actor;
        p->watch.pool = p->pool;
        p->serve.head.kind = KVBM_MSG_SERVE;
        p->serve.pool = p;
        free_publish_gauge(p);
    }
}

void kvbm_allocator_attach(struct kvbm_allocator *allocator, struct kvbm_reactor *reactor) {
    kvbm_reactor_actor_add(reactor, &allocator->actor);
    for (uint32_t i = 0; i < allocator->pool_count; i++)
        kvbm_reactor_retlane_add(reactor, &allocator->pools[i].pool->slots.mutable_returns, on_returned,
                                 &allocator->pools[i]);
}
