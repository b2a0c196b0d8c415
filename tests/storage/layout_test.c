/*
 * layout_test.c - the three layout forms against a naive model that walks the axes in order, and the edges of each
 * field.
 */
#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/layout.h"
#include "tests/support/random.h"

#define FORM_COUNT 3

static const int forms[FORM_COUNT] = {KVBM_LAYOUT_FULLY_CONTIGUOUS, KVBM_LAYOUT_LAYER_BLOCK_MAJOR,
                                      KVBM_LAYOUT_LAYER_OUTER_MAJOR};

struct plane {
    uint64_t offset;
    uint64_t block;
    uint32_t layer, outer;
};

static uint64_t round_up(uint64_t value, uint64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/* Walks the axes slowest first, as layout.h lists them, and pads behind each page. Returns the total. */
static uint64_t model_walk(const struct kvbm_geometry *g, uint64_t blocks, uint64_t alignment, struct plane *planes) {
    uint64_t element = kvbm_dtype_bytes_mt(g->dtype), at = 0;
    uint64_t plane_bytes = g->page_size * g->inner_dim * element;
    size_t n = 0;
    if (g->form == KVBM_LAYOUT_FULLY_CONTIGUOUS) {
        for (uint64_t b = 0; b < blocks; b++, at = round_up(at, alignment))
            for (uint32_t l = 0; l < g->num_layers; l++)
                for (uint32_t o = 0; o < g->outer_dim; o++, at += plane_bytes)
                    planes[n++] = (struct plane){at, b, l, o};
    } else if (g->form == KVBM_LAYOUT_LAYER_BLOCK_MAJOR) {
        for (uint32_t l = 0; l < g->num_layers; l++)
            for (uint64_t b = 0; b < blocks; b++, at = round_up(at, alignment))
                for (uint32_t o = 0; o < g->outer_dim; o++, at += plane_bytes)
                    planes[n++] = (struct plane){at, b, l, o};
    } else {
        for (uint32_t l = 0; l < g->num_layers; l++)
            for (uint32_t o = 0; o < g->outer_dim; o++)
                for (uint64_t b = 0; b < blocks; b++, at = round_up(at + plane_bytes, alignment))
                    planes[n++] = (struct plane){at, b, l, o};
    }
    return at;
}

static struct kvbm_geometry random_geometry(uint64_t *state, int form) {
    return (struct kvbm_geometry){
        .num_layers = 1 + random_below(state, 9),
        .outer_dim = 1 + random_below(state, 2),
        .page_size = 1 + random_below(state, 33),
        .inner_dim = 1 + random_below(state, random_below(state, 2) ? 7 : 513),
        .dtype = 1 + (int)random_below(state, 7),
        .form = form,
        .alignment = random_below(state, 4) == 0 ? 0 : UINT64_C(1) << random_below(state, 22),
    };
}

static void check_against_model(const struct kvbm_geometry *g, uint64_t blocks) {
    struct kvbm_layout layout;
    const char *why = NULL;
    ck_assert_int_eq(kvbm_layout_init(&layout, g, blocks, &why), 0);
    ck_assert_ptr_null(why);
    uint64_t alignment = layout.geometry.alignment;
    size_t plane_count = blocks * g->num_layers * g->outer_dim;
    struct plane *planes = calloc(plane_count + 1, sizeof(*planes));
    ck_assert_ptr_nonnull(planes);
    ck_assert_uint_eq(layout.total_bytes, model_walk(g, blocks, alignment, planes));
    /* The model's planes come in ascending order, so neighbours tell of any overlap. */
    for (size_t i = 0; i < plane_count; i++) {
        ck_assert_uint_eq(kvbm_layout_offset(&layout, planes[i].block, planes[i].layer, planes[i].outer),
                          planes[i].offset);
        uint64_t end = i + 1 < plane_count ? planes[i + 1].offset : layout.total_bytes;
        ck_assert_uint_le(planes[i].offset + layout.plane_bytes, end);
    }
    free(planes);
}

/* The pages of each block are aligned, disjoint and inside, and hold its planes back to back: exactly the payload. */
static void check_pages(const struct kvbm_layout *layout) {
    const struct kvbm_geometry *g = &layout->geometry;
    uint64_t *offsets = calloc(layout->pages_per_block, sizeof(*offsets));
    ck_assert_ptr_nonnull(offsets);
    uint64_t planes_per_page = layout->page_bytes / layout->plane_bytes;
    ck_assert_uint_eq(layout->page_bytes % layout->plane_bytes, 0);
    ck_assert_uint_eq(layout->page_bytes * layout->pages_per_block, layout->payload_bytes);
    for (uint64_t b = 0; b < layout->block_count; b++) {
        kvbm_layout_pages(layout, b, offsets);
        for (uint32_t p = 0; p < layout->pages_per_block; p++) {
            ck_assert_uint_eq(offsets[p] % g->alignment, 0);
            ck_assert_uint_le(offsets[p] + layout->page_bytes, layout->total_bytes);
            if (p > 0)
                ck_assert_uint_le(offsets[p - 1] + layout->page_bytes, offsets[p]);
        }
        for (uint32_t plane = 0; plane < g->num_layers * g->outer_dim; plane++)
            ck_assert_uint_eq(kvbm_layout_offset(layout, b, plane / g->outer_dim, plane % g->outer_dim),
                              offsets[plane / planes_per_page] + plane % planes_per_page * layout->plane_bytes);
    }
    free(offsets);
}

START_TEST(offsets_agree_with_a_walk_over_the_axes_and_planes_never_overlap) {
    uint64_t state = 1;
    for (int round = 0; round < 600; round++) {
        struct kvbm_geometry g = random_geometry(&state, forms[_i]);
        check_against_model(&g, random_below(&state, 12));
    }
}
END_TEST

START_TEST(pages_of_a_block_cover_exactly_its_payload) {
    uint64_t state = 2;
    for (int round = 0; round < 600; round++) {
        struct kvbm_geometry g = random_geometry(&state, forms[_i]);
        struct kvbm_layout layout;
        ck_assert_int_eq(kvbm_layout_init(&layout, &g, 1 + random_below(&state, 12), NULL), 0);
        check_pages(&layout);
    }
}
END_TEST

START_TEST(number_of_pages_follows_the_form) {
    struct kvbm_geometry g = {
        .num_layers = 5, .outer_dim = 2, .page_size = 4, .inner_dim = 8, .dtype = KVBM_DTYPE_FP16};
    static const uint32_t pages[FORM_COUNT] = {1, 5, 10};
    struct kvbm_layout layout;
    g.form = forms[_i];
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 3, NULL), 0);
    ck_assert_uint_eq(layout.pages_per_block, pages[_i]);
    ck_assert_uint_eq(layout.plane_bytes, 64);
    ck_assert_uint_eq(layout.payload_bytes, 640);
    ck_assert_uint_eq(layout.geometry.alignment, forms[_i] == KVBM_LAYOUT_FULLY_CONTIGUOUS ? 4096 : 256);
}
END_TEST

