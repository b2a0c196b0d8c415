/*
 * keys_test.c - sequence hashes against the definition in kvbm.h, spelled out with the library's plain one-shot hash.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "actors/kvbm.h"
#include "tests/support/dies.h"
#include "tests/support/random.h"

#define TOKEN_COUNT 4096

static uint32_t tokens[TOKEN_COUNT];

static void tokens_fill(void) {
    uint64_t state = 7;
    for (uint32_t i = 0; i < TOKEN_COUNT; i++)
        tokens[i] = (uint32_t)random_next(&state);
}

static kvbm_key hash_of(const void *bytes, size_t count) {
    XXH128_hash_t hash = XXH3_128bits(bytes, count);
    kvbm_key key;
    for (int i = 0; i < 8; i++) {
        key.bytes[i] = (uint8_t)(hash.high64 >> (56 - 8 * i));
        key.bytes[8 + i] = (uint8_t)(hash.low64 >> (56 - 8 * i));
    }
    return key;
}

/* The definition: parent's bytes, then each token from its lowest byte up. */
static kvbm_key define_key(const kvbm_key *parent, const uint32_t *block, uint32_t page_size) {
    unsigned char *bytes = malloc(16 + (size_t)page_size * 4);
    ck_assert_ptr_nonnull(bytes);
    memcpy(bytes, parent->bytes, 16);
    for (uint32_t i = 0; i < page_size; i++)
        for (int b = 0; b < 4; b++)
            bytes[16 + 4 * i + (uint32_t)b] = (unsigned char)(block[i] >> 8 * b);
    kvbm_key key = hash_of(bytes, 16 + (size_t)page_size * 4);
    free(bytes);
    return key;
}

static bool equal(const kvbm_key *a, const kvbm_key *b) {
    return memcmp(a, b, sizeof(*a)) == 0;
}

START_TEST(the_hash_of_nothing_is_that_of_the_published_test_vector) {
    static const kvbm_key expected = {
        {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8, 0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f}};
    kvbm_key key;
    kvbm_key_from_bytes_mt(NULL, 0, &key);
    ck_assert(equal(&key, &expected));
    kvbm_key_from_bytes_mt("abc", 0, &key);
    ck_assert(equal(&key, &expected));
}
END_TEST

START_TEST(a_key_from_bytes_is_their_hash_at_any_length) {
    for (size_t count = 1; count < 2000; count += count < 300 ? 1 : 97) {
        kvbm_key key, expected = hash_of(tokens, count);
        kvbm_key_from_bytes_mt(tokens, count, &key);
        ck_assert(equal(&key, &expected));
    }
}
END_TEST

START_TEST(each_key_is_the_hash_of_parent_and_tokens) {
    /* 256 and 257: the last that is hashed in one piece, the first that is streamed; 1024 + 1: several pieces and a
     * rest. */
    static const uint32_t sizes[] = {1,   2,   3,   15,  16,  17,   56,   57,   64,  128,
                                     255, 256, 257, 511, 512, 1024, 1025, 2048, 4096};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint32_t page_size = sizes[s];
        uint64_t count = TOKEN_COUNT / page_size < 64 ? TOKEN_COUNT / page_size : 64;
        kvbm_key keys[64], previous = {{0}};
        kvbm_keys_compute_mt(tokens, count, page_size, NULL, 0, NULL, keys);
        for (uint64_t i = 0; i < count; i++) {
            kvbm_key expected = define_key(&previous, tokens + i * page_size, page_size);
            ck_assert_msg(equal(&keys[i], &expected), "page_size %u block %lu", page_size, (unsigned long)i);
            previous = keys[i];
        }
    }
}
END_TEST

START_TEST(the_largest_page_is_hashed_whole) {
    enum { SIZE = 65536 };
    uint32_t *page = calloc(SIZE, sizeof(*page));
    ck_assert_ptr_nonnull(page);
    page[SIZE - 1] = 1;
    kvbm_key zero = {{0}}, expected = define_key(&zero, page, SIZE), key;
    kvbm_keys_compute_mt(page, 1, SIZE, NULL, 0, NULL, &key);
    ck_assert(equal(&key, &expected));
    free(page);
}
END_TEST

