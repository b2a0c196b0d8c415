/*
 * support.c - see support.h.
 */
#include "tests/runtime/support.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int wait_status(pid_t child) {
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            abort();
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool support_aborts(void (*fn)(void *arg), void *arg, char *text, size_t size) {
    int pipe_fds[2];
    if (pipe(pipe_fds) != 0)
        abort();
    pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        dup2(pipe_fds[1], STDERR_FILENO);
        fn(arg);
        _exit(0);
    }
    close(pipe_fds[1]);
    size_t length = 0;
    char rest[256];
    for (;;) {
        bool fits = length + 1 < size;
        ssize_t got = read(pipe_fds[0], fits ? text + length : rest, fits ? size - 1 - length : sizeof rest);
        if (got <= 0)
            break;
        length += fits ? (size_t)got : 0;
    }
    if (size > 0)
        text[length] = '\0';
    close(pipe_fds[0]);
    return wait_status(child) == 128 + SIGABRT;
}

int support_child_status(int (*fn)(void *arg), void *arg) {
    pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        close(STDERR_FILENO); /* a sanitizer's report of a death that is expected is noise */
        _exit(fn(arg));
    }
    return wait_status(child);
}

static uint64_t fake_now_ns(void *ctx) {
    struct support_os *os = ctx;
    atomic_fetch_add(&os->clock_reads, 1);
    return atomic_load(&os->now_ns);
}

static int fake_event_open(void *ctx) {
    struct support_os *os = ctx;
    return os->event_open_rc < 0 ? os->event_open_rc : kvbm_os_real()->event_open(NULL);
}

static void fake_event_signal(void *ctx, int fd) {
    struct support_os *os = ctx;
    atomic_fetch_add(&os->signals, 1);
    kvbm_os_real()->event_signal(NULL, fd);
}

static void fake_event_clear(void *ctx, int fd) {
    struct support_os *os = ctx;
    atomic_fetch_add(&os->clears, 1);
    kvbm_os_real()->event_clear(NULL, fd);
}

static int fake_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    struct support_os *os = ctx;
    if (os->map_fail_after == 0)
        return -ENOMEM;
    if (os->map_fail_after > 0)
        os->map_fail_after--;
    int rc = kvbm_os_real()->map(NULL, size, flags, address, got);
    if (rc == 0)
        atomic_fetch_add(&os->maps, 1);
    return rc;
}

static void fake_unmap(void *ctx, void *address, size_t size) {
    struct support_os *os = ctx;
    atomic_fetch_sub(&os->maps, 1);
    kvbm_os_real()->unmap(NULL, address, size);
}

void support_os_init(struct support_os *os) {
    memset(os, 0, sizeof *os);
    os->table = *kvbm_os_real();
    os->table.ctx = os;
    os->table.now_ns = fake_now_ns;
    os->table.event_open = fake_event_open;
    os->table.event_signal = fake_event_signal;
    os->table.event_clear = fake_event_clear;
    os->table.map = fake_map;
    os->table.unmap = fake_unmap;
    os->map_fail_after = -1;
    atomic_init(&os->now_ns, 1000000000);
}

void *support_new(size_t size) {
    size = (size + 63) & ~(size_t)63;
    void *object = aligned_alloc(64, size);
    if (object == NULL)
        abort();
    memset(object, 0, size);
    return object;
}

static void count_wake(void *ctx) {
    atomic_fetch_add((_Atomic uint64_t *)ctx, 1);
}

struct kvbm_reactor_options support_reactor_options(const struct kvbm_os *os, _Atomic uint64_t *wake_count) {
    return (struct kvbm_reactor_options){
        .name = "test",
        .os = os,
        .mailbox = {.control_capacity = 16, .data_capacity = 16, .thread_capacity = 16, .lane_batch = 4},
        .deadline_capacity = 64,
        .turn_budget = 64,
        .borrowable = true,
        .wake = count_wake,
        .wake_ctx = wake_count,
    };
}

uint64_t support_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545F4914F6CDD1Dull;
}
