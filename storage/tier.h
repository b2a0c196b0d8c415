/*
 * tier.h - the interface of a storage tier below host memory, and what every implementation must hold.
 *
 * A store is an open tier: it keeps blocks in numbered slots; which block is in which slot is decided above it
 * (actors/). It moves bytes between slots and memory segments, and keeps with each slot a label that says whose bytes
 * they are. It lives on one libuv loop: every function but stats_mt is called on that loop's thread, and every `done`
 * and `late` comes there, never from inside submit or cancel. Both may submit, cancel and (done only) close.
 *
 * Contracts
 *   Accepted means answered. submit returning 0 yields exactly one `done`, with a status for each item and one for all;
 *   a negative return yields none. The io and all it points to belong to the store from submit to done.
 *   Completion, not cancellation, returns memory. After cancel or a passed deadline, `done` comes only once the
 *   hardware cannot touch the segments any more; items then carry -ECANCELED or -ETIMEDOUT, except those that had
 *   finished and writes whose record was already on its way, which end as it does. (The deadline of a request that the
 *   hardware has is reported early through `late`, so that whoever waits need not, while the memory stays lent.)
 *   Right or nothing. A read item has status 0 only if the slot's record names exactly item->label's key and group in
 *   the store's namespace and the payload's checksum holds: anything else is an error, and the segments' bytes are then
 *   undefined.
 *   A write item has status 0 only after its record, written after its payload, was accepted by the file: from then on
 *   a kill of the process loses nothing; a power cut loses at most what was written since the last flush.
 *   One change at a time. While a write or an erasure of a slot is in flight, another of the same slot ends with
 *   -EBUSY. A read that a write overtakes ends with -ENOENT, or with the bytes it asked for.
 *   Bounded. Some requests at the device, some in line, both fixed at open; reads go first; a write that finds the line
 *   full is refused (-EAGAIN) or, when the device is behind, shed (-KVBM_ESHED): never queued without bound.
 *
 * Status of an item: 0; -ENOENT (read: the slot does not hold that block); -KVBM_ECORRUPT (read: the payload failed its
 * checksum; the slot is quarantined, its record erased, until it is written again); -EBUSY; -ECANCELED; -ETIMEDOUT;
 * -KVBM_EDEGRADED (in line when the store degraded); -EIO, -ENOSPC, ... as the device said.
 */
#ifndef KVBM_STORAGE_TIER_H
#define KVBM_STORAGE_TIER_H

#include <stdbool.h>
#include <stdint.h>

struct kvbm_store;

enum kvbm_tier_op { KVBM_TIER_READ = 1, KVBM_TIER_WRITE = 2, KVBM_TIER_ERASE = 3, KVBM_TIER_FLUSH = 4 };

struct kvbm_tier_segment {
    void *address;
    uint64_t bytes;
};

/* Whose bytes a slot holds. Stored in its record. */
struct kvbm_tier_label {
    uint8_t key[16];
    uint8_t parent[16];
    uint32_t group;
    uint32_t depth;
    uint8_t priority;
};

struct kvbm_tier_item {
    uint32_t slot;
    uint32_t segment_count;
    const struct kvbm_tier_segment *segments; /* read, write: their bytes add up to the store's payload_bytes */
    struct kvbm_tier_label label; /* write: stored whole; read: key and group must be the record's; erase: unused */
    uint64_t checksum; /* write: XXH3-64 of the payload if has_checksum, else set here; read: out, the verified one */
    bool has_checksum; /* write */
    int status;        /* out */
};

struct kvbm_tier_io {
    struct kvbm_tier_io *next; /* the store's while it owns the io */
    int op;                    /* enum kvbm_tier_op */
    uint32_t item_count;       /* flush: 0 */
    struct kvbm_tier_item *items;
    uint64_t deadline_ns; /* monotonic, by the table of OS functions; 0: none */
    void (*done)(struct kvbm_tier_io *io);
    void (*late)(struct kvbm_tier_io *io); /* may be NULL; at most once, before done: the deadline passed */
    void *user;
    int status;          /* out: 0, or the first error of an item; of a flush, its own */
    uint32_t items_next; /* the store's, as are the rest: first item not started */
    uint32_t items_left; /* not settled */
    uint32_t flags;
};

struct kvbm_tier_stats {
    uint64_t capacity_blocks, resident_blocks, quarantined_blocks;
    uint64_t read_count, read_bytes, write_count, write_bytes, erase_count, flush_count; /* items that ended with 0 */
    uint64_t miss_count;              /* reads of a slot that did not hold the block */
    uint64_t checksum_mismatch_count; /* reads whose payload failed its checksum */
    uint64_t io_error_count;          /* requests that the device failed, out of space included */
    uint64_t no_space_count;
    uint64_t shed_count;      /* items of writes that were shed */
    uint64_t refused_count;   /* items refused with -EAGAIN or -KVBM_EDEGRADED */
    uint64_t cancelled_count; /* items that ended with -ECANCELED */
    uint64_t timed_out_count; /* items that ended with -ETIMEDOUT */
    uint64_t late_count;      /* requests whose deadline passed while the hardware had a part of them */
    uint64_t degraded_count, recovered_count;
    uint64_t device_items, line_items; /* now: at the device, in line */
    bool degraded;                     /* errors have made it refuse work; it probes for recovery by itself */
};

/* What a scan finds: a slot whose record is whole and of this namespace. Generations order slots by the time of their
 * writing, greater is later. */
typedef void (*kvbm_tier_found_fn)(void *arg, uint32_t slot, const struct kvbm_tier_label *label, uint64_t generation);

struct kvbm_tier_ops {
    const char *name;
    /* 0; -EINVAL (no or too many items, a slot out of range, segments that do not add up); -EAGAIN (line full);
     * -KVBM_ESHED (write, device behind); -KVBM_EDEGRADED; -KVBM_ECLOSED. All items or none. */
    int (*submit)(struct kvbm_store *store, struct kvbm_tier_io *io);
    /* A request; `done` still comes. Of an io that the store owns. */
    void (*cancel)(struct kvbm_store *store, struct kvbm_tier_io *io);
    /* Calls found for every resident slot. Before the first submit. 0, or an error of the device. */
    int (*scan)(struct kvbm_store *store, kvbm_tier_found_fn found, void *arg);
    /* Cancels what is in line, waits for what the hardware has, frees the store, then calls closed(arg). Once. */
    void (*close)(struct kvbm_store *store, void (*closed)(void *arg), void *arg);
    void (*stats_mt)(struct kvbm_store *store, struct kvbm_tier_stats *stats);
};

struct kvbm_store {
    const struct kvbm_tier_ops *ops;
    uint32_t capacity_blocks;
    uint32_t items_max; /* of one io */
    uint64_t payload_bytes;
};

#endif
