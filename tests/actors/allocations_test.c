/*
 * allocations_test.c - no allocation on the data path: counted at glibc's allocator and at the table's map, over every
 * operation, answered inline, by callback, by port, by the reactor's thread, with waiting, cancelling and eviction.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "actors/manager.h"
#include "tests/actors/kit.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTED 0
#endif
#endif
#ifndef COUNTED
#define COUNTED 1
#endif

static _Atomic uint64_t allocation_count;

#if COUNTED
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_memalign(alignment, size);
}
#endif

#define BLOCKS 64

static struct {
    kvbm_manager *m;
    kvbm_port *port;
    kvbm_block blocks[BLOCKS];
    kvbm_key keys[BLOCKS], made[BLOCKS];
    uint8_t tiers[BLOCKS];
    struct kit_done done;
} t;

/* Check allocates for every assertion that it makes: these do not. */
#define MUST(cond) KVBM_ASSERT(cond)

static void drain(uint32_t wanted) {
    kvbm_completion c[4];
    for (uint32_t seen = 0; seen < wanted;) {
        int n = kvbm_port_drain(t.port, c, 4);
        struct pollfd fd = {.fd = kvbm_port_fd(t.port), .events = POLLIN};
        if (n == 0)
            MUST(poll(&fd, 1, 20000) == 1);
        seen += (uint32_t)n;
    }
}

static int complete(int rc, const kvbm_op *op, kvbm_completion *c) {
    if (rc == 0)
        rc = kvbm_wait_mt(t.m, *op, 60 * KIT_SECOND_NS, c);
    return rc < 0 ? rc : c->status;
}

static void every_operation_once(uint32_t round) {
    kvbm_op op;
    kvbm_completion c;
    kvbm_submit in_line = {.size = sizeof(in_line), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    kvbm_submit port = {.size = sizeof(port), .port = t.port};
    kvbm_submit plain = {.size = sizeof(plain)};
    kvbm_submit waiting = {.size = sizeof(waiting), .flags = KVBM_SUBMIT_WAIT, .port = t.port};
    kvbm_allocate_args a = {.size = sizeof(a), .tier = KVBM_TIER_HOST, .count = BLOCKS / 2, .blocks = t.blocks};
    MUST(complete(kvbm_allocate_mt(t.m, &a, &in_line, &op), &op, &c) == 0);
    a.blocks = t.blocks + BLOCKS / 2;
    MUST(kvbm_allocate_mt(t.m, &a, &port, NULL) == 0);
    drain(1);
    /* All are out: one waits, times out or is cancelled. */
    kvbm_block none;
    a.count = 1, a.blocks = &none;
    waiting.timeout_ns = round % 2 ? 1000 : 0;
    MUST(kvbm_allocate_mt(t.m, &a, &waiting, &op) == 0);
    MUST(kvbm_cancel_mt(t.m, op) == 0);
    drain(1);
    kvbm_register_args r = {
        .size = sizeof(r), .count = BLOCKS / 2, .blocks = t.blocks, .out_blocks = t.blocks, .keys = t.keys + round % 8};
    MUST(complete(kvbm_register_mt(t.m, &r, &plain, &op), &op, &c) == 0);
    r.blocks = r.out_blocks = t.blocks + BLOCKS / 2;
    r.keys = NULL, r.out_keys = t.made, r.flags = KVBM_REGISTER_ANONYMOUS;
    MUST(kvbm_register_mt(t.m, &r, &port, NULL) == 0);
    drain(1);
    MUST(kvbm_block_retain_mt(t.m, t.blocks, BLOCKS) == 0);
    MUST(kvbm_release_mt(t.m, t.blocks, BLOCKS) == 0);
    MUST(kvbm_release_mt(t.m, t.blocks, BLOCKS) == 0);
    kvbm_match_args mt = {.size = sizeof(mt), .count = BLOCKS / 2, .keys = t.keys + round % 8, .blocks = t.blocks};
    MUST(complete(kvbm_match_mt(t.m, &mt, &in_line, &op), &op, &c) == 0 && c.count == BLOCKS / 2);
    MUST(kvbm_release_mt(t.m, t.blocks, c.count) == 0);
    kvbm_query_args q = {.size = sizeof(q), .count = BLOCKS / 2, .keys = t.made, .tiers = t.tiers};
    MUST(kvbm_query_mt(t.m, &q, &port, NULL) == 0);
    drain(1);
    MUST(kvbm_port_want_credit_mt(t.port, t.m, NULL) == 0);
    drain(1);
    kvbm_pool_stats p = {.size = sizeof(p)};
    kvbm_stats s = {.size = sizeof(s)};
    MUST(kvbm_pool_stats_mt(t.m, 0, KVBM_TIER_HOST, &p) == 0 && kvbm_manager_stats_mt(t.m, &s) == 0);
    MUST(kvbm_pool_available_mt(t.m, 0, KVBM_TIER_HOST) == BLOCKS);
}

START_TEST(data_path_allocates_nothing) {
    for (int borrow = 0; borrow < 2; borrow++) {
        kvbm_group_options group;
        kvbm_options options = kit_options(&group, BLOCKS);
        options.flags |= borrow ? 0 : KVBM_OPEN_NO_BORROW;
        memset(&t, 0, sizeof(t));
        t.m = kit_open_with(&options);
        ck_assert_int_eq(kvbm_port_open(32, &t.port), 0);
        kit_keys(3, 0, BLOCKS, t.keys);
        every_operation_once(0); /* the first use of the C library's own lazily made things */
        uint64_t before = atomic_load(&allocation_count);
        for (uint32_t round = 1; round < 200; round++)
            every_operation_once(round);
        uint64_t after = atomic_load(&allocation_count);
        ck_assert_uint_eq(after - before, 0);
        kvbm_port_close(t.port);
        kit_end(t.m);
    }
#if COUNTED
    ck_assert_uint_gt(allocation_count, 0); /* it does count */
#endif
}
END_TEST

KIT_MAIN("allocations", data_path_allocates_nothing)
