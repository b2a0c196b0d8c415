/*
 * mailbox.c - the lanes into one reactor. Owns one map with the rings. Producers: any thread. Consumer: the reactor's
 * owner.
 *
 * The rings' indices are moved by concurrencykit's inline assembly. Each slot is written between an acquire and a
 * release annotation and read between the same two, so ThreadSanitizer sees exactly the hand-over that the indices
 * make.
 */
#include "runtime/mailbox.h"

#include <ck_ring.h>
#include <errno.h>

#include "runtime/fence_internal.h"
#include "runtime/log.h"
#include "runtime/stack_internal.h"

#define DATA_CURSOR  KVBM_THREAD_COUNT_MAX /* the data lane's place in the round robin, after the thread lanes */
#define CURSOR_COUNT (KVBM_THREAD_COUNT_MAX + 1)

struct kvbm_lane {
    _Alignas(KVBM_CACHE_LINE_BYTES) ck_ring_t ring;
    ck_ring_buffer_t slots[];
};

/* ------------------------------------------------------------------------------------------------------------ lanes */

/* The lane's one producer. */
static int lane_post(struct kvbm_lane *lane, struct kvbm_msg *msg) {
    ck_ring_buffer_t *slot = ck_ring_enqueue_reserve_spsc(&lane->ring, lane->slots);
    if (slot == NULL)
        return -EAGAIN;
    KVBM__TSAN_ACQUIRE(slot); /* pairs with the release in lane_take: the slot's last reader is done */
    slot->value = msg;
    KVBM__TSAN_RELEASE(slot);                 /* pairs with the acquire in lane_take */
    ck_ring_enqueue_commit_spsc(&lane->ring); /* store fence, tail; pairs with the tail load in lane_take */
    return 0;
}

static bool lane_empty(const struct kvbm_lane *lane) {
    return ck_pr_load_uint(&lane->ring.c_head) == ck_pr_load_uint(&lane->ring.p_tail);
}

static struct kvbm_msg *lane_take(struct kvbm_lane *lane) {
    struct kvbm_msg *msg = NULL;
    if (lane_empty(lane))
        return NULL;
    ck_ring_buffer_t *slot = &lane->slots[lane->ring.c_head & lane->ring.mask];
    KVBM__TSAN_ACQUIRE(slot); /* pairs with the release in lane_post, which precedes the tail just read */
    bool taken = ck_ring_dequeue_spsc(&lane->ring, lane->slots, &msg);
    KVBM__TSAN_RELEASE(slot); /* pairs with the acquire in lane_post, one lap later */
    KVBM_ASSERT(taken && msg != NULL);
    return msg;
}

/* ----------------------------------------------------------------------------------------------------------- stacks */

