/*
 * slab.c - maps, binds and touches the host tier's memory. See slab.h.
 *
 * Owns one map. Set-up and tear-down by one thread, with helpers that live for the touch only.
 */
#include "storage/slab.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/memory.h"

#define SLAB_BYTES_MAX  (UINT64_C(1) << 62)
#define SLAB_HUGE_BYTES (UINT64_C(2) << 20)
#define SLAB_PAGE_BYTES 4096u
/* What one thread takes at a time: enough pages that the counter is not contended, few enough that threads end
 * together. */
#define SLAB_TOUCH_BYTES (UINT64_C(32) << 20)

/* Shared by the threads of one touch; outlives them (they are joined). */
struct slab_touch {
    unsigned char *base;
    uint64_t bytes;
    _Atomic uint64_t next; /* first byte not taken yet */
};

static void touch_run(void *arg) {
    struct slab_touch *touch = arg;
    for (;;) {
        /* Relaxed: the counter only divides the range; the join publishes what was written. */
        uint64_t start = atomic_fetch_add_explicit(&touch->next, SLAB_TOUCH_BYTES, memory_order_relaxed);
        if (start >= touch->bytes)
            return;
        uint64_t end = touch->bytes - start < SLAB_TOUCH_BYTES ? touch->bytes : start + SLAB_TOUCH_BYTES;
        for (uint64_t at = start; at < end; at += SLAB_PAGE_BYTES)
            *(volatile unsigned char *)(touch->base + at) = 0;
    }
}

static void slab_touch(struct kvbm_slab *slab, struct kvbm_logger *log, uint32_t wanted) {
    const struct kvbm_os *os = slab->os;
    struct kvbm_thread threads[KVBM_SLAB_TOUCH_THREADS_MAX - 1];
    struct slab_touch touch = {.base = slab->base, .bytes = slab->bytes};
    uint64_t pieces = (slab->bytes + SLAB_TOUCH_BYTES - 1) / SLAB_TOUCH_BYTES;
    uint32_t count = wanted < KVBM_SLAB_TOUCH_THREADS_MAX ? wanted : KVBM_SLAB_TOUCH_THREADS_MAX;
    if (count > pieces)
        count = (uint32_t)pieces;
    uint64_t started_ns = os->now_ns(os->ctx);
    uint32_t started = 0;
    int rc = 0;
    while (started + 1 < count && rc == 0) {
        rc = os->thread_start(os->ctx, &threads[started], touch_run, &touch, "kvbm-touch");
        started += rc == 0;
    }
    if (rc != 0)
        KVBM_LOG(log, WARNING, "slab",
                 "touching with fewer threads: a thread was refused threads=%u wanted=%u error=%s", started + 1, count,
                 kvbm_error_name_mt(rc));
    touch_run(&touch); /* takes whatever the others do not */
    for (uint32_t i = 0; i < started; i++)
        os->thread_join(os->ctx, &threads[i]);
    KVBM_ASSERT(atomic_load_explicit(&touch.next, memory_order_relaxed) >= slab->bytes);
    slab->touch_threads = started + 1;
    slab->touch_ns = os->now_ns(os->ctx) - started_ns;
}

static int slab_check_options(const struct kvbm_slab_options *options) {
    if (options->bytes == 0 || options->bytes > SLAB_BYTES_MAX)
        return -EINVAL;
    if (options->huge < KVBM_SLAB_HUGE_OFF || options->huge > KVBM_SLAB_HUGE_REQUIRE)
        return -EINVAL;
    return options->numa_node < KVBM_SLAB_NUMA_ANY ? -EINVAL : 0;
}

/* 0, or -ENOMEM if the machine cannot have that much. */
static int slab_check_memory(struct kvbm_logger *log, const struct kvbm_slab_options *options) {
    struct kvbm_memory memory;
    kvbm_memory_read(options->system_root != NULL ? options->system_root : "", &memory);
    if (options->huge != KVBM_SLAB_HUGE_OFF && options->bytes <= memory.huge_free_bytes)
        return 0;
    uint64_t limit = memory.total_bytes;
    if (options->touch_threads > 0 && memory.available_bytes != KVBM_MEMORY_UNKNOWN) {
        uint64_t available = memory.available_bytes - memory.available_bytes / 32;
        limit = available < limit ? available : limit;
    }
    if (options->bytes <= limit)
        return 0;
    KVBM_LOG(log, WARNING, "slab", "not enough memory bytes=%" PRIu64 " limit_bytes=%" PRIu64, options->bytes, limit);
    return -ENOMEM;
}

