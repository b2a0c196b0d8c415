/*
 * disk_op.c - items at the device: what follows what.
 *
 *   read    READ -> verified -> settled
 *                -> fails its checksum -> ERASE -> settled with -KVBM_ECORRUPT, slot quarantined
 *   write   WRITE -> RECORD -> settled, slot resident
 *                 -> failed, cancelled or expired -> ERASE -> settled, slot empty
 *   erase   ERASE -> settled, slot empty
 *   flush   SYNC of each file -> finished
 *
 * A slot is BUSY from the start of a change to its end. Thread: the loop's.
 */
#include <errno.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/checksum.h"
#include "storage/disk_internal.h"

#define RETRY_COUNT_MAX 64

static struct kvbm__disk_slot *slot_of(struct kvbm__disk *d, const struct kvbm_tier_item *item) {
    return &d->slots[item->slot];
}

static void slot_set(struct kvbm__disk *d, struct kvbm__disk_slot *slot, uint8_t state) {
    kvbm__disk_count(d, KVBM__C_RESIDENT, (state == KVBM__SLOT_RESIDENT) - (slot->state == KVBM__SLOT_RESIDENT));
    kvbm__disk_count(d, KVBM__C_QUARANTINED,
                     (state == KVBM__SLOT_QUARANTINED) - (slot->state == KVBM__SLOT_QUARANTINED));
    slot->state = state;
}

static void slot_change_begins(struct kvbm__disk *d, struct kvbm__disk_slot *slot) {
    KVBM_ASSERT(slot->state != KVBM__SLOT_BUSY);
    slot->sequence++;
    slot_set(d, slot, KVBM__SLOT_BUSY);
}

void kvbm__disk_request_send(struct kvbm__disk *d, struct kvbm__disk_op *op, int kind, bool direct) {
    struct kvbm_disk_file *file = &d->set.files[op->file];
    op->request.kind = kind;
    op->request.fd = direct ? file->direct_fd : file->buffered_fd;
    op->request.fd_index = 2 * op->file + direct;
    op->submitted_ns = d->now_ns;
    d->io->ops->submit(d->io, &op->request);
}

/* ------------------------------------------------------------------------------------------------------- records */

static void send_record(struct kvbm__disk *d, struct kvbm__disk_op *op, int phase) {
    op->phase = phase;
    op->retry_count = 0;
    op->record_iov = (struct iovec){op->record, sizeof op->record};
    op->left_bytes = sizeof op->record;
    op->request.iov = &op->record_iov;
    op->request.iov_count = 1;
    op->request.offset = kvbm_disk_record_at(&d->set.files[op->file].header, op->item->slot);
    if (d->dirty_ns == 0)
        d->dirty_ns = d->now_ns;
    kvbm__disk_request_send(d, op, KVBM_DISK_WRITE, false);
}

static void record_write(struct kvbm__disk *d, struct kvbm__disk_op *op) {
    struct kvbm_disk_record record = {
        .label = op->item->label,
        .generation = op->generation = ++d->generation,
        .checksum = op->checksum,
        .slot = op->item->slot,
        .written_ns = d->os->wall_ns(d->os->ctx),
    };
    kvbm__disk_point(KVBM_DISK_POINT_WRITE_PAYLOAD);
    kvbm_disk_record_encode(&d->set.files[op->file].header, &record, op->record);
    send_record(d, op, KVBM__PHASE_RECORD);
}

/* The item ends with `status` once the record is gone. */
static void record_erase(struct kvbm__disk *d, struct kvbm__disk_op *op, int status, uint8_t slot_after) {
    op->status = status;
    op->slot_after = slot_after;
    kvbm__disk_point(KVBM_DISK_POINT_ERASE_STARTED);
    memset(op->record, 0, sizeof op->record);
    send_record(d, op, KVBM__PHASE_ERASE);
}

/* ------------------------------------------------------------------------------------------------------ payloads */

