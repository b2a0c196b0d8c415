/*
 * refusing_os.c - see refusing_os.h.
 */
#include "tests/support/refusing_os.h"

#include <errno.h>

#include "runtime/log.h"

static uint64_t refusing_random(void *ctx) {
    struct refusing_os *r = ctx;
    if (r->random_used < r->random_count)
        return r->random[r->random_used++];
    return kvbm_os_real()->random_u64(kvbm_os_real()->ctx);
}

static int refusing_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    struct refusing_os *r = ctx;
    r->map_count++;
    if (r->map_count == r->map_refuse_at || (flags & r->map_flags_refused) != 0) {
        r->refused_count++;
        return r->map_count == r->map_refuse_at ? -ENOMEM : -EPERM;
    }
    int rc = kvbm_os_real()->map(kvbm_os_real()->ctx, size, flags & ~r->map_flags_ignored, address, got);
    if (rc == 0) {
        r->open_maps++;
        r->open_bytes += size;
    }
    return rc;
}

static void refusing_unmap(void *ctx, void *address, size_t size) {
    struct refusing_os *r = ctx;
    KVBM_ASSERT(r->open_maps > 0 && r->open_bytes >= size);
    r->open_maps--;
    r->open_bytes -= size;
    kvbm_os_real()->unmap(kvbm_os_real()->ctx, address, size);
}

static int refusing_thread_start(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg,
                                 const char *name) {
    struct refusing_os *r = ctx;
    r->thread_count++;
    if (r->thread_refuse_from != 0 && r->thread_count >= r->thread_refuse_from) {
        r->refused_count++;
        return -EAGAIN;
    }
    int rc = kvbm_os_real()->thread_start(kvbm_os_real()->ctx, thread, run, arg, name);
    r->open_threads += rc == 0;
    return rc;
}

static void refusing_thread_join(void *ctx, struct kvbm_thread *thread) {
    struct refusing_os *r = ctx;
    KVBM_ASSERT(r->open_threads > 0);
    r->open_threads--;
    kvbm_os_real()->thread_join(kvbm_os_real()->ctx, thread);
}

static int refusing_bind_node(void *ctx, void *address, size_t size, int node) {
    struct refusing_os *r = ctx;
    (void)address;
    r->bind_count++;
    r->bind_bytes = size;
    r->bind_node = node;
    r->refused_count += r->bind_result != 0;
    return r->bind_result;
}

void refusing_os_init(struct refusing_os *r) {
    r->os = *kvbm_os_real(); /* its ctx goes to the functions below; the others look at none */
    r->os.ctx = r;
    r->os.random_u64 = refusing_random;
    r->os.map = refusing_map;
    r->os.unmap = refusing_unmap;
    r->os.thread_start = refusing_thread_start;
    r->os.thread_join = refusing_thread_join;
    r->os.bind_node = refusing_bind_node;
}
