/*
 * support.h - what the tests of runtime/ share: a suite in one call, aborts caught in a child, a fake table of OS
 * functions, a counting allocator. Thread: the test's, where nothing else is said.
 */
#ifndef KVBM_TESTS_RUNTIME_SUPPORT_H
#define KVBM_TESTS_RUNTIME_SUPPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/os.h"
#include "runtime/reactor.h"

/* Check is named in the tests only; this is its Suite runner over an array of START_TEST names. Returns main's status.
 */
#define SUPPORT_MAIN(suite_name, ...)                                                                                  \
    int main(void) {                                                                                                   \
        const TTest *const tests[] = {__VA_ARGS__};                                                                    \
        Suite *suite = suite_create(suite_name);                                                                       \
        TCase *tcase = tcase_create(suite_name);                                                                       \
        tcase_set_timeout(tcase, 120);                                                                                 \
        for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++)                                                    \
            tcase_add_test(tcase, tests[i]);                                                                           \
        suite_add_tcase(suite, tcase);                                                                                 \
        SRunner *runner = srunner_create(suite);                                                                       \
        srunner_run_all(runner, CK_ENV);                                                                               \
        int failed = srunner_ntests_failed(runner);                                                                    \
        srunner_free(runner);                                                                                          \
        return failed == 0 ? 0 : 1;                                                                                    \
    }

/* Runs fn(arg) in a forked child. True if it died of SIGABRT; text[size) gets what it wrote to standard error. */
bool support_aborts(void (*fn)(void *arg), void *arg, char *text, size_t size);
/* Runs fn(arg) in a forked child and returns its exit status, or 128 + the signal that ended it. */
int support_child_status(int (*fn)(void *arg), void *arg);

/* The real table with a clock that stands still until moved, counted events and maps, and maps that fail on demand. */
struct support_os {
    struct kvbm_os table;
    _Atomic uint64_t now_ns;
    _Atomic uint64_t clock_reads;
    _Atomic uint64_t signals; /* event_signal */
    _Atomic uint64_t clears;  /* event_clear */
    _Atomic int64_t maps;     /* live maps */
    int map_fail_after;       /* the map after so many fails; -1: none */
    int event_open_rc;        /* < 0: event_open returns it */
};
void support_os_init(struct support_os *os);

/* Calls of malloc, calloc, realloc, aligned_alloc and their like by any thread of the process so far; always 0 under
 * a sanitizer, whose allocator this cannot stand before (support_counts_allocations is then false). */
bool support_counts_allocations(void);
uint64_t support_allocation_count(void);

/* A cache-line aligned, zeroed object on the heap; aborts on failure. */
void *support_new(size_t size);

/* Reactor options that suit the tests: lanes of 16, a turn of 64, wake-ups counted into *wake_count. */
struct kvbm_reactor_options support_reactor_options(const struct kvbm_os *os, _Atomic uint64_t *wake_count);

/* xorshift64*: a fixed seed replays a test. */
uint64_t support_random(uint64_t *state);

#endif
