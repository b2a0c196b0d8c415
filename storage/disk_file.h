/*
 * disk_file.h - the slab files of a store: formatted, opened, locked, checked or refused.
 *
 * A set is one file a path; slot s is in file s % count. Formatting makes each file beside its path (PATH.new), locks
 * it, allocates all its bytes, so that a full file system is met here and not later, writes the header last, syncs, and
 * when all files are whole renames them into place. A kill at any instruction leaves the former files, or a set that
 * the next open brings into place, or both halves of that. Files are locked against other processes (OFD lock) for as
 * long as the set is open; the kernel drops the lock when the process ends, however it ends, and a second lock when the
 * device is done with its last requests, which an open waits for. Forked children share the
 * lock while they hold the descriptors.
 *
 * Thread: one at a time; these calls block. No allocation, but for KVBM_DISK_PAGE_BYTES on the stack.
 */
#ifndef KVBM_STORAGE_DISK_FILE_H
#define KVBM_STORAGE_DISK_FILE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "runtime/log.h"
#include "runtime/os.h"
#include "storage/disk_format.h"

enum kvbm_disk_mode {
    KVBM_DISK_OPEN = 0,    /* the files must be there and be what is wanted */
    KVBM_DISK_CREATE = 1,  /* formatted if none of them is there; refused if they are not what is wanted */
    KVBM_DISK_REPLACE = 2, /* formatted also if they are not what is wanted, which loses what they held */
    KVBM_DISK_FORMAT = 3,  /* formatted in any case */
};

/* Why an open was refused, as a sentence that names the file. */
struct kvbm_disk_failure {
    char text[1024];
};

struct kvbm_disk_file {
    int lock_fd;     /* holds the lock and nothing else: a ring that outlives its process for a while cannot hold it */
    int buffered_fd; /* records */
    int direct_fd;   /* payloads; O_DIRECT where the file system can, else the same as buffered_fd */
    bool direct;
    struct kvbm_disk_header header;
};

struct kvbm_disk_set {
    uint32_t count;
    bool formatted; /* by this open: it holds nothing */
    struct kvbm_disk_file files[KVBM_DISK_STRIPE_COUNT_MAX];
};

struct kvbm_disk_set_options {
    const char *const *paths;
    uint32_t path_count;
    uint8_t namespace_id[16];
    uint64_t payload_bytes;
    uint32_t capacity_blocks;
    int mode;       /* enum kvbm_disk_mode */
    bool no_direct; /* through the page cache, even where O_DIRECT works */
};

/* 0; -EINVAL (options); -ENOENT (KVBM_DISK_OPEN and a file is missing); -KVBM_EFOREIGN; -KVBM_ELOCKED; -ENOSPC and
 * other errors of the system. On failure nothing is open and `failure`, if not NULL, says what and where. */
int kvbm_disk_set_open(struct kvbm_disk_set *set, const struct kvbm_os *os, struct kvbm_logger *log,
                       const struct kvbm_disk_set_options *options, struct kvbm_disk_failure *failure);
void kvbm_disk_set_close(struct kvbm_disk_set *set);

/* Reads the header of a file that may be in use by another process: 0, -KVBM_EFOREIGN or an error of the system. */
int kvbm_disk_file_inspect(const char *path, struct kvbm_disk_header *header, struct kvbm_disk_failure *failure);

/* Numbered points of what must survive a kill; tests stop the process there. NULL: none. Set before a store is opened
 * and not changed while one is. */
enum kvbm_disk_point {
    KVBM_DISK_POINT_FORMAT_CREATED = 1, /* PATH.new exists, empty */
    KVBM_DISK_POINT_FORMAT_LOCKED,
    KVBM_DISK_POINT_FORMAT_ALLOCATED,
    KVBM_DISK_POINT_FORMAT_HEADER,  /* header written, not synced */
    KVBM_DISK_POINT_FORMAT_SYNCED,  /* all files are whole, none is in place */
    KVBM_DISK_POINT_FORMAT_RENAMED, /* after each rename */
    KVBM_DISK_POINT_FORMAT_DONE,
    KVBM_DISK_POINT_OPEN_LOCKED,
    KVBM_DISK_POINT_OPEN_SCANNED,
    KVBM_DISK_POINT_WRITE_STARTED, /* the payload is about to go */
    KVBM_DISK_POINT_WRITE_PAYLOAD, /* the payload is there, its record is about to go */
    KVBM_DISK_POINT_WRITE_RECORD,  /* the record is there, nobody was told */
    KVBM_DISK_POINT_WRITE_DONE,    /* whoever waited was told */
    KVBM_DISK_POINT_ERASE_STARTED,
    KVBM_DISK_POINT_ERASE_DONE,
    KVBM_DISK_POINT_FLUSH_STARTED,
    KVBM_DISK_POINT_FLUSH_DONE,
    KVBM_DISK_POINT_CLOSE_STARTED,
    KVBM_DISK_POINT_CLOSE_IDLE, /* nothing is in flight, the files are about to be closed */
    KVBM_DISK_POINT_COUNT,
};
extern void (*kvbm__disk_point_hook)(int point);

static inline void kvbm__disk_point(int point) {
    if (__builtin_expect(kvbm__disk_point_hook != NULL, 0))
        kvbm__disk_point_hook(point);
}

#endif
