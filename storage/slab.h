/*
 * slab.h - the host tier's memory: one map, huge pages where allowed, bound to a NUMA node, touched by several threads.
 *
 * Each refinement that the machine refuses (explicit huge pages, transparent huge pages, binding, threads) degrades to
 * the next best with one logged line, and is recorded in `got`. Set-up and tear-down by one thread; the bytes belong to
 * whoever owns the block they are in. A forked child does not inherit the map.
 */
#ifndef KVBM_STORAGE_SLAB_H
#define KVBM_STORAGE_SLAB_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/log.h"
#include "runtime/os.h"

#define KVBM_SLAB_NUMA_ANY (-1)

#define KVBM_SLAB_TOUCH_THREADS_MAX 64

enum kvbm_slab_huge { KVBM_SLAB_HUGE_OFF = 0, KVBM_SLAB_HUGE_TRY = 1, KVBM_SLAB_HUGE_REQUIRE = 2 };

struct kvbm_slab_options {
    uint64_t bytes;
    int huge;                /* enum kvbm_slab_huge */
    int numa_node;           /* KVBM_SLAB_NUMA_ANY: no binding */
    uint32_t touch_threads;  /* 0: do not touch up front; else that many threads, the caller among them and at most
                              * KVBM_SLAB_TOUCH_THREADS_MAX, write the first byte of each page */
    const char *system_root; /* where /proc and /sys are looked for; NULL: "" (tests) */
};

struct kvbm_slab {
    const struct kvbm_os *os;
    unsigned char *base;
    uint64_t bytes;         /* as asked for */
    uint64_t mapped_bytes;  /* rounded up to huge pages where those were tried */
    unsigned got_map;       /* enum kvbm_map_flags that were honoured */
    bool got_numa;          /* bound to options->numa_node */
    uint32_t touch_threads; /* that took part, the caller included; 0: not touched */
    uint64_t touch_ns;
};

/* 0; -EINVAL (no bytes, more than 2^62, unknown `huge`, negative node); -ENOTSUP (KVBM_SLAB_HUGE_REQUIRE and the
 * machine refuses huge pages); -ENOMEM, also when `bytes` exceed what the machine or a control group has: with
 * touch_threads, what is available now less a reserve of 1/32, checked before touching so that a touch is not killed;
 * without, all memory and swap there is. `log` may be NULL; each refusal is one line of it. */
int kvbm_slab_open(struct kvbm_slab *slab, const struct kvbm_os *os, struct kvbm_logger *log,
                   const struct kvbm_slab_options *options);
/* No-op on a slab that did not open or is closed. */
void kvbm_slab_close(struct kvbm_slab *slab);

#endif
