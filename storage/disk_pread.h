/*
 * disk_pread.h - requests performed by threads with preadv, pwritev and fdatasync: where there is no io_uring.
 */
#ifndef KVBM_STORAGE_DISK_PREAD_H
#define KVBM_STORAGE_DISK_PREAD_H

#include "storage/disk_io.h"

/* 0; -ENOMEM; -EAGAIN or another error of the system (no thread could be started). */
int kvbm_disk_pread_open(struct kvbm_disk_io **io, const struct kvbm_disk_io_options *options);

#endif
