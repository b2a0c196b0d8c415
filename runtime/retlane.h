/*
 * retlane.h - return lane: a queue of small integers that cannot be full.
 *
 * For what must never fail from any thread: giving back a block, asking to cancel an operation. Each id in
 * [0, capacity) can be in the lane at most once (the caller keeps a "queued" bit beside the thing that the id names),
 * so one link per id bounds it. Push is lock-free: a producer that is descheduled holds up nobody. The consumer takes
 * everything with one exchange. Order: kvbm_retlane_drain hands out ids in the order in which they were pushed.
 */
#ifndef KVBM_RUNTIME_RETLANE_H
#define KVBM_RUNTIME_RETLANE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/os.h"

#define KVBM_RETLANE_END UINT32_MAX

struct kvbm_retlane {
    const struct kvbm_os *os;
    _Atomic uint32_t *links; /* lazily touched map of capacity entries */
    size_t mapped_bytes;
    uint32_t capacity;
    _Alignas(64) _Atomic uint32_t head;
};

/* 0, -EINVAL, -ENOMEM */
int kvbm_retlane_open(struct kvbm_retlane *lane, const struct kvbm_os *os, uint32_t capacity);
void kvbm_retlane_close(struct kvbm_retlane *lane);
/* Pushes one id that is not in the lane. Release: what the caller wrote before is seen by the drainer. Sequentially
 * consistent, as kvbm_reactor_returned_mt needs it. */
void kvbm_retlane_push_mt(struct kvbm_retlane *lane, uint32_t id);
/* Pushes ids[0..count) as one piece: they come out next to each other and in this order. */
void kvbm_retlane_push_many_mt(struct kvbm_retlane *lane, const uint32_t *ids, uint32_t count);
bool kvbm_retlane_empty_mt(const struct kvbm_retlane *lane);
/* Consumer: takes all, calls fn(arg, id) for each in push order. The id may be pushed again from within fn on. Returns
 * how many. */
uint32_t kvbm_retlane_drain(struct kvbm_retlane *lane, void (*fn)(void *arg, uint32_t id), void *arg);

#endif
