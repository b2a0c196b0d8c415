/*
 * disk.c - the disk store: lines, the turn of the loop, open and close. See disk.h. Owns everything of a store.
 *
 * A turn starts what the lines and the depth allow, hands it to the backend in one call, takes what completed, tells
 * whoever waited, and repeats that a few times while it gets anywhere, as a write goes to the device twice (payload,
 * record). Callbacks come from the end of a turn, so they may submit. Thread: the loop's.
 */
#include "storage/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "storage/disk_internal.h"
#include "storage/disk_pread.h"

#define TURN_ROUNDS_MAX  16
#define SCAN_BYTES       (UINT64_C(1) << 20)
#define MIXED_NS         UINT64_C(10000000) /* reads count as coming for that long */
#define DEPTH_DEFAULT    64u
#define LINE_DEFAULT     4096u
#define SEGMENTS_DEFAULT 16u
#define BOUNCE_DEFAULT   4u
#define THREADS_DEFAULT  8u
#define ERRORS_DEFAULT   4u
#define NS_PER_SECOND    UINT64_C(1000000000)

static struct kvbm__disk *disk_of(struct kvbm_store *store) {
    return (struct kvbm__disk *)store;
}

/* ----------------------------------------------------------------------------------------------------------- lines */

static void list_append(struct kvbm__disk_list *list, struct kvbm_tier_io *io) {
    io->next = NULL;
    if (list->tail != NULL)
        list->tail->next = io;
    else
        list->head = io;
    list->tail = io;
}

static void list_remove(struct kvbm__disk_list *list, struct kvbm_tier_io *io) {
    struct kvbm_tier_io *before = NULL;
    struct kvbm_tier_io **link = &list->head;
    while (*link != io) {
        KVBM_ASSERT(*link != NULL);
        before = *link;
        link = &before->next;
    }
    *link = io->next;
    if (list->tail == io)
        list->tail = before;
    io->next = NULL;
}

static void line_remove(struct kvbm__disk *d, struct kvbm_tier_io *io) {
    KVBM_ASSERT((io->flags & KVBM__IO_IN_LINE) != 0);
    list_remove(&d->lines[kvbm__disk_line_of(io)], io);
    io->flags &= ~(uint32_t)KVBM__IO_IN_LINE;
}

int kvbm__disk_io_ended(const struct kvbm_tier_io *io) {
    if ((io->flags & KVBM__IO_CANCELLED) != 0)
        return -ECANCELED;
    return (io->flags & KVBM__IO_EXPIRED) != 0 ? -ETIMEDOUT : 0;
}

void kvbm__disk_finish(struct kvbm__disk *d, struct kvbm_tier_io *io) {
    KVBM_ASSERT(io->items_left == 0 && (io->flags & KVBM__IO_IN_LINE) == 0);
    list_append(&d->finished, io);
}

void kvbm__disk_settle(struct kvbm__disk *d, struct kvbm_tier_io *io, struct kvbm_tier_item *item, int status) {
    static const int done[] = {
        [KVBM_TIER_READ] = KVBM__C_READ, [KVBM_TIER_WRITE] = KVBM__C_WRITE, [KVBM_TIER_ERASE] = KVBM__C_ERASE};
    KVBM_ASSERT(io->items_left > 0);
    item->status = status;
    if (status == 0)
        kvbm__disk_count(d, done[io->op], 1);
    else if (status == -ECANCELED)
        kvbm__disk_count(d, KVBM__C_CANCELLED, 1);
    else if (status == -ETIMEDOUT)
        kvbm__disk_count(d, KVBM__C_TIMED_OUT, 1);
    if (io->status == 0)
        io->status = status;
    if (--io->items_left == 0)
        kvbm__disk_finish(d, io);
}

