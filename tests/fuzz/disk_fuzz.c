/*
 * disk_fuzz.c - libFuzzer target of slab files: a small file that the input has edited is refused, or opened without
 * harm; every block that a scan names is then read, and read with success only if its bytes are those of its key.
 *
 * The input is a list of edits (offset, length, bytes), so that a file which is mostly whole is the common case; every
 * second input has its checksums made right again, so that checks behind them are met.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "storage/checksum.h"
#include "storage/disk.h"

#define SLOTS          4u
#define BYTES          4096u
#define FILE_BYTES_MAX 65536u

#define REQUIRE(cond)                                                                                                  \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uv_loop_t loop;
static char path[64];
static uint8_t good[FILE_BYTES_MAX];
static size_t good_bytes;
static struct kvbm_disk_header header;

static void on_done(struct kvbm_tier_io *io) {
    *(bool *)io->user = true;
}

static void on_closed(void *arg) {
    *(bool *)arg = true;
}

static struct kvbm_store *open_store(int mode) {
    const char *paths[] = {path};
    struct kvbm_disk_options options = {
        .os = kvbm_os_real(),
        .loop = &loop,
        .files = {.paths = paths, .path_count = 1, .payload_bytes = BYTES, .capacity_blocks = SLOTS, .mode = mode},
        .backend = KVBM_DISK_THREADS,
        .thread_count = 1,
        .depth = 2,
        .line_items = 16,
    };
    struct kvbm_store *store = NULL;
    struct kvbm_disk_failure failure = {""};
    int rc = kvbm_disk_open(&store, &options, &failure);
    REQUIRE(rc == 0 || failure.text[0] != '\0');
    return rc == 0 ? store : NULL;
}

static void close_store(struct kvbm_store *store) {
    bool closed = false;
    store->ops->close(store, on_closed, &closed);
    while (!closed)
        uv_run(&loop, UV_RUN_ONCE);
}

static int perform(struct kvbm_store *store, int op, uint32_t slot, const struct kvbm_tier_label *label,
                   uint8_t *memory) {
    struct kvbm_tier_segment segment = {memory, BYTES};
    struct kvbm_tier_item item = {.slot = slot, .segments = &segment, .segment_count = 1, .label = *label};
    bool done = false;
    struct kvbm_tier_io io = {.op = op, .item_count = 1, .items = &item, .done = on_done, .user = &done};
    REQUIRE(store->ops->submit(store, &io) == 0);
    while (!done)
        uv_run(&loop, UV_RUN_ONCE);
    return item.status;
}

static void label_of(uint32_t slot, struct kvbm_tier_label *label) {
    memset(label, 0, sizeof *label);
    label->key[0] = (uint8_t)(slot + 1);
}

static void remove_file(void) {
    unlink(path);
}

static void set_up(void) {
    static _Alignas(4096) uint8_t memory[BYTES];
    REQUIRE(uv_loop_init(&loop) == 0);
    const char *folder = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    (void)snprintf(path, sizeof path, "%.30s/kvbm-fuzz-%d", folder, (int)getpid());
    REQUIRE(atexit(remove_file) == 0);
    struct kvbm_store *store = open_store(KVBM_DISK_FORMAT);
    REQUIRE(store != NULL);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        struct kvbm_tier_label label;
        label_of(slot, &label);
        memset(memory, (int)slot + 1, BYTES);
        REQUIRE(perform(store, KVBM_TIER_WRITE, slot, &label, memory) == 0);
    }
    close_store(store);
    REQUIRE(kvbm_disk_file_inspect(path, &header, NULL) == 0);
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, good, sizeof good);
    REQUIRE(n == (ssize_t)header.file_bytes);
    good_bytes = (size_t)n;
    close(fd);
}

static void seal(uint8_t *file) {
    uint64_t sum = kvbm_checksum_mt(file, 4088);
    memcpy(file + 4088, &sum, sizeof sum);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        uint8_t *record = file + kvbm_disk_record_at(&header, slot);
        sum = kvbm_checksum_mt(record, 120);
        memcpy(record + 120, &sum, sizeof sum);
    }
}

struct found {
    uint32_t count;
    uint32_t slots[SLOTS];
    struct kvbm_tier_label labels[SLOTS];
};

static void on_found(void *arg, uint32_t slot, const struct kvbm_tier_label *label, uint64_t generation) {
    struct found *found = arg;
    REQUIRE(slot < SLOTS && found->count < SLOTS && generation != 0);
    found->slots[found->count] = slot;
    found->labels[found->count++] = *label;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static _Alignas(4096) uint8_t memory[BYTES];
    static uint8_t file[FILE_BYTES_MAX];
    if (good_bytes == 0)
        set_up();
    if (size < 1)
        return 0;
    bool sealed = (data[0] & 1) != 0;
    size_t file_bytes = good_bytes - ((data[0] & 0xf0) == 0xf0 ? data[0] * 16u : 0);
    memcpy(file, good, good_bytes);
    for (size_t at = 1; at + 4 <= size;) {
        /* The pages of the header and the records get half of all edits. */
        size_t offset = (data[at] | (size_t)data[at + 1] << 8) % good_bytes, bytes = data[at + 2] % 32u + 1;
        if ((data[at + 3] & 1) != 0)
            offset = (data[at + 3] & 2) != 0 ? offset % 4096 : 8192 + offset % 512;
        at += 4;
        for (size_t i = 0; i < bytes && at < size && offset + i < good_bytes; i++)
            file[offset + i] = data[at++];
    }
    if (sealed)
        seal(file);
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600);
    REQUIRE(fd >= 0 && pwrite(fd, file, file_bytes, 0) == (ssize_t)file_bytes);
    close(fd);
    struct kvbm_store *store = open_store(KVBM_DISK_OPEN);
    if (store == NULL)
        return 0;
    struct found found = {0};
    REQUIRE(store->ops->scan(store, on_found, &found) == 0);
    for (uint32_t i = 0; i < found.count; i++) {
        uint64_t stored = 0;
        memcpy(&stored, file + kvbm_disk_record_at(&header, found.slots[i]) + 64, sizeof stored);
        int status = perform(store, KVBM_TIER_READ, found.slots[i], &found.labels[i], memory);
        bool right = kvbm_checksum_mt(memory, BYTES) == stored;
        REQUIRE(status != 0 || right);
    }
    close_store(store);
    return 0;
}
