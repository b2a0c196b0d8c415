/*
 * disk_crash_test.c - the crash matrix: a child process that writes, overwrites, erases, flushes, formats and opens is
 * killed at random times and at every numbered point; what it leaves is opened. Each block found then has its own bytes,
 * and each block that was settled when the kill came is there.
 *
 *   disk_crash_test [ROUNDS]   rounds of each kind: random times, and in turn the numbered points; 60 by default, 1000
 *                              for the whole matrix
 *
 * The child notes in shared memory what it does with a slot before it asks, and what became of it when it is told.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "tests/storage/disk_kit.h"
#include "tests/support/random.h"

#define SLOTS   24u
#define FLIGHTS 6u
#define UNKNOWN UINT32_MAX
#define LIFE_MS 40u /* of a child that nothing kills before */

/* What both processes see. */
struct note {
    _Atomic uint32_t version[SLOTS]; /* settled: 0 empty, else what is there; UNKNOWN: a change is under way */
    _Atomic uint32_t former[SLOTS], wanted[SLOTS]; /* of that change */
    _Atomic uint32_t formatting, next_version, points;
    _Atomic uint64_t changes;
};

static struct note *note;
static uint32_t rounds_wanted = 60;
static uint64_t crashes, point_crashes, found_total, settled_total, undecided_total, changes_total;
#define MORE_ROUNDS 50u
static uint32_t points_hit[KVBM_DISK_POINT_COUNT];

static int die_point, die_count;

static void on_point(int point) {
    if (point == die_point && --die_count == 0)
        raise(SIGKILL);
}

/* ------------------------------------------------------------------------------------------------------------ child */

struct flight {
    struct kit_io io;
    bool busy;
    uint32_t slot, version;
};

static void settle(struct flight *flight) {
    int status = flight->io.item.status;
    if (flight->io.io.op == KVBM_TIER_WRITE || flight->io.io.op == KVBM_TIER_ERASE) {
        if (status != 0)
            _exit(3);
        atomic_store(&note->version[flight->slot], flight->version);
        atomic_fetch_add(&note->changes, 1);
    } else if (flight->io.io.op == KVBM_TIER_READ) {
        bool right = kit_is(flight->io.memory, flight->io.bytes, flight->slot, flight->version);
        if (status != 0 || !right)
            _exit(4);
    }
    kit_io_free(&flight->io);
    flight->busy = false;
}

static bool slot_in_flight(const struct flight *flights, uint32_t slot) {
    for (uint32_t i = 0; i < FLIGHTS; i++)
        if (flights[i].busy && flights[i].slot == slot)
            return true;
    return false;
}

static void begin(struct kit *kit, struct flight *flights, struct flight *flight, uint64_t *seed) {
    uint32_t slot = random_below(seed, SLOTS), what = random_below(seed, 20);
    if (slot_in_flight(flights, slot))
        return;
    uint32_t now = atomic_load(&note->version[slot]);
    if (now == UNKNOWN)
        _exit(5);
    int op = what == 0 ? KVBM_TIER_FLUSH : what < 3 ? KVBM_TIER_ERASE : what < 8 ? KVBM_TIER_READ : KVBM_TIER_WRITE;
    if (op == KVBM_TIER_READ && now == 0)
        op = KVBM_TIER_WRITE;
    flight->slot = slot;
    flight->version = op == KVBM_TIER_WRITE ? atomic_fetch_add(&note->next_version, 1) : op == KVBM_TIER_READ ? now : 0;
    if (op == KVBM_TIER_WRITE || op == KVBM_TIER_ERASE) {
        atomic_store(&note->former[slot], now);
        atomic_store(&note->wanted[slot], flight->version);
        atomic_store(&note->version[slot], UNKNOWN);
    }
    kit_io_init(kit, &flight->io, op, slot, flight->version);
    flight->busy = true;
    if (kit_submit(kit, &flight->io) != 0)
        _exit(6);
}

