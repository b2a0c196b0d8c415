/*
 * disk_uring.h - requests performed by the kernel through io_uring. Each refinement that the machine refuses (one issuer,
 * registered files, registered buffers) degrades to the next best with one logged line.
 */
#ifndef KVBM_STORAGE_DISK_URING_H
#define KVBM_STORAGE_DISK_URING_H

#include "storage/disk_io.h"

struct kvbm_disk_uring_got {
    bool fixed_files, fixed_buffers;
};

/* 0; -EPERM, -ENOSYS, ... where the kernel has or allows no io_uring, or lacks a request we need; -ENOMEM. */
int kvbm_disk_uring_open(struct kvbm_disk_io **io, const struct kvbm_disk_io_options *options,
                         struct kvbm_disk_uring_got *got);

#endif