static bool needs_bounce(const struct kvbm__disk *d, const struct kvbm_tier_item *item) {
    if (item->segment_count > d->options.segments_max)
        return true;
    if (!d->all_direct)
        return false;
    for (uint32_t i = 0; i < item->segment_count; i++) {
        uint64_t bits = (uintptr_t)item->segments[i].address | item->segments[i].bytes;
        if (bits % KVBM_DISK_PAGE_BYTES != 0)
            return true;
    }
    return false;
}

static void gather(const struct kvbm__disk *d, const struct kvbm__disk_op *op) {
    uint8_t *at = op->bounce;
    for (uint32_t i = 0; i < op->item->segment_count; i++) {
        memcpy(at, op->item->segments[i].address, op->item->segments[i].bytes);
        at += op->item->segments[i].bytes;
    }
    memset(at, 0, (size_t)(d->set.files[0].header.extent_bytes - d->store.payload_bytes));
}

static void scatter(const struct kvbm__disk_op *op) {
    const uint8_t *at = op->bounce;
    for (uint32_t i = 0; i < op->item->segment_count; i++) {
        memcpy(op->item->segments[i].address, at, op->item->segments[i].bytes);
        at += op->item->segments[i].bytes;
    }
}

static void send_payload(struct kvbm__disk *d, struct kvbm__disk_op *op, int kind) {
    const struct kvbm_tier_item *item = op->item;
    const struct kvbm_disk_header *header = &d->set.files[op->file].header;
    op->left_bytes = d->store.payload_bytes;
    if (op->bounce != NULL) {
        if (d->all_direct)
            op->left_bytes = header->extent_bytes;
        op->iov[0] = (struct iovec){op->bounce, op->left_bytes};
        op->request.iov_count = 1;
    } else {
        for (uint32_t i = 0; i < item->segment_count; i++)
            op->iov[i] = (struct iovec){item->segments[i].address, item->segments[i].bytes};
        op->request.iov_count = item->segment_count;
    }
    op->request.iov = op->iov;
    op->request.offset = kvbm_disk_payload_at(header, item->slot);
    kvbm__disk_request_send(d, op, kind, true);
}

/* --------------------------------------------------------------------------------------------------- begin, end */

/* Whether the item needs the device; if not, *status is what it ends with. */
static bool item_check(struct kvbm__disk *d, const struct kvbm_tier_io *io, const struct kvbm_tier_item *item,
                       int *status) {
    const struct kvbm__disk_slot *slot = slot_of(d, item);
    *status = 0;
    if (io->op == KVBM_TIER_READ) {
        if (slot->state == KVBM__SLOT_RESIDENT && slot->group == item->label.group &&
            memcmp(slot->key, item->label.key, sizeof slot->key) == 0)
            return true;
        kvbm__disk_count(d, KVBM__C_MISS, 1);
        *status = -ENOENT;
        return false;
    }
    if (slot->state == KVBM__SLOT_BUSY) {
        *status = -EBUSY;
        return false;
    }
    return true; /* also the erasure of an empty slot, whose record may have outlived a failed one */
}

int kvbm__disk_op_start(struct kvbm__disk *d, struct kvbm_tier_io *io, struct kvbm_tier_item *item) {
    int status = 0;
    if (!item_check(d, io, item, &status)) {
        kvbm__disk_settle(d, io, item, status);
        return 0;
    }
    bool bounce = io->op != KVBM_TIER_ERASE && needs_bounce(d, item);
    if (bounce && d->free_bounce_count == 0)
        return -EAGAIN;
    struct kvbm__disk_op *op = d->free_ops;
    KVBM_ASSERT(op != NULL && op->phase == KVBM__PHASE_FREE);
    d->free_ops = op->next;
    op->io = io;
    op->item = item;
    op->retry_count = 0;
    op->file = item->slot % d->set.count;
    op->bounce = bounce ? d->free_bounces[--d->free_bounce_count] : NULL;
    op->is_read = io->op == KVBM_TIER_READ;
    op->started_ns = d->now_ns;
    struct kvbm__disk_slot *slot = slot_of(d, item);
    if (op->is_read) {
        d->device_reads++;
        d->last_read_ns = d->now_ns;
        op->sequence = slot->sequence;
        op->checksum = slot->checksum;
        op->phase = KVBM__PHASE_READ;
        send_payload(d, op, KVBM_DISK_READ);
        return 0;
    }
    d->device_writes++;
    slot_change_begins(d, slot);
    if (io->op == KVBM_TIER_ERASE) {
        record_erase(d, op, 0, KVBM__SLOT_EMPTY);
        return 0;
    }
    kvbm__disk_point(KVBM_DISK_POINT_WRITE_STARTED);
    if (bounce)
        gather(d, op);
    if (!item->has_checksum)
        item->checksum = kvbm_checksum_segments_mt(item->segments, item->segment_count);
    op->checksum = item->checksum;
    op->phase = KVBM__PHASE_WRITE;
    send_payload(d, op, KVBM_DISK_WRITE);
    return 0;
}

