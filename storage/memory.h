/*
 * memory.h - how much memory this process may use: the machine's and its control groups'. Reads text files below a root
 * directory ("" is the real one); set-up only, any thread.
 */
#ifndef KVBM_STORAGE_MEMORY_H
#define KVBM_STORAGE_MEMORY_H

#include <stdint.h>

#define KVBM_MEMORY_UNKNOWN UINT64_MAX

/* KVBM_MEMORY_UNKNOWN where it could not be read or there is no limit. */
struct kvbm_memory {
    uint64_t total_bytes;     /* memory and swap that exist, at most the limits of the control groups */
    uint64_t available_bytes; /* what can be touched now without swapping or being killed */
    uint64_t huge_free_bytes; /* explicit huge pages, free and not reserved; not part of the above. 0 if unknown */
};

/* /proc/meminfo, and the memory limits of this process's control group and of those around it (v2 and v1). Never fails.
 */
void kvbm_memory_read(const char *root, struct kvbm_memory *memory);

#endif