/* Check notes each assertion in an unlinked file that the child shares: a kill would leave half a note in it. */
static void leave_notes_to_the_parent(void) {
    int null = open("/dev/null", O_WRONLY);
    for (int fd = 3; fd < 256; fd++) {
        struct stat status;
        if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 0 && dup2(null, fd) != fd)
            _exit(8);
    }
}

static void child(struct kit *kit, int mode, uint64_t seed) {
    struct flight flights[FLIGHTS];
    leave_notes_to_the_parent();
    memset(flights, 0, sizeof flights);
    kvbm__disk_point_hook = on_point;
    if (uv_loop_init(&kit->loop) != 0) /* the parent's polls the same descriptors */
        _exit(7);
    if (mode == KVBM_DISK_FORMAT)
        atomic_store(&note->formatting, 1);
    if (kit_open(kit, mode) != 0)
        _exit(2);
    if (mode == KVBM_DISK_FORMAT) {
        for (uint32_t i = 0; i < SLOTS; i++)
            atomic_store(&note->version[i], 0);
        atomic_store(&note->formatting, 0);
    }
    uint64_t end_ns = uv_hrtime() + LIFE_MS * UINT64_C(1000000);
    bool busy = true;
    while (busy) {
        busy = false;
        for (uint32_t i = 0; i < FLIGHTS; i++) {
            if (flights[i].busy && flights[i].io.done)
                settle(&flights[i]);
            if (!flights[i].busy && uv_hrtime() < end_ns)
                begin(kit, flights, &flights[i], &seed);
            busy = busy || flights[i].busy;
        }
        uv_run(&kit->loop, busy ? UV_RUN_ONCE : UV_RUN_NOWAIT);
        busy = busy || uv_hrtime() < end_ns;
    }
    kit_close(kit);
    _exit(0);
}

/* ----------------------------------------------------------------------------------------------------------- parent */

struct tally {
    uint32_t there[SLOTS]; /* version, 0: none */
};

static void on_found(void *arg, uint32_t slot, const struct kvbm_tier_label *label, uint64_t generation) {
    struct tally *tally = arg;
    uint32_t named = 0;
    (void)generation;
    memcpy(&named, label->key, sizeof named);
    ck_assert_uint_eq(named, slot);
    memcpy(&tally->there[slot], label->key + 4, sizeof tally->there[slot]);
}

/* Opens what the child left, and takes what is there as settled for the next round. */
static void judge(struct kit *kit) {
    struct tally tally = {{0}};
    bool formatting = atomic_load(&note->formatting) != 0;
    int rc = kit_open(kit, KVBM_DISK_CREATE);
    ck_assert_msg(rc == 0, "after %llu crashes: %d %s", (unsigned long long)crashes, rc, kit->failure.text);
    ck_assert_int_eq(kit->store->ops->scan(kit->store, on_found, &tally), 0);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        uint32_t version = tally.there[slot], settled = atomic_load(&note->version[slot]);
        int status = version != 0 ? kit_read(kit, slot, version) : -ENOENT; /* checks bytes */
        bool undecided = settled == UNKNOWN;
        if (status == 0)
            found_total++;
        if (undecided) {
            uint32_t former = atomic_load(&note->former[slot]), wanted = atomic_load(&note->wanted[slot]);
            ck_assert(version == 0 || version == former || version == wanted);
            ck_assert(status == 0 || status == -ENOENT || status == -KVBM_ECORRUPT);
            undecided_total++;
        } else if (!formatting) {
            ck_assert_msg(version == settled, "slot %u holds version %u, settled was %u", slot, version, settled);
            ck_assert_msg(settled == 0 || status == 0, "slot %u, settled, answers %d", slot, status);
            settled_total += settled != 0;
        } else {
            /* The former file, or a fresh one. */
            ck_assert(version == settled || version == 0);
            ck_assert(version == 0 || status == 0);
        }
        atomic_store(&note->version[slot], status == 0 ? version : 0);
    }
    atomic_store(&note->formatting, 0);
    kit_close(kit);
}

