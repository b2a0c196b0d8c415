/*
 * dies.h - whether a call ends the process by an assertion: for tests of what programming errors get, where Check does
 * not fork (CK_FORK=no). The test must have one thread.
 */
#ifndef KVBM_TESTS_SUPPORT_DIES_H
#define KVBM_TESTS_SUPPORT_DIES_H

#include <stdbool.h>

/* Calls fn(arg) in a forked child with standard error closed; true if SIGABRT ended it. */
bool dies(void (*fn)(void *arg), void *arg);

#endif
