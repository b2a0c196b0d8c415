/*
 * sim.c - seed, events, virtual functions of the operating system, and the report of a failure.
 *
 * Owns nothing between runs but the second thread (started once) and the run that a signal handler would report.
 */
#include "tests/sim/sim.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAP_MAP_BYTES_MAX (256u << 10) /* larger maps are real ones, touched lazily */
#define FD_BASE            1000

static struct sim *running; /* for the signal handler; set by the one thread that runs simulations */

/* ---------------------------------------------------------------------------------------------------------- random */

uint64_t sim_mix(uint64_t value) {
    /* splitmix64, Sebastiano Vigna. */
    value += UINT64_C(0x9e3779b97f4a7c15);
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

static inline uint64_t rotate(uint64_t value, unsigned bits) {
    return (value << bits) | (value >> (64 - bits));
}

uint64_t sim_random(struct sim *sim) {
    /* xoshiro256**, David Blackman and Sebastiano Vigna. */
    uint64_t *s = sim->random;
    uint64_t result = rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

/* ---------------------------------------------------------------------------------------------------------- events */

static const char *const event_names[SIM_EVENT_COUNT] = {
#define X(name, half) [SIM_##name] = #name,
    SIM_EVENTS(X)
#undef X
};

enum { HALF_N = 0, HALF_R = 1, HALF_D = 2 };
static const unsigned char event_halves[SIM_EVENT_COUNT] = {
#define X(name, half) [SIM_##name] = HALF_##half,
    SIM_EVENTS(X)
#undef X
};

const char *sim_event_name(uint32_t kind) {
    return kind < SIM_EVENT_COUNT ? event_names[kind] : "?";
}

void sim_event(struct sim *sim, uint32_t kind, uint64_t a, uint64_t b) {
    sim->counts->events[kind]++;
    sim->hash = rotate((sim->hash ^ (kind + 1)) * UINT64_C(0x9fb21c651e98df25), 23) ^ a;
    sim->hash = rotate(sim->hash * UINT64_C(0xd6e8feb86659fd93), 29) ^ b ^ sim->now_ns;
    struct sim_event *event = &sim->ring[sim->event_count++ % SIM_RING_COUNT];
    *event = (struct sim_event){.step = sim->step, .a = a, .b = b, .kind = kind};
    if (sim->options.trace)
        printf("%8llu %12llu ns%s %-20s %llu %llu\n", (unsigned long long)sim->step, (unsigned long long)sim->now_ns,
               sim->on_other ? " other" : "", event_names[kind], (unsigned long long)a, (unsigned long long)b);
}

void sim_count_status(struct sim_counts *counts, int kind, int status) {
    for (uint32_t i = 0; i < SIM_STATUS_COUNT; i++) {
        if (counts->statuses[i].count == 0) {
            counts->statuses[i].kind = kind;
            counts->statuses[i].status = status;
        }
        if (counts->statuses[i].kind == kind && counts->statuses[i].status == status) {
            counts->statuses[i].count++;
            return;
        }
    }
}

uint32_t sim_coverage_missing(const struct sim_counts *counts, char *text, size_t text_bytes) {
    uint32_t missing = 0;
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < SIM_EVENT_COUNT; i++) {
        if (counts->events[i] != 0 || event_halves[i] == HALF_N)
            continue;
        missing++;
        int wrote = snprintf(text + used, text_bytes - used, " %s", event_names[i]);
        if (wrote > 0 && used + (size_t)wrote < text_bytes)
            used += (size_t)wrote;
    }
    return missing;
}

/* --------------------------------------------------------------------------------------------------------- failure */

static void report(struct sim *sim, const char *what) {
    fflush(stdout);
    fprintf(stderr, "\nsim: seed %llu failed at step %llu: %s\n", (unsigned long long)sim->seed,
            (unsigned long long)sim->step, what);
    uint64_t kept = sim->event_count < SIM_RING_COUNT ? sim->event_count : SIM_RING_COUNT;
    fprintf(stderr, "the last %llu events (step, event, numbers):\n", (unsigned long long)kept);
    for (uint64_t i = sim->event_count - kept; i < sim->event_count; i++) {
        const struct sim_event *event = &sim->ring[i % SIM_RING_COUNT];
        fprintf(stderr, "%8llu %-20s %llu %llu\n", (unsigned long long)event->step, event_names[event->kind],
                (unsigned long long)event->a, (unsigned long long)event->b);
    }
    fprintf(stderr, "replay: ./dev sim --seed %llu", (unsigned long long)sim->seed);
    if (sim->options.steps != 0)
        fprintf(stderr, " --steps %llu", (unsigned long long)sim->options.steps);
    fprintf(stderr, " --trace\n");
    fflush(stderr);
}

static const int crashes[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE};
#define CRASH_COUNT (sizeof crashes / sizeof crashes[0])
static struct sigaction crash_before[CRASH_COUNT]; /* a sanitizer's, perhaps */

/* A panic or a crash inside the library: say which run it was, then die as before. The process is lost anyway, so the
 * handler may use stdio. */
static void on_crash(int number) {
    struct sim *sim = running;
    for (size_t i = 0; i < CRASH_COUNT; i++)
        sigaction(crashes[i], &crash_before[i], NULL);
    if (sim != NULL && !sim->options.quiet)
        report(sim, number == SIGABRT ? "the library panicked (above)" : "the library crashed");
    raise(number);
}

/* --------------------------------------------------------------------------------------------------- second thread */

static struct {
    pthread_once_t once;
    pthread_t thread;
    sem_t go, done;
    void (*fn)(void *arg);
    void *arg;
    struct sim *sim;
    bool failed;
} other = {.once = PTHREAD_ONCE_INIT};

static void *other_main(void *unused) {
    (void)unused;
    for (;;) {
        while (sem_wait(&other.go) != 0) {
        }
        jmp_buf here;
        jmp_buf *before = other.sim->unwind;
        other.sim->unwind = &here;
        if (setjmp(here) == 0)
            other.fn(other.arg);
        else
            other.failed = true;
        other.sim->unwind = before;
        sem_post(&other.done);
    }
    return NULL;
}

static void other_start(void) {
    sem_init(&other.go, 0, 0);
    sem_init(&other.done, 0, 0);
    if (pthread_create(&other.thread, NULL, other_main, NULL) != 0)
        abort();
    pthread_detach(other.thread);
}

/* A forked child (Check forks each test) has no second thread: it starts its own. */
static void other_forked(void) {
    static const pthread_once_t fresh = PTHREAD_ONCE_INIT;
    other.once = fresh;
}

void sim_other_run(struct sim *sim, void (*fn)(void *arg), void *arg) {
    SIM_CHECK(sim, !sim->on_other, "the simulation nested its second thread");
    pthread_once(&other.once, other_start);
    other.fn = fn;
    other.arg = arg;
    other.sim = sim;
    other.failed = false;
    sim->on_other = true;
    sem_post(&other.go);
    while (sem_wait(&other.done) != 0) {
    }
    sim->on_other = false;
    if (other.failed)
        longjmp(*sim->unwind, 1);
}

void sim_fail(struct sim *sim, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (sim->failure[0] == 0)
        vsnprintf(sim->failure, sizeof sim->failure, format, args);
    va_end(args);
    if (!sim->options.quiet)
        report(sim, sim->failure);
    longjmp(*sim->unwind, 1);
}

/* ------------------------------------------------------------------------------------------------ virtual functions */

static uint64_t os_now_ns(void *ctx) {
    return ((struct sim *)ctx)->now_ns;
}

static uint64_t os_wall_ns(void *ctx) {
    return UINT64_C(1700000000000000000) + ((struct sim *)ctx)->now_ns;
}

static uint64_t os_random_u64(void *ctx) {
    return sim_random(ctx);
}

static int os_thread_start(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg, const char *name) {
    (void)thread, (void)run, (void)arg;
    sim_fail(ctx, "the library started a thread (%s)", name);
}

static void os_thread_join(void *ctx, struct kvbm_thread *thread) {
    (void)thread;
    sim_fail(ctx, "the library joined a thread");
}

static int os_wait_u32(void *ctx, _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns) {
    struct sim *sim = ctx;
    if (atomic_load_explicit(word, memory_order_acquire) != expected)
        return -EAGAIN;
    SIM_CHECK(sim, sim->wait != NULL, "a wait where nothing may wait");
    return sim->wait(sim, word, expected, deadline_ns);
}

static void os_wake_u32(void *ctx, _Atomic uint32_t *word, bool all) {
    (void)ctx, (void)word, (void)all;
}

static int os_event_open(void *ctx) {
    struct sim *sim = ctx;
    for (int i = 0; i < SIM_FD_COUNT; i++) {
        if (!sim->fds[i].open) {
            sim->fds[i] = (struct sim_fd){.open = true};
            return FD_BASE + i;
        }
    }
    return -EMFILE;
}

static struct sim_fd *fd_of(struct sim *sim, int fd) {
    SIM_CHECK(sim, fd >= FD_BASE && fd < FD_BASE + SIM_FD_COUNT && sim->fds[fd - FD_BASE].open, "event %d is not open",
              fd);
    return &sim->fds[fd - FD_BASE];
}

static void os_event_signal(void *ctx, int fd) {
    sim_event(ctx, SIM_PORT_SIGNAL, (uint64_t)(fd - FD_BASE), 0);
    fd_of(ctx, fd)->signalled++;
}

static void os_event_clear(void *ctx, int fd) {
    fd_of(ctx, fd)->signalled = 0;
}

static void os_event_close(void *ctx, int fd) {
    fd_of(ctx, fd)->open = false;
}

static int os_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    struct sim *sim = ctx;
    if (sim->map_fail_in != 0 && --sim->map_fail_in == 0)
        return -ENOMEM;
    SIM_CHECK(sim, size != 0 && sim->map_count < SIM_MAP_COUNT, "map of %zu bytes, %u open", size, sim->map_count);
    struct sim_map map = {.bytes = size, .heap = size <= HEAP_MAP_BYTES_MAX};
    if (map.heap) {
        /* The exact size, so that a sanitizer sees an access past the end. */
        if (posix_memalign(&map.address, 4096, size) != 0)
            return -ENOMEM;
        memset(map.address, 0, size);
    } else {
        map.address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map.address == MAP_FAILED)
            return -errno;
    }
    sim->maps[sim->map_count++] = map;
    *address = map.address;
    if (got != NULL)
        *got = flags & (unsigned)KVBM_MAP_LAZY;
    return 0;
}