void kvbm__disk_end_rest(struct kvbm__disk *d, struct kvbm_tier_io *io, int status) {
    struct kvbm__disk_list *line = &d->lines[kvbm__disk_line_of(io)];
    line_remove(d, io);
    if (io->op == KVBM_TIER_FLUSH) {
        line->items--;
        io->status = status;
        kvbm__disk_finish(d, io);
        return;
    }
    uint32_t count = io->item_count;
    while (io->items_next < count) { /* the last one finishes the io, unless the device has some */
        line->items--;
        struct kvbm_tier_item *item = &io->items[io->items_next++];
        kvbm__disk_settle(d, io, item, status);
    }
}

void kvbm__disk_end_line(struct kvbm__disk *d, int line, int status) {
    while (d->lines[line].head != NULL)
        kvbm__disk_end_rest(d, d->lines[line].head, status);
}

/* ---------------------------------------------------------------------------------------------------------- submit */

static int check_io(const struct kvbm__disk *d, const struct kvbm_tier_io *io) {
    if (io->done == NULL || io->op < KVBM_TIER_READ || io->op > KVBM_TIER_FLUSH)
        return -EINVAL;
    if (io->op == KVBM_TIER_FLUSH)
        return io->item_count == 0 ? 0 : -EINVAL;
    if (io->item_count == 0 || io->item_count > d->store.items_max)
        return -EINVAL;
    for (uint32_t i = 0; i < io->item_count; i++) {
        const struct kvbm_tier_item *item = &io->items[i];
        uint64_t bytes = 0;
        if (item->slot >= d->store.capacity_blocks)
            return -EINVAL;
        if (io->op == KVBM_TIER_ERASE)
            continue;
        for (uint32_t s = 0; s < item->segment_count; s++) {
            if (item->segments[s].bytes > d->store.payload_bytes)
                return -EINVAL;
            bytes += item->segments[s].bytes;
        }
        if (bytes != d->store.payload_bytes)
            return -EINVAL;
    }
    return 0;
}

static uint32_t write_depth(const struct kvbm__disk *d) {
    bool mixed = d->lines[KVBM__LINE_READ].head != NULL || d->device_reads > 0 ||
                 (d->last_read_ns != 0 && d->now_ns < d->last_read_ns + MIXED_NS);
    return mixed ? d->options.write_depth_mixed : d->options.depth;
}

/* Whether a write of so many items would wait for too long. An idle device takes any. */
static bool behind(const struct kvbm__disk *d, uint32_t count) {
    const struct kvbm__disk_list *line = &d->lines[KVBM__LINE_WRITE];
    if (line->items + d->device_writes == 0 || d->options.shed_wait_ns == UINT64_MAX)
        return false;
    double wait_ns = (double)d->write_mean_ns * (double)(line->items + count) / (double)write_depth(d);
    return wait_ns > (double)d->options.shed_wait_ns;
}

static int admit(struct kvbm__disk *d, const struct kvbm_tier_io *io, uint32_t count) {
    bool write = kvbm__disk_line_of(io) == KVBM__LINE_WRITE;
    int line = kvbm__disk_line_of(io);
    uint32_t limit = line == KVBM__LINE_FLUSH ? KVBM_DISK_FLUSH_LINE : d->options.line_items;
    int rc = 0;
    if (d->level == KVBM__NO_IO || (d->level == KVBM__NO_WRITES && write))
        rc = -KVBM_EDEGRADED;
    else if (count > limit - d->lines[line].items)
        rc = -EAGAIN;
    if (rc != 0) {
        kvbm__disk_count(d, KVBM__C_REFUSED, count);
        return rc;
    }
    if (io->op == KVBM_TIER_WRITE && behind(d, count)) {
        kvbm__disk_count(d, KVBM__C_SHED, count);
        return -KVBM_ESHED;
    }
    return 0;
}

