/*
 * disk_kit.h - a disk store under test: a folder of its own, a loop that is run until something has happened, patterns
 * of bytes that are a function of (slot, version), and a backend that fails and holds requests.
 *
 * One thread. Everything is checked with Check's assertions.
 */
#ifndef KVBM_TESTS_STORAGE_DISK_KIT_H
#define KVBM_TESTS_STORAGE_DISK_KIT_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "storage/disk.h"

#define KIT_PATHS_MAX 4
#define KIT_LINES_MAX 64

/* What a held or failed request is. */
struct kit_fault {
    uint32_t kinds;    /* bits 1 << enum kvbm_disk_request_kind; 0: the rule is off */
    bool records_only; /* requests of KVBM_DISK_RECORD_BYTES */
    bool payloads_only;
    uint32_t skip;        /* matches that pass first */
    uint32_t count;       /* matches that are hit then; UINT32_MAX: all */
    int error;            /* the result instead; 0: none */
    bool hold;            /* not reported until kit_release */
    bool after;           /* performed all the same */
    uint32_t short_bytes; /* result is at most that: the transfer is cut; 0: not */
};

struct kit {
    char folder[128];
    char paths[KIT_PATHS_MAX][192];
    const char *path_list[KIT_PATHS_MAX];
    uv_loop_t loop;
    struct kvbm_logger log;
    char lines[KIT_LINES_MAX][256];
    uint32_t line_count;
    struct kvbm_disk_options options;
    struct kvbm_disk_failure failure;
    struct kvbm_store *store;
    bool closed;
    struct kit_fault fault;
    uint32_t hit_count, request_count;
    struct kit_backend *backend; /* of the open store, if `faulty` */
    bool faulty;                 /* put the failing backend in front */
};

/* A fresh folder below `parent` (NULL: TMPDIR, or /tmp), and options of `count` paths in it. */
void kit_init(struct kit *kit, const char *parent, uint32_t path_count, uint64_t payload_bytes, uint32_t blocks);
/* Closes, runs the loop out and removes the folder. */
void kit_end(struct kit *kit);
int kit_open(struct kit *kit, int mode);
void kit_close(struct kit *kit);
/* Close without waiting. */
void kit_close_begin(struct kit *kit);
/* Lets the loop turn until *flag, at most 20 s. */
void kit_until(struct kit *kit, const bool *flag);
/* Lets the loop turn for so long. */
void kit_run_ms(struct kit *kit, uint64_t ms);
/* Requests that are held go on. */
void kit_release(struct kit *kit);
uint32_t kit_held(const struct kit *kit);
/* Whether a logged line holds the text. */
bool kit_logged(const struct kit *kit, const char *text);
struct kvbm_tier_stats kit_stats(struct kit *kit);

/* One io of one item, with its memory. */
struct kit_io {
    struct kvbm_tier_io io;
    struct kvbm_tier_item item;
    struct kvbm_tier_segment *segments;
    uint8_t *memory; /* payload_bytes, aligned to a page */
    uint64_t bytes;
    bool done, late;
    uint32_t done_count;
};

/* The key, and with it the bytes, of version `version` of slot `slot`. */
void kit_label(uint32_t slot, uint32_t version, struct kvbm_tier_label *label);
void kit_fill(uint8_t *memory, uint64_t bytes, uint32_t slot, uint32_t version);
bool kit_is(const uint8_t *memory, uint64_t bytes, uint32_t slot, uint32_t version);

/* Prepared: of one segment over memory of its own; a write is filled. */
void kit_io_init(struct kit *kit, struct kit_io *io, int op, uint32_t slot, uint32_t version);
void kit_io_free(struct kit_io *io);
int kit_submit(struct kit *kit, struct kit_io *io);
/* Submits (which must work), waits, frees; the status of the item. A read that ends with 0 has the right bytes. */
int kit_write(struct kit *kit, uint32_t slot, uint32_t version);
int kit_read(struct kit *kit, uint32_t slot, uint32_t version);
int kit_erase(struct kit *kit, uint32_t slot);
int kit_flush(struct kit *kit);

#endif
