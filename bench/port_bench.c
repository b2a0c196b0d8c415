/*
 * port_bench.c - completions through a port, as an epoll loop sees them.
 *
 *   c_port_roundtrip  allocate submitted to a manager that never lends its reactor: wake the reactor's thread, run, push
 *                     to the port, wake the caller in poll, drain; with _one_cpu and _two_cpus both threads are pinned
 *   c_port_borrowed   the same with a reactor that may be borrowed: the completion is in the port when submit returns
 *   c_port_64         64 operations submitted, then drained; ns an operation, reactor's thread
 *
 * Reference of the first: a bare eventfd echo. One write wakes a thread that blocks in read, and its write wakes the
 * caller in poll: the two switches that no cross-thread round trip can do without.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
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

static void subject_end(struct subject *subject) {
    kvbm_port_close(subject->port);
    bench_manager_end(subject->manager);
}

/* ---- placements: threads inherit the processors that their maker may run on */

enum placement { FREE, ONE_CPU, TWO_CPUS };

static void pin(const cpu_set_t *all, enum placement placement, bool other_side) {
    cpu_set_t set = *all;
    size_t first = 0, last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(first, all))
        first++;
    while (!CPU_ISSET(last, all))
        last--;
    if (placement != FREE) {
        CPU_ZERO(&set);
        CPU_SET(other_side && placement == TWO_CPUS ? last : first, &set);
    }
    bench_must("sched_setaffinity", sched_setaffinity(0, sizeof set, &set));
}

static double bench_roundtrip(const cpu_set_t *all, enum placement placement) {
    static const char *const names[] = {"c_port_roundtrip", "c_port_roundtrip_one_cpu", "c_port_roundtrip_two_cpus"};
    static const char *const placements[] = {"free", "one cpu", "two cpus"};
    pin(all, placement, true);
    struct subject subject = subject_make(KVBM_OPEN_NO_BORROW, 1);
    struct echo echo = {.to = eventfd(0, EFD_CLOEXEC), .from = eventfd(0, EFD_CLOEXEC)};
    pthread_t echoer;
    bench_must("pthread_create", -pthread_create(&echoer, NULL, echo_thread, &echo));
    pin(all, placement, false);
    struct bench_subject subjects[] = {
        {.fn = roundtrip, .arg = &subject, .iterations = 50},
        {.fn = echo_run, .arg = &echo, .iterations = 50},
    };
    bench_run(subjects, 2, 400);
    pin(all, FREE, false);
    bench_report(&(struct bench_result){.name = names[placement],
                                        .unit = "ns",
                                        .value = subjects[0].result,
                                        .reference_name = "a bare eventfd echo thread with poll",
                                        .reference_value = subjects[1].result.median},
                 "\"operations_in_flight\": 1, \"placement\": \"%s\", \"floor_spread\": [%.0f, %.0f]",
                 placements[placement], subjects[1].result.p10, subjects[1].result.p90);
    eventfd_write(echo.to, 1000);
    pthread_join(echoer, NULL);
    close(echo.to);
    close(echo.from);
    subject_end(&subject);
    return subjects[0].result.median;
}

static void bench_others(double roundtrip_ns) {
    struct subject borrowed = subject_make(0, 1);
    struct subject pipeline = subject_make(KVBM_OPEN_NO_BORROW, PIPELINE);
    struct bench_subject subjects[] = {
        {.fn = roundtrip, .arg = &borrowed, .iterations = 500},
        {.fn = roundtrip, .arg = &pipeline, .iterations = 4L * PIPELINE},
    };
    static const char *const names[] = {"c_port_borrowed", "c_port_64"};
    bench_run(subjects, 2, 400);
    for (int i = 0; i < 2; i++) {
        struct subject *subject = subjects[i].arg;
        bench_report(&(struct bench_result){.name = names[i],
                                            .unit = "ns",
                                            .value = subjects[i].result,
                                            .reference_name = "c_port_roundtrip",
                                            .reference_value = roundtrip_ns},
                     "\"operations_in_flight\": %llu", (unsigned long long)subject->depth);
        subject_end(subject);
    }
}

int main(void) {
    cpu_set_t all;
    bench_must("sched_getaffinity", sched_getaffinity(0, sizeof all, &all));
    double roundtrip_ns = bench_roundtrip(&all, FREE);
    bench_roundtrip(&all, ONE_CPU);
    bench_roundtrip(&all, TWO_CPUS);
    bench_others(roundtrip_ns);
    return 0;
}
