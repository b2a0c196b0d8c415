/*
 * disk_corrupt_test.c - the corruption matrix: every range of the file format flipped, zeroed, overwritten with noise,
 * cut off, swapped between slots and put back to an older state. The file is then refused, or each block is served with
 * its own bytes, or missed: never other bytes, never a crash.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "tests/storage/disk_kit.h"
#include "tests/support/random.h"

#define SLOTS 6u
#define BYTES 8192u

static uint64_t cases, refusals, hits, misses;

struct image {
    struct kit kit;
    struct kvbm_disk_header header;
    uint8_t *good, *older; /* the file when all slots hold version 2; when all held version 1 */
    size_t bytes;
};

static void load(struct image *image, uint8_t **to) {
    int fd = open(image->kit.paths[0], O_RDONLY);
    struct stat status;
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fstat(fd, &status), 0);
    image->bytes = (size_t)status.st_size;
    *to = malloc(image->bytes);
    ck_assert_ptr_nonnull(*to);
    ck_assert_int_eq(pread(fd, *to, image->bytes, 0), (ssize_t)image->bytes);
    close(fd);
}

static void image_init(struct image *image) {
    memset(image, 0, sizeof *image);
    kit_init(&image->kit, NULL, 1, BYTES, SLOTS);
    image->kit.options.backend = KVBM_DISK_THREADS;
    image->kit.options.thread_count = 1;
    image->kit.options.log = NULL;
    ck_assert_int_eq(kit_open(&image->kit, KVBM_DISK_CREATE), 0);
    for (uint32_t version = 1; version <= 2; version++) {
        for (uint32_t slot = 0; slot < SLOTS; slot++)
            ck_assert_int_eq(kit_write(&image->kit, slot, version), 0);
        ck_assert_int_eq(kit_flush(&image->kit), 0);
        load(image, version == 1 ? &image->older : &image->good);
    }
    kit_close(&image->kit);
    ck_assert_int_eq(kvbm_disk_file_inspect(image->kit.paths[0], &image->header, NULL), 0);
}

static void image_end(struct image *image) {
    kit_end(&image->kit);
    free(image->good);
    free(image->older);
}

static void store(struct image *image, const uint8_t *data, size_t bytes) {
    int fd = open(image->kit.paths[0], O_WRONLY | O_TRUNC);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, data, bytes, 0), (ssize_t)bytes);
    close(fd);
}

static bool expected(int status) {
    return status == 0 || status == -ENOENT || status == -KVBM_ECORRUPT;
}

/* Opens the file as it is and asks for everything, twice; kit_read checks bytes. Returns how many were served. */
static uint32_t judge(struct image *image) {
    struct kit *kit = &image->kit;
    uint32_t served = 0;
    cases++;
    int rc = kit_open(kit, KVBM_DISK_OPEN);
    if (rc != 0) {
        ck_assert_msg(rc == -KVBM_EFOREIGN, "refused with %d: %s", rc, kit->failure.text);
        refusals++;
        return 0;
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        for (uint32_t version = 1; version <= 2; version++) {
            int status = kit_read(kit, slot, version);
            ck_assert_msg(expected(status), "status %d", status);
            served += status == 0;
            hits += status == 0;
            misses += status != 0;
            if (status == -KVBM_ECORRUPT) /* quarantined */
                ck_assert_int_eq(kit_read(kit, slot, version), -ENOENT);
        }
        struct kit_io io; /* of another slot's block */
        kit_io_init(kit, &io, KVBM_TIER_READ, slot, 2);
        kit_label((slot + 1) % SLOTS, 2, &io.item.label);
        ck_assert_int_eq(kit_submit(kit, &io), 0);
        kit_until(kit, &io.done);
        ck_assert_int_ne(io.item.status, 0);
        kit_io_free(&io);
    }
    kit_close(kit);
    return served;
}

/* The regions: where each is, and how fine it is cut. */
static uint64_t step_at(const struct image *image, uint64_t offset) {
    if (offset < 256)
        return 1;
    if (offset < image->header.record_offset)
        return 256;
    if (offset < image->header.record_offset + (uint64_t)SLOTS * KVBM_DISK_RECORD_BYTES)
        return 1;
    return 256;
}

