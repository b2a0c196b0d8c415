/*
 * count_bench.c - c_alloc_count: memory allocations made by the data path, counted. The contract is zero.
 *
 * The program puts its own malloc, calloc, realloc, aligned_alloc, posix_memalign and mmap before libc's; each counts
 * and passes on. After the manager is open and each operation has run once, a mix of allocate (with eviction), register
 * (new keys, resident keys, anonymous), match, query, retain, release, by callback, by port, inline and through the
 * reactor's thread runs while counting.
 */
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "bench/bench.h"

#define BLOCKS 64
#define POOL   1024

static _Atomic uint64_t allocation_count;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

void *malloc(size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    atomic_fetch_add(&allocation_count, 1);
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    atomic_fetch_add(&allocation_count, 1);
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

struct counted {
    kvbm_manager *manager;
    kvbm_port *port;
    struct bench_call call;
    uint64_t next_key;
    uint64_t operations;
};

static void on_done(void *user, const kvbm_completion *completion) {
    bench_must("completion", completion->status);
    atomic_fetch_add_explicit((_Atomic uint32_t *)user, 1, memory_order_release);
}

/* Allocates by callback and waits for it without the library. */
static void by_callback(struct counted *counted, kvbm_block *blocks) {
    _Atomic uint32_t done = 0;
    kvbm_submit submit = {.size = sizeof submit, .done = on_done, .user = &done};
    kvbm_allocate_args args = {.size = sizeof args, .tier = KVBM_TIER_HOST, .count = BLOCKS, .blocks = blocks};
    bench_must("kvbm_allocate_mt", kvbm_allocate_mt(counted->manager, &args, &submit, NULL));
    while (atomic_load_explicit(&done, memory_order_acquire) == 0)
        usleep(1);
}

static void by_port(struct counted *counted, kvbm_block *blocks) {
    kvbm_submit submit = {.size = sizeof submit, .port = counted->port, .timeout_ns = UINT64_C(10000000000)};
    kvbm_allocate_args args = {.size = sizeof args, .tier = KVBM_TIER_HOST, .count = BLOCKS, .blocks = blocks};
    kvbm_completion completion;
    struct pollfd entry = {.fd = kvbm_port_fd(counted->port), .events = POLLIN};
    bench_must("kvbm_allocate_mt", kvbm_allocate_mt(counted->manager, &args, &submit, NULL));
    while (kvbm_port_drain(counted->port, &completion, 1) == 0)
        poll(&entry, 1, -1);
    bench_must("allocate", completion.status);
}

static void round_of_operations(struct counted *counted) {
    kvbm_block blocks[BLOCKS], matched[BLOCKS];
    kvbm_key keys[BLOCKS], known[BLOCKS];
    uint8_t tiers[BLOCKS];
    for (uint64_t i = 0; i < BLOCKS; i++)
        keys[i] = bench_key(counted->next_key++);
    by_callback(counted, blocks);
    bench_register(counted->manager, &counted->call, blocks, keys, BLOCKS);
    if (bench_match(counted->manager, &counted->call, keys, matched, BLOCKS) != BLOCKS)
        bench_die("matched", 0);
    bench_must("retain", kvbm_block_retain_mt(counted->manager, matched, BLOCKS));
    kvbm_query_args query = {.size = sizeof query, .count = BLOCKS, .keys = keys, .tiers = tiers};
    bench_settle(counted->manager, &counted->call, "query",
                 kvbm_query_mt(counted->manager, &query, &counted->call.submit, &counted->call.op));
    bench_release(counted->manager, matched, BLOCKS);
    bench_release(counted->manager, matched, BLOCKS);
    bench_release(counted->manager, blocks, BLOCKS);
    /* The same keys again: duplicates. */
    memcpy(known, keys, sizeof known);
    by_port(counted, blocks);
    bench_register(counted->manager, &counted->call, blocks, known, BLOCKS);
    bench_release(counted->manager, blocks, BLOCKS);
    /* Anonymous blocks, and a mutable block dropped. */
    bench_allocate(counted->manager, &counted->call, blocks, BLOCKS);
    bench_release(counted->manager, blocks + BLOCKS / 2, BLOCKS / 2);
    kvbm_register_args anonymous = {.size = sizeof anonymous,
                                    .count = BLOCKS / 2,
                                    .blocks = blocks,
                                    .flags = KVBM_REGISTER_ANONYMOUS,
                                    .out_blocks = blocks,
                                    .out_keys = keys};
    bench_settle(counted->manager, &counted->call, "register",
                 kvbm_register_mt(counted->manager, &anonymous, &counted->call.submit, &counted->call.op));
    bench_release(counted->manager, blocks, BLOCKS / 2);
    counted->operations += 13;
}

static uint64_t count(uint32_t flags, uint64_t rounds, uint64_t *operations, uint64_t *evicted) {
    struct counted counted = {.manager = bench_manager(POOL, flags)};
    bench_must("kvbm_port_open", kvbm_port_open(64, &counted.port));
    bench_call_init(&counted.call);
    for (int i = 0; i < 50; i++)
        round_of_operations(&counted);
    counted.operations = 0;
    uint64_t before = atomic_load(&allocation_count);
    for (uint64_t i = 0; i < rounds; i++)
        round_of_operations(&counted);
    uint64_t allocations = atomic_load(&allocation_count) - before;
    kvbm_pool_stats pool = {.size = sizeof(pool)};
    bench_must("kvbm_pool_stats_mt", kvbm_pool_stats_mt(counted.manager, 0, KVBM_TIER_HOST, &pool));
    *operations += counted.operations;
    *evicted += pool.evicted_count;
    kvbm_port_close(counted.port);
    bench_manager_end(counted.manager);
    return allocations;
}

int main(void) {
    uint64_t operations = 0, evicted = 0;
    double value = (double)count(0, 20000, &operations, &evicted);
    value += (double)count(KVBM_OPEN_NO_BORROW, 2000, &operations, &evicted);
    struct bench_summary summary = {.median = value, .p10 = value, .p90 = value, .batches = 1, .per_batch = operations};
    bench_report(&(struct bench_result){.name = "c_alloc_count",
                                        .unit = "allocations",
                                        .value = summary,
                                        .reference_name = "target: none",
                                        .target_zero = true},
                 "\"operations\": %llu, \"blocks_an_operation\": %d, \"evicted\": %llu", (unsigned long long)operations,
                 BLOCKS, (unsigned long long)evicted);
    return 0;
}
