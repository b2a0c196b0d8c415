/*
 * deadline.h - binary heap of armed messages, ordered by deadline_ns, of fixed capacity.
 *
 * Owned by one reactor. A message knows its position (head.deadline_slot), so disarming is O(log n).
 */
#ifndef KVBM_RUNTIME_DEADLINE_H
#define KVBM_RUNTIME_DEADLINE_H

#include <stdint.h>

#include "runtime/message.h"
#include "runtime/os.h"

struct kvbm_deadlines {
    const struct kvbm_os *os;
    struct kvbm_msg **heap; /* places 1 .. count; place 0 is unused, KVBM_DEADLINE_NONE */
    size_t mapped_bytes;
    uint32_t count;
    uint32_t capacity;
};

int kvbm_deadlines_open(struct kvbm_deadlines *d, const struct kvbm_os *os, uint32_t capacity);
void kvbm_deadlines_close(struct kvbm_deadlines *d);
/* msg->deadline_ns != 0 and msg is not armed. The capacity is a sum over all armable messages, so it is never full. */
void kvbm_deadlines_arm(struct kvbm_deadlines *d, struct kvbm_msg *msg);
/* No-op if not armed. */
void kvbm_deadlines_disarm(struct kvbm_deadlines *d, struct kvbm_msg *msg);
/* The earliest, KVBM_NO_DEADLINE if none. */
uint64_t kvbm_deadlines_next_ns(const struct kvbm_deadlines *d);
/* Removes and returns one message whose deadline is <= now_ns, NULL if none. */
struct kvbm_msg *kvbm_deadlines_expire(struct kvbm_deadlines *d, uint64_t now_ns);

#endif