static int disk_submit(struct kvbm_store *store, struct kvbm_tier_io *io) {
    struct kvbm__disk *d = disk_of(store);
    if (d->closing != 0)
        return -KVBM_ECLOSED;
    int rc = check_io(d, io);
    if (rc != 0)
        return rc;
    uint32_t count = io->op == KVBM_TIER_FLUSH ? 1 : io->item_count;
    rc = admit(d, io, count);
    if (rc != 0)
        return rc;
    io->status = 0;
    io->items_next = 0;
    io->items_left = io->item_count;
    io->flags = KVBM__IO_IN_LINE;
    struct kvbm__disk_list *line = &d->lines[kvbm__disk_line_of(io)];
    list_append(line, io);
    line->items += count;
    return 0;
}

static void disk_cancel(struct kvbm_store *store, struct kvbm_tier_io *io) {
    struct kvbm__disk *d = disk_of(store);
    if ((io->flags & KVBM__IO_EXPIRED) == 0)
        io->flags |= KVBM__IO_CANCELLED;
    if ((io->flags & KVBM__IO_IN_LINE) != 0)
        kvbm__disk_end_rest(d, io, -ECANCELED);
}

/* ------------------------------------------------------------------------------------------------------------ turn */

/* Starts the next item of a line. False: nothing can be started there now. */
static bool start_next(struct kvbm__disk *d, int line) {
    struct kvbm_tier_io *io = d->lines[line].head;
    if (io->deadline_ns != 0 && d->now_ns >= io->deadline_ns && io->items_next == 0) {
        kvbm__disk_end_rest(d, io, -ETIMEDOUT);
        return true;
    }
    struct kvbm_tier_item *item = &io->items[io->items_next];
    if (io->items_next + 1 < io->item_count) {
        io->items_next++;
        if (kvbm__disk_op_start(d, io, item) != 0) {
            io->items_next--;
            return false;
        }
    } else {
        /* Out of the line first, as its last item may finish it. */
        struct kvbm_tier_io *next = io->next;
        line_remove(d, io);
        io->items_next++;
        if (kvbm__disk_op_start(d, io, item) != 0) {
            io->items_next--;
            io->flags |= KVBM__IO_IN_LINE;
            io->next = next;
            d->lines[line].head = io;
            if (next == NULL)
                d->lines[line].tail = io;
            return false;
        }
    }
    d->lines[line].items--;
    return true;
}

static void start_all(struct kvbm__disk *d) {
    struct kvbm__disk_list *reads = &d->lines[KVBM__LINE_READ], *writes = &d->lines[KVBM__LINE_WRITE];
    bool reads_go = true, writes_go = true;
    while (d->free_ops != NULL && (reads_go || writes_go)) {
        /* One place is left to writes, so that they end at all. */
        uint32_t read_depth = d->options.depth - (writes->head != NULL && d->device_writes == 0);
        reads_go = reads_go && reads->head != NULL && d->device_reads < read_depth;
        if (reads_go) {
            reads_go = start_next(d, KVBM__LINE_READ);
            continue;
        }
        writes_go = writes_go && writes->head != NULL && d->device_writes < write_depth(d);
        if (writes_go)
            writes_go = start_next(d, KVBM__LINE_WRITE);
    }
    struct kvbm__disk_list *flushes = &d->lines[KVBM__LINE_FLUSH];
    if (flushes->head != NULL && d->sync_left == 0) {
        struct kvbm_tier_io *io = flushes->head;
        line_remove(d, io);
        flushes->items--;
        kvbm__disk_flush_start(d, io);
    }
}

static bool tell(struct kvbm__disk *d) {
    struct kvbm_tier_io *io = d->finished.head;
    bool any = io != NULL;
    d->finished.head = d->finished.tail = NULL; /* what finishes meanwhile is told in the next round */
    while (io != NULL) {
        struct kvbm_tier_io *next = io->next;
        int op = io->op;
        io->done(io); /* gives it back */
        if (op == KVBM_TIER_WRITE)
            kvbm__disk_point(KVBM_DISK_POINT_WRITE_DONE);
        io = next;
    }
    return any;
}

