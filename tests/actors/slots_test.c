/*
 * slots_test.c - the slot word: each step of a block's life, every refusal, and eight threads of holders against an
 * actor.
 */
#include "actors/slots.h"

#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actors/index.h"
#include "tests/support/dies.h"
#include "tests/support/random.h"
#include "tests/support/refusing_os.h"

#define GROUP 3
#define TIER  KVBM_TIER_HOST

static void open_slots(struct kvbm_slots *slots, struct refusing_os *os, uint32_t capacity) {
    refusing_os_init(os);
    ck_assert_int_eq(kvbm_slots_open(slots, &os->os, GROUP, TIER, capacity, 16, false), 0);
}

static void close_slots(struct kvbm_slots *slots, struct refusing_os *os) {
    kvbm_slots_close(slots);
    kvbm_slots_close(slots);
    ck_assert_uint_eq(os->open_maps, 0);
}

static uint64_t word_of(const struct kvbm_slots *slots, kvbm_block block) {
    return atomic_load(&slots->slots[kvbm__block_slot(block)].word);
}

static kvbm_block publish_new(struct kvbm_slots *slots, uint32_t slot, uint32_t entry) {
    kvbm_block block = kvbm_slots_hand_out(slots, slot);
    ck_assert_int_eq(kvbm_slots_claim_mt(slots, block), 0);
    kvbm_slots_publish(slots, slot, entry);
    return block;
}

static unsigned release(struct kvbm_slots *slots, kvbm_block block) {
    unsigned queued = 0xee;
    ck_assert_int_eq(kvbm_slots_release_mt(slots, block, &queued), 0);
    return queued;
}

static void check_stale(struct kvbm_slots *slots, kvbm_block block) {
    unsigned queued = 0xee;
    ck_assert(!kvbm_slots_live_mt(slots, block));
    ck_assert_int_eq(kvbm_slots_release_mt(slots, block, &queued), -KVBM_ESTALE);
    ck_assert_uint_eq(queued, 0);
    ck_assert_int_eq(kvbm_slots_retain_mt(slots, block), -KVBM_ESTALE);
    ck_assert_int_eq(kvbm_slots_claim_mt(slots, block), -KVBM_ESTALE);
}

/* ---------------------------------------------------------------------------------------------------- single facts */

START_TEST(a_handle_names_its_slot_group_tier_and_generation) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 10);
    kvbm_block block = kvbm_slots_hand_out(&slots, 9);
    ck_assert_uint_eq(kvbm__block_slot(block), 9);
    ck_assert_uint_eq(kvbm__block_group(block), GROUP);
    ck_assert_int_eq(kvbm__block_tier(block), TIER);
    ck_assert_uint_eq(kvbm__block_generation(block), 1);
    ck_assert(kvbm_slots_live_mt(&slots, block));
    ck_assert_uint_eq(slots.slots[9].entry, KVBM_ENTRY_NONE);
    ck_assert_uint_eq(slots.slots[9].state_hint, KVBM_SLOT_MUTABLE);
    kvbm_block most = kvbm__block_make(UINT32_MAX, 15, 3, KVBM_SLOT_COUNT_MAX - 1);
    ck_assert_uint_eq(most.bits, UINT64_MAX);
    ck_assert_uint_eq(kvbm__block_slot(most), KVBM_SLOT_COUNT_MAX - 1);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_handle_is_never_the_zero_handle) {
    struct kvbm_slots slots;
    ck_assert_int_eq(kvbm_slots_open(&slots, kvbm_os_real(), 0, 0, 1, 1, false), 0);
    check_stale(&slots, (kvbm_block){0});
    ck_assert_uint_ne(kvbm_slots_hand_out(&slots, 0).bits, 0);
    kvbm_slots_close(&slots);
    /* Nor after 2^32 generations. */
    ck_assert_int_eq(kvbm_slots_open(&slots, kvbm_os_real(), 0, 0, 1, 1, false), 0);
    atomic_store(&slots.slots[0].word, UINT64_C(0xffffffff) << 32);
    kvbm_block block = kvbm_slots_hand_out(&slots, 0);
    ck_assert_uint_eq(kvbm__block_generation(block), 1);
    ck_assert(kvbm_slots_live_mt(&slots, block));
    kvbm_slots_close(&slots);
}
END_TEST

