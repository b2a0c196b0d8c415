/*
 * native_internal.h - what the Python half of the extension shares: the module's state, its object structs, its
 * functions.
 *
 * Every function here needs the GIL. Functions that return PyObject * return a new reference, or NULL with an exception
 * set; functions that return int return 0, or -1 with an exception set, unless they say otherwise.
 *
 * Only the limited API of CPython 3.11 is used. Objects hold no reference to the Python manager: they reference the
 * native core, so a list outlives its manager, and no cycle can pass through a block.
 */
#ifndef KVBM_PYTHON_NATIVE_INTERNAL_H
#define KVBM_PYTHON_NATIVE_INTERNAL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "python/native/shared_internal.h"

#if !defined(Py_LIMITED_API) || Py_LIMITED_API + 0 != 0x030B0000
#error "the extension is built for the limited API of CPython 3.11"
#endif

#define PYK_DTYPE_COUNT 8 /* indexed by enum kvbm_dtype */

/* X(field, Python name, bases, doc): exceptions in the order in which they are made. */
#define PYK_EXCEPTION_LIST(X)                                                                                          \
    X(kvbm_error, "KvbmError", BASE_EXCEPTION, "Base of every error of this package.")                                 \
    X(manager_error, "BlockManagerError", BASE_KVBM,                                                                   \
      "A block operation failed.\n\n`code` is the C name of the reason, e.g. \"KVBM_ENOBLOCKS\".")                     \
    X(storage_error, "StorageError", BASE_KVBM,                                                                        \
      "Memory or another store could not be had or used; `code` is the C name of the reason.")                         \
    X(out_of_blocks, "OutOfBlocksError", BASE_MANAGER,                                                                 \
      "Fewer blocks are free or evictable (`available`) than were asked for (`requested`).")                           \
    X(invalid_argument, "InvalidArgumentError", BASE_VALUE,                                                            \
      "An argument is out of range; the text names it and says what is allowed.")                                      \
    X(block_state, "BlockStateError", BASE_MANAGER,                                                                    \
      "The block is not in a state that allows this (released, immutable, incomplete, in an operation).")              \
    X(stale_block, "StaleBlockError", BASE_STATE,                                                                      \
      "The block was released or registered; this object no longer holds it.")                                         \
    X(immutable_block, "ImmutableBlockError", BASE_STATE, "The block is registered, hence read-only.")                 \
    X(incomplete_block, "IncompleteBlockError", BASE_STATE, "The tokens do not fill the block's page.")                \
    X(wrong_manager, "WrongManagerError", BASE_MANAGER, "The block belongs to another manager, pool or geometry.")     \
    X(closed, "ClosedError", BASE_MANAGER, "The manager is closed, or closed while the operation was in flight.")      \
    X(forked, "ForkedError", BASE_MANAGER, "The manager belongs to the parent of this forked process.")                \
    X(operation_timeout, "OperationTimeoutError", BASE_TIMEOUT,                                                        \
      "The operation's deadline passed; nothing was changed.")                                                         \
    X(overloaded, "OverloadedError", BASE_MANAGER,                                                                     \
      "Every operation slot is in use (plain face only; the asyncio face waits for one).")

/* X(field, Python name) of the types, in the order in which they are made. */
#define PYK_TYPE_LIST(X)                                                                                               \
    X(dtype, "DType")                                                                                                  \
    X(hashes, "SequenceHashes")                                                                                        \
    X(layer, "Layer")                                                                                                  \
    X(block, "Block")                                                                                                  \
    X(list, "BlockList")                                                                                               \
    X(operation, "Operation")                                                                                          \
    X(pool, "BlockPool")                                                                                               \
    X(manager, "BlockManager")                                                                                         \
    X(async_pool, "AsyncBlockPool")                                                                                    \
    X(async_manager, "AsyncBlockManager")                                                                              \
    X(bridge, NULL)

struct pyk_bridge_object;

extern PyModuleDef pyk_module_def;

struct pyk_state {
#define X(field, name, bases, doc) PyObject *field;
    struct {
        PYK_EXCEPTION_LIST(X)
    } errors;
#undef X
#define X(field, name) PyTypeObject *field;
    struct {
        PYK_TYPE_LIST(X)
    } types;
#undef X
    PyObject *dtypes[PYK_DTYPE_COUNT];
    PyObject *get_running_loop, *logger;
    PyObject *str_create_future, *str_set_result, *str_blocking, *str_add_reader, *str_log, *str_close;
    PyObject *str_call_later, *str_cancel, *str_run_in_executor, *str_result, *str_dlpack, *str_dlpack_device;
    struct pyk_bridge_object *bridges; /* of live loops, the last used first; they take themselves out */
};

