/*
 * layout.h - where the bytes of (block, layer, outer, token, element) are. Overflow-checked; pure functions, any
 * thread.
 *
 * form                  | order of axes, slowest first             | pages a block
 * FULLY_CONTIGUOUS      | [block][layer][outer][page][inner]       | 1
 * LAYER_BLOCK_MAJOR     | [layer][block][outer][page][inner]       | num_layers
 * LAYER_OUTER_MAJOR     | [layer][outer][block][page][inner]       | num_layers * outer_dim
 *
 * A "plane" is [page][inner] of one (block, layer, outer): page_size * inner_dim elements, always contiguous. Each
 * stride below is in bytes. Each page of a block starts at a multiple of the alignment (a power of two, raised to the
 * element size where it is smaller). Padding lies only behind a page, never inside one: a page is dense.
 */
#ifndef KVBM_STORAGE_LAYOUT_H
#define KVBM_STORAGE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "storage/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVBM_LAYOUT_LAYERS_MAX    65536u
#define KVBM_LAYOUT_OUTER_MAX     2u
#define KVBM_LAYOUT_PAGE_MAX      65536u
#define KVBM_LAYOUT_INNER_MAX     (1u << 24)
#define KVBM_LAYOUT_ALIGNMENT_MAX (UINT64_C(2) << 20)
#define KVBM_LAYOUT_BLOCKS_MAX    (UINT64_C(1) << 32)

enum kvbm_layout_form {
    KVBM_LAYOUT_FULLY_CONTIGUOUS = 1,
    KVBM_LAYOUT_LAYER_BLOCK_MAJOR = 2,
    KVBM_LAYOUT_LAYER_OUTER_MAJOR = 3,
};

struct kvbm_geometry {
    uint32_t num_layers; /* 1 .. 65536 */
    uint32_t outer_dim;  /* 1 (MLA) or 2 (keys, values) */
    uint32_t page_size;  /* tokens a block, 1 .. 65536 */
    uint32_t inner_dim;  /* elements a token, layer and outer, 1 .. 2^24 */
    int dtype;           /* enum kvbm_dtype */
    int form;            /* enum kvbm_layout_form */
    uint64_t alignment;  /* bytes, power of two, 1 .. 2 MiB; 0 means 4096 for FULLY_CONTIGUOUS, else 256 */
};

struct kvbm_layout {
    struct kvbm_geometry geometry; /* defaults filled in */
    uint64_t block_count;
    uint64_t plane_bytes;   /* page_size * inner_dim * element */
    uint64_t payload_bytes; /* num_layers * outer_dim * plane_bytes: what a block holds, without padding */
    uint64_t page_bytes;    /* bytes of one contiguous piece */
    uint32_t pages_per_block;
    uint64_t block_stride, layer_stride, outer_stride; /* token stride is inner_dim * element */
    uint64_t total_bytes;                              /* of all blocks, padding included */
};

/* Fills *layout. block_count: 0 .. 2^32 (0 checks a geometry). 0; -KVBM_EGEOMETRY for a field out of range or a total
 * above 2^62 bytes: then *layout is untouched and *why (why may be NULL) points to a static sentence naming the field
 * and its range. */
int kvbm_layout_init(struct kvbm_layout *layout, const struct kvbm_geometry *geometry, uint64_t block_count,
                     const char **why);
/* Byte offset of a plane. Indices are asserted. */
uint64_t kvbm_layout_offset(const struct kvbm_layout *layout, uint64_t block, uint32_t layer, uint32_t outer);
/* The contiguous pieces of one block: fills offsets[pages_per_block]; each is page_bytes long. */
void kvbm_layout_pages(const struct kvbm_layout *layout, uint64_t block, uint64_t *offsets);

#ifdef __cplusplus
}
#endif
#endif
