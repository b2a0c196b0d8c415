/*
 * fault.h - a store in front of another that fails, delays, corrupts and loses requests by rules; for tests, the
 * simulation, and rehearsals of a failing device. The interface is tier.h's, and so are its contracts, but for what the
 * rules break on purpose.
 *
 * Rules are looked at in order for each item; the first that fires decides. A rule passes the first after_count items
 * that it matches, then fires for count of them (0: for ever), each with a probability drawn from the seed. With a loop
 * it works by itself; without one, whoever owns the time calls kvbm_fault_tick. Thread: the store's.
 */
#ifndef KVBM_STORAGE_FAULT_H
#define KVBM_STORAGE_FAULT_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/os.h"
#include "storage/tier.h"

#define KVBM_FAULT_RULE_COUNT_MAX 16u
#define KVBM_FAULT_ANY            UINT32_MAX

enum kvbm_fault_effect {
    KVBM_FAULT_FAIL = 1,       /* not performed; ends with `error` (out of space: -ENOSPC) */
    KVBM_FAULT_FAIL_AFTER = 2, /* performed; ends with `error` all the same */
    KVBM_FAULT_NEVER = 3,      /* not performed; ends when kvbm_fault_release or close says so, with `error` */
    KVBM_FAULT_LATE = 4,       /* performed; told delay_ns after it came */
    KVBM_FAULT_CORRUPT = 5,    /* read: bytes are changed, ends with -KVBM_ECORRUPT, or with 0 if silent */
    KVBM_FAULT_SHORT = 6,      /* read: only the first half of the bytes arrives; write: not performed; -EIO */
    KVBM_FAULT_LOST = 7,       /* ends with -ENODEV, as all that follows, until kvbm_fault_heal */
};

struct kvbm_fault_rule {
    int effect;           /* enum kvbm_fault_effect */
    uint32_t ops;         /* bits 1 << enum kvbm_tier_op; 0: all but flushes */
    uint32_t slot;        /* KVBM_FAULT_ANY, or this one */
    uint32_t after_count; /* matches that pass first */
    uint32_t count;       /* matches it fires for then; 0: all */
    uint32_t per_million; /* probability; 0: always */
    int error;            /* 0: -EIO */
    uint64_t delay_ns;
    bool silent;
};

struct kvbm_fault_options {
    const struct kvbm_os *os;
    uv_loop_t *loop; /* NULL: kvbm_fault_tick is called */
    uint64_t seed;
    uint32_t io_count;  /* requests at a time; more are refused with -EAGAIN. 0: 256 */
    uint32_t items_max; /* of a request. 0: the inner store's, at most 256 */
};

/* Moves `inner`, which is closed with the outer store, to it. 0, -EINVAL, -ENOMEM (inner stays the caller's). */
int kvbm_fault_open(struct kvbm_store **store, struct kvbm_store *inner, const struct kvbm_fault_options *options);
/* Copies the rule, behind those there are: its number from 0, or -ENOSPC. */
int kvbm_fault_add(struct kvbm_store *store, const struct kvbm_fault_rule *rule);
/* No rules any more; what is held stays held. */
void kvbm_fault_clear(struct kvbm_store *store);
/* Items that the rule has fired for. */
uint64_t kvbm_fault_hits(const struct kvbm_store *store, int rule);
/* What is held by KVBM_FAULT_NEVER ends. */
void kvbm_fault_release(struct kvbm_store *store);
/* A lost device is back. */
void kvbm_fault_heal(struct kvbm_store *store);
/* Tells what is due. Returns when to call again at the latest; KVBM_NO_DEADLINE: only after another request or
 * completion. */
uint64_t kvbm_fault_tick(struct kvbm_store *store, uint64_t now_ns);

#endif
