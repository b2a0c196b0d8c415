/*
 * manager.c - opens and closes a manager: wires pools, actors and reactor, counts references.
 *
 * Thread: open, close and references any thread, within what kvbm.h says about a caller's loop. manager.h has the
 * argument why a close ends with nobody inside.
 */
#include "actors/manager.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TURN_BUDGET_DEFAULT 256u
#define LANE_BATCH          32u
#define CONTROL_CAPACITY    16u /* SWEEP and CLOSE: one of each */
#define DATA_CAPACITY       4096u
#define THREAD_CAPACITY_MAX 4096u
#define LOG_BURST           10u
#define TOUCH_THREADS_MAX   8u
#define DRAIN_PAUSE_NS_MIN  UINT64_C(20000)
#define DRAIN_PAUSE_NS_MAX  UINT64_C(1000000)
#define LOOP_DRAIN_NS       UINT64_C(1000000000) /* what a close on a caller's loop waits for threads inside a call */

static _Thread_local char thread_identity; /* its address names the thread */

const char *kvbm_version_mt(void) {
    return KVBM_VERSION;
}

/* --------------------------------------------------------------------------------------------------------- helpers */

void kvbm__failure_set(kvbm_failure *failure, int code, uint64_t index, const char *format, ...) {
    if (failure == NULL || failure->size < offsetof(kvbm_failure, index))
        return;
    failure->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(failure->text, sizeof(failure->text), format, args);
    va_end(args);
    if (failure->size >= sizeof(*failure))
        failure->index = index;
}

int kvbm__options_copy(void *to, size_t to_size, const void *from, size_t least) {
    size_t size;
    memcpy(&size, from, sizeof(size));
    if (size < least)
        return -EINVAL;
    if (size > to_size) {
        const unsigned char *rest = (const unsigned char *)from + to_size;
        if (size > 65536)
            return -EINVAL; /* not a struct of ours: the field was never set */
        for (size_t i = 0; i < size - to_size; i++)
            if (rest[i] != 0)
                return -E2BIG;
        size = to_size;
    }
    memset(to, 0, to_size);
    memcpy(to, from, size);
    return 0;
}

bool kvbm__enter(struct kvbm_manager *m) {
    /* Sequentially consistent, both: pairs with the closer, which stores `closed` and then loads `inside`. */
    atomic_fetch_add_explicit(&m->inside, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&m->closed, memory_order_seq_cst) == 0)
        return true;
    kvbm__leave(m);
    return false;
}

void kvbm__leave(struct kvbm_manager *m) {
    /* Release pairs with the closer's acquire: what was done inside is over. */
    atomic_fetch_sub_explicit(&m->inside, 1, memory_order_release);
}

bool kvbm__is_loop_thread(const struct kvbm_manager *m) {
    return m->drive == KVBM_DRIVE_LOOP && m->loop_thread == &thread_identity;
}

bool kvbm__inside_callback(const struct kvbm_manager *m) {
    return kvbm_reactor_current_mt() == &m->reactor;
}

bool kvbm__loop_turn(struct kvbm_manager *m) {
    KVBM_ASSERT(kvbm__is_loop_thread(m));
    return kvbm_reactor_uv_turn(&m->uv);
}

bool kvbm__loop_busy(const struct kvbm_manager *m) {
    return kvbm__is_loop_thread(m) && m->uv.holding;
}

/* ----------------------------------------------------------------------------------------------------------- checks */

#define GROUP_LEAST   offsetof(kvbm_group_options, policy)
#define OPTIONS_LEAST offsetof(kvbm_options, flags)