static void damage_all(struct image *image, void (*damage)(uint8_t *at, uint64_t bytes)) {
    uint8_t *copy = malloc(image->bytes);
    ck_assert_ptr_nonnull(copy);
    for (uint64_t at = 0; at < image->bytes; at += step_at(image, at)) {
        uint64_t step = step_at(image, at);
        memcpy(copy, image->good, image->bytes);
        damage(copy + at, step);
        if (memcmp(copy, image->good, image->bytes) == 0)
            continue;
        store(image, copy, image->bytes);
        uint32_t served = judge(image);
        ck_assert_uint_ge(served + (at < KVBM_DISK_PAGE_BYTES ? SLOTS : 1), SLOTS); /* one slot at most is hurt */
        if (at < KVBM_DISK_PAGE_BYTES)
            ck_assert_uint_eq(served, 0); /* all of the header is checked */
    }
    free(copy);
}

static void flip(uint8_t *at, uint64_t bytes) {
    at[bytes / 2] ^= 1;
}

static void invert(uint8_t *at, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i++)
        at[i] ^= 0xff;
}

static void zero(uint8_t *at, uint64_t bytes) {
    memset(at, 0, bytes);
}

static void noise(uint8_t *at, uint64_t bytes) {
    static uint64_t seed = 5;
    for (uint64_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)random_next(&seed);
}

START_TEST(any_range_damaged_is_a_refusal_or_a_miss) {
    static void (*const kinds[])(uint8_t * at, uint64_t bytes) = {flip, invert, zero, noise};
    struct image image;
    image_init(&image);
    ck_assert_uint_eq(judge(&image), SLOTS);
    damage_all(&image, kinds[_i]);
    image_end(&image);
}
END_TEST

START_TEST(a_file_of_any_other_length_is_refused) {
    struct image image;
    image_init(&image);
    uint8_t *longer = calloc(1, image.bytes + 4096);
    ck_assert_ptr_nonnull(longer);
    memcpy(longer, image.good, image.bytes);
    for (uint64_t bytes = 0; bytes < image.bytes; bytes += bytes < 256 ? 7 : 509) {
        store(&image, longer, bytes);
        ck_assert_uint_eq(judge(&image), 0);
    }
    for (uint64_t more = 1; more <= 4096; more *= 2) {
        store(&image, longer, image.bytes + more);
        ck_assert_uint_eq(judge(&image), 0);
    }
    free(longer);
    image_end(&image);
}
END_TEST

START_TEST(whatever_is_swapped_between_slots_is_never_wrong_bytes) {
    struct image image;
    image_init(&image);
    const struct kvbm_disk_header *h = &image.header;
    uint8_t *copy = malloc(image.bytes), *kept = malloc(BYTES);
    ck_assert(copy != NULL && kept != NULL);
    for (uint32_t a = 0; a < SLOTS; a++) {
        for (uint32_t b = a + 1; b < SLOTS; b++) {
            for (int what = 1; what <= 3; what++) { /* records, payloads, both */
                memcpy(copy, image.good, image.bytes);
                if ((what & 1) != 0) {
                    memcpy(copy + kvbm_disk_record_at(h, a), image.good + kvbm_disk_record_at(h, b), 128);
                    memcpy(copy + kvbm_disk_record_at(h, b), image.good + kvbm_disk_record_at(h, a), 128);
                }
                if ((what & 2) != 0) {
                    memcpy(copy + kvbm_disk_payload_at(h, a), image.good + kvbm_disk_payload_at(h, b), BYTES);
                    memcpy(copy + kvbm_disk_payload_at(h, b), image.good + kvbm_disk_payload_at(h, a), BYTES);
                }
                store(&image, copy, image.bytes);
                ck_assert_uint_eq(judge(&image), SLOTS - 2);
            }
        }
    }
    free(copy);
    free(kept);
    image_end(&image);
}
END_TEST