static void op_end(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    struct kvbm_tier_io *io = op->io;
    struct kvbm_tier_item *item = op->item;
    if (op->bounce != NULL)
        d->free_bounces[d->free_bounce_count++] = op->bounce;
    if (op->is_read)
        d->device_reads--;
    else
        d->device_writes--;
    op->phase = KVBM__PHASE_FREE;
    op->io = NULL;
    op->item = NULL;
    op->next = d->free_ops;
    d->free_ops = op;
    kvbm__disk_settle(d, io, item, status);
}

/* -------------------------------------------------------------------------------------------------- what follows */

static void after_read(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    struct kvbm_tier_item *item = op->item;
    struct kvbm__disk_slot *slot = slot_of(d, item);
    if (status == 0)
        status = kvbm__disk_io_ended(op->io);
    if (status != 0) {
        op_end(d, op, status);
        return;
    }
    if (op->bounce != NULL)
        scatter(op);
    item->checksum = op->checksum;
    if (d->options.skip_verify || kvbm_checksum_segments_mt(item->segments, item->segment_count) == op->checksum) {
        op_end(d, op, 0);
        return;
    }
    if (slot->sequence != op->sequence) {
        /* Overtaken by a change of the slot, so the bytes say nothing of what is stored. */
        kvbm__disk_count(d, KVBM__C_MISS, 1);
        op_end(d, op, -ENOENT);
        return;
    }
    kvbm__disk_count(d, KVBM__C_MISMATCH, 1);
    KVBM_LOG(d->log, WARNING, "disk", "a payload fails its checksum, its slot is quarantined slot=%u", item->slot);
    slot_change_begins(d, slot);
    record_erase(d, op, -KVBM_ECORRUPT, KVBM__SLOT_QUARANTINED);
}

static void after_write(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    if (status == 0)
        status = kvbm__disk_io_ended(op->io);
    if (status == 0)
        record_write(d, op);
    else
        record_erase(d, op, status, KVBM__SLOT_EMPTY); /* the former record is of bytes that are gone */
}

static void after_record(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    struct kvbm__disk_slot *slot = slot_of(d, op->item);
    if (status != 0) {
        record_erase(d, op, status, KVBM__SLOT_EMPTY);
        return;
    }
    kvbm__disk_point(KVBM_DISK_POINT_WRITE_RECORD);
    memcpy(slot->key, op->item->label.key, sizeof slot->key);
    slot->group = op->item->label.group;
    slot->checksum = op->checksum;
    slot_set(d, slot, KVBM__SLOT_RESIDENT);
    uint64_t took_ns = d->now_ns - op->started_ns;
    d->write_mean_ns = d->write_mean_ns == 0 ? took_ns : d->write_mean_ns - d->write_mean_ns / 8 + took_ns / 8;
    op_end(d, op, 0);
}

static void after_erase(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    slot_set(d, slot_of(d, op->item), op->slot_after);
    kvbm__disk_point(KVBM_DISK_POINT_ERASE_DONE);
    op_end(d, op, op->status != 0 ? op->status : status);
}