START_TEST(a_released_mutable_block_is_pushed_once_and_then_stale) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 4);
    kvbm_block block = kvbm_slots_hand_out(&slots, 2);
    ck_assert_uint_eq(release(&slots, block), KVBM_RELEASE_PUSH);
    check_stale(&slots, block);
    ck_assert_uint_eq(KVBM_WORD_LEASES(kvbm_slots_unqueue(&slots, 2)), 0);
    check_stale(&slots, block);
    kvbm_slots_reset(&slots, 2);
    check_stale(&slots, block);
    kvbm_block next = kvbm_slots_hand_out(&slots, 2);
    ck_assert_uint_ne(next.bits, block.bits);
    check_stale(&slots, block);
    ck_assert(kvbm_slots_live_mt(&slots, next));
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_handle_of_elsewhere_is_stale) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 4);
    kvbm_block block = kvbm_slots_hand_out(&slots, 2);
    uint32_t generation = kvbm__block_generation(block);
    check_stale(&slots, kvbm__block_make(generation, GROUP + 1, TIER, 2));
    check_stale(&slots, kvbm__block_make(generation, GROUP, KVBM_TIER_DISK, 2));
    check_stale(&slots, kvbm__block_make(generation, GROUP, TIER, 4));
    check_stale(&slots, kvbm__block_make(generation, GROUP, TIER, KVBM_SLOT_COUNT_MAX - 1));
    check_stale(&slots, kvbm__block_make(generation + 1, GROUP, TIER, 2));
    check_stale(&slots, kvbm__block_make(generation - 1, GROUP, TIER, 2));
    check_stale(&slots, kvbm__block_make(generation, GROUP, TIER, 1));
    ck_assert(kvbm_slots_live_mt(&slots, block));
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_claimed_block_belongs_to_its_operation) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 4);
    kvbm_block block = kvbm_slots_hand_out(&slots, 0);
    unsigned queued = 0xee;
    ck_assert_int_eq(kvbm_slots_claim_mt(&slots, block), 0);
    ck_assert_int_eq(kvbm_slots_claim_mt(&slots, block), -KVBM_ENOTOWNED);
    ck_assert_int_eq(kvbm_slots_release_mt(&slots, block, &queued), -KVBM_ENOTOWNED);
    ck_assert_uint_eq(queued, 0);
    ck_assert_int_eq(kvbm_slots_retain_mt(&slots, block), -KVBM_EMUTABLE);
    ck_assert(kvbm_slots_live_mt(&slots, block));
    kvbm_slots_unclaim_mt(&slots, block);
    ck_assert_int_eq(kvbm_slots_claim_mt(&slots, block), 0);
    kvbm_slots_unclaim_mt(&slots, block);
    ck_assert_uint_eq(release(&slots, block), KVBM_RELEASE_PUSH);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_published_block_keeps_its_handle_and_is_shared) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    bool was_unleased = true;
    open_slots(&slots, &os, 4);
    kvbm_block block = publish_new(&slots, 1, 77);
    ck_assert_uint_eq(slots.slots[1].entry, 77);
    ck_assert_uint_eq(slots.slots[1].state_hint, KVBM_SLOT_ACTIVE);
    ck_assert_int_eq(kvbm_slots_claim_mt(&slots, block), -KVBM_EIMMUTABLE);
    ck_assert_int_eq(kvbm_slots_retain_mt(&slots, block), 0);
    ck_assert_uint_eq(kvbm_slots_lease(&slots, 1, &was_unleased).bits, block.bits);
    ck_assert(!was_unleased);
    ck_assert_uint_eq(KVBM_WORD_LEASES(word_of(&slots, block)), 3);
    ck_assert_uint_eq(release(&slots, block), 0);
    ck_assert_uint_eq(release(&slots, block), 0);
    ck_assert_uint_eq(release(&slots, block), KVBM_RELEASE_PUSH | KVBM_RELEASE_LEASE);
    check_stale(&slots, block);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_slot_leased_between_push_and_drain_is_not_pushed_twice) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    bool was_unleased = false;
    open_slots(&slots, &os, 4);
    kvbm_block block = publish_new(&slots, 1, 0);
    ck_assert_uint_eq(release(&slots, block), KVBM_RELEASE_PUSH | KVBM_RELEASE_LEASE);
    ck_assert_uint_eq(kvbm_slots_lease(&slots, 1, &was_unleased).bits, block.bits);
    ck_assert(was_unleased);
    /* Released again while it still stands in the lane: the drain will see it. */
    ck_assert_uint_eq(release(&slots, block), 0);
    (void)kvbm_slots_lease(&slots, 1, &was_unleased);
    ck_assert_uint_eq(KVBM_WORD_LEASES(kvbm_slots_unqueue(&slots, 1)), 1);
    /* After the drain it queues anew. */
    ck_assert_uint_eq(release(&slots, block), KVBM_RELEASE_PUSH | KVBM_RELEASE_LEASE);
    ck_assert_uint_eq(KVBM_WORD_LEASES(kvbm_slots_unqueue(&slots, 1)), 0);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_full_lease_count_is_refused_and_unharmed) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    bool was_unleased;
    open_slots(&slots, &os, 4);
    kvbm_block block = publish_new(&slots, 1, 0);
    atomic_fetch_add(&slots.slots[1].word, KVBM_WORD_LEASE_MASK - 2);
    ck_assert_int_eq(kvbm_slots_retain_mt(&slots, block), 0);
    uint64_t full = word_of(&slots, block);
    ck_assert_uint_eq(KVBM_WORD_LEASES(full), KVBM_WORD_LEASE_MASK);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(kvbm_slots_retain_mt(&slots, block), -KVBM_ELEASES);
        ck_assert_uint_eq(kvbm_slots_lease(&slots, 1, &was_unleased).bits, 0);
        ck_assert(!was_unleased);
        ck_assert_uint_eq(word_of(&slots, block), full);
    }
    ck_assert_uint_eq(release(&slots, block), 0);
    ck_assert_int_eq(kvbm_slots_retain_mt(&slots, block), 0);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(reset_takes_released_claimed_and_cached_slots) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 4);
    kvbm_block released = kvbm_slots_hand_out(&slots, 0);
    (void)release(&slots, released);
    (void)kvbm_slots_unqueue(&slots, 0);
    kvbm_block claimed = kvbm_slots_hand_out(&slots, 1);
    ck_assert_int_eq(kvbm_slots_claim_mt(&slots, claimed), 0);
    atomic_store(&slots.slots[1].token_count, 5);
    kvbm_block cached = publish_new(&slots, 2, 9);
    (void)release(&slots, cached);
    (void)kvbm_slots_unqueue(&slots, 2);
    kvbm_block handles[3] = {released, claimed, cached};
    for (uint32_t slot = 0; slot < 3; slot++) {
        kvbm_slots_reset(&slots, slot);
        check_stale(&slots, handles[slot]);
        ck_assert_uint_eq((uint32_t)atomic_load(&slots.slots[slot].word), 0);
        ck_assert_uint_eq(slots.slots[slot].entry, KVBM_ENTRY_NONE);
        ck_assert_uint_eq(slots.slots[slot].state_hint, KVBM_SLOT_FREE);
        ck_assert_uint_eq(atomic_load(&slots.slots[slot].token_count), 0);
        kvbm_block next = kvbm_slots_hand_out(&slots, slot);
        check_stale(&slots, handles[slot]);
        ck_assert(kvbm_slots_live_mt(&slots, next));
    }
    close_slots(&slots, &os);
}
END_TEST

