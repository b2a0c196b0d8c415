/*
 * checksum_test.c - the payload checksum is XXH3-64, however it is computed.
 */
#include <check.h>
#include <stdlib.h>
#include <xxhash.h>

#include "storage/checksum.h"
#include "tests/support/random.h"

START_TEST(known_answers) {
    ck_assert_uint_eq(kvbm_checksum_mt("", 0), UINT64_C(0x2d06800538d394c2)); /* of the xxHash specification */
    ck_assert_uint_eq(kvbm_checksum_mt("xxhash", 6), XXH3_64bits("xxhash", 6));
}
END_TEST

START_TEST(every_length_and_any_cut_agree_with_the_library) {
    uint64_t seed = 11;
    uint8_t *data = malloc(300001);
    ck_assert_ptr_nonnull(data);
    for (size_t i = 0; i < 300001; i++)
        data[i] = (uint8_t)random_next(&seed);
    for (size_t bytes = 0; bytes <= 300000; bytes += bytes < 2100 ? 1 : 7919) {
        const uint8_t *at = data + random_below(&seed, 2);
        uint64_t wanted = XXH3_64bits(at, bytes);
        ck_assert_uint_eq(kvbm_checksum_mt(at, bytes), wanted);
        struct kvbm_tier_segment segments[5];
        uint64_t used = 0;
        for (uint32_t i = 0; i < 5; i++) {
            uint64_t n = i == 4 ? bytes - used : random_below(&seed, (uint32_t)(bytes - used) + 1);
            segments[i] = (struct kvbm_tier_segment){(void *)(uintptr_t)(at + used), n};
            used += n;
        }
        ck_assert_uint_eq(kvbm_checksum_segments_mt(segments, 5), wanted);
    }
    free(data);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("checksum");
    TCase *tc = tcase_create("checksum");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, known_answers);
    tcase_add_test(tc, every_length_and_any_cut_agree_with_the_library);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
