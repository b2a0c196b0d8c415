/*
 * log.h - structured, rate-limited logging through one callback.
 *
 * A logger belongs to a manager. Records carry a level, a component, a message and key=value text already formatted in
 * one buffer on the caller's stack; nothing is allocated. Each call site is limited to `burst` records a second
 * (by site address hashed into a fixed table); what was held back is counted and reported with the next record that
 * passes ("suppressed=N"). Thread: any. The callback may run on any thread, must not call KVBM, and must not block
 * long.
 */
#ifndef KVBM_RUNTIME_LOG_H
#define KVBM_RUNTIME_LOG_H

#include <stdatomic.h>
#include <stdint.h>

#include "runtime/os.h"

/* Numerically as Python's logging / 10. */
enum kvbm_log_level {
    KVBM_LOG_DEBUG = 1,
    KVBM_LOG_INFO = 2,
    KVBM_LOG_WARNING = 3,
    KVBM_LOG_ERROR = 4,
    KVBM_LOG_OFF = 9
};

/* `component` ("registry") and `text` live for the call only. */
typedef void (*kvbm_log_fn)(void *user, int level, const char *component, const char *text);

#define KVBM_LOG_SITE_COUNT 256

struct kvbm_logger {
    kvbm_log_fn fn; /* NULL: standard error */
    void *user;
    const struct kvbm_os *os;
    _Atomic int level;
    uint32_t burst; /* records a second a call site; 0: no limit */
    struct {
        _Atomic uint64_t second;
        _Atomic uint32_t passed;
        _Atomic uint32_t suppressed;
    } sites[KVBM_LOG_SITE_COUNT];
};

void kvbm_logger_init(struct kvbm_logger *log, const struct kvbm_os *os, kvbm_log_fn fn, void *user, int level,
                      uint32_t burst);
void kvbm_log_write_mt(struct kvbm_logger *log, int level, const char *site, const char *component, const char *format,
                       ...) __attribute__((format(printf, 5, 6)));

#define KVBM_LOG_STR_(x) #x
#define KVBM_LOG_STR(x)  KVBM_LOG_STR_(x)
/* KVBM_LOG(log, WARNING, "slab", "huge pages refused error=%s", ...) ; log may be NULL. */
#define KVBM_LOG(log, lvl, component, ...)                                                                             \
    do {                                                                                                               \
        struct kvbm_logger *kvbm_log_ = (log);                                                                         \
        if (kvbm_log_ != NULL && atomic_load_explicit(&kvbm_log_->level, memory_order_relaxed) <= KVBM_LOG_##lvl)      \
            kvbm_log_write_mt(kvbm_log_, KVBM_LOG_##lvl, __FILE__ ":" KVBM_LOG_STR(__LINE__), component, __VA_ARGS__); \
    } while (0)

/* Programming errors: stays on in every build, names what was violated, then aborts. */
_Noreturn void kvbm_panic(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
#define KVBM_ASSERT(cond)                                                                                              \
    do {                                                                                                               \
        if (__builtin_expect(!(cond), 0))                                                                              \
            kvbm_panic(__FILE__, __LINE__, #cond, "%s", __func__);                                                     \
    } while (0)
#define KVBM_ASSERT_MSG(cond, ...)                                                                                     \
    do {                                                                                                               \
        if (__builtin_expect(!(cond), 0))                                                                              \
            kvbm_panic(__FILE__, __LINE__, #cond, __VA_ARGS__);                                                        \
    } while (0)

#endif