START_TEST(tokens_are_mapped_only_where_they_are_tracked) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    refusing_os_init(&os);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, 0, 1000, 16, true), 0);
    ck_assert_ptr_nonnull(slots.tokens);
    slots.tokens[1000 * 16 - 1] = 1;
    ck_assert_uint_eq(kvbm_slots_bytes(&slots), os.open_bytes);
    ck_assert_uint_ge(os.open_bytes, 1000 * (24 + 8 + 64));
    kvbm_slots_close(&slots);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, 0, 1000, 16, false), 0);
    ck_assert_ptr_null(slots.tokens);
    ck_assert_uint_eq(kvbm_slots_bytes(&slots), os.open_bytes);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(bad_arguments_are_refused) {
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    refusing_os_init(&os);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, 0, 0, 16, false), -EINVAL);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, 0, KVBM_SLOT_COUNT_MAX + 1, 16, false), -EINVAL);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, 0, 1, 0, false), -EINVAL);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, KVBM_GROUP_COUNT_MAX, 0, 1, 16, false), -EINVAL);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, -1, 1, 16, false), -EINVAL);
    ck_assert_int_eq(kvbm_slots_open(&slots, &os.os, 0, KVBM_TIER_COUNT, 1, 16, false), -EINVAL);
    ck_assert_uint_eq(os.map_count, 0);
    close_slots(&slots, &os);
}
END_TEST

