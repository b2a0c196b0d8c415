/*
 * dtype.h - element types of KV data. Public (kvbm.h includes it), includes nothing of ours. Pure functions, any
 * thread.
 */
#ifndef KVBM_STORAGE_DTYPE_H
#define KVBM_STORAGE_DTYPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, value, bytes, "name", DLPack type code, bits). Values are stable: they are stored. DLPack codes: 0 int,
 * 1 uint, 2 float, 4 bfloat, 10 float8_e4m3fn, 12 float8_e5m2 (dlpack.h 1.1). */
#define KVBM_DTYPE_LIST(X)                                                                                             \
    X(FP8_E4M3, 1, 1, "fp8_e4m3", 10, 8)                                                                               \
    X(FP8_E5M2, 2, 1, "fp8_e5m2", 12, 8)                                                                               \
    X(FP16, 3, 2, "fp16", 2, 16)                                                                                       \
    X(BF16, 4, 2, "bf16", 4, 16)                                                                                       \
    X(FP32, 5, 4, "fp32", 2, 32)                                                                                       \
    X(INT8, 6, 1, "int8", 0, 8)                                                                                        \
    X(U8, 7, 1, "u8", 1, 8)

enum kvbm_dtype {
#define X(name, value, bytes, text, code, bits) KVBM_DTYPE_##name = value,
    KVBM_DTYPE_LIST(X)
#undef X
};

/* 0 for an unknown value. */
size_t kvbm_dtype_bytes_mt(int dtype);
/* "fp16"; NULL for an unknown value. */
const char *kvbm_dtype_name_mt(int dtype);
/* The value for a name, -EINVAL if there is none. */
int kvbm_dtype_parse_mt(const char *name);
/* DLPack type code and bits; -EINVAL for an unknown value. */
int kvbm_dtype_dlpack_mt(int dtype, uint8_t *code, uint8_t *bits);

#ifdef __cplusplus
}
#endif
#endif
