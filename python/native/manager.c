/*
 * manager.c - BlockManager and its asyncio twin: opening, closing, statistics. Both are one struct with other methods.
 *
 * The object that opened a manager closes it when it is dropped, the GIL released, and then lets go of its core
 * reference: lists, blocks and tensors may live on, and the last of them frees the memory. A close that runs into its
 * limit keeps the reference for ever: better leaked (and logged) than freed under something that still writes.
 */
#include "python/native/native_internal.h"
#include "storage/memory.h"

#include <structmember.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_HOST_BYTES (UINT64_C(1) << 30)
#define CLOSE_LIMIT_NS     UINT64_C(30000000000)

static struct pyk_manager_object *self_of(PyObject *self) {
    return (struct pyk_manager_object *)self;
}

/* NULL with an exception before a successful __init__. */
static struct pyk_core *core_of(PyObject *self) {
    struct pyk_core *core = self_of(self)->core;
    if (core == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "BlockManager.__init__ has not been called, or failed");
    }
    return core;
}

/* ------------------------------------------------------------------------------------------------------------- open */

enum {
    A_LAYERS,
    A_PAGE,
    A_INNER,
    A_DTYPE,
    A_DEVICE,
    A_OUTER,
    A_HOST,
    A_LAYOUT,
    A_ALIGNMENT,
    A_POLICY,
    A_BYTES,
    A_TOKENS,
    A_HUGE,
    A_NUMA,
    A_TOUCH,
    A_OPERATIONS,
    A_BORROW,
    A_NAME,
    A_COUNT
};

/* What __init__ was given, checked. */
struct opening {
    kvbm_options options;
    kvbm_group_options group;
    PyObject *dtype;
    char name[16];
};

static int uint32_in(struct pyk_state *state, PyObject *value, const char *name, uint64_t low, uint64_t high,
                     uint32_t *result) {
    uint64_t wide;
    if (value == NULL) {
        return 0;
    }
    if (pyk_argument_uint(state, value, name, low, high, &wide) < 0) {
        return -1;
    }
    *result = (uint32_t)wide;
    return 0;
}

/* Index of a str among choices; -1 with an exception. NULL: `index` stays. */
static int choice(struct pyk_state *state, PyObject *value, const char *name, const char *const *choices, int *index) {
    if (value == NULL) {
        return 0;
    }
    if (!PyUnicode_Check(value)) {
        return pyk_raise_type(value, name, "a str");
    }
    for (int i = 0; choices[i] != NULL; i++) {
        if (PyUnicode_CompareWithASCIIString(value, choices[i]) == 0) {
            *index = i;
            return 0;
        }
    }
    return pyk_raise_argument(state, "%s: must be \"%s\", \"%s\" or \"%s\", not %R", name, choices[0], choices[1],
                              choices[2], value);
}

static int flag(PyObject *value, const char *name, uint32_t bit, bool when, uint32_t *flags) {
    bool set = !when;
    if (value != NULL && pyk_argument_bool(value, name, &set) < 0) {
        return -1;
    }
    *flags |= set == when ? bit : 0;
    return 0;
}

static int parse_geometry(struct pyk_state *state, PyObject *const *values, struct opening *opening) {
    static const char *const forms[] = {"contiguous", "layer_block", "layer_outer", NULL};
    struct kvbm_geometry *geometry = &opening->group.geometry;
    uint64_t alignment = 0;
    uint32_t device = 0;
    int form = 0;
    opening->dtype =
        values[A_DTYPE] == NULL || values[A_DTYPE] == Py_None ? state->dtypes[KVBM_DTYPE_FP16] : values[A_DTYPE];
    geometry->outer_dim = 2;
    if (Py_TYPE(opening->dtype) != state->types.dtype) {
        return pyk_raise_type(opening->dtype, "dtype", "a dynamo_llm.DType");
    }
    if (uint32_in(state, values[A_LAYERS], "num_layers", 1, 65536, &geometry->num_layers) < 0 ||
        uint32_in(state, values[A_PAGE], "page_size", 1, 65536, &geometry->page_size) < 0 ||
        uint32_in(state, values[A_INNER], "inner_dim", 1, 1u << 24, &geometry->inner_dim) < 0 ||
        uint32_in(state, values[A_OUTER], "outer_dim", 1, 2, &geometry->outer_dim) < 0 ||
        uint32_in(state, values[A_DEVICE], "device_id", 0, INT32_MAX, &device) < 0 ||
        choice(state, values[A_LAYOUT], "layout", forms, &form) < 0) {
        return -1;
    }
    if (values[A_ALIGNMENT] != NULL) {
        if (pyk_argument_uint(state, values[A_ALIGNMENT], "alignment", 0, 1u << 21, &alignment) < 0) {
            return -1;
        }
        if ((alignment & (alignment - 1)) != 0) {
            return pyk_raise_argument(state, "alignment: must be 0 (the layout's default) or a power of two, not %llu",
                                      (unsigned long long)alignment);
        }
    }
    geometry->dtype = pyk_dtype_value(opening->dtype);
    geometry->form = KVBM_LAYOUT_FULLY_CONTIGUOUS + form;
    geometry->alignment = alignment;
    return 0;
}

