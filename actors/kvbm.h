/*
 * kvbm.h - the public C API of KVBM, a KV block manager for LLM inference.
 *
 * Conventions (docs/conventions.md has them in full; comments below state exceptions only)
 *
 *   Errors      0 or a count on success; -errno or -KVBM_E<NAME> (runtime/errors.h) on failure. kvbm_error_name_mt and
 *               kvbm_error_text_mt name them.
 *   Threads     `_mt`: any thread. No suffix: the thread that the comment names.
 *   Options     Every option struct starts with `size`; set it to sizeof(the struct) and zero the rest: zero is the
 *               default of every field. A library newer than your header takes the missing fields as zero; one that is
 *               older refuses fields that it does not know and that are not zero (-E2BIG).
 *   Ownership   Arrays given to an operation (blocks, keys, outputs) stay yours, but must stay valid and untouched
 *               until the operation has completed.
 *   Fork        In a forked child every call on a manager or port of the parent fails with -KVBM_EFORKED.
 *
 * Operations
 *
 *   kvbm_allocate_mt, kvbm_register_mt, kvbm_match_mt and kvbm_query_mt submit one operation for n blocks.
 *
 *     returns 0   accepted: exactly one completion follows, by callback or through the port named in `submit`, or,
 *                 where neither is named, to kvbm_wait_mt.
 *     returns 1   only with KVBM_SUBMIT_INLINE: done already; *completion holds the result and nothing follows.
 *     returns <0  not accepted: nothing follows, and the arguments are still the caller's. -EAGAIN: the operation pool,
 *                 the lane or the port is full; wait for other completions and submit again (or
 *                 kvbm_port_want_credit_mt).
 *
 *   A completion's status says what became of it: 0; -KVBM_E...; -ECANCELED; -ETIMEDOUT; -KVBM_ESHUTDOWN.
 *   Cancelling is a request: the completion still comes, and says whether the operation was done or cancelled.
 *
 * Blocks
 *
 *   A kvbm_block is a handle: slot and generation. A mutable block has one holder; a registered block may be held many
 *   times (each match or retain is one lease), and each lease is given back by one kvbm_release_mt. A stale handle is
 *   told from a live one and refused with -KVBM_ESTALE.
 *
 *   states: Reset (in the pool) -> Partial -> Complete -> Registered; see kvbm_block_state_mt.
 */
#ifndef KVBM_H
#define KVBM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/errors.h"
#include "storage/dtype.h"
#include "storage/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVBM_VERSION_MAJOR 0
#define KVBM_VERSION_MINOR 1
#define KVBM_VERSION_PATCH 0
#define KVBM_VERSION       "0.1.0"

#define KVBM_GROUP_COUNT_MAX 8
#define KVBM_SLOT_COUNT_MAX  (1u << 26) /* blocks of one pool */
#define KVBM_PRIORITY_MAX    7
#define KVBM_BATCH_COUNT_MAX (1u << 20) /* blocks in one operation */

typedef struct kvbm_manager kvbm_manager;
typedef struct kvbm_port kvbm_port;
typedef uint64_t kvbm_op; /* operation id; 0 is none */
typedef struct {
    uint64_t bits;
} kvbm_block; /* handle; {0} is none */
typedef struct {
    uint8_t bytes[16];
} kvbm_key; /* XXH3-128 in canonical (big-endian) order, or any 128-bit digest */

enum kvbm_tier {
    KVBM_TIER_DEVICE = 0,
    KVBM_TIER_HOST = 1,
    KVBM_TIER_DISK = 2,
    KVBM_TIER_REMOTE = 3,
    KVBM_TIER_COUNT = 4
};
#define KVBM_TIER_BIT(tier) (1u << (tier))

enum kvbm_block_state {
    KVBM_BLOCK_RESET = 0,      /* in the pool, nobody's */
    KVBM_BLOCK_PARTIAL = 1,    /* mutable, its tokens do not fill a page yet (none set counts as partial) */
    KVBM_BLOCK_COMPLETE = 2,   /* mutable, tokens fill the page */
    KVBM_BLOCK_REGISTERED = 3, /* immutable, matchable under its key */
};

/* ---------------------------------------------------------------------------------------------- version and errors */

const char *kvbm_version_mt(void);

/* A failed call's story: what failed, with the argument's name, its value and what is allowed. */
typedef struct kvbm_failure {
    size_t size;
    int code; /* the negative value that was returned */
    char text[240];
    uint64_t index; /* of the item of a batch that failed, UINT64_MAX where the failure is not about one */
} kvbm_failure;

