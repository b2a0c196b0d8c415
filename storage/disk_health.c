/*
 * disk_health.c - deadlines, stalls, degradation and the way back. Thread: the loop's.
 *
 * Levels: healthy; no writes (the device is full or read-only); no requests at all. A level only rises until a probe
 * writes the scratch page and reads the header of each file, with nothing overdue; then it is healthy again. The wait
 * between probes doubles while they fail, and shrinks again only when real requests succeed, so that a device which
 * passes probes and fails work is not asked again and again.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/disk_internal.h"

#define PROBE_WAIT_NS_MAX UINT64_C(30000000000)

static void degrade(struct kvbm__disk *d, int level, const char *why, int error) {
    if (level <= d->level)
        return;
    if (d->level == KVBM__HEALTHY) {
        kvbm__disk_count(d, KVBM__C_DEGRADED, 1);
        d->probe_at_ns = d->now_ns + d->probe_wait_ns;
    }
    d->level = level;
    atomic_store_explicit(&d->counters[KVBM__C_LEVEL], (uint64_t)level, memory_order_relaxed);
    KVBM_LOG(d->log, WARNING, "disk", "degraded: %s, refusing %s until a probe succeeds error=%s probe_in_ms=%" PRIu64,
             why, level == KVBM__NO_IO ? "all requests" : "writes", kvbm_error_name_mt(error),
             d->probe_wait_ns / 1000000);
    kvbm__disk_end_line(d, KVBM__LINE_WRITE, -KVBM_EDEGRADED);
    if (level == KVBM__NO_IO) {
        kvbm__disk_end_line(d, KVBM__LINE_READ, -KVBM_EDEGRADED);
        kvbm__disk_end_line(d, KVBM__LINE_FLUSH, -KVBM_EDEGRADED);
    }
}

void kvbm__disk_note_error(struct kvbm__disk *d, int error) {
    kvbm__disk_count(d, KVBM__C_IO_ERROR, 1);
    d->error_run++;
    switch (-error) {
    case ENOSPC:
    case EDQUOT:
        kvbm__disk_count(d, KVBM__C_NO_SPACE, 1);
        degrade(d, KVBM__NO_WRITES, "no space", error);
        break;
    case EROFS:
        degrade(d, KVBM__NO_WRITES, "the file system is read-only", error);
        break;
    case ENODEV:
    case ENXIO:
    case ESTALE:
    case ENOTCONN:
    case ESHUTDOWN:
    case EBADF:
        degrade(d, KVBM__NO_IO, "the device is gone", error);
        break;
    default:
        if (d->error_run >= d->options.error_limit)
            degrade(d, KVBM__NO_IO, "errors in a row", error);
    }
}

void kvbm__disk_note_success(struct kvbm__disk *d) {
    d->error_run = 0;
    if (d->level == KVBM__HEALTHY)
        d->probe_wait_ns = d->options.probe_ns;
}

/* ---------------------------------------------------------------------------------------------------------- probes */

static struct kvbm__disk_op *probe_op(struct kvbm__disk *d) {
    return &d->ops[d->options.depth + d->set.count];
}

static void probe_send(struct kvbm__disk *d, struct kvbm__disk_op *op, int phase) {
    bool write = phase == KVBM__PHASE_PROBE_WRITE;
    op->phase = phase;
    op->retry_count = 0;
    op->left_bytes = KVBM_DISK_PAGE_BYTES;
    op->record_iov = (struct iovec){d->page, KVBM_DISK_PAGE_BYTES};
    op->request.iov = &op->record_iov;
    op->request.iov_count = 1;
    op->request.offset = write ? KVBM_DISK_SCRATCH_OFFSET : 0;
    kvbm__disk_request_send(d, op, write ? KVBM_DISK_WRITE : KVBM_DISK_READ, true);
}

static void probe_start(struct kvbm__disk *d) {
    struct kvbm__disk_op *op = probe_op(d);
    KVBM_ASSERT(!d->probing && op->phase == KVBM__PHASE_FREE);
    d->probing = true;
    op->file = 0;
    memset(d->page, 0, KVBM_DISK_PAGE_BYTES);
    probe_send(d, op, KVBM__PHASE_PROBE_WRITE);
}

/* Whether a request has been at the device for too long. */
static bool overdue(const struct kvbm__disk *d) {
    for (uint32_t i = 0; i < d->options.depth + d->set.count; i++) {
        const struct kvbm__disk_op *op = &d->ops[i];
        if (op->phase != KVBM__PHASE_FREE && d->now_ns > op->submitted_ns + d->options.stall_ns)
            return true;
    }
    return false;
}

