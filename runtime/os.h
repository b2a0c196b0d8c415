/*
 * os.h - the table of functions through which all time, randomness, threads, wake-ups and memory maps come.
 *
 * Production code uses kvbm_os_real(). The simulation (tests/sim) passes its own table: virtual clock, seeded random
 * numbers, recorded wake-ups, no threads. Nothing in runtime/, storage/ or actors/ may call clock_gettime, getrandom,
 * pthread_create, futex, eventfd, mmap or their like except os.c. (libuv is reached only from reactor_uv.c.)
 * Every function may be called from any thread; `ctx` is os->ctx.
 */
#ifndef KVBM_RUNTIME_OS_H
#define KVBM_RUNTIME_OS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVBM_NO_DEADLINE UINT64_MAX

struct kvbm_thread {
    uintptr_t handle; /* pthread_t in the real table */
};

enum kvbm_map_flags {
    KVBM_MAP_HUGE = 1,    /* try explicit 2 MiB pages (sizes that are a multiple only), then madvise(MADV_HUGEPAGE) */
    KVBM_MAP_LAZY = 2,    /* reserve only: MAP_NORESERVE, pages appear on first touch */
    KVBM_MAP_NO_FORK = 4, /* MADV_DONTFORK: a forked child does not inherit the range */
};

struct kvbm_os {
    void *ctx;
    /* Monotonic clock. */
    uint64_t (*now_ns)(void *ctx);
    /* Wall clock, since the Unix epoch; for logs and stored records only. */
    uint64_t (*wall_ns)(void *ctx);
    uint64_t (*random_u64)(void *ctx);
    /* 0, or -errno. `name` is at most 15 characters. Signals are blocked in the new thread. */
    int (*thread_start)(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg, const char *name);
    void (*thread_join)(void *ctx, struct kvbm_thread *thread);
    /* Sleeps while *word == expected, until woken or `deadline_ns` (monotonic; KVBM_NO_DEADLINE for none).
     * 0 after a wake or a spurious one, -EAGAIN if *word differed, -ETIMEDOUT, -EINTR. */
    int (*wait_u32)(void *ctx, _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns);
    void (*wake_u32)(void *ctx, _Atomic uint32_t *word, bool all);
    /* A pollable event (eventfd, non-blocking, close-on-exec): fd >= 0, or -errno. */
    int (*event_open)(void *ctx);
    void (*event_signal)(void *ctx, int fd);
    void (*event_clear)(void *ctx, int fd);
    void (*event_close)(void *ctx, int fd);
    /* Zeroed memory map of `size` bytes (rounded up to pages): 0 and *address, or -errno. *got (may be NULL) gets the
     * flags that were honoured; KVBM_MAP_HUGE there means explicit or transparent huge pages. */
    int (*map)(void *ctx, size_t size, unsigned flags, void **address, unsigned *got);
    void (*unmap)(void *ctx, void *address, size_t size);
    /* Prefers a NUMA node for a range not yet touched: 0 or -errno (-ENOSYS where there is no NUMA). */
    int (*bind_node)(void *ctx, void *address, size_t size, int node);
    /* Number of CPUs this process may run on, >= 1. */
    unsigned (*cpu_count)(void *ctx);
};

/* The real table. Static. */
const struct kvbm_os *kvbm_os_real(void);

/* Fork guard: installs (once per process) a pthread_atfork child handler. kvbm_os_forked_mt(stamp) says whether this
 * process is a forked child of the one in which `stamp = kvbm_os_fork_stamp_mt()` was taken. A relaxed load; free. */
uint32_t kvbm_os_fork_stamp_mt(void);
bool kvbm_os_forked_mt(uint32_t stamp);

/* A small number for the calling thread, unique among live threads, or -1 when KVBM_THREAD_COUNT_MAX threads hold one.
 * Given back when the thread exits. Used to give each thread a single-producer lane of its own. */
#define KVBM_THREAD_COUNT_MAX 64
int kvbm_os_thread_number_mt(void);

#endif
