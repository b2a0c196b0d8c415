/*
 * bench.h - what the C benchmarks share: batches, medians, keys, and one JSON line a result.
 *
 * A figure is the median over many short batches, each long enough that the clock (about 30 ns) does not count and
 * short enough that most escape other programs. Subjects that are compared are interleaved, batch by batch, so that
 * both see the same machine. Standard output carries JSON lines only; everything else goes to standard error. No test
 * looks at the times.
 *
 * Thread: the caller's. A failed call ends the program with a message: a benchmark that measures errors is worthless.
 */
#ifndef KVBM_BENCH_BENCH_H
#define KVBM_BENCH_BENCH_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "actors/kvbm.h"

#define BENCH_UNUSED __attribute__((unused))

/* -------------------------------------------------------------------------------------------------------- failures */

BENCH_UNUSED static _Noreturn void bench_die(const char *what, long code) {
    fprintf(stderr, "bench: %s: %ld (%s)\n", what, code, code < 0 ? kvbm_error_text_mt((int)code) : "unexpected");
    exit(1);
}

/* For calls that return 0 or a count. */
BENCH_UNUSED static long bench_must(const char *what, long result) {
    if (result < 0)
        bench_die(what, result);
    return result;
}

BENCH_UNUSED static void *bench_alloc(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL)
        bench_die("calloc", -12);
    memset(memory, 1, count * size); /* touched now, so that no batch pays for it */
    return memory;
}

/* --------------------------------------------------------------------------------------------------------- batches */

BENCH_UNUSED static uint64_t bench_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

struct bench_summary {
    double median, p10, p90;
    uint64_t batches, per_batch;
};

BENCH_UNUSED static int bench_order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts `samples`. */
BENCH_UNUSED static struct bench_summary bench_summarize(double *samples, size_t count, uint64_t per_batch) {
    qsort(samples, count, sizeof *samples, bench_order);
    return (struct bench_summary){
        .median = samples[count / 2],
        .p10 = samples[count / 10],
        .p90 = samples[count - 1 - count / 10],
        .batches = count,
        .per_batch = per_batch,
    };
}

/* Runs `iterations` of the subject and returns the nanoseconds that count, so that a subject can leave out its set-up.
 */
typedef uint64_t (*bench_fn)(void *arg, uint64_t iterations);

struct bench_subject {
    bench_fn fn;
    void *arg;
    uint64_t iterations;         /* of one batch */
    struct bench_summary result; /* ns an iteration */
};

/* All subjects in turn, `batches` times, after a tenth of that as warm-up. */
BENCH_UNUSED static void bench_run(struct bench_subject *subjects, size_t subject_count, size_t batches) {
    double *samples = bench_alloc(subject_count * batches, sizeof(double));
    size_t warm_up = batches / 10 + 1;
    for (size_t batch = 0; batch < warm_up + batches; batch++) {
        for (size_t s = 0; s < subject_count; s++) {
            uint64_t ns = subjects[s].fn(subjects[s].arg, subjects[s].iterations);
            if (batch >= warm_up)
                samples[s * batches + batch - warm_up] = (double)ns / (double)subjects[s].iterations;
        }
    }
    for (size_t s = 0; s < subject_count; s++)
        subjects[s].result = bench_summarize(samples + s * batches, batches, subjects[s].iterations);
    free(samples);
}

/* ------------------------------------------------------------------------------------------------------------ keys */

/* The n-th of 2^64 distinct keys, equally spread as digests are (splitmix64, Steele and others 2014). */
BENCH_UNUSED static kvbm_key bench_key(uint64_t n) {
    kvbm_key key;
    for (int half = 0; half < 2; half++) {
        uint64_t x = n + (uint64_t)half * UINT64_C(0xd1b54a32d192ed03) + UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        x ^= x >> 31;
        memcpy(key.bytes + 8 * half, &x, 8);
    }
    return key;
}

/* -------------------------------------------------------------------------------------------------------- managers */

