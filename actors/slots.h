/*
 * slots.h - the slot table of one pool (one group, one tier), and the atomic word through which holders and actors
 * share a slot.
 *
 *   word = generation:32 | flags:8 | leases:24
 *
 * Who may change it:
 *   holder (any thread)   release: leases - 1, and with the last one sets QUEUED and pushes the slot to the return lane
 * of its owner (allocator if mutable, registry if REGISTERED); retain: leases + 1 where leases >= 1 and REGISTERED;
 * claim/unclaim: sets/clears CLAIMED on a mutable slot with one lease actor (owner's turn)  everything else: hand out
 * (generation + 1, one lease), register, lease from 0, evict, reset
 *
 * A handle is valid while its generation equals the word's and leases >= 1. All changes are compare-and-swap or
 * fetch-and-modify with acquire-release, so that the bytes of a block travel with its lease. The generation changes
 * where a handle is made, at hand-out, and is never 0; a handle of an earlier content is stale from the moment its
 * leases are gone.
 *
 * A slot in the return lane has QUEUED set; the actor clears it first and then looks at leases, so a lease taken
 * between push and drain is seen, and a release after the clear queues the slot anew. Hence a slot stands at most once
 * in one lane, and each time its leases fall to 0 the actor hears of it once, or sees it leased again.
 *
 * Drain, in an actor:  word = kvbm_slots_unqueue(slots, slot);
 *                      if (KVBM_WORD_LEASES(word) == 0) it is the actor's now: cache it or reset it; else leave it.
 */
#ifndef KVBM_ACTORS_SLOTS_H
#define KVBM_ACTORS_SLOTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/kvbm.h"
#include "runtime/os.h"
#include "runtime/retlane.h"

#define KVBM_WORD_LEASE_MASK       UINT64_C(0xffffff)
#define KVBM_WORD_QUEUED           (UINT64_C(1) << 24)
#define KVBM_WORD_REGISTERED       (UINT64_C(1) << 25)
#define KVBM_WORD_CLAIMED          (UINT64_C(1) << 26)
#define KVBM_WORD_GENERATION(word) ((uint32_t)((word) >> 32))
#define KVBM_WORD_LEASES(word)     ((uint32_t)((word)&KVBM_WORD_LEASE_MASK))

/* Handle bits: generation:32 | group:4 | tier:2 | slot:26. */
static inline kvbm_block kvbm__block_make(uint32_t generation, uint32_t group, int tier, uint32_t slot) {
    return (kvbm_block){(uint64_t)generation << 32 | (uint64_t)group << 28 | (uint64_t)tier << 26 | slot};
}
static inline uint32_t kvbm__block_generation(kvbm_block b) {
    return (uint32_t)(b.bits >> 32);
}
static inline uint32_t kvbm__block_group(kvbm_block b) {
    return (uint32_t)(b.bits >> 28) & 0xf;
}
static inline int kvbm__block_tier(kvbm_block b) {
    return (int)(b.bits >> 26 & 3);
}
static inline uint32_t kvbm__block_slot(kvbm_block b) {
    return (uint32_t)b.bits & (KVBM_SLOT_COUNT_MAX - 1);
}

/* 24 bytes; the sum of all bookkeeping of a block is in index.h. */
struct kvbm_slot {
    _Atomic uint64_t word;
    uint32_t entry;               /* registry entry while registered and primary, KVBM_ENTRY_NONE otherwise */
    uint32_t next;                /* free list; chains of slots handed between allocator and registry */
    _Atomic uint32_t token_count; /* written by the holder of a mutable slot, by the actor otherwise */
    uint8_t state_hint; /* for checkers: enum kvbm__slot_state. Written by actors only: by the functions below, except
                         * for CACHED, which the registry writes when it gives the slot to the policy */
    uint8_t pad[3];
};
_Static_assert(sizeof(struct kvbm_slot) == 24, "counted in index.h");

enum kvbm__slot_state { /* in exactly one of these; balances are checked by the simulation */
                        KVBM_SLOT_FREE = 0,
                        KVBM_SLOT_MUTABLE = 1,
                        KVBM_SLOT_ACTIVE = 2, /* registered, leased (or its last release not yet drained) */
                        KVBM_SLOT_CACHED = 3, /* registered, unleased, held by the policy */
};