/* The state of an instance of one of the extension's final types. */
static inline struct pyk_state *pyk_state_of(PyObject *self) {
    return PyType_GetModuleState(Py_TYPE(self));
}

/* ---------------------------------------------------------------------------------------------------------- objects */

struct pyk_manager_object {
    PyObject_HEAD struct pyk_state *state;
    struct pyk_core *core; /* NULL until __init__ has succeeded */
    PyObject *dtype;
    PyObject *weak_references;
    bool is_async;
};

struct pyk_pool_object {
    PyObject_HEAD struct pyk_state *state;
    struct pyk_manager_object *manager;
    PyObject *weak_references;
    int tier;
};

struct pyk_block_object {
    PyObject_HEAD struct pyk_holder *holder;
    PyObject *weak_references;
};

struct pyk_layer_object {
    PyObject_HEAD struct pyk_holder *holder;
    uint32_t layer;
};

#define PYK_FEW 8

/* Two forms. Bulk: `chunk` and `holders` are NULL and the list owns `handles`. Spread, from the first index, slice or
 * registration on: each element is an owner of a holder, in `chunk` (the list's own) or `holders` (a slice or a sum).
 */
struct pyk_list_object {
    PyObject_HEAD struct pyk_core *core;
    Py_ssize_t count;
    bool released;
    kvbm_block *handles;
    struct pyk_chunk *chunk;
    struct pyk_holder **holders;
    PyObject **blocks;     /* Block objects made so far */
    bool *duplicates;      /* bulk form of a registration that met some */
    struct pyk_keys *keys; /* of all elements and perhaps more, when known */
    PyObject *weak_references;
    kvbm_block few[PYK_FEW];
};

struct pyk_hashes_object {
    PyObject_HEAD struct pyk_keys *keys;
    uint64_t start;
    Py_ssize_t count;
    Py_hash_t hash; /* -1: not computed yet */
};

/* --------------------------------------------------------------------------------------------------------- errors.c */

int pyk_errors_init(PyObject *module, struct pyk_state *state);
/* Raises `type` (an exception class of ours) with .code. Always returns -1. */
int pyk_raise(PyObject *type, int code, const char *format, ...);
/* InvalidArgumentError. */
int pyk_raise_argument(struct pyk_state *state, const char *format, ...);
/* The exception for a negative status of the C API; `what` is the call ("allocate_blocks"). Drains the log ring. */
int pyk_raise_status(struct pyk_state *state, const char *what, int status);
/* As raise_status for an operation's completion, with its numbers. */
int pyk_raise_completion(struct pyk_state *state, const struct pyk_request *request, const char *what);
int pyk_raise_hold(struct pyk_state *state, const char *what, uint32_t hold);

/* ------------------------------------------------------------------------------------------------------ arguments.c */

#define PYK_ARGUMENT_MAX 12

/* A function's parameters: `names` has count of them and the last is NULL; the first `positional` may be given by
 * position, the first `required` must be given. */
struct pyk_signature {
    const char *function;
    const char *const *names;
    Py_ssize_t count, positional, required;
};

/* Borrowed references into values[count], NULL for what was not given. */
int pyk_arguments(const struct pyk_signature *signature, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords,
                  PyObject **values);
int pyk_arguments_tuple(const struct pyk_signature *signature, PyObject *args, PyObject *keywords, PyObject **values);
/* TypeError "NAME: must be WANTED, not <the value's type>". Returns -1. */
int pyk_raise_type(PyObject *value, const char *name, const char *wanted);
/* An int (not a bool; __index__ counts) in low .. high. TypeError or InvalidArgumentError, naming the argument. */
int pyk_argument_uint(struct pyk_state *state, PyObject *value, const char *name, uint64_t low, uint64_t high,
                      uint64_t *result);
int pyk_argument_bool(PyObject *value, const char *name, bool *result);
/* Seconds: None (`*forever`), or a finite number in 0 .. 10^9, rounded up to nanoseconds. */
int pyk_argument_seconds(struct pyk_state *state, PyObject *value, const char *name, bool none_allowed, uint64_t *ns,
                         bool *forever);
/* Salt as bytes that the caller frees (malloc): None: none; bytes; str: UTF-8; int: 8 bytes, little-endian. */
int pyk_argument_salt(struct pyk_state *state, PyObject *value, void **salt, uint64_t *count);
/* A sequence hash: bytes of length 16. */
int pyk_argument_key(struct pyk_state *state, PyObject *value, const char *name, kvbm_key *key);
/* Sequence hashes: SequenceHashes, a buffer of n * 16 bytes or a sequence of 16-byte objects. A new reference. */
struct pyk_keys *pyk_argument_keys(struct pyk_state *state, PyObject *value, const char *name);