static void map_free(const struct sim_map *map) {
    if (map->heap)
        free(map->address);
    else
        munmap(map->address, map->bytes);
}

static void os_unmap(void *ctx, void *address, size_t size) {
    struct sim *sim = ctx;
    for (uint32_t i = 0; i < sim->map_count; i++) {
        if (sim->maps[i].address != address)
            continue;
        SIM_CHECK(sim, sim->maps[i].bytes == size, "a map of %zu bytes was given back as %zu", sim->maps[i].bytes,
                  size);
        map_free(&sim->maps[i]);
        sim->maps[i] = sim->maps[--sim->map_count];
        return;
    }
    sim_fail(sim, "unmap of what is not mapped");
}

static int os_bind_node(void *ctx, void *address, size_t size, int node) {
    (void)ctx, (void)address, (void)size, (void)node;
    return -ENOSYS;
}

static unsigned os_cpu_count(void *ctx) {
    (void)ctx;
    return 1;
}

/* ------------------------------------------------------------------------------------------------------------- run */

static void install(void) {
    struct sigaction action = {.sa_handler = on_crash};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < CRASH_COUNT; i++)
        sigaction(crashes[i], &action, &crash_before[i]);
    pthread_atfork(NULL, NULL, other_forked);
}

void sim_begin(struct sim *sim, uint64_t seed, uint64_t salt, const struct sim_options *options,
               struct sim_counts *counts) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    memset(sim, 0, sizeof *sim);
    sim->seed = seed;
    uint64_t state = sim_mix(seed) ^ salt;
    for (int i = 0; i < 4; i++)
        sim->random[i] = state = sim_mix(state);
    sim->hash = sim_mix(seed ^ salt);
    sim->now_ns = 1000000 + sim_below(sim, 1000000000);
    sim->options = *options;
    sim->counts = counts;
    sim->os = (struct kvbm_os){
        .ctx = sim,
        .now_ns = os_now_ns,
        .wall_ns = os_wall_ns,
        .random_u64 = os_random_u64,
        .thread_start = os_thread_start,
        .thread_join = os_thread_join,
        .wait_u32 = os_wait_u32,
        .wake_u32 = os_wake_u32,
        .event_open = os_event_open,
        .event_signal = os_event_signal,
        .event_clear = os_event_clear,
        .event_close = os_event_close,
        .map = os_map,
        .unmap = os_unmap,
        .bind_node = os_bind_node,
        .cpu_count = os_cpu_count,
    };
    running = sim;
}

void sim_end(struct sim *sim) {
    for (uint32_t i = 0; i < sim->map_count; i++)
        map_free(&sim->maps[i]);
    sim->map_count = 0;
    running = NULL;
}

void sim_check_balance(struct sim *sim) {
    SIM_CHECK(sim, sim->map_count == 0, "%u maps were not given back, the first of %zu bytes", sim->map_count,
              sim->maps[0].bytes);
    for (int i = 0; i < SIM_FD_COUNT; i++)
        SIM_CHECK(sim, !sim->fds[i].open, "event %d was not closed", FD_BASE + i);
}

struct sim_result sim_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts) {
    struct sim_result result = sim_runtime_run(seed, options, counts);
    if (!result.failed) {
        uint64_t runtime_hash = result.hash, runtime_steps = result.steps;
        result = sim_domain_run(seed, options, counts);
        result.hash = sim_mix(runtime_hash) ^ result.hash;
        result.steps += runtime_steps;
    }
    counts->seeds++;
    counts->steps += result.steps;
    counts->failed += result.failed;
    return result;
}