/* As many as fit 1 GiB and an eighth of the available memory, at least 1. */
static int default_host_blocks(struct pyk_state *state, struct opening *opening) {
    struct kvbm_layout layout;
    const char *why = "?";
    int status = kvbm_layout_init(&layout, &opening->group.geometry, 1, &why);
    if (status < 0) {
        return pyk_raise(state->errors.invalid_argument, status, "BlockManager: %s", why);
    }
    struct kvbm_memory memory;
    kvbm_memory_read("", &memory);
    uint64_t bytes = DEFAULT_HOST_BYTES;
    if (memory.available_bytes != KVBM_MEMORY_UNKNOWN && memory.available_bytes / 8 < bytes) {
        bytes = memory.available_bytes / 8;
    }
    uint64_t blocks = bytes / layout.total_bytes;
    opening->group.host_blocks = blocks == 0 ? 1 : blocks > KVBM_SLOT_COUNT_MAX ? KVBM_SLOT_COUNT_MAX : blocks;
    return 0;
}

static int text(struct pyk_state *state, PyObject *value, const char *name, const char **result) {
    Py_ssize_t size;
    if (value == NULL) {
        return 0;
    }
    if (!PyUnicode_Check(value)) {
        return pyk_raise_type(value, name, "a str");
    }
    *result = PyUnicode_AsUTF8AndSize(value, &size);
    if (*result != NULL && strlen(*result) != (size_t)size) {
        return pyk_raise_argument(state, "%s: must not contain a NUL character, not %R", name, value);
    }
    return *result == NULL ? -1 : 0;
}

static int parse_options(struct pyk_state *state, PyObject *const *values, struct opening *opening) {
    static const char *const huge[] = {"try", "off", "require", NULL};
    kvbm_options *options = &opening->options;
    const char *name = "kvbm";
    uint32_t numa = 0;
    options->max_operations = 16384;
    if (flag(values[A_BYTES], "bytes", KVBM_OPEN_NO_BYTES, false, &options->flags) < 0 ||
        flag(values[A_TOKENS], "track_tokens", KVBM_OPEN_TRACK_TOKENS, true, &options->flags) < 0 ||
        flag(values[A_BORROW], "borrow", KVBM_OPEN_NO_BORROW, false, &options->flags) < 0 ||
        choice(state, values[A_HUGE], "huge_pages", huge, &options->huge_pages) < 0 ||
        text(state, values[A_POLICY], "policy", &opening->group.policy) < 0 ||
        text(state, values[A_NAME], "name", &name) < 0 ||
        uint32_in(state, values[A_OPERATIONS], "max_operations", 16, 1u << 20, &options->max_operations) < 0) {
        return -1;
    }
    if (values[A_TOKENS] == NULL) {
        options->flags |= KVBM_OPEN_TRACK_TOKENS;
    }
    if (strlen(name) >= sizeof opening->name || name[0] == '\0') {
        return pyk_raise_argument(state, "name: must be 1 .. 15 bytes, not %R", values[A_NAME]);
    }
    memcpy(opening->name, name, strlen(name) + 1);
    if (values[A_NUMA] != NULL && values[A_NUMA] != Py_None) {
        if (uint32_in(state, values[A_NUMA], "numa_node", 0, 1023, &numa) < 0) {
            return -1;
        }
        options->numa_node = (int)numa + 1;
    }
    if (values[A_TOUCH] != NULL && values[A_TOUCH] != Py_None) {
        if (uint32_in(state, values[A_TOUCH], "touch_threads", 0, 256, &options->touch_threads) < 0) {
            return -1;
        }
        options->touch_threads = options->touch_threads == 0 ? UINT32_MAX : options->touch_threads;
    }
    return 0;
}

