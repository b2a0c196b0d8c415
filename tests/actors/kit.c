/*
 * kit.c - see kit.h.
 */
#include "tests/actors/kit.h"

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "runtime/reactor.h"

kvbm_group_options kit_group(uint64_t host_blocks) {
    return (kvbm_group_options){.size = sizeof(kvbm_group_options),
                                .geometry = {.num_layers = 2,
                                             .outer_dim = 2,
                                             .page_size = KIT_PAGE_SIZE,
                                             .inner_dim = 8,
                                             .dtype = KVBM_DTYPE_FP16,
                                             .form = KVBM_LAYOUT_FULLY_CONTIGUOUS},
                                .host_blocks = host_blocks};
}

kvbm_options kit_options(kvbm_group_options *group, uint64_t host_blocks) {
    *group = kit_group(host_blocks);
    return (kvbm_options){.size = sizeof(kvbm_options),
                          .groups = group,
                          .group_count = 1,
                          .flags = KVBM_OPEN_NO_BYTES | KVBM_OPEN_TRACK_TOKENS,
                          .max_operations = 256,
                          .log_level = 4};
}

kvbm_manager *kit_open_with(const kvbm_options *options) {
    kvbm_manager *manager = NULL;
    kvbm_failure failure = {.size = sizeof(failure)};
    int rc = kvbm_manager_open(options, &manager, &failure);
    ck_assert_msg(rc == 0, "open: %d %s", rc, failure.text);
    return manager;
}

kvbm_manager *kit_open(uint64_t host_blocks) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, host_blocks);
    return kit_open_with(&options);
}

void kit_check(kvbm_manager *manager) {
    char text[2000];
    uint64_t violations = kvbm__manager_check(manager, text, sizeof(text));
    ck_assert_msg(violations == 0, "%llu violations:\n%s", (unsigned long long)violations, text);
}

void kit_end(kvbm_manager *manager) {
    ck_assert_int_eq(kvbm_manager_close_mt(manager, 20 * KIT_SECOND_NS), 0);
    kit_check(manager);
    kvbm_manager_release_mt(manager);
}

/* ----------------------------------------------------------------------------------------------------------- driven */

static uint64_t drive_now(void *ctx) {
    return atomic_load(&((struct kit_drive *)ctx)->now_ns);
}

static void drive_wake(void *ctx) {
    atomic_fetch_add(&((struct kit_drive *)ctx)->wakes, 1);
}

kvbm_manager *kit_driven_with(struct kit_drive *drive, const kvbm_options *options, uint32_t thread_capacity) {
    drive->os = *kvbm_os_real();
    drive->os.ctx = drive;
    drive->os.now_ns = drive_now;
    atomic_store(&drive->now_ns, 1000 * KIT_SECOND_NS);
    atomic_store(&drive->wakes, 0);
    struct kvbm__drive d = {.os = &drive->os, .wake = drive_wake, .ctx = drive, .thread_capacity = thread_capacity};
    kvbm_failure failure = {.size = sizeof(failure)};
    int rc = kvbm__manager_open_driven(options, &d, &drive->manager, &failure);
    ck_assert_msg(rc == 0, "open: %d %s", rc, failure.text);
    kit_park(drive);
    return drive->manager;
}

kvbm_manager *kit_driven(struct kit_drive *drive, uint64_t host_blocks) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, host_blocks);
    return kit_driven_with(drive, &options, 0);
}

void kit_take(struct kit_drive *drive) {
    ck_assert(kvbm_reactor_take(kvbm__manager_reactor(drive->manager)));
}

uint32_t kit_turn(struct kit_drive *drive, uint32_t budget) {
    uint32_t ran = kvbm_reactor_turn(kvbm__manager_reactor(drive->manager), budget);
    kit_check(drive->manager);
    return ran;
}

void kit_park(struct kit_drive *drive) {
    uint64_t timer_ns;
    do {
        kit_turn(drive, 256);
    } while (!kvbm_reactor_park(kvbm__manager_reactor(drive->manager), &timer_ns));
}

void kit_run(struct kit_drive *drive) {
    kit_take(drive);
    kit_park(drive);
}

void kit_advance(struct kit_drive *drive, uint64_t ns) {
    atomic_fetch_add(&drive->now_ns, ns);
    kit_run(drive);
}

void kit_driven_end(struct kit_drive *drive) {
    struct kvbm_reactor *reactor = kvbm__manager_reactor(drive->manager);
    if (atomic_load(&reactor->state) == KVBM_REACTOR_PARKED)
        kit_take(drive);
    kvbm__manager_close_begin(drive->manager);
    for (int i = 0; i < 100000 && !kvbm__manager_drained(drive->manager); i++)
        kit_turn(drive, 256);
    ck_assert(kvbm__manager_drained(drive->manager));
    kvbm__manager_finish(drive->manager);
    kvbm_manager_release_mt(drive->manager);
}

/* --------------------------------------------------------------------------------------------------------- requests */

static int finish(kvbm_manager *manager, int rc, kvbm_op op, kvbm_completion *c) {
    if (rc < 0)
        return rc;
    if (rc == 0) {
        do {
            rc = kvbm_wait_mt(manager, op, 60 * KIT_SECOND_NS, c);
        } while (rc == -EINTR);
        ck_assert_int_eq(rc, 0);
    }
    ck_assert_uint_eq(c->op, op);
    return c->status;
}