static int check_ranges(const kvbm_options *o, kvbm_failure *failure) {
    const uint32_t flags = KVBM_OPEN_NO_BYTES | KVBM_OPEN_NO_BORROW | KVBM_OPEN_TRACK_TOKENS;
    if (o->group_count == 0 || o->group_count > KVBM_GROUP_COUNT_MAX)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "group_count=%u: must be 1 .. %d", o->group_count,
                          KVBM_GROUP_COUNT_MAX);
    if (o->groups == NULL)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "groups=NULL: must name group_count groups");
    if ((o->flags & ~flags) != 0)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "flags=0x%x: only the bits 0x%x are known", o->flags, flags);
    if (o->max_operations != 0 && (o->max_operations < KVBM_OPERATIONS_MIN || o->max_operations > KVBM_OPERATIONS_MAX))
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "max_operations=%u: must be %u .. %u, or 0 for %u",
                          o->max_operations, KVBM_OPERATIONS_MIN, KVBM_OPERATIONS_MAX, KVBM_OPERATIONS_DEFAULT);
    if (o->name != NULL && strnlen(o->name, 16) > 15)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "name=\"%.32s\": must be at most 15 characters", o->name);
    if (o->huge_pages < 0 || o->huge_pages > 2)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "huge_pages=%d: must be 0 (try), 1 (off) or 2 (require)",
                          o->huge_pages);
    if (o->numa_node < 0 || o->numa_node > 1024)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "numa_node=%d: must be 1 (node 0) .. 1024, or 0 for any",
                          o->numa_node);
    if (o->touch_threads > 1024 && o->touch_threads != UINT32_MAX)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "touch_threads=%u: must be 0 .. 1024, or UINT32_MAX for none",
                          o->touch_threads);
    if (o->log_level < 0 || o->log_level > KVBM_LOG_OFF)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "log_level=%d: must be 1 (debug) .. 4 (error), 9 (off), or 0",
                          o->log_level);
    return 0;
}