/* -------------------------------------------------------------------------------------------------------- manager */

typedef void (*kvbm_log_callback)(void *user, int level, const char *component, const char *text);

/* One cache group: layers that share a geometry and a reuse rule. */
typedef struct kvbm_group_options {
    size_t size;
    struct kvbm_geometry geometry;
    uint64_t host_blocks; /* capacity of G2; 0: the group has no host pool */
    const char *policy;   /* of eviction: "prefix", "lru", "s3fifo"; NULL: "prefix" (docs/core/eviction.md) */
} kvbm_group_options;

enum kvbm_open_flags {
    KVBM_OPEN_NO_BYTES = 1,     /* bookkeeping only: no memory behind the blocks */
    KVBM_OPEN_NO_BORROW = 2,    /* every operation goes through the reactor's thread */
    KVBM_OPEN_TRACK_TOKENS = 4, /* keep tokens set by kvbm_block_append_tokens (page_size * 4 bytes a block, lazily) */
};

typedef struct kvbm_options {
    size_t size;
    const char *name;                 /* for logs and the thread, at most 15 characters; NULL: "kvbm" */
    const kvbm_group_options *groups; /* group_count of them, 1 .. KVBM_GROUP_COUNT_MAX */
    uint32_t group_count;
    uint32_t flags;          /* enum kvbm_open_flags */
    uint32_t max_operations; /* operations in flight, 16 .. 2^20; 0: 16384 */
    void *uv_loop;           /* uv_loop_t * that the reactor runs on (open and close on its thread); NULL: own thread */
    int huge_pages;          /* 0: try; 1: off; 2: require */
    int numa_node;           /* node + 1; 0: no binding */
    uint32_t touch_threads;  /* 0: min(cpus, 8); UINT32_MAX: do not touch up front */
    int log_level;           /* 1 debug .. 4 error, 9 off; 0: warning */
    kvbm_log_callback log;   /* NULL: standard error */
    void *log_user;
} kvbm_options;

/* Opens a manager with one reference, the caller's. `failure` may be NULL. -EINVAL, -KVBM_EGEOMETRY, -ENOMEM,
 * -errno. */
int kvbm_manager_open(const kvbm_options *options, kvbm_manager **manager, kvbm_failure *failure);
/* References keep the manager's memory (blocks included) valid; they do not keep it open. */
void kvbm_manager_retain_mt(kvbm_manager *manager);
/* Drops a reference. The last one frees everything; it must come after a close (else the manager closes first), and not
 * from inside a completion callback. */
void kvbm_manager_release_mt(kvbm_manager *manager);
/* Refuses new operations (-KVBM_ECLOSED), ends pending ones with -KVBM_ESHUTDOWN, delivers every completion, then stops
 * the reactor. Blocks still held stay readable until released and the last reference is dropped.
 * Own thread: any thread but a callback's (-EDEADLK); waits at most timeout_ns (UINT64_MAX: no limit), then -ETIMEDOUT
 * with a log line of what holds it, and may be called again. Several threads may close at once: all of them wait for
 * the end. Caller's loop: on the loop's thread (-EPERM elsewhere), outside of callbacks (-EDEADLK); completions are
 * delivered in the call, which waits for other threads that are just inside a call of theirs, at least a second if need
 * be (-ETIMEDOUT: call again); then the loop must run until the handles are closed. 0, also when already closed. */
int kvbm_manager_close_mt(kvbm_manager *manager, uint64_t timeout_ns);
bool kvbm_manager_is_closed_mt(const kvbm_manager *manager);
/* The layout of a pool. NULL if there is no such pool. Lives as long as the manager. */
const struct kvbm_layout *kvbm_manager_layout_mt(const kvbm_manager *manager, uint32_t group, int tier);

/* ----------------------------------------------------------------------------------------------------- operations */

enum kvbm_op_kind {
    KVBM_OP_ALLOCATE = 1,
    KVBM_OP_REGISTER = 2,
    KVBM_OP_MATCH = 3,
    KVBM_OP_QUERY = 4,
    KVBM_OP_CREDIT = 5
};

typedef struct kvbm_completion {
    kvbm_op op;
    void *user;
    int kind;           /* enum kvbm_op_kind */
    int status;         /* 0, -errno, -KVBM_E* */
    uint64_t count;     /* blocks allocated, registered or matched; keys resident for a query */
    uint64_t requested; /* with -KVBM_ENOBLOCKS: what was asked for and what could have been had */
    uint64_t available;
    uint64_t index; /* with an error about one item of a batch: which */
} kvbm_completion;