START_TEST(a_refused_map_leaves_nothing_open) {
    uint32_t at = 1;
    for (;; at++) {
        struct refusing_os os = {.map_refuse_at = at};
        struct kvbm_slots slots;
        refusing_os_init(&os);
        int rc = kvbm_slots_open(&slots, &os.os, 0, 0, 100, 16, true);
        if (rc != 0) {
            ck_assert_int_eq(rc, -ENOMEM);
            ck_assert_uint_eq(os.open_maps, 0);
        }
        close_slots(&slots, &os);
        if (rc == 0)
            break;
    }
    ck_assert_uint_eq(at, 5); /* two lanes, slots, tokens */
}
END_TEST

static void hand_out_twice(void *slots) {
    (void)kvbm_slots_hand_out(slots, 0);
    (void)kvbm_slots_hand_out(slots, 0);
}

static void reset_held(void *slots) {
    (void)kvbm_slots_hand_out(slots, 0);
    kvbm_slots_reset(slots, 0);
}

static void reset_queued(void *slots) {
    unsigned queued;
    (void)kvbm_slots_release_mt(slots, kvbm_slots_hand_out(slots, 0), &queued);
    kvbm_slots_reset(slots, 0);
}

static void reset_free(void *slots) {
    kvbm_slots_reset(slots, 0);
}

static void publish_unclaimed(void *slots) {
    (void)kvbm_slots_hand_out(slots, 0);
    kvbm_slots_publish(slots, 0, 0);
}

static void lease_mutable(void *slots) {
    bool was_unleased;
    (void)kvbm_slots_hand_out(slots, 0);
    (void)kvbm_slots_lease(slots, 0, &was_unleased);
}

static void unqueue_unqueued(void *slots) {
    (void)kvbm_slots_hand_out(slots, 0);
    (void)kvbm_slots_unqueue(slots, 0);
}

static void unclaim_unclaimed(void *slots) {
    kvbm_slots_unclaim_mt(slots, kvbm_slots_hand_out(slots, 0));
}

static void hand_out_beyond(void *slots) {
    (void)kvbm_slots_hand_out(slots, 4);
}

START_TEST(misuse_is_a_programming_error) {
    static void (*const misuses[])(void *) = {hand_out_twice,   reset_held,        reset_queued,
                                              reset_free,       publish_unclaimed, lease_mutable,
                                              unqueue_unqueued, unclaim_unclaimed, hand_out_beyond};
    struct refusing_os os = {0};
    struct kvbm_slots slots;
    open_slots(&slots, &os, 4);
    for (size_t i = 0; i < sizeof(misuses) / sizeof(misuses[0]); i++)
        ck_assert_msg(dies(misuses[i], &slots), "misuse %zu went unnoticed", i);
    close_slots(&slots, &os);
}
END_TEST

/* ------------------------------------------------------------------------------ eight threads of holders, one actor */

#define HAMMER_SLOTS   24
#define HAMMER_THREADS 8
#define HAMMER_DRAINS  12000 /* of each lane, before the holders are stopped */
#define HAMMER_BATCH   8

struct hammer {
    struct kvbm_slots slots;
    /* What the actor offers of each slot: a lease is taken by decrementing `leases`; the handle cannot change while one
     * of its leases is not taken. */
    struct {
        _Atomic uint64_t bits;
        _Atomic uint32_t leases;
        _Atomic uint32_t publish; /* 1: its holder claimed it and gave it to the actor */
    } offers[HAMMER_SLOTS];
    uint64_t bytes[HAMMER_SLOTS]; /* a block's content: plain memory, written by its mutable holder only */
    _Atomic uint32_t stop;
    _Atomic uint64_t errors, releases, retains, pushes[2];
    /* The actor's. */
    uint64_t drains[2], grants, resets[2], leases_cached;
    bool cached[HAMMER_SLOTS];
    uint64_t state;
};

struct hammer_thread {
    struct hammer *h;
    struct kvbm_thread thread;
    uint64_t state;
    uint32_t batch[2][HAMMER_BATCH];
    uint32_t batch_count[2];
};

