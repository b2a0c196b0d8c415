/*
 * os_test.c - facts about the real table of OS functions, the fork guard and thread numbers.
 */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/fence_internal.h"
#include "runtime/os.h"
#include "tests/runtime/support.h"

#define MS 1000000ull

static const struct kvbm_os *os;

START_TEST(clock_is_monotonic_and_wall_is_of_this_century) {
    os = kvbm_os_real();
    uint64_t before = os->now_ns(os->ctx);
    for (int i = 0; i < 1000; i++) {
        uint64_t now = os->now_ns(os->ctx);
        ck_assert_uint_ge(now, before);
        before = now;
    }
    ck_assert_uint_gt(os->wall_ns(os->ctx), 1600000000ull * 1000 * MS);
}
END_TEST

static _Atomic uint64_t random_seen[4][256];

static void draw_random(void *arg) {
    for (int i = 0; i < 256; i++)
        atomic_store(&random_seen[(intptr_t)arg][i], kvbm_os_real()->random_u64(NULL));
}

START_TEST(random_numbers_of_several_threads_are_distinct) {
    os = kvbm_os_real();
    struct kvbm_thread threads[4];
    for (intptr_t t = 0; t < 4; t++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[t], draw_random, (void *)t, "random"), 0);
    for (int t = 0; t < 4; t++)
        os->thread_join(os->ctx, &threads[t]);
    uint64_t ones = 0;
    for (int i = 0; i < 1024; i++) {
        uint64_t a = random_seen[i / 256][i % 256];
        ones += (uint64_t)__builtin_popcountll(a);
        for (int j = 0; j < i; j++)
            ck_assert_uint_ne(a, random_seen[j / 256][j % 256]);
    }
    ck_assert_uint_gt(ones, 1024 * 31);
    ck_assert_uint_lt(ones, 1024 * 33);
}
END_TEST

struct thread_seen {
    char name[16];
    bool usr1_blocked, int_blocked;
};

static void look_at_self(void *arg) {
    struct thread_seen *seen = arg;
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    seen->usr1_blocked = sigismember(&blocked, SIGUSR1) == 1;
    seen->int_blocked = sigismember(&blocked, SIGINT) == 1;
    pthread_getname_np(pthread_self(), seen->name, sizeof seen->name);
}

START_TEST(started_thread_is_named_and_blocks_signals_while_the_starter_does_not) {
    os = kvbm_os_real();
    struct kvbm_thread thread;
    struct thread_seen seen = {.name = ""};
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, look_at_self, &seen, "a-name-that-is-cut"), 0);
    os->thread_join(os->ctx, &thread);
    ck_assert_str_eq(seen.name, "a-name-that-is-");
    ck_assert(seen.usr1_blocked && seen.int_blocked);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    ck_assert_int_eq(sigismember(&blocked, SIGUSR1), 0);
}
END_TEST

static _Atomic uint32_t word;

static void wake_soon(void *arg) {
    (void)arg;
    struct timespec pause = {.tv_nsec = 20 * (long)MS};
    nanosleep(&pause, NULL);
    atomic_store(&word, 1);
    kvbm_os_real()->wake_u32(NULL, &word, true);
}

START_TEST(wait_returns_on_a_wake_a_changed_word_and_a_deadline) {
    os = kvbm_os_real();
    atomic_store(&word, 0);
    ck_assert_int_eq(os->wait_u32(os->ctx, &word, 7, KVBM_NO_DEADLINE), -EAGAIN);
    uint64_t until = os->now_ns(os->ctx) + 5 * MS;
    ck_assert_int_eq(os->wait_u32(os->ctx, &word, 0, until), -ETIMEDOUT);
    ck_assert_uint_ge(os->now_ns(os->ctx), until);
    struct kvbm_thread thread;
    ck_assert_int_eq(os->thread_start(os->ctx, &thread, wake_soon, NULL, "waker"), 0);
    while (atomic_load(&word) == 0) {
        int rc = os->wait_u32(os->ctx, &word, 0, KVBM_NO_DEADLINE);
        ck_assert(rc == 0 || rc == -EAGAIN || rc == -EINTR);
    }
    os->thread_join(os->ctx, &thread);
}
END_TEST

