/*
 * registry_bench.c - how the bookkeeping's cost and memory grow with the number of blocks.
 *
 *   c_register_evict_1e3, _1e5, _1e7  a full pool of that many cached blocks: allocate (which evicts), register under
 *                                     new keys and release, 64 blocks in each operation; ns a block
 *   c_register_fill_1e5, _1e7         the same into an empty pool, memory touched for the first time; ns a block
 *   c_bytes_per_block                 resident memory of the process for each tracked block, at 10^7 blocks; its
 *                                     reference is the memory that the manager itself says it maps
 */
#include "bench/bench.h"

#define BATCH 64

struct subject {
    const char *evict_name, *fill_name;
    kvbm_manager *manager;
    struct bench_call call;
    uint64_t blocks;
    uint64_t next_key;
    double fill_ns, resident_bytes, tracked_bytes;
};

static uint64_t resident_bytes(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%*u %lu", &pages) != 1) /* NOLINT: the kernel's own format */
        bench_die("/proc/self/statm", -5);
    fclose(file);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t register_evict(void *arg, uint64_t iterations) {
    struct subject *subject = arg;
    kvbm_block blocks[BATCH];
    kvbm_key keys[BATCH];
    uint64_t ns = 0;
    for (uint64_t done = 0; done < iterations; done += BATCH) {
        for (int i = 0; i < BATCH; i++)
            keys[i] = bench_key(subject->next_key++);
        uint64_t start = bench_now_ns();
        bench_allocate(subject->manager, &subject->call, blocks, BATCH);
        bench_register(subject->manager, &subject->call, blocks, keys, BATCH);
        bench_release(subject->manager, blocks, BATCH);
        ns += bench_now_ns() - start;
    }
    return ns;
}

static void fill(struct subject *subject) {
    uint64_t before = resident_bytes();
    subject->manager = bench_manager(subject->blocks, 0);
    bench_call_init(&subject->call);
    subject->fill_ns = (double)bench_fill(subject->manager, 0, subject->blocks) / (double)subject->blocks;
    subject->next_key = subject->blocks;
    kvbm_stats stats = {.size = sizeof stats};
    bench_must("kvbm_manager_stats_mt", kvbm_manager_stats_mt(subject->manager, &stats));
    if (stats.registry_entries != subject->blocks)
        bench_die("blocks registered", (long)stats.registry_entries);
    subject->resident_bytes = (double)(resident_bytes() - before) / (double)subject->blocks;
    subject->tracked_bytes = (double)stats.tracked_bytes / (double)subject->blocks;
}

static struct bench_summary single(double value) {
    return (struct bench_summary){.median = value, .p10 = value, .p90 = value, .batches = 1, .per_batch = 1};
}

int main(void) {
    static struct subject subjects[] = {
        {.evict_name = "c_register_evict_1e3", .blocks = 1000},
        {.evict_name = "c_register_evict_1e5", .fill_name = "c_register_fill_1e5", .blocks = 100000},
        {.evict_name = "c_register_evict_1e7", .fill_name = "c_register_fill_1e7", .blocks = 10000000},
    };
    enum { COUNT = sizeof subjects / sizeof *subjects };
    struct bench_subject runs[COUNT];
    for (int i = 0; i < COUNT; i++) {
        fill(&subjects[i]);
        runs[i] = (struct bench_subject){.fn = register_evict, .arg = &subjects[i], .iterations = 16 * BATCH};
    }
    bench_run(runs, COUNT, 1000);
    for (int i = 0; i < COUNT; i++) {
        kvbm_pool_stats pool = {.size = sizeof(pool)};
        bench_must("kvbm_pool_stats_mt", kvbm_pool_stats_mt(subjects[i].manager, 0, KVBM_TIER_HOST, &pool));
        bench_report(&(struct bench_result){.name = subjects[i].evict_name,
                                            .unit = "ns/block",
                                            .value = runs[i].result,
                                            .reference_name = i == 0 ? NULL : subjects[i - 1].evict_name,
                                            .reference_value = i == 0 ? 0 : runs[i - 1].result.median},
                     "\"blocks\": %llu, \"batch\": %d, \"evicted\": %llu", (unsigned long long)subjects[i].blocks,
                     BATCH, (unsigned long long)pool.evicted_count);
        if (subjects[i].fill_name != NULL)
            bench_report(&(struct bench_result){.name = subjects[i].fill_name,
                                                .unit = "ns/block",
                                                .value = single(subjects[i].fill_ns),
                                                .reference_name = subjects[i].evict_name,
                                                .reference_value = runs[i].result.median},
                         "\"blocks\": %llu, \"batch\": 256", (unsigned long long)subjects[i].blocks);
    }
    struct subject *large = &subjects[COUNT - 1];
    bench_report(&(struct bench_result){.name = "c_bytes_per_block",
                                        .unit = "bytes",
                                        .value = single(large->resident_bytes),
                                        .reference_name = "kvbm_stats.tracked_bytes a block",
                                        .reference_value = large->tracked_bytes},
                 "\"blocks\": %llu, \"tokens_tracked\": false, \"at_1e5_blocks\": %.4g",
                 (unsigned long long)large->blocks, subjects[1].resident_bytes);
    for (int i = 0; i < COUNT; i++)
        bench_manager_end(subjects[i].manager);
    return 0;
}
