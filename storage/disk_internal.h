/*
 * disk_internal.h - the disk store's insides, shared by disk.c (lines, turn, open and close), disk_op.c (items at the
 * device) and disk_health.c (deadlines, degradation, probes). Thread: the loop's.
 */
#ifndef KVBM_STORAGE_DISK_INTERNAL_H
#define KVBM_STORAGE_DISK_INTERNAL_H

#include <stdatomic.h>

#include "storage/disk.h"
#include "storage/disk_uring.h"
#include "storage/turn.h"

enum kvbm__disk_slot_state {
    KVBM__SLOT_EMPTY = 0,
    KVBM__SLOT_RESIDENT = 1,
    KVBM__SLOT_BUSY = 2, /* its payload or record is being changed */
    KVBM__SLOT_QUARANTINED = 3,
};

/* What is known of a slot without asking the device. */
struct kvbm__disk_slot {
    uint8_t key[16];
    uint64_t checksum;
    uint32_t group;
    uint16_t sequence; /* moves when a change begins, so that a read knows that it was overtaken */
    uint8_t state;     /* enum kvbm__disk_slot_state */
    uint8_t zero;
};
_Static_assert(sizeof(struct kvbm__disk_slot) == 32, "documented in disk.h");

enum kvbm__disk_phase {
    KVBM__PHASE_FREE = 0,
    KVBM__PHASE_READ,        /* payload */
    KVBM__PHASE_WRITE,       /* payload */
    KVBM__PHASE_RECORD,      /* the record of a written payload */
    KVBM__PHASE_ERASE,       /* zeros for a record */
    KVBM__PHASE_SYNC,        /* one file of a flush */
    KVBM__PHASE_PROBE_WRITE, /* scratch page */
    KVBM__PHASE_PROBE_READ,  /* header */
};

/* An item at the device. */
struct kvbm__disk_op {
    struct kvbm_disk_request request; /* first: a request is its op */
    struct kvbm__disk_op *next;       /* free list */
    struct kvbm_tier_io *io;
    struct kvbm_tier_item *item;
    int phase;
    int status;         /* that the item ends with after KVBM__PHASE_ERASE */
    uint8_t slot_after; /* state of the slot then */
    bool is_read;
    uint16_t sequence;
    uint16_t retry_count;
    uint32_t file;
    uint64_t left_bytes; /* of the transfer */
    uint64_t checksum, generation;
    uint64_t started_ns;   /* the item */
    uint64_t submitted_ns; /* the request */
    uint8_t *bounce;       /* NULL: none */
    struct iovec record_iov;
    struct iovec *iov; /* segments_max */
    uint8_t record[KVBM_DISK_RECORD_BYTES];
};

enum kvbm__disk_io_flags { KVBM__IO_IN_LINE = 1, KVBM__IO_CANCELLED = 2, KVBM__IO_EXPIRED = 4 };

enum kvbm__disk_line { KVBM__LINE_READ = 0, KVBM__LINE_WRITE = 1, KVBM__LINE_FLUSH = 2, KVBM__LINE_COUNT = 3 };

struct kvbm__disk_list {
    struct kvbm_tier_io *head, *tail;
    uint32_t items; /* not started; flushes count as one */
};

enum kvbm__disk_level { KVBM__HEALTHY = 0, KVBM__NO_WRITES = 1, KVBM__NO_IO = 2 };

enum kvbm__disk_counter {
    KVBM__C_RESIDENT,
    KVBM__C_QUARANTINED,
    KVBM__C_READ,
    KVBM__C_WRITE,
    KVBM__C_ERASE,
    KVBM__C_FLUSH,
    KVBM__C_MISS,
    KVBM__C_MISMATCH,
    KVBM__C_IO_ERROR,
    KVBM__C_NO_SPACE,
    KVBM__C_SHED,
    KVBM__C_REFUSED,
    KVBM__C_CANCELLED,
    KVBM__C_TIMED_OUT,
    KVBM__C_LATE,
    KVBM__C_DEGRADED,
    KVBM__C_RECOVERED,
    KVBM__C_DEVICE,
    KVBM__C_LINE,
    KVBM__C_LEVEL,
    KVBM__C_COUNT,
};