/* Copies group i; its options and layout are valid afterwards. */
static int check_group(const kvbm_options *o, uint32_t i, kvbm_group_options *group, struct kvbm_layout *layout,
                       kvbm_failure *failure) {
    size_t stride;
    memcpy(&stride, o->groups, sizeof(stride));
    int rc = stride < GROUP_LEAST ? -EINVAL : 0;
    if (rc == 0) {
        const unsigned char *at = (const unsigned char *)o->groups + i * stride;
        size_t size;
        memcpy(&size, at, sizeof(size));
        rc = size == stride ? kvbm__options_copy(group, sizeof(*group), at, GROUP_LEAST) : -EINVAL;
    }
    if (rc != 0)
        return kvbm__fail(failure, rc, i, "groups[%u].size: must be sizeof(kvbm_group_options)=%zu, as of all groups",
                          i, sizeof(*group));
    if (group->host_blocks > KVBM_SLOT_COUNT_MAX)
        return kvbm__fail(failure, -EINVAL, i, "groups[%u].host_blocks=%llu: must be 0 .. %u", i,
                          (unsigned long long)group->host_blocks, KVBM_SLOT_COUNT_MAX);
    if (kvbm_policy_find(group->policy != NULL ? group->policy : KVBM_POLICY_DEFAULT) == NULL)
        return kvbm__fail(failure, -EINVAL, i, "groups[%u].policy=\"%.32s\": must be one of %s", i, group->policy,
                          kvbm_policy_names());
    const char *why = "";
    rc = kvbm_layout_init(layout, &group->geometry, group->host_blocks > 0 ? group->host_blocks : 1, &why);
    if (rc != 0)
        return kvbm__fail(failure, rc, i,
                          "groups[%u].geometry (num_layers=%u, outer_dim=%u, page_size=%u, "
                          "inner_dim=%u): %s",
                          i, group->geometry.num_layers, group->geometry.outer_dim, group->geometry.page_size,
                          group->geometry.inner_dim, why);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------ block pools */

static void pool_close(struct kvbm_manager *m, struct kvbm_block_pool *pool) {
    if (pool->duplicate_keys != NULL)
        m->os->unmap(m->os->ctx, pool->duplicate_keys, pool->duplicate_keys_bytes);
    if (pool->policy != NULL)
        pool->policy->ops->close(pool->policy);
    if (pool->slab.base != NULL)
        kvbm_slab_close(&pool->slab);
    kvbm_slots_close(&pool->slots);
}

static int pool_open_slab(struct kvbm_manager *m, const kvbm_options *o, struct kvbm_block_pool *pool) {
    uint32_t touch = o->touch_threads;
    if (touch == UINT32_MAX)
        touch = 0;
    else if (touch == 0)
        touch = m->os->cpu_count(m->os->ctx) < TOUCH_THREADS_MAX ? m->os->cpu_count(m->os->ctx) : TOUCH_THREADS_MAX;
    static const int huge[] = {KVBM_SLAB_HUGE_TRY, KVBM_SLAB_HUGE_OFF, KVBM_SLAB_HUGE_REQUIRE};
    struct kvbm_slab_options options = {
        .bytes = pool->layout.total_bytes,
        .huge = huge[o->huge_pages],
        .numa_node = o->numa_node == 0 ? KVBM_SLAB_NUMA_ANY : o->numa_node - 1,
        .touch_threads = touch,
    };
    return kvbm_slab_open(&pool->slab, m->os, &m->log, &options);
}

/* The host pool of a group. On failure the caller closes it all the same. */
static int pool_open(struct kvbm_manager *m, const kvbm_options *o, uint32_t group, const kvbm_group_options *g,
                     const struct kvbm_layout *layout, kvbm_failure *failure) {
    struct kvbm_block_pool *pool = &m->pools[m->pool_count];
    pool->number = m->pool_count++;
    pool->layout = *layout;
    pool->generation_seed = m->os->random_u64(m->os->ctx);
    int rc = kvbm_slots_open(&pool->slots, m->os, group, KVBM_TIER_HOST, (uint32_t)g->host_blocks,
                             layout->geometry.page_size, (o->flags & KVBM_OPEN_TRACK_TOKENS) != 0);
    if (rc == 0)
        rc = kvbm_policy_find(g->policy != NULL ? g->policy : KVBM_POLICY_DEFAULT)
                 ->open(m->os, (uint32_t)g->host_blocks, &pool->policy);
    if (rc == 0) {
        void *map = NULL;
        unsigned got;
        pool->duplicate_keys_bytes = (size_t)g->host_blocks * sizeof(kvbm_key);
        rc = m->os->map(m->os->ctx, pool->duplicate_keys_bytes, KVBM_MAP_LAZY, &map, &got);
        pool->duplicate_keys = rc == 0 ? map : NULL;
    }
    if (rc != 0)
        return kvbm__fail(failure, rc, group, "groups[%u].host_blocks=%llu: no memory for the bookkeeping (%s)", group,
                          (unsigned long long)g->host_blocks, kvbm_error_name_mt(rc));
    if ((o->flags & KVBM_OPEN_NO_BYTES) == 0) {
        rc = pool_open_slab(m, o, pool);
        if (rc != 0)
            return kvbm__fail(failure, rc, group, "groups[%u].host_blocks=%llu: %llu bytes of host memory: %s", group,
                              (unsigned long long)g->host_blocks, (unsigned long long)layout->total_bytes,
                              kvbm_error_text_mt(rc));
        m->slab_bytes += layout->total_bytes;
    }
    m->pool_by_id[group << 2 | KVBM_TIER_HOST] = pool;
    return 0;
}

static int pools_open(struct kvbm_manager *m, const kvbm_options *o, kvbm_failure *failure) {
    kvbm_group_options groups[KVBM_GROUP_COUNT_MAX];
    struct kvbm_layout layouts[KVBM_GROUP_COUNT_MAX];
    int rc = 0;
    /* All are checked before memory is taken for any. */
    for (uint32_t i = 0; i < o->group_count && rc == 0; i++)
        rc = check_group(o, i, &groups[i], &layouts[i], failure);
    for (uint32_t i = 0; i < o->group_count && rc == 0; i++)
        if (groups[i].host_blocks > 0)
            rc = pool_open(m, o, i, &groups[i], &layouts[i], failure);
    if (rc == 0 && m->pool_count == 0)
        rc = kvbm__fail(failure, -EINVAL, UINT64_MAX, "groups[].host_blocks=0: at least one group must have blocks");
    return rc;
}

/* ------------------------------------------------------------------------------------------------------------- free */

/* Everything that open made, in any state of completeness, with the reactor ours. */
static void manager_free(struct kvbm_manager *m) {
    if (m->operations.objects != NULL) {
        for (uint32_t i = 0; i < m->operations.count; i++) {
            struct kvbm_operation *op = kvbm_pool_at(&m->operations, i);
            /* Answered, and nobody came for it. Nothing touches the others. */
            if (atomic_load_explicit(&op->state, memory_order_acquire) == KVBM_OPERATION_DONE)
                kvbm__operation_give(op);
        }
        kvbm_pool_close(&m->operations);
    }
    if (m->reactor.os != NULL) {
        /* No operation is left, but perhaps a message between two actors, such as a WATCH just answered: the turn that
         * ended the last operation may have had no budget for it. */
        while (kvbm_reactor_has_work(&m->reactor))
            kvbm_reactor_turn(&m->reactor, m->reactor.options.turn_budget);
        kvbm_reactor_close(&m->reactor);
    }
    if (m->cancels.links != NULL)
        kvbm_retlane_close(&m->cancels);
    if (m->registry != NULL)
        kvbm_registry_close(m->registry);
    if (m->pools != NULL)
        for (uint32_t i = 0; i < m->pool_count; i++)
            pool_close(m, &m->pools[i]);
    free(m->registry);
    free(m->allocator_pools);
    free(m->registry_pools);
    free(m->pools);
    free(m);
}

void kvbm__hold(struct kvbm_manager *m) {
    /* Relaxed: the caller's own hold keeps the memory. */
    atomic_fetch_add_explicit(&m->holds, 1, memory_order_relaxed);
}

void kvbm__unhold(struct kvbm_manager *m) {
    /* Release: what this holder did; acquire: what all others did, before the memory goes. */
    uint32_t before = atomic_fetch_sub_explicit(&m->holds, 1, memory_order_acq_rel);
    KVBM_ASSERT(before > 0);
    if (before == 1)
        manager_free(m);
}

/* ------------------------------------------------------------------------------------------------------------- open */

static uint32_t power_of_two_above(uint32_t n) {
    uint32_t power = 4;
    while (power <= n)
        power *= 2;
    return power;
}

static int reactor_open(struct kvbm_manager *m, const kvbm_options *o, const struct kvbm__drive *drive) {
    uint32_t lane = power_of_two_above(m->operations.count);
    if (lane > THREAD_CAPACITY_MAX)
        lane = THREAD_CAPACITY_MAX;
    if (drive != NULL && drive->thread_capacity != 0)
        lane = drive->thread_capacity;
    struct kvbm_reactor_options options = {
        .name = m->name,
        .os = m->os,
        .log = &m->log,
        .mailbox = {.control_capacity = CONTROL_CAPACITY,
                    .data_capacity = drive != NULL && drive->thread_capacity != 0 ? lane : DATA_CAPACITY,
                    .thread_capacity = lane,
                    .lane_batch = LANE_BATCH},
        .deadline_capacity = m->operations.count,
        .turn_budget = drive != NULL && drive->turn_budget != 0 ? drive->turn_budget : TURN_BUDGET_DEFAULT,
        .borrowable = (o->flags & KVBM_OPEN_NO_BORROW) == 0,
        .wake = drive != NULL ? drive->wake : kvbm_reactor_uv_wake,
        .wake_ctx = drive != NULL ? drive->ctx : &m->uv,
        .kinds = kvbm__messages,
        .kind_count = KVBM_MSG_KIND_COUNT,
    };
    int rc = kvbm_reactor_open(&m->reactor, &options);
    if (rc != 0) {
        m->reactor.os = NULL; /* not open: manager_free leaves it alone */
        return rc;
    }
    kvbm_reactor_actor_add(&m->reactor, &m->actor);
    kvbm_allocator_attach(&m->allocator, &m->reactor);
    kvbm_registry_attach(m->registry, &m->reactor);
    return 0;
}

/* Everything but the driver. */
static int manager_wire(struct kvbm_manager *m, const kvbm_options *o, const struct kvbm__drive *drive,
                        kvbm_failure *failure) {
    uint32_t count = m->pool_count > 0 ? m->pool_count : 1;
    m->allocator_pools = calloc(count, sizeof(*m->allocator_pools));
    m->registry_pools = calloc(count, sizeof(*m->registry_pools));
    m->registry = calloc(1, sizeof(*m->registry));
    int rc = m->allocator_pools == NULL || m->registry_pools == NULL || m->registry == NULL ? -ENOMEM : 0;
    uint32_t operations = o->max_operations != 0 ? o->max_operations : KVBM_OPERATIONS_DEFAULT;
    if (rc == 0)
        rc = kvbm_registry_open(m->registry, m, m->os, m->registry_pools, m->pools, m->pool_count);
    if (rc == 0)
        rc = kvbm_pool_open(&m->operations, m->os, operations, sizeof(union kvbm_any_operation));
    if (rc == 0)
        rc = kvbm_retlane_open(&m->cancels, m->os, operations);
    if (rc == 0) {
        kvbm__manager_actor_init(m);
        kvbm_allocator_init(&m->allocator, m, m->registry, m->allocator_pools, m->pools, m->pool_count);
        rc = reactor_open(m, o, drive);
    }
    if (rc != 0)
        return kvbm__fail(failure, rc, UINT64_MAX, "no memory for the manager (%s)", kvbm_error_name_mt(rc));
    return 0;
}

static int manager_make(const kvbm_options *o, const struct kvbm__drive *drive, struct kvbm_manager **made,
                        kvbm_failure *failure) {
    struct kvbm_manager *m = aligned_alloc(64, (sizeof(*m) + 63) / 64 * 64);
    struct kvbm_block_pool *pools = calloc(KVBM_GROUP_COUNT_MAX, sizeof(*pools));
    if (m == NULL || pools == NULL) {
        free(m);
        free(pools);
        return kvbm__fail(failure, -ENOMEM, UINT64_MAX, "no memory for the manager");
    }
    memset(m, 0, sizeof(*m));
    m->os = drive != NULL ? drive->os : kvbm_os_real();
    m->fork_stamp = kvbm_os_fork_stamp_mt();
    m->flags = o->flags;
    m->drive = drive != NULL ? KVBM_DRIVE_EMBEDDER : o->uv_loop != NULL ? KVBM_DRIVE_LOOP : KVBM_DRIVE_THREAD;
    m->group_count = o->group_count;
    m->pools = pools;
    m->loop_thread = &thread_identity;
    snprintf(m->name, sizeof(m->name), "%s", o->name != NULL ? o->name : "kvbm");
    kvbm_logger_init(&m->log, m->os, o->log, o->log_user, o->log_level != 0 ? o->log_level : KVBM_LOG_WARNING,
                     LOG_BURST);
    atomic_init(&m->references, 1);
    atomic_init(&m->holds, 1);
    int rc = pools_open(m, o, failure);
    if (rc == 0)
        rc = manager_wire(m, o, drive, failure);
    if (rc != 0) {
        manager_free(m);
        return rc;
    }
    *made = m;
    return 0;
}

static int open_checked(const kvbm_options *options, kvbm_options *copy, kvbm_manager **manager,
                        kvbm_failure *failure) {
    if (manager == NULL)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "manager=NULL: must be given");
    *manager = NULL;
    if (options == NULL)
        return kvbm__fail(failure, -EINVAL, UINT64_MAX, "options=NULL: must be given");
    int rc = kvbm__options_copy(copy, sizeof(*copy), options, OPTIONS_LEAST);
    if (rc == -E2BIG)
        return kvbm__fail(failure, rc, UINT64_MAX, "options.size=%zu: has fields that this library (%s) does not know",
                          options->size, KVBM_VERSION);
    if (rc != 0)
        return kvbm__fail(failure, rc, UINT64_MAX, "options.size=%zu: must be sizeof(kvbm_options)=%zu", options->size,
                          sizeof(*copy));
    return check_ranges(copy, failure);
}