static void one_round(struct kit *kit, uint64_t *seed, int point) {
    int mode = point != 0 && point <= KVBM_DISK_POINT_FORMAT_DONE ? KVBM_DISK_FORMAT : KVBM_DISK_CREATE;
    if (point == 0 && random_below(seed, 10) == 0)
        mode = KVBM_DISK_FORMAT;
    kit->options.backend = random_below(seed, 2) == 0 ? KVBM_DISK_URING : KVBM_DISK_THREADS;
    kit->options.flush_ns = random_below(seed, 2) == 0 ? 5000000 : 0;
    die_point = point;
    bool once = point == KVBM_DISK_POINT_FORMAT_DONE || point == KVBM_DISK_POINT_FORMAT_SYNCED ||
                point == KVBM_DISK_POINT_OPEN_SCANNED || point >= KVBM_DISK_POINT_CLOSE_STARTED;
    bool twice = point <= KVBM_DISK_POINT_OPEN_LOCKED; /* once a file */
    die_count = once ? 1 : 1 + (int)random_below(seed, twice ? 2 : 12);
    uint64_t child_seed = random_next(seed), wait_us = random_below(seed, LIFE_MS * 900);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        child(kit, mode, child_seed);
    if (point == 0) {
        usleep((useconds_t)wait_us);
        kill(pid, SIGKILL);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    ck_assert_msg(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0), "the child ended with %#x", status);
    crashes += killed;
    point_crashes += killed && point != 0;
    points_hit[point] += killed;
    judge(kit);
}

static void run(bool points) {
    struct kit kit;
    uint64_t seed = points ? 3 : 4;
    note = mmap(NULL, sizeof *note, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(note, MAP_FAILED);
    atomic_store(&note->next_version, 1);
    /* Not a multiple of a page, so that payloads go through gathered memory, or one, in turn. */
    kit_init(&kit, NULL, 2, points ? 16384 : 20000, SLOTS);
    kit.options.log = NULL;
    uint32_t point = 0;
    for (uint32_t round = 0; round < rounds_wanted; round++) {
        point = points ? point % (KVBM_DISK_POINT_COUNT - 1) + 1 : 0;
        one_round(&kit, &seed, (int)point);
    }
    /* Whether a child comes by a point is up to its random work: those not met yet get some more rounds. */
    for (point = 1; points && point < KVBM_DISK_POINT_COUNT; point++) {
        for (uint32_t more = 0; points_hit[point] == 0 && more < MORE_ROUNDS; more++)
            one_round(&kit, &seed, (int)point);
    }
    changes_total += atomic_load(&note->changes);
    kit_end(&kit);
    munmap(note, sizeof *note);
}

START_TEST(a_kill_at_any_time_leaves_what_was_settled_and_nothing_wrong) {
    run(false);
    ck_assert_uint_ge(crashes, rounds_wanted / 2);
}
END_TEST

START_TEST(a_kill_at_any_numbered_point_leaves_what_was_settled_and_nothing_wrong) {
    run(true);
    for (int point = 1; point < KVBM_DISK_POINT_COUNT; point++)
        ck_assert_msg(points_hit[point] > 0, "point %d was never met", point);
}
END_TEST

int main(int argc, char **argv) {
    if (argc > 1)
        rounds_wanted = (uint32_t)strtoul(argv[1], NULL, 10);
    Suite *suite = suite_create("disk_crash");
    TCase *tc = tcase_create("disk_crash");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 0);
    tcase_add_test(tc, a_kill_at_any_time_leaves_what_was_settled_and_nothing_wrong);
    tcase_add_test(tc, a_kill_at_any_numbered_point_leaves_what_was_settled_and_nothing_wrong);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK); /* the counts below are of both tests */
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    (void)printf("crash matrix: %llu crashes (%llu at numbered points), %llu settled blocks found again, %llu slots in "
                 "change, %llu blocks read, %llu changes settled\n",
                 (unsigned long long)crashes, (unsigned long long)point_crashes, (unsigned long long)settled_total,
                 (unsigned long long)undecided_total, (unsigned long long)found_total,
                 (unsigned long long)changes_total);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
