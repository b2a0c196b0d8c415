/*
 * checksum.h - the checksum of stored payloads: XXH3-64 without a seed, over the bytes in order. Pure; thread: any.
 */
#ifndef KVBM_STORAGE_CHECKSUM_H
#define KVBM_STORAGE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#include "storage/tier.h"

uint64_t kvbm_checksum_mt(const void *data, size_t bytes);
/* As of the segments' bytes laid end to end. */
uint64_t kvbm_checksum_segments_mt(const struct kvbm_tier_segment *segments, uint32_t count);

#endif
