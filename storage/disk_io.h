/*
 * disk_io.h - the small interface between the disk store and what performs its requests: io_uring (disk_uring.h) or a
 * pool of threads (disk_pread.h); tests put a third, which fails and delays, in front of either.
 *
 * A request belongs to the backend from submit until `completed` is called with it, which happens in turn() or in close
 * and never in submit. At most options.request_count are out at once, so that submit cannot fail. Thread: the loop's.
 */
#ifndef KVBM_STORAGE_DISK_IO_H
#define KVBM_STORAGE_DISK_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <uv.h>

#include "runtime/log.h"
#include "runtime/os.h"

enum kvbm_disk_request_kind { KVBM_DISK_READ = 1, KVBM_DISK_WRITE = 2, KVBM_DISK_SYNC = 3 };

struct kvbm_disk_request {
    struct kvbm_disk_request *next; /* the backend's */
    int kind;                       /* enum kvbm_disk_request_kind; SYNC is fdatasync */
    int fd;
    uint32_t fd_index; /* of fd in options.fds */
    uint32_t iov_count;
    struct iovec *iov;
    uint64_t offset;
    int64_t result; /* out: bytes, which can be fewer than asked for, or -errno */
};

struct kvbm_disk_io;

struct kvbm_disk_io_ops {
    const char *name;
    void (*submit)(struct kvbm_disk_io *io, struct kvbm_disk_request *request);
    /* Sends what was submitted and reports what completed. Whether it did either. */
    bool (*turn)(struct kvbm_disk_io *io);
    /* No request is out. Frees io, then calls closed(arg). */
    void (*close)(struct kvbm_disk_io *io, void (*closed)(void *arg), void *arg);
};

struct kvbm_disk_io {
    const struct kvbm_disk_io_ops *ops;
    void (*completed)(void *arg, struct kvbm_disk_request *request);
    void *completed_arg;
};

struct kvbm_disk_io_options {
    const struct kvbm_os *os;
    struct kvbm_logger *log;
    uv_loop_t *loop;
    uint32_t request_count; /* out at once, at most */
    uint32_t thread_count;  /* pread */
    const int *fds;
    uint32_t fd_count;
    const struct iovec *buffers; /* memory that most requests are in, for registration; none may be empty */
    uint32_t buffer_count;
    uint64_t request_bytes_max; /* of one request into these */
};

#endif
