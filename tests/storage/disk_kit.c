/*
 * disk_kit.c - see disk_kit.h.
 */
#include "tests/storage/disk_kit.h"

#include <check.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNTIL_MS 20000u

/* ------------------------------------------------------------------------------------------------- failing backend */

struct kit_backend {
    struct kvbm_disk_io io;
    struct kvbm_disk_io *inner;
    struct kit *kit;
    struct kvbm_disk_request *ready, *held; /* to be reported in turn; on release */
    void (*closed)(void *arg);
    void *closed_arg;
};

static uint64_t request_bytes(const struct kvbm_disk_request *request) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < request->iov_count; i++)
        bytes += request->iov[i].iov_len;
    return bytes;
}

static bool hits(struct kit *kit, const struct kvbm_disk_request *request) {
    struct kit_fault *fault = &kit->fault;
    bool record = request_bytes(request) == KVBM_DISK_RECORD_BYTES;
    kit->request_count++;
    if ((fault->kinds & 1u << request->kind) == 0 || (fault->records_only && !record) ||
        (fault->payloads_only && record))
        return false;
    if (fault->skip > 0) {
        fault->skip--;
        return false;
    }
    if (fault->count == 0)
        return false;
    fault->count -= fault->count != UINT32_MAX;
    kit->hit_count++;
    return true;
}

static void push(struct kvbm_disk_request **list, struct kvbm_disk_request *request) {
    request->next = NULL;
    while (*list != NULL)
        list = &(*list)->next;
    *list = request;
}

static void backend_submit(struct kvbm_disk_io *io, struct kvbm_disk_request *request) {
    struct kit_backend *b = (struct kit_backend *)io;
    struct kit_fault *fault = &b->kit->fault;
    if (!hits(b->kit, request)) {
        b->inner->ops->submit(b->inner, request);
        return;
    }
    request->result = fault->error != 0 ? fault->error : (int64_t)request_bytes(request);
    if (fault->short_bytes != 0) {
        /* A shorter request of the same place; the caller sees its result only. */
        uint64_t n = fault->short_bytes;
        ssize_t got = request->kind == KVBM_DISK_READ
                          ? pread(request->fd, request->iov->iov_base, n, (off_t)request->offset)
                          : pwrite(request->fd, request->iov->iov_base, n, (off_t)request->offset);
        ck_assert_int_eq(got, (ssize_t)n);
        request->result = got;
    } else if (fault->after && fault->error == 0) {
        if (request->kind == KVBM_DISK_READ)
            request->result = preadv(request->fd, request->iov, (int)request->iov_count, (off_t)request->offset);
        else if (request->kind == KVBM_DISK_WRITE)
            request->result = pwritev(request->fd, request->iov, (int)request->iov_count, (off_t)request->offset);
    }
    push(fault->hold ? &b->held : &b->ready, request);
}

static void on_inner_completed(void *arg, struct kvbm_disk_request *request) {
    struct kit_backend *b = arg;
    b->io.completed(b->io.completed_arg, request);
}

static bool backend_turn(struct kvbm_disk_io *io) {
    struct kit_backend *b = (struct kit_backend *)io;
    bool progress = b->inner->ops->turn(b->inner);
    struct kvbm_disk_request *ready = b->ready;
    b->ready = NULL;
    while (ready != NULL) {
        struct kvbm_disk_request *request = ready;
        ready = request->next;
        progress = true;
        io->completed(io->completed_arg, request);
    }
    return progress || b->ready != NULL;
}

static void backend_close(struct kvbm_disk_io *io, void (*closed)(void *arg), void *arg) {
    struct kit_backend *b = (struct kit_backend *)io;
    ck_assert_ptr_null(b->held);
    ck_assert_ptr_null(b->ready);
    struct kvbm_disk_io *inner = b->inner;
    b->kit->backend = NULL;
    free(b);
    inner->ops->close(inner, closed, arg);
}

static const struct kvbm_disk_io_ops backend_ops = {
    .name = "faulty", .submit = backend_submit, .turn = backend_turn, .close = backend_close};

static struct kvbm_disk_io *backend_wrap(void *arg, struct kvbm_disk_io *inner) {
    struct kit *kit = arg;
    struct kit_backend *b = calloc(1, sizeof *b);
    ck_assert_ptr_nonnull(b);
    *b = (struct kit_backend){.io = {.ops = &backend_ops}, .inner = inner, .kit = kit};
    inner->completed = on_inner_completed;
    inner->completed_arg = b;
    kit->backend = b;
    return &b->io;
}

