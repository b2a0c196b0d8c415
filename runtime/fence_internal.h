/*
 * fence_internal.h - the two full fences of the wake protocols, and what ThreadSanitizer must be told.
 *
 * TSan does not model atomic_thread_fence. Nothing here relies on it for the visibility of plain data: that goes
 * through release/acquire on state words and queue heads. The fences only order "publish, then look" on both sides.
 */
#ifndef KVBM_RUNTIME_FENCE_INTERNAL_H
#define KVBM_RUNTIME_FENCE_INTERNAL_H

#include <stdatomic.h>

#if defined(__SANITIZE_THREAD__)
#define KVBM__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVBM__TSAN 1
#endif
#endif
#ifndef KVBM__TSAN
#define KVBM__TSAN 0
#endif

#if KVBM__TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define KVBM__TSAN_ACQUIRE(address) __tsan_acquire(address)
#define KVBM__TSAN_RELEASE(address) __tsan_release(address)
#else
#define KVBM__TSAN_ACQUIRE(address) ((void)(address))
#define KVBM__TSAN_RELEASE(address) ((void)(address))
#endif

/* Orders everything before it against everything after it. */
static inline void kvbm__fence_full(void) {
    atomic_thread_fence(memory_order_seq_cst);
}

/* The same, directly after a sequentially consistent read-modify-write. On x86 its lock prefix already was the fence.
 */
static inline void kvbm__fence_after_rmw(void) {
#if defined(__x86_64__)
    atomic_signal_fence(memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

#endif