START_TEST(alignment_is_at_least_the_element_size) {
    struct kvbm_geometry g = {.num_layers = 1, .outer_dim = 1, .page_size = 1, .inner_dim = 1, .alignment = 1};
    struct kvbm_layout layout;
    g.form = forms[_i];
    g.dtype = KVBM_DTYPE_FP32;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 2, NULL), 0);
    ck_assert_uint_eq(layout.geometry.alignment, 4);
    g.dtype = KVBM_DTYPE_U8;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 2, NULL), 0);
    ck_assert_uint_eq(layout.geometry.alignment, 1);
    ck_assert_uint_eq(layout.total_bytes, 2);
}
END_TEST

START_TEST(a_refused_field_is_named_with_its_range) {
    static const struct kvbm_geometry good = {.num_layers = 2,
                                              .outer_dim = 2,
                                              .page_size = 16,
                                              .inner_dim = 64,
                                              .dtype = KVBM_DTYPE_BF16,
                                              .form = KVBM_LAYOUT_FULLY_CONTIGUOUS};
    struct kvbm_geometry bad[24];
    const char *words[24][3];
    int n = 0;
#define BAD(field, value, name, low, high)                                                                             \
    (bad[n] = good, bad[n].field = (value), words[n][0] = (name), words[n][1] = (low), words[n][2] = (high), n++)
    BAD(num_layers, 0, "num_layers", "1", "65536");
    BAD(num_layers, 65537, "num_layers", "1", "65536");
    BAD(num_layers, UINT32_MAX, "num_layers", "1", "65536");
    BAD(outer_dim, 0, "outer_dim", "1", "2");
    BAD(outer_dim, 3, "outer_dim", "1", "2");
    BAD(page_size, 0, "page_size", "1", "65536");
    BAD(page_size, 65537, "page_size", "1", "65536");
    BAD(inner_dim, 0, "inner_dim", "1", "16777216");
    BAD(inner_dim, 16777217, "inner_dim", "1", "16777216");
    BAD(dtype, 0, "dtype", "1", "7");
    BAD(dtype, 8, "dtype", "1", "7");
    BAD(dtype, -1, "dtype", "1", "7");
    BAD(form, 0, "form", "1", "3");
    BAD(form, 4, "form", "1", "3");
    BAD(form, -1, "form", "1", "3");
    BAD(alignment, 3, "alignment", "1", "2097152");
    BAD(alignment, 4194304, "alignment", "1", "2097152");
    BAD(alignment, UINT64_MAX, "alignment", "1", "2097152");
#undef BAD
    for (int i = 0; i < n; i++) {
        struct kvbm_layout layout, before;
        const char *why = NULL;
        memset(&layout, 0x5a, sizeof(layout));
        memset(&before, 0x5a, sizeof(before));
        ck_assert_int_eq(kvbm_layout_init(&layout, &bad[i], 1, &why), -KVBM_EGEOMETRY);
        ck_assert_ptr_nonnull(why);
        for (int w = 0; w < 3; w++)
            ck_assert_msg(strstr(why, words[i][w]) != NULL, "\"%s\" lacks %s", why, words[i][w]);
        ck_assert(memcmp(&layout, &before, sizeof(layout)) == 0);
        ck_assert_int_eq(kvbm_layout_init(&layout, &bad[i], 1, NULL), -KVBM_EGEOMETRY);
    }
}
END_TEST

