/*
 * shared_internal.h - the half of the extension that knows nothing of Python: what may be touched without the GIL.
 *
 * Native threads (reactors that orphan a completion, foreign threads that drop a tensor) meet Python's objects only
 * here, in four reference-counted structs. Nothing in this header or shared.c calls the interpreter.
 *
 *   core     one open manager. Referenced by manager objects, lists, chunks and requests; the last reference frees the
 *            manager's memory.
 *   keys     an immutable packed array of sequence hashes; shared by SequenceHashes, slices of them and requests.
 *   chunk    the holders of the blocks of one list, made when the list is first indexed, sliced or registered.
 *   holder   one handle's owner, shared by Block, Layer, list slots, requests and DLPack tensors.
 *   request  one operation's arguments and outputs; owned by exactly one of: an Operation object, the flight (from
 * submit to completion), or the function that disposes of it.
 *
 * A holder is counted twice. `owners` are those that may still do something with the block (Block, Layer, list slots,
 * requests); `pins` are those that need its memory: one for the owners together while the state is HELD or BUSY, and
 * one for each exported tensor. The handle goes back to its pool when pins reach 0.
 *
 *   HELD     -> BUSY      a register operation claims it          -> RELEASED  release(), or the last owner went
 *   BUSY     -> HELD      the operation failed                    -> CONSUMED  the operation took the handle
 *   BUSY     -> BUSY_RELEASE  release() while claimed: settled with the operation
 */
#ifndef KVBM_PYTHON_SHARED_INTERNAL_H
#define KVBM_PYTHON_SHARED_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "actors/kvbm.h"

struct pyk_core {
    _Atomic uint64_t references;
    kvbm_manager *manager;
    struct kvbm_layout layout; /* of the host pool */
    uint64_t element_bytes;
    bool has_bytes, tracks_tokens;
    bool inline_answers; /* asyncio: an operation may be answered at submit; not with borrow=False */
    char name[16];
};

struct pyk_keys {
    _Atomic uint64_t references;
    uint64_t count;
    kvbm_key keys[];
};

enum pyk_hold { PYK_HELD = 0, PYK_BUSY = 1, PYK_BUSY_RELEASE = 2, PYK_RELEASED = 3, PYK_CONSUMED = 4 };

struct pyk_holder {
    kvbm_block handle;
    struct pyk_chunk *chunk;
    _Atomic uint32_t owners;
    _Atomic uint32_t pins;
    _Atomic uint32_t state; /* enum pyk_hold */
    bool duplicate;
};

struct pyk_chunk {
    _Atomic uint64_t references; /* for each holder one while it has owners, one while it has pins */
    struct pyk_core *core;
    struct pyk_holder holders[];
};

/* The asyncio face's request is in flight while a port or a callback may still write to it. */
struct pyk_request {
    int kind; /* enum kvbm_op_kind */
    int tier;
    struct pyk_core *core;
    void *operation; /* the waiting Operation object, NULL if nobody waits; read and written with the GIL only */
    kvbm_op id;
    kvbm_completion completion;
    uint64_t count;
    uint64_t timeout_ns; /* allocate: 0 is for ever if `wait` */
    uint64_t submitted_ns;
    bool wait;
    uint32_t flags, priority; /* register */
    uint64_t priority_ttl_ns;
    kvbm_key parent;
    bool has_parent, keep_pinned;
    struct pyk_keys *keys;       /* match, query; register with given keys */
    struct pyk_keys *out_keys;   /* register without */
    struct pyk_holder **holders; /* register: count claimed ones */
    bool *duplicates;            /* register */
    uint8_t *tiers;              /* query */
    void *salt;
    uint64_t salt_bytes;
    kvbm_block *blocks; /* allocate, match: out; register: in and out */
    kvbm_block few[8];  /* where blocks points for small counts */
};

struct pyk_core *pyk_core_retain(struct pyk_core *core);
/* Drops a reference; any thread but inside a completion callback if it may be the last. */
void pyk_core_release(struct pyk_core *core);

/* Room for `count` keys, uninitialised; NULL: no memory. */
struct pyk_keys *pyk_keys_new(uint64_t count);
struct pyk_keys *pyk_keys_retain(struct pyk_keys *keys);
void pyk_keys_release(struct pyk_keys *keys);

/* Moves `count` handles into holders of their own, each with one owner (the list slot). With `gone` the handles are not
 * owned any more and the holders start RELEASED. NULL: no memory, and nothing moved. */
struct pyk_chunk *pyk_chunk_new(struct pyk_core *core, const kvbm_block *handles, uint64_t count, bool gone);
void pyk_holder_own(struct pyk_holder *holder);
/* Drops an owner; the last one releases the block unless tensors pin it. */
void pyk_holder_disown(struct pyk_holder *holder);
/* As disown for many, with one release call to the manager for each 256. */
void pyk_holders_disown(struct pyk_holder *const *holders, uint64_t count);
void pyk_chunk_disown(struct pyk_chunk *chunk, uint64_t count);
/* Gives the block back now, or when its operation or its tensors are done. Idempotent. */
void pyk_holder_give_back(struct pyk_holder *holder);
void pyk_holders_give_back(struct pyk_holder *holders, uint64_t count);
/* One more pin; the state must be HELD or BUSY. */
void pyk_holder_pin(struct pyk_holder *holder);
void pyk_holder_unpin(struct pyk_holder *holder);
static inline uint32_t pyk_holder_state(const struct pyk_holder *holder) {
    return atomic_load_explicit(&holder->state, memory_order_acquire);
}
/* HELD -> BUSY. False if it was in another state. */
bool pyk_holder_claim(struct pyk_holder *holder);
/* Undoes a claim: BUSY -> HELD, or released if that was asked for meanwhile. */
void pyk_holder_unclaim(struct pyk_holder *holder);
bool pyk_holder_is_pinned(const struct pyk_holder *holder);

/* A request with room for its outputs. NULL: no memory. */
struct pyk_request *pyk_request_new(struct pyk_core *core, int kind, int tier, uint64_t count);
/* Frees a request that was never submitted, or whose result was taken. */
void pyk_request_free(struct pyk_request *request);
/* Submits to a port (with the orphan callback) or for kvbm_wait_mt (port NULL). Returns as kvbm_*_mt do; register
 * claims the holders first and unclaims them if the submit fails: `failure` (its size set) then says which block was
 * not HELD, with -KVBM_ESTALE, -KVBM_ENOTOWNED or -KVBM_EDUPLICATE. Other kinds leave it alone. A return of 1 means
 * completed: request->completion is filled. */
int pyk_request_submit(struct pyk_request *request, kvbm_port *port, kvbm_failure *failure);
/* A settled register that kept duplicates because tensors looked at them: exchanges each for its primary, where that is
 * still resident. May wait for the reactor (microseconds); never in a callback. */
void pyk_request_exchange(struct pyk_request *request);
/* To be called exactly once after completion, before the result is taken: settles the claims of a register. */
void pyk_request_settle(struct pyk_request *request);
/* Nobody wants it: settles, gives back what it brought, frees. After completion; any thread. */
void pyk_request_drop(struct pyk_request *request);
uint64_t pyk_now_ns(void);

#endif
