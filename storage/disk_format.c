/*
 * disk_format.c - see disk_format.h. Owns nothing. Thread: any.
 */
#include "storage/disk_format.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "runtime/errors.h"
#include "runtime/log.h"
#include "storage/checksum.h"

static const uint8_t header_magic[8] = {'K', 'V', 'B', 'M', 'S', 'L', 'A', 'B'};
static const uint8_t record_magic[4] = {'K', 'V', 'B', 'R'};

/* Header. */
enum {
    H_MAGIC = 0,
    H_VERSION = 8,
    H_HEADER_BYTES = 12,
    H_NAMESPACE = 16,
    H_SET = 32,
    H_PAYLOAD_BYTES = 48,
    H_EXTENT_BYTES = 56,
    H_CAPACITY = 64,
    H_SLOT_COUNT = 68,
    H_STRIPE_INDEX = 72,
    H_STRIPE_COUNT = 76,
    H_RECORD_OFFSET = 80,
    H_PAYLOAD_OFFSET = 88,
    H_FILE_BYTES = 96,
    H_CREATED = 104,
    H_RECORD_BYTES = 112,
    H_END = 116, /* zeros from here */
    H_CHECKSUM = 4088,
};

/* Record. */
enum {
    R_MAGIC = 0,
    R_VERSION = 4,
    R_PRIORITY = 6,
    R_ZERO = 7,
    R_NAMESPACE = 8,
    R_KEY = 24,
    R_PARENT = 40,
    R_GENERATION = 56,
    R_CHECKSUM = 64,
    R_PAYLOAD_BYTES = 72,
    R_SLOT = 80,
    R_GROUP = 84,
    R_DEPTH = 88,
    R_ZERO_2 = 92,
    R_SET = 96,
    R_WRITTEN = 112,
    R_RECORD_CHECKSUM = 120,
};
_Static_assert(R_RECORD_CHECKSUM + 8 == KVBM_DISK_RECORD_BYTES, "the checksum ends a record");
_Static_assert(H_CHECKSUM + 8 == KVBM_DISK_PAGE_BYTES, "the checksum ends a header");

static void put16(uint8_t *at, uint16_t value) {
    value = htole16(value);
    memcpy(at, &value, sizeof value);
}