START_TEST(the_ends_of_each_range_are_allowed) {
    struct kvbm_geometry g = {.num_layers = 1, .outer_dim = 1, .page_size = 1, .inner_dim = 1, .dtype = KVBM_DTYPE_U8};
    struct kvbm_layout layout;
    g.form = forms[_i];
    g.alignment = 1;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 0, NULL), 0);
    ck_assert_uint_eq(layout.total_bytes, 0);
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, UINT64_C(1) << 32, NULL), 0);
    ck_assert_uint_eq(layout.total_bytes, UINT64_C(1) << 32);
    g.alignment = UINT64_C(2) << 20;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 1, NULL), 0);
    ck_assert_uint_eq(layout.total_bytes, UINT64_C(2) << 20);
    const char *why = NULL;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, (UINT64_C(1) << 32) + 1, &why), -KVBM_EGEOMETRY);
    ck_assert_ptr_nonnull(strstr(why, "block_count"));
}
END_TEST

START_TEST(totals_reach_two_to_the_62_and_not_one_block_more) {
    struct kvbm_geometry g = {.num_layers = 65536,
                              .outer_dim = 2,
                              .page_size = 65536,
                              .inner_dim = 1u << 24,
                              .dtype = KVBM_DTYPE_FP32}; /* 2^59 bytes */
    struct kvbm_layout layout;
    g.form = forms[_i];
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, 8, NULL), 0);
    ck_assert_uint_eq(layout.total_bytes, UINT64_C(1) << 62);
    uint64_t last = kvbm_layout_offset(&layout, 7, 65535, 1);
    ck_assert_uint_eq(last + layout.plane_bytes, UINT64_C(1) << 62);
    static const uint64_t too_many[] = {9, 16, 31, 32, 33, 1 << 20, UINT64_C(1) << 32}; /* 2^64 and beyond among them */
    for (size_t i = 0; i < sizeof(too_many) / sizeof(too_many[0]); i++) {
        const char *why = NULL;
        ck_assert_int_eq(kvbm_layout_init(&layout, &g, too_many[i], &why), -KVBM_EGEOMETRY);
        ck_assert_ptr_nonnull(strstr(why, "2^62"));
    }
}
END_TEST

START_TEST(padding_counts_towards_the_limit) {
    /* A byte a page, each padded to 2 MiB: 2^21 * 2^32 blocks * layers. */
    struct kvbm_geometry g = {.num_layers = 512,
                              .outer_dim = 1,
                              .page_size = 1,
                              .inner_dim = 1,
                              .dtype = KVBM_DTYPE_U8,
                              .form = KVBM_LAYOUT_LAYER_BLOCK_MAJOR,
                              .alignment = UINT64_C(2) << 20};
    struct kvbm_layout layout;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, UINT64_C(1) << 32, NULL), 0);
    ck_assert_uint_eq(layout.total_bytes, UINT64_C(1) << 62);
    g.num_layers = 513;
    ck_assert_int_eq(kvbm_layout_init(&layout, &g, UINT64_C(1) << 32, NULL), -KVBM_EGEOMETRY);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("layout");
    TCase *tc = tcase_create("layout");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, offsets_agree_with_a_walk_over_the_axes_and_planes_never_overlap, 0, FORM_COUNT);
    tcase_add_loop_test(tc, pages_of_a_block_cover_exactly_its_payload, 0, FORM_COUNT);
    tcase_add_loop_test(tc, number_of_pages_follows_the_form, 0, FORM_COUNT);
    tcase_add_loop_test(tc, alignment_is_at_least_the_element_size, 0, FORM_COUNT);
    tcase_add_test(tc, a_refused_field_is_named_with_its_range);
    tcase_add_loop_test(tc, the_ends_of_each_range_are_allowed, 0, FORM_COUNT);
    tcase_add_loop_test(tc, totals_reach_two_to_the_62_and_not_one_block_more, 0, FORM_COUNT);
    tcase_add_test(tc, padding_counts_towards_the_limit);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
