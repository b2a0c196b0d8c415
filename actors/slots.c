/*
 * slots.c - the slot table of one pool. See slots.h for who may change what.
 *
 * Owns the map of slots, the map of tokens and the two return lanes. Threads: functions with _mt any; others the
 * reactor that runs allocator and registry.
 *
 * Memory order. Every change of a word is a read-modify-write with acquire-release, so all changes of one word form one
 * chain in which each pairs with the one before it: whoever gets a slot (hand out, lease, retain) has seen all that its
 * earlier holders wrote before they released it. The two plain stores of actors (hand out, reset) are marked below.
 */
#include "actors/slots.h"

#include <errno.h>
#include <string.h>

#include "actors/index.h"
#include "runtime/log.h"

#define WORD_FLAGS (KVBM_WORD_QUEUED | KVBM_WORD_REGISTERED | KVBM_WORD_CLAIMED)

_Static_assert(KVBM_SLOT_COUNT_MAX == 1u << 26, "a handle has 26 bits for the slot");
_Static_assert(KVBM_GROUP_COUNT_MAX <= 16, "a handle has 4 bits for the group");
_Static_assert(KVBM_TIER_COUNT <= 4, "a handle has 2 bits for the tier");

int kvbm_slots_open(struct kvbm_slots *slots, const struct kvbm_os *os, uint32_t group, int tier, uint32_t capacity,
                    uint32_t page_size, bool track_tokens) {
    memset(slots, 0, sizeof(*slots));
    if (capacity == 0 || capacity > KVBM_SLOT_COUNT_MAX || page_size == 0 || group >= KVBM_GROUP_COUNT_MAX ||
        tier < 0 || tier >= KVBM_TIER_COUNT)
        return -EINVAL;
    slots->os = os;
    slots->capacity = capacity;
    slots->group = group;
    slots->tier = tier;
    slots->page_size = page_size;
    slots->slots_bytes = (size_t)capacity * sizeof(struct kvbm_slot);

    void *map = NULL;
    unsigned got;
    int rc = kvbm_retlane_open(&slots->mutable_returns, os, capacity);
    if (rc != 0)
        return rc;
    rc = kvbm_retlane_open(&slots->lease_returns, os, capacity);
    if (rc != 0)
        goto close_mutable;
    rc = os->map(os->ctx, slots->slots_bytes, KVBM_MAP_LAZY, &map, &got);
    if (rc != 0)
        goto close_lease;
    slots->slots = map;
    if (track_tokens) {
        /* At most 2^26 * 2^32 * 4 = 2^60 bytes. */
        slots->tokens_bytes = (size_t)capacity * page_size * sizeof(uint32_t);
        rc = os->map(os->ctx, slots->tokens_bytes, KVBM_MAP_LAZY, &map, &got);
        if (rc != 0)
            goto unmap_slots;
        slots->tokens = map;
    }
    return 0;

unmap_slots:
    os->unmap(os->ctx, slots->slots, slots->slots_bytes);
    slots->slots = NULL;
close_lease:
    kvbm_retlane_close(&slots->lease_returns);
close_mutable:
    kvbm_retlane_close(&slots->mutable_returns);
    return rc;
}

static void returned_late(void *arg, uint32_t slot) {
    (void)arg, (void)slot;
}

void kvbm_slots_close(struct kvbm_slots *slots) {
    if (slots->slots == NULL)
        return;
    /* Blocks that were released after the reactor had stopped: nobody waits for them. */
    kvbm_retlane_drain(&slots->lease_returns, returned_late, NULL);
    kvbm_retlane_drain(&slots->mutable_returns, returned_late, NULL);
    if (slots->tokens != NULL)
        slots->os->unmap(slots->os->ctx, slots->tokens, slots->tokens_bytes);
    slots->os->unmap(slots->os->ctx, slots->slots, slots->slots_bytes);
    slots->tokens = NULL;
    slots->slots = NULL;
    kvbm_retlane_close(&slots->lease_returns);
    kvbm_retlane_close(&slots->mutable_returns);
}

uint64_t kvbm_slots_bytes(const struct kvbm_slots *slots) {
    return (uint64_t)slots->slots_bytes + slots->tokens_bytes + slots->mutable_returns.mapped_bytes +
           slots->lease_returns.mapped_bytes;
}

/* The slot that a handle names, NULL if this table has none such. */
static inline struct kvbm_slot *slot_of(const struct kvbm_slots *slots, kvbm_block block) {
    uint32_t number = kvbm__block_slot(block);
    if (number >= slots->capacity || kvbm__block_group(block) != slots->group || kvbm__block_tier(block) != slots->tier)
        return NULL;
    return &slots->slots[number];
}

