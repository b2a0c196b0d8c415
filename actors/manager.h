/*
 * manager.h - the manager: what it is made of, and the private functions that its source files share.
 *
 *   manager.c    open, close, references; wires pools, actors and reactor
 *   submit.c     validates requests, makes operations of them and submits them; cancel and wait
 *   operation.c  the manager's actor: completes and delivers operations, sweeps cancels, begins the shutdown
 *   block.c      what a holder does with its blocks
 *   ports.c      completion queues
 *   stats.c      counters
 *   check.c      the invariants
 *
 * Closing. `closed` refuses new work; a submitter first makes its operation visible (state, sequentially consistent)
 * and then looks at `closed`, the closer first sets `closed` and then looks at all states: one of the two sees the
 * other. Every other call into the reactor by an application thread stands between kvbm__enter and kvbm__leave, which
 * do the same with `inside`; a callback in a turn counts as inside too. So once no operation is in flight, nobody is
 * inside and both actors have answered SHUTDOWN, no application thread is or will be in a function of the reactor, and
 * it can be stopped.
 *
 * References. `references` are the users'; the last one closes. `holds` keep the memory: one for all users together,
 * one for a reactor that still has handles on a caller's loop, and one for each completion that waits in a port.
 */
#ifndef KVBM_ACTORS_MANAGER_H
#define KVBM_ACTORS_MANAGER_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/allocator.h"
#include "actors/block_pool.h"
#include "actors/kvbm.h"
#include "actors/manager_internal.h"
#include "actors/messages.h"
#include "actors/registry.h"
#include "runtime/histogram.h"
#include "runtime/log.h"
#include "runtime/pool.h"
#include "runtime/port.h"
#include "runtime/reactor.h"
#include "runtime/reactor_uv.h"

#define KVBM_OPERATIONS_DEFAULT  16384u
#define KVBM_OPERATIONS_MIN      16u
#define KVBM_OPERATIONS_MAX      (1u << 20)
#define KVBM_CREDIT_REQUESTS_MAX 64u /* ports that wait for credit at one manager */
#define KVBM_PORT_CAPACITY_MAX   (1u << 20)
#define KVBM_PORT_RESERVE        128u /* places in a port beside its capacity: CREDIT completions of that many managers */
#define KVBM_POOL_ID_COUNT       64u /* group:4 | tier:2 */
#define KVBM_LATENCY_SAMPLE      64u /* of the operations answered at submit, one in so many is timed */

enum kvbm_drive_kind { KVBM_DRIVE_THREAD, KVBM_DRIVE_LOOP, KVBM_DRIVE_EMBEDDER };

enum kvbm_close_stage {
    KVBM_CLOSE_OPEN = 0,
    KVBM_CLOSE_DRAINING = 1,
    KVBM_CLOSE_STOPPING = 2,
    KVBM_CLOSE_FINISHED = 3
};

struct kvbm_manager {
    /* Set at open. */
    const struct kvbm_os *os;
    uint32_t fork_stamp;
    uint32_t flags;
    enum kvbm_drive_kind drive;
    uint32_t group_count;
    uint32_t pool_count;
    struct kvbm_block_pool *pools;
    struct kvbm_block_pool *pool_by_id[KVBM_POOL_ID_COUNT]; /* by the six bits of a handle */
    struct kvbm_logger log;
    char name[16];
    const void *loop_thread; /* identity of the thread that opened it, with KVBM_DRIVE_LOOP */
    size_t slab_bytes;

    struct kvbm_pool operations;
    struct kvbm_reactor reactor;
    struct kvbm_reactor_uv uv;
    struct kvbm_actor actor; /* the manager's own: replies of operations, SWEEP, CLOSE, SHUTDOWN */
    struct kvbm_allocator allocator;
    struct kvbm_registry *registry; /* its scratch makes it large: allocated apart */
    struct kvbm_allocator_pool *allocator_pools;
    struct kvbm_registry_pool *registry_pools;
    struct kvbm_retlane cancels;
    struct kvbm_msg_sweep sweep;
    struct kvbm_msg_close close;
    struct kvbm_msg_shutdown shutdown_allocator, shutdown_registry;

    /* Any thread. */
    _Alignas(64) _Atomic uint32_t closed;
    _Atomic uint32_t close_stage;      /* enum kvbm_close_stage; futex word of those who wait for the end */
    _Atomic uint32_t shutdown_missing; /* actors that have not answered SHUTDOWN; 2 from the start */
    _Atomic uint32_t credit_requests;  /* ports that wait in credits[] */
    _Alignas(64) _Atomic uint32_t inside;
    _Atomic uint32_t sweep_sent;
    _Atomic uint32_t references;
    _Atomic uint32_t holds;
    _Atomic uint64_t refused_count; /* many writers, all refused */
    struct kvbm_msg_credit credits[KVBM_CREDIT_REQUESTS_MAX];

