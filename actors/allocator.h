/*
 * allocator.h - the actor that hands out free blocks.
 *
 * Owns, for each pool: the stack of free slots, the slots never used yet (a counter: opening a pool touches none of
 * them), the mutable return lane, and the line of allocations that wait. Thread: the core reactor.
 *
 * Protocol
 *   ALLOCATE       All or nothing. Enough free: answered at once. Short: its free slots are set aside and one EVICT for
 *                  the rest goes to the registry; if that cannot give enough, the reserve goes back and the operation
 *                  fails with -KVBM_ENOBLOCKS (requested, available), or stands in line with its deadline armed. While
 *                  others stand in line a new operation queues behind them, or fails if it may not wait. A count above
 *                  the capacity fails.
 *   EVICT's reply  The chain of slots joins the free stack (also where the request failed half-way, because blocks were
 *                  leased between two of its steps), then the operation goes on or fails.
 *   WATCH's reply, The line is looked at anew, from its head. SERVE is sent to itself when slots came back; WATCH stands
 *   SERVE          at the registry while anybody waits. At most one operation out of a line has an EVICT in flight
 *                  (`serving`).
 *   SETTLE         The return lane is drained, the message goes on to the registry.
 *   SHUTDOWN       The line ends with -KVBM_ESHUTDOWN, and so does every ALLOCATE from then on.
 *
 * A release that happened before an ALLOCATE was submitted is seen by it: before it finds itself short the allocator
 * drains the lane once more, whatever the turn did at its start.
 */
#ifndef KVBM_ACTORS_ALLOCATOR_H
#define KVBM_ACTORS_ALLOCATOR_H

#include "actors/block_pool.h"
#include "actors/messages.h"
#include "runtime/actor.h"

struct kvbm_allocator;
struct kvbm_registry;

struct kvbm_allocator_pool {
    struct kvbm_allocator *allocator;
    struct kvbm_block_pool *pool;
    uint32_t free_head;      /* stack of free slots that were used before */
    uint32_t free_count;     /* on the stack */
    uint32_t fresh;          /* slots [fresh, capacity) were never used */
    uint32_t reserved;       /* free slots set aside by operations */
    uint32_t free_version;   /* changes whenever free slots were added; an operation whose EVICT failed tries again if
                              * it did meanwhile */
    uint64_t received_count; /* slots that came with EVICT, ever */
    struct kvbm_msg_allocate *line_head, *line_tail;
    uint32_t line_count;
    struct kvbm_msg_allocate *serving; /* out of the line, its EVICT is in flight */
    bool wants_returns;
    bool watching;   /* WATCH stands at the registry */
    bool serve_sent; /* SERVE is on its way */
    struct kvbm_msg_watch watch;
    struct kvbm_msg_serve serve;
};

struct kvbm_allocator {
    struct kvbm_actor actor; /* first */
    struct kvbm_manager *manager;
    struct kvbm_registry *registry;
    struct kvbm_allocator_pool *pools;
    uint32_t pool_count;
    bool closing;
};

/* `pools`: pool_count zeroed places, the allocator's from here on. The reactor is added to by the caller. */
void kvbm_allocator_init(struct kvbm_allocator *allocator, struct kvbm_manager *manager, struct kvbm_registry *registry,
                         struct kvbm_allocator_pool *pools, struct kvbm_block_pool *block_pools, uint32_t pool_count);
/* Registers its return lanes; after the actor was added to the reactor. */
void kvbm_allocator_attach(struct kvbm_allocator *allocator, struct kvbm_reactor *reactor);
/* A cancel was asked for and the operation stands in a line: it leaves and ends with `status`. */
void kvbm_allocator_unqueue(struct kvbm_allocator *allocator, struct kvbm_msg_allocate *allocate, int32_t status);
/* Drains the mutable returns of a pool. */
void kvbm_allocator_drain(struct kvbm_allocator *allocator, uint32_t pool);

#endif