/* A manager of bookkeeping alone (unless flags say otherwise) with one host pool. */
BENCH_UNUSED static kvbm_manager *bench_manager(uint64_t blocks, uint32_t flags) {
    kvbm_group_options group = {
        .size = sizeof group,
        .geometry = {.num_layers = 2,
                     .outer_dim = 2,
                     .page_size = 16,
                     .inner_dim = 64,
                     .dtype = KVBM_DTYPE_FP16,
                     .form = KVBM_LAYOUT_FULLY_CONTIGUOUS},
        .host_blocks = blocks,
    };
    kvbm_options options = {
        .size = sizeof options,
        .name = "bench",
        .groups = &group,
        .group_count = 1,
        .flags = flags | KVBM_OPEN_NO_BYTES,
    };
    kvbm_manager *manager = NULL;
    kvbm_failure failure = {.size = sizeof failure};
    int result = kvbm_manager_open(&options, &manager, &failure);
    if (result != 0) {
        fprintf(stderr, "bench: kvbm_manager_open: %s\n", failure.text);
        bench_die("kvbm_manager_open", result);
    }
    return manager;
}

BENCH_UNUSED static void bench_manager_end(kvbm_manager *manager) {
    bench_must("kvbm_manager_close_mt", kvbm_manager_close_mt(manager, UINT64_C(30000000000)));
    kvbm_manager_release_mt(manager);
}

/* An operation that is answered at submit, or else waited for. Points into itself: not to be copied after init. */
struct bench_call {
    kvbm_submit submit;
    kvbm_completion completion;
    kvbm_op op;
    uint64_t waited_count; /* not answered at submit */
};

BENCH_UNUSED static void bench_call_init(struct bench_call *call) {
    memset(call, 0, sizeof *call);
    call->submit.size = sizeof call->submit;
    call->submit.flags = KVBM_SUBMIT_INLINE;
    call->submit.completion = &call->completion;
}

static inline uint64_t bench_settle(kvbm_manager *manager, struct bench_call *call, const char *what, int result) {
    if (result == 0) {
        call->waited_count++;
        result = kvbm_wait_mt(manager, call->op, UINT64_MAX, &call->completion);
    }
    if (result < 0)
        bench_die(what, result);
    if (call->completion.status != 0)
        bench_die(what, call->completion.status);
    return call->completion.count;
}

static inline uint64_t bench_allocate(kvbm_manager *manager, struct bench_call *call, kvbm_block *blocks,
                                      uint64_t count) {
    kvbm_allocate_args args = {.size = sizeof args, .tier = KVBM_TIER_HOST, .count = count, .blocks = blocks};
    return bench_settle(manager, call, "allocate", kvbm_allocate_mt(manager, &args, &call->submit, &call->op));
}

static inline uint64_t bench_register(kvbm_manager *manager, struct bench_call *call, kvbm_block *blocks,
                                      const kvbm_key *keys, uint64_t count) {
    kvbm_register_args args = {
        .size = sizeof args, .count = count, .blocks = blocks, .keys = keys, .out_blocks = blocks};
    return bench_settle(manager, call, "register", kvbm_register_mt(manager, &args, &call->submit, &call->op));
}

static inline uint64_t bench_match(kvbm_manager *manager, struct bench_call *call, const kvbm_key *keys,
                                   kvbm_block *blocks, uint64_t count) {
    kvbm_match_args args = {.size = sizeof args, .count = count, .keys = keys, .blocks = blocks};
    return bench_settle(manager, call, "match", kvbm_match_mt(manager, &args, &call->submit, &call->op));
}

static inline void bench_release(kvbm_manager *manager, const kvbm_block *blocks, uint64_t count) {
    int result = kvbm_release_mt(manager, blocks, count);
    if (result != 0)
        bench_die("release", result);
}

/* Registers keys first .. first + count of bench_key in batches, and gives every lease back: they stay cached. Returns
 * the nanoseconds spent in calls. */
BENCH_UNUSED static uint64_t bench_fill(kvbm_manager *manager, uint64_t first, uint64_t count) {
    enum { BATCH = 256 };
    kvbm_block blocks[BATCH];
    kvbm_key keys[BATCH];
    struct bench_call call;
    uint64_t ns = 0;
    bench_call_init(&call);
    for (uint64_t done = 0; done < count;) {
        uint64_t n = count - done < BATCH ? count - done : BATCH;
        for (uint64_t i = 0; i < n; i++)
            keys[i] = bench_key(first + done + i);
        uint64_t start = bench_now_ns();
        bench_allocate(manager, &call, blocks, n);
        bench_register(manager, &call, blocks, keys, n);
        bench_release(manager, blocks, n);
        ns += bench_now_ns() - start;
        done += n;
    }
    bench_must("kvbm_pool_available_mt", (long)kvbm_pool_available_mt(manager, 0, KVBM_TIER_HOST));
    return ns;
}