    /* The reactor's owner; read anywhere. */
    _Alignas(64) kvbm_counter accepted_count;
    kvbm_counter completed_count, cancelled_count, timed_out_count;
    struct kvbm_histogram latency[KVBM_OP_QUERY + 1]; /* by enum kvbm_op_kind */
};

/* A full fence that follows a locked read-modify-write of this thread: free where those are full fences themselves. */
static inline void kvbm__fence_given(void) {
#if defined(__x86_64__) || defined(__i386__)
    atomic_signal_fence(memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static inline struct kvbm_block_pool *kvbm__pool_of_block(const struct kvbm_manager *m, kvbm_block block) {
    return m->pool_by_id[block.bits >> 26 & (KVBM_POOL_ID_COUNT - 1)];
}
/* NULL if there is no such pool; any values. */
static inline struct kvbm_block_pool *kvbm__pool_find(const struct kvbm_manager *m, uint32_t group, int tier) {
    if (group >= KVBM_GROUP_COUNT_MAX || tier < 0 || tier >= KVBM_TIER_COUNT)
        return NULL;
    return m->pool_by_id[group << 2 | (uint32_t)tier];
}

/* manager.c */
/* Says in `failure` (may be NULL) what is wrong. `index`: of an item of a batch. */
void kvbm__failure_set(kvbm_failure *failure, int code, uint64_t index, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same, with the value `code` (evaluated twice): what is returned is then plain to see, to an analyzer too. */
#define kvbm__fail(failure, code, ...) (kvbm__failure_set((failure), (code), __VA_ARGS__), (code))
/* Copies an option struct that starts with its size: missing fields become zero. -EINVAL for a size below `least`,
 * -E2BIG where fields that this library does not know are not zero. */
int kvbm__options_copy(void *to, size_t to_size, const void *from, size_t least);
/* Between enter (true) and leave a thread may call into the reactor. False: the manager is closed. */
bool kvbm__enter(struct kvbm_manager *m);
void kvbm__leave(struct kvbm_manager *m);
bool kvbm__is_loop_thread(const struct kvbm_manager *m);
/* On the loop's thread of a KVBM_DRIVE_LOOP manager, outside of handlers: runs turns. False: another thread does. */
bool kvbm__loop_turn(struct kvbm_manager *m);
/* There: work is left, so a caller that waits comes back at once. */
bool kvbm__loop_busy(const struct kvbm_manager *m);
void kvbm__hold(struct kvbm_manager *m);
/* The last one frees the manager. */
void kvbm__unhold(struct kvbm_manager *m);
bool kvbm__inside_callback(const struct kvbm_manager *m);

/* operation.c */
/* First thing of each operation's handler: false if it must not start, and then it has been answered (-ECANCELED,
 * -ETIMEDOUT, -KVBM_ESHUTDOWN). True and no effect in later steps. */
bool kvbm__operation_begin(struct kvbm_actor *self, struct kvbm_operation *op, bool closing);
void kvbm__operation_completion(const struct kvbm_operation *op, kvbm_completion *completion);
/* FREE, back to the pool, and whoever waits for credit is told. */
void kvbm__operation_give(struct kvbm_operation *op);
/* Releases the blocks that a completed operation brought, for nobody will. */
void kvbm__operation_disown(struct kvbm_operation *op);
/* A completed operation whose port is closed: disowned, `done` told, the object given back. */
void kvbm__operation_orphaned(struct kvbm_operation *op);
/* One in KVBM_LATENCY_SAMPLE by its generation (odd while taken): no counter, no clock for the others. */
static inline bool kvbm__operation_sampled(uint64_t id) {
    return (id >> 33) % KVBM_LATENCY_SAMPLE == 0;
}
void kvbm__manager_actor_init(struct kvbm_manager *m);
void kvbm__cancels_sweep(struct kvbm_manager *m);

/* block.c */
int kvbm__blocks_release(struct kvbm_manager *m, const kvbm_block *blocks, uint64_t count);

/* ports.c */
/* One place in a port for one operation: false if it is full. */
bool kvbm__port_credit_take(struct kvbm_port *port);
void kvbm__credits_fire(struct kvbm_manager *m);

/* submit.c: settles what this thread released: 0, or -EAGAIN, -ETIMEDOUT where that could not be done now. */
int kvbm__settle(struct kvbm_manager *m, struct kvbm_block_pool *pool);

#endif