static int parse(struct pyk_state *state, PyObject *args, PyObject *keywords, struct opening *opening) {
    static const char *const names[] = {"num_layers",     "page_size",    "inner_dim",  "dtype",     "device_id",
                                        "outer_dim",      "host_blocks",  "layout",     "alignment", "policy",
                                        "bytes",          "track_tokens", "huge_pages", "numa_node", "touch_threads",
                                        "max_operations", "borrow",       "name",       NULL};
    static const struct pyk_signature signature = {"BlockManager", names, A_COUNT, 5, 3};
    PyObject *values[A_COUNT];
    if (pyk_arguments_tuple(&signature, args, keywords, values) < 0) {
        return -1;
    }
    memset(opening, 0, sizeof *opening);
    opening->options.size = sizeof opening->options;
    opening->group.size = sizeof opening->group;
    opening->options.group_count = 1;
    if (parse_geometry(state, values, opening) < 0 || parse_options(state, values, opening) < 0) {
        return -1;
    }
    if (values[A_HOST] == NULL || values[A_HOST] == Py_None) {
        return default_host_blocks(state, opening);
    }
    return pyk_argument_uint(state, values[A_HOST], "host_blocks", 1, KVBM_SLOT_COUNT_MAX, &opening->group.host_blocks);
}

static int raise_open(struct pyk_state *state, int status, const kvbm_failure *failure) {
    PyObject *type = status == -EINVAL || status == -KVBM_EGEOMETRY ? state->errors.invalid_argument
                     : status == -KVBM_EFORKED                      ? state->errors.forked
                                                                    : state->errors.storage_error;
    pyk_log_drain(state);
    return pyk_raise(type, status, "BlockManager: %s",
                     failure->text[0] != '\0' ? failure->text : kvbm_error_text_mt(status));
}

static int manager_init(PyObject *object, PyObject *args, PyObject *keywords) {
    struct pyk_manager_object *self = self_of(object);
    struct pyk_state *state = self->state;
    struct opening opening;
    kvbm_failure failure = {.size = sizeof failure};
    if (self->core != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "BlockManager.__init__ was called before");
        return -1;
    }
    if (parse(state, args, keywords, &opening) < 0) {
        return -1;
    }
    struct pyk_core *core = calloc(1, sizeof *core);
    if (core == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    atomic_init(&core->references, 1);
    opening.options.groups = &opening.group;
    opening.options.name = opening.name;
    opening.options.log_level = pyk_log_level(state);
    opening.options.log = pyk_log_push;
    memcpy(core->name, opening.name, sizeof core->name);
    int status;
    Py_BEGIN_ALLOW_THREADS status = kvbm_manager_open(&opening.options, &core->manager, &failure);
    Py_END_ALLOW_THREADS if (status < 0) {
        core->manager = NULL;
        pyk_core_release(core);
        return raise_open(state, status, &failure);
    }
    core->layout = *kvbm_manager_layout_mt(core->manager, 0, KVBM_TIER_HOST);
    core->element_bytes = kvbm_dtype_bytes_mt(core->layout.geometry.dtype);
    core->has_bytes = (opening.options.flags & KVBM_OPEN_NO_BYTES) == 0;
    core->tracks_tokens = (opening.options.flags & KVBM_OPEN_TRACK_TOKENS) != 0;
    core->inline_answers = (opening.options.flags & KVBM_OPEN_NO_BORROW) == 0;
    if (self->core != NULL) { /* another thread ran __init__ meanwhile */
        (void)kvbm_manager_close_mt(core->manager, CLOSE_LIMIT_NS);
        pyk_core_release(core);
        PyErr_SetString(PyExc_RuntimeError, "BlockManager.__init__ was called before");
        return -1;
    }
    self->core = core;
    self->dtype = Py_NewRef(opening.dtype);
    pyk_log_drain(state);
    return 0;
}

