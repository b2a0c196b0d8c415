/*
 * layout.c - strides and offsets of the three layout forms. Owns nothing; pure functions, any thread.
 *
 * Every product and sum of sizes goes through the checked helpers below, which also hold the limit of 2^62 bytes: so an
 * offset plus a length always fits int64_t, and signed byte strides (DLPack, ssize_t) are safe.
 */
#include "storage/layout.h"

#include <stdbool.h>

#include "runtime/errors.h"
#include "runtime/log.h"

#define LAYOUT_BYTES_MAX (UINT64_C(1) << 62)

static bool multiply(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= LAYOUT_BYTES_MAX;
}

/* `alignment` is a power of two. */
static bool align_up(uint64_t value, uint64_t alignment, uint64_t *aligned) {
    uint64_t sum;
    if (__builtin_add_overflow(value, alignment - 1, &sum))
        return false;
    *aligned = sum & ~(alignment - 1);
    return *aligned <= LAYOUT_BYTES_MAX;
}

/* NULL, or the sentence that says which field is out of its range. */
static const char *geometry_fault(const struct kvbm_geometry *g, uint64_t block_count) {
    if (g->num_layers < 1 || g->num_layers > KVBM_LAYOUT_LAYERS_MAX)
        return "num_layers must be between 1 and 65536";
    if (g->outer_dim < 1 || g->outer_dim > KVBM_LAYOUT_OUTER_MAX)
        return "outer_dim must be 1 (MLA) or 2 (keys and values)";
    if (g->page_size < 1 || g->page_size > KVBM_LAYOUT_PAGE_MAX)
        return "page_size must be between 1 and 65536 tokens";
    if (g->inner_dim < 1 || g->inner_dim > KVBM_LAYOUT_INNER_MAX)
        return "inner_dim must be between 1 and 16777216 elements";
    if (kvbm_dtype_bytes_mt(g->dtype) == 0)
        return "dtype must be one of enum kvbm_dtype, 1 to 7";
    if (g->form != KVBM_LAYOUT_FULLY_CONTIGUOUS && g->form != KVBM_LAYOUT_LAYER_BLOCK_MAJOR &&
        g->form != KVBM_LAYOUT_LAYER_OUTER_MAJOR)
        return "form must be one of enum kvbm_layout_form, 1 to 3";
    if (g->alignment > KVBM_LAYOUT_ALIGNMENT_MAX || (g->alignment & (g->alignment - 1)) != 0)
        return "alignment must be 0 (the default) or a power of two between 1 and 2097152 bytes";
    if (block_count > KVBM_LAYOUT_BLOCKS_MAX)
        return "block_count must be between 0 and 4294967296";
    return NULL;
}

/* Page, strides and total, given geometry (defaults filled in), plane_bytes and payload_bytes. False on overflow. */
static bool layout_strides(struct kvbm_layout *layout) {
    const struct kvbm_geometry *g = &layout->geometry;
    uint64_t view_bytes; /* [outer][page][inner] of one layer */
    if (!multiply(layout->plane_bytes, g->outer_dim, &view_bytes))
        return false;
    switch (g->form) {
    case KVBM_LAYOUT_FULLY_CONTIGUOUS:
        layout->pages_per_block = 1;
        layout->page_bytes = layout->payload_bytes;
        layout->outer_stride = layout->plane_bytes;
        layout->layer_stride = view_bytes;
        return align_up(layout->page_bytes, g->alignment, &layout->block_stride) &&
               multiply(layout->block_stride, layout->block_count, &layout->total_bytes);
    case KVBM_LAYOUT_LAYER_BLOCK_MAJOR:
        layout->pages_per_block = g->num_layers;
        layout->page_bytes = view_bytes;
        layout->outer_stride = layout->plane_bytes;
        return align_up(layout->page_bytes, g->alignment, &layout->block_stride) &&
               multiply(layout->block_stride, layout->block_count, &layout->layer_stride) &&
               multiply(layout->layer_stride, g->num_layers, &layout->total_bytes);
    default:
        KVBM_ASSERT(g->form == KVBM_LAYOUT_LAYER_OUTER_MAJOR);
        layout->pages_per_block = g->num_layers * g->outer_dim;
        layout->page_bytes = layout->plane_bytes;
        return align_up(layout->page_bytes, g->alignment, &layout->block_stride) &&
               multiply(layout->block_stride, layout->block_count, &layout->outer_stride) &&
               multiply(layout->outer_stride, g->outer_dim, &layout->layer_stride) &&
               multiply(layout->layer_stride, g->num_layers, &layout->total_bytes);
    }
}

int kvbm_layout_init(struct kvbm_layout *layout, const struct kvbm_geometry *geometry, uint64_t block_count,
                     const char **why) {
    const char *fault = geometry_fault(geometry, block_count);
    if (fault == NULL) {
        struct kvbm_layout made = {.geometry = *geometry, .block_count = block_count};
        uint64_t element_bytes = kvbm_dtype_bytes_mt(geometry->dtype);
        if (made.geometry.alignment == 0)
            made.geometry.alignment = geometry->form == KVBM_LAYOUT_FULLY_CONTIGUOUS ? 4096 : 256;
        if (made.geometry.alignment < element_bytes)
            made.geometry.alignment = element_bytes;
        bool fits = multiply(geometry->page_size, geometry->inner_dim, &made.plane_bytes) &&
                    multiply(made.plane_bytes, element_bytes, &made.plane_bytes) &&
                    multiply(made.plane_bytes, geometry->outer_dim, &made.payload_bytes) &&
                    multiply(made.payload_bytes, geometry->num_layers, &made.payload_bytes) && layout_strides(&made);
        if (fits) {
            *layout = made;
            return 0;
        }
        fault = "block_count times the bytes of a block must not exceed 2^62";
    }
    if (why != NULL)
        *why = fault;
    return -KVBM_EGEOMETRY;
}

uint64_t kvbm_layout_offset(const struct kvbm_layout *layout, uint64_t block, uint32_t layer, uint32_t outer) {
    KVBM_ASSERT(block < layout->block_count);
    KVBM_ASSERT(layer < layout->geometry.num_layers);
    KVBM_ASSERT(outer < layout->geometry.outer_dim);
    /* Each product is at most total_bytes, hence no check. */
    return block * layout->block_stride + layer * layout->layer_stride + outer * layout->outer_stride;
}

void kvbm_layout_pages(const struct kvbm_layout *layout, uint64_t block, uint64_t *offsets) {
    uint32_t pages_per_layer = layout->geometry.form == KVBM_LAYOUT_LAYER_OUTER_MAJOR ? layout->geometry.outer_dim : 1;
    uint32_t layers = layout->pages_per_block / pages_per_layer;
    uint32_t page = 0;
    for (uint32_t layer = 0; layer < layers; layer++) {
        for (uint32_t outer = 0; outer < pages_per_layer; outer++)
            offsets[page++] = kvbm_layout_offset(layout, block, layer, outer);
    }
    KVBM_ASSERT(page == layout->pages_per_block);
}