/* --------------------------------------------------------------------------------------------------------- results */

/* First line of a command's output, "" if it failed. */
BENCH_UNUSED static void bench_command(const char *command, char *text, size_t size) {
    text[0] = '\0';
    FILE *pipe = popen(command, "r"); /* NOLINT: fixed strings */
    if (pipe == NULL)
        return;
    if (fgets(text, (int)size, pipe) == NULL)
        text[0] = '\0';
    text[strcspn(text, "\n\"\\")] = '\0';
    pclose(pipe);
}

/* Where and how: the same fields as bench/common.py. Kept after the first call. */
BENCH_UNUSED static const char *bench_machine(void) {
    static char json[1024];
    if (json[0] != '\0')
        return json;
    char cpu[128], revision[80];
    struct utsname kernel;
    bench_command("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo", cpu, sizeof cpu);
    bench_command("git describe --always --dirty --exclude '*' 2>/dev/null", revision, sizeof revision);
    uname(&kernel);
    snprintf(json, sizeof json,
             "\"cpu\": \"%s\", \"cores\": %ld, \"kernel\": \"%s\", \"compiler\": \"%s %s\", \"revision\": \"%s\"", cpu,
             sysconf(_SC_NPROCESSORS_ONLN), kernel.release,
#ifdef __clang__
             "clang",
#else
             "gcc",
#endif
             __VERSION__, revision);
    return json;
}

struct bench_result {
    const char *name;
    const char *unit;
    struct bench_summary value;
    const char *reference_name; /* NULL: none */
    double reference_value;
    double target_value; /* at most this is wanted; 0: no target, unless target_zero */
    bool target_zero;    /* 0 is wanted */
    double target_ratio; /* the same for value / reference; 0: no target */
};

BENCH_UNUSED static int bench_number(char *text, size_t size, double value) {
    /* Three digits are more than the machine repeats. */
    return snprintf(text, size, fabs(value) >= 1000 ? "%.0f" : "%.4g", value);
}

/* Prints one result. `format` adds to the conditions: JSON members such as "\"blocks\": %d". */
BENCH_UNUSED __attribute__((format(printf, 2, 3))) static void bench_report(const struct bench_result *result,
                                                                            const char *format, ...) {
    char more[512], value[32], p10[32], p90[32], reference[192] = "null", ratio[32] = "null", target[64] = "null";
    va_list args;
    va_start(args, format);
    vsnprintf(more, sizeof more, format, args);
    va_end(args);
    bench_number(value, sizeof value, result->value.median);
    bench_number(p10, sizeof p10, result->value.p10);
    bench_number(p90, sizeof p90, result->value.p90);
    if (result->reference_name != NULL) {
        char number[32];
        bench_number(number, sizeof number, result->reference_value);
        snprintf(reference, sizeof reference, "{\"name\": \"%s\", \"value\": %s}", result->reference_name, number);
        if (result->reference_value != 0)
            snprintf(ratio, sizeof ratio, "%.4g", result->value.median / result->reference_value);
    }
    if (result->target_value != 0 || result->target_zero)
        snprintf(target, sizeof target, "{\"value_max\": %.10g}", result->target_value);
    else if (result->target_ratio != 0)
        snprintf(target, sizeof target, "{\"ratio_max\": %.10g}", result->target_ratio);
    printf("{\"name\": \"%s\", \"unit\": \"%s\", \"value\": %s, \"spread\": [%s, %s], \"reference\": %s, "
           "\"ratio\": %s, \"target\": %s, \"conditions\": {%s, \"batches\": %llu, \"per_batch\": %llu%s%s}}\n",
           result->name, result->unit, value, p10, p90, reference, ratio, target, bench_machine(),
           (unsigned long long)result->value.batches, (unsigned long long)result->value.per_batch,
           more[0] != '\0' ? ", " : "", more);
    fflush(stdout);
}

#endif
