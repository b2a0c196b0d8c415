/*
 * refusing_os.h - the real table of OS functions, with calls that can be refused, and with an account of what is open.
 *
 * One thread, that of the test; what it starts may use the clock only. Zero all fields but those wanted, then init.
 */
#ifndef KVBM_TESTS_SUPPORT_REFUSING_OS_H
#define KVBM_TESTS_SUPPORT_REFUSING_OS_H

#include <stdint.h>

#include "runtime/os.h"

struct refusing_os {
    struct kvbm_os os; /* give &os on; set by init */
    /* What to refuse. */
    uint32_t map_refuse_at;     /* the map call of this number, from 1, fails with -ENOMEM; 0: none */
    unsigned map_flags_refused; /* maps that ask for one of these fail with -EPERM */
    unsigned map_flags_ignored; /* taken out before the real map, so that they are not honoured */
    uint32_t
        thread_refuse_from; /* the thread_start of this number, from 1, and all later ones fail with -EAGAIN; 0: none */
    int bind_result;        /* what bind_node returns; it binds nothing */
    const uint64_t *random; /* random_u64 answers these in turn, then the real ones; NULL: real ones */
    uint32_t random_count;
    /* The account. */
    uint32_t map_count, refused_count, open_maps, thread_count, open_threads, bind_count, random_used;
    uint64_t open_bytes, bind_bytes;
    int bind_node;
};

void refusing_os_init(struct refusing_os *r);

#endif
