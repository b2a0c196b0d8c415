/*
 * disk_file_test.c - slab files that are not what is wanted are refused with a reason, or replaced if asked.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "storage/checksum.h"
#include "tests/storage/disk_kit.h"

static void start(struct kit *kit, uint32_t paths) {
    kit_init(kit, NULL, paths, 8192, 8);
    kit->options.backend = KVBM_DISK_THREADS;
    int rc = kit_open(kit, KVBM_DISK_CREATE);
    ck_assert_msg(rc == 0, "%s", kit->failure.text);
    ck_assert_int_eq(kit_write(kit, 5, 1), 0);
    kit_close(kit);
}

/* Open and create are refused, each with a reason that holds the text. */
static void refused(struct kit *kit, int code, const char *text) {
    for (int mode = KVBM_DISK_OPEN; mode <= KVBM_DISK_CREATE; mode++) {
        kit->failure.text[0] = '\0';
        ck_assert_int_eq(kit_open(kit, mode), code);
        ck_assert_msg(strstr(kit->failure.text, text) != NULL, "'%s' is not in '%s'", text, kit->failure.text);
        ck_assert_msg(strstr(kit->failure.text, kit->folder) != NULL, "no path in '%s'", kit->failure.text);
    }
}

static void replaced(struct kit *kit) {
    int rc = kit_open(kit, KVBM_DISK_REPLACE);
    ck_assert_msg(rc == 0, "%s", kit->failure.text);
    ck_assert_uint_eq(kit_stats(kit).resident_blocks, 0);
    ck_assert_int_eq(kit_read(kit, 5, 1), -ENOENT);
    ck_assert_int_eq(kit_write(kit, 6, 2), 0);
    ck_assert_int_eq(kit_read(kit, 6, 2), 0);
    kit_end(kit);
}

static void poke(const char *path, uint64_t offset, const void *data, size_t bytes) {
    int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, data, bytes, (off_t)offset), (ssize_t)bytes);
    close(fd);
}

START_TEST(what_is_wanted_is_kept_by_replace) {
    struct kit kit;
    start(&kit, 2);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_REPLACE), 0);
    ck_assert_int_eq(kit_read(&kit, 5, 1), 0);
    kit_close(&kit);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_FORMAT), 0);
    ck_assert_int_eq(kit_read(&kit, 5, 1), -ENOENT);
    kit_end(&kit);
}
END_TEST

START_TEST(another_namespace_is_refused) {
    struct kit kit;
    start(&kit, 1);
    kit.options.files.namespace_id[3] ^= 1;
    refused(&kit, -KVBM_EFOREIGN, "namespace is 6b76626d2d746573742d737061636500, not 6b76626c");
    replaced(&kit);
}
END_TEST

START_TEST(another_block_size_is_refused) {
    struct kit kit;
    start(&kit, 1);
    kit.options.files.payload_bytes = 8191; /* the same extents */
    refused(&kit, -KVBM_EFOREIGN, "payload bytes of a block is 8192, not 8191");
    replaced(&kit);
}
END_TEST

START_TEST(another_capacity_is_refused) {
    struct kit kit;
    start(&kit, 1);
    kit.options.files.capacity_blocks = 9;
    refused(&kit, -KVBM_EFOREIGN, "capacity in blocks is 8, not 9");
    replaced(&kit);
}
END_TEST

START_TEST(another_number_of_files_is_refused) {
    struct kit kit;
    start(&kit, 2);
    kit.options.files.path_count = 1;
    refused(&kit, -KVBM_EFOREIGN, "number of files in its set is 2, not 1");
    replaced(&kit);
}
END_TEST

START_TEST(files_in_another_order_are_refused) {
    struct kit kit;
    start(&kit, 2);
    const char *first = kit.path_list[0];
    kit.path_list[0] = kit.path_list[1];
    kit.path_list[1] = first;
    refused(&kit, -KVBM_EFOREIGN, "place in its set is 1, not 0");
    replaced(&kit);
}
END_TEST

START_TEST(a_file_of_another_set_is_refused) {
    struct kit kit, other;
    start(&kit, 2);
    start(&other, 2);
    ck_assert_int_eq(rename(other.paths[1], kit.paths[1]), 0);
    refused(&kit, -KVBM_EFOREIGN, "not formatted together");
    replaced(&kit);
    kit_end(&other);
}
END_TEST