static void close_when_idle(struct kvbm__disk *d);

static void on_turn(void *arg) {
    struct kvbm__disk *d = arg;
    if (d->io == NULL)
        return;
    d->now_ns = d->os->now_ns(d->os->ctx);
    kvbm__disk_tick(d);
    bool progress = true, told = false;
    for (int round = 0; round < TURN_ROUNDS_MAX && progress; round++) {
        start_all(d);
        progress = d->io->ops->turn(d->io);
        bool any = tell(d);
        told = told || any;
        progress = progress || any;
    }
    uint64_t waiting = 0;
    for (int line = 0; line < KVBM__LINE_COUNT; line++)
        waiting += d->lines[line].items;
    atomic_store_explicit(&d->counters[KVBM__C_LINE], waiting, memory_order_relaxed);
    atomic_store_explicit(&d->counters[KVBM__C_DEVICE], d->device_reads + d->device_writes, memory_order_relaxed);
    /* Whoever was told may have something to do before the loop waits, in a handle that had its turn. */
    kvbm_turn_again(&d->turn, progress || told || d->finished.head != NULL);
    kvbm__disk_tick_soon(d, waiting + d->device_reads + d->device_writes + d->sync_left > 0);
    if (d->closing != 0)
        close_when_idle(d);
}

/* ------------------------------------------------------------------------------------------------------------ scan */

typedef void (*record_fn)(struct kvbm__disk *d, void *arg, int state, const struct kvbm_disk_record *record);

/* `bytes` at `offset` of the records of a file. What the device cannot read is as if empty. */
static int read_records(struct kvbm__disk *d, uint32_t file, uint8_t *buffer, uint64_t bytes, uint64_t offset) {
    uint64_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(d->set.files[file].buffered_fd, buffer + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            return -EIO;
        if (n < 0) {
            if (errno != EIO)
                return -errno;
            uint64_t skip = KVBM_DISK_PAGE_BYTES - (offset + done) % KVBM_DISK_PAGE_BYTES;
            skip = skip < bytes - done ? skip : bytes - done;
            KVBM_LOG(d->log, WARNING, "disk", "records cannot be read and count as empty file=%u offset=%llu", file,
                     (unsigned long long)(offset + done));
            memset(buffer + done, 0, skip);
            n = (ssize_t)skip;
        }
        done += (uint64_t)n;
    }
    return 0;
}

static int each_record(struct kvbm__disk *d, record_fn fn, void *arg) {
    uint8_t *buffer = malloc(SCAN_BYTES);
    if (buffer == NULL)
        return -ENOMEM;
    int rc = 0;
    for (uint32_t f = 0; f < d->set.count && rc == 0; f++) {
        const struct kvbm_disk_header *header = &d->set.files[f].header;
        uint64_t bytes = (uint64_t)header->slot_count * KVBM_DISK_RECORD_BYTES;
        for (uint64_t at = 0; at < bytes && rc == 0; at += SCAN_BYTES) {
            uint64_t n = bytes - at < SCAN_BYTES ? bytes - at : SCAN_BYTES;
            rc = read_records(d, f, buffer, n, header->record_offset + at);
            for (uint64_t i = 0; i < n && rc == 0; i += KVBM_DISK_RECORD_BYTES) {
                struct kvbm_disk_record record;
                uint32_t slot = (uint32_t)((at + i) / KVBM_DISK_RECORD_BYTES) * d->set.count + f;
                int state = kvbm_disk_record_decode(header, slot, buffer + i, &record);
                if (state != KVBM_DISK_RECORD_EMPTY)
                    fn(d, arg, state, &record);
            }
        }
    }
    free(buffer);
    return rc;
}

