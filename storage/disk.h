/*
 * disk.h - the disk tier: blocks in slab files on one or more paths, through io_uring or threads. The contracts are
 * tier.h's; the files disk_file.h's and docs/core/disk-format.md's.
 *
 * Bounds. At the device: depth items, and one sync a file, and one probe. In line: line_items items of reads, as many
 * of writes and erasures, and KVBM_DISK_FLUSH_LINE flushes. Memory: all of it at open; per slot 32 bytes, per item at
 * the device about 350 bytes and 16 a segment, and bounce_count extents.
 *
 * Order. Reads before writes, but one place at the device is left to writes, and while reads come writes have at most
 * write_depth_mixed. First come, first started among reads and among writes.
 *
 * Shedding. A write is shed when, by the mean time that writes take now, it would wait for longer than shed_wait_ns.
 *
 * Degrading. Errors that say that there is no space stop writes; errors that say that the device is gone, error_limit
 * other errors in a row, and a request that takes longer than stall_ns stop everything: what is in line ends with
 * -KVBM_EDEGRADED, and so does what is submitted. The store then writes and reads a scratch page every probe_ns, more
 * and more rarely (up to 30 s), and serves again once that succeeds and nothing is overdue. Each change is one logged
 * line. Descriptors are kept: a file system that was unmounted by force needs a new open.
 */
#ifndef KVBM_STORAGE_DISK_H
#define KVBM_STORAGE_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <uv.h>

#include "runtime/log.h"
#include "runtime/os.h"
#include "storage/disk_file.h"
#include "storage/disk_io.h"
#include "storage/tier.h"

#define KVBM_DISK_DEPTH_MAX      1024u
#define KVBM_DISK_LINE_ITEMS_MAX (1u << 20)
#define KVBM_DISK_SEGMENTS_MAX   1024u
#define KVBM_DISK_FLUSH_LINE     16u

enum kvbm_disk_backend { KVBM_DISK_AUTO = 0, KVBM_DISK_URING = 1, KVBM_DISK_THREADS = 2 };

/* 0 is a field's default, where one is given. */
struct kvbm_disk_options {
    const struct kvbm_os *os;
    struct kvbm_logger *log; /* may be NULL */
    uv_loop_t *loop;
    struct kvbm_disk_set_options files;
    int backend;                 /* enum kvbm_disk_backend; AUTO: io_uring, or threads where the kernel refuses it */
    bool skip_verify;            /* reads do not check the payload: for measurements only, breaks the contract */
    uint32_t depth;              /* items at the device: 64; at least 2 */
    uint32_t write_depth_mixed;  /* of these, writes while reads come: a quarter */
    uint32_t line_items;         /* 4096 */
    uint32_t segments_max;       /* of an item that go to the device as they are: 16; more are gathered in between */
    uint32_t bounce_count;       /* items at a time whose segments are not aligned: depth if payload_bytes is no
                                  * multiple of 4 KiB and the file system wants alignment, else 4 */
    uint32_t thread_count;       /* of the backend of threads: 8 */
    uint32_t error_limit;        /* 4 */
    uint64_t shed_wait_ns;       /* 500 ms; UINT64_MAX: no shedding */
    uint64_t stall_ns;           /* 10 s */
    uint64_t probe_ns;           /* 1 s */
    uint64_t flush_ns;           /* 0: only when asked, and at close */
    const struct iovec *buffers; /* memory that most segments are in, to be registered; read during open */
    uint32_t buffer_count;
    /* Puts something in front of the backend; tests. Takes `inner` over, including its close. NULL: nothing. */
    struct kvbm_disk_io *(*wrap)(void *arg, struct kvbm_disk_io *inner);
    void *wrap_arg;
};

struct kvbm_disk_info {
    const char *backend;
    bool direct, formatted, fixed_files, fixed_buffers;
    uint64_t records_whole, records_torn, records_foreign; /* at open */
    uint64_t scan_ns, memory_bytes;
    uint64_t generation; /* of the latest record */
};

/* Formats or opens the files and reads all records. Blocks. On 0, *store is the caller's, until ops->close. Errors are
 * those of kvbm_disk_set_open and -ENOMEM; `failure` (may be NULL) then has a sentence. */
int kvbm_disk_open(struct kvbm_store **store, const struct kvbm_disk_options *options,
                   struct kvbm_disk_failure *failure);
/* Of a store that kvbm_disk_open made. */
void kvbm_disk_info(const struct kvbm_store *store, struct kvbm_disk_info *info);

#endif