#define EXPECT(h, cond)                                                                                                \
    do {                                                                                                               \
        if (!(cond) && atomic_fetch_add(&(h)->errors, 1) < 5)                                                          \
            (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                                           \
    } while (0)

static void hammer_flush(struct hammer_thread *t, int lane) {
    struct kvbm_slots *slots = &t->h->slots;
    struct kvbm_retlane *to = lane ? &slots->lease_returns : &slots->mutable_returns;
    if (t->batch_count[lane] == 0)
        return;
    atomic_fetch_add_explicit(&t->h->pushes[lane], t->batch_count[lane], memory_order_relaxed);
    kvbm_retlane_push_many_mt(to, t->batch[lane], t->batch_count[lane]);
    t->batch_count[lane] = 0;
}

static void hammer_release(struct hammer_thread *t, kvbm_block block) {
    unsigned queued;
    int rc = kvbm_slots_release_mt(&t->h->slots, block, &queued);
    EXPECT(t->h, rc == 0);
    atomic_fetch_add_explicit(&t->h->releases, 1, memory_order_relaxed);
    if ((queued & KVBM_RELEASE_PUSH) == 0)
        return;
    int lane = (queued & KVBM_RELEASE_LEASE) != 0;
    t->batch[lane][t->batch_count[lane]++] = kvbm__block_slot(block);
    /* Pushed at once or later, as a caller that batches does. */
    if (t->batch_count[lane] == HAMMER_BATCH || random_below(&t->state, 2))
        hammer_flush(t, lane);
}

/* Takes one offered lease: its handle, {0} if none is offered. */
static kvbm_block hammer_take(struct hammer *h, uint32_t slot) {
    uint32_t leases = atomic_load_explicit(&h->offers[slot].leases, memory_order_relaxed);
    do {
        if (leases == 0)
            return (kvbm_block){0};
    } while (!atomic_compare_exchange_weak_explicit(&h->offers[slot].leases, &leases, leases - 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return (kvbm_block){atomic_load_explicit(&h->offers[slot].bits, memory_order_relaxed)};
}

static void hammer_mutable(struct hammer_thread *t, uint32_t slot, kvbm_block block) {
    struct hammer *h = t->h;
    unsigned queued;
    h->bytes[slot] = block.bits;
    EXPECT(h, kvbm_slots_retain_mt(&h->slots, block) == -KVBM_EMUTABLE);
    if (random_below(&t->state, 3) == 0) {
        EXPECT(h, kvbm_slots_claim_mt(&h->slots, block) == 0);
        EXPECT(h, kvbm_slots_claim_mt(&h->slots, block) == -KVBM_ENOTOWNED);
        EXPECT(h, kvbm_slots_release_mt(&h->slots, block, &queued) == -KVBM_ENOTOWNED);
        kvbm_slots_unclaim_mt(&h->slots, block);
    }
    if (random_below(&t->state, 2)) {
        EXPECT(h, kvbm_slots_claim_mt(&h->slots, block) == 0);
        /* Relaxed: that the bytes travel is the claim's business. */
        atomic_store_explicit(&h->offers[slot].publish, 1, memory_order_relaxed);
        return;
    }
    hammer_release(t, block);
    /* Whatever becomes of the slot meanwhile, this handle stays stale. */
    EXPECT(h, kvbm_slots_release_mt(&h->slots, block, &queued) == -KVBM_ESTALE);
    EXPECT(h, kvbm_slots_retain_mt(&h->slots, block) == -KVBM_ESTALE);
    EXPECT(h, kvbm_slots_claim_mt(&h->slots, block) == -KVBM_ESTALE);
    EXPECT(h, !kvbm_slots_live_mt(&h->slots, block));
}

static void hammer_registered(struct hammer_thread *t, uint32_t slot, kvbm_block block) {
    struct hammer *h = t->h;
    uint32_t held = 1;
    for (uint32_t more = random_below(&t->state, 3); more > 0; more--, held++) {
        EXPECT(h, kvbm_slots_retain_mt(&h->slots, block) == 0);
        atomic_fetch_add_explicit(&h->retains, 1, memory_order_relaxed);
    }
    EXPECT(h, kvbm_slots_claim_mt(&h->slots, block) == -KVBM_EIMMUTABLE);
    for (; held > 0; held--) {
        EXPECT(h, h->bytes[slot] == block.bits); /* the content of this handle, up to its last lease */
        hammer_release(t, block);
    }
}

static void hammer_run(void *arg) {
    struct hammer_thread *t = arg;
    struct hammer *h = t->h;
    while (!atomic_load_explicit(&h->stop, memory_order_relaxed)) {
        uint32_t slot = random_below(&t->state, HAMMER_SLOTS);
        kvbm_block block = hammer_take(h, slot);
        if (block.bits == 0) {
            hammer_flush(t, 0);
            hammer_flush(t, 1);
            (void)sched_yield();
            continue;
        }
        /* A holder sees its own block's kind in the word; acquire, as kvbm_slots_live_mt. */
        EXPECT(h, kvbm_slots_live_mt(&h->slots, block));
        if ((word_of(&h->slots, block) & KVBM_WORD_REGISTERED) == 0)
            hammer_mutable(t, slot, block);
        else
            hammer_registered(t, slot, block);
    }
    hammer_flush(t, 0);
    hammer_flush(t, 1);
}

static void hammer_offer(struct hammer *h, kvbm_block block) {
    uint32_t slot = kvbm__block_slot(block);
    EXPECT(h, block.bits != 0);
    h->grants++;
    atomic_store_explicit(&h->offers[slot].bits, block.bits, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->offers[slot].leases, 1, memory_order_release);
}

static void on_mutable_return(void *arg, uint32_t slot) {
    struct hammer *h = arg;
    uint64_t word = kvbm_slots_unqueue(&h->slots, slot);
    h->drains[0]++;
    EXPECT(h, KVBM_WORD_LEASES(word) == 0);
    EXPECT(h, (word & KVBM_WORD_REGISTERED) == 0);
    EXPECT(h, !h->cached[slot]);
    kvbm_slots_reset(&h->slots, slot);
    h->resets[0]++;
    hammer_offer(h, kvbm_slots_hand_out(&h->slots, slot));
}

static void on_lease_return(void *arg, uint32_t slot) {
    struct hammer *h = arg;
    uint64_t word = kvbm_slots_unqueue(&h->slots, slot);
    h->drains[1]++;
    EXPECT(h, (word & KVBM_WORD_REGISTERED) != 0);
    EXPECT(h, !h->cached[slot]); /* else it was in the lane twice */
    h->cached[slot] = KVBM_WORD_LEASES(word) == 0;
}

static void hammer_slot_turn(struct hammer *h, uint32_t slot) {
    bool was_unleased;
    if (atomic_load_explicit(&h->offers[slot].publish, memory_order_relaxed)) {
        atomic_store_explicit(&h->offers[slot].publish, 0, memory_order_relaxed);
        kvbm_slots_publish(&h->slots, slot, slot);
        kvbm_block block = {atomic_load_explicit(&h->offers[slot].bits, memory_order_relaxed)};
        EXPECT(h, h->bytes[slot] == block.bits);
        h->grants--; /* the lease of the mutable block goes on */
        hammer_offer(h, block);
    } else if (h->slots.slots[slot].state_hint == KVBM_SLOT_ACTIVE && random_below(&h->state, 4) == 0 &&
               atomic_load_explicit(&h->offers[slot].leases, memory_order_relaxed) < 2) {
        /* Perhaps in the lane, perhaps cached, perhaps leased. Few at a time, so that the last lease ends often. */
        bool was_cached = h->cached[slot];
        kvbm_block block = kvbm_slots_lease(&h->slots, slot, &was_unleased);
        EXPECT(h, was_unleased || !was_cached);
        h->leases_cached += was_cached;
        h->cached[slot] = false;
        hammer_offer(h, block);
    } else if (h->cached[slot] && random_below(&h->state, 4) == 0) {
        h->cached[slot] = false;
        kvbm_slots_reset(&h->slots, slot);
        h->resets[1]++;
        hammer_offer(h, kvbm_slots_hand_out(&h->slots, slot));
    }
}

/* The holders are gone: takes what is still offered, publishes what was claimed, and drains until nothing moves. */
static void hammer_settle(struct hammer *h) {
    struct hammer_thread t = {.h = h, .state = 99};
    for (uint32_t slot = 0; slot < HAMMER_SLOTS; slot++) {
        if (atomic_load(&h->offers[slot].publish))
            hammer_slot_turn(h, slot);
        for (kvbm_block block; (block = hammer_take(h, slot)).bits != 0;)
            hammer_release(&t, block);
    }
    hammer_flush(&t, 0);
    hammer_flush(&t, 1);
    (void)kvbm_retlane_drain(&h->slots.lease_returns, on_lease_return, h);
    (void)kvbm_retlane_drain(&h->slots.mutable_returns, on_mutable_return, h);
    for (uint32_t slot = 0; slot < HAMMER_SLOTS; slot++) {
        uint64_t word = atomic_load(&h->slots.slots[slot].word);
        ck_assert_uint_eq(word & KVBM_WORD_QUEUED, 0);
        if (word & KVBM_WORD_REGISTERED)
            ck_assert(h->cached[slot] && KVBM_WORD_LEASES(word) == 0);
        else
            ck_assert(KVBM_WORD_LEASES(word) == 1); /* handed out by the last drain */
    }
}

START_TEST(every_release_reaches_its_lane_exactly_once) {
    static struct hammer h;
    struct hammer_thread threads[HAMMER_THREADS];
    struct refusing_os os = {0};
    h = (struct hammer){.state = 1};
    refusing_os_init(&os);
    ck_assert_int_eq(kvbm_slots_open(&h.slots, &os.os, GROUP, TIER, HAMMER_SLOTS, 16, false), 0);
    for (uint32_t slot = 0; slot < HAMMER_SLOTS; slot++)
        hammer_offer(&h, kvbm_slots_hand_out(&h.slots, slot));
    for (int i = 0; i < HAMMER_THREADS; i++) {
        threads[i] = (struct hammer_thread){.h = &h, .state = (uint64_t)i + 1000};
        ck_assert_int_eq(os.os.thread_start(os.os.ctx, &threads[i].thread, hammer_run, &threads[i], "holder"), 0);
    }
    while (h.drains[0] < HAMMER_DRAINS || h.drains[1] < HAMMER_DRAINS) {
        (void)kvbm_retlane_drain(&h.slots.mutable_returns, on_mutable_return, &h);
        (void)kvbm_retlane_drain(&h.slots.lease_returns, on_lease_return, &h);
        for (uint32_t slot = 0; slot < HAMMER_SLOTS; slot++)
            hammer_slot_turn(&h, slot);
        (void)sched_yield();
    }
    atomic_store(&h.stop, 1);
    for (int i = 0; i < HAMMER_THREADS; i++)
        os.os.thread_join(os.os.ctx, &threads[i].thread);
    hammer_settle(&h);
    ck_assert_uint_eq(atomic_load(&h.errors), 0);
    ck_assert_uint_eq(h.drains[0], atomic_load(&h.pushes[0]));
    ck_assert_uint_eq(h.drains[1], atomic_load(&h.pushes[1]));
    uint64_t left = 0;
    for (uint32_t slot = 0; slot < HAMMER_SLOTS; slot++)
        left += KVBM_WORD_LEASES(atomic_load(&h.slots.slots[slot].word));
    ck_assert_uint_eq(h.grants + atomic_load(&h.retains), atomic_load(&h.releases) + left);
    /* It did what it is for. */
    ck_assert_uint_gt(h.resets[1], 100);
    ck_assert_uint_gt(h.leases_cached, 100);
    close_slots(&h.slots, &os);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("slots");
    TCase *tc = tcase_create("slots");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 240);
    tcase_add_test(tc, a_handle_names_its_slot_group_tier_and_generation);
    tcase_add_test(tc, a_handle_is_never_the_zero_handle);
    tcase_add_test(tc, a_released_mutable_block_is_pushed_once_and_then_stale);
    tcase_add_test(tc, a_handle_of_elsewhere_is_stale);
    tcase_add_test(tc, a_claimed_block_belongs_to_its_operation);
    tcase_add_test(tc, a_published_block_keeps_its_handle_and_is_shared);
    tcase_add_test(tc, a_slot_leased_between_push_and_drain_is_not_pushed_twice);
    tcase_add_test(tc, a_full_lease_count_is_refused_and_unharmed);
    tcase_add_test(tc, reset_takes_released_claimed_and_cached_slots);
    tcase_add_test(tc, tokens_are_mapped_only_where_they_are_tracked);
    tcase_add_test(tc, bad_arguments_are_refused);
    tcase_add_test(tc, a_refused_map_leaves_nothing_open);
    tcase_add_test(tc, misuse_is_a_programming_error);
    tcase_add_test(tc, every_release_reaches_its_lane_exactly_once);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
