/*
 * shared.c - reference counts, holders and requests, without Python. See shared_internal.h. Thread: any.
 *
 * Why the port and a callback both: an asyncio operation completes into its loop's port. The loop may be closed first;
 * the arrays that the operation writes to must then outlive every Python object. kvbm_port_close hands such completions
 * to the submit's callback (orphan below), which gives the blocks back and frees the request in the reactor's context.
 * So a request in flight needs no reference from Python, and none of this can be missed: accepted means answered.
 *
 * The last reference to a core must not be dropped inside a callback. It cannot be: the manager object closes before it
 * drops its own reference, and a close returns only after every callback. A close that timed out keeps that reference
 * for ever (manager.c), so memory that is still in use is leaked and reported, not freed.
 */
#include "python/native/shared_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RELEASE_BATCH 256

uint64_t pyk_now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

struct pyk_core *pyk_core_retain(struct pyk_core *core) {
    (void)atomic_fetch_add_explicit(&core->references, 1, memory_order_relaxed);
    return core;
}

void pyk_core_release(struct pyk_core *core) {
    if (atomic_fetch_sub_explicit(&core->references, 1, memory_order_acq_rel) == 1) {
        if (core->manager != NULL) {
            kvbm_manager_release_mt(core->manager);
        }
        free(core);
    }
}

/* ------------------------------------------------------------------------------------------------------------- keys */

struct pyk_keys *pyk_keys_new(uint64_t count) {
    if (count > SIZE_MAX / sizeof(kvbm_key) - 16) {
        return NULL;
    }
    struct pyk_keys *keys = malloc(sizeof *keys + count * sizeof(kvbm_key));
    if (keys != NULL) {
        atomic_init(&keys->references, 1);
        keys->count = count;
    }
    return keys;
}

struct pyk_keys *pyk_keys_retain(struct pyk_keys *keys) {
    (void)atomic_fetch_add_explicit(&keys->references, 1, memory_order_relaxed);
    return keys;
}

void pyk_keys_release(struct pyk_keys *keys) {
    if (keys != NULL && atomic_fetch_sub_explicit(&keys->references, 1, memory_order_acq_rel) == 1) {
        free(keys);
    }
}

/* ---------------------------------------------------------------------------------------------------------- holders */

struct pyk_chunk *pyk_chunk_new(struct pyk_core *core, const kvbm_block *handles, uint64_t count, bool gone) {
    struct pyk_chunk *chunk = malloc(sizeof *chunk + count * sizeof(struct pyk_holder));
    if (chunk == NULL) {
        return NULL;
    }
    chunk->core = pyk_core_retain(core);
    atomic_init(&chunk->references, gone ? count : 2 * count);
    for (uint64_t i = 0; i < count; i++) {
        struct pyk_holder *holder = &chunk->holders[i];
        holder->handle = handles[i];
        holder->chunk = chunk;
        atomic_init(&holder->owners, 1);
        atomic_init(&holder->pins, gone ? 0 : 1);
        atomic_init(&holder->state, gone ? PYK_RELEASED : PYK_HELD);
        holder->duplicate = false;
    }
    return chunk;
}

static void chunk_release(struct pyk_chunk *chunk) {
    if (atomic_fetch_sub_explicit(&chunk->references, 1, memory_order_acq_rel) == 1) {
        pyk_core_release(chunk->core);
        free(chunk);
    }
}

/* Handles on their way back, so that many go in one call. */
struct batch {
    struct pyk_core *core;
    uint32_t count;
    kvbm_block handles[RELEASE_BATCH];
};

static void batch_flush(struct batch *batch) {
    if (batch->count != 0) {
        (void)kvbm_release_mt(batch->core->manager, batch->handles, batch->count);
        batch->count = 0;
    }
}

static void batch_add(struct batch *batch, struct pyk_core *core, kvbm_block handle) {
    if (batch->count == RELEASE_BATCH || (batch->count != 0 && batch->core != core)) {
        batch_flush(batch);
    }
    batch->core = core;
    batch->handles[batch->count++] = handle;
}

/* The caller holds another reference to the chunk until the batch is flushed, hence to the core. */
static void unpin_into(struct pyk_holder *holder, struct batch *batch) {
    if (atomic_fetch_sub_explicit(&holder->pins, 1, memory_order_acq_rel) == 1) {
        batch_add(batch, holder->chunk->core, holder->handle);
        chunk_release(holder->chunk);
    }
}