static bool readable(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

START_TEST(event_is_readable_from_signal_to_clear) {
    os = kvbm_os_real();
    int fd = os->event_open(os->ctx);
    ck_assert_int_ge(fd, 0);
    ck_assert(!readable(fd));
    os->event_clear(os->ctx, fd);
    os->event_signal(os->ctx, fd);
    os->event_signal(os->ctx, fd);
    ck_assert(readable(fd));
    os->event_clear(os->ctx, fd);
    ck_assert(!readable(fd));
    os->event_close(os->ctx, fd);
}
END_TEST

START_TEST(maps_are_zeroed_writable_and_of_any_size) {
    os = kvbm_os_real();
    const size_t sizes[] = {1, 4096, 4097, (size_t)2 << 20, ((size_t)2 << 20) + 1, (size_t)5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (unsigned flags = 0; flags < 8; flags++) {
            void *address = NULL;
            unsigned got = 0xff;
            ck_assert_int_eq(os->map(os->ctx, sizes[i], flags, &address, &got), 0);
            ck_assert_uint_eq(got & ~flags, 0);
            unsigned char *bytes = address;
            ck_assert_uint_eq(bytes[0], 0);
            ck_assert_uint_eq(bytes[sizes[i] - 1], 0);
            bytes[0] = 1;
            bytes[sizes[i] - 1] = 2;
            os->unmap(os->ctx, address, sizes[i]);
        }
    }
}
END_TEST

START_TEST(lazy_map_may_be_far_larger_than_memory) {
    os = kvbm_os_real();
    void *address = NULL;
    unsigned got = 0;
    ck_assert_int_eq(os->map(os->ctx, (size_t)1 << 38, KVBM_MAP_LAZY, &address, &got), 0);
    ck_assert_uint_eq(got, KVBM_MAP_LAZY);
    ((unsigned char *)address)[(size_t)1 << 37] = 1;
    os->unmap(os->ctx, address, (size_t)1 << 38);
}
END_TEST

START_TEST(absurd_maps_fail_with_an_errno) {
    os = kvbm_os_real();
    void *address = NULL;
    ck_assert_int_eq(os->map(os->ctx, 0, 0, &address, NULL), -EINVAL);
    ck_assert_int_eq(os->map(os->ctx, SIZE_MAX, 0, &address, NULL), -EINVAL);
    ck_assert_int_eq(os->map(os->ctx, SIZE_MAX / 2, KVBM_MAP_HUGE, &address, NULL), -ENOMEM);
    ck_assert_ptr_null(address);
}
END_TEST

static int touch(void *arg) {
    return *(volatile unsigned char *)arg == 7 ? 0 : 1;
}

START_TEST(child_does_not_inherit_a_no_fork_map) {
    os = kvbm_os_real();
    void *shared = NULL;
    void *own = NULL;
    unsigned got = 0;
    ck_assert_int_eq(os->map(os->ctx, 4096, 0, &shared, NULL), 0);
    ck_assert_int_eq(os->map(os->ctx, 4096, KVBM_MAP_NO_FORK, &own, &got), 0);
    ck_assert_uint_eq(got, KVBM_MAP_NO_FORK);
    *(unsigned char *)shared = 7;
    *(unsigned char *)own = 7;
    ck_assert_int_eq(support_child_status(touch, shared), 0);
    ck_assert_int_ne(support_child_status(touch, own), 0);
    os->unmap(os->ctx, shared, 4096);
    os->unmap(os->ctx, own, 4096);
}
END_TEST

START_TEST(bind_node_refuses_what_is_no_node) {
    os = kvbm_os_real();
    void *address = NULL;
    ck_assert_int_eq(os->map(os->ctx, 4096, 0, &address, NULL), 0);
    ck_assert_int_eq(os->bind_node(os->ctx, address, 4096, -1), -EINVAL);
    ck_assert_int_eq(os->bind_node(os->ctx, address, 4096, 1 << 20), -EINVAL);
    int rc = os->bind_node(os->ctx, address, 4096, 0);
    ck_assert_msg(rc == 0 || rc == -ENOSYS || rc == -EPERM || rc == -EINVAL, "rc=%d", rc);
    os->unmap(os->ctx, address, 4096);
    ck_assert_uint_ge(os->cpu_count(os->ctx), 1);
}
END_TEST

static int forked_in_child(void *arg) {
    uint32_t stamp = *(uint32_t *)arg;
    if (!kvbm_os_forked_mt(stamp))
        return 1;
    uint32_t own = kvbm_os_fork_stamp_mt();
    return own != stamp && !kvbm_os_forked_mt(own) ? 0 : 2;
}

START_TEST(stamp_tells_a_forked_child_and_a_child_takes_a_new_one) {
    uint32_t stamp = kvbm_os_fork_stamp_mt();
    ck_assert(!kvbm_os_forked_mt(stamp));
    ck_assert_uint_eq(kvbm_os_fork_stamp_mt(), stamp);
    ck_assert_int_eq(support_child_status(forked_in_child, &stamp), 0);
    ck_assert(!kvbm_os_forked_mt(stamp));
}
END_TEST

static int random_in_child(void *arg) {
    (void)arg;
    return (int)(kvbm_os_real()->random_u64(NULL) & 0x7f);
}

START_TEST(forked_children_draw_different_random_numbers) {
    (void)kvbm_os_fork_stamp_mt(); /* installs the handler */
    (void)kvbm_os_real()->random_u64(NULL);
    int first = support_child_status(random_in_child, NULL);
    int same = 1;
    for (int i = 0; i < 15; i++)
        same += support_child_status(random_in_child, NULL) == first;
    ck_assert_int_lt(same, 16); /* this process draws none between: without a new seed all would be equal */
}
END_TEST

/* ---- thread numbers */

struct crowd {
    _Atomic uint32_t arrived;
    _Atomic uint32_t leave;
    _Atomic uint64_t numbers; /* bit n: somebody has n */
    _Atomic uint32_t refused;
    _Atomic uint32_t twice;
};

static void hold_number(void *arg) {
    struct crowd *crowd = arg;
    int number = kvbm_os_thread_number_mt();
    if (number < 0)
        atomic_fetch_add(&crowd->refused, 1);
    else if ((atomic_fetch_or(&crowd->numbers, 1ull << number) >> number & 1) != 0)
        atomic_fetch_add(&crowd->twice, 1);
    if (number != kvbm_os_thread_number_mt())
        atomic_fetch_add(&crowd->twice, 1);
    atomic_fetch_add(&crowd->arrived, 1);
    while (atomic_load(&crowd->leave) == 0)
        kvbm_os_real()->wait_u32(NULL, &crowd->leave, 0, KVBM_NO_DEADLINE);
}

static void gather(struct crowd *crowd, uint32_t count) {
    os = kvbm_os_real();
    struct kvbm_thread threads[80];
    for (uint32_t i = 0; i < count; i++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[i], hold_number, crowd, "crowd"), 0);
    while (atomic_load(&crowd->arrived) != count)
        os->wait_u32(os->ctx, &crowd->arrived, atomic_load(&crowd->arrived), os->now_ns(os->ctx) + MS);
    atomic_store(&crowd->leave, 1);
    os->wake_u32(os->ctx, &crowd->leave, true);
    for (uint32_t i = 0; i < count; i++)
        os->thread_join(os->ctx, &threads[i]);
    ck_assert_uint_eq(crowd->twice, 0);
}

