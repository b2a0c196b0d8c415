/*
 * errors_test.c - facts about error names and texts.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "runtime/errors.h"
#include "tests/runtime/support.h"

START_TEST(every_code_of_ours_has_its_name_and_text_in_both_signs) {
#define X(name, value, text)                                                                                           \
    ck_assert_str_eq(kvbm_error_name_mt(value), "KVBM_E" #name);                                                       \
    ck_assert_str_eq(kvbm_error_name_mt(-(value)), "KVBM_E" #name);                                                    \
    ck_assert_str_eq(kvbm_error_text_mt(-(value)), text);                                                              \
    ck_assert_int_eq(KVBM_E##name, value);
    KVBM_ERROR_LIST(X)
#undef X
}
END_TEST

START_TEST(codes_of_ours_are_distinct_and_above_every_errno) {
    const int codes[] = {
#define X(name, value, text) value,
        KVBM_ERROR_LIST(X)
#undef X
    };
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        ck_assert_int_gt(codes[i], 2000);
        for (size_t j = 0; j < i; j++)
            ck_assert_int_ne(codes[i], codes[j]);
    }
}
END_TEST

START_TEST(errno_codes_have_their_usual_names) {
    ck_assert_str_eq(kvbm_error_name_mt(-EAGAIN), "EAGAIN");
    ck_assert_str_eq(kvbm_error_name_mt(ENOMEM), "ENOMEM");
    ck_assert_str_eq(kvbm_error_text_mt(-ENOMEM), "Cannot allocate memory");
}
END_TEST

START_TEST(unknown_codes_have_a_name_too) {
    const int codes[] = {1999, -1999, 4095, 999999, INT_MAX, INT_MIN};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        ck_assert_str_eq(kvbm_error_name_mt(codes[i]), "EUNKNOWN");
        ck_assert_str_eq(kvbm_error_text_mt(codes[i]), "unknown error");
    }
    ck_assert_str_eq(kvbm_error_name_mt(0), "OK");
    ck_assert_ptr_nonnull(kvbm_error_text_mt(0));
}
END_TEST

SUPPORT_MAIN("errors", every_code_of_ours_has_its_name_and_text_in_both_signs,
             codes_of_ours_are_distinct_and_above_every_errno, errno_codes_have_their_usual_names,
             unknown_codes_have_a_name_too)
