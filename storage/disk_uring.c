/*
 * disk_uring.c - see disk_uring.h. Owns the ring and its registrations. Thread: the loop's; the thread of the first turn
 * is the ring's only one, and a store may be opened elsewhere before its loop runs.
 *
 * No deferred task work (IORING_SETUP_DEFER_TASKRUN): with it a ring's descriptor in an epoll set is not woken by a
 * completion, measured on Linux 6.18, and the loop would find it only at its next timer.
 */
#include "storage/disk_uring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/errors.h"

#define REGION_COUNT_MAX 64
/* The kernel's limits of one registered buffer and of their number. */
#define BUFFER_BYTES_MAX (UINT64_C(1) << 30)
#define BUFFER_COUNT_MAX 16384u
#define REAP_COUNT       2

/* A range of memory as registered: pieces of at most 1 GiB that begin `stride` apart and overlap by one request, so
 * that each request is inside a piece. */
struct region {
    uintptr_t base;
    uint64_t bytes, stride;
    uint32_t first;
};

struct uring_io {
    struct kvbm_disk_io io;
    struct kvbm_logger *log;
    struct io_uring ring;
    uv_poll_t poll;
    void (*closed)(void *arg);
    void *closed_arg;
    struct kvbm_disk_uring_got got;
    bool disabled; /* the ring waits for its thread */
    uint32_t region_count;
    struct region regions[REGION_COUNT_MAX];
};

/* Number of the registered buffer that holds all of iov, or -1. */
static int find_buffer(const struct uring_io *u, const struct iovec *iov) {
    uintptr_t at = (uintptr_t)iov->iov_base;
    for (uint32_t i = 0; i < u->region_count; i++) {
        const struct region *region = &u->regions[i];
        if (at >= region->base && iov->iov_len <= region->bytes && at - region->base <= region->bytes - iov->iov_len)
            return (int)(region->first + (at - region->base) / region->stride);
    }
    return -1;
}

static void uring_submit(struct kvbm_disk_io *io, struct kvbm_disk_request *request) {
    struct uring_io *u = (struct uring_io *)io;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    KVBM_ASSERT(sqe != NULL); /* as many entries as requests can be out */
    int fd = u->got.fixed_files ? (int)request->fd_index : request->fd;
    bool one = request->kind != KVBM_DISK_SYNC && request->iov_count == 1;
    int buffer = one && u->got.fixed_buffers ? find_buffer(u, request->iov) : -1;
    if (request->kind == KVBM_DISK_SYNC)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (request->kind == KVBM_DISK_READ && buffer >= 0)
        io_uring_prep_read_fixed(sqe, fd, request->iov->iov_base, (unsigned)request->iov->iov_len, request->offset,
                                 buffer);
    else if (request->kind == KVBM_DISK_READ && one)
        io_uring_prep_read(sqe, fd, request->iov->iov_base, (unsigned)request->iov->iov_len, request->offset);
    else if (request->kind == KVBM_DISK_READ)
        io_uring_prep_readv(sqe, fd, request->iov, request->iov_count, request->offset);
    else if (buffer >= 0)
        io_uring_prep_write_fixed(sqe, fd, request->iov->iov_base, (unsigned)request->iov->iov_len, request->offset,
                                  buffer);
    else if (one)
        io_uring_prep_write(sqe, fd, request->iov->iov_base, (unsigned)request->iov->iov_len, request->offset);
    else
        io_uring_prep_writev(sqe, fd, request->iov, request->iov_count, request->offset);
    if (u->got.fixed_files)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, request);
}

/* A few at a time: whoever is told asks for more, and the device has that to do while the rest is looked at. */
static bool reap(struct uring_io *u) {
    struct io_uring_cqe *cqes[REAP_COUNT];
    struct kvbm_disk_request *requests[REAP_COUNT];
    unsigned count = io_uring_peek_batch_cqe(&u->ring, cqes, REAP_COUNT);
    for (unsigned i = 0; i < count; i++) {
        requests[i] = io_uring_cqe_get_data(cqes[i]);
        requests[i]->result = cqes[i]->res;
    }
    io_uring_cq_advance(&u->ring, count);
    for (unsigned i = 0; i < count; i++)
        u->io.completed(u->io.completed_arg, requests[i]);
    return count > 0;
}