static inline bool word_is_live(uint64_t word, kvbm_block block) {
    return KVBM_WORD_GENERATION(word) == kvbm__block_generation(block) && KVBM_WORD_LEASES(word) >= 1;
}

/* Release: publishes what was decided from *word. Acquire: takes over what the last changer published. On failure *word
 * is read anew (relaxed: it is only compared with, the next exchange acquires). */
static inline bool word_exchange(struct kvbm_slot *slot, uint64_t *word, uint64_t desired) {
    return atomic_compare_exchange_weak_explicit(&slot->word, word, desired, memory_order_acq_rel,
                                                 memory_order_relaxed);
}

int kvbm_slots_release_mt(struct kvbm_slots *slots, kvbm_block block, unsigned *queued) {
    struct kvbm_slot *slot = slot_of(slots, block);
    *queued = 0;
    if (slot == NULL)
        return -KVBM_ESTALE;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    for (;;) {
        if (!word_is_live(word, block))
            return -KVBM_ESTALE;
        if (word & KVBM_WORD_CLAIMED)
            return -KVBM_ENOTOWNED;
        uint64_t desired = word - 1;
        if (KVBM_WORD_LEASES(desired) == 0)
            desired |= KVBM_WORD_QUEUED;
        /* Pairs with unqueue: the actor that drains the slot, and whoever it is handed to next, sees what the holders
         * wrote into the block. */
        if (word_exchange(slot, &word, desired)) {
            if ((desired & ~word & KVBM_WORD_QUEUED) != 0)
                *queued = KVBM_RELEASE_PUSH | (word & KVBM_WORD_REGISTERED ? KVBM_RELEASE_LEASE : 0);
            return 0;
        }
    }
}

int kvbm_slots_retain_mt(struct kvbm_slots *slots, kvbm_block block) {
    struct kvbm_slot *slot = slot_of(slots, block);
    if (slot == NULL)
        return -KVBM_ESTALE;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    for (;;) {
        if (!word_is_live(word, block))
            return -KVBM_ESTALE;
        if ((word & KVBM_WORD_REGISTERED) == 0)
            return -KVBM_EMUTABLE;
        if (KVBM_WORD_LEASES(word) == KVBM_WORD_LEASE_MASK)
            return -KVBM_ELEASES;
        /* Acquire pairs with publish: the new holder sees the block's bytes. */
        if (word_exchange(slot, &word, word + 1))
            return 0;
    }
}

int kvbm_slots_claim_mt(struct kvbm_slots *slots, kvbm_block block) {
    struct kvbm_slot *slot = slot_of(slots, block);
    if (slot == NULL)
        return -KVBM_ESTALE;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    for (;;) {
        if (!word_is_live(word, block))
            return -KVBM_ESTALE;
        if (word & KVBM_WORD_REGISTERED)
            return -KVBM_EIMMUTABLE;
        if (word & KVBM_WORD_CLAIMED)
            return -KVBM_ENOTOWNED;
        /* Release pairs with publish or reset by the actor: the operation sees tokens and bytes of the holder. */
        if (word_exchange(slot, &word, word | KVBM_WORD_CLAIMED))
            return 0;
    }
}

void kvbm_slots_unclaim_mt(struct kvbm_slots *slots, kvbm_block block) {
    struct kvbm_slot *slot = slot_of(slots, block);
    KVBM_ASSERT(slot != NULL);
    /* Release pairs with the holder's next claim or release. */
    uint64_t word = atomic_fetch_and_explicit(&slot->word, ~KVBM_WORD_CLAIMED, memory_order_acq_rel);
    KVBM_ASSERT(word_is_live(word, block));
    KVBM_ASSERT((word & WORD_FLAGS) == KVBM_WORD_CLAIMED);
}

bool kvbm_slots_live_mt(const struct kvbm_slots *slots, kvbm_block block) {
    const struct kvbm_slot *slot = slot_of(slots, block);
    /* Acquire pairs with publish, for a caller that goes on to read the block. */
    return slot != NULL && word_is_live(atomic_load_explicit(&slot->word, memory_order_acquire), block);
}