START_TEST(a_salt_enters_the_first_key_by_its_hash_and_changes_every_key) {
    static const char salt[] = "tenant-7/adapter-3";
    kvbm_key plain[8], salted[8], root = hash_of(salt, sizeof(salt));
    kvbm_keys_compute_mt(tokens, 8, 16, NULL, 0, NULL, plain);
    kvbm_keys_compute_mt(tokens, 8, 16, salt, sizeof(salt), NULL, salted);
    kvbm_key expected = define_key(&root, tokens, 16);
    ck_assert(equal(&salted[0], &expected));
    for (int i = 0; i < 8; i++)
        ck_assert(!equal(&plain[i], &salted[i]));
}
END_TEST

START_TEST(an_empty_salt_is_no_salt) {
    kvbm_key a[2], b[2];
    kvbm_keys_compute_mt(tokens, 2, 16, NULL, 0, NULL, a);
    kvbm_keys_compute_mt(tokens, 2, 16, "x", 0, NULL, b);
    ck_assert(equal(&a[0], &b[0]) && equal(&a[1], &b[1]));
}
END_TEST

START_TEST(a_chain_continued_from_its_parent_is_the_chain_computed_at_once) {
    kvbm_key whole[32], parts[32];
    kvbm_keys_compute_mt(tokens, 32, 16, "salt", 4, NULL, whole);
    for (uint64_t split = 1; split < 32; split++) {
        kvbm_keys_compute_mt(tokens, split, 16, "salt", 4, NULL, parts);
        /* With a parent the salt has done its work already. */
        kvbm_keys_compute_mt(tokens + split * 16, 32 - split, 16, "other", 5, &parts[split - 1], parts + split);
        ck_assert(memcmp(whole, parts, sizeof(whole)) == 0);
    }
}
END_TEST

START_TEST(a_parent_inside_the_output_may_be_overwritten) {
    kvbm_key expected[4], keys[4];
    kvbm_key parent = hash_of("p", 1);
    kvbm_keys_compute_mt(tokens, 4, 16, NULL, 0, &parent, expected);
    keys[0] = parent;
    kvbm_keys_compute_mt(tokens, 4, 16, NULL, 0, &keys[0], keys);
    ck_assert(memcmp(expected, keys, sizeof(keys)) == 0);
}
END_TEST

START_TEST(a_changed_token_changes_its_key_and_all_after_and_none_before) {
    kvbm_key before[8], after[8];
    uint32_t changed[8 * 16];
    for (uint32_t at = 0; at < 8 * 16; at++) {
        memcpy(changed, tokens, sizeof(changed));
        changed[at] ^= 1u << at % 32;
        kvbm_keys_compute_mt(tokens, 8, 16, NULL, 0, NULL, before);
        kvbm_keys_compute_mt(changed, 8, 16, NULL, 0, NULL, after);
        for (uint32_t i = 0; i < 8; i++)
            ck_assert_int_eq(equal(&before[i], &after[i]), i < at / 16);
    }
}
END_TEST

START_TEST(no_blocks_are_no_keys) {
    kvbm_key key = {{0x5a}};
    kvbm_keys_compute_mt(NULL, 0, 16, NULL, 0, NULL, &key);
    ck_assert_uint_eq(key.bytes[0], 0x5a);
}
END_TEST

static void without_page_size(void *arg) {
    kvbm_keys_compute_mt(tokens, 1, 0, NULL, 0, NULL, arg);
}

START_TEST(a_page_of_no_tokens_is_a_programming_error) {
    kvbm_key key;
    ck_assert(dies(without_page_size, &key));
}
END_TEST

int main(void) {
    tokens_fill();
    Suite *suite = suite_create("keys");
    TCase *tc = tcase_create("keys");
    suite_add_tcase(suite, tc);
    tcase_add_test(tc, the_hash_of_nothing_is_that_of_the_published_test_vector);
    tcase_add_test(tc, a_key_from_bytes_is_their_hash_at_any_length);
    tcase_add_test(tc, each_key_is_the_hash_of_parent_and_tokens);
    tcase_add_test(tc, the_largest_page_is_hashed_whole);
    tcase_add_test(tc, a_salt_enters_the_first_key_by_its_hash_and_changes_every_key);
    tcase_add_test(tc, an_empty_salt_is_no_salt);
    tcase_add_test(tc, a_chain_continued_from_its_parent_is_the_chain_computed_at_once);
    tcase_add_test(tc, a_parent_inside_the_output_may_be_overwritten);
    tcase_add_test(tc, a_changed_token_changes_its_key_and_all_after_and_none_before);
    tcase_add_test(tc, no_blocks_are_no_keys);
    tcase_add_test(tc, a_page_of_no_tokens_is_a_programming_error);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
