/*
 * port_bench.c - completions through a port, as an epoll loop sees them.
 *
 *   c_port_roundtrip  allocate submitted to a manager that never lends its reactor: wake the reactor's thread, run,
 * push to the port, wake the caller in poll, drain c_port_borrowed   the same with a reactor that may be borrowed: the
 * completion is in the port when submit returns c_port_64         64 operations submitted, then drained; ns an
 * operation, reactor's thread
 *
 * Reference of the first: a bare eventfd echo. One write wakes a thread that blocks in read, and its write wakes the
 * caller in poll: the two switches that no cross-thread round trip can do without.
 */
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "bench/bench.h"

#define PIPELINE 64

struct subject {
    kvbm_manager *manager;
    kvbm_port *port;
    uint64_t depth; /* operations submitted before draining */
};

static void await(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    while (poll(&entry, 1, -1) != 1) {
    }
}

static uint64_t roundtrip(void *arg, uint64_t iterations) {
    struct subject *subject = arg;
    kvbm_block blocks[PIPELINE];
    kvbm_completion completions[PIPELINE];
    kvbm_submit submit = {.size = sizeof submit, .port = subject->port};
    uint64_t start = bench_now_ns();
    for (uint64_t done = 0; done < iterations; done += subject->depth) {
        for (uint64_t i = 0; i < subject->depth; i++) {
            kvbm_allocate_args args = {.size = sizeof args, .tier = KVBM_TIER_HOST, .count = 1, .blocks = &blocks[i]};
            bench_must("kvbm_allocate_mt", kvbm_allocate_mt(subject->manager, &args, &submit, NULL));
        }
        for (uint64_t got = 0; got < subject->depth;) {
            int count = kvbm_port_drain(subject->port, completions, PIPELINE);
            bench_must("kvbm_port_drain", count);
            for (int i = 0; i < count; i++)
                bench_must("allocate", completions[i].status);
            got += (uint64_t)count;
            if (got < subject->depth && count == 0)
                await(kvbm_port_fd(subject->port));
        }
        bench_release(subject->manager, blocks, subject->depth);
    }
    return bench_now_ns() - start;
}

/* ---- the echo */

struct echo {
    int to, from;
};

static void *echo_thread(void *arg) {
    struct echo *echo = arg;
    eventfd_t value;
    while (eventfd_read(echo->to, &value) == 0 && value < 1000)
        eventfd_write(echo->from, 1);
    return NULL;
}

static uint64_t echo_run(void *arg, uint64_t iterations) {
    struct echo *echo = arg;
    eventfd_t value;
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++) {
        eventfd_write(echo->to, 1);
        await(echo->from);
        eventfd_read(echo->from, &value);
    }
    return bench_now_ns() - start;
}

static struct subject subject_make(uint32_t flags, uint64_t depth) {
    struct subject subject = {.manager = bench_manager(4096, flags), .depth = depth};
    bench_must("kvbm_port_open", kvbm_port_open(256, &subject.port));
    return subject;
}

static void report(const char *name, const struct bench_subject *run, const char *reference_name,
                   const struct bench_subject *reference) {
    struct subject *subject = run->arg;
    bench_report(&(struct bench_result){.name = name,
                                        .unit = "ns",
                                        .value = run->result,
                                        .reference_name = reference_name,
                                        .reference_value = reference->result.median},
                 "\"operations_in_flight\": %llu", (unsigned long long)subject->depth);
}

int main(void) {
    struct subject thread = subject_make(KVBM_OPEN_NO_BORROW, 1);
    struct subject borrowed = subject_make(0, 1);
    struct subject pipeline = subject_make(KVBM_OPEN_NO_BORROW, PIPELINE);
    struct echo echo = {.to = eventfd(0, EFD_CLOEXEC), .from = eventfd(0, EFD_CLOEXEC)};
    pthread_t echoer;
    bench_must("pthread_create", -pthread_create(&echoer, NULL, echo_thread, &echo));
    struct bench_subject subjects[] = {
        {.fn = roundtrip, .arg = &thread, .iterations = 50},
        {.fn = echo_run, .arg = &echo, .iterations = 50},
        {.fn = roundtrip, .arg = &borrowed, .iterations = 500},
        {.fn = roundtrip, .arg = &pipeline, .iterations = 4L * PIPELINE},
    };
    bench_run(subjects, 4, 400);
    report("c_port_roundtrip", &subjects[0], "a bare eventfd echo thread with poll", &subjects[1]);
    report("c_port_borrowed", &subjects[2], "c_port_roundtrip", &subjects[0]);
    report("c_port_64", &subjects[3], "c_port_roundtrip", &subjects[0]);
    eventfd_write(echo.to, 1000);
    pthread_join(echoer, NULL);
    close(echo.to);
    close(echo.from);
    struct subject *all[] = {&thread, &borrowed, &pipeline};
    for (int i = 0; i < 3; i++) {
        kvbm_port_close(all[i]->port);
        bench_manager_end(all[i]->manager);
    }
    return 0;
}