void kit_release(struct kit *kit) {
    struct kit_backend *b = kit->backend;
    kit->fault.kinds = 0;
    while (b->held != NULL) {
        struct kvbm_disk_request *request = b->held;
        b->held = request->next;
        push(&b->ready, request);
    }
}

uint32_t kit_held(const struct kit *kit) {
    uint32_t count = 0;
    for (const struct kvbm_disk_request *r = kit->backend != NULL ? kit->backend->held : NULL; r != NULL; r = r->next)
        count++;
    return count;
}

/* ------------------------------------------------------------------------------------------------------------- kit */

static void on_line(void *user, int level, const char *component, const char *text) {
    struct kit *kit = user;
    (void)level;
    if (kit->line_count < KIT_LINES_MAX)
        (void)snprintf(kit->lines[kit->line_count++], sizeof kit->lines[0], "%s: %s", component, text);
}

bool kit_logged(const struct kit *kit, const char *text) {
    for (uint32_t i = 0; i < kit->line_count; i++)
        if (strstr(kit->lines[i], text) != NULL)
            return true;
    return false;
}

void kit_init(struct kit *kit, const char *parent, uint32_t path_count, uint64_t payload_bytes, uint32_t blocks) {
    memset(kit, 0, sizeof *kit);
    const char *base = parent != NULL ? parent : getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    (void)snprintf(kit->folder, sizeof kit->folder, "%s/kvbm-disk-XXXXXX", base);
    ck_assert_ptr_nonnull(mkdtemp(kit->folder));
    for (uint32_t i = 0; i < path_count; i++) {
        (void)snprintf(kit->paths[i], sizeof kit->paths[i], "%s/slab%u", kit->folder, i);
        kit->path_list[i] = kit->paths[i];
    }
    ck_assert_int_eq(uv_loop_init(&kit->loop), 0);
    kvbm_logger_init(&kit->log, kvbm_os_real(), on_line, kit, KVBM_LOG_DEBUG, 0);
    kit->options = (struct kvbm_disk_options){
        .os = kvbm_os_real(),
        .log = &kit->log,
        .loop = &kit->loop,
        .files = {.paths = kit->path_list,
                  .path_count = path_count,
                  .namespace_id = "kvbm-test-space",
                  .payload_bytes = payload_bytes,
                  .capacity_blocks = blocks},
        .depth = 8,
        .thread_count = 2,
    };
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk) {
    (void)status, (void)type, (void)walk;
    return remove(path);
}

