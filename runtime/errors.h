/*
 * errors.h - every error code of the library, in one X-macro.
 *
 * Functions return 0 (or a count) on success and a negative value on failure: either -errno, or -KVBM_E<NAME> for what
 * errno has no word for. KVBM_E* values start at 2001, above every errno. This header is public (kvbm.h includes it)
 * and includes nothing of ours. Thread: any.
 */
#ifndef KVBM_RUNTIME_ERRORS_H
#define KVBM_RUNTIME_ERRORS_H

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, value, text) */
#define KVBM_ERROR_LIST(X)                                                                                             \
    X(NOBLOCKS, 2001, "not enough free or evictable blocks")                                                           \
    X(STALE, 2002, "the block handle is no longer valid: its block was released, registered or evicted")               \
    X(NOTOWNED, 2003, "the block is owned by an operation in flight")                                                  \
    X(INCOMPLETE, 2004, "the block is not complete: its tokens do not fill a page")                                    \
    X(IMMUTABLE, 2005, "the block is registered, hence immutable")                                                     \
    X(MUTABLE, 2006, "the block is mutable: register it first")                                                        \
    X(CLOSED, 2007, "the manager is closed")                                                                           \
    X(FORKED, 2008, "the manager belongs to the parent process: a forked child cannot use it")                         \
    X(GEOMETRY, 2009, "the block geometry is invalid or overflows")                                                    \
    X(WRONGMANAGER, 2010, "the block belongs to another manager, group or tier")                                       \
    X(NOBYTES, 2011, "the manager keeps no bytes (bookkeeping only)")                                                  \
    X(SHUTDOWN, 2012, "the operation was ended by the shutdown of its manager")                                        \
    X(LEASES, 2013, "too many leases on one block")                                                                    \
    X(DUPLICATE, 2014, "the same block appears twice in one request")                                                  \
    X(SHED, 2015, "the device is behind: the write was dropped")                                                       \
    X(DEGRADED, 2016, "the tier refuses work after errors of its device, until a probe succeeds")                      \
    X(CORRUPT, 2017, "stored bytes fail their checksum")                                                               \
    X(FOREIGN, 2018, "the file belongs to another namespace, version, geometry or stripe set")                         \
    X(LOCKED, 2019, "the file is in use by another process")

enum kvbm_error {
#define X(name, value, text) KVBM_E##name = value,
    KVBM_ERROR_LIST(X)
#undef X
};

/* Short name of a (positive or negative) code: "KVBM_ENOBLOCKS", "EAGAIN"; "EUNKNOWN" where there is none. Static. */
const char *kvbm_error_name_mt(int code);
/* One sentence for a (positive or negative) code. Static storage. */
const char *kvbm_error_text_mt(int code);

#ifdef __cplusplus
}
#endif
#endif
