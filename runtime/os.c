/*
 * os.c - the real table: Linux. Owns the process's fork stamp, thread numbers and random state. Thread: any.
 */
#include "runtime/os.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runtime/log.h"

#define NS_PER_SECOND     1000000000ull
#define HUGE_PAGE_BYTES   ((size_t)2 << 20)
#define THREAD_NAME_BYTES 16

/* ------------------------------------------------------------------------------------------------------------ time */

static uint64_t read_clock(clockid_t clock) {
    struct timespec now;
    int rc = clock_gettime(clock, &now);
    KVBM_ASSERT(rc == 0);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static uint64_t real_now_ns(void *ctx) {
    (void)ctx;
    return read_clock(CLOCK_MONOTONIC);
}

static uint64_t real_wall_ns(void *ctx) {
    (void)ctx;
    return read_clock(CLOCK_REALTIME);
}

/* ---------------------------------------------------------------------------------------------------------- random */

static _Atomic uint64_t random_state;
static pthread_once_t random_once = PTHREAD_ONCE_INIT;

static void random_seed(void) {
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        seed = read_clock(CLOCK_REALTIME) ^ (uint64_t)getpid() << 32;
    atomic_store_explicit(&random_state, seed, memory_order_relaxed);
}

/* SplitMix64 (Steele, Lea, Flood 2014): the state only ever advances by a constant, so an atomic add shares it. */
static uint64_t real_random_u64(void *ctx) {
    (void)ctx;
    pthread_once(&random_once, random_seed);
    uint64_t z = atomic_fetch_add_explicit(&random_state, 0x9E3779B97F4A7C15ull, memory_order_relaxed);
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/* --------------------------------------------------------------------------------------------------------- threads */

struct thread_start {
    void (*run)(void *);
    void *arg;
    char name[THREAD_NAME_BYTES];
};

static void *thread_main(void *arg) {
    struct thread_start start = *(struct thread_start *)arg;
    free(arg);
    pthread_setname_np(pthread_self(), start.name);
    start.run(start.arg);
    return NULL;
}

static int real_thread_start(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg, const char *name) {
    (void)ctx;
    struct thread_start *start = malloc(sizeof *start);
    if (start == NULL)
        return -ENOMEM;
    *start = (struct thread_start){.run = run, .arg = arg};
    if (name != NULL)
        strncpy(start->name, name, sizeof start->name - 1);
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the new thread: signals stay with the application's */
    pthread_t handle;
    int rc = pthread_create(&handle, NULL, thread_main, start);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        free(start);
        return -rc;
    }
    thread->handle = (uintptr_t)handle;
    return 0;
}

static void real_thread_join(void *ctx, struct kvbm_thread *thread) {
    (void)ctx;
    int rc = pthread_join((pthread_t)thread->handle, NULL);
    KVBM_ASSERT_MSG(rc == 0, "pthread_join: %s", strerrorname_np(rc));
    thread->handle = 0;
}

/* ---------------------------------------------------------------------------------------------------------- futex */

static int real_wait_u32(void *ctx, _Atomic uint32_t *word, uint32_t expected, uint64_t deadline_ns) {
    (void)ctx;
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_SECOND),
                             .tv_nsec = (long)(deadline_ns % NS_PER_SECOND)};
    /* WAIT_BITSET takes an absolute time; the monotonic clock is its default. */
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected,
                      deadline_ns == KVBM_NO_DEADLINE ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
    return rc == 0 ? 0 : -errno;
}

static void real_wake_u32(void *ctx, _Atomic uint32_t *word, bool all) {
    (void)ctx;
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, all ? INT_MAX : 1, NULL, NULL, 0);
}

/* ---------------------------------------------------------------------------------------------------------- events */

static int real_event_open(void *ctx) {
    (void)ctx;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd >= 0 ? fd : -errno;
}

static void real_event_signal(void *ctx, int fd) {
    (void)ctx;
    uint64_t one = 1;
    ssize_t rc = 0;
    do {
        rc = write(fd, &one, sizeof one);
    } while (rc < 0 && errno == EINTR);
    KVBM_ASSERT_MSG(rc == (ssize_t)sizeof one || errno == EAGAIN, "write of eventfd %d",
                    fd); /* EAGAIN: readable anyway */
}

