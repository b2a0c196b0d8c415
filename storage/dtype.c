/*
 * dtype.c - tables of the element types, generated from KVBM_DTYPE_LIST. Owns nothing; any thread.
 */
#include "storage/dtype.h"

#include <errno.h>
#include <string.h>

struct dtype_info {
    const char *name; /* NULL: no such type */
    uint8_t element_bytes;
    uint8_t dlpack_code;
    uint8_t dlpack_bits;
};

static const struct dtype_info dtypes[] = {
#define X(name_, value, bytes, text, code, bits) [value] = {text, bytes, code, bits},
    KVBM_DTYPE_LIST(X)
#undef X
};

#define DTYPE_COUNT (sizeof(dtypes) / sizeof(dtypes[0]))

#define X(name, value, bytes, text, code, bits)                                                                        \
    _Static_assert((bytes)*8 == (bits), #name ": an element's bytes and its bits agree");
KVBM_DTYPE_LIST(X)
#undef X

static const struct dtype_info *dtype_find(int dtype) {
    if (dtype < 0 || (size_t)dtype >= DTYPE_COUNT || dtypes[dtype].name == NULL)
        return NULL;
    return &dtypes[dtype];
}

size_t kvbm_dtype_bytes_mt(int dtype) {
    const struct dtype_info *info = dtype_find(dtype);
    return info != NULL ? info->element_bytes : 0;
}

const char *kvbm_dtype_name_mt(int dtype) {
    const struct dtype_info *info = dtype_find(dtype);
    return info != NULL ? info->name : NULL;
}

int kvbm_dtype_parse_mt(const char *name) {
    if (name == NULL)
        return -EINVAL;
    for (size_t i = 0; i < DTYPE_COUNT; i++) {
        if (dtypes[i].name != NULL && strcmp(dtypes[i].name, name) == 0)
            return (int)i;
    }
    return -EINVAL;
}

int kvbm_dtype_dlpack_mt(int dtype, uint8_t *code, uint8_t *bits) {
    const struct dtype_info *info = dtype_find(dtype);
    if (info == NULL)
        return -EINVAL;
    *code = info->dlpack_code;
    *bits = info->dlpack_bits;
    return 0;
}