static void load_record(struct kvbm__disk *d, void *arg, int state, const struct kvbm_disk_record *record) {
    (void)arg;
    d->info.records_torn += state == KVBM_DISK_RECORD_TORN;
    d->info.records_foreign += state == KVBM_DISK_RECORD_FOREIGN;
    if (state != KVBM_DISK_RECORD_WHOLE)
        return;
    struct kvbm__disk_slot *slot = &d->slots[record->slot];
    memcpy(slot->key, record->label.key, sizeof slot->key);
    slot->checksum = record->checksum;
    slot->group = record->label.group;
    slot->state = KVBM__SLOT_RESIDENT;
    d->info.records_whole++;
    if (record->generation > d->generation)
        d->generation = record->generation;
}

struct scan {
    kvbm_tier_found_fn found;
    void *arg;
};

static void tell_record(struct kvbm__disk *d, void *arg, int state, const struct kvbm_disk_record *record) {
    const struct scan *scan = arg;
    if (state == KVBM_DISK_RECORD_WHOLE && d->slots[record->slot].state == KVBM__SLOT_RESIDENT)
        scan->found(scan->arg, record->slot, &record->label, record->generation);
}

static int disk_scan(struct kvbm_store *store, kvbm_tier_found_fn found, void *arg) {
    struct kvbm__disk *d = disk_of(store);
    struct scan scan = {found, arg};
    return d->closing != 0 ? -KVBM_ECLOSED : d->info.records_whole == 0 ? 0 : each_record(d, tell_record, &scan);
}

/* ----------------------------------------------------------------------------------------------------------- close */

static void disk_free(struct kvbm__disk *d) {
    kvbm_disk_set_close(&d->set);
    if (d->slots != NULL)
        d->os->unmap(d->os->ctx, d->slots, d->slots_bytes);
    free(d->ops);
    free(d->iovs);
    free(d->bounces);
    free(d->free_bounces);
    free(d);
}

static void on_turn_closed(void *arg) {
    struct kvbm__disk *d = arg;
    void (*closed)(void *arg) = d->closed;
    void *closed_arg = d->closed_arg;
    disk_free(d);
    closed(closed_arg);
}

static void on_io_closed(void *arg) {
    struct kvbm__disk *d = arg;
    kvbm_turn_close(&d->turn, on_turn_closed, d);
}

static void close_when_idle(struct kvbm__disk *d) {
    if (d->device_reads + d->device_writes + d->sync_left > 0 || d->probing || d->finished.head != NULL)
        return;
    if (d->closing == 1) {
        d->closing = 2;
        if (d->dirty_ns != 0 && d->level != KVBM__NO_IO) {
            kvbm__disk_flush_start(d, NULL); /* best effort: a failure was counted, and nobody waits for it */
            kvbm_turn_again(&d->turn, true);
            return;
        }
    }
    d->closing = 3;
    kvbm__disk_point(KVBM_DISK_POINT_CLOSE_IDLE);
    struct kvbm_disk_io *io = d->io;
    d->io = NULL;
    kvbm_turn_again(&d->turn, false);
    io->ops->close(io, on_io_closed, d);
}

static void disk_close(struct kvbm_store *store, void (*closed)(void *arg), void *arg) {
    struct kvbm__disk *d = disk_of(store);
    KVBM_ASSERT(d->closing == 0);
    kvbm__disk_point(KVBM_DISK_POINT_CLOSE_STARTED);
    d->closing = 1;
    d->closed = closed;
    d->closed_arg = arg;
    for (int line = 0; line < KVBM__LINE_COUNT; line++)
        kvbm__disk_end_line(d, line, -ECANCELED);
    kvbm_turn_again(&d->turn, true);
}

/* ------------------------------------------------------------------------------------------------------ statistics */