struct kvbm_slots {
    const struct kvbm_os *os;
    struct kvbm_slot *slots; /* lazily touched map */
    uint32_t capacity;
    uint32_t group;
    int tier;
    uint32_t *tokens; /* capacity * page_size, lazily touched; NULL without KVBM_OPEN_TRACK_TOKENS */
    uint32_t page_size;
    size_t slots_bytes, tokens_bytes;
    struct kvbm_retlane mutable_returns; /* drained by the allocator */
    struct kvbm_retlane lease_returns;   /* drained by the registry */
};

/* capacity: 1 .. KVBM_SLOT_COUNT_MAX, page_size >= 1. All slots are free. 0, -EINVAL, -ENOMEM. */
int kvbm_slots_open(struct kvbm_slots *slots, const struct kvbm_os *os, uint32_t group, int tier, uint32_t capacity,
                    uint32_t page_size, bool track_tokens);
void kvbm_slots_close(struct kvbm_slots *slots);
/* Memory mapped, tokens and return lanes included. */
uint64_t kvbm_slots_bytes(const struct kvbm_slots *slots);

/* ---- holders, any thread. A handle of another group or tier, or with a slot past the capacity, is stale. ---- */
/* 0 and *queued (0: nothing to do, the slot has other leases or is in a lane already; else bit 0 KVBM_RELEASE_PUSH: the
 * caller must push the slot; bit 1 KVBM_RELEASE_LEASE: to lease_returns rather than mutable_returns), or -KVBM_ESTALE
 * (wrong generation, no lease), -KVBM_ENOTOWNED (claimed by an operation). Does not push: callers batch. */
#define KVBM_RELEASE_PUSH  1u
#define KVBM_RELEASE_LEASE 2u
int kvbm_slots_release_mt(struct kvbm_slots *slots, kvbm_block block, unsigned *queued);
/* One more lease on a registered block. -KVBM_ESTALE, -KVBM_EMUTABLE, -KVBM_ELEASES (the count is full). */
int kvbm_slots_retain_mt(struct kvbm_slots *slots, kvbm_block block);
/* Claims a mutable block for an operation: -KVBM_ESTALE, -KVBM_EIMMUTABLE, -KVBM_ENOTOWNED (already claimed). */
int kvbm_slots_claim_mt(struct kvbm_slots *slots, kvbm_block block);
/* By the claimer only (asserted): the block is its holder's again. */
void kvbm_slots_unclaim_mt(struct kvbm_slots *slots, kvbm_block block);
bool kvbm_slots_live_mt(const struct kvbm_slots *slots, kvbm_block block);

/* ---- actors, on their reactor ---- */
/* Free -> mutable with one lease: the new handle. entry is KVBM_ENTRY_NONE, token_count 0; `next` is left alone. */
kvbm_block kvbm_slots_hand_out(struct kvbm_slots *slots, uint32_t slot);
/* -> free: no lease, no flag, entry KVBM_ENTRY_NONE. The slot is the actor's: claimed, or unleased and not queued (a
 * released mutable block, a cached one, or a registered duplicate whose last lease has ended). Every handle is stale.
 */
void kvbm_slots_reset(struct kvbm_slots *slots, uint32_t slot);
/* Claimed mutable -> registered with one lease, same generation: the handle stays valid, and others may share it from
 * here on. `entry`: KVBM_ENTRY_NONE for a duplicate that is kept. */
void kvbm_slots_publish(struct kvbm_slots *slots, uint32_t slot, uint32_t entry);
/* One lease on a registered slot: its handle. *was_unleased: it had none, so it was cached, or its last release has not
 * been drained yet. {0} if the lease count is full. */
kvbm_block kvbm_slots_lease(struct kvbm_slots *slots, uint32_t slot, bool *was_unleased);
/* Clears QUEUED; returns the word after. */
uint64_t kvbm_slots_unqueue(struct kvbm_slots *slots, uint32_t slot);

#endif