/* Token ids: a buffer of 32-bit ones as it is, else a converted copy. */
struct pyk_tokens {
    const uint32_t *tokens;
    uint64_t count;
    Py_buffer buffer;
    bool has_buffer;
    uint32_t *copy;
};
int pyk_tokens_get(struct pyk_state *state, PyObject *value, const char *name, struct pyk_tokens *tokens);
void pyk_tokens_free(struct pyk_tokens *tokens);

/* --------------------------------------------------------------------------------------------- types, one file each */

PyTypeObject *pyk_dtype_type(PyObject *module);
int pyk_dtype_members(struct pyk_state *state);
int pyk_dtype_value(PyObject *dtype);
PyTypeObject *pyk_hashes_type(PyObject *module);
PyObject *pyk_hashes_new(struct pyk_state *state, struct pyk_keys *keys, uint64_t start,
                         uint64_t count); /* steals keys */
PyObject *pyk_hash_tokens(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords);
extern const char pyk_hash_tokens_doc[];

PyTypeObject *pyk_layer_type(PyObject *module);
PyTypeObject *pyk_block_type(PyObject *module);
/* A Block of a holder; adds an owner. */
PyObject *pyk_block_new(struct pyk_state *state, struct pyk_holder *holder);

PyTypeObject *pyk_list_type(PyObject *module);
/* An empty list with room for `count` handles at ->handles; set ->count to take ownership of the first of them. */
struct pyk_list_object *pyk_list_new(struct pyk_state *state, struct pyk_core *core, uint64_t count);
/* The result of a settled request: takes its handles, which are gone from it afterwards even on failure. */
PyObject *pyk_list_from_request(struct pyk_state *state, struct pyk_request *request);
/* Spreads a bulk list. */
int pyk_list_spread(struct pyk_list_object *list);
struct pyk_holder *pyk_list_holder(struct pyk_list_object *list, Py_ssize_t index); /* borrowed, of a spread list */
void pyk_list_release_all(struct pyk_list_object *list);

PyObject *pyk_dlpack_export(PyObject *self, struct pyk_holder *holder, int64_t layer, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *keywords); /* layer -1: the whole block */
PyObject *pyk_dlpack_import(PyObject *self, struct pyk_holder *holder, int64_t layer, PyObject *source);
PyObject *pyk_dlpack_device(PyObject *self, PyObject *unused);
/* shape[4], strides[4] in elements; returns the number of axes. */
int pyk_block_geometry(const struct pyk_holder *holder, int64_t layer, int64_t *shape, int64_t *strides);
/* The holder must be HELD: else StaleBlockError or BlockStateError. */
int pyk_holder_check(struct pyk_state *state, const struct pyk_holder *holder, const char *what);

PyTypeObject *pyk_manager_type(PyObject *module);
PyTypeObject *pyk_async_manager_type(PyObject *module);
PyTypeObject *pyk_pool_type(PyObject *module);
PyTypeObject *pyk_async_pool_type(PyObject *module);
PyObject *pyk_pool_new(struct pyk_manager_object *manager, int tier);
PyObject *pyk_pool_stats_dict(struct pyk_state *state, struct pyk_core *core, int tier);

/* The operations, by self (a manager or a pool). */
PyObject *pyk_allocate_from(struct pyk_state *state, struct pyk_core *core, int tier, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *keywords);
struct pyk_request *pyk_allocate_request(struct pyk_state *state, struct pyk_core *core, int tier,
                                         PyObject *const *args, Py_ssize_t nargs, PyObject *keywords);
struct pyk_request *pyk_register_request(struct pyk_state *state, struct pyk_core *core, int tier,
                                         PyObject *const *args, Py_ssize_t nargs, PyObject *keywords);
struct pyk_request *pyk_keys_request(struct pyk_state *state, struct pyk_core *core, int kind, int tier,
                                     PyObject *const *args, Py_ssize_t nargs, PyObject *keywords);
/* Runs a request to its end, the GIL released while it waits; frees the request. */
PyObject *pyk_request_run(struct pyk_state *state, struct pyk_request *request);
/* The result of a completed request, or its exception. Settles and frees it. */
PyObject *pyk_request_result(struct pyk_state *state, struct pyk_request *request);
/* Waits for an operation submitted without port and callback; on an interrupt it is cancelled and waited for: -1 and
 * the exception is set, *completion filled in any case. */