int kit_allocate_c(kvbm_manager *manager, uint32_t group, kvbm_block *blocks, uint64_t count, kvbm_completion *c) {
    kvbm_op op = 0;
    kvbm_submit submit = {.size = sizeof(submit), .flags = KVBM_SUBMIT_INLINE, .completion = c};
    kvbm_allocate_args args = {
        .size = sizeof(args), .group = group, .tier = KVBM_TIER_HOST, .count = count, .blocks = blocks};
    int rc = kvbm_allocate_mt(manager, &args, &submit, &op);
    int status = finish(manager, rc, op, c);
    if (status == 0)
        ck_assert_uint_eq(c->count, count);
    return status;
}

int kit_allocate(kvbm_manager *manager, kvbm_block *blocks, uint64_t count) {
    kvbm_completion c;
    return kit_allocate_c(manager, 0, blocks, count, &c);
}

int kit_register_args(kvbm_manager *manager, const kvbm_register_args *args) {
    kvbm_op op = 0;
    kvbm_completion c;
    kvbm_submit submit = {.size = sizeof(submit), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    int rc = kvbm_register_mt(manager, args, &submit, &op);
    int status = finish(manager, rc, op, &c);
    if (status == 0)
        ck_assert_uint_eq(c.count, args->count);
    return status;
}

int kit_register(kvbm_manager *manager, kvbm_block *blocks, const kvbm_key *keys, uint64_t count) {
    kvbm_register_args args = {
        .size = sizeof(args), .count = count, .blocks = blocks, .keys = keys, .out_blocks = blocks};
    return kit_register_args(manager, &args);
}

int64_t kit_match(kvbm_manager *manager, const kvbm_key *keys, uint64_t count, kvbm_block *blocks) {
    kvbm_op op = 0;
    kvbm_completion c;
    kvbm_submit submit = {.size = sizeof(submit), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    kvbm_match_args args = {.size = sizeof(args), .count = count, .keys = keys, .blocks = blocks};
    int rc = kvbm_match_mt(manager, &args, &submit, &op);
    int status = finish(manager, rc, op, &c);
    return status < 0 ? status : (int64_t)c.count;
}

int64_t kit_query(kvbm_manager *manager, const kvbm_key *keys, uint64_t count, uint8_t *tiers) {
    kvbm_op op = 0;
    kvbm_completion c;
    kvbm_submit submit = {.size = sizeof(submit), .flags = KVBM_SUBMIT_INLINE, .completion = &c};
    kvbm_query_args args = {.size = sizeof(args), .count = count, .keys = keys, .tiers = tiers};
    int rc = kvbm_query_mt(manager, &args, &submit, &op);
    int status = finish(manager, rc, op, &c);
    return status < 0 ? status : (int64_t)c.count;
}

void kit_release(kvbm_manager *manager, const kvbm_block *blocks, uint64_t count) {
    ck_assert_int_eq(kvbm_release_mt(manager, blocks, count), 0);
}

void kit_cache(kvbm_manager *manager, const kvbm_key *keys, uint64_t count) {
    static _Thread_local kvbm_block blocks[65536];
    ck_assert_uint_le(count, 65536);
    ck_assert_int_eq(kit_allocate(manager, blocks, count), 0);
    ck_assert_int_eq(kit_register(manager, blocks, keys, count), 0);
    kit_release(manager, blocks, count);
}

void kit_on_done(void *user, const kvbm_completion *completion) {
    struct kit_done *done = user;
    done->completion = *completion;
    done->status = completion->status;
    atomic_fetch_add_explicit(&done->count, 1, memory_order_release);
}

kvbm_submit kit_callback(struct kit_done *done, uint32_t flags) {
    atomic_store(&done->count, 0);
    done->status = INT_MIN;
    return (kvbm_submit){.size = sizeof(kvbm_submit), .flags = flags, .done = kit_on_done, .user = done};
}

bool kit_wait_count(_Atomic uint32_t *count, uint32_t wanted) {
    const struct kvbm_os *os = kvbm_os_real();
    uint64_t deadline_ns = os->now_ns(os->ctx) + 60 * KIT_SECOND_NS;
    _Atomic uint32_t never = 0;
    while (atomic_load_explicit(count, memory_order_acquire) < wanted) {
        uint64_t now_ns = os->now_ns(os->ctx);
        if (now_ns >= deadline_ns)
            return false;
        os->wait_u32(os->ctx, &never, 0, now_ns + 50000);
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------- data */

kvbm_key kit_key(uint32_t family, uint64_t n) {
    uint64_t words[2] = {family, n};
    kvbm_key key;
    kvbm_key_from_bytes_mt(words, sizeof(words), &key);
    return key;
}

void kit_keys(uint32_t family, uint64_t first, uint64_t count, kvbm_key *keys) {
    for (uint64_t i = 0; i < count; i++)
        keys[i] = kit_key(family, first + i);
}

kvbm_pool_stats kit_stats(kvbm_manager *manager) {
    kvbm_pool_stats stats = {.size = sizeof(stats)};
    ck_assert_int_eq(kvbm_pool_stats_mt(manager, 0, KVBM_TIER_HOST, &stats), 0);
    return stats;
}

void kit_balance(kvbm_manager *manager, uint64_t free_blocks, uint64_t cached, uint64_t leased,
                 uint64_t mutable_blocks) {
    kvbm_pool_stats s = kit_stats(manager);
    ck_assert_uint_eq(s.free_blocks + s.cached_blocks + s.leased_blocks + s.mutable_blocks, s.capacity_blocks);
    ck_assert_uint_eq(s.free_blocks, free_blocks);
    ck_assert_uint_eq(s.cached_blocks, cached);
    ck_assert_uint_eq(s.leased_blocks, leased);
    ck_assert_uint_eq(s.mutable_blocks, mutable_blocks);
}
