/*
 * log.c - the logger and the panic. Owns nothing; a record lives on its caller's stack. Thread: any.
 */
#include "runtime/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/log_internal.h"

#define TEXT_BYTES    1024
#define NS_PER_SECOND 1000000000ull

void kvbm_logger_init(struct kvbm_logger *log, const struct kvbm_os *os, kvbm_log_fn fn, void *user, int level,
                      uint32_t burst) {
    log->fn = fn;
    log->user = user;
    log->os = os;
    log->burst = burst;
    atomic_init(&log->level, level);
    for (uint32_t i = 0; i < KVBM_LOG_SITE_COUNT; i++) {
        atomic_init(&log->sites[i].second, UINT64_MAX);
        atomic_init(&log->sites[i].passed, 0);
        atomic_init(&log->sites[i].suppressed, 0);
    }
}

static uint32_t site_slot(const char *site) {
    /* Fibonacci hashing (Knuth, TAOCP 6.4) of the literal's address. */
    uint64_t hash = (uint64_t)(uintptr_t)site * 0x9E3779B97F4A7C15ull;
    return (uint32_t)(hash >> 56) % KVBM_LOG_SITE_COUNT;
}

/* Whether a record of `site` may pass now; *suppressed gets how many did not since the last that did. */
static bool admit(struct kvbm_logger *log, const char *site, uint32_t *suppressed) {
    *suppressed = 0;
    if (log->burst == 0)
        return true;
    uint32_t slot = site_slot(site);
    uint64_t now = log->os->now_ns(log->os->ctx) / NS_PER_SECOND;
    /* All relaxed: a limit, which two threads at the turn of a second may miss by a record; paired with nothing. */
    uint64_t second = atomic_load_explicit(&log->sites[slot].second, memory_order_relaxed);
    if (second != now && atomic_compare_exchange_strong_explicit(&log->sites[slot].second, &second, now,
                                                                 memory_order_relaxed, memory_order_relaxed))
        atomic_store_explicit(&log->sites[slot].passed, 0, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&log->sites[slot].passed, 1, memory_order_relaxed) >= log->burst) {
        /* Taken back, so that the count cannot wrap however long the second. */
        atomic_fetch_sub_explicit(&log->sites[slot].passed, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&log->sites[slot].suppressed, 1, memory_order_relaxed);
        return false;
    }
    *suppressed = atomic_exchange_explicit(&log->sites[slot].suppressed, 0, memory_order_relaxed);
    return true;
}

static const char *level_name(int level) {
    switch (level) {
    case KVBM_LOG_DEBUG:
        return "debug";
    case KVBM_LOG_INFO:
        return "info";
    case KVBM_LOG_WARNING:
        return "warning";
    default:
        return "error";
    }
}

/* One write, so that lines of several threads do not mix. */
static void write_stderr(const char *text, size_t size) {
    ssize_t written = write(STDERR_FILENO, text, size);
    (void)written; /* there is nowhere left to complain */
}

/* What fits of snprintf's answer `printed` in `size` bytes, without the terminator. */
static size_t fitted(int printed, size_t size) {
    if (printed < 0)
        return 0;
    return (size_t)printed < size ? (size_t)printed : size - 1;
}

void kvbm_log_write_mt(struct kvbm_logger *log, int level, const char *site, const char *component, const char *format,
                       ...) {
    uint32_t suppressed = 0;
    if (log == NULL || !admit(log, site, &suppressed))
        return;
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    size_t length = fitted(vsnprintf(text, sizeof text, format, args), sizeof text);
    va_end(args);
    if (suppressed != 0)
        snprintf(text + length, sizeof text - length, " suppressed=%u", suppressed);
    if (log->fn != NULL) {
        log->fn(log->user, level, component, text);
        return;
    }
    char line[TEXT_BYTES + 128];
    int printed = snprintf(line, sizeof line, "kvbm level=%s component=%s %s\n", level_name(level), component, text);
    write_stderr(line, fitted(printed, sizeof line));
}

static _Atomic(kvbm__panic_describe_fn) panic_describe;

void kvbm__panic_describe_set_mt(kvbm__panic_describe_fn describe) {
    /* Release, pairs with the acquire in kvbm_panic; the function reads only its own thread's state. */
    atomic_store_explicit(&panic_describe, describe, memory_order_release);
}

_Noreturn void kvbm_panic(const char *file, int line, const char *condition, const char *format, ...) {
    char detail[512];
    char doing[256] = "";
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    kvbm__panic_describe_fn describe = atomic_load_explicit(&panic_describe, memory_order_acquire);
    if (describe != NULL)
        describe(doing, sizeof doing);
    int printed = snprintf(text, sizeof text, "kvbm panic at %s:%d: %s: %s%s%s\n", file, line, condition, detail,
                           doing[0] == '\0' ? "" : " while running ", doing);
    write_stderr(text, fitted(printed, sizeof text));
    abort();
}