int pyk_wait(struct pyk_core *core, kvbm_op id, kvbm_completion *completion);
const char *pyk_request_name(const struct pyk_request *request);
/* The exception of a submit that was not accepted. */
int pyk_raise_submit(struct pyk_state *state, const struct pyk_request *request, int status,
                     const kvbm_failure *failure);

/* ---------------------------------------------------------------------------------------------- operation.c, loop.c */

/* NEW -> PENDING -> COMPLETED -> DONE is the long way. CREDIT: not submitted yet for want of a slot. READY: made with
 * its result. CLOSE -> CLOSING: closes the manager in an executor. */
enum pyk_operation_state {
    PYK_OP_NEW,
    PYK_OP_CREDIT,
    PYK_OP_PENDING,
    PYK_OP_COMPLETED,
    PYK_OP_READY,
    PYK_OP_CLOSE,
    PYK_OP_CLOSING,
    PYK_OP_DONE
};

struct pyk_operation_object {
    PyObject_HEAD struct pyk_state *module;
    struct pyk_request *request;
    PyObject *owner; /* the manager that it belongs to */
    struct pyk_bridge_object
        *bridge; /* while CREDIT or PENDING; borrowed: a bridge that goes abandons its operations */
    PyObject *future;
    PyObject *timer;
    PyObject *result; /* READY: the result; CLOSE: the timeout; in_context: what __aexit__ will release */
    PyObject *weak_references;
    struct pyk_operation_object *next, *previous; /* in the bridge's line */
    const char *name;                             /* of the call that made it */
    enum pyk_operation_state state;
    int submit_status; /* COMPLETED: negative if it could never be submitted */
    bool in_context;   /* the result stays in `result`, for __aexit__ */
};

PyTypeObject *pyk_operation_type(PyObject *module);
/* Steals the request. */
PyObject *pyk_operation_new(struct pyk_state *state, PyObject *owner, struct pyk_request *request);
/* Already answered with `result` (stolen). */
PyObject *pyk_operation_ready(struct pyk_state *state, PyObject *result);
/* Awaits manager._close(timeout) in the loop's executor. */
PyObject *pyk_operation_close(struct pyk_state *state, PyObject *owner, PyObject *timeout); /* NULL: the default */

struct pyk_line {
    struct pyk_operation_object *first, *last;
};

/* One for each running loop: its port, and the operations that wait for it. */
struct pyk_bridge_object {
    PyObject_HEAD struct pyk_state *module;
    PyObject *loop; /* NULL once shut */
    kvbm_port *port;
    struct pyk_line pending; /* in flight; strong references */
    struct pyk_line credit;  /* refused with -EAGAIN, in order; strong references */
    bool polls;              /* a timer will look at `credit`, since no credit could be asked for */
    struct pyk_bridge_object *next;
};

PyTypeObject *pyk_bridge_type(PyObject *module);
/* The running loop; RuntimeError where there is none. */
PyObject *pyk_loop_running(struct pyk_state *state);
/* The bridge of the running loop, borrowed from that loop; NULL with RuntimeError where there is none. */
struct pyk_bridge_object *pyk_bridge_running(struct pyk_state *state);
/* Asks for a credit for the first waiting operations of `core`. 0 or a negative status; no exception. */
int pyk_bridge_want_credit(struct pyk_bridge_object *bridge, struct pyk_core *core);
bool pyk_bridge_waits(const struct pyk_bridge_object *bridge, const struct pyk_core *core);
void pyk_line_add(struct pyk_line *line, struct pyk_operation_object *operation);    /* takes a new reference */
void pyk_line_remove(struct pyk_line *line, struct pyk_operation_object *operation); /* drops it */
/* Called by the bridge: the request has completed (or failed: an exception is raised when it is resumed). */
void pyk_operation_completed(struct pyk_operation_object *operation);
/* Called by the bridge on a credit: submits again. False: still -EAGAIN. */
bool pyk_operation_retry(struct pyk_operation_object *operation);
/* Called by a bridge that shuts: the operation is abandoned. */
void pyk_operation_abandon(struct pyk_operation_object *operation);

/* ------------------------------------------------------------------------------------------------------------ log.c */

/* kvbm_log_callback: pushes into the process-wide ring. Any thread, no GIL. */
void pyk_log_push(void *user, int level, const char *component, const char *text);
/* Emits what is in the ring through logging; keeps the current exception. */
void pyk_log_drain(struct pyk_state *state);
bool pyk_log_waiting(void);
/* The level that the C side shall log at: what the Python logger lets through. */
int pyk_log_level(struct pyk_state *state);

#endif