static bool uring_turn(struct kvbm_disk_io *io) {
    struct uring_io *u = (struct uring_io *)io;
    if (u->disabled) {
        /* liburing 2.3 declares io_uring_enable_rings and does not have it. */
        int rc =
            syscall(SYS_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0 ? 0 : -errno;
        KVBM_ASSERT_MSG(rc == 0, "io_uring_enable_rings: %s", kvbm_error_name_mt(rc));
        u->disabled = false;
    }
    bool progress = io_uring_sq_ready(&u->ring) > 0;
    if (progress) {
        int rc = io_uring_submit(&u->ring); /* a refusal leaves entries in the queue for the next turn */
        if (rc < 0 && rc != -EAGAIN && rc != -EBUSY && rc != -EINTR)
            KVBM_LOG(u->log, WARNING, "disk", "io_uring refuses requests, trying again error=%s",
                     kvbm_error_name_mt(rc));
    }
    return reap(u) || progress;
}

static void on_closed(uv_handle_t *handle) {
    struct uring_io *u = handle->data;
    void (*closed)(void *arg) = u->closed;
    void *arg = u->closed_arg;
    /* The ring goes some time after its descriptor; the files should go now. */
    if (u->got.fixed_files)
        (void)io_uring_unregister_files(&u->ring);
    io_uring_queue_exit(&u->ring);
    free(u);
    closed(arg);
}

static void uring_close(struct kvbm_disk_io *io, void (*closed)(void *arg), void *arg) {
    struct uring_io *u = (struct uring_io *)io;
    u->closed = closed;
    u->closed_arg = arg;
    uv_close((uv_handle_t *)&u->poll, on_closed);
}

static const struct kvbm_disk_io_ops uring_ops = {
    .name = "io_uring", .submit = uring_submit, .turn = uring_turn, .close = uring_close};

/* Wakes the loop; its turn does the rest. */
static void on_poll(uv_poll_t *poll, int status, int events) {
    (void)poll, (void)status, (void)events;
}

static int open_ring(struct uring_io *u, uint32_t entries) {
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_R_DISABLED};
    int rc = io_uring_queue_init_params(entries, &u->ring, &params);
    if (rc == 0) {
        u->disabled = true;
        return 0;
    }
    if (rc != -EINVAL)
        return rc;
    /* A kernel before 6.1. */
    params = (struct io_uring_params){.flags = 0};
    return io_uring_queue_init_params(entries, &u->ring, &params);
}

/* Whether the kernel has all requests we make. */
static int check_requests(struct uring_io *u) {
    static const int needed[] = {IORING_OP_READ,       IORING_OP_WRITE,       IORING_OP_READV, IORING_OP_WRITEV,
                                 IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_FSYNC};
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    if (probe == NULL)
        return -ENOSYS;
    int rc = 0;
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        rc = io_uring_opcode_supported(probe, needed[i]) ? rc : -ENOSYS;
    io_uring_free_probe(probe);
    return rc;
}

/* Cuts the caller's ranges into what the kernel takes. Returns the number of pieces, 0 if there are too many. */
static uint32_t cut_regions(struct uring_io *u, const struct kvbm_disk_io_options *options, struct iovec *pieces) {
    uint64_t stride = BUFFER_BYTES_MAX - options->request_bytes_max;
    uint32_t count = 0;
    if (options->request_bytes_max > BUFFER_BYTES_MAX / 2 || options->buffer_count > REGION_COUNT_MAX)
        return 0;
    for (uint32_t i = 0; i < options->buffer_count; i++) {
        const struct iovec *buffer = &options->buffers[i];
        u->regions[i] = (struct region){
            .base = (uintptr_t)buffer->iov_base, .bytes = buffer->iov_len, .stride = stride, .first = count};
        for (uint64_t at = 0; at < buffer->iov_len; at += stride) {
            if (count == BUFFER_COUNT_MAX)
                return 0;
            uint64_t left = buffer->iov_len - at;
            pieces[count++] =
                (struct iovec){(uint8_t *)buffer->iov_base + at, left < BUFFER_BYTES_MAX ? left : BUFFER_BYTES_MAX};
        }
    }
    return count;
}

static void register_buffers(struct uring_io *u, const struct kvbm_disk_io_options *options) {
    if (options->buffer_count == 0)
        return;
    struct iovec *pieces = calloc(BUFFER_COUNT_MAX, sizeof *pieces);
    uint32_t count = pieces != NULL ? cut_regions(u, options, pieces) : 0;
    int rc = count > 0 ? io_uring_register_buffers(&u->ring, pieces, count) : -E2BIG;
    free(pieces);
    u->got.fixed_buffers = rc == 0;
    u->region_count = rc == 0 ? options->buffer_count : 0;
    if (rc != 0)
        KVBM_LOG(options->log, WARNING, "disk", "memory is not registered with io_uring (ulimit -l?) error=%s",
                 kvbm_error_name_mt(rc));
}

int kvbm_disk_uring_open(struct kvbm_disk_io **io, const struct kvbm_disk_io_options *options,
                         struct kvbm_disk_uring_got *got) {
    struct uring_io *u = calloc(1, sizeof *u);
    if (u == NULL)
        return -ENOMEM;
    u->io.ops = &uring_ops;
    u->log = options->log;
    u->poll.data = u;
    int rc = open_ring(u, options->request_count);
    if (rc != 0) {
        free(u);
        return rc;
    }
    rc = check_requests(u);
    if (rc == 0) {
        rc = io_uring_register_files(&u->ring, options->fds, options->fd_count);
        u->got.fixed_files = rc == 0;
        if (rc != 0)
            KVBM_LOG(options->log, WARNING, "disk", "files are not registered with io_uring error=%s",
                     kvbm_error_name_mt(rc));
        register_buffers(u, options);
        rc = uv_poll_init(options->loop, &u->poll, u->ring.ring_fd);
    }
    if (rc != 0) {
        io_uring_queue_exit(&u->ring);
        free(u);
        return rc;
    }
    rc = uv_poll_start(&u->poll, UV_READABLE, on_poll);
    KVBM_ASSERT(rc == 0); /* fails for closing handles only */
    *got = u->got;
    *io = &u->io;
    return 0;
}