static void probe_end(struct kvbm__disk *d, int status) {
    probe_op(d)->phase = KVBM__PHASE_FREE;
    d->probing = false;
    if (status == 0 && overdue(d))
        status = -ETIMEDOUT;
    d->probe_wait_ns *= 2;
    if (d->probe_wait_ns > PROBE_WAIT_NS_MAX)
        d->probe_wait_ns = PROBE_WAIT_NS_MAX;
    d->probe_at_ns = d->now_ns + d->probe_wait_ns;
    if (status != 0) {
        KVBM_LOG(d->log, DEBUG, "disk", "probe failed error=%s", kvbm_error_name_mt(status));
        return;
    }
    d->level = KVBM__HEALTHY;
    d->error_run = 0;
    atomic_store_explicit(&d->counters[KVBM__C_LEVEL], 0, memory_order_relaxed);
    kvbm__disk_count(d, KVBM__C_RECOVERED, 1);
    KVBM_LOG(d->log, WARNING, "disk", "recovered: a probe succeeded");
}

void kvbm__disk_probe_completed(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    KVBM_ASSERT(d->probing);
    if (status == 0 && op->phase == KVBM__PHASE_PROBE_WRITE) {
        probe_send(d, op, KVBM__PHASE_PROBE_READ);
        return;
    }
    if (status == 0) {
        struct kvbm_disk_header header;
        const char *why = NULL;
        status = kvbm_disk_header_decode(d->page, &header, &why);
        if (status == 0 && memcmp(header.set_id, d->set.files[op->file].header.set_id, 16) != 0)
            status = -KVBM_EFOREIGN;
    }
    if (status == 0 && ++op->file < d->set.count) {
        memset(d->page, 0, KVBM_DISK_PAGE_BYTES);
        probe_send(d, op, KVBM__PHASE_PROBE_WRITE);
        return;
    }
    probe_end(d, status);
}

/* ------------------------------------------------------------------------------------------------------- deadlines */

static bool passed(const struct kvbm__disk *d, const struct kvbm_tier_io *io) {
    return io->deadline_ns != 0 && d->now_ns >= io->deadline_ns;
}

/* The io's deadline has passed and the hardware has a part of it. Tells whoever waits, once. */
static void expire(struct kvbm__disk *d, struct kvbm_tier_io *io) {
    if ((io->flags & KVBM__IO_EXPIRED) != 0)
        return;
    io->flags |= KVBM__IO_EXPIRED;
    kvbm__disk_count(d, KVBM__C_LATE, 1);
    if ((io->flags & KVBM__IO_IN_LINE) != 0)
        kvbm__disk_end_rest(d, io, -ETIMEDOUT);
    if (io->late != NULL)
        io->late(io);
}

static void expire_line(struct kvbm__disk *d, int line) {
    struct kvbm_tier_io *next = NULL;
    for (struct kvbm_tier_io *io = d->lines[line].head; io != NULL; io = next) {
        next = io->next;
        /* What has a part at the device is seen there. */
        if (passed(d, io) && (io->items_next == 0 || io->items_left == io->item_count - io->items_next))
            kvbm__disk_end_rest(d, io, -ETIMEDOUT);
    }
}

void kvbm__disk_tick_soon(struct kvbm__disk *d, bool busy) {
    uint64_t at_ns = KVBM_NO_DEADLINE;
    if (busy)
        at_ns = d->now_ns + KVBM__DISK_TICK_NS;
    else if (d->level != KVBM__HEALTHY && !d->probing)
        at_ns = d->probe_at_ns;
    if (d->options.flush_ns != 0 && d->dirty_ns != 0 && d->level != KVBM__NO_IO) {
        uint64_t flush_ns = d->dirty_ns + d->options.flush_ns;
        at_ns = flush_ns < at_ns ? flush_ns : at_ns;
    }
    /* A tick that comes earlier does no harm. */
    if (at_ns < d->tick_ns) {
        d->tick_ns = at_ns;
        kvbm_turn_at(&d->turn, at_ns);
    }
}

void kvbm__disk_tick(struct kvbm__disk *d) {
    if (d->now_ns < d->tick_ns) {
        kvbm_turn_at(&d->turn, d->tick_ns); /* nothing to do if it is set */
        return;
    }
    d->tick_ns = KVBM_NO_DEADLINE;
    for (uint32_t i = 0; i < d->options.depth; i++) {
        struct kvbm__disk_op *op = &d->ops[i];
        if (op->phase != KVBM__PHASE_FREE && passed(d, op->io))
            expire(d, op->io);
    }
    if (d->flush_io != NULL && passed(d, d->flush_io))
        expire(d, d->flush_io);
    for (int line = 0; line < KVBM__LINE_COUNT; line++)
        expire_line(d, line);
    if (d->level < KVBM__NO_IO && overdue(d))
        degrade(d, KVBM__NO_IO, "a request does not come back", -ETIMEDOUT);
    if (d->closing != 0)
        return;
    if (d->level != KVBM__HEALTHY && !d->probing && d->now_ns >= d->probe_at_ns)
        probe_start(d);
    bool flush = d->options.flush_ns != 0 && d->dirty_ns != 0 && d->level != KVBM__NO_IO;
    if (flush && d->sync_left == 0 && d->now_ns >= d->dirty_ns + d->options.flush_ns)
        kvbm__disk_flush_start(d, NULL);
}
