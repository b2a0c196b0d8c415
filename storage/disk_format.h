/*
 * disk_format.h - what is in a slab file: its header and its records, encoded, decoded and checked. The format byte by
 * byte is in docs/core/disk-format.md. Numbers are little-endian on every machine. Pure; thread: any.
 *
 *   page 0            header
 *   page 1            scratch page, which a degraded store probes
 *   record_offset     slot_count records of 128 bytes, padded to a page
 *   payload_offset    slot_count extents of extent_bytes, each a multiple of a page
 */
#ifndef KVBM_STORAGE_DISK_FORMAT_H
#define KVBM_STORAGE_DISK_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "storage/tier.h"

#define KVBM_DISK_VERSION          1u
#define KVBM_DISK_PAGE_BYTES       4096u
#define KVBM_DISK_RECORD_BYTES     128u
#define KVBM_DISK_SCRATCH_OFFSET   4096u
#define KVBM_DISK_RECORD_OFFSET    8192u
#define KVBM_DISK_STRIPE_COUNT_MAX 16u
#define KVBM_DISK_PAYLOAD_MAX      (UINT64_C(1) << 30)
#define KVBM_DISK_GENERATION_MAX   (UINT64_C(1) << 62)

struct kvbm_disk_header {
    uint8_t namespace_id[16];
    uint8_t set_id[16]; /* random; the same in all files that were formatted together */
    uint64_t payload_bytes;
    uint64_t extent_bytes;    /* payload_bytes in whole pages */
    uint32_t capacity_blocks; /* of all stripes */
    uint32_t slot_count;      /* of this file: slots stripe_index, stripe_index + stripe_count, ... */
    uint32_t stripe_index, stripe_count;
    uint64_t record_offset, payload_offset, file_bytes;
    uint64_t created_ns; /* wall clock */
};

struct kvbm_disk_record {
    struct kvbm_tier_label label;
    uint64_t generation; /* greater is later; never 0 */
    uint64_t checksum;   /* of the payload */
    uint32_t slot;       /* of the set */
    uint64_t written_ns; /* wall clock */
};

/* Fills in the derived fields (extent_bytes, slot_count, offsets, file_bytes) from the others. 0, or -EINVAL: nothing
 * to store, too much, or more stripes than slots. */
int kvbm_disk_header_init(struct kvbm_disk_header *header);
/* Writes a whole page. */
void kvbm_disk_header_encode(const struct kvbm_disk_header *header, uint8_t *page);
/* Of a whole page: 0, or -KVBM_EFOREIGN with a static text of what is wrong with it. Whether it is the header that was
 * wanted is another question: see kvbm_disk_header_differs. */
int kvbm_disk_header_decode(const uint8_t *page, struct kvbm_disk_header *header, const char **why);
/* Writes what differs between the header wanted and the one found to `text`, as a sentence; 0 if nothing does. set_id
 * and created_ns are not compared. */
int kvbm_disk_header_differs(const struct kvbm_disk_header *wanted, const struct kvbm_disk_header *found, char *text,
                             size_t size);

enum kvbm_disk_record_state {
    KVBM_DISK_RECORD_EMPTY = 0,   /* all zero: never written, or erased */
    KVBM_DISK_RECORD_WHOLE = 1,   /* filled in */
    KVBM_DISK_RECORD_TORN = 2,    /* its checksum fails, or it is nothing of ours */
    KVBM_DISK_RECORD_FOREIGN = 3, /* whole, but of another slot, set, namespace or geometry */
};

void kvbm_disk_record_encode(const struct kvbm_disk_header *header, const struct kvbm_disk_record *record,
                             uint8_t *bytes);
/* enum kvbm_disk_record_state of the 128 bytes at slot `slot` of the set. */
int kvbm_disk_record_decode(const struct kvbm_disk_header *header, uint32_t slot, const uint8_t *bytes,
                            struct kvbm_disk_record *record);

/* Offsets in the file that holds the slot (number slot % stripe_count). */
uint64_t kvbm_disk_record_at(const struct kvbm_disk_header *header, uint32_t slot);
uint64_t kvbm_disk_payload_at(const struct kvbm_disk_header *header, uint32_t slot);

#endif
