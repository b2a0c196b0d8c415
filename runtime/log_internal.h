/*
 * log_internal.h - lets the reactor say, in a panic, what was running on the panicking thread.
 */
#ifndef KVBM_RUNTIME_LOG_INTERNAL_H
#define KVBM_RUNTIME_LOG_INTERNAL_H

#include <stddef.h>

/* Writes into text[size) what the calling thread is doing; an empty string for nothing. Takes no locks. */
typedef void (*kvbm__panic_describe_fn)(char *text, size_t size);

/* One for the process. */
void kvbm__panic_describe_set_mt(kvbm__panic_describe_fn describe);

#endif
