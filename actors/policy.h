/*
 * policy.h - which cached block goes first: the eviction policy behind one interface.
 *
 * A policy belongs to one pool and lives on the registry's reactor. It holds exactly the evictable slots: registered
 * and unleased. Every function is O(1) or O(log n), amortised; it allocates nothing and cannot fail; all memory is
 * mapped at open.
 *
 *   publish  the slot, not held, was given a key: before anything else is told of it
 *   insert   the slot's last lease ended (or it was registered without a holder)
 *   remove   it was leased again, or dropped; returns whether it was held
 *   victim   removes and returns the slot to evict next, KVBM_SLOT_NONE if there is none
 *   hit      a registered slot was matched (leased or not); before `remove` when it was evictable
 *   forget   the slot, not held any more, lost its key (evicted or dropped): per-key history must not pass to its next
 *            content
 *
 * Priorities: within `victim`, every slot of a lower effective priority goes before any of a higher one; a priority
 * with an expiry counts as 0 once now_ns >= expires_ns. For lru, slots whose priority ran out while they were held go
 * before the others of priority 0: in the order in which they ran out, those that ran out together least recent first.
 * For prefix, where children go before their parents, a slot has at least the priority of its resident descendants.
 */
#ifndef KVBM_ACTORS_POLICY_H
#define KVBM_ACTORS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "actors/index.h"
#include "actors/kvbm.h"
#include "runtime/os.h"

struct kvbm_policy;

struct kvbm_policy_meta {
    kvbm_key key;
    kvbm_key parent;
    uint32_t depth;
    uint8_t priority;
    uint64_t expires_ns; /* monotonic; 0: never */
};

struct kvbm_policy_place {
    const kvbm_key *key;
    const kvbm_key *parent; /* NULL: the first block of a chain */
    uint32_t parent_slot;   /* of this pool, published and with the key *parent; KVBM_SLOT_NONE: there is none */
    uint64_t tokens_before; /* in the chain, as far as known: what a recomputation has to attend to */
};

struct kvbm_policy_ops {
    const char *name;
    /* *policy is mapped by open. slot_count: 1 .. KVBM_SLOT_COUNT_MAX. 0, -EINVAL, -ENOMEM. */
    int (*open)(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy);
    /* May still hold slots. */
    void (*close)(struct kvbm_policy *policy);
    /* The slot must be new or forgotten. No two published slots have one key. */
    void (*publish)(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_place *place);
    /* The slot must not be held (asserted). With meta->expires_ns != 0, now_ns must be the time even where uses_clock
     * says false. */
    void (*insert)(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_meta *meta, uint64_t now_ns);
    bool (*remove)(struct kvbm_policy *policy, uint32_t slot);
    uint32_t (*victim)(struct kvbm_policy *policy, uint64_t now_ns);
    void (*hit)(struct kvbm_policy *policy, uint32_t slot);
    void (*forget)(struct kvbm_policy *policy, uint32_t slot);
    uint32_t (*count)(const struct kvbm_policy *policy);
    uint64_t (*bytes)(const struct kvbm_policy *policy);  /* memory mapped */
    bool (*uses_clock)(const struct kvbm_policy *policy); /* false: `victim` does not look at now_ns, it may be 0 */
    uint64_t (*check)(const struct kvbm_policy *policy);  /* walks everything; number of violations (tests) */
};

struct kvbm_policy {
    const struct kvbm_policy_ops *ops; /* first member of every implementation's struct */
};

/* The policies there are, by name: kvbm_policy_<name> is the table of each. */
#define KVBM_POLICY_LIST(X) X(lru) X(s3fifo) X(prefix)
/* Of groups that name none: the highest mean hit rate over both families of traces (docs/core/eviction.md). */
#define KVBM_POLICY_DEFAULT "prefix"
#define X(name)             extern const struct kvbm_policy_ops kvbm_policy_##name;
KVBM_POLICY_LIST(X)
#undef X

/* NULL for an unknown name (NULL is one). kvbm_policy_names() is a static, comma-separated list for messages. */
const struct kvbm_policy_ops *kvbm_policy_find(const char *name);
const char *kvbm_policy_names(void);

#endif