static void put32(uint8_t *at, uint32_t value) {
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value) {
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint16_t get16(const uint8_t *at) {
    uint16_t value = 0;
    memcpy(&value, at, sizeof value);
    return le16toh(value);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t value = 0;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get64(const uint8_t *at) {
    uint64_t value = 0;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

static uint64_t whole_pages(uint64_t bytes) {
    return (bytes + KVBM_DISK_PAGE_BYTES - 1) / KVBM_DISK_PAGE_BYTES * KVBM_DISK_PAGE_BYTES;
}

int kvbm_disk_header_init(struct kvbm_disk_header *h) {
    if (h->payload_bytes == 0 || h->payload_bytes > KVBM_DISK_PAYLOAD_MAX || h->capacity_blocks == 0 ||
        h->stripe_count == 0 || h->stripe_count > KVBM_DISK_STRIPE_COUNT_MAX || h->stripe_count > h->capacity_blocks ||
        h->stripe_index >= h->stripe_count)
        return -EINVAL;
    h->extent_bytes = whole_pages(h->payload_bytes);
    h->slot_count = (h->capacity_blocks - h->stripe_index - 1) / h->stripe_count + 1;
    h->record_offset = KVBM_DISK_RECORD_OFFSET;
    h->payload_offset = h->record_offset + whole_pages((uint64_t)h->slot_count * KVBM_DISK_RECORD_BYTES);
    /* At most 2^32 slots of 2^30 bytes: far from an overflow. */
    h->file_bytes = h->payload_offset + h->slot_count * h->extent_bytes;
    return 0;
}

void kvbm_disk_header_encode(const struct kvbm_disk_header *h, uint8_t *page) {
    memset(page, 0, KVBM_DISK_PAGE_BYTES);
    memcpy(page + H_MAGIC, header_magic, sizeof header_magic);
    put32(page + H_VERSION, KVBM_DISK_VERSION);
    put32(page + H_HEADER_BYTES, KVBM_DISK_PAGE_BYTES);
    memcpy(page + H_NAMESPACE, h->namespace_id, sizeof h->namespace_id);
    memcpy(page + H_SET, h->set_id, sizeof h->set_id);
    put64(page + H_PAYLOAD_BYTES, h->payload_bytes);
    put64(page + H_EXTENT_BYTES, h->extent_bytes);
    put32(page + H_CAPACITY, h->capacity_blocks);
    put32(page + H_SLOT_COUNT, h->slot_count);
    put32(page + H_STRIPE_INDEX, h->stripe_index);
    put32(page + H_STRIPE_COUNT, h->stripe_count);
    put64(page + H_RECORD_OFFSET, h->record_offset);
    put64(page + H_PAYLOAD_OFFSET, h->payload_offset);
    put64(page + H_FILE_BYTES, h->file_bytes);
    put64(page + H_CREATED, h->created_ns);
    put32(page + H_RECORD_BYTES, KVBM_DISK_RECORD_BYTES);
    put64(page + H_CHECKSUM, kvbm_checksum_mt(page, H_CHECKSUM));
}

/* Whether the derived fields follow from the others. */
static int header_check_geometry(const struct kvbm_disk_header *h, const uint8_t *page) {
    struct kvbm_disk_header again = *h;
    if (kvbm_disk_header_init(&again) != 0)
        return -EINVAL;
    bool same = again.extent_bytes == h->extent_bytes && again.slot_count == h->slot_count &&
                again.record_offset == h->record_offset && again.payload_offset == h->payload_offset &&
                again.file_bytes == h->file_bytes && get32(page + H_RECORD_BYTES) == KVBM_DISK_RECORD_BYTES &&
                get32(page + H_HEADER_BYTES) == KVBM_DISK_PAGE_BYTES;
    return same ? 0 : -EINVAL;
}

int kvbm_disk_header_decode(const uint8_t *page, struct kvbm_disk_header *h, const char **why) {
    *why = NULL;
    if (memcmp(page + H_MAGIC, header_magic, sizeof header_magic) != 0)
        *why = "it is not a KVBM slab file";
    else if (get32(page + H_VERSION) != KVBM_DISK_VERSION)
        *why = "its format has another version than this library's (1)";
    else if (get64(page + H_CHECKSUM) != kvbm_checksum_mt(page, H_CHECKSUM))
        *why = "its header fails its checksum";
    if (*why != NULL)
        return -KVBM_EFOREIGN;
    memcpy(h->namespace_id, page + H_NAMESPACE, sizeof h->namespace_id);
    memcpy(h->set_id, page + H_SET, sizeof h->set_id);
    h->payload_bytes = get64(page + H_PAYLOAD_BYTES);
    h->extent_bytes = get64(page + H_EXTENT_BYTES);
    h->capacity_blocks = get32(page + H_CAPACITY);
    h->slot_count = get32(page + H_SLOT_COUNT);
    h->stripe_index = get32(page + H_STRIPE_INDEX);
    h->stripe_count = get32(page + H_STRIPE_COUNT);
    h->record_offset = get64(page + H_RECORD_OFFSET);
    h->payload_offset = get64(page + H_PAYLOAD_OFFSET);
    h->file_bytes = get64(page + H_FILE_BYTES);
    h->created_ns = get64(page + H_CREATED);
    if (header_check_geometry(h, page) != 0) {
        *why = "its header contradicts itself";
        return -KVBM_EFOREIGN;
    }
    return 0;
}

static void hex(const uint8_t *bytes, char *text) {
    for (size_t i = 0; i < 16; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

int kvbm_disk_header_differs(const struct kvbm_disk_header *wanted, const struct kvbm_disk_header *found, char *text,
                             size_t size) {
    const struct {
        const char *name;
        uint64_t wanted, found;
    } numbers[] = {
        {"payload bytes of a block", wanted->payload_bytes, found->payload_bytes},
        {"capacity in blocks", wanted->capacity_blocks, found->capacity_blocks},
        {"number of files in its set", wanted->stripe_count, found->stripe_count},
        {"place in its set", wanted->stripe_index, found->stripe_index},
    };
    size_t used = 0;
    int count = 0;
    KVBM_ASSERT(size >= 128);
    text[0] = '\0';
    if (memcmp(wanted->namespace_id, found->namespace_id, 16) != 0) {
        char a[33], b[33];
        hex(found->namespace_id, a);
        hex(wanted->namespace_id, b);
        used += (size_t)snprintf(text, size, "its namespace is %s, not %s", a, b);
        count++;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (numbers[i].wanted == numbers[i].found)
            continue;
        if (used < size)
            used += (size_t)snprintf(text + used, size - used, "%sits %s is %" PRIu64 ", not %" PRIu64,
                                     count > 0 ? "; " : "", numbers[i].name, numbers[i].found, numbers[i].wanted);
        count++;
    }
    return count;
}

void kvbm_disk_record_encode(const struct kvbm_disk_header *h, const struct kvbm_disk_record *record, uint8_t *bytes) {
    KVBM_ASSERT(record->generation != 0);
    KVBM_ASSERT(record->slot < h->capacity_blocks);
    memset(bytes, 0, KVBM_DISK_RECORD_BYTES);
    memcpy(bytes + R_MAGIC, record_magic, sizeof record_magic);
    put16(bytes + R_VERSION, KVBM_DISK_VERSION);
    bytes[R_PRIORITY] = record->label.priority;
    memcpy(bytes + R_NAMESPACE, h->namespace_id, 16);
    memcpy(bytes + R_KEY, record->label.key, 16);
    memcpy(bytes + R_PARENT, record->label.parent, 16);
    put64(bytes + R_GENERATION, record->generation);
    put64(bytes + R_CHECKSUM, record->checksum);
    put64(bytes + R_PAYLOAD_BYTES, h->payload_bytes);
    put32(bytes + R_SLOT, record->slot);
    put32(bytes + R_GROUP, record->label.group);
    put32(bytes + R_DEPTH, record->label.depth);
    memcpy(bytes + R_SET, h->set_id, 16);
    put64(bytes + R_WRITTEN, record->written_ns);
    put64(bytes + R_RECORD_CHECKSUM, kvbm_checksum_mt(bytes, R_RECORD_CHECKSUM));
}

static bool all_zero(const uint8_t *bytes, size_t count) {
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0;
}

int kvbm_disk_record_decode(const struct kvbm_disk_header *h, uint32_t slot, const uint8_t *bytes,
                            struct kvbm_disk_record *record) {
    if (all_zero(bytes, KVBM_DISK_RECORD_BYTES))
        return KVBM_DISK_RECORD_EMPTY;
    if (memcmp(bytes + R_MAGIC, record_magic, sizeof record_magic) != 0 ||
        get64(bytes + R_RECORD_CHECKSUM) != kvbm_checksum_mt(bytes, R_RECORD_CHECKSUM))
        return KVBM_DISK_RECORD_TORN;
    record->generation = get64(bytes + R_GENERATION);
    if (get16(bytes + R_VERSION) != KVBM_DISK_VERSION || memcmp(bytes + R_NAMESPACE, h->namespace_id, 16) != 0 ||
        memcmp(bytes + R_SET, h->set_id, 16) != 0 || get64(bytes + R_PAYLOAD_BYTES) != h->payload_bytes ||
        get32(bytes + R_SLOT) != slot || record->generation == 0 || record->generation > KVBM_DISK_GENERATION_MAX)
        return KVBM_DISK_RECORD_FOREIGN;
    memcpy(record->label.key, bytes + R_KEY, 16);
    memcpy(record->label.parent, bytes + R_PARENT, 16);
    record->label.group = get32(bytes + R_GROUP);
    record->label.depth = get32(bytes + R_DEPTH);
    record->label.priority = bytes[R_PRIORITY];
    record->checksum = get64(bytes + R_CHECKSUM);
    record->slot = slot;
    record->written_ns = get64(bytes + R_WRITTEN);
    return KVBM_DISK_RECORD_WHOLE;
}

uint64_t kvbm_disk_record_at(const struct kvbm_disk_header *h, uint32_t slot) {
    return h->record_offset + (uint64_t)(slot / h->stripe_count) * KVBM_DISK_RECORD_BYTES;
}

uint64_t kvbm_disk_payload_at(const struct kvbm_disk_header *h, uint32_t slot) {
    return h->payload_offset + slot / h->stripe_count * h->extent_bytes;
}