static void after_sync(struct kvbm__disk *d, struct kvbm__disk_op *op, int status) {
    op->phase = KVBM__PHASE_FREE;
    d->sync_status = d->sync_status != 0 ? d->sync_status : status;
    KVBM_ASSERT(d->sync_left > 0);
    if (--d->sync_left > 0)
        return;
    kvbm__disk_point(KVBM_DISK_POINT_FLUSH_DONE);
    if (d->sync_status == 0)
        kvbm__disk_count(d, KVBM__C_FLUSH, 1);
    else if (d->dirty_ns == 0)
        d->dirty_ns = d->now_ns;
    struct kvbm_tier_io *io = d->flush_io;
    d->flush_io = NULL;
    if (io != NULL) {
        io->status = d->sync_status;
        kvbm__disk_finish(d, io);
    }
}

void kvbm__disk_flush_start(struct kvbm__disk *d, struct kvbm_tier_io *io) {
    KVBM_ASSERT(d->sync_left == 0 && d->flush_io == NULL);
    kvbm__disk_point(KVBM_DISK_POINT_FLUSH_STARTED);
    d->flush_io = io;
    d->sync_left = d->set.count;
    d->sync_status = 0;
    d->dirty_ns = 0;
    for (uint32_t i = 0; i < d->set.count; i++) {
        struct kvbm__disk_op *op = &d->ops[d->options.depth + i];
        KVBM_ASSERT(op->phase == KVBM__PHASE_FREE);
        op->phase = KVBM__PHASE_SYNC;
        op->file = i;
        op->retry_count = 0;
        op->request.iov_count = 0;
        kvbm__disk_request_send(d, op, KVBM_DISK_SYNC, false);
    }
}

/* A transfer that is not whole goes on where it ended. Whether it was sent again; else *status is its result. */
static bool go_on(struct kvbm__disk *d, struct kvbm__disk_op *op, int *status) {
    struct kvbm_disk_request *request = &op->request;
    bool retry = request->result == -EAGAIN || request->result == -EINTR;
    *status = request->result < 0 ? (int)request->result : 0;
    if (retry && op->retry_count < RETRY_COUNT_MAX) {
        op->retry_count++;
    } else if (*status != 0 || request->kind == KVBM_DISK_SYNC) {
        return false;
    } else {
        uint64_t n = (uint64_t)request->result;
        KVBM_ASSERT(n <= op->left_bytes);
        op->left_bytes -= n;
        if (op->left_bytes == 0)
            return false;
        if (n == 0 || op->retry_count >= RETRY_COUNT_MAX) {
            *status = -EIO; /* the file ends here: somebody cut it */
            return false;
        }
        op->retry_count++;
        request->offset += n;
        while (n >= request->iov->iov_len) {
            n -= request->iov->iov_len;
            request->iov++;
            request->iov_count--;
        }
        request->iov->iov_base = (uint8_t *)request->iov->iov_base + n;
        request->iov->iov_len -= n;
    }
    kvbm__disk_request_send(d, op, request->kind, request->fd_index % 2 != 0);
    return true;
}

void kvbm__disk_completed(void *arg, struct kvbm_disk_request *request) {
    struct kvbm__disk *d = arg;
    struct kvbm__disk_op *op = (struct kvbm__disk_op *)request;
    int status = 0;
    if (go_on(d, op, &status))
        return;
    bool probe = op->phase == KVBM__PHASE_PROBE_WRITE || op->phase == KVBM__PHASE_PROBE_READ;
    if (!probe && status != 0)
        kvbm__disk_note_error(d, status);
    else if (op->phase == KVBM__PHASE_READ || op->phase == KVBM__PHASE_WRITE)
        kvbm__disk_note_success(d); /* not for records, which the page cache takes of a device that is gone */
    switch (op->phase) {
    case KVBM__PHASE_READ:
        after_read(d, op, status);
        break;
    case KVBM__PHASE_WRITE:
        after_write(d, op, status);
        break;
    case KVBM__PHASE_RECORD:
        after_record(d, op, status);
        break;
    case KVBM__PHASE_ERASE:
        after_erase(d, op, status);
        break;
    case KVBM__PHASE_SYNC:
        after_sync(d, op, status);
        break;
    default:
        KVBM_ASSERT(probe);
        kvbm__disk_probe_completed(d, op, status);
    }
}