static void disk_stats(struct kvbm_store *store, struct kvbm_tier_stats *stats) {
    struct kvbm__disk *d = disk_of(store);
    uint64_t c[KVBM__C_COUNT];
    for (int i = 0; i < KVBM__C_COUNT; i++)
        c[i] = atomic_load_explicit(&d->counters[i], memory_order_relaxed);
    *stats = (struct kvbm_tier_stats){
        .capacity_blocks = store->capacity_blocks,
        .resident_blocks = c[KVBM__C_RESIDENT],
        .quarantined_blocks = c[KVBM__C_QUARANTINED],
        .read_count = c[KVBM__C_READ],
        .read_bytes = c[KVBM__C_READ] * store->payload_bytes,
        .write_count = c[KVBM__C_WRITE],
        .write_bytes = c[KVBM__C_WRITE] * store->payload_bytes,
        .erase_count = c[KVBM__C_ERASE],
        .flush_count = c[KVBM__C_FLUSH],
        .miss_count = c[KVBM__C_MISS],
        .checksum_mismatch_count = c[KVBM__C_MISMATCH],
        .io_error_count = c[KVBM__C_IO_ERROR],
        .no_space_count = c[KVBM__C_NO_SPACE],
        .shed_count = c[KVBM__C_SHED],
        .refused_count = c[KVBM__C_REFUSED],
        .cancelled_count = c[KVBM__C_CANCELLED],
        .timed_out_count = c[KVBM__C_TIMED_OUT],
        .late_count = c[KVBM__C_LATE],
        .degraded_count = c[KVBM__C_DEGRADED],
        .recovered_count = c[KVBM__C_RECOVERED],
        .device_items = c[KVBM__C_DEVICE],
        .line_items = c[KVBM__C_LINE],
        .degraded = c[KVBM__C_LEVEL] != KVBM__HEALTHY,
    };
}

void kvbm_disk_info(const struct kvbm_store *store, struct kvbm_disk_info *info) {
    const struct kvbm__disk *d = (const struct kvbm__disk *)store;
    *info = d->info;
    info->generation = d->generation;
}

static const struct kvbm_tier_ops disk_ops = {.name = "disk",
                                              .submit = disk_submit,
                                              .cancel = disk_cancel,
                                              .scan = disk_scan,
                                              .close = disk_close,
                                              .stats_mt = disk_stats};

/* ------------------------------------------------------------------------------------------------------------ open */

static uint32_t or_default(uint32_t value, uint32_t fallback) {
    return value != 0 ? value : fallback;
}

static uint64_t or_default_ns(uint64_t value, uint64_t fallback) {
    return value != 0 ? value : fallback;
}

static int set_options(struct kvbm__disk *d, const struct kvbm_disk_options *options) {
    struct kvbm_disk_options *o = &d->options;
    *o = *options;
    o->depth = or_default(o->depth, DEPTH_DEFAULT);
    o->write_depth_mixed = or_default(o->write_depth_mixed, o->depth / 4 > 0 ? o->depth / 4 : 1);
    o->line_items = or_default(o->line_items, LINE_DEFAULT);
    o->segments_max = or_default(o->segments_max, SEGMENTS_DEFAULT);
    o->thread_count = or_default(o->thread_count, THREADS_DEFAULT);
    o->error_limit = or_default(o->error_limit, ERRORS_DEFAULT);
    o->shed_wait_ns = or_default_ns(o->shed_wait_ns, NS_PER_SECOND / 2);
    o->stall_ns = or_default_ns(o->stall_ns, 10 * NS_PER_SECOND);
    o->probe_ns = or_default_ns(o->probe_ns, NS_PER_SECOND);
    if (o->os == NULL || o->loop == NULL || o->depth < 2 || o->depth > KVBM_DISK_DEPTH_MAX ||
        o->write_depth_mixed > o->depth || o->line_items > KVBM_DISK_LINE_ITEMS_MAX ||
        o->segments_max > KVBM_DISK_SEGMENTS_MAX || o->bounce_count > o->depth || o->backend < KVBM_DISK_AUTO ||
        o->backend > KVBM_DISK_THREADS)
        return -EINVAL;
    return 0;
}

