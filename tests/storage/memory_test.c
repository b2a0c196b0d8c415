/*
 * memory_test.c - what is read from /proc and /sys, on trees of files made for the purpose.
 */
#include <check.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "storage/memory.h"

#define KIB UINT64_C(1024)

static char root[PATH_MAX];

static void tree_make(void) {
    const char *tmp = getenv("TEST_TMPDIR");
    (void)snprintf(root, sizeof(root), "%s/kvbm_memory_XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static int tree_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void tree_remove(void) {
    ck_assert_int_eq(nftw(root, tree_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* Writes root + path and the directories it lies in. */
static void tree_write(const char *path, const char *text) {
    char name[PATH_MAX + 256];
    (void)snprintf(name, sizeof(name), "%s%s", root, path);
    for (char *slash = strchr(name + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(name, 0700);
        *slash = '/';
    }
    FILE *file = fopen(name, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

static struct kvbm_memory tree_read(void) {
    struct kvbm_memory memory;
    memset(&memory, 0x5a, sizeof(memory));
    kvbm_memory_read(root, &memory);
    return memory;
}

static const char meminfo[] = "MemTotal:        1000 kB\nMemFree:          10 kB\nMemAvailable:     600 kB\n"
                              "SwapCached:         7 kB\nSwapTotal:        200 kB\nHugePages_Total:      9\n"
                              "HugePages_Free:       5\nHugePages_Rsvd:       2\nHugepagesize:      2048 kB\n";

START_TEST(nothing_readable_means_no_limit) {
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.total_bytes, KVBM_MEMORY_UNKNOWN);
    ck_assert_uint_eq(memory.available_bytes, KVBM_MEMORY_UNKNOWN);
    ck_assert_uint_eq(memory.huge_free_bytes, 0);
}
END_TEST

START_TEST(the_machine_is_read_from_meminfo) {
    tree_write("/proc/meminfo", meminfo);
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.total_bytes, 1200 * KIB);
    ck_assert_uint_eq(memory.available_bytes, 600 * KIB);
    ck_assert_uint_eq(memory.huge_free_bytes, 3 * 2048 * KIB);
}
END_TEST

START_TEST(a_v2_group_limits_and_its_page_cache_does_not_count) {
    tree_write("/proc/meminfo", meminfo);
    tree_write("/proc/self/cgroup", "0::/a/b\n");
    tree_write("/sys/fs/cgroup/a/b/memory.max", "512000\n");
    tree_write("/sys/fs/cgroup/a/b/memory.current", "300000\n");
    ck_assert_uint_eq(tree_read().available_bytes, 212000);
    tree_write("/sys/fs/cgroup/a/b/memory.stat", "anon 1\nfile 99999\ninactive_file 40000\nactive_file 60000\n");
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.available_bytes, 312000);
    ck_assert_uint_eq(memory.total_bytes, 512000);
}
END_TEST

START_TEST(a_limit_of_a_group_around_counts) {
    tree_write("/proc/meminfo", meminfo);
    tree_write("/proc/self/cgroup", "0::/a/b/c");
    tree_write("/sys/fs/cgroup/a/b/c/memory.max", "max\n");
    tree_write("/sys/fs/cgroup/a/b/c/memory.current", "1\n");
    tree_write("/sys/fs/cgroup/a/memory.max", "500000\n");
    tree_write("/sys/fs/cgroup/a/memory.current", "450000\n");
    ck_assert_uint_eq(tree_read().available_bytes, 50000);
    tree_write("/sys/fs/cgroup/memory.max", "40000\n");
    tree_write("/sys/fs/cgroup/memory.current", "0\n");
    ck_assert_uint_eq(tree_read().available_bytes, 40000);
}
END_TEST

START_TEST(a_container_finds_its_limit_at_the_root_of_the_mount) {
    tree_write("/proc/meminfo", meminfo);
    tree_write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/0123\n");
    tree_write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "400000\n");
    tree_write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
    tree_write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 9999999\ntotal_inactive_file 5000\n");
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.available_bytes, 305000);
    ck_assert_uint_eq(memory.total_bytes, 400000);
}
END_TEST

START_TEST(an_unlimited_v1_group_and_a_used_up_one) {
    tree_write("/proc/meminfo", meminfo);
    tree_write("/proc/self/cgroup", "4:memory:/\n0::/\n");
    tree_write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    tree_write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "100\n");
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.available_bytes, 600 * KIB);
    ck_assert_uint_eq(memory.total_bytes, 1200 * KIB);
    tree_write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "99\n");
    ck_assert_uint_eq(tree_read().available_bytes, 0);
}
END_TEST

START_TEST(garbage_is_no_limit_and_no_crash) {
    static const char *const garbage[] = {"",
                                          "\n",
                                          ":",
                                          "::",
                                          "0:",
                                          "0::",
                                          "0::x",
                                          ":::::",
                                          "memory",
                                          "4:memory",
                                          "\n\n0::\n",
                                          "0::/../../../../..",
                                          "MemTotal:\nMemAvailable: x kB\n"};
    for (size_t i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
        tree_write("/proc/meminfo", garbage[i]);
        tree_write("/proc/self/cgroup", garbage[i]);
        tree_write("/sys/fs/cgroup/memory.max", garbage[i]);
        tree_write("/sys/fs/cgroup/memory.current", garbage[i]);
        struct kvbm_memory memory = tree_read();
        ck_assert_uint_eq(memory.total_bytes, KVBM_MEMORY_UNKNOWN);
        ck_assert_uint_eq(memory.available_bytes, KVBM_MEMORY_UNKNOWN);
        ck_assert_uint_eq(memory.huge_free_bytes, 0);
    }
}
END_TEST

START_TEST(numbers_that_overflow_are_no_limit) {
    tree_write("/proc/meminfo", "MemTotal: 18446744073709551615 kB\nMemAvailable: 18446744073709551615 kB\n"
                                "HugePages_Free: 18446744073709551615\nHugepagesize: 2048 kB\n");
    struct kvbm_memory memory = tree_read();
    ck_assert_uint_eq(memory.total_bytes, KVBM_MEMORY_UNKNOWN);
    ck_assert_uint_eq(memory.available_bytes, KVBM_MEMORY_UNKNOWN);
    ck_assert_uint_eq(memory.huge_free_bytes, 0);
}
END_TEST

START_TEST(this_machine_has_some_memory) {
    struct kvbm_memory memory;
    kvbm_memory_read("", &memory);
    ck_assert_uint_gt(memory.total_bytes, 0);
    ck_assert_uint_lt(memory.total_bytes, UINT64_C(1) << 50);
    ck_assert_uint_le(memory.available_bytes, memory.total_bytes);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("memory");
    TCase *tc = tcase_create("memory");
    suite_add_tcase(suite, tc);
    tcase_add_checked_fixture(tc, tree_make, tree_remove);
    tcase_add_test(tc, nothing_readable_means_no_limit);
    tcase_add_test(tc, the_machine_is_read_from_meminfo);
    tcase_add_test(tc, a_v2_group_limits_and_its_page_cache_does_not_count);
    tcase_add_test(tc, a_limit_of_a_group_around_counts);
    tcase_add_test(tc, a_container_finds_its_limit_at_the_root_of_the_mount);
    tcase_add_test(tc, an_unlimited_v1_group_and_a_used_up_one);
    tcase_add_test(tc, garbage_is_no_limit_and_no_crash);
    tcase_add_test(tc, numbers_that_overflow_are_no_limit);
    tcase_add_test(tc, this_machine_has_some_memory);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
