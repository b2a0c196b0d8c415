/*
 * disk_pread.c - see disk_pread.h. Owns its threads, a ring of requests to them and a stack of those that are done.
 * submit, turn, close: the loop's thread, which takes no lock and never waits but for the threads' end in close.
 *
 * To the threads: a ring with one producer. A thread takes an entry by moving `head` past it; numbers only grow, so a
 * thread that read an entry that was reused meanwhile fails to move head. From the threads: a stack which the loop
 * takes whole, hence no reuse while a pop is under way.
 */
#include "storage/disk_pread.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "runtime/errors.h"

#define THREAD_COUNT_MAX 64

struct pread_io {
    struct kvbm_disk_io io;
    const struct kvbm_os *os;
    uv_async_t async;
    void (*closed)(void *arg);
    void *closed_arg;
    uint32_t thread_count, mask;
    uint32_t woken; /* tail up to which threads were woken */
    struct kvbm_thread threads[THREAD_COUNT_MAX];
    _Atomic(struct kvbm_disk_request *) *ring;
    _Alignas(64) _Atomic uint32_t tail; /* the loop's */
    _Atomic uint32_t bell;              /* moved after tail and after stop; threads sleep on it */
    _Atomic uint32_t stop;
    _Alignas(64) _Atomic uint32_t head; /* the threads' */
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic(struct kvbm_disk_request *) done;
    _Atomic uint32_t wake_pending;
};

static int64_t perform(const struct kvbm_disk_request *request) {
    for (;;) {
        ssize_t n = 0;
        if (request->kind == KVBM_DISK_READ)
            n = preadv(request->fd, request->iov, (int)request->iov_count, (off_t)request->offset);
        else if (request->kind == KVBM_DISK_WRITE)
            n = pwritev(request->fd, request->iov, (int)request->iov_count, (off_t)request->offset);
        else
            n = fdatasync(request->fd);
        if (n >= 0 || errno != EINTR)
            return n >= 0 ? n : -errno;
    }
}

/* The oldest request, or NULL. */
static struct kvbm_disk_request *take(struct pread_io *p) {
    uint32_t head = atomic_load_explicit(&p->head, memory_order_relaxed);
    for (;;) {
        /* Acquire: pairs with the release in submit; the entry and the request are seen whole. */
        if (head == atomic_load_explicit(&p->tail, memory_order_acquire))
            return NULL;
        struct kvbm_disk_request *request = atomic_load_explicit(&p->ring[head & p->mask], memory_order_relaxed);
        /* Release: the entry was read before submit may see it as free. */
        if (atomic_compare_exchange_weak_explicit(&p->head, &head, head + 1, memory_order_acq_rel,
                                                  memory_order_relaxed))
            return request;
    }
}

static void give_back(struct pread_io *p, struct kvbm_disk_request *request) {
    struct kvbm_disk_request *top = atomic_load_explicit(&p->done, memory_order_relaxed);
    do {
        request->next = top;
        /* Release: pairs with the acquire in turn. */
    } while (
        !atomic_compare_exchange_weak_explicit(&p->done, &top, request, memory_order_seq_cst, memory_order_relaxed));
    /* uv_async_send may return early on a stale look at its own flag, so only whoever sets this one sends; the loop
     * clears it before it takes the stack. */
    if (atomic_exchange_explicit(&p->wake_pending, 1, memory_order_seq_cst) == 0) {
        int rc = uv_async_send(&p->async);
        KVBM_ASSERT(rc == 0);
    }
}

static void run(void *arg) {
    struct pread_io *p = arg;
    for (;;) {
        /* Before the look at the ring: a bell that rings after it keeps the wait from sleeping. */
        uint32_t bell = atomic_load_explicit(&p->bell, memory_order_seq_cst);
        struct kvbm_disk_request *request = take(p);
        if (request != NULL) {
            request->result = perform(request);
            give_back(p, request);
            continue;
        }
        /* Acquire: pairs with the release in stop_threads. */
        if (atomic_load_explicit(&p->stop, memory_order_acquire) != 0)
            return;
        /* Counted as a sleeper before the last look at the bell, which is wait's own; turn looks after it rang. */
        atomic_fetch_add_explicit(&p->sleepers, 1, memory_order_seq_cst);
        p->os->wait_u32(p->os->ctx, &p->bell, bell, KVBM_NO_DEADLINE);
        atomic_fetch_sub_explicit(&p->sleepers, 1, memory_order_relaxed);
    }
}