static int allocate(struct kvbm__disk *d) {
    struct kvbm_disk_options *o = &d->options;
    const struct kvbm_disk_header *header = &d->set.files[0].header;
    bool odd = d->all_direct && header->payload_bytes % KVBM_DISK_PAGE_BYTES != 0;
    uint32_t op_count = o->depth + d->set.count + 1;
    void *slots = NULL;
    o->bounce_count = or_default(o->bounce_count, odd                         ? o->depth
                                                  : o->depth < BOUNCE_DEFAULT ? o->depth
                                                                              : BOUNCE_DEFAULT);
    d->slots_bytes = sizeof *d->slots * header->capacity_blocks;
    size_t bounce_bytes = (size_t)header->extent_bytes * o->bounce_count + KVBM_DISK_PAGE_BYTES;
    int rc = d->os->map(d->os->ctx, d->slots_bytes, KVBM_MAP_HUGE | KVBM_MAP_NO_FORK, &slots, NULL);
    if (rc != 0)
        return rc;
    d->slots = slots;
    d->ops = calloc(op_count, sizeof *d->ops);
    d->iovs = calloc((size_t)o->depth * o->segments_max, sizeof *d->iovs);
    d->bounces = aligned_alloc(KVBM_DISK_PAGE_BYTES, bounce_bytes);
    d->free_bounces = calloc(o->bounce_count, sizeof *d->free_bounces);
    if (d->ops == NULL || d->iovs == NULL || d->bounces == NULL || d->free_bounces == NULL)
        return -ENOMEM;
    memset(d->bounces, 0, bounce_bytes);
    d->page = d->bounces + header->extent_bytes * o->bounce_count;
    for (uint32_t i = 0; i < o->bounce_count; i++)
        d->free_bounces[d->free_bounce_count++] = d->bounces + i * header->extent_bytes;
    for (uint32_t i = o->depth; i-- > 0;) {
        d->ops[i].iov = &d->iovs[(size_t)i * o->segments_max];
        d->ops[i].next = d->free_ops;
        d->free_ops = &d->ops[i];
    }
    d->info.memory_bytes = sizeof *d + d->slots_bytes + op_count * sizeof *d->ops + bounce_bytes +
                           (size_t)o->depth * o->segments_max * sizeof *d->iovs;
    return 0;
}

/* The backend asked for, or the best there is. */
static int open_io(struct kvbm__disk *d) {
    const struct kvbm_disk_options *o = &d->options;
    int fds[2 * KVBM_DISK_STRIPE_COUNT_MAX];
    struct iovec buffers[64];
    struct kvbm_disk_uring_got got = {0};
    uint32_t buffer_count = o->buffer_count;
    if (buffer_count > sizeof buffers / sizeof buffers[0] - 1)
        return -EINVAL;
    for (uint32_t i = 0; i < buffer_count; i++)
        buffers[i] = o->buffers[i];
    if (buffer_count > 0)
        buffers[buffer_count++] = (struct iovec){
            d->bounces, (size_t)d->set.files[0].header.extent_bytes * o->bounce_count + KVBM_DISK_PAGE_BYTES};
    for (uint32_t i = 0; i < d->set.count; i++) {
        fds[2 * i] = d->set.files[i].buffered_fd;
        fds[2 * i + 1] = d->set.files[i].direct_fd;
    }
    struct kvbm_disk_io_options options = {
        .os = d->os,
        .log = d->log,
        .loop = o->loop,
        .request_count = o->depth + d->set.count + 1,
        .thread_count = o->thread_count,
        .fds = fds,
        .fd_count = 2 * d->set.count,
        .buffers = buffers,
        .buffer_count = buffer_count,
        .request_bytes_max = d->set.files[0].header.extent_bytes,
    };
    int rc = -ENOSYS;
    if (o->backend != KVBM_DISK_THREADS)
        rc = kvbm_disk_uring_open(&d->io, &options, &got);
    if (rc != 0 && o->backend == KVBM_DISK_AUTO)
        KVBM_LOG(d->log, WARNING, "disk", "no io_uring here, using threads error=%s", kvbm_error_name_mt(rc));
    if (rc != 0 && o->backend != KVBM_DISK_URING)
        rc = kvbm_disk_pread_open(&d->io, &options);
    if (rc != 0)
        return rc;
    d->info.backend = d->io->ops->name;
    d->info.fixed_files = got.fixed_files;
    d->info.fixed_buffers = got.fixed_buffers;
    if (o->wrap != NULL)
        d->io = o->wrap(o->wrap_arg, d->io);
    d->io->completed = kvbm__disk_completed;
    d->io->completed_arg = d;
    return 0;
}

