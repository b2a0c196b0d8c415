/*
 * policy.h - which cached block goes first: the eviction policy behind one interface.
 *
 * A policy belongs to one pool and lives on the registry's reactor. It holds exactly the evictable slots: registered and
 * unleased. Every function is O(1) or O(log n), allocates nothing and cannot fail; all memory is mapped at open.
 *
 *   insert   the slot's last lease ended (or it was registered without a holder)
 *   remove   it was leased again, or dropped; returns whether it was held
 *   victim   removes and returns the slot to evict next, KVBM_SLOT_NONE if there is none
 *   hit      a registered slot was matched (leased or not); before `remove` when it was evictable
 *   forget   the slot lost its key (evicted or dropped): per-key history must not pass to its next content
 *
 * Priorities: within `victim`, every slot of a lower effective priority goes before any of a higher one; a priority with an
 * expiry counts as 0 once now_ns >= expires_ns.
 */
#ifndef KVBM_ACTORS_POLICY_H
#define KVBM_ACTORS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

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

struct kvbm_policy_ops {
    const char *name;
    /* *policy is allocated by open. 0, -ENOMEM. */
    int (*open)(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy);
    void (*close)(struct kvbm_policy *policy);
    void (*insert)(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_meta *meta, uint64_t now_ns);
    bool (*remove)(struct kvbm_policy *policy, uint32_t slot);
    uint32_t (*victim)(struct kvbm_policy *policy, uint64_t now_ns);
    void (*hit)(struct kvbm_policy *policy, uint32_t slot);
    void (*forget)(struct kvbm_policy *policy, uint32_t slot);
    uint32_t (*count)(const struct kvbm_policy *policy);
    uint64_t (*bytes)(const struct kvbm_policy *policy); /* memory mapped */
    bool (*uses_clock)(const struct kvbm_policy *policy); /* false: now_ns may be passed as 0 */
};

struct kvbm_policy {
    const struct kvbm_policy_ops *ops; /* first member of every implementation's struct */
};

/* NULL for an unknown name. kvbm_policy_names() is a static, comma-separated list for messages. */
const struct kvbm_policy_ops *kvbm_policy_find(const char *name);
const char *kvbm_policy_names(void);

#endif