START_TEST(live_threads_have_distinct_numbers_and_the_65th_has_none) {
    int own = kvbm_os_thread_number_mt();
    ck_assert_int_ge(own, 0);
    struct crowd crowd = {0};
    gather(&crowd, 70);
    ck_assert_uint_eq(crowd.refused, 70 - (KVBM_THREAD_COUNT_MAX - 1));
    ck_assert_uint_eq(crowd.numbers | 1ull << own, UINT64_MAX);
}
END_TEST

START_TEST(numbers_of_threads_that_ended_are_given_again) {
    struct crowd first = {0};
    struct crowd second = {0};
    gather(&first, 8);
    gather(&second, 8);
    ck_assert_uint_eq(first.refused + second.refused, 0);
    ck_assert_uint_eq(first.numbers, second.numbers);
}
END_TEST

static void be_a_crowd(void *arg) {
    gather(arg, 63);
}

static int crowd_in_child(void *arg) {
    int own = kvbm_os_thread_number_mt();
    struct crowd crowd = {0};
    be_a_crowd(&crowd);
    return own == *(int *)arg && crowd.refused == 0 ? 0 : 1;
}

START_TEST(forked_child_keeps_its_own_number_and_has_all_others_free) {
#if !KVBM__TSAN /* whose runtime starts no threads after a fork */
    int own = kvbm_os_thread_number_mt();
    ck_assert_int_eq(support_child_status(crowd_in_child, &own), 0);
#else
    (void)crowd_in_child;
#endif
}
END_TEST

SUPPORT_MAIN("os", clock_is_monotonic_and_wall_is_of_this_century, random_numbers_of_several_threads_are_distinct,
             started_thread_is_named_and_blocks_signals_while_the_starter_does_not,
             wait_returns_on_a_wake_a_changed_word_and_a_deadline, event_is_readable_from_signal_to_clear,
             maps_are_zeroed_writable_and_of_any_size, lazy_map_may_be_far_larger_than_memory,
             absurd_maps_fail_with_an_errno, child_does_not_inherit_a_no_fork_map, bind_node_refuses_what_is_no_node,
             stamp_tells_a_forked_child_and_a_child_takes_a_new_one, forked_children_draw_different_random_numbers,
             live_threads_have_distinct_numbers_and_the_65th_has_none, numbers_of_threads_that_ended_are_given_again,
             forked_child_keeps_its_own_number_and_has_all_others_free)