int kvbm_manager_open(const kvbm_options *options, kvbm_manager **manager, kvbm_failure *failure) {
    kvbm_options o;
    int rc = open_checked(options, &o, manager, failure);
    if (rc != 0)
        return rc;
    struct kvbm_manager *m = NULL;
    rc = manager_make(&o, NULL, &m, failure);
    if (rc != 0)
        return rc;
    rc = kvbm_reactor_uv_start(&m->uv, &m->reactor, o.uv_loop);
    if (rc != 0) {
        manager_free(m);
        return kvbm__fail(failure, rc, UINT64_MAX, "the reactor could not be started (%s)", kvbm_error_name_mt(rc));
    }
    if (m->drive == KVBM_DRIVE_LOOP)
        kvbm__hold(m); /* the handles on the loop */
    *manager = m;
    return 0;
}

int kvbm__manager_open_driven(const kvbm_options *options, const struct kvbm__drive *drive, kvbm_manager **manager,
                              kvbm_failure *failure) {
    kvbm_options o;
    int rc = open_checked(options, &o, manager, failure);
    return rc != 0 ? rc : manager_make(&o, drive, manager, failure);
}

struct kvbm_reactor *kvbm__manager_reactor(kvbm_manager *m) {
    return &m->reactor;
}

/* ------------------------------------------------------------------------------------------------------------ close */