struct kvbm__disk {
    struct kvbm_store store;          /* first */
    struct kvbm_disk_options options; /* with defaults filled in; pointers of the caller's are not used after open */
    const struct kvbm_os *os;
    struct kvbm_logger *log;
    struct kvbm_disk_set set;
    struct kvbm_disk_info info;
    struct kvbm_disk_io *io; /* NULL once it closes */
    struct kvbm_turn turn;
    uint64_t now_ns; /* of this turn */
    bool all_direct; /* some file wants alignment */

    struct kvbm__disk_slot *slots;
    size_t slots_bytes;
    uint64_t generation; /* of the latest record */

    struct kvbm__disk_op *ops; /* depth, then a sync for each file, then the probe */
    struct kvbm__disk_op *free_ops;
    struct iovec *iovs;
    uint8_t *bounces; /* bounce_count extents, then a page for probes */
    uint8_t **free_bounces;
    uint32_t free_bounce_count;
    uint8_t *page;

    struct kvbm__disk_list lines[KVBM__LINE_COUNT];
    struct kvbm__disk_list finished; /* told in the next turn */
    uint32_t device_reads, device_writes;
    uint64_t last_read_ns, write_mean_ns;

    struct kvbm_tier_io *flush_io; /* at the device; NULL: none, or the store's own */
    uint32_t sync_left;            /* files of the flush at the device */
    int sync_status;
    uint64_t dirty_ns; /* since when there is something to flush; 0: there is not */

    int level; /* enum kvbm__disk_level */
    uint32_t error_run;
    uint64_t tick_ns, probe_at_ns, probe_wait_ns;
    bool probing;

    int closing; /* 0; 1: draining; 2: last flush; 3: handles */
    void (*closed)(void *arg);
    void *closed_arg;
    _Atomic uint64_t counters[KVBM__C_COUNT];
};

#define KVBM__DISK_TICK_NS UINT64_C(5000000)

static inline void kvbm__disk_count(struct kvbm__disk *d, int counter, int64_t delta) {
    /* One writer, so no locked instruction; readers see some recent value. */
    uint64_t value = atomic_load_explicit(&d->counters[counter], memory_order_relaxed);
    atomic_store_explicit(&d->counters[counter], value + (uint64_t)delta, memory_order_relaxed);
}

static inline int kvbm__disk_line_of(const struct kvbm_tier_io *io) {
    return io->op == KVBM_TIER_READ ? KVBM__LINE_READ : io->op == KVBM_TIER_FLUSH ? KVBM__LINE_FLUSH : KVBM__LINE_WRITE;
}

/* What an item of the io ends with because of the io: 0, -ECANCELED or -ETIMEDOUT. */
int kvbm__disk_io_ended(const struct kvbm_tier_io *io);

/* disk.c */
void kvbm__disk_settle(struct kvbm__disk *d, struct kvbm_tier_io *io, struct kvbm_tier_item *item, int status);
void kvbm__disk_finish(struct kvbm__disk *d, struct kvbm_tier_io *io);
/* Takes an io out of its line; what was not started of it ends with `status`. */
void kvbm__disk_end_rest(struct kvbm__disk *d, struct kvbm_tier_io *io, int status);
void kvbm__disk_end_line(struct kvbm__disk *d, int line, int status);

/* disk_op.c */
/* Starts or settles an item. -EAGAIN: it needs memory that is in use; nothing was done. */
int kvbm__disk_op_start(struct kvbm__disk *d, struct kvbm_tier_io *io, struct kvbm_tier_item *item);
/* Of everything written and erased so far; io may be NULL. */
void kvbm__disk_flush_start(struct kvbm__disk *d, struct kvbm_tier_io *io);
void kvbm__disk_request_send(struct kvbm__disk *d, struct kvbm__disk_op *op, int kind, bool direct);
void kvbm__disk_completed(void *arg, struct kvbm_disk_request *request);

/* disk_health.c */
void kvbm__disk_note_error(struct kvbm__disk *d, int error);
void kvbm__disk_note_success(struct kvbm__disk *d);
void kvbm__disk_probe_completed(struct kvbm__disk *d, struct kvbm__disk_op *op, int status);
/* Deadlines, stalls, probes and the periodic flush, when it is time. */
void kvbm__disk_tick(struct kvbm__disk *d);
/* After a turn: sees to it that there is a tick when one is needed. busy: something is in line or at the device. */
void kvbm__disk_tick_soon(struct kvbm__disk *d, bool busy);

#endif
