/*
 * deadline.c - binary heap of armed messages. Owned by one reactor; its owner's thread.
 *
 * One-based: children of i are 2i and 2i + 1, and place 0 means "not armed".
 */
#include "runtime/deadline.h"

#include <errno.h>

#include "runtime/log.h"

int kvbm_deadlines_open(struct kvbm_deadlines *d, const struct kvbm_os *os, uint32_t capacity) {
    *d = (struct kvbm_deadlines){.os = os, .capacity = capacity};
    if (capacity == UINT32_MAX)
        return -EINVAL;
    if (capacity == 0)
        return 0;
    void *map = NULL;
    d->mapped_bytes = ((size_t)capacity + 1) * sizeof *d->heap;
    int rc = os->map(os->ctx, d->mapped_bytes, KVBM_MAP_LAZY, &map, NULL);
    if (rc != 0)
        return rc;
    d->heap = map;
    return 0;
}

void kvbm_deadlines_close(struct kvbm_deadlines *d) {
    KVBM_ASSERT(d->count == 0);
    if (d->heap != NULL)
        d->os->unmap(d->os->ctx, d->heap, d->mapped_bytes);
    d->heap = NULL;
}

static void place(struct kvbm_deadlines *d, uint32_t slot, struct kvbm_msg *msg) {
    d->heap[slot] = msg;
    msg->deadline_slot = slot;
}

/* Puts `msg` at `slot` or above it. */
static void sift_up(struct kvbm_deadlines *d, uint32_t slot, struct kvbm_msg *msg) {
    while (slot > 1 && d->heap[slot / 2]->deadline_ns > msg->deadline_ns) {
        place(d, slot, d->heap[slot / 2]);
        slot /= 2;
    }
    place(d, slot, msg);
}

/* Puts `msg` at `slot` or below it. */
static void sift_down(struct kvbm_deadlines *d, uint32_t slot, struct kvbm_msg *msg) {
    for (;;) {
        uint64_t child = (uint64_t)slot * 2;
        if (child > d->count)
            break;
        if (child < d->count && d->heap[child + 1]->deadline_ns < d->heap[child]->deadline_ns)
            child++;
        if (d->heap[child]->deadline_ns >= msg->deadline_ns)
            break;
        place(d, slot, d->heap[child]);
        slot = (uint32_t)child;
    }
    place(d, slot, msg);
}

void kvbm_deadlines_arm(struct kvbm_deadlines *d, struct kvbm_msg *msg) {
    KVBM_ASSERT(msg->deadline_ns != 0);
    KVBM_ASSERT_MSG(msg->deadline_slot == KVBM_DEADLINE_NONE, "already armed: op=%llx", (unsigned long long)msg->op);
    KVBM_ASSERT_MSG(d->count < d->capacity, "more armed messages than deadline_capacity=%u", d->capacity);
    d->count++;
    sift_up(d, d->count, msg);
}

void kvbm_deadlines_disarm(struct kvbm_deadlines *d, struct kvbm_msg *msg) {
    uint32_t slot = msg->deadline_slot;
    if (slot == KVBM_DEADLINE_NONE)
        return;
    KVBM_ASSERT(slot <= d->count && d->heap[slot] == msg);
    msg->deadline_slot = KVBM_DEADLINE_NONE;
    struct kvbm_msg *last = d->heap[d->count];
    d->count--;
    if (last == msg)
        return;
    if (slot > 1 && d->heap[slot / 2]->deadline_ns > last->deadline_ns)
        sift_up(d, slot, last);
    else
        sift_down(d, slot, last);
}

uint64_t kvbm_deadlines_next_ns(const struct kvbm_deadlines *d) {
    return d->count == 0 ? KVBM_NO_DEADLINE : d->heap[1]->deadline_ns;
}

struct kvbm_msg *kvbm_deadlines_expire(struct kvbm_deadlines *d, uint64_t now_ns) {
    if (d->count == 0 || d->heap[1]->deadline_ns > now_ns)
        return NULL;
    struct kvbm_msg *msg = d->heap[1];
    kvbm_deadlines_disarm(d, msg);
    return msg;
}
