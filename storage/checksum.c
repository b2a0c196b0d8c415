/*
 * checksum.c - see checksum.h. Owns nothing. Thread: any.
 */
#include "storage/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/log.h"
#include "storage/checksum_internal.h"

uint64_t kvbm_checksum_mt(const void *data, size_t bytes) {
#if KVBM__CHECKSUM_AVX2
    if (bytes > XXH3_MIDSIZE_MAX && __builtin_cpu_supports("avx2"))
        return kvbm__checksum_avx2_mt(data, bytes);
#endif
    return XXH3_64bits(data, bytes);
}

uint64_t kvbm_checksum_segments_mt(const struct kvbm_tier_segment *segments, uint32_t count) {
    if (count == 1)
        return kvbm_checksum_mt(segments[0].address, segments[0].bytes);
    XXH3_state_t state;
    XXH_errorcode rc = XXH3_64bits_reset(&state);
    for (uint32_t i = 0; i < count && rc == XXH_OK; i++)
        rc = XXH3_64bits_update(&state, segments[i].address, segments[i].bytes);
    KVBM_ASSERT(rc == XXH_OK);
    return XXH3_64bits_digest(&state);
}