kvbm_block kvbm_slots_hand_out(struct kvbm_slots *slots, uint32_t slot) {
    KVBM_ASSERT(slot < slots->capacity);
    struct kvbm_slot *s = &slots->slots[slot];
    /* Relaxed: the last change was the actor's own reset. */
    uint64_t word = atomic_load_explicit(&s->word, memory_order_relaxed);
    KVBM_ASSERT(KVBM_WORD_LEASES(word) == 0 && (word & WORD_FLAGS) == 0);
    KVBM_ASSERT(s->state_hint == KVBM_SLOT_FREE);
    uint32_t generation = KVBM_WORD_GENERATION(word) + 1;
    if (generation == 0)
        generation = 1;
    s->entry = KVBM_ENTRY_NONE;
    s->state_hint = KVBM_SLOT_MUTABLE;
    atomic_store_explicit(&s->token_count, 0, memory_order_relaxed);
    /* A plain store: an unleased word is nobody else's to change (holders only exchange what is live). Release, so that
     * a thread which sees the new generation sees token_count too. */
    atomic_store_explicit(&s->word, (uint64_t)generation << 32 | 1, memory_order_release);
    return kvbm__block_make(generation, slots->group, slots->tier, slot);
}

void kvbm_slots_reset(struct kvbm_slots *slots, uint32_t slot) {
    KVBM_ASSERT(slot < slots->capacity);
    struct kvbm_slot *s = &slots->slots[slot];
    /* Acquire pairs with the claim, for what the holder wrote into the slot's tokens. */
    uint64_t word = atomic_load_explicit(&s->word, memory_order_acquire);
    KVBM_ASSERT(s->state_hint != KVBM_SLOT_FREE);
    KVBM_ASSERT((word & KVBM_WORD_QUEUED) == 0);
    if (word & KVBM_WORD_CLAIMED)
        KVBM_ASSERT(KVBM_WORD_LEASES(word) == 1 && (word & KVBM_WORD_REGISTERED) == 0);
    else
        KVBM_ASSERT(KVBM_WORD_LEASES(word) == 0);
    s->entry = KVBM_ENTRY_NONE;
    s->state_hint = KVBM_SLOT_FREE;
    atomic_store_explicit(&s->token_count, 0, memory_order_relaxed);
    /* A plain store: unleased or claimed words are nobody else's to change. The generation stays, so that the store
     * cannot make a handle live. */
    atomic_store_explicit(&s->word, (uint64_t)KVBM_WORD_GENERATION(word) << 32, memory_order_release);
}

void kvbm_slots_publish(struct kvbm_slots *slots, uint32_t slot, uint32_t entry) {
    KVBM_ASSERT(slot < slots->capacity);
    struct kvbm_slot *s = &slots->slots[slot];
    KVBM_ASSERT(s->state_hint == KVBM_SLOT_MUTABLE);
    s->entry = entry;
    s->state_hint = KVBM_SLOT_ACTIVE;
    /* Acquire pairs with the claim (the holder's bytes); release with retain, lease and live: whoever shares the block
     * sees them. */
    uint64_t word = atomic_fetch_xor_explicit(&s->word, KVBM_WORD_CLAIMED | KVBM_WORD_REGISTERED, memory_order_acq_rel);
    KVBM_ASSERT((word & WORD_FLAGS) == KVBM_WORD_CLAIMED);
    KVBM_ASSERT(KVBM_WORD_LEASES(word) == 1);
}

kvbm_block kvbm_slots_lease(struct kvbm_slots *slots, uint32_t slot, bool *was_unleased) {
    KVBM_ASSERT(slot < slots->capacity);
    struct kvbm_slot *s = &slots->slots[slot];
    uint64_t word = atomic_load_explicit(&s->word, memory_order_relaxed);
    do {
        KVBM_ASSERT((word & KVBM_WORD_REGISTERED) != 0 && (word & KVBM_WORD_CLAIMED) == 0);
        *was_unleased = KVBM_WORD_LEASES(word) == 0;
        if (KVBM_WORD_LEASES(word) == KVBM_WORD_LEASE_MASK)
            return (kvbm_block){0};
        /* Release pairs with the new holder's first exchange; it gets the handle by a message anyway. */
    } while (!word_exchange(s, &word, word + 1));
    s->state_hint = KVBM_SLOT_ACTIVE;
    return kvbm__block_make(KVBM_WORD_GENERATION(word), slots->group, slots->tier, slot);
}

uint64_t kvbm_slots_unqueue(struct kvbm_slots *slots, uint32_t slot) {
    KVBM_ASSERT(slot < slots->capacity);
    /* Acquire pairs with every release so far (they are one chain). Release: a release after this sees QUEUED clear and
     * pushes again; it cannot be ordered between the clearing and the reading of leases, since both are this one
     * instruction. */
    uint64_t word = atomic_fetch_and_explicit(&slots->slots[slot].word, ~KVBM_WORD_QUEUED, memory_order_acq_rel);
    KVBM_ASSERT((word & KVBM_WORD_QUEUED) != 0);
    return word & ~KVBM_WORD_QUEUED;
}