void kvbm__manager_close_begin(kvbm_manager *m) {
    /* Sequentially consistent: pairs with operation_take and kvbm__enter. */
    if (atomic_exchange_explicit(&m->closed, 1, memory_order_seq_cst) != 0)
        return;
    atomic_store_explicit(&m->close_stage, KVBM_CLOSE_DRAINING, memory_order_relaxed);
    int rc = kvbm_reactor_post_mt(&m->reactor, &m->close.head);
    KVBM_ASSERT(rc == 0); /* the control lane has room for all that there is */
}

bool kvbm__manager_drained(kvbm_manager *m) {
    /* Sequentially consistent loads after the store of `closed`; see manager.h. Acquire: what ended is seen. */
    if (atomic_load_explicit(&m->closed, memory_order_seq_cst) == 0 ||
        atomic_load_explicit(&m->shutdown_missing, memory_order_seq_cst) != 0 ||
        atomic_load_explicit(&m->inside, memory_order_seq_cst) != 0 ||
        atomic_load_explicit(&m->sweep_sent, memory_order_seq_cst) != 0) /* in a lane: set by a thread inside */
        return false;
    for (uint32_t i = 0; i < m->operations.count; i++) {
        const struct kvbm_operation *op = kvbm_pool_at(&m->operations, i);
        uint32_t state = atomic_load_explicit(&op->state, memory_order_seq_cst);
        if (state != KVBM_OPERATION_FREE && state != KVBM_OPERATION_DONE && state != KVBM_OPERATION_PARKED)
            return false;
    }
    /* Looked at first and last: a thread that was inside while the states were read may have been between two of them.
     */
    return atomic_load_explicit(&m->inside, memory_order_seq_cst) == 0;
}