/* Called once, in the reactor's context: on its thread, or on an application thread that runs a turn (perhaps the very
 * one that submits, before the submit returns). May submit, release and cancel; must not wait or close. */
typedef void (*kvbm_done_callback)(void *user, const kvbm_completion *completion);

enum kvbm_submit_flags {
    KVBM_SUBMIT_INLINE = 1, /* allow return value 1 with *completion filled */
    KVBM_SUBMIT_WAIT = 2,   /* allocate: when short, wait in line until the deadline instead of failing */
};

typedef struct kvbm_submit {
    size_t size;
    uint32_t flags;              /* enum kvbm_submit_flags */
    uint64_t timeout_ns;         /* from now; 0: none. The operation then ends with -ETIMEDOUT */
    kvbm_done_callback done;     /* or */
    kvbm_port *port;             /* or neither: kvbm_wait_mt. Both: to the port, or to `done` if the port was closed */
    void *user;                  /* comes back in the completion */
    kvbm_completion *completion; /* required with KVBM_SUBMIT_INLINE */
    kvbm_failure *failure;       /* NULL, or filled when the submit itself returns a negative value */
} kvbm_submit;

typedef struct kvbm_allocate_args {
    size_t size;
    uint32_t group;
    int tier;           /* enum kvbm_tier */
    uint64_t count;     /* 1 .. KVBM_BATCH_COUNT_MAX */
    kvbm_block *blocks; /* out: count handles */
} kvbm_allocate_args;

/* Takes `count` mutable blocks, all or none: reset blocks first, then evicted ones. Completion: -KVBM_ENOBLOCKS with
 * requested and available. Requests that wait (KVBM_SUBMIT_WAIT) are served in order; while some wait, a request that
 * does not wait gets only what is left beside them, hence -KVBM_ENOBLOCKS.
 * A count above the pool's capacity fails at once even with KVBM_SUBMIT_WAIT. `op` may be NULL. */
int kvbm_allocate_mt(kvbm_manager *manager, const kvbm_allocate_args *args, const kvbm_submit *submit, kvbm_op *op);

enum kvbm_register_flags {
    KVBM_REGISTER_KEEP_DUPLICATES = 1, /* a duplicate keeps its own block (registered, not matchable) */
    KVBM_REGISTER_ANONYMOUS = 2,       /* unique random keys are made; returned in out_keys */
};

typedef struct kvbm_register_args {
    size_t size;
    uint64_t count;
    const kvbm_block *blocks; /* mutable blocks of one group and tier, in chain order, no block twice */
    const kvbm_key *keys;     /* sequence hashes; NULL: computed from the blocks' own tokens (KVBM_OPEN_TRACK_TOKENS),
                                 chained from `parent`, or made up with KVBM_REGISTER_ANONYMOUS */
    const kvbm_key *parent;   /* key before the first block; NULL: the chain starts here */
    const void *salt;         /* for keys computed here; enters the first block only */
    size_t salt_bytes;
    uint32_t flags;           /* enum kvbm_register_flags */
    uint32_t priority;        /* 0 (evicted first) .. KVBM_PRIORITY_MAX */
    uint64_t priority_ttl_ns; /* 0: for ever; else priority falls to 0 that long after registration */
    kvbm_block *out_blocks;   /* count handles that replace `blocks`; the same array, or one apart from it */
    kvbm_key *out_keys;       /* NULL, or count keys */
    bool *out_duplicate;      /* NULL, or count flags: the key was resident already */
} kvbm_register_args;

/* Publishes complete blocks under their keys. At submit the handles are validated and claimed: -KVBM_ESTALE,
 * -KVBM_EIMMUTABLE, -KVBM_EINCOMPLETE, -KVBM_EWRONGMANAGER, -KVBM_EDUPLICATE, -KVBM_ENOTOWNED leave all of them with
 * the caller. After acceptance it succeeds (unless shut down or cancelled first: then the blocks are the caller's,
 * mutable as before). Each input handle ends; each output handle is one lease on a registered block: the block itself,
 * or, when its key was resident in this tier already, the primary, and the duplicate goes back to the pool. */
int kvbm_register_mt(kvbm_manager *manager, const kvbm_register_args *args, const kvbm_submit *submit, kvbm_op *op);