/* The module's state for `type` or the type of ours that it derives from. */
static struct pyk_state *state_of_type(PyTypeObject *type, bool *is_async) {
    while (type != NULL) {
        PyObject *module = (PyType_GetFlags(type) & Py_TPFLAGS_HEAPTYPE) != 0 ? PyType_GetModule(type) : NULL;
        if (module != NULL && PyModule_GetDef(module) == &pyk_module_def) {
            struct pyk_state *state = PyModule_GetState(module);
            *is_async = type == state->types.async_manager;
            return state;
        }
        PyErr_Clear();
        type = PyType_GetSlot(type, Py_tp_base);
    }
    PyErr_SetString(PyExc_SystemError, "not a BlockManager type");
    return NULL;
}

static PyObject *manager_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    (void)args;
    (void)keywords;
    bool is_async;
    struct pyk_state *state = state_of_type(type, &is_async);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *self = state == NULL ? NULL : alloc(type, 0);
    if (self != NULL) {
        self_of(self)->state = state;
        self_of(self)->is_async = is_async;
    }
    return self;
}

/* ------------------------------------------------------------------------------------------------------------ close */

static int close_core(struct pyk_core *core, uint64_t timeout_ns) {
    int status;
    Py_BEGIN_ALLOW_THREADS status = kvbm_manager_close_mt(core->manager, timeout_ns);
    Py_END_ALLOW_THREADS return status;
}

static void manager_dealloc(PyObject *object) {
    struct pyk_manager_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    if (self->core != NULL) {
        PyObject *error, *value, *traceback;
        PyErr_Fetch(&error, &value, &traceback);
        int status = close_core(self->core, CLOSE_LIMIT_NS);
        if (status == 0 || status == -KVBM_EFORKED) {
            pyk_core_release(self->core);
        }
        pyk_log_drain(self->state);
        PyErr_Restore(error, value, traceback);
    }
    Py_XDECREF(self->dtype);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static int manager_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT((PyObject *)Py_TYPE(self));
    return 0;
}

static int close_timeout(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords, PyObject **value,
                         uint64_t *ns) {
    static const char *const names[] = {"timeout", NULL};
    static const struct pyk_signature signature = {"close", names, 1, 1, 0};
    bool forever;
    *ns = CLOSE_LIMIT_NS;
    if (pyk_arguments(&signature, args, nargs, keywords, value) < 0) {
        return -1;
    }
    return *value == NULL ? 0 : pyk_argument_seconds(self_of(self)->state, *value, "timeout", false, ns, &forever);
}

static PyObject *manager_close(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    struct pyk_state *state = self_of(self)->state;
    struct pyk_core *core = core_of(self);
    PyObject *value;
    uint64_t ns;
    if (core == NULL || close_timeout(self, args, nargs, keywords, &value, &ns) < 0) {
        return NULL;
    }
    int status = close_core(core, ns);
    pyk_log_drain(state);
    if (status == -ETIMEDOUT) {
        pyk_raise(state->errors.operation_timeout, status, "close: the manager '%s' is still busy; call close again",
                  core->name);
    } else if (status < 0) {
        pyk_raise_status(state, "close", status);
    }
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *async_close(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    PyObject *value;
    uint64_t ns;
    if (core_of(self) == NULL || close_timeout(self, args, nargs, keywords, &value, &ns) < 0) {
        return NULL;
    }
    return pyk_operation_close(self_of(self)->state, self, value);
}

static PyObject *manager_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return core_of(self) == NULL ? NULL : Py_NewRef(self);
}

static PyObject *manager_exit(PyObject *self, PyObject *args) {
    (void)args;
    return manager_close(self, NULL, 0, NULL);
}

static PyObject *async_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return core_of(self) == NULL ? NULL : pyk_operation_ready(self_of(self)->state, Py_NewRef(self));
}

static PyObject *async_exit(PyObject *self, PyObject *args) {
    (void)args;
    return async_close(self, NULL, 0, NULL);
}

/* ------------------------------------------------------------------------------------------------------- statistics */

/* Steals the value. */
static int put(PyObject *dict, const char *name, PyObject *value) {
    int status = value == NULL ? -1 : PyDict_SetItemString(dict, name, value);
    Py_XDECREF(value);
    return status;
}

