/*
 * checksum_internal.h - the same checksum compiled for wider vectors, where compiler and machine have them.
 */
#ifndef KVBM_STORAGE_CHECKSUM_INTERNAL_H
#define KVBM_STORAGE_CHECKSUM_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

/* clang has no way to say this for a part of a file that xxhash.h would notice. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KVBM__CHECKSUM_AVX2 1
#else
#define KVBM__CHECKSUM_AVX2 0
#endif

#if KVBM__CHECKSUM_AVX2
/* Only where __builtin_cpu_supports("avx2"). */
uint64_t kvbm__checksum_avx2_mt(const void *data, size_t bytes);
#endif

#endif