START_TEST(whatever_is_older_is_never_wrong_bytes) {
    struct image image;
    image_init(&image);
    const struct kvbm_disk_header *h = &image.header;
    uint8_t *copy = malloc(image.bytes);
    ck_assert_ptr_nonnull(copy);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        for (int what = 1; what <= 3; what++) {
            memcpy(copy, image.good, image.bytes);
            if ((what & 1) != 0)
                memcpy(copy + kvbm_disk_record_at(h, slot), image.older + kvbm_disk_record_at(h, slot), 128);
            if ((what & 2) != 0)
                memcpy(copy + kvbm_disk_payload_at(h, slot), image.older + kvbm_disk_payload_at(h, slot), BYTES);
            store(&image, copy, image.bytes);
            /* An older record with its own payload is a block as it was: right bytes under its own key. */
            ck_assert_uint_eq(judge(&image), what == 3 ? SLOTS : SLOTS - 1);
        }
    }
    /* Payloads torn between generations, at every 512 bytes. */
    for (uint64_t at = 512; at < BYTES; at += 512) {
        memcpy(copy, image.good, image.bytes);
        memcpy(copy + kvbm_disk_payload_at(h, 3), image.older + kvbm_disk_payload_at(h, 3), at);
        store(&image, copy, image.bytes);
        ck_assert_uint_eq(judge(&image), SLOTS - 1);
    }
    /* Records torn at every byte. */
    for (uint64_t at = 1; at < 128; at++) {
        memcpy(copy, image.good, image.bytes);
        memcpy(copy + kvbm_disk_record_at(h, 3), image.older + kvbm_disk_record_at(h, 3), at);
        if (memcmp(copy, image.good, image.bytes) == 0)
            continue; /* the generations agree so far */
        store(&image, copy, image.bytes);
        ck_assert_uint_le(judge(&image), SLOTS);
    }
    free(copy);
    image_end(&image);
}
END_TEST

START_TEST(records_of_another_set_or_namespace_are_empty_slots) {
    struct image image, other;
    image_init(&image);
    image_init(&other);
    const struct kvbm_disk_header *h = &image.header;
    uint8_t *copy = malloc(image.bytes);
    ck_assert_ptr_nonnull(copy);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        memcpy(copy, image.good, image.bytes);
        memcpy(copy + kvbm_disk_record_at(h, slot), other.good + kvbm_disk_record_at(h, slot), 128);
        store(&image, copy, image.bytes);
        ck_assert_uint_eq(judge(&image), SLOTS - 1);
        struct kvbm_disk_info info;
        ck_assert_int_eq(kit_open(&image.kit, KVBM_DISK_OPEN), 0);
        kvbm_disk_info(image.kit.store, &info);
        ck_assert_uint_eq(info.records_foreign, 1);
        ck_assert_uint_eq(info.records_whole, SLOTS - 1);
        kit_close(&image.kit);
    }
    free(copy);
    image_end(&image);
    image_end(&other);
}
END_TEST

START_TEST(random_damage_in_many_places_is_never_wrong_bytes) {
    struct image image;
    uint64_t seed = 99;
    image_init(&image);
    uint8_t *copy = malloc(image.bytes);
    ck_assert_ptr_nonnull(copy);
    for (int round = 0; round < 200; round++) {
        memcpy(copy, image.good, image.bytes);
        for (uint32_t i = 1 + random_below(&seed, 12); i > 0; i--) {
            uint32_t from = random_below(&seed, (uint32_t)image.bytes), to = random_below(&seed, (uint32_t)image.bytes);
            uint32_t bytes = 1 + random_below(&seed, 3000);
            from = from < 4096 && random_below(&seed, 8) != 0 ? from + 8192 : from;
            to = to < 4096 && random_below(&seed, 8) != 0 ? to + 8192 : to;
            uint64_t far = from > to ? from : to;
            bytes = far + bytes > image.bytes ? (uint32_t)(image.bytes - far) : bytes;
            if (random_below(&seed, 2) == 0)
                memmove(copy + to, copy + from, bytes);
            else
                noise(copy + to, bytes);
        }
        store(&image, copy, image.bytes);
        ck_assert_uint_le(judge(&image), SLOTS);
    }
    free(copy);
    image_end(&image);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("disk_corrupt");
    TCase *tc = tcase_create("disk_corrupt");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, any_range_damaged_is_a_refusal_or_a_miss, 0, 4);
    tcase_add_test(tc, a_file_of_any_other_length_is_refused);
    tcase_add_test(tc, whatever_is_swapped_between_slots_is_never_wrong_bytes);
    tcase_add_test(tc, whatever_is_older_is_never_wrong_bytes);
    tcase_add_test(tc, records_of_another_set_or_namespace_are_empty_slots);
    tcase_add_test(tc, random_damage_in_many_places_is_never_wrong_bytes);
    SRunner *runner = srunner_create(suite);
    srunner_set_fork_status(runner, CK_NOFORK); /* the counts below are of all tests */
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    (void)printf("corruption matrix: %llu damaged files, %llu refused; of the rest %llu reads served, %llu missed\n",
                 (unsigned long long)cases, (unsigned long long)refusals, (unsigned long long)hits,
                 (unsigned long long)misses);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