void kit_end(struct kit *kit) {
    if (kit->store != NULL)
        kit_close(kit);
    ck_assert_int_eq(uv_run(&kit->loop, UV_RUN_DEFAULT), 0);
    ck_assert_int_eq(uv_loop_close(&kit->loop), 0);
    nftw(kit->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

int kit_open(struct kit *kit, int mode) {
    ck_assert_ptr_null(kit->store);
    kit->options.files.mode = mode;
    kit->options.wrap = kit->faulty ? backend_wrap : NULL;
    kit->options.wrap_arg = kit;
    return kvbm_disk_open(&kit->store, &kit->options, &kit->failure);
}

static void on_closed(void *arg) {
    struct kit *kit = arg;
    ck_assert(!kit->closed);
    kit->closed = true;
    kit->store = NULL;
}

void kit_close_begin(struct kit *kit) {
    kit->closed = false;
    kit->store->ops->close(kit->store, on_closed, kit);
}

void kit_close(struct kit *kit) {
    kit_close_begin(kit);
    kit_until(kit, &kit->closed);
}

/* Keeps the loop from sleeping for longer. */
static void on_timer(uv_timer_t *timer) {
    (void)timer;
}

static void turn_until(struct kit *kit, const bool *flag, uint64_t limit_ms) {
    uv_timer_t timer;
    uv_timer_init(&kit->loop, &timer);
    uv_timer_start(&timer, on_timer, 1, 1);
    uint64_t start_ns = uv_hrtime();
    while ((flag == NULL || !*flag) && uv_hrtime() - start_ns < limit_ms * 1000000)
        uv_run(&kit->loop, UV_RUN_ONCE);
    uv_timer_stop(&timer);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(&kit->loop, UV_RUN_NOWAIT); /* the handle is on the stack */
}

void kit_until(struct kit *kit, const bool *flag) {
    turn_until(kit, flag, UNTIL_MS);
    ck_assert_msg(*flag, "nothing happened for %u ms", UNTIL_MS);
}

void kit_run_ms(struct kit *kit, uint64_t ms) {
    turn_until(kit, NULL, ms);
}

struct kvbm_tier_stats kit_stats(struct kit *kit) {
    struct kvbm_tier_stats stats;
    kit->store->ops->stats_mt(kit->store, &stats);
    return stats;
}

/* -------------------------------------------------------------------------------------------------------- requests */

void kit_label(uint32_t slot, uint32_t version, struct kvbm_tier_label *label) {
    *label = (struct kvbm_tier_label){.group = slot % 3, .depth = slot + 1, .priority = (uint8_t)version};
    memcpy(label->key, &slot, sizeof slot);
    memcpy(label->key + 4, &version, sizeof version);
    memset(label->key + 8, 0x5a, 8);
    memcpy(label->parent, label->key, 16);
    label->parent[15] = 1;
}

/* Each word tells slot, version and place, so that no other bytes pass for these. */
static uint64_t word(uint32_t slot, uint32_t version, uint64_t at) {
    uint64_t z = ((uint64_t)slot << 40) ^ ((uint64_t)version << 20) ^ at;
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void kit_fill(uint8_t *memory, uint64_t bytes, uint32_t slot, uint32_t version) {
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t value = word(slot, version, at);
        memcpy(memory + at, &value, bytes - at < 8 ? bytes - at : 8);
    }
}

bool kit_is(const uint8_t *memory, uint64_t bytes, uint32_t slot, uint32_t version) {
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t value = word(slot, version, at);
        if (memcmp(memory + at, &value, bytes - at < 8 ? bytes - at : 8) != 0)
            return false;
    }
    return true;
}

static void on_done(struct kvbm_tier_io *io) {
    struct kit_io *mine = io->user;
    mine->done = true;
    mine->done_count++;
    ck_assert_uint_eq(mine->done_count, 1);
}

static void on_late(struct kvbm_tier_io *io) {
    struct kit_io *mine = io->user;
    ck_assert(!mine->done);
    ck_assert(!mine->late);
    mine->late = true;
}

void kit_io_init(struct kit *kit, struct kit_io *io, int op, uint32_t slot, uint32_t version) {
    memset(io, 0, sizeof *io);
    io->bytes = kit->options.files.payload_bytes;
    io->memory = aligned_alloc(4096, (io->bytes + 4095) / 4096 * 4096 + 4096);
    io->segments = calloc(1, sizeof *io->segments);
    ck_assert(io->memory != NULL && io->segments != NULL);
    memset(io->memory, 0xee, io->bytes);
    if (op == KVBM_TIER_WRITE)
        kit_fill(io->memory, io->bytes, slot, version);
    io->segments[0] = (struct kvbm_tier_segment){io->memory, io->bytes};
    io->item = (struct kvbm_tier_item){.slot = slot, .segment_count = 1, .segments = io->segments, .status = 12345};
    kit_label(slot, version, &io->item.label);
    io->io = (struct kvbm_tier_io){.op = op, .done = on_done, .late = on_late, .user = io};
    if (op != KVBM_TIER_FLUSH) {
        io->io.item_count = 1;
        io->io.items = &io->item;
    }
}

void kit_io_free(struct kit_io *io) {
    free(io->memory);
    free(io->segments);
}

int kit_submit(struct kit *kit, struct kit_io *io) {
    return kit->store->ops->submit(kit->store, &io->io);
}

static int perform(struct kit *kit, int op, uint32_t slot, uint32_t version) {
    struct kit_io io;
    kit_io_init(kit, &io, op, slot, version);
    ck_assert_int_eq(kit_submit(kit, &io), 0);
    kit_until(kit, &io.done);
    int status = io.io.status;
    if (op != KVBM_TIER_FLUSH)
        ck_assert_int_eq(status, io.item.status);
    if (op == KVBM_TIER_READ && status == 0)
        ck_assert_msg(kit_is(io.memory, io.bytes, slot, version), "wrong bytes served of slot %u version %u", slot,
                      version);
    kit_io_free(&io);
    return status;
}

int kit_write(struct kit *kit, uint32_t slot, uint32_t version) {
    return perform(kit, KVBM_TIER_WRITE, slot, version);
}

int kit_read(struct kit *kit, uint32_t slot, uint32_t version) {
    return perform(kit, KVBM_TIER_READ, slot, version);
}

int kit_erase(struct kit *kit, uint32_t slot) {
    return perform(kit, KVBM_TIER_ERASE, slot, 0);
}

int kit_flush(struct kit *kit) {
    return perform(kit, KVBM_TIER_FLUSH, 0, 0);
}