/* A place in a stack that holds at most `limit` messages. The consumer's count may be old, which errs towards full. */
static bool reserve(_Atomic uint32_t *reserved, const _Atomic uint32_t *taken, uint32_t limit) {
    /* Relaxed throughout: a bound; the push publishes the message. */
    uint32_t before = atomic_load_explicit(reserved, memory_order_relaxed);
    do {
        if (before - atomic_load_explicit(taken, memory_order_relaxed) >= limit)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(reserved, &before, before + 1, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

/* Consumer: gives a place free. One writer. */
static void give_place(_Atomic uint32_t *taken) {
    atomic_store_explicit(taken, atomic_load_explicit(taken, memory_order_relaxed) + 1, memory_order_relaxed);
}

static uint32_t places_used(const _Atomic uint32_t *reserved, const _Atomic uint32_t *taken) {
    uint32_t before = atomic_load_explicit(taken, memory_order_relaxed);
    return atomic_load_explicit(reserved, memory_order_relaxed) - before;
}

/* Relaxed: a hint, or after a fence of the caller's. */
static bool stack_empty(const _Atomic(struct kvbm_msg *) *stack, const _Atomic(struct kvbm_msg *) *fifo) {
    return atomic_load_explicit(stack, memory_order_relaxed) == NULL &&
           atomic_load_explicit(fifo, memory_order_relaxed) == NULL;
}

/* Consumer: takes the oldest: from `fifo`, which is refilled from `stack` when it is empty. */
static struct kvbm_msg *stack_take(_Atomic(struct kvbm_msg *) *stack, _Atomic(struct kvbm_msg *) *fifo) {
    struct kvbm_msg *msg = atomic_load_explicit(fifo, memory_order_relaxed);
    if (msg == NULL)
        msg = kvbm__stack_take_all(stack);
    if (msg != NULL)
        atomic_store_explicit(fifo, msg->next, memory_order_relaxed);
    return msg;
}

/* ----------------------------------------------------------------------------------------------------- open, close */

static bool is_capacity(uint32_t n) {
    return n >= 4 && n <= 1u << 24 && (n & (n - 1)) == 0;
}

static size_t lane_bytes(uint32_t capacity) {
    size_t bytes = sizeof(struct kvbm_lane) + (size_t)capacity * sizeof(ck_ring_buffer_t);
    return (bytes + KVBM_CACHE_LINE_BYTES - 1) & ~(size_t)(KVBM_CACHE_LINE_BYTES - 1);
}

static struct kvbm_lane *lane_place(unsigned char **at, uint32_t capacity) {
    struct kvbm_lane *lane = (void *)*at;
    *at += lane_bytes(capacity);
    ck_ring_init(&lane->ring, capacity);
    return lane;
}

int kvbm_mailbox_open(struct kvbm_mailbox *box, const struct kvbm_os *os, const struct kvbm_mailbox_options *options) {
    if (!is_capacity(options->control_capacity) || !is_capacity(options->data_capacity) ||
        !is_capacity(options->thread_capacity) || options->lane_batch == 0)
        return -EINVAL;
    *box = (struct kvbm_mailbox){.os = os, .options = *options};
    box->arena_bytes = KVBM_THREAD_COUNT_MAX * lane_bytes(options->thread_capacity);
    int rc = os->map(os->ctx, box->arena_bytes, KVBM_MAP_LAZY, &box->arena, NULL);
    if (rc != 0)
        return rc;
    unsigned char *at = box->arena;
    for (uint32_t i = 0; i < KVBM_THREAD_COUNT_MAX; i++)
        box->threads[i] = lane_place(&at, options->thread_capacity);
    KVBM_ASSERT(at == (unsigned char *)box->arena + box->arena_bytes);
    return 0;
}

void kvbm_mailbox_close(struct kvbm_mailbox *box) {
    KVBM_ASSERT(kvbm_mailbox_depth_mt(box) == 0);
    KVBM_ASSERT(stack_empty(&box->replies, &box->reply_fifo));
    KVBM_ASSERT(stack_empty(&box->credit_waiters, &box->credit_fifo));
    box->os->unmap(box->os->ctx, box->arena, box->arena_bytes);
    box->arena = NULL;
}

/* ------------------------------------------------------------------------------------------------------------- post */

int kvbm_mailbox_post_control_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg) {
    if (!reserve(&box->control_reserved, &box->control_taken, box->options.control_capacity - 1))
        return -EAGAIN;
    kvbm__stack_push_mt(&box->control, msg);
    kvbm__fence_after_rmw(); /* pairs with the fence after PARKED in reactor.c */
    return 0;
}

int kvbm_mailbox_post_data_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg) {
    if (!reserve(&box->data_reserved, &box->data_taken, box->options.data_capacity - 1))
        return -EAGAIN;
    kvbm__stack_push_mt(&box->data, msg);
    kvbm__fence_after_rmw(); /* pairs with the fence after PARKED in reactor.c */
    return 0;
}

int kvbm_mailbox_post_thread_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg) {
    int number = kvbm_os_thread_number_mt();
    if (number < 0)
        return kvbm_mailbox_post_data_mt(box, msg);
    int rc = lane_post(box->threads[number], msg);
    if (rc != 0)
        return rc;
    /* After the enqueue, and always: a bit seen set may be about to be cleared. Pairs with the fetch_and in
     * thread_lane_done (whichever comes second sees the other) and, as a full fence, with the one after PARKED. */
    atomic_fetch_or_explicit(&box->threads_dirty, 1ull << number, memory_order_seq_cst);
    kvbm__fence_after_rmw();
    return 0;
}

void kvbm_mailbox_post_reply_mt(struct kvbm_mailbox *box, struct kvbm_msg *msg) {
    kvbm__stack_push_mt(&box->replies, msg);
    kvbm__fence_after_rmw(); /* pairs with the fence after PARKED in reactor.c */
}

void kvbm_mailbox_want_credit_mt(struct kvbm_mailbox *box, struct kvbm_msg *credit) {
    kvbm__stack_push_mt(&box->credit_waiters, credit);
    kvbm__fence_after_rmw(); /* pairs with the fence after PARKED in reactor.c */
}

/* ------------------------------------------------------------------------------------------------------------- take */

static struct kvbm_msg *data_take(struct kvbm_mailbox *box) {
    struct kvbm_msg *msg = stack_take(&box->data, &box->data_fifo);
    if (msg != NULL)
        give_place(&box->data_taken);
    return msg;
}

static struct kvbm_msg *control_take(struct kvbm_mailbox *box) {
    struct kvbm_msg *msg = stack_take(&box->control, &box->control_fifo);
    if (msg != NULL)
        give_place(&box->control_taken);
    return msg;
}