static void close_finished(struct kvbm_manager *m) {
    /* Release pairs with those who wait for the end. */
    atomic_store_explicit(&m->close_stage, KVBM_CLOSE_FINISHED, memory_order_release);
    m->os->wake_u32(m->os->ctx, &m->close_stage, true);
}

void kvbm__manager_finish(kvbm_manager *m) {
    KVBM_ASSERT(m->drive == KVBM_DRIVE_EMBEDDER && kvbm__manager_drained(m));
    close_finished(m);
}

static void on_loop_closed(void *arg) {
    struct kvbm_manager *m = arg;
    close_finished(m);
    kvbm__unhold(m);
}

/* Says what a close that takes too long waits for. */
static int close_timed_out(struct kvbm_manager *m) {
    KVBM_LOG(&m->log, WARNING, "manager", "close waits name=%s operations=%u threads_inside=%u shutdown_missing=%u",
             m->name, kvbm_pool_taken_mt(&m->operations), atomic_load_explicit(&m->inside, memory_order_relaxed),
             atomic_load_explicit(&m->shutdown_missing, memory_order_relaxed));
    return -ETIMEDOUT;
}

static uint64_t deadline_after(const struct kvbm_manager *m, uint64_t timeout_ns) {
    if (timeout_ns == UINT64_MAX)
        return KVBM_NO_DEADLINE;
    uint64_t now_ns = m->os->now_ns(m->os->ctx);
    return timeout_ns < KVBM_NO_DEADLINE - now_ns ? now_ns + timeout_ns : KVBM_NO_DEADLINE;
}

/* Waits until nothing is in flight; on the loop's thread it runs the reactor itself. False: the deadline came. */
static bool close_drain(struct kvbm_manager *m, uint64_t deadline_ns) {
    const struct kvbm_os *os = m->os;
    uint64_t pause_ns = DRAIN_PAUSE_NS_MIN;
    _Atomic uint32_t nobody_wakes = 0;
    for (;;) {
        if (m->drive == KVBM_DRIVE_LOOP)
            kvbm__loop_turn(m);
        if (kvbm__manager_drained(m))
            return true;
        uint64_t now_ns = os->now_ns(os->ctx);
        if (now_ns >= deadline_ns)
            return false;
        if (kvbm__loop_busy(m))
            continue;
        os->wait_u32(os->ctx, &nobody_wakes, 0, now_ns + pause_ns < deadline_ns ? now_ns + pause_ns : deadline_ns);
        if (pause_ns < DRAIN_PAUSE_NS_MAX)
            pause_ns *= 2;
    }
}