/* Sets base, mapped_bytes and got_map. */
static int slab_map(struct kvbm_slab *slab, struct kvbm_logger *log, int huge) {
    const struct kvbm_os *os = slab->os;
    void *base = NULL;
    int rc = 0;
    slab->mapped_bytes = slab->bytes;
    if (huge != KVBM_SLAB_HUGE_OFF) {
        /* Explicit huge pages need a multiple. */
        slab->mapped_bytes = (slab->bytes + SLAB_HUGE_BYTES - 1) & ~(SLAB_HUGE_BYTES - 1);
        rc = os->map(os->ctx, (size_t)slab->mapped_bytes, KVBM_MAP_HUGE | KVBM_MAP_NO_FORK, &base, &slab->got_map);
        bool refused = rc != 0 || (slab->got_map & KVBM_MAP_HUGE) == 0;
        if (refused)
            KVBM_LOG(log, WARNING, "slab", "huge pages refused bytes=%" PRIu64 " error=%s", slab->mapped_bytes,
                     rc != 0 ? kvbm_error_name_mt(rc) : "none");
        if (refused && huge == KVBM_SLAB_HUGE_REQUIRE) {
            if (rc == 0)
                os->unmap(os->ctx, base, (size_t)slab->mapped_bytes);
            return -ENOTSUP;
        }
    }
    if (huge == KVBM_SLAB_HUGE_OFF || rc != 0) {
        slab->mapped_bytes = slab->bytes;
        slab->got_map = 0;
        rc = os->map(os->ctx, (size_t)slab->mapped_bytes, KVBM_MAP_NO_FORK, &base, &slab->got_map);
    }
    if (rc != 0) {
        KVBM_LOG(log, WARNING, "slab", "map refused bytes=%" PRIu64 " error=%s", slab->mapped_bytes,
                 kvbm_error_name_mt(rc));
        return rc;
    }
    if ((slab->got_map & KVBM_MAP_NO_FORK) == 0)
        KVBM_LOG(log, WARNING, "slab", "a forked child will inherit the memory bytes=%" PRIu64, slab->mapped_bytes);
    slab->base = base;
    return 0;
}

int kvbm_slab_open(struct kvbm_slab *slab, const struct kvbm_os *os, struct kvbm_logger *log,
                   const struct kvbm_slab_options *options) {
    memset(slab, 0, sizeof(*slab));
    int rc = slab_check_options(options);
    if (rc == 0)
        rc = slab_check_memory(log, options);
    if (rc != 0)
        return rc;
    slab->os = os;
    slab->bytes = options->bytes;
    rc = slab_map(slab, log, options->huge);
    if (rc != 0) {
        memset(slab, 0, sizeof(*slab));
        return rc;
    }
    if (options->numa_node != KVBM_SLAB_NUMA_ANY) {
        /* Before the first touch, which is when a page gets its node. */
        rc = os->bind_node(os->ctx, slab->base, (size_t)slab->mapped_bytes, options->numa_node);
        slab->got_numa = rc == 0;
        if (rc != 0)
            KVBM_LOG(log, WARNING, "slab", "binding refused node=%d error=%s", options->numa_node,
                     kvbm_error_name_mt(rc));
    }
    if (options->touch_threads > 0)
        slab_touch(slab, log, options->touch_threads);
    KVBM_LOG(log, DEBUG, "slab", "open bytes=%" PRIu64 " huge=%d numa=%d touch_threads=%u touch_ns=%" PRIu64,
             slab->bytes, (slab->got_map & KVBM_MAP_HUGE) != 0, slab->got_numa, slab->touch_threads, slab->touch_ns);
    return 0;
}

void kvbm_slab_close(struct kvbm_slab *slab) {
    if (slab->base == NULL)
        return;
    slab->os->unmap(slab->os->ctx, slab->base, (size_t)slab->mapped_bytes);
    slab->base = NULL;
}