static void give_back_into(struct pyk_holder *holder, struct batch *batch) {
    uint32_t state = atomic_load_explicit(&holder->state, memory_order_acquire);
    for (;;) {
        uint32_t next = state == PYK_HELD ? PYK_RELEASED : PYK_BUSY_RELEASE;
        if (state != PYK_HELD && state != PYK_BUSY) {
            return;
        }
        if (atomic_compare_exchange_weak_explicit(&holder->state, &state, next, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            if (next == PYK_RELEASED) {
                unpin_into(holder, batch);
            }
            return;
        }
    }
}

void pyk_holder_own(struct pyk_holder *holder) {
    (void)atomic_fetch_add_explicit(&holder->owners, 1, memory_order_relaxed);
}

/* True if the last owner went: the caller then drops the owners' reference to the chunk after flushing the batch. */
static bool disown_into(struct pyk_holder *holder, struct batch *batch) {
    if (atomic_fetch_sub_explicit(&holder->owners, 1, memory_order_acq_rel) != 1) {
        return false;
    }
    give_back_into(holder, batch);
    return true;
}

void pyk_holder_disown(struct pyk_holder *holder) {
    struct batch batch;
    batch.count = 0;
    if (disown_into(holder, &batch)) {
        batch_flush(&batch);
        chunk_release(holder->chunk);
    }
}

void pyk_holders_disown(struct pyk_holder *const *holders, uint64_t count) {
    struct batch batch;
    batch.count = 0;
    for (uint64_t start = 0; start < count; start += RELEASE_BATCH) {
        struct pyk_chunk *last[RELEASE_BATCH];
        uint32_t last_count = 0;
        uint64_t end = count - start < RELEASE_BATCH ? count : start + RELEASE_BATCH;
        for (uint64_t i = start; i < end; i++) {
            if (disown_into(holders[i], &batch)) {
                last[last_count++] = holders[i]->chunk;
            }
        }
        batch_flush(&batch);
        for (uint32_t i = 0; i < last_count; i++) {
            chunk_release(last[i]);
        }
    }
}

void pyk_chunk_disown(struct pyk_chunk *chunk, uint64_t count) {
    struct batch batch;
    batch.count = 0;
    uint64_t last = 0;
    for (uint64_t i = 0; i < count; i++) {
        last += disown_into(&chunk->holders[i], &batch);
    }
    batch_flush(&batch);
    if (last != 0 && atomic_fetch_sub_explicit(&chunk->references, last, memory_order_acq_rel) == last) {
        pyk_core_release(chunk->core);
        free(chunk);
    }
}

void pyk_holder_give_back(struct pyk_holder *holder) {
    pyk_holders_give_back(holder, 1);
}

/* The caller is an owner of each, so the chunk outlives the flush. */
void pyk_holders_give_back(struct pyk_holder *holders, uint64_t count) {
    struct batch batch;
    batch.count = 0;
    for (uint64_t i = 0; i < count; i++) {
        give_back_into(&holders[i], &batch);
    }
    batch_flush(&batch);
}

void pyk_holder_pin(struct pyk_holder *holder) {
    (void)atomic_fetch_add_explicit(&holder->pins, 1, memory_order_relaxed);
}

/* Order: the handle goes back before the chunk's reference, which may be the core's last. */
void pyk_holder_unpin(struct pyk_holder *holder) {
    if (atomic_fetch_sub_explicit(&holder->pins, 1, memory_order_acq_rel) == 1) {
        (void)kvbm_release_mt(holder->chunk->core->manager, &holder->handle, 1);
        chunk_release(holder->chunk);
    }
}

bool pyk_holder_is_pinned(const struct pyk_holder *holder) {
    return atomic_load_explicit(&holder->pins, memory_order_acquire) > 1;
}

bool pyk_holder_claim(struct pyk_holder *holder) {
    uint32_t held = PYK_HELD;
    return atomic_compare_exchange_strong_explicit(&holder->state, &held, PYK_BUSY, memory_order_acq_rel,
                                                   memory_order_acquire);
}

void pyk_holder_unclaim(struct pyk_holder *holder) {
    uint32_t busy = PYK_BUSY;
    if (!atomic_compare_exchange_strong_explicit(&holder->state, &busy, PYK_HELD, memory_order_acq_rel,
                                                 memory_order_acquire)) {
        atomic_store_explicit(&holder->state, PYK_RELEASED, memory_order_release);
        pyk_holder_unpin(holder);
    }
}

/* The operation took the handle; `handle` is the registered block that it became. Tensors that look at its memory keep
 * a lease of their own on that, so the memory is not used anew while they live. */
static void holder_consume(struct pyk_holder *holder, kvbm_block handle) {
    atomic_store_explicit(&holder->state, PYK_CONSUMED, memory_order_release);
    uint32_t pins = 1;
    if (atomic_compare_exchange_strong_explicit(&holder->pins, &pins, 0, memory_order_acq_rel, memory_order_acquire)) {
        chunk_release(holder->chunk);
        return;
    }
    if (kvbm_block_retain_mt(holder->chunk->core->manager, &handle, 1) == 0) {
        holder->handle = handle;
    } else {
        holder->handle.bits = 0; /* releasing it later is refused as stale: nothing is counted twice */
    }
    pyk_holder_unpin(holder);
}

/* --------------------------------------------------------------------------------------------------------- requests */

static uint64_t per_block_bytes(int kind) {
    switch (kind) {
    case KVBM_OP_REGISTER:
        return sizeof(kvbm_block) + sizeof(struct pyk_holder *) + sizeof(bool);
    case KVBM_OP_QUERY:
        return 1;
    default:
        return sizeof(kvbm_block);
    }
}

struct pyk_request *pyk_request_new(struct pyk_core *core, int kind, int tier, uint64_t count) {
    struct pyk_request *request = malloc(sizeof *request);
    if (request == NULL) {
        return NULL;
    }
    memset(request, 0, offsetof(struct pyk_request, few));
    request->kind = kind;
    request->tier = tier;
    request->count = count;
    if (kind == KVBM_OP_REGISTER || kind == KVBM_OP_QUERY || count > sizeof request->few / sizeof *request->few) {
        char *room = malloc(count * per_block_bytes(kind) + 1);
        if (room == NULL) {
            free(request);
            return NULL;
        }
        request->blocks = (kvbm_block *)(void *)room;
        if (kind == KVBM_OP_REGISTER) {
            request->holders = (struct pyk_holder **)(void *)(room + count * sizeof(kvbm_block));
            request->duplicates = (bool *)(request->holders + count);
            memset(room, 0, count * per_block_bytes(kind));
        } else if (kind == KVBM_OP_QUERY) {
            request->tiers = (uint8_t *)room;
        }
    } else {
        request->blocks = request->few;
    }
    request->core = pyk_core_retain(core);
    return request;
}

void pyk_request_free(struct pyk_request *request) {
    if (request->holders != NULL) {
        uint64_t filled = 0;
        while (filled < request->count && request->holders[filled] != NULL) {
            filled++;
        }
        pyk_holders_disown(request->holders, filled);
    }
    pyk_keys_release(request->keys);
    pyk_keys_release(request->out_keys);
    free(request->salt);
    if (request->blocks != request->few) {
        free(request->blocks);
    }
    pyk_core_release(request->core);
    free(request);
}

static bool brings_blocks(const struct pyk_request *request) {
    return request->completion.status == 0 && request->kind != KVBM_OP_QUERY && request->completion.count != 0;
}

void pyk_request_settle(struct pyk_request *request) {
    if (request->kind != KVBM_OP_REGISTER) {
        return;
    }
    for (uint64_t i = 0; i < request->count; i++) {
        if (request->completion.status == 0) {
            holder_consume(request->holders[i], request->blocks[i]);
        } else {
            pyk_holder_unclaim(request->holders[i]);
        }
    }
}

void pyk_request_drop(struct pyk_request *request) {
    pyk_request_settle(request);
    if (brings_blocks(request)) {
        (void)kvbm_release_mt(request->core->manager, request->blocks, request->completion.count);
    }
    pyk_request_free(request);
}

/* The port was closed before this completion could be drained. */
static void orphan(void *user, const kvbm_completion *completion) {
    struct pyk_request *request = user;
    request->completion = *completion;
    pyk_request_drop(request);
}

static int submit_allocate(struct pyk_request *request, kvbm_submit *submit) {
    kvbm_allocate_args args = {
        .size = sizeof args, .tier = request->tier, .count = request->count, .blocks = request->blocks};
    if (request->wait) {
        submit->flags |= KVBM_SUBMIT_WAIT;
        submit->timeout_ns = request->timeout_ns;
    }
    return kvbm_allocate_mt(request->core->manager, &args, submit, &request->id);
}

static int submit_match(struct pyk_request *request, kvbm_submit *submit) {
    kvbm_match_args args = {.size = sizeof args,
                            .tiers = KVBM_TIER_BIT((uint32_t)request->tier),
                            .count = request->count,
                            .keys = request->keys->keys,
                            .blocks = request->blocks};
    return kvbm_match_mt(request->core->manager, &args, submit, &request->id);
}

static int submit_query(struct pyk_request *request, kvbm_submit *submit) {
    kvbm_query_args args = {
        .size = sizeof args, .count = request->count, .keys = request->keys->keys, .tiers = request->tiers};
    return kvbm_query_mt(request->core->manager, &args, submit, &request->id);
}

static int submit_register(struct pyk_request *request, kvbm_submit *submit, kvbm_failure *failure) {
    uint64_t claimed = 0;
    int status = 0;
    request->keep_pinned = false;
    while (claimed < request->count) {
        struct pyk_holder *holder = request->holders[claimed];
        if (!pyk_holder_claim(holder)) {
            uint32_t state = pyk_holder_state(holder);
            status = state == PYK_BUSY || state == PYK_BUSY_RELEASE ? -KVBM_ENOTOWNED : -KVBM_ESTALE;
            failure->index = claimed;
            (void)snprintf(failure->text, sizeof failure->text, "blocks[%llu]: %s", (unsigned long long)claimed,
                           state == PYK_CONSUMED ? "was registered: use the block that register_blocks returned"
                                                 : kvbm_error_text_mt(status));
            for (uint64_t i = 0; status == -KVBM_ENOTOWNED && i < claimed; i++) {
                if (request->holders[i] == holder) {
                    status = -KVBM_EDUPLICATE;
                    (void)snprintf(failure->text, sizeof failure->text, "blocks[%llu]: is blocks[%llu] once more",
                                   (unsigned long long)claimed, (unsigned long long)i);
                }
            }
            break;
        }
        request->blocks[claimed] = holder->handle;
        request->keep_pinned |= pyk_holder_is_pinned(holder);
        claimed++;
    }
    if (status == 0) {
        kvbm_register_args args = {.size = sizeof args,
                                   .count = request->count,
                                   .blocks = request->blocks,
                                   .keys = request->keys != NULL ? request->keys->keys : NULL,
                                   .parent = request->has_parent ? &request->parent : NULL,
                                   .salt = request->salt,
                                   .salt_bytes = request->salt_bytes,
                                   /* A duplicate that a tensor looks at must not go back to the pool: it is kept, and
                                    * exchanged for the primary afterwards (operations.c). */
                                   .flags = request->flags |
                                            (request->keep_pinned ? (uint32_t)KVBM_REGISTER_KEEP_DUPLICATES : 0),
                                   .priority = request->priority,
                                   .priority_ttl_ns = request->priority_ttl_ns,
                                   .out_blocks = request->blocks,
                                   .out_keys = request->out_keys != NULL ? request->out_keys->keys : NULL,
                                   .out_duplicate = request->duplicates};
        status = kvbm_register_mt(request->core->manager, &args, submit, &request->id);
    }
    if (status < 0) {
        for (uint64_t i = 0; i < claimed; i++) {
            pyk_holder_unclaim(request->holders[i]);
        }
    }
    return status;
}

int pyk_request_submit(struct pyk_request *request, kvbm_port *port, kvbm_failure *failure) {
    bool inline_answer = port == NULL || request->core->inline_answers;
    kvbm_submit submit = {.size = sizeof submit,
                          .flags = inline_answer ? KVBM_SUBMIT_INLINE : 0u,
                          .done = port != NULL ? orphan : NULL,
                          .port = port,
                          .user = request,
                          .completion = &request->completion};
    if (request->count == 0) {
        request->completion = (kvbm_completion){.kind = request->kind};
        return kvbm_manager_is_closed_mt(request->core->manager) ? -KVBM_ECLOSED : 1;
    }
    switch (request->kind) {
    case KVBM_OP_ALLOCATE:
        return submit_allocate(request, &submit);
    case KVBM_OP_MATCH:
        return submit_match(request, &submit);
    case KVBM_OP_QUERY:
        return submit_query(request, &submit);
    case KVBM_OP_REGISTER:
        return submit_register(request, &submit, failure);
    default:
        return -EINVAL;
    }
}

void pyk_request_exchange(struct pyk_request *request) {
    if (request->kind != KVBM_OP_REGISTER || !request->keep_pinned || request->completion.status != 0 ||
        (request->flags & KVBM_REGISTER_KEEP_DUPLICATES) != 0) {
        return;
    }
    kvbm_manager *manager = request->core->manager;
    const struct pyk_keys *keys = request->out_keys != NULL ? request->out_keys : request->keys;
    for (uint64_t i = 0; keys != NULL && i < request->count; i++) {
        kvbm_completion done;
        kvbm_block primary;
        kvbm_op id;
        kvbm_match_args args = {.size = sizeof args,
                                .tiers = KVBM_TIER_BIT((uint32_t)request->tier),
                                .count = 1,
                                .keys = &keys->keys[i],
                                .blocks = &primary};
        kvbm_submit submit = {.size = sizeof submit, .flags = KVBM_SUBMIT_INLINE, .completion = &done};
        if (!request->duplicates[i]) {
            continue;
        }
        int status = kvbm_match_mt(manager, &args, &submit, &id);
        if (status == 0) {
            status = kvbm_wait_mt(manager, id, UINT64_MAX, &done) == 0;
        }
        if (status == 1 && done.status == 0 && done.count == 1) {
            (void)kvbm_release_mt(manager, &request->blocks[i], 1);
            request->blocks[i] = primary;
        }
    }
}