static int put_uint(PyObject *dict, const char *name, uint64_t value) {
    return put(dict, name, PyLong_FromUnsignedLongLong(value));
}

static PyObject *latency(const kvbm_latency *value) {
    return Py_BuildValue("{sKsKsKsKsKsKsK}", "count", (unsigned long long)value->count, "mean_ns",
                         (unsigned long long)value->mean_ns, "p50_ns", (unsigned long long)value->p50_ns, "p90_ns",
                         (unsigned long long)value->p90_ns, "p99_ns", (unsigned long long)value->p99_ns, "p999_ns",
                         (unsigned long long)value->p999_ns, "max_ns", (unsigned long long)value->max_ns);
}

#define STATS_FIELDS(X)                                                                                                \
    X(operations_in_flight)                                                                                            \
    X(operations_max)                                                                                                  \
    X(accepted_count)                                                                                                  \
    X(completed_count)                                                                                                 \
    X(cancelled_count)                                                                                                 \
    X(timed_out_count)                                                                                                 \
    X(refused_count)                                                                                                   \
    X(turn_count)                                                                                                      \
    X(message_count)                                                                                                   \
    X(borrow_count)                                                                                                    \
    X(borrow_lost_count)                                                                                               \
    X(wake_count)                                                                                                      \
    X(queue_depth)                                                                                                     \
    X(registry_entries)                                                                                                \
    X(tracked_bytes)                                                                                                   \
    X(slab_bytes)

static PyObject *manager_stats(PyObject *self, PyObject *unused) {
    (void)unused;
    struct pyk_state *state = self_of(self)->state;
    struct pyk_core *core = core_of(self);
    kvbm_stats stats = {.size = sizeof stats};
    if (core == NULL) {
        return NULL;
    }
    int status = kvbm_manager_stats_mt(core->manager, &stats);
    if (status < 0) {
        pyk_raise_status(state, "stats", status);
        return NULL;
    }
    PyObject *dict = PyDict_New();
    PyObject *pools = PyDict_New();
    int bad = dict == NULL || pools == NULL;
#define X(field) bad = bad || put_uint(dict, #field, stats.field) < 0;
    STATS_FIELDS(X)
#undef X
    bad = bad || put(dict, "allocate", latency(&stats.allocate)) < 0 ||
          put(dict, "registering", latency(&stats.registering)) < 0 || put(dict, "match", latency(&stats.match)) < 0 ||
          put(dict, "query", latency(&stats.query)) < 0 ||
          put(pools, "host", pyk_pool_stats_dict(state, core, KVBM_TIER_HOST)) < 0 ||
          PyDict_SetItemString(dict, "pools", pools) < 0;
    Py_XDECREF(pools);
    if (bad) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* ------------------------------------------------------------------------------------------------------- operations */

static PyObject *manager_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    struct pyk_core *core = core_of(self);
    return core == NULL ? NULL : pyk_allocate_from(self_of(self)->state, core, KVBM_TIER_HOST, args, nargs, keywords);
}

static PyObject *async_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    struct pyk_core *core = core_of(self);
    struct pyk_request *request =
        core == NULL ? NULL : pyk_allocate_request(self_of(self)->state, core, KVBM_TIER_HOST, args, nargs, keywords);
    return request == NULL ? NULL : pyk_operation_new(self_of(self)->state, self, request);
}

static PyObject *manager_device_pool(PyObject *self, PyObject *unused) {
    (void)unused;
    return core_of(self) == NULL ? NULL : Py_NewRef(Py_None);
}

static PyObject *manager_host_pool(PyObject *self, PyObject *unused) {
    (void)unused;
    return core_of(self) == NULL ? NULL : pyk_pool_new(self_of(self), KVBM_TIER_HOST);
}

#define GEOMETRY_GETTER(field)                                                                                         \
    static PyObject *get_##field(PyObject *self, void *unused) {                                                       \
        (void)unused;                                                                                                  \
        const struct pyk_core *core = core_of(self);                                                                   \
        return core == NULL ? NULL : PyLong_FromUnsignedLong(core->layout.geometry.field);                             \
    }
GEOMETRY_GETTER(num_layers)
GEOMETRY_GETTER(outer_dim)
GEOMETRY_GETTER(page_size)
GEOMETRY_GETTER(inner_dim)

