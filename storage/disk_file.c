/*
 * disk_file.c - see disk_file.h. Owns the descriptors of one set and, through them, the locks. Thread: one at a time.
 */
#include "storage/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/errors.h"

#define NEW_SUFFIX  ".new"
#define PATH_BYTES  (PATH_MAX + sizeof NEW_SUFFIX)
#define OPEN_TRIES  8 /* a file may be replaced between its open and its lock */
#define ZEROS_BYTES (UINT64_C(1) << 16)
/* How long requests of a process that has ended are waited for, and how often they are looked for. */
#define LAST_IO_WAIT_NS UINT64_C(10000000000)
#define LAST_IO_LOOK_NS UINT64_C(1000000)

void (*kvbm__disk_point_hook)(int point);

/* Fills in the failure and passes the code on. */
__attribute__((format(printf, 3, 4))) static int fail(struct kvbm_disk_failure *failure, int code, const char *format,
                                                      ...) {
    if (failure == NULL)
        return code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(failure->text, sizeof failure->text, format, args);
    va_end(args);
    return code;
}

static int fail_errno(struct kvbm_disk_failure *failure, int error, const char *what, const char *path) {
    return fail(failure, -error, "%s: %s: %s", path, what, strerrordesc_np(error));
}

static int write_all(int fd, const void *data, size_t bytes, uint64_t offset) {
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t n = pwrite(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        at += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

/* 0, -ENODATA at the end of the file, or -errno. */
static int read_all(int fd, void *data, size_t bytes, uint64_t offset) {
    uint8_t *at = data;
    while (bytes > 0) {
        ssize_t n = pread(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        at += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static void new_path(const char *path, char *text) {
    (void)snprintf(text, PATH_BYTES, "%s" NEW_SUFFIX, path);
}

static int sync_folder(const char *path) {
    char copy[PATH_BYTES];
    (void)snprintf(copy, sizeof copy, "%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fsync(fd) == 0 || errno == EINVAL ? 0 : -errno; /* EINVAL: a file system that has nothing to sync */
    close(fd);
    return rc;
}

/* ------------------------------------------------------------------------------------------------ open and lock */

/* What a byte of the file is locked for. */
enum {
    LOCK_OWNER = 0,    /* by a description that nothing but the process holds: gone when it is */
    LOCK_PAYLOADS = 1, /* by those which requests in flight hold, too: gone when the device is done */
    LOCK_RECORDS = 2,
};

static int lock(int fd, int byte) {
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_SETLK, &range) == 0)
        return 0;
    return errno == EAGAIN || errno == EACCES ? -KVBM_ELOCKED : -errno;
}

/* Opens and locks what is at `path` now: the lock of a file that was replaced meanwhile would say nothing. */
static int open_locked(const char *path, int flags, struct kvbm_disk_failure *failure) {
    for (int i = 0; i < OPEN_TRIES; i++) {
        struct stat ours, theirs;
        int fd = open(path, flags | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0)
            return fail_errno(failure, errno, "open", path);
        if ((flags & O_CREAT) != 0)
            kvbm__disk_point(KVBM_DISK_POINT_FORMAT_CREATED);
        int rc = fstat(fd, &ours) == 0 ? 0 : -errno;
        if (rc == 0 && !S_ISREG(ours.st_mode)) {
            close(fd);
            return fail(failure, -KVBM_EFOREIGN, "%s: it is not a regular file", path);
        }
        rc = rc == 0 ? lock(fd, LOCK_OWNER) : rc;
        if (rc == 0 && stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev)
            return fd;
        close(fd);
        if (rc == -KVBM_ELOCKED)
            return fail(failure, rc, "%s: it is in use by another process, or by another store of this one", path);
        if (rc != 0)
            return fail_errno(failure, -rc, "lock", path);
    }
    return fail(failure, -KVBM_ELOCKED, "%s: it is being replaced by another process again and again", path);
}

/* Another description of the file that is locked. */
static int open_again(const struct kvbm_disk_file *file, const char *path, int flags) {
    char self[64];
    struct stat ours, theirs;
    /* Through /proc, as the path may lead elsewhere by now; by the path where there is no /proc, which then must not.
     */
    (void)snprintf(self, sizeof self, "/proc/self/fd/%d", file->lock_fd);
    int fd = open(self, O_RDWR | O_CLOEXEC | flags);
    if (fd < 0 && errno == ENOENT)
        fd = open(path, O_RDWR | O_CLOEXEC | flags);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &ours) == 0 && fstat(file->lock_fd, &theirs) == 0 && ours.st_ino == theirs.st_ino &&
        ours.st_dev == theirs.st_dev)
        return fd;
    close(fd);
    return -ESTALE;
}

/* Waits for requests of an owner that has ended and whose last requests the device still has: these would land after
 * ours. */
static int lock_data(int fd, int byte, const struct kvbm_os *os) {
    _Atomic uint32_t nobody_wakes_this = 0;
    uint64_t until_ns = os->now_ns(os->ctx) + LAST_IO_WAIT_NS;
    for (;;) {
        int rc = lock(fd, byte);
        uint64_t now_ns = os->now_ns(os->ctx);
        if (rc != -KVBM_ELOCKED || now_ns >= until_ns)
            return rc;
        os->wait_u32(os->ctx, &nobody_wakes_this, 0, now_ns + LAST_IO_LOOK_NS);
    }
}

/* The descriptors of a file that is locked and checked. A file system that refuses O_DIRECT refuses it at open or at
 * the first read. */
static int open_data(struct kvbm_disk_file *file, const struct kvbm_os *os, struct kvbm_logger *log, const char *path,
                     bool no_direct) {
    _Alignas(KVBM_DISK_PAGE_BYTES) uint8_t page[KVBM_DISK_PAGE_BYTES];
    int fd = open_again(file, path, 0);
    if (fd < 0)
        return fd;
    file->buffered_fd = file->direct_fd = fd;
    int rc = lock_data(fd, LOCK_RECORDS, os);
    if (rc != 0 || no_direct)
        return rc;
    fd = open_again(file, path, O_DIRECT);
    rc = fd < 0 ? fd : read_all(fd, page, sizeof page, 0);
    if (rc == 0) {
        file->direct = true;
        file->direct_fd = fd;
        return lock_data(fd, LOCK_PAYLOADS, os);
    }
    KVBM_LOG(log, WARNING, "disk", "no O_DIRECT here, going through the page cache path=%s error=%s", path,
             kvbm_error_name_mt(rc));
    if (fd >= 0)
        close(fd);
    return 0;
}

static const struct kvbm_disk_file no_file = {.lock_fd = -1, .buffered_fd = -1, .direct_fd = -1};

static void file_close(struct kvbm_disk_file *file) {
    if (file->direct)
        close(file->direct_fd);
    if (file->buffered_fd >= 0)
        close(file->buffered_fd);
    if (file->lock_fd >= 0)
        close(file->lock_fd); /* with the lock */
    *file = no_file;
}

void kvbm_disk_set_close(struct kvbm_disk_set *set) {
    for (uint32_t i = 0; i < set->count; i++)
        file_close(&set->files[i]);
    set->count = 0;
}

/* Header and size. 0, -KVBM_EFOREIGN or an error of the system. */
static int read_header(int fd, const char *path, struct kvbm_disk_header *header, struct kvbm_disk_failure *failure) {
    uint8_t page[KVBM_DISK_PAGE_BYTES];
    struct stat status;
    const char *why = NULL;
    int rc = read_all(fd, page, sizeof page, 0);
    if (rc == -ENODATA)
        return fail(failure, -KVBM_EFOREIGN, "%s: it is too short for a KVBM slab file", path);
    if (rc != 0)
        return fail_errno(failure, -rc, "read of the header", path);
    rc = kvbm_disk_header_decode(page, header, &why);
    if (rc != 0)
        return fail(failure, rc, "%s: %s", path, why);
    if (fstat(fd, &status) != 0)
        return fail_errno(failure, errno, "stat", path);
    if ((uint64_t)status.st_size != header->file_bytes)
        return fail(failure, -KVBM_EFOREIGN, "%s: it has %lld bytes, its header says %llu", path,
                    (long long)status.st_size, (unsigned long long)header->file_bytes);
    return 0;
}

int kvbm_disk_file_inspect(const char *path, struct kvbm_disk_header *header, struct kvbm_disk_failure *failure) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(failure, errno, "open", path);
    int rc = read_header(fd, path, header, failure);
    close(fd);
    return rc;
}

/* ------------------------------------------------------------------------------------------------------- format */

/* Every byte gets its place on the device now. */
static int allocate(int fd, uint64_t bytes) {
    int rc = 0;
    do {
        rc = fallocate(fd, 0, 0, (off_t)bytes) == 0 ? 0 : -errno;
    } while (rc == -EINTR);
    if (rc != -EOPNOTSUPP && rc != -ENOSYS)
        return rc;
    static const uint8_t zeros[ZEROS_BYTES];
    for (uint64_t at = 0; at < bytes; at += ZEROS_BYTES) {
        uint64_t n = bytes - at < ZEROS_BYTES ? bytes - at : ZEROS_BYTES;
        rc = write_all(fd, zeros, n, at);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Makes PATH.new whole, and leaves its locked descriptor in file->lock_fd. */
static int format_one(struct kvbm_disk_file *file, const char *path, struct kvbm_disk_failure *failure) {
    char fresh[PATH_BYTES];
    uint8_t page[KVBM_DISK_PAGE_BYTES];
    new_path(path, fresh);
    int fd = open_locked(fresh, O_CREAT, failure);
    if (fd < 0)
        return fd;
    file->lock_fd = fd;
    kvbm__disk_point(KVBM_DISK_POINT_FORMAT_LOCKED);
    const char *what = "truncate";
    int rc = ftruncate(fd, 0) == 0 ? 0 : -errno; /* left by a format that was killed */
    if (rc == 0) {
        what = "allocation of the whole file";
        rc = allocate(fd, file->header.file_bytes);
        kvbm__disk_point(KVBM_DISK_POINT_FORMAT_ALLOCATED);
    }
    if (rc == 0) {
        what = "sync"; /* the zeros of the records before the header that vouches for them */
        rc = fsync(fd) == 0 ? 0 : -errno;
    }
    if (rc == 0) {
        what = "write of the header";
        kvbm_disk_header_encode(&file->header, page);
        rc = write_all(fd, page, sizeof page, 0);
        kvbm__disk_point(KVBM_DISK_POINT_FORMAT_HEADER);
    }
    if (rc == 0) {
        what = "sync";
        rc = fsync(fd) == 0 ? 0 : -errno;
    }
    if (rc == 0)
        return 0;
    unlink(fresh);
    if (rc == -ENOSPC)
        return fail(failure, rc, "%s: no space for %llu bytes: %s", path, (unsigned long long)file->header.file_bytes,
                    strerrordesc_np(ENOSPC));
    return fail_errno(failure, -rc, what, path);
}

static int bring_into_place(const char *path, struct kvbm_disk_failure *failure) {
    char fresh[PATH_BYTES];
    new_path(path, fresh);
    if (rename(fresh, path) != 0)
        return fail_errno(failure, errno, "rename into place", path);
    kvbm__disk_point(KVBM_DISK_POINT_FORMAT_RENAMED);
    int rc = sync_folder(path);
    return rc == 0 ? 0 : fail_errno(failure, -rc, "sync of its folder", path);
}

/* `former` are locked and stay so until the new files are in their place. */
static int format_set(struct kvbm_disk_set *set, const struct kvbm_os *os, const struct kvbm_disk_set_options *options,
                      const struct kvbm_disk_header *wanted, struct kvbm_disk_failure *failure) {
    uint64_t set_id[2] = {os->random_u64(os->ctx), os->random_u64(os->ctx)};
    uint64_t created_ns = os->wall_ns(os->ctx);
    int rc = 0;
    for (uint32_t i = 0; i < options->path_count && rc == 0; i++) {
        set->files[i] = no_file;
        set->files[i].header = wanted[i];
        memcpy(set->files[i].header.set_id, set_id, sizeof set_id);
        set->files[i].header.created_ns = created_ns;
        set->count = i + 1;
        rc = format_one(&set->files[i], options->paths[i], failure);
    }
    if (rc != 0) {
        /* Those that became whole; the failed one took itself away. */
        for (uint32_t i = 0; i + 1 < set->count; i++) {
            char fresh[PATH_BYTES];
            new_path(options->paths[i], fresh);
            unlink(fresh);
        }
    } else {
        kvbm__disk_point(KVBM_DISK_POINT_FORMAT_SYNCED);
        for (uint32_t i = 0; i < options->path_count && rc == 0; i++)
            rc = bring_into_place(options->paths[i], failure);
        kvbm__disk_point(KVBM_DISK_POINT_FORMAT_DONE);
    }
    if (rc != 0)
        kvbm_disk_set_close(set);
    set->formatted = rc == 0;
    return rc;
}

/* Finishes a format that was killed between its renames: a PATH.new that is whole and of the same set as a file in
 * place is renamed. (Files are renamed only when all of them are whole.) Any failure shows later, as a file that is not
 * of the set. */
static void finish_format(const struct kvbm_disk_set_options *options) {
    struct kvbm_disk_header placed[KVBM_DISK_STRIPE_COUNT_MAX] = {0};
    bool there[KVBM_DISK_STRIPE_COUNT_MAX] = {false};
    for (uint32_t i = 0; i < options->path_count; i++)
        there[i] = kvbm_disk_file_inspect(options->paths[i], &placed[i], NULL) == 0;
    for (uint32_t i = 0; i < options->path_count; i++) {
        char fresh[PATH_BYTES];
        struct kvbm_disk_header header = {0};
        new_path(options->paths[i], fresh);
        if (kvbm_disk_file_inspect(fresh, &header, NULL) != 0 || header.stripe_index != i)
            continue;
        bool same = false;
        for (uint32_t j = 0; j < options->path_count; j++)
            same = same || (there[j] && memcmp(placed[j].set_id, header.set_id, 16) == 0);
        /* Locked: a format at work in another process has it. */
        int fd = same ? open_locked(fresh, 0, NULL) : -1;
        if (fd >= 0) {
            (void)bring_into_place(options->paths[i], NULL);
            close(fd);
        }
    }
}

/* --------------------------------------------------------------------------------------------------------- open */

/* Opens, locks and checks the file of stripe i. On -KVBM_EFOREIGN it stays open and locked. */
static int open_one(struct kvbm_disk_set *set, uint32_t i, const struct kvbm_disk_set_options *options,
                    const struct kvbm_disk_header *wanted, struct kvbm_disk_failure *failure) {
    struct kvbm_disk_file *file = &set->files[i];
    const char *path = options->paths[i];
    char text[512];
    *file = no_file;
    set->count = i + 1;
    int fd = open_locked(path, 0, failure);
    if (fd < 0)
        return fd;
    file->lock_fd = fd;
    kvbm__disk_point(KVBM_DISK_POINT_OPEN_LOCKED);
    int rc = read_header(fd, path, &file->header, failure);
    if (rc != 0)
        return rc;
    if (kvbm_disk_header_differs(&wanted[i], &file->header, text, sizeof text) != 0)
        return fail(failure, -KVBM_EFOREIGN, "%s: %s", path, text);
    if (memcmp(file->header.set_id, set->files[0].header.set_id, 16) != 0)
        return fail(failure, -KVBM_EFOREIGN, "%s: it was not formatted together with %s", path, options->paths[0]);
    return 0;
}

static int check_options(const struct kvbm_disk_set_options *options, struct kvbm_disk_header *wanted,
                         struct kvbm_disk_failure *failure) {
    if (options->path_count == 0 || options->path_count > KVBM_DISK_STRIPE_COUNT_MAX)
        return fail(failure, -EINVAL, "%u paths: 1 to %u are allowed", options->path_count, KVBM_DISK_STRIPE_COUNT_MAX);
    if (options->mode < KVBM_DISK_OPEN || options->mode > KVBM_DISK_FORMAT)
        return fail(failure, -EINVAL, "mode %d is none of enum kvbm_disk_mode", options->mode);
    for (uint32_t i = 0; i < options->path_count; i++) {
        if (options->paths[i] == NULL || options->paths[i][0] == '\0' || strlen(options->paths[i]) >= PATH_MAX)
            return fail(failure, -EINVAL, "path %u is empty or too long", i);
        wanted[i] = (struct kvbm_disk_header){
            .payload_bytes = options->payload_bytes,
            .capacity_blocks = options->capacity_blocks,
            .stripe_index = i,
            .stripe_count = options->path_count,
        };
        memcpy(wanted[i].namespace_id, options->namespace_id, 16);
        if (kvbm_disk_header_init(&wanted[i]) != 0)
            return fail(failure, -EINVAL,
                        "%u blocks of %llu bytes over %u files: 1 byte to 1 GiB a block and a block a file are needed",
                        options->capacity_blocks, (unsigned long long)options->payload_bytes, options->path_count);
    }
    return 0;
}

/* Opens all; *missing counts files that are not there. What could be opened is locked, also after a failure. */
static int open_all(struct kvbm_disk_set *set, const struct kvbm_disk_set_options *options,
                    const struct kvbm_disk_header *wanted, uint32_t *missing, struct kvbm_disk_failure *failure) {
    int first = 0;
    *missing = 0;
    for (uint32_t i = 0; i < options->path_count; i++) {
        struct kvbm_disk_failure here = {""};
        int rc = open_one(set, i, options, wanted, &here);
        *missing += rc == -ENOENT;
        /* An error that replacing does not heal counts for more than one that it does. */
        bool heals = rc == -ENOENT || rc == -KVBM_EFOREIGN;
        if (rc != 0 && (first == 0 || ((first == -ENOENT || first == -KVBM_EFOREIGN) && !heals))) {
            first = rc;
            if (failure != NULL)
                *failure = here;
        }
    }
    return first;
}

int kvbm_disk_set_open(struct kvbm_disk_set *set, const struct kvbm_os *os, struct kvbm_logger *log,
                       const struct kvbm_disk_set_options *options, struct kvbm_disk_failure *failure) {
    struct kvbm_disk_header wanted[KVBM_DISK_STRIPE_COUNT_MAX];
    uint32_t missing = 0;
    memset(set, 0, sizeof *set);
    int rc = check_options(options, wanted, failure);
    if (rc != 0)
        return rc;
    finish_format(options);
    rc = open_all(set, options, wanted, &missing, failure);
    bool format = options->mode == KVBM_DISK_FORMAT && (rc == 0 || rc == -ENOENT || rc == -KVBM_EFOREIGN);
    format = format || (options->mode == KVBM_DISK_REPLACE && (rc == -ENOENT || rc == -KVBM_EFOREIGN));
    format = format || (options->mode == KVBM_DISK_CREATE && missing == options->path_count);
    if (format) {
        struct kvbm_disk_set former = *set;
        if (rc == -KVBM_EFOREIGN)
            KVBM_LOG(log, WARNING, "disk", "replacing: %s", failure != NULL ? failure->text : options->paths[0]);
        memset(set, 0, sizeof *set);
        rc = format_set(set, os, options, wanted, failure);
        kvbm_disk_set_close(&former);
    }
    if (rc != 0) {
        kvbm_disk_set_close(set);
        return rc;
    }
    for (uint32_t i = 0; i < set->count; i++) {
        rc = open_data(&set->files[i], os, log, options->paths[i], options->no_direct);
        if (rc != 0) {
            kvbm_disk_set_close(set);
            if (rc == -KVBM_ELOCKED)
                return fail(failure, rc, "%s: the device does not finish what a process asked for that has ended",
                            options->paths[i]);
            return fail_errno(failure, -rc, "open again", options->paths[i]);
        }
    }
    if (failure != NULL)
        failure->text[0] = '\0';
    return 0;
}