typedef struct kvbm_match_args {
    size_t size;
    uint32_t group;
    uint32_t tiers; /* bits KVBM_TIER_BIT; 0: all */
    uint64_t count; /* 0 .. KVBM_BATCH_COUNT_MAX */
    const kvbm_key *keys;
    kvbm_block *blocks; /* out: count handles, the first completion.count are filled */
} kvbm_match_args;

/* Leases the longest prefix of `keys` that is resident, each block in the fastest of the tiers asked for. */
int kvbm_match_mt(kvbm_manager *manager, const kvbm_match_args *args, const kvbm_submit *submit, kvbm_op *op);

typedef struct kvbm_query_args {
    size_t size;
    uint32_t group;
    uint64_t count;
    const kvbm_key *keys;
    uint8_t *tiers; /* out: for each key the tiers it is resident in (KVBM_TIER_BIT) */
} kvbm_query_args;

/* Where keys are, without leasing and without counting as use. completion.count: how many are resident anywhere. */
int kvbm_query_mt(kvbm_manager *manager, const kvbm_query_args *args, const kvbm_submit *submit, kvbm_op *op);

/* Asks for an operation to end early. 0: the request was made (the completion tells), or the operation had ended
 * already. Cannot fail for want of room. -EINVAL for an id that was never given out. */
int kvbm_cancel_mt(kvbm_manager *manager, kvbm_op op);
/* Waits for an operation that was submitted with neither callback nor port, at most timeout_ns (0: looks once;
 * UINT64_MAX: no limit). One thread waits for an operation at a time. 0: *completion is filled and the id is gone.
 * -ETIMEDOUT, -EINTR: it is still in flight. -EINVAL: no such operation. -EDEADLK: called from a callback. */
int kvbm_wait_mt(kvbm_manager *manager, kvbm_op op, uint64_t timeout_ns, kvbm_completion *completion);

/* --------------------------------------------------------------------------------------------------------- blocks */

/* Gives back one hold of each block: a mutable block returns to the pool (its content is lost), a lease on a registered
 * block ends. Cannot fail for want of room, works after close. The others are released all the same if some handle was
 * refused; the code is that of the first: -KVBM_ESTALE, -KVBM_ENOTOWNED (inside a register), -KVBM_EWRONGMANAGER (no
 * such pool or slot here). Within one call later blocks are evicted before earlier ones: pass chains in order. */
int kvbm_release_mt(kvbm_manager *manager, const kvbm_block *blocks, uint64_t count);
/* One more lease on each registered block; all or none. -KVBM_ESTALE, -KVBM_EMUTABLE, -KVBM_ELEASES,
 * -KVBM_EWRONGMANAGER. */
int kvbm_block_retain_mt(kvbm_manager *manager, const kvbm_block *blocks, uint64_t count);
/* enum kvbm_block_state, or -KVBM_ESTALE, -KVBM_EWRONGMANAGER (as every function of one block below). */
int kvbm_block_state_mt(kvbm_manager *manager, kvbm_block block);
/* The holder of a mutable block only: appends tokens. -KVBM_ESTALE, -KVBM_EIMMUTABLE, -EOVERFLOW past the page (nothing
 * is appended), -ENOTSUP without KVBM_OPEN_TRACK_TOKENS. */
int kvbm_block_append_tokens(kvbm_manager *manager, kvbm_block block, const uint32_t *tokens, uint32_t count);
/* Replaces the tokens: as append, from empty. */
int kvbm_block_set_tokens(kvbm_manager *manager, kvbm_block block, const uint32_t *tokens, uint32_t count);
/* Copies at most `capacity` tokens out; returns how many the block has. */
int kvbm_block_tokens(kvbm_manager *manager, kvbm_block block, uint32_t *tokens, uint32_t capacity);
/* The key of a registered block that the caller holds. -KVBM_ESTALE, -KVBM_EMUTABLE. */
int kvbm_block_key_mt(kvbm_manager *manager, kvbm_block block, kvbm_key *key);
/* Address of the plane [page][inner] of (layer, outer) of a held host block: a contiguous piece of layout->plane_bytes.
 * Valid while the block is held. -KVBM_ESTALE, -KVBM_ENOBYTES, -EINVAL for an index out of range. */
int kvbm_block_data_mt(kvbm_manager *manager, kvbm_block block, uint32_t layer, uint32_t outer, void **address);
uint32_t kvbm_block_group(kvbm_block block);
int kvbm_block_tier(kvbm_block block);
/* The slot's number in its pool, 0 .. capacity - 1. */
uint64_t kvbm_block_slot(kvbm_block block);