static PyObject *get_dtype(PyObject *self, void *unused) {
    (void)unused;
    return core_of(self) == NULL ? NULL : Py_NewRef(self_of(self)->dtype);
}

static PyObject *get_block_bytes(PyObject *self, void *unused) {
    (void)unused;
    const struct pyk_core *core = core_of(self);
    return core == NULL ? NULL : PyLong_FromUnsignedLongLong(core->layout.payload_bytes);
}

static PyObject *get_closed(PyObject *self, void *unused) {
    (void)unused;
    const struct pyk_core *core = core_of(self);
    return core == NULL ? NULL : PyBool_FromLong(kvbm_manager_is_closed_mt(core->manager));
}

static PyObject *manager_repr(PyObject *self) {
    const struct pyk_core *core = self_of(self)->core;
    const char *face = self_of(self)->is_async ? "dynamo_llm.aio" : "dynamo_llm";
    if (core == NULL) {
        return PyUnicode_FromFormat("<%s.BlockManager, not initialised>", face);
    }
    return PyUnicode_FromFormat(
        "<%s.BlockManager '%s': %llu host blocks of %llu bytes, %s%s>", face, core->name,
        (unsigned long long)core->layout.block_count, (unsigned long long)core->layout.payload_bytes,
        kvbm_dtype_name_mt(core->layout.geometry.dtype), kvbm_manager_is_closed_mt(core->manager) ? ", closed" : "");
}

/* ------------------------------------------------------------------------------------------------------------ types */

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS
#define COMMON                                                                                                         \
    {"get_device_pool", manager_device_pool, METH_NOARGS,                                                              \
     "get_device_pool($self, /)\n--\n\nThe device (GPU) pool, None where there is no GPU."},                           \
        {"get_host_pool", manager_host_pool, METH_NOARGS, "get_host_pool($self, /)\n--\n\nThe host (CPU) pool."}, {    \
        "stats", manager_stats, METH_NOARGS,                                                                           \
            "stats($self, /)\n--\n\n"                                                                                  \
            "Counters and gauges by name: the fields of kvbm_stats, latencies as dicts, and \"pools\": {\"host\": "    \
            "{...}}."                                                                                                  \
    }
#define ALLOCATE_TEXT                                                                                                  \
    "allocate_blocks($self, count, *, timeout=0.0)\n--\n\n"                                                            \
    "Takes `count` mutable blocks, all or none, from the device pool where there is one, else the host pool.\n\n"      \
    "count: 1 .. 1048576. timeout: seconds to wait in line while there are too few; 0: do not wait; None: no limit.\n"
#define CLOSE_TEXT                                                                                                     \
    "close($self, timeout=30.0)\n--\n\n"                                                                               \
    "Refuses new operations, ends pending ones with ClosedError, stops the manager's thread. Blocks still held stay\n" \
    "readable. Idempotent. OperationTimeoutError after `timeout` seconds: call it again."