static void pread_submit(struct kvbm_disk_io *io, struct kvbm_disk_request *request) {
    struct pread_io *p = (struct pread_io *)io;
    uint32_t tail = atomic_load_explicit(&p->tail, memory_order_relaxed);
    /* Acquire: pairs with the release in take, for the entry that is used again. */
    KVBM_ASSERT(tail - atomic_load_explicit(&p->head, memory_order_acquire) <= p->mask);
    atomic_store_explicit(&p->ring[tail & p->mask], request, memory_order_relaxed);
    atomic_store_explicit(&p->tail, tail + 1, memory_order_release);
    atomic_fetch_add_explicit(&p->bell, 1, memory_order_seq_cst);
}

static bool pread_turn(struct kvbm_disk_io *io) {
    struct pread_io *p = (struct pread_io *)io;
    bool progress = false;
    uint32_t tail = atomic_load_explicit(&p->tail, memory_order_relaxed);
    for (; p->woken != tail; p->woken++) {
        progress = true;
        if (atomic_load_explicit(&p->sleepers, memory_order_seq_cst) > 0)
            p->os->wake_u32(p->os->ctx, &p->bell, false);
    }
    if (atomic_load_explicit(&p->wake_pending, memory_order_relaxed) != 0)
        atomic_exchange_explicit(&p->wake_pending, 0, memory_order_seq_cst);
    struct kvbm_disk_request *stack = atomic_exchange_explicit(&p->done, NULL, memory_order_seq_cst), *queue = NULL;
    while (stack != NULL) { /* oldest first */
        struct kvbm_disk_request *request = stack;
        stack = request->next;
        request->next = queue;
        queue = request;
    }
    while (queue != NULL) {
        struct kvbm_disk_request *request = queue;
        queue = request->next;
        progress = true;
        io->completed(io->completed_arg, request);
    }
    return progress;
}

static void stop_threads(struct pread_io *p) {
    atomic_store_explicit(&p->stop, 1, memory_order_release);
    atomic_fetch_add_explicit(&p->bell, 1, memory_order_seq_cst);
    p->os->wake_u32(p->os->ctx, &p->bell, true);
    for (uint32_t i = 0; i < p->thread_count; i++)
        p->os->thread_join(p->os->ctx, &p->threads[i]);
}

static void pread_free(struct pread_io *p) {
    free(p->ring);
    free(p);
}

static void on_closed(uv_handle_t *handle) {
    struct pread_io *p = handle->data;
    void (*closed)(void *arg) = p->closed;
    void *arg = p->closed_arg;
    pread_free(p);
    closed(arg);
}

static void pread_close(struct kvbm_disk_io *io, void (*closed)(void *arg), void *arg) {
    struct pread_io *p = (struct pread_io *)io;
    p->closed = closed;
    p->closed_arg = arg;
    stop_threads(p);
    KVBM_ASSERT(atomic_load_explicit(&p->done, memory_order_relaxed) == NULL);
    uv_close((uv_handle_t *)&p->async, on_closed);
}

/* Wakes the loop; its turn does the rest. */
static void on_async(uv_async_t *async) {
    (void)async;
}

static const struct kvbm_disk_io_ops pread_ops = {
    .name = "threads", .submit = pread_submit, .turn = pread_turn, .close = pread_close};

static int start_threads(struct pread_io *p, const struct kvbm_disk_io_options *options) {
    uint32_t wanted = options->thread_count < THREAD_COUNT_MAX ? options->thread_count : THREAD_COUNT_MAX;
    int rc = 0;
    while (p->thread_count < wanted && rc == 0) {
        rc = p->os->thread_start(p->os->ctx, &p->threads[p->thread_count], run, p, "kvbm-disk");
        p->thread_count += rc == 0;
    }
    if (p->thread_count == 0)
        return rc != 0 ? rc : -EINVAL;
    if (rc != 0)
        KVBM_LOG(options->log, WARNING, "disk", "a thread was refused threads=%u wanted=%u error=%s", p->thread_count,
                 wanted, kvbm_error_name_mt(rc));
    return 0;
}

int kvbm_disk_pread_open(struct kvbm_disk_io **io, const struct kvbm_disk_io_options *options) {
    uint32_t size = 1;
    while (size <= options->request_count) /* one more than can be out: a full ring is not an empty one */
        size *= 2;
    struct pread_io *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (p == NULL)
        return -ENOMEM;
    *p = (struct pread_io){.io = {.ops = &pread_ops}, .os = options->os, .mask = size - 1};
    p->ring = calloc(size, sizeof *p->ring);
    if (p->ring == NULL) {
        pread_free(p);
        return -ENOMEM;
    }
    p->async.data = p;
    int rc = start_threads(p, options);
    if (rc == 0) {
        rc = uv_async_init(options->loop, &p->async, on_async); /* nobody sends before the first request */
        if (rc != 0)
            stop_threads(p);
    }
    if (rc != 0) {
        pread_free(p);
        return rc;
    }
    *io = &p->io;
    return 0;
}