/* ----------------------------------------------------------------------------------------------------------- keys */

/* Sequence hashes of consecutive full blocks. tokens: count * page_size values. salt: any bytes, enters the first key
 * when there is no parent. keys[i] = XXH3-128(keys[i-1] bytes || tokens of block i as little-endian 32-bit); the first
 * one replaces keys[-1] by *parent, or else by XXH3-128(salt) (sixteen zero bytes for an empty salt). Pure. */
void kvbm_keys_compute_mt(const uint32_t *tokens, uint64_t count, uint32_t page_size, const void *salt,
                          size_t salt_bytes, const kvbm_key *parent, kvbm_key *keys);
/* A key for an engine's own hash: its XXH3-128. Pure. */
void kvbm_key_from_bytes_mt(const void *bytes, size_t count, kvbm_key *key);

/* ---------------------------------------------------------------------------------------------------------- ports */

/* A completion queue for one event loop; independent of managers, usable with several. capacity: operations in flight
 * at once that will complete here, 1 .. 2^20. -EINVAL, -ENOMEM, -EMFILE. */
int kvbm_port_open(uint32_t capacity, kvbm_port **port);
/* Level: readable while completions may be waiting. Poll for reading; never read it yourself. */
int kvbm_port_fd(const kvbm_port *port);
/* Takes up to `capacity` completions; returns how many, 0 when there is none (the fd is then quiet until the next). One
 * consumer thread at a time. */
int kvbm_port_drain(kvbm_port *port, kvbm_completion *completions, uint32_t capacity);
/* One KVBM_OP_CREDIT completion (user as given) once operations can be submitted again after -EAGAIN. At most one
 * request a (manager, port) pair at a time: -EALREADY. */
int kvbm_port_want_credit_mt(kvbm_port *port, kvbm_manager *manager, void *user);
/* Closes. Completions that were not drained, and those of operations still in flight when they come, go to the `done`
 * of their submit, which owns what they brought and may free their arrays (undrained ones: from inside this call).
 * Those submitted without `done` are dropped: what they allocated, leased or registered is released. */
void kvbm_port_close(kvbm_port *port);

/* ----------------------------------------------------------------------------------------------------- statistics */

typedef struct kvbm_latency {
    uint64_t count, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns;
} kvbm_latency;

typedef struct kvbm_pool_stats {
    size_t size;
    uint64_t capacity_blocks;
    uint64_t free_blocks;    /* reset */
    uint64_t cached_blocks;  /* registered, unleased: evictable */
    uint64_t leased_blocks;  /* registered, leased */
    uint64_t mutable_blocks; /* held or in an operation */
    uint64_t block_bytes;    /* payload */
    uint64_t allocated_count, released_count, registered_count, duplicate_count, evicted_count; /* blocks, ever */
    uint64_t matched_count, missed_count; /* keys asked for by match: leased / not */
    uint64_t shortage_count;              /* allocations that failed or had to wait */
    uint64_t waiting_count;               /* allocations in line now */
} kvbm_pool_stats;

typedef struct kvbm_stats {
    size_t size;
    uint64_t operations_in_flight, operations_max;
    uint64_t accepted_count, completed_count, cancelled_count, timed_out_count, refused_count; /* operations, ever */
    uint64_t turn_count, message_count, borrow_count, borrow_lost_count, wake_count;           /* reactor */
    uint64_t queue_depth;
    uint64_t registry_entries;
    uint64_t tracked_bytes; /* memory of the bookkeeping, maps that are touched lazily counted whole */
    uint64_t slab_bytes;
    kvbm_latency allocate, registering, match, query; /* submit to completion; operations answered at submit: 1 in 64 */
} kvbm_stats;

/* Reads counters without stopping anything; each is exact at some recent instant. */
int kvbm_manager_stats_mt(kvbm_manager *manager, kvbm_stats *stats);
/* After settling what this thread released before, for which it waits at most a second where the reactor's thread must
 * do it. -EINVAL: no such pool, or a size that ends before the counters. */
int kvbm_pool_stats_mt(kvbm_manager *manager, uint32_t group, int tier, kvbm_pool_stats *stats);
/* Blocks that an allocation could have: free + cached; settles first, as above. -EINVAL: no such pool. */
int64_t kvbm_pool_available_mt(kvbm_manager *manager, uint32_t group, int tier);

#ifdef __cplusplus
}
#endif
#endif
