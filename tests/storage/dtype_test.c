/*
 * dtype_test.c - the table of element types.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "storage/dtype.h"

START_TEST(every_name_parses_back_to_its_value) {
#define X(name, value, bytes, text, code, bits)                                                                        \
    ck_assert_int_eq(KVBM_DTYPE_##name, value);                                                                        \
    ck_assert_str_eq(kvbm_dtype_name_mt(value), text);                                                                 \
    ck_assert_int_eq(kvbm_dtype_parse_mt(text), value);                                                                \
    ck_assert_uint_eq(kvbm_dtype_bytes_mt(value), bytes);
    KVBM_DTYPE_LIST(X)
#undef X
}
END_TEST

START_TEST(dlpack_codes_are_those_of_the_standard) {
    static const struct {
        int dtype;
        uint8_t code, bits;
    } standard[] = {
        {KVBM_DTYPE_FP8_E4M3, 10, 8}, {KVBM_DTYPE_FP8_E5M2, 12, 8}, {KVBM_DTYPE_FP16, 2, 16}, {KVBM_DTYPE_BF16, 4, 16},
        {KVBM_DTYPE_FP32, 2, 32},     {KVBM_DTYPE_INT8, 0, 8},      {KVBM_DTYPE_U8, 1, 8},
    };
    for (size_t i = 0; i < sizeof(standard) / sizeof(standard[0]); i++) {
        uint8_t code = 0xee, bits = 0xee;
        ck_assert_int_eq(kvbm_dtype_dlpack_mt(standard[i].dtype, &code, &bits), 0);
        ck_assert_uint_eq(code, standard[i].code);
        ck_assert_uint_eq(bits, standard[i].bits);
        ck_assert_uint_eq(kvbm_dtype_bytes_mt(standard[i].dtype) * 8, bits);
    }
}
END_TEST

START_TEST(unknown_types_and_names_are_refused) {
    static const int unknown[] = {-2147483647 - 1, -1, 0, 8, 9, 100, 2147483647};
    static const char *const names[] = {"", "FP16", "fp1", "fp160", "fp16 ", "float16", "bf8"};
    uint8_t code = 0xee, bits = 0xee;
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        ck_assert_uint_eq(kvbm_dtype_bytes_mt(unknown[i]), 0);
        ck_assert_ptr_null(kvbm_dtype_name_mt(unknown[i]));
        ck_assert_int_eq(kvbm_dtype_dlpack_mt(unknown[i], &code, &bits), -EINVAL);
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        ck_assert_int_eq(kvbm_dtype_parse_mt(names[i]), -EINVAL);
    ck_assert_int_eq(kvbm_dtype_parse_mt(NULL), -EINVAL);
    ck_assert_uint_eq(code, 0xee);
    ck_assert_uint_eq(bits, 0xee);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("dtype");
    TCase *tc = tcase_create("dtype");
    suite_add_tcase(suite, tc);
    tcase_add_test(tc, every_name_parses_back_to_its_value);
    tcase_add_test(tc, dlpack_codes_are_those_of_the_standard);
    tcase_add_test(tc, unknown_types_and_names_are_refused);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