static int open_parts(struct kvbm__disk *d, struct kvbm_disk_failure *failure) {
    int rc = kvbm_disk_set_open(&d->set, d->os, d->log, &d->options.files, failure);
    if (rc != 0)
        return rc;
    d->info.direct = true;
    for (uint32_t i = 0; i < d->set.count; i++) {
        d->all_direct = d->all_direct || d->set.files[i].direct;
        d->info.direct = d->info.direct && d->set.files[i].direct;
    }
    d->info.formatted = d->set.formatted;
    rc = allocate(d);
    if (rc == 0 && !d->set.formatted) {
        uint64_t start_ns = d->os->now_ns(d->os->ctx);
        rc = each_record(d, load_record, NULL);
        d->info.scan_ns = d->os->now_ns(d->os->ctx) - start_ns;
        kvbm__disk_count(d, KVBM__C_RESIDENT, (int64_t)d->info.records_whole);
    }
    kvbm__disk_point(KVBM_DISK_POINT_OPEN_SCANNED);
    if (rc == 0)
        rc = open_io(d);
    if (rc != 0 && failure != NULL)
        (void)snprintf(failure->text, sizeof failure->text, "%s: %s", d->options.files.paths[0],
                       kvbm_error_text_mt(rc));
    return rc;
}

int kvbm_disk_open(struct kvbm_store **store, const struct kvbm_disk_options *options,
                   struct kvbm_disk_failure *failure) {
    struct kvbm__disk *d = calloc(1, sizeof *d);
    if (d == NULL)
        return -ENOMEM;
    d->os = options->os;
    d->log = options->log;
    d->tick_ns = KVBM_NO_DEADLINE;
    int rc = set_options(d, options);
    if (rc != 0 && failure != NULL)
        (void)snprintf(failure->text, sizeof failure->text, "an option of the disk tier is out of range");
    rc = rc == 0 ? open_parts(d, failure) : rc;
    if (rc != 0) {
        disk_free(d);
        return rc;
    }
    d->probe_wait_ns = d->options.probe_ns;
    d->now_ns = d->os->now_ns(d->os->ctx);
    d->store = (struct kvbm_store){.ops = &disk_ops,
                                   .capacity_blocks = d->options.files.capacity_blocks,
                                   .items_max = d->options.line_items,
                                   .payload_bytes = d->options.files.payload_bytes};
    kvbm_turn_open(&d->turn, d->os, options->loop, on_turn, d);
    KVBM_LOG(
        d->log, INFO, "disk",
        "open path=%s files=%u blocks=%u payload_bytes=%llu resident=%llu torn=%llu foreign=%llu backend=%s direct=%d",
        options->files.paths[0], d->set.count, d->store.capacity_blocks, (unsigned long long)d->store.payload_bytes,
        (unsigned long long)d->info.records_whole, (unsigned long long)d->info.records_torn,
        (unsigned long long)d->info.records_foreign, d->info.backend, d->info.direct);
    d->options.files.paths = NULL; /* the caller's, as are these */
    d->options.buffers = NULL;
    *store = &d->store;
    return 0;
}