static void real_event_clear(void *ctx, int fd) {
    (void)ctx;
    uint64_t count = 0;
    ssize_t rc = 0;
    do {
        rc = read(fd, &count, sizeof count);
    } while (rc < 0 && errno == EINTR);
    KVBM_ASSERT_MSG(rc == (ssize_t)sizeof count || errno == EAGAIN, "read of eventfd %d", fd); /* EAGAIN: was clear */
}

static void real_event_close(void *ctx, int fd) {
    (void)ctx;
    int rc = close(fd);
    KVBM_ASSERT_MSG(rc == 0 || errno == EINTR, "close of eventfd %d", fd);
}

/* ---------------------------------------------------------------------------------------------------------- memory */

static void *map_plain(size_t size, int flags) {
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

/* A map aligned to huge pages, so that transparent ones can back all of it. */
static void *map_aligned(size_t size, int flags) {
    size_t padded = 0;
    if (__builtin_add_overflow(size, HUGE_PAGE_BYTES, &padded))
        return NULL;
    unsigned char *map = map_plain(padded, flags);
    if (map == NULL)
        return NULL;
    size_t before = (HUGE_PAGE_BYTES - ((uintptr_t)map & (HUGE_PAGE_BYTES - 1))) & (HUGE_PAGE_BYTES - 1);
    if (before != 0)
        munmap(map, before);
    if (padded - before - size != 0)
        munmap(map + before + size, padded - before - size);
    return map + before;
}

static int real_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    (void)ctx;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned honoured = 0;
    void *map = NULL;
    if (size == 0 || size > SIZE_MAX - page)
        return -EINVAL;
    size = (size + page - 1) & ~(page - 1);
    int lazy = (flags & KVBM_MAP_LAZY) != 0 ? MAP_NORESERVE : 0;
    if ((flags & KVBM_MAP_HUGE) != 0) {
        /* Explicit huge pages are reserved by this call, never lazily: a page missing later would be a SIGBUS. Only
         * for whole ones, as unmap could not tell such a map from another by its size. */
        if (size % HUGE_PAGE_BYTES == 0)
            map = map_plain(size, MAP_HUGETLB | 21 << MAP_HUGE_SHIFT);
        if (map != NULL) {
            honoured |= KVBM_MAP_HUGE;
        } else if (size >= HUGE_PAGE_BYTES) {
            map = map_aligned(size, lazy);
            if (map != NULL && madvise(map, size, MADV_HUGEPAGE) == 0)
                honoured |= KVBM_MAP_HUGE;
        }
    }
    if (map == NULL)
        map = map_plain(size, lazy);
    if (map == NULL)
        return -ENOMEM;
    honoured |= flags & KVBM_MAP_LAZY;
    if ((flags & KVBM_MAP_NO_FORK) != 0 && madvise(map, size, MADV_DONTFORK) == 0)
        honoured |= KVBM_MAP_NO_FORK;
    *address = map;
    if (got != NULL)
        *got = honoured;
    return 0;
}

static void real_unmap(void *ctx, void *address, size_t size) {
    (void)ctx;
    int rc = munmap(address, size); /* the kernel rounds up to pages */
    KVBM_ASSERT_MSG(rc == 0, "munmap of %zu bytes at %p: %s", size, address, strerrorname_np(errno));
}

static int real_bind_node(void *ctx, void *address, size_t size, int node) {
    (void)ctx;
    unsigned long mask[16] = {0}; /* 1024 nodes, the kernel's largest configuration */
    const unsigned bits = 8 * (unsigned)sizeof mask[0];
    if (node < 0 || (unsigned)node >= 8 * sizeof mask)
        return -EINVAL;
    mask[(unsigned)node / bits] = 1ul << ((unsigned)node % bits);
    /* Preferred, not bound: a node that runs out gives slow memory and not the OOM killer. */
    long rc = syscall(SYS_mbind, address, size, MPOL_PREFERRED, mask, 8 * sizeof mask, 0);
    return rc == 0 ? 0 : -errno;
}

