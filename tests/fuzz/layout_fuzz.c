/*
 * layout_fuzz.c - libFuzzer target of the layout geometry: any geometry is refused with a reason, or gives offsets that
 * are in range, aligned, dense within a page and disjoint.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/errors.h"
#include "storage/dtype.h"
#include "storage/layout.h"

#define PLANES_MAX 96 /* of layouts whose planes are compared with each other */

#define REQUIRE(cond)                                                                                                  \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t left;
};

static uint64_t take(struct input *in, size_t bytes) {
    uint64_t value = 0;
    size_t n = bytes < in->left ? bytes : in->left;
    memcpy(&value, in->data, n);
    in->data += n;
    in->left -= n;
    return value;
}

/* Small, at a limit, or anything. */
static uint64_t number(struct input *in, uint64_t limit) {
    uint64_t how = take(in, 1);
    switch (how & 7) {
    case 0:
        return limit;
    case 1:
        return limit + 1;
    case 2:
        return take(in, 8);
    case 3:
        return 0;
    default:
        return 1 + (how >> 3) % 8;
    }
}

static void check_pages(const struct kvbm_layout *layout) {
    if (layout->pages_per_block > 4096 || layout->block_count > 64)
        return;
    uint64_t *offsets = calloc(layout->pages_per_block, sizeof *offsets);
    REQUIRE(offsets != NULL);
    for (uint64_t block = 0; block < layout->block_count; block++) {
        kvbm_layout_pages(layout, block, offsets);
        for (uint32_t i = 0; i < layout->pages_per_block; i++) {
            REQUIRE(offsets[i] <= layout->total_bytes && layout->page_bytes <= layout->total_bytes - offsets[i]);
            REQUIRE((offsets[i] & (layout->geometry.alignment - 1)) == 0);
        }
        REQUIRE(offsets[0] == kvbm_layout_offset(layout, block, 0, 0));
    }
    free(offsets);
}

static void check_planes(const struct kvbm_layout *layout) {
    const struct kvbm_geometry *g = &layout->geometry;
    uint64_t starts[PLANES_MAX];
    uint32_t count = 0;
    for (uint64_t block = 0; block < layout->block_count && count < PLANES_MAX; block++)
        for (uint32_t layer = 0; layer < g->num_layers && count < PLANES_MAX; layer++)
            for (uint32_t outer = 0; outer < g->outer_dim && count < PLANES_MAX; outer++)
                starts[count++] = kvbm_layout_offset(layout, block, layer, outer);
    for (uint32_t i = 0; i < count; i++) {
        REQUIRE(starts[i] <= layout->total_bytes && layout->plane_bytes <= layout->total_bytes - starts[i]);
        for (uint32_t j = 0; j < i; j++)
            REQUIRE(starts[i] >= starts[j] + layout->plane_bytes || starts[j] >= starts[i] + layout->plane_bytes);
    }
    /* The last of all, however many there are. */
    uint64_t last = kvbm_layout_offset(layout, layout->block_count - 1, g->num_layers - 1, g->outer_dim - 1);
    REQUIRE(last <= layout->total_bytes && layout->plane_bytes <= layout->total_bytes - last);
}

static void check_dtype(struct input *in) {
    char name[16] = "";
    uint64_t bytes = take(in, 8);
    memcpy(name, &bytes, sizeof bytes);
    int dtype = kvbm_dtype_parse_mt(name);
    REQUIRE(dtype < 0 || strcmp(kvbm_dtype_name_mt(dtype), name) == 0);
    dtype = (int)take(in, 4);
    uint8_t code = 0, bits = 0;
    bool known = kvbm_dtype_bytes_mt(dtype) != 0;
    REQUIRE((kvbm_dtype_name_mt(dtype) != NULL) == known);
    REQUIRE((kvbm_dtype_dlpack_mt(dtype, &code, &bits) == 0) == known);
    REQUIRE(!known || bits == 8 * kvbm_dtype_bytes_mt(dtype));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct kvbm_geometry geometry = {
        .num_layers = (uint32_t)number(&in, 65536),
        .outer_dim = (uint32_t)number(&in, 2),
        .page_size = (uint32_t)number(&in, 65536),
        .inner_dim = (uint32_t)number(&in, 1u << 24),
        .dtype = (int)number(&in, 7),
        .form = (int)number(&in, 3),
    };
    uint64_t alignment = take(&in, 1);
    geometry.alignment = alignment < 24 ? UINT64_C(1) << alignment : alignment < 64 ? 0 : number(&in, 2u << 20);
    uint64_t block_count = number(&in, UINT64_C(1) << 40);
    struct kvbm_layout layout;
    const char *why = NULL;
    int rc = kvbm_layout_init(&layout, &geometry, block_count, &why);
    REQUIRE(rc == 0 || (rc == -KVBM_EGEOMETRY && why != NULL && why[0] != 0));
    REQUIRE(kvbm_layout_init(&layout, &geometry, block_count, NULL) == rc);
    check_dtype(&in);
    if (rc != 0 || block_count == 0)
        return 0;
    const struct kvbm_geometry *g = &layout.geometry;
    REQUIRE(layout.total_bytes <= UINT64_C(1) << 62);
    REQUIRE(layout.plane_bytes == (uint64_t)g->page_size * g->inner_dim * kvbm_dtype_bytes_mt(g->dtype));
    REQUIRE(layout.payload_bytes == layout.plane_bytes * g->num_layers * g->outer_dim);
    REQUIRE(layout.page_bytes * layout.pages_per_block == layout.payload_bytes);
    check_pages(&layout);
    check_planes(&layout);
    return 0;
}