static PyMethodDef plain_methods[] = {
    COMMON,
    {"allocate_blocks", FAST(manager_allocate),
     ALLOCATE_TEXT "Returns a BlockList; drop it (or its blocks) to give them back.\n"
                   "OutOfBlocksError (.requested, .available), OperationTimeoutError, ClosedError, OverloadedError."},
    {"close", FAST(manager_close), CLOSE_TEXT},
    {"__enter__", manager_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nThe manager itself."},
    {"__exit__", manager_exit, METH_VARARGS, "__exit__($self, t, v, tb, /)\n--\n\nCloses the manager."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef async_methods[] = {
    COMMON,
    {"allocate_blocks", FAST(async_allocate),
     ALLOCATE_TEXT "Await it for a BlockList, or `async with` it.\n"
                   "OutOfBlocksError (.requested, .available), OperationTimeoutError, ClosedError."},
    {"close", FAST(async_close), CLOSE_TEXT "\nAwait it; the wait happens in the loop's executor."},
    {"_close", FAST(manager_close), "_close($self, timeout=30.0)\n--\n\nAs close, blocking."},
    {"__aenter__", async_enter, METH_NOARGS, "__aenter__($self, /)\n--\n\nThe manager itself, awaited."},
    {"__aexit__", async_exit, METH_VARARGS, "__aexit__($self, t, v, tb, /)\n--\n\nCloses the manager, awaited."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"num_layers", get_num_layers, NULL, "Layers of a block.", NULL},
    {"outer_dim", get_outer_dim, NULL, "2 (keys, values) or 1 (MLA).", NULL},
    {"page_size", get_page_size, NULL, "Tokens of a block.", NULL},
    {"inner_dim", get_inner_dim, NULL, "Elements of a token, layer and outer dimension.", NULL},
    {"dtype", get_dtype, NULL, "Element type, a DType.", NULL},
    {"block_bytes", get_block_bytes, NULL, "Payload bytes of one block.", NULL},
    {"closed", get_closed, NULL, "True once close was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyk_manager_object, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

#define DOC(face, example)                                                                                             \
    "BlockManager(num_layers, page_size, inner_dim, dtype=None, device_id=0, *, outer_dim=2, host_blocks=None, "       \
    "layout='contiguous', alignment=0, policy='prefix', bytes=True, track_tokens=True, huge_pages='try', "             \
    "numa_node=None, touch_threads=None, max_operations=16384, borrow=True, name='kvbm')\n--\n\n"                      \
    "Manages KV cache blocks, " face ".\n\n" example "\n\n"                                                            \
    "num_layers, page_size (tokens a block): 1 .. 65536. inner_dim: elements of a token in one layer and outer\n"      \
    "  dimension, 1 .. 2**24. outer_dim: 2 (keys, values) or 1 (MLA). dtype: a DType; None: FP16.\n"                   \
    "device_id: the GPU, where there is one.\n"                                                                        \
    "host_blocks: capacity of the host pool. None: as many as fit 1 GiB and an eighth of the available memory, at\n"   \
    "  least 1.\n"                                                                                                     \
    "layout: 'contiguous', 'layer_block' ([layer][block]...) or 'layer_outer' ([layer][outer][block]...). "            \
    "alignment:\n"                                                                                                     \
    "  bytes, a power of two up to 2 MiB; 0: 4096 for contiguous, else 256.\n"                                         \
    "policy: eviction, 'prefix', 'lru' or 's3fifo'. bytes=False: bookkeeping only, no memory behind the blocks.\n"     \
    "track_tokens: blocks keep the tokens set on them.\n"                                                              \
    "huge_pages: 'try', 'off', 'require'. numa_node: where the memory shall be. touch_threads: who touches it at "     \
    "the\n"                                                                                                            \
    "  start (0: nobody).\n"                                                                                           \
    "max_operations: in flight at once, 16 .. 2**20. borrow=False: every operation goes through the manager's "        \
    "thread,\n  and what is awaited comes back through the event loop (for tests and measurements).\n"                 \
    "name: for logs and the thread, at most 15 bytes.\n\n"                                                             \
    "InvalidArgumentError or TypeError naming the argument; StorageError if the memory cannot be had."

static PyTypeObject *manager_type(PyObject *module, const char *name, PyMethodDef *methods, const char *doc) {
    PyType_Slot slots[] = {
        {Py_tp_new, manager_new},
        {Py_tp_init, manager_init},
        {Py_tp_dealloc, manager_dealloc},
        {Py_tp_traverse, manager_traverse},
        {Py_tp_repr, manager_repr},
        {Py_tp_methods, methods},
        {Py_tp_getset, getters},
        {Py_tp_members, members},
        {Py_tp_doc, (void *)(uintptr_t)doc},
        {0, NULL},
    };
    PyType_Spec spec = {name, sizeof(struct pyk_manager_object), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

PyTypeObject *pyk_manager_type(PyObject *module) {
    return manager_type(module, "dynamo_llm.BlockManager", plain_methods,
                        DOC("plain face", "    with BlockManager(32, 16, 4096) as manager:\n"
                                          "        blocks = manager.allocate_blocks(4)"));
}

PyTypeObject *pyk_async_manager_type(PyObject *module) {
    return manager_type(module, "dynamo_llm.aio.BlockManager", async_methods,
                        DOC("asyncio face", "    async with BlockManager(32, 16, 4096) as manager:\n"
                                            "        blocks = await manager.allocate_blocks(4)"));
}