static unsigned real_cpu_count(void *ctx) {
    (void)ctx;
    unsigned count = 0;
    for (size_t cpus = 1024; count == 0 && cpus <= 1u << 20; cpus *= 4) {
        size_t bytes = CPU_ALLOC_SIZE(cpus);
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set == NULL)
            break;
        if (sched_getaffinity(0, bytes, set) == 0)
            count = (unsigned)CPU_COUNT_S(bytes, set);
        CPU_FREE(set);
    }
    return count != 0 ? count : 1;
}

const struct kvbm_os *kvbm_os_real(void) {
    static const struct kvbm_os table = {
        .now_ns = real_now_ns,
        .wall_ns = real_wall_ns,
        .random_u64 = real_random_u64,
        .thread_start = real_thread_start,
        .thread_join = real_thread_join,
        .wait_u32 = real_wait_u32,
        .wake_u32 = real_wake_u32,
        .event_open = real_event_open,
        .event_signal = real_event_signal,
        .event_clear = real_event_clear,
        .event_close = real_event_close,
        .map = real_map,
        .unmap = real_unmap,
        .bind_node = real_bind_node,
        .cpu_count = real_cpu_count,
    };
    return &table;
}

/* -------------------------------------------------------------------------- fork guard and thread numbers (process) */

static _Atomic uint32_t fork_stamp = 1;
static _Atomic uint64_t numbers_taken; /* bit n: number n is some live thread's */
static pthread_once_t process_once = PTHREAD_ONCE_INIT;
static pthread_key_t number_key;
static bool number_key_made;
static _Thread_local int thread_number = -1;

/* Runs in the child, where only the forking thread lives: that thread's number is the only one taken. */
static void on_fork_child(void) {
    atomic_fetch_add_explicit(&fork_stamp, 1, memory_order_relaxed);
    atomic_store_explicit(&numbers_taken, thread_number >= 0 ? 1ull << thread_number : 0, memory_order_relaxed);
    random_seed();
}

/* `value` is number + 1, as a NULL value has no destructor. */
static void number_give(void *value) {
    uint64_t bit = 1ull << ((uintptr_t)value - 1);
    thread_number = -1;
    /* Release: pairs with the acquire in number_take; the next holder of the number continues this one's lanes. */
    atomic_fetch_and_explicit(&numbers_taken, ~bit, memory_order_release);
}

static void process_init(void) {
    int rc = pthread_atfork(NULL, NULL, on_fork_child);
    KVBM_ASSERT_MSG(rc == 0, "pthread_atfork: %s", strerrorname_np(rc));
    number_key_made = pthread_key_create(&number_key, number_give) == 0;
}

uint32_t kvbm_os_fork_stamp_mt(void) {
    pthread_once(&process_once, process_init);
    return atomic_load_explicit(&fork_stamp, memory_order_relaxed);
}

bool kvbm_os_forked_mt(uint32_t stamp) {
    /* Relaxed: changes only in a child, before it has any other thread. */
    return atomic_load_explicit(&fork_stamp, memory_order_relaxed) != stamp;
}

static int number_take(void) {
    pthread_once(&process_once, process_init);
    if (!number_key_made)
        return -1;
    uint64_t taken = atomic_load_explicit(&numbers_taken, memory_order_relaxed);
    int number = -1;
    do {
        if (taken == UINT64_MAX)
            return -1;
        number = __builtin_ctzll(~taken);
        /* Acquire: pairs with the release in number_give. */
    } while (!atomic_compare_exchange_weak_explicit(&numbers_taken, &taken, taken | 1ull << number,
                                                    memory_order_acquire, memory_order_relaxed));
    if (pthread_setspecific(number_key, (void *)((uintptr_t)number + 1)) != 0) {
        number_give((void *)((uintptr_t)number + 1));
        return -1;
    }
    thread_number = number;
    return number;
}

int kvbm_os_thread_number_mt(void) {
    int number = thread_number;
    return number >= 0 ? number : number_take();
}

_Static_assert(KVBM_THREAD_COUNT_MAX == 64, "numbers are the bits of one word");
