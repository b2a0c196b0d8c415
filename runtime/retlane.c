/*
 * retlane.c - return lane: an index stack with one link per id, taken whole and reversed. Push: any thread.
 */
#include "runtime/retlane.h"

#include <errno.h>

#include "runtime/log.h"

int kvbm_retlane_open(struct kvbm_retlane *lane, const struct kvbm_os *os, uint32_t capacity) {
    if (capacity == 0 || capacity == KVBM_RETLANE_END)
        return -EINVAL;
    *lane = (struct kvbm_retlane){.os = os, .capacity = capacity};
    atomic_init(&lane->head, KVBM_RETLANE_END);
    void *map = NULL;
    lane->mapped_bytes = (size_t)capacity * sizeof *lane->links;
    int rc = os->map(os->ctx, lane->mapped_bytes, KVBM_MAP_LAZY, &map, NULL);
    if (rc != 0)
        return rc;
    lane->links = map;
    return 0;
}

void kvbm_retlane_close(struct kvbm_retlane *lane) {
    KVBM_ASSERT(kvbm_retlane_empty_mt(lane));
    lane->os->unmap(lane->os->ctx, (void *)lane->links, lane->mapped_bytes);
    lane->links = NULL;
}

/* Pushes the chain first .. last, whose inner links are set; `first` will be handed out last. */
static void push_chain(struct kvbm_retlane *lane, uint32_t first, uint32_t last) {
    uint32_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);
    do {
        atomic_store_explicit(&lane->links[last], head, memory_order_relaxed);
        /* Release: publishes the links and whatever the ids name; pairs with the acquire exchange in drain.
         * Sequentially consistent: the fence of kvbm_reactor_returned_mt. */
    } while (
        !atomic_compare_exchange_weak_explicit(&lane->head, &head, first, memory_order_seq_cst, memory_order_relaxed));
}

void kvbm_retlane_push_mt(struct kvbm_retlane *lane, uint32_t id) {
    KVBM_ASSERT(id < lane->capacity);
    push_chain(lane, id, id);
}

void kvbm_retlane_push_many_mt(struct kvbm_retlane *lane, const uint32_t *ids, uint32_t count) {
    if (count == 0)
        return;
    KVBM_ASSERT(ids[0] < lane->capacity);
    for (uint32_t i = 1; i < count; i++) {
        KVBM_ASSERT(ids[i] < lane->capacity);
        /* Relaxed: the exchange of the head publishes it. */
        atomic_store_explicit(&lane->links[ids[i]], ids[i - 1], memory_order_relaxed);
    }
    push_chain(lane, ids[count - 1], ids[0]);
}

bool kvbm_retlane_empty_mt(const struct kvbm_retlane *lane) {
    /* Relaxed: a hint, or after a fence of the caller's. */
    return atomic_load_explicit(&lane->head, memory_order_relaxed) == KVBM_RETLANE_END;
}

uint32_t kvbm_retlane_drain(struct kvbm_retlane *lane, void (*fn)(void *arg, uint32_t id), void *arg) {
    if (kvbm_retlane_empty_mt(lane))
        return 0;
    /* Acquire: pairs with the release of every push in the chain (read-modify-writes continue a release sequence). */
    uint32_t id = atomic_exchange_explicit(&lane->head, KVBM_RETLANE_END, memory_order_acquire);
    uint32_t fifo = KVBM_RETLANE_END;
    while (id != KVBM_RETLANE_END) {
        uint32_t next = atomic_load_explicit(&lane->links[id], memory_order_relaxed);
        atomic_store_explicit(&lane->links[id], fifo, memory_order_relaxed);
        fifo = id;
        id = next;
    }
    uint32_t count = 0;
    while (fifo != KVBM_RETLANE_END) {
        uint32_t next =
            atomic_load_explicit(&lane->links[fifo], memory_order_relaxed); /* before fn: it may be pushed */
        fn(arg, fifo);
        fifo = next;
        count++;
        KVBM_ASSERT_MSG(count <= lane->capacity, "an id stands twice in a return lane");
    }
    return count;
}
