/*
 * block.c - what a holder does with its blocks: release, retain, tokens, key, bytes.
 *
 * Thread: any; each function works on the words of slots (slots.h) and on memory that the holder may touch. Nothing
 * here needs the reactor, so everything works after close too, until the last reference is gone.
 */
#include <errno.h>
#include <string.h>

#include "actors/manager.h"

#define RELEASE_CHUNK 256u

/* The pool of a handle, or an error. */
static int block_pool(const struct kvbm_manager *m, kvbm_block block, struct kvbm_block_pool **pool) {
    *pool = kvbm__pool_of_block(m, block);
    if (block.bits == 0)
        return -KVBM_ESTALE;
    if (*pool == NULL || kvbm__block_slot(block) >= (*pool)->slots.capacity)
        return -KVBM_EWRONGMANAGER;
    return 0;
}

static int enter_check(const struct kvbm_manager *m) {
    if (m == NULL)
        return -EINVAL;
    return kvbm_os_forked_mt(m->fork_stamp) ? -KVBM_EFORKED : 0;
}

/* Word of a live handle, or an error. */
static int block_word(const struct kvbm_manager *m, kvbm_block block, struct kvbm_block_pool **pool, uint64_t *word) {
    int rc = enter_check(m);
    if (rc == 0)
        rc = block_pool(m, block, pool);
    if (rc != 0)
        return rc;
    /* Acquire pairs with publish and hand_out: what they wrote beside the word is seen. */
    *word = atomic_load_explicit(&(*pool)->slots.slots[kvbm__block_slot(block)].word, memory_order_acquire);
    if (KVBM_WORD_GENERATION(*word) != kvbm__block_generation(block) || KVBM_WORD_LEASES(*word) == 0)
        return -KVBM_ESTALE;
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- release */

/* After pushes to return lanes: actors that wait for blocks are woken. */
static void released(struct kvbm_manager *m) {
    /* Sequentially consistent, as the push before it; pairs with kvbm_reactor_want_returns and the drain after it. Once
     * the manager is closed nobody wants returns, and the reactor is not touched. */
    if (atomic_load_explicit(&m->reactor.returns_wanted, memory_order_seq_cst) == 0 || !kvbm__enter(m))
        return;
    kvbm_reactor_returned_mt(&m->reactor);
    kvbm__leave(m);
}

static int release_one(struct kvbm_manager *m, kvbm_block block) {
    struct kvbm_block_pool *pool;
    unsigned queued;
    int rc = block_pool(m, block, &pool);
    if (rc == 0)
        rc = kvbm_slots_release_mt(&pool->slots, block, &queued);
    if (rc != 0 || queued == 0)
        return rc;
    kvbm_retlane_push_mt(queued & KVBM_RELEASE_LEASE ? &pool->slots.lease_returns : &pool->slots.mutable_returns,
                         kvbm__block_slot(block));
    released(m);
    return 0;
}

/* Last block first: the registry makes each one it gets the most recent, so the end of a chain is evicted before its
 * beginning; and the allocator's stack hands the first one out first. */
int kvbm__blocks_release(struct kvbm_manager *m, const kvbm_block *blocks, uint64_t count) {
    if (count == 1)
        return release_one(m, blocks[0]);
    struct kvbm_retlane *lane = NULL;
    uint32_t ids[RELEASE_CHUNK], n = 0;
    int result = 0;
    for (uint64_t i = count; i-- > 0;) {
        struct kvbm_block_pool *pool;
        unsigned queued = 0;
        int rc = block_pool(m, blocks[i], &pool);
        if (rc == 0)
            rc = kvbm_slots_release_mt(&pool->slots, blocks[i], &queued);
        if (rc != 0)
            result = rc; /* in the end, that of the first */
        if (rc != 0 || queued == 0)
            continue;
        struct kvbm_retlane *to =
            queued & KVBM_RELEASE_LEASE ? &pool->slots.lease_returns : &pool->slots.mutable_returns;
        if (n > 0 && (to != lane || n == RELEASE_CHUNK)) {
            kvbm_retlane_push_many_mt(lane, ids, n);
            n = 0;
        }
        lane = to;
        ids[n++] = kvbm__block_slot(blocks[i]);
    }
    if (n > 0)
        kvbm_retlane_push_many_mt(lane, ids, n);
    if (lane != NULL)
        released(m);
    return result;
}

int kvbm_release_mt(kvbm_manager *m, const kvbm_block *blocks, uint64_t count) {
    int rc = enter_check(m);
    if (rc != 0)
        return rc;
    if (count == 0)
        return 0;
    if (blocks == NULL)
        return -EINVAL;
    return kvbm__blocks_release(m, blocks, count);
}

int kvbm_block_retain_mt(kvbm_manager *m, const kvbm_block *blocks, uint64_t count) {
    int rc = enter_check(m);
    if (rc != 0)
        return rc;
    if (blocks == NULL && count > 0)
        return -EINVAL;
    for (uint64_t i = 0; i < count; i++) {
        struct kvbm_block_pool *pool;
        rc = block_pool(m, blocks[i], &pool);
        if (rc == 0)
            rc = kvbm_slots_retain_mt(&pool->slots, blocks[i]);
        if (rc != 0) {
            if (i > 0)
                kvbm__blocks_release(m, blocks, i);
            return rc;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- tokens */

int kvbm_block_state_mt(kvbm_manager *m, kvbm_block block) {
    struct kvbm_block_pool *pool;
    uint64_t word;
    int rc = block_word(m, block, &pool, &word);
    if (rc != 0)
        return rc;
    if (word & KVBM_WORD_REGISTERED)
        return KVBM_BLOCK_REGISTERED;
    uint32_t count =
        atomic_load_explicit(&pool->slots.slots[kvbm__block_slot(block)].token_count, memory_order_relaxed);
    return count == pool->slots.page_size ? KVBM_BLOCK_COMPLETE : KVBM_BLOCK_PARTIAL;
}

static int tokens_write(struct kvbm_manager *m, kvbm_block block, const uint32_t *tokens, uint32_t count, bool append) {
    struct kvbm_block_pool *pool;
    uint64_t word;
    int rc = block_word(m, block, &pool, &word);
    if (rc != 0)
        return rc;
    if (word & KVBM_WORD_REGISTERED)
        return -KVBM_EIMMUTABLE;
    if (word & KVBM_WORD_CLAIMED)
        return -KVBM_ENOTOWNED;
    if (pool->slots.tokens == NULL)
        return -ENOTSUP;
    if (tokens == NULL && count > 0)
        return -EINVAL;
    struct kvbm_slot *slot = &pool->slots.slots[kvbm__block_slot(block)];
    /* Relaxed: only the holder writes it while the block is mutable. */
    uint32_t have = append ? atomic_load_explicit(&slot->token_count, memory_order_relaxed) : 0;
    KVBM_ASSERT(have <= pool->slots.page_size);
    if (count > pool->slots.page_size - have)
        return -EOVERFLOW;
    uint32_t *to = pool->slots.tokens + (size_t)kvbm__block_slot(block) * pool->slots.page_size;
    if (count > 0)
        memcpy(to + have, tokens, (size_t)count * sizeof(*tokens));
    atomic_store_explicit(&slot->token_count, have + count, memory_order_relaxed);
    return 0;
}

int kvbm_block_append_tokens(kvbm_manager *m, kvbm_block block, const uint32_t *tokens, uint32_t count) {
    return tokens_write(m, block, tokens, count, true);
}

int kvbm_block_set_tokens(kvbm_manager *m, kvbm_block block, const uint32_t *tokens, uint32_t count) {
    return tokens_write(m, block, tokens, count, false);
}

int kvbm_block_tokens(kvbm_manager *m, kvbm_block block, uint32_t *tokens, uint32_t capacity) {
    struct kvbm_block_pool *pool;
    uint64_t word;
    int rc = block_word(m, block, &pool, &word);
    if (rc != 0)
        return rc;
    if (pool->slots.tokens == NULL)
        return -ENOTSUP;
    if (tokens == NULL && capacity > 0)
        return -EINVAL;
    uint32_t count =
        atomic_load_explicit(&pool->slots.slots[kvbm__block_slot(block)].token_count, memory_order_relaxed);
    uint32_t n = count < capacity ? count : capacity;
    if (n > 0)
        memcpy(tokens, pool->slots.tokens + (size_t)kvbm__block_slot(block) * pool->slots.page_size,
               (size_t)n * sizeof(*tokens));
    return (int)count;
}

/* ---------------------------------------------------------------------------------------------------- key and bytes */

int kvbm_block_key_mt(kvbm_manager *m, kvbm_block block, kvbm_key *key) {
    struct kvbm_block_pool *pool;
    uint64_t word;
    int rc = block_word(m, block, &pool, &word);
    if (rc != 0)
        return rc;
    if ((word & KVBM_WORD_REGISTERED) == 0)
        return -KVBM_EMUTABLE;
    if (key == NULL)
        return -EINVAL;
    /* The caller's lease keeps slot and entry as they were published. */
    uint32_t entry = pool->slots.slots[kvbm__block_slot(block)].entry;
    *key = entry == KVBM_ENTRY_NONE ? pool->duplicate_keys[kvbm__block_slot(block)]
                                    : kvbm_index_entry(&m->registry->index, entry)->key;
    return 0;
}

int kvbm_block_data_mt(kvbm_manager *m, kvbm_block block, uint32_t layer, uint32_t outer, void **address) {
    struct kvbm_block_pool *pool;
    uint64_t word;
    int rc = block_word(m, block, &pool, &word);
    if (rc != 0)
        return rc;
    if (pool->slab.base == NULL)
        return -KVBM_ENOBYTES;
    const struct kvbm_geometry *geometry = &pool->layout.geometry;
    if (layer >= geometry->num_layers || outer >= geometry->outer_dim || address == NULL)
        return -EINVAL;
    *address = pool->slab.base + kvbm_layout_offset(&pool->layout, kvbm__block_slot(block), layer, outer);
    return 0;
}

uint32_t kvbm_block_group(kvbm_block block) {
    return kvbm__block_group(block);
}

int kvbm_block_tier(kvbm_block block) {
    return kvbm__block_tier(block);
}

uint64_t kvbm_block_slot(kvbm_block block) {
    return kvbm__block_slot(block);
}