/* Thread lane `n` was found empty: forgets it, unless its producer came again meanwhile. */
static struct kvbm_msg *thread_lane_done(struct kvbm_mailbox *box, uint32_t n) {
    /* Pairs with the fetch_or in kvbm_mailbox_post_thread_mt: if that came first, its message is seen below; if it
     * comes later, the bit stays set. */
    atomic_fetch_and_explicit(&box->threads_dirty, ~(1ull << n), memory_order_seq_cst);
    struct kvbm_msg *msg = lane_take(box->threads[n]);
    if (msg != NULL)
        atomic_fetch_or_explicit(&box->threads_dirty, 1ull << n, memory_order_relaxed); /* consumer's own note */
    return msg;
}

/* The first lane at or after `from` that may hold messages, CURSOR_COUNT if none up to the data lane does. */
static uint32_t lane_next(const struct kvbm_mailbox *box, uint32_t from, uint64_t dirty) {
    uint64_t ahead = from < KVBM_THREAD_COUNT_MAX ? dirty >> from : 0;
    if (ahead != 0)
        return from + (uint32_t)__builtin_ctzll(ahead);
    return from <= DATA_CURSOR && !stack_empty(&box->data, &box->data_fifo) ? DATA_CURSOR : CURSOR_COUNT;
}

/* Round robin over thread lanes and data lane, lane_batch messages of one before the next. */
static struct kvbm_msg *round_robin_take(struct kvbm_mailbox *box) {
    for (;;) {
        /* Relaxed: a bit not yet seen is seen by the re-check after parking. */
        uint64_t dirty = atomic_load_explicit(&box->threads_dirty, memory_order_relaxed);
        if (dirty == 0 && stack_empty(&box->data, &box->data_fifo))
            return NULL;
        if (box->cursor_left == 0) {
            box->cursor++;
            box->cursor_left = box->options.lane_batch;
        }
        uint32_t lane = lane_next(box, box->cursor, dirty);
        if (lane == CURSOR_COUNT)
            lane = lane_next(box, 0, dirty);
        KVBM_ASSERT(lane < CURSOR_COUNT);
        if (lane != box->cursor) {
            box->cursor = lane;
            box->cursor_left = box->options.lane_batch;
        }
        struct kvbm_msg *msg = lane == DATA_CURSOR ? data_take(box) : lane_take(box->threads[lane]);
        if (msg == NULL && lane != DATA_CURSOR)
            msg = thread_lane_done(box, lane);
        if (msg != NULL) {
            box->cursor_left--;
            return msg;
        }
        box->cursor_left = 0;
    }
}

struct kvbm_msg *kvbm_mailbox_take(struct kvbm_mailbox *box) {
    struct kvbm_msg *msg = stack_take(&box->replies, &box->reply_fifo);
    if (msg == NULL)
        msg = control_take(box);
    if (msg == NULL)
        msg = round_robin_take(box);
    return msg;
}

static bool credit_due(const struct kvbm_mailbox *box) {
    return places_used(&box->data_reserved, &box->data_taken) <= box->options.data_capacity / 2;
}

struct kvbm_msg *kvbm_mailbox_take_credit(struct kvbm_mailbox *box) {
    if (stack_empty(&box->credit_waiters, &box->credit_fifo) || !credit_due(box))
        return NULL;
    return stack_take(&box->credit_waiters, &box->credit_fifo);
}

bool kvbm_mailbox_empty_mt(const struct kvbm_mailbox *box) {
    /* All relaxed: after a fence of the caller's (pairs with the one at the end of each post), or a hint. */
    if (!stack_empty(&box->replies, &box->reply_fifo) || !stack_empty(&box->control, &box->control_fifo) ||
        !stack_empty(&box->data, &box->data_fifo))
        return false;
    /* A bit may outlive the messages it told of. */
    uint64_t dirty = atomic_load_explicit(&box->threads_dirty, memory_order_relaxed);
    for (; dirty != 0; dirty &= dirty - 1) {
        if (!lane_empty(box->threads[__builtin_ctzll(dirty)]))
            return false;
    }
    return stack_empty(&box->credit_waiters, &box->credit_fifo) || !credit_due(box);
}

uint32_t kvbm_mailbox_depth_mt(const struct kvbm_mailbox *box) {
    uint32_t depth =
        places_used(&box->control_reserved, &box->control_taken) + places_used(&box->data_reserved, &box->data_taken);
    for (uint32_t i = 0; i < KVBM_THREAD_COUNT_MAX; i++)
        depth += ck_ring_size(&box->threads[i]->ring);
    return depth;
}
