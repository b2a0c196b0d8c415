/*
 * alloc_count.c - counts the process's allocations by standing before glibc's allocator. Thread: any.
 *
 * Linked in by support_allocation_count only. Sanitizers bring an allocator of their own: nothing is counted there.
 */
#include <errno.h>
#include <stdlib.h>

#include "runtime/fence_internal.h"
#include "tests/runtime/support.h"

#if defined(__SANITIZE_ADDRESS__) || KVBM__TSAN
#define COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define COUNTED 0
#endif
#endif
#ifndef COUNTED
#define COUNTED 1
#endif

#if COUNTED
static _Atomic uint64_t allocation_count;

/* glibc's own names for what is replaced below. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static void count_one(void) {
    atomic_fetch_add_explicit(&allocation_count, 1, memory_order_relaxed);
}

void *malloc(size_t size) {
    count_one();
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    count_one();
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    count_one();
    return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count_one();
    return __libc_memalign(alignment, size);
}

void *memalign(size_t alignment, size_t size);
void *memalign(size_t alignment, size_t size) {
    count_one();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    count_one();
    void *memory = __libc_memalign(alignment, size);
    if (memory == NULL)
        return ENOMEM;
    *out = memory;
    return 0;
}

uint64_t support_allocation_count(void) {
    return atomic_load_explicit(&allocation_count, memory_order_relaxed);
}
#else
uint64_t support_allocation_count(void) {
    return 0;
}
#endif

bool support_counts_allocations(void) {
    return COUNTED != 0;
}
