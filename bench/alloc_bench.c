/*
 * alloc_bench.c - allocate and release through the public API: alone, in batches, and by many threads at once.
 *
 *   c_alloc_release          one block, one thread
 *   c_alloc_release_64       64 blocks in one operation, ns a block
 *   c_alloc_release_threads  one block, 8 threads on one manager
 */
#include <pthread.h>
#include <stdatomic.h>

#include "bench/bench.h"

#define THREADS           8
#define THREAD_ITERATIONS 2000

struct subject {
    kvbm_manager *manager;
    struct bench_call call;
    uint64_t count; /* blocks an operation */
};

static uint64_t alloc_release(void *arg, uint64_t iterations) {
    struct subject *subject = arg;
    kvbm_block blocks[64];
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++) {
        bench_allocate(subject->manager, &subject->call, blocks, subject->count);
        bench_release(subject->manager, blocks, subject->count);
    }
    return bench_now_ns() - start;
}

/* The floor: what the borrow protocol cannot do without, namely one exchange to take the reactor, one to give it back,
 * and a call that the compiler cannot see through. */
static _Atomic uint32_t floor_word;

__attribute__((noinline)) static uint32_t floor_step(uint32_t value) {
    uint32_t before = atomic_exchange(&floor_word, value);
    return before + atomic_exchange(&floor_word, before);
}

static uint64_t floor_run(void *arg, uint64_t iterations) {
    (void)arg;
    uint32_t sum = 0;
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++)
        sum += floor_step(sum | 1);
    uint64_t ns = bench_now_ns() - start;
    __asm__ volatile("" : : "r"(sum));
    return ns;
}

static void bench_one(void) {
    struct subject subject = {.manager = bench_manager(4096, 0), .count = 1};
    struct subject batch = {.manager = subject.manager, .count = 64};
    bench_call_init(&subject.call);
    bench_call_init(&batch.call);
    struct bench_subject subjects[] = {
        {.fn = alloc_release, .arg = &subject, .iterations = 1000},
        {.fn = floor_run, .iterations = 5000},
        {.fn = alloc_release, .arg = &batch, .iterations = 50},
    };
    bench_run(subjects, 3, 500);
    bench_report(&(struct bench_result){.name = "c_alloc_release",
                                        .unit = "ns",
                                        .value = subjects[0].result,
                                        .reference_name = "target: 200 ns",
                                        .reference_value = 200,
                                        .target_value = 200},
                 "\"floor_two_exchanges_ns\": %.4g, \"waited\": %llu, \"host_blocks\": 4096", subjects[1].result.median,
                 (unsigned long long)subject.call.waited_count);
    struct bench_summary each = subjects[2].result;
    each.median /= 64, each.p10 /= 64, each.p90 /= 64;
    bench_report(&(struct bench_result){.name = "c_alloc_release_64",
                                        .unit = "ns/block",
                                        .value = each,
                                        .reference_name = "c_alloc_release",
                                        .reference_value = subjects[0].result.median},
                 "\"blocks\": 64, \"waited\": %llu", (unsigned long long)batch.call.waited_count);
    bench_manager_end(subject.manager);
}

/* ---- threads */

struct crew {
    kvbm_manager *manager; /* NULL: the reference */
    pthread_barrier_t start, end;
    _Atomic uint64_t waited_count;
    _Atomic uint64_t first_ns, last_ns; /* of a batch: the first thread's begin, the last one's end */
    bool stop;
    /* The reference: a stack of numbers behind a mutex, the simplest shared allocator there is. */
    pthread_mutex_t lock;
    uint32_t stack[64];
    uint32_t top;
};

static void crew_mutex(struct crew *crew) {
    for (int i = 0; i < THREAD_ITERATIONS; i++) {
        pthread_mutex_lock(&crew->lock);
        uint32_t id = crew->stack[--crew->top];
        pthread_mutex_unlock(&crew->lock);
        pthread_mutex_lock(&crew->lock);
        crew->stack[crew->top++] = id;
        pthread_mutex_unlock(&crew->lock);
    }
}

static void *crew_thread(void *arg) {
    struct crew *crew = arg;
    struct subject subject = {.manager = crew->manager, .count = 1};
    bench_call_init(&subject.call);
    for (;;) {
        pthread_barrier_wait(&crew->start);
        if (crew->stop)
            break;
        uint64_t begin = bench_now_ns(), first = UINT64_MAX;
        /* The clock is one for all processors, so the first to store has the smallest value, or nearly. */
        atomic_compare_exchange_strong(&crew->first_ns, &first, begin);
        if (crew->manager != NULL)
            alloc_release(&subject, THREAD_ITERATIONS);
        else
            crew_mutex(crew);
        atomic_store(&crew->last_ns, bench_now_ns());
        pthread_barrier_wait(&crew->end);
    }
    atomic_fetch_add(&crew->waited_count, subject.call.waited_count);
    return NULL;
}

static uint64_t crew_run(void *arg, uint64_t iterations) {
    (void)iterations;
    struct crew *crew = arg;
    atomic_store(&crew->first_ns, UINT64_MAX);
    pthread_barrier_wait(&crew->start);
    pthread_barrier_wait(&crew->end);
    return atomic_load(&crew->last_ns) - atomic_load(&crew->first_ns);
}

static void crew_begin(struct crew *crew, pthread_t *threads) {
    pthread_barrier_init(&crew->start, NULL, THREADS + 1);
    pthread_barrier_init(&crew->end, NULL, THREADS + 1);
    pthread_mutex_init(&crew->lock, NULL);
    for (uint32_t i = 0; i < 64; i++)
        crew->stack[crew->top++] = i;
    for (int i = 0; i < THREADS; i++)
        bench_must("pthread_create", -pthread_create(&threads[i], NULL, crew_thread, crew));
}

static void crew_end(struct crew *crew, pthread_t *threads) {
    crew->stop = true;
    pthread_barrier_wait(&crew->start);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&crew->start);
    pthread_barrier_destroy(&crew->end);
    pthread_mutex_destroy(&crew->lock);
}

static void bench_threads(void) {
    static struct crew ours, mutex;
    pthread_t our_threads[THREADS], mutex_threads[THREADS];
    ours.manager = bench_manager(4096, 0);
    crew_begin(&ours, our_threads);
    crew_begin(&mutex, mutex_threads);
    struct bench_subject subjects[] = {
        {.fn = crew_run, .arg = &ours, .iterations = (uint64_t)THREADS * THREAD_ITERATIONS},
        {.fn = crew_run, .arg = &mutex, .iterations = (uint64_t)THREADS * THREAD_ITERATIONS},
    };
    bench_run(subjects, 2, 60);
    crew_end(&ours, our_threads);
    crew_end(&mutex, mutex_threads);
    kvbm_stats stats = {.size = sizeof stats};
    bench_must("kvbm_manager_stats_mt", kvbm_manager_stats_mt(ours.manager, &stats));
    bench_report(&(struct bench_result){.name = "c_alloc_release_threads",
                                        .unit = "ns",
                                        .value = subjects[0].result,
                                        .reference_name = "a stack behind one pthread mutex, same threads",
                                        .reference_value = subjects[1].result.median},
                 "\"threads\": %d, \"waited\": %llu, \"borrowed\": %llu, \"borrow_lost\": %llu", THREADS,
                 (unsigned long long)atomic_load(&ours.waited_count), (unsigned long long)stats.borrow_count,
                 (unsigned long long)stats.borrow_lost_count);
    bench_manager_end(ours.manager);
}

int main(void) {
    bench_one();
    bench_threads();
    return 0;
}