/* Own thread: drains, then one closer stops the reactor, the others wait for it. */
static int close_thread(struct kvbm_manager *m, uint64_t deadline_ns) {
    if (!close_drain(m, deadline_ns))
        return close_timed_out(m);
    uint32_t stage = KVBM_CLOSE_DRAINING;
    /* Acquire-release: one closer wins and sees what the first one began. */
    if (atomic_compare_exchange_strong_explicit(&m->close_stage, &stage, KVBM_CLOSE_STOPPING, memory_order_acq_rel,
                                                memory_order_acquire)) {
        kvbm_reactor_uv_stop(&m->uv, NULL, NULL);
        close_finished(m);
        return 0;
    }
    while (stage != KVBM_CLOSE_FINISHED) {
        int rc = m->os->wait_u32(m->os->ctx, &m->close_stage, stage, deadline_ns);
        if (rc == -ETIMEDOUT)
            return close_timed_out(m);
        stage = atomic_load_explicit(&m->close_stage, memory_order_acquire);
    }
    return 0;
}

/* Caller's loop: what is in flight ends here and now, the handles close as the loop goes on. */
static int close_loop(struct kvbm_manager *m, uint64_t timeout_ns) {
    uint64_t wait_ns = timeout_ns > LOOP_DRAIN_NS ? timeout_ns : LOOP_DRAIN_NS;
    if (!close_drain(m, deadline_after(m, wait_ns)))
        return close_timed_out(m);
    uint32_t stage = KVBM_CLOSE_DRAINING;
    if (atomic_compare_exchange_strong_explicit(&m->close_stage, &stage, KVBM_CLOSE_STOPPING, memory_order_acq_rel,
                                                memory_order_acquire))
        kvbm_reactor_uv_stop(&m->uv, on_loop_closed, m);
    return 0;
}

int kvbm_manager_close_mt(kvbm_manager *m, uint64_t timeout_ns) {
    if (m == NULL)
        return -EINVAL;
    if (kvbm_os_forked_mt(m->fork_stamp))
        return -KVBM_EFORKED;
    /* Acquire pairs with close_finished. */
    if (atomic_load_explicit(&m->close_stage, memory_order_acquire) == KVBM_CLOSE_FINISHED)
        return 0;
    if (kvbm_reactor_current_mt() != NULL)
        return -EDEADLK;
    if (m->drive == KVBM_DRIVE_LOOP && !kvbm__is_loop_thread(m))
        return -EPERM;
    kvbm__manager_close_begin(m);
    if (m->drive == KVBM_DRIVE_EMBEDDER)
        return -EINPROGRESS; /* the embedder turns the reactor and finishes */
    return m->drive == KVBM_DRIVE_LOOP ? close_loop(m, timeout_ns) : close_thread(m, deadline_after(m, timeout_ns));
}

bool kvbm_manager_is_closed_mt(const kvbm_manager *m) {
    return m == NULL || atomic_load_explicit(&m->closed, memory_order_acquire) != 0;
}

/* ------------------------------------------------------------------------------------------------------- references */

void kvbm_manager_retain_mt(kvbm_manager *m) {
    if (m == NULL || kvbm_os_forked_mt(m->fork_stamp))
        return;
    /* Relaxed: the caller's own reference keeps it. */
    uint32_t before = atomic_fetch_add_explicit(&m->references, 1, memory_order_relaxed);
    KVBM_ASSERT_MSG(before > 0, "a reference is taken from a manager that has none left");
}

void kvbm_manager_release_mt(kvbm_manager *m) {
    /* A forked child has neither the reactor's thread nor the slab: it leaves the rest alone too. */
    if (m == NULL || kvbm_os_forked_mt(m->fork_stamp))
        return;
    uint32_t before = atomic_fetch_sub_explicit(&m->references, 1, memory_order_acq_rel);
    KVBM_ASSERT_MSG(before > 0, "a manager is released more often than it was retained");
    if (before > 1)
        return;
    int rc = kvbm_manager_close_mt(m, UINT64_MAX);
    if (rc != 0) {
        KVBM_LOG(&m->log, ERROR, "manager",
                 "the last reference went and the manager cannot close: it leaks name=%s "
                 "error=%s",
                 m->name, kvbm_error_name_mt(rc));
        return;
    }
    kvbm__unhold(m);
}

const struct kvbm_layout *kvbm_manager_layout_mt(const kvbm_manager *m, uint32_t group, int tier) {
    if (m == NULL)
        return NULL;
    const struct kvbm_block_pool *pool = kvbm__pool_find(m, group, tier);
    return pool != NULL ? &pool->layout : NULL;
}