START_TEST(a_missing_file_of_a_set_is_refused) {
    struct kit kit;
    start(&kit, 2);
    ck_assert_int_eq(unlink(kit.paths[0]), 0);
    refused(&kit, -ENOENT, "No such file");
    replaced(&kit);
}
END_TEST

START_TEST(another_version_is_refused) {
    struct kit kit;
    uint32_t version = 2;
    start(&kit, 1);
    poke(kit.paths[0], 8, &version, sizeof version);
    refused(&kit, -KVBM_EFOREIGN, "version");
    replaced(&kit);
}
END_TEST

START_TEST(a_header_that_fails_its_checksum_is_refused) {
    struct kit kit;
    start(&kit, 1);
    poke(kit.paths[0], 3000, "x", 1);
    refused(&kit, -KVBM_EFOREIGN, "fails its checksum");
    replaced(&kit);
}
END_TEST

START_TEST(a_header_that_contradicts_itself_is_refused) {
    struct kit kit;
    uint8_t page[4096];
    start(&kit, 1);
    int fd = open(kit.paths[0], O_RDWR);
    ck_assert_int_eq(pread(fd, page, sizeof page, 0), (ssize_t)sizeof page);
    close(fd);
    page[88] ^= 0x10; /* payload offset */
    uint64_t sum = kvbm_checksum_mt(page, 4088);
    memcpy(page + 4088, &sum, 8);
    poke(kit.paths[0], 0, page, sizeof page);
    refused(&kit, -KVBM_EFOREIGN, "contradicts itself");
    replaced(&kit);
}
END_TEST

START_TEST(another_size_of_the_file_is_refused) {
    struct kit kit;
    struct stat status;
    start(&kit, 1);
    ck_assert_int_eq(stat(kit.paths[0], &status), 0);
    ck_assert_int_eq(truncate(kit.paths[0], _i == 0 ? status.st_size - 1 : status.st_size + 4096), 0);
    refused(&kit, -KVBM_EFOREIGN, "its header says");
    replaced(&kit);
}
END_TEST

START_TEST(what_is_no_slab_file_is_refused) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 8192, 8);
    FILE *file = fopen(kit.paths[0], "w");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < (_i == 0 ? 10 : 10000); i++)
        (void)fputs("something else", file);
    (void)fclose(file);
    refused(&kit, -KVBM_EFOREIGN, _i == 0 ? "too short" : "not a KVBM slab file");
    replaced(&kit);
}
END_TEST

START_TEST(what_is_no_file_is_refused_also_by_replace) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 8192, 8);
    ck_assert_int_eq(mkdir(kit.paths[0], 0700), 0);
    refused(&kit, -EISDIR, "open");
    ck_assert_int_ne(kit_open(&kit, KVBM_DISK_REPLACE), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_folder_that_is_not_there_is_said) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 8192, 8);
    (void)strcat(kit.paths[0], "/no/such");
    refused(&kit, -ENOENT, "No such file");
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_REPLACE), -ENOENT);
    kit_end(&kit);
}
END_TEST

START_TEST(options_out_of_range_are_refused) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 8192, 8);
    struct kvbm_disk_options good = kit.options;
    for (int i = 0; i < 8; i++) {
        kit.options = good;
        switch (i) {
        case 0:
            kit.options.files.payload_bytes = 0;
            break;
        case 1:
            kit.options.files.payload_bytes = (UINT64_C(1) << 30) + 1;
            break;
        case 2:
            kit.options.files.capacity_blocks = 0;
            break;
        case 3:
            kit.options.files.path_count = 0;
            break;
        case 4:
            kit.options.files.path_count = 17;
            break;
        case 5:
            kit.options.depth = 1;
            break;
        case 6:
            kit.options.backend = 3;
            break;
        default:
            kit.options.segments_max = 1u << 20;
        }
        ck_assert_int_eq(kit_open(&kit, KVBM_DISK_CREATE), -EINVAL);
        ck_assert_uint_gt(strlen(kit.failure.text), 0);
    }
    kit.options = good;
    kit_end(&kit);
}
END_TEST

