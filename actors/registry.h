/*
 * registry.h - the actor that knows which key is where.
 *
 * Owns the index over all tiers, and for each pool the eviction policy, the lease return lane and the `reclaimed`
 * chain: slots that came free here and wait for the allocator's next EVICT. Thread: the core reactor.
 *
 * Protocol
 *   MATCH      Leases the longest resident prefix, in steps. What an earlier step leased cannot be evicted by what runs
 *              between two steps, so the result is a prefix whose blocks are all resident.
 *   REGISTER   Each block in turn: a new key is published; a key that is resident in this tier makes the block a
 *              duplicate, which is reset and reclaimed, and the primary is leased (or, with KEEP_DUPLICATES or where the
 *              primary's lease count is full, it is published without an entry). Once begun it ends with success.
 *   QUERY      Residency, leasing nothing.
 *   EVICT      Reclaimed slots, then victims of the policy, all or nothing by the counts at its start.
 *   WATCH      Kept until a block becomes evictable, or answered at once if one has since the version that it names.
 *   SETTLE     Drains the lease return lane.
 *   SHUTDOWN   Answers WATCH; operations that have not begun end with -KVBM_ESHUTDOWN from then on.
 *
 *   A block's last lease comes back through the lane: cached (policy insert) if it has an entry, else reset and
 *   reclaimed. Releases are pushed last block first, so of a chain the end is the least recent.
 */
#ifndef KVBM_ACTORS_REGISTRY_H
#define KVBM_ACTORS_REGISTRY_H

#include "actors/block_pool.h"
#include "actors/index.h"
#include "actors/messages.h"
#include "runtime/actor.h"

struct kvbm_registry;

enum kvbm_entry_flags { KVBM_ENTRY_EXPIRES = 1 /* expires[] holds the end of its priority */ };

struct kvbm_registry_pool {
    struct kvbm_registry *registry;
    struct kvbm_block_pool *pool;
    uint32_t reclaimed_head, reclaimed_tail, reclaimed_count;
    uint64_t sent_count; /* slots put into chains for the allocator, ever */
    uint64_t version;    /* changes whenever a block becomes evictable or is reclaimed */
    struct kvbm_msg_watch *watch;
};

struct kvbm_registry {
    struct kvbm_actor actor; /* first */
    struct kvbm_manager *manager;
    const struct kvbm_os *os;
    struct kvbm_index index;
    struct kvbm_registry_pool *pools;
    uint32_t pool_count;
    uint64_t *expires_ns; /* by entry; lazily touched */
    size_t expires_bytes;
    uint64_t anonymous_seed[2];
    uint64_t anonymous_count;
    kvbm_counter entry_count; /* gauge of the index */
    bool closing;
    uint32_t found[KVBM_STEP_BLOCKS]; /* scratch of one step */
};

/* Opens the index for the slots of all pools. 0, -ENOMEM, -EINVAL. `pools`: pool_count zeroed places. */
int kvbm_registry_open(struct kvbm_registry *registry, struct kvbm_manager *manager, const struct kvbm_os *os,
                       struct kvbm_registry_pool *pools, struct kvbm_block_pool *block_pools, uint32_t pool_count);
void kvbm_registry_close(struct kvbm_registry *registry);
void kvbm_registry_attach(struct kvbm_registry *registry, struct kvbm_reactor *reactor);
/* Drains the lease returns of a pool. */
void kvbm_registry_drain(struct kvbm_registry *registry, uint32_t pool);

#endif