START_TEST(a_file_in_use_is_refused_also_by_replace_and_left_alone) {
    struct kit kit, second;
    start(&kit, 2);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    kit_init(&second, NULL, 2, 8192, 8);
    memcpy(second.path_list, kit.path_list, sizeof kit.path_list);
    for (int mode = KVBM_DISK_OPEN; mode <= KVBM_DISK_FORMAT; mode++) {
        ck_assert_int_eq(kit_open(&second, mode), -KVBM_ELOCKED);
        ck_assert_msg(strstr(second.failure.text, "in use") != NULL, "%s", second.failure.text);
    }
    /* In use by half: nothing of it may be replaced. */
    second.options.files.path_count = 1;
    second.path_list[0] = kit.path_list[1];
    ck_assert_int_eq(kit_open(&second, KVBM_DISK_REPLACE), -KVBM_ELOCKED);
    ck_assert_int_eq(kit_read(&kit, 5, 1), 0);
    kit_close(&kit);
    memcpy(second.path_list, kit.path_list, sizeof kit.path_list);
    second.options.files.path_count = 2;
    ck_assert_int_eq(kit_open(&second, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kit_read(&second, 5, 1), 0);
    kit_end(&second);
    kit_end(&kit);
}
END_TEST

START_TEST(another_process_that_has_the_file_is_noticed_until_it_ends) {
    struct kit kit;
    int ready[2], go[2];
    char byte = 0;
    start(&kit, 1);
    ck_assert_int_eq(pipe(ready), 0);
    ck_assert_int_eq(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        struct kvbm_disk_set set;
        kit.options.files.mode = KVBM_DISK_OPEN;
        int rc = kvbm_disk_set_open(&set, kvbm_os_real(), NULL, &kit.options.files, NULL);
        byte = rc == 0;
        if (write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
            _exit(1);
        _exit(0); /* without closing */
    }
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    ck_assert_int_eq(byte, 1);
    refused(&kit, -KVBM_ELOCKED, "in use by another process");
    ck_assert_int_eq(write(go[1], &byte, 1), 1);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kit_read(&kit, 5, 1), 0);
    for (int i = 0; i < 2; i++)
        close(ready[i]), close(go[i]);
    kit_end(&kit);
}
END_TEST

START_TEST(a_header_can_be_looked_at_while_in_use) {
    struct kit kit;
    struct kvbm_disk_header header;
    start(&kit, 2);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kvbm_disk_file_inspect(kit.paths[1], &header, &kit.failure), 0);
    ck_assert_uint_eq(header.capacity_blocks, 8);
    ck_assert_uint_eq(header.slot_count, 4);
    ck_assert_uint_eq(header.stripe_index, 1);
    ck_assert_uint_eq(header.payload_bytes, 8192);
    ck_assert_mem_eq(header.namespace_id, kit.options.files.namespace_id, 16);
    ck_assert_int_eq(kvbm_disk_file_inspect(kit.folder, &header, &kit.failure), -EISDIR);
    kit_end(&kit);
}
END_TEST

START_TEST(io_uring_refused_is_threads_instead) {
    struct kit kit;
    struct kvbm_disk_info info;
    kit_init(&kit, NULL, 1, 8192, 8);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_CREATE), 0);
    kvbm_disk_info(kit.store, &info);
    ck_assert(strcmp(info.backend, "io_uring") == 0 || kit_logged(&kit, "no io_uring here"));
    kit_end(&kit);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("disk_file");
    TCase *tc = tcase_create("disk_file");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_is_wanted_is_kept_by_replace);
    tcase_add_test(tc, another_namespace_is_refused);
    tcase_add_test(tc, another_block_size_is_refused);
    tcase_add_test(tc, another_capacity_is_refused);
    tcase_add_test(tc, another_number_of_files_is_refused);
    tcase_add_test(tc, files_in_another_order_are_refused);
    tcase_add_test(tc, a_file_of_another_set_is_refused);
    tcase_add_test(tc, a_missing_file_of_a_set_is_refused);
    tcase_add_test(tc, another_version_is_refused);
    tcase_add_test(tc, a_header_that_fails_its_checksum_is_refused);
    tcase_add_test(tc, a_header_that_contradicts_itself_is_refused);
    tcase_add_loop_test(tc, another_size_of_the_file_is_refused, 0, 2);
    tcase_add_loop_test(tc, what_is_no_slab_file_is_refused, 0, 2);
    tcase_add_test(tc, what_is_no_file_is_refused_also_by_replace);
    tcase_add_test(tc, a_folder_that_is_not_there_is_said);
    tcase_add_test(tc, options_out_of_range_are_refused);
    tcase_add_test(tc, a_file_in_use_is_refused_also_by_replace_and_left_alone);
    tcase_add_test(tc, another_process_that_has_the_file_is_noticed_until_it_ends);
    tcase_add_test(tc, a_header_can_be_looked_at_while_in_use);
    tcase_add_test(tc, io_uring_refused_is_threads_instead);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
