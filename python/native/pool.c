/*
 * pool.c - BlockPool and its asyncio twin: the blocks of one tier of a manager, which they keep open.
 */
#include "python/native/native_internal.h"

#include <structmember.h>

static struct pyk_pool_object *self_of(PyObject *self) {
    return (struct pyk_pool_object *)self;
}

static struct pyk_core *core_of(PyObject *self) {
    return self_of(self)->manager->core;
}

PyObject *pyk_pool_new(struct pyk_manager_object *manager, int tier) {
    struct pyk_state *state = manager->state;
    struct pyk_pool_object *self =
        PyObject_GC_New(struct pyk_pool_object, manager->is_async ? state->types.async_pool : state->types.pool);
    if (self == NULL) {
        return NULL;
    }
    self->state = state;
    self->manager = (struct pyk_manager_object *)Py_NewRef((PyObject *)manager);
    self->weak_references = NULL;
    self->tier = tier;
    PyObject_GC_Track((PyObject *)self);
    return (PyObject *)self;
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT((PyObject *)Py_TYPE(self));
    Py_VISIT((PyObject *)self_of(self)->manager);
    return 0;
}

/* No tp_clear: a pool always has its manager; a cycle through it is broken in the manager's dictionary. */
static void pool_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self_of(self)->weak_references != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    Py_DECREF((PyObject *)self_of(self)->manager);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ----------------------------------------------------------------------------------------------------------- gauges */

#define POOL_FIELDS(X)                                                                                                 \
    X(capacity_blocks)                                                                                                 \
    X(free_blocks)                                                                                                     \
    X(cached_blocks)                                                                                                   \
    X(leased_blocks)                                                                                                   \
    X(mutable_blocks)                                                                                                  \
    X(block_bytes)                                                                                                     \
    X(allocated_count)                                                                                                 \
    X(released_count)                                                                                                  \
    X(registered_count)                                                                                                \
    X(duplicate_count)                                                                                                 \
    X(evicted_count)                                                                                                   \
    X(matched_count)                                                                                                   \
    X(missed_count)                                                                                                    \
    X(shortage_count)                                                                                                  \
    X(waiting_count)

PyObject *pyk_pool_stats_dict(struct pyk_state *state, struct pyk_core *core, int tier) {
    kvbm_pool_stats stats = {.size = sizeof(stats)};
    int status = kvbm_pool_stats_mt(core->manager, 0, tier, &stats);
    if (status < 0) {
        pyk_raise_status(state, "stats", status);
        return NULL;
    }
    PyObject *dict = PyDict_New();
#define X(field)                                                                                                       \
    if (dict != NULL) {                                                                                                \
        PyObject *value = PyLong_FromUnsignedLongLong(stats.field);                                                    \
        if (value == NULL || PyDict_SetItemString(dict, #field, value) < 0) {                                          \
            Py_CLEAR(dict);                                                                                            \
        }                                                                                                              \
        Py_XDECREF(value);                                                                                             \
    }
    POOL_FIELDS(X)
#undef X
    return dict;
}

static PyObject *pool_stats(PyObject *self, PyObject *unused) {
    (void)unused;
    return pyk_pool_stats_dict(self_of(self)->state, core_of(self), self_of(self)->tier);
}

static PyObject *pool_total(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(core_of(self)->layout.block_count);
}

/* Negative with an exception. */
static int64_t available(PyObject *self, const char *what) {
    int64_t count = kvbm_pool_available_mt(core_of(self)->manager, 0, self_of(self)->tier);
    return count < 0 ? pyk_raise_status(self_of(self)->state, what, (int)count) : count;
}

static PyObject *pool_available(PyObject *self, PyObject *unused) {
    (void)unused;
    int64_t count = available(self, "available_blocks");
    return count < 0 ? NULL : PyLong_FromLongLong(count);
}

static PyObject *pool_usage(PyObject *self, PyObject *unused) {
    (void)unused;
    int64_t count = available(self, "usage");
    return count < 0 ? NULL : PyFloat_FromDouble(1.0 - (double)count / (double)core_of(self)->layout.block_count);
}

static PyObject *pool_tier(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(self_of(self)->tier == KVBM_TIER_HOST ? "host" : "device");
}

static PyObject *pool_block_bytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(core_of(self)->layout.payload_bytes);
}

static PyObject *pool_repr(PyObject *self) {
    return PyUnicode_FromFormat("<BlockPool: host tier of '%s', %llu blocks of %llu bytes>", core_of(self)->name,
                                (unsigned long long)core_of(self)->layout.block_count,
                                (unsigned long long)core_of(self)->layout.payload_bytes);
}

/* ------------------------------------------------------------------------------------------------------- operations */

static PyObject *plain_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    return pyk_allocate_from(self_of(self)->state, core_of(self), self_of(self)->tier, args, nargs, keywords);
}

static PyObject *plain(PyObject *self, struct pyk_request *request) {
    return request == NULL ? NULL : pyk_request_run(self_of(self)->state, request);
}

static PyObject *later(PyObject *self, struct pyk_request *request) {
    return request == NULL ? NULL
                           : pyk_operation_new(self_of(self)->state, (PyObject *)self_of(self)->manager, request);
}

#define REQUEST(name, make)                                                                                            \
    static PyObject *plain_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {       \
        return plain(self, make);                                                                                      \
    }                                                                                                                  \
    static PyObject *async_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {       \
        return later(self, make);                                                                                      \
    }

REQUEST(register, pyk_register_request(self_of(self)->state, core_of(self), self_of(self)->tier, args, nargs, keywords))
REQUEST(match, pyk_keys_request(self_of(self)->state, core_of(self), KVBM_OP_MATCH, self_of(self)->tier, args, nargs,
                                keywords))
REQUEST(contains, pyk_keys_request(self_of(self)->state, core_of(self), KVBM_OP_QUERY, self_of(self)->tier, args, nargs,
                                   keywords))

static PyObject *async_allocate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    return later(self,
                 pyk_allocate_request(self_of(self)->state, core_of(self), self_of(self)->tier, args, nargs, keywords));
}

#define ALLOCATE_DOC(result)                                                                                           \
    "allocate_blocks($self, count, *, timeout=0.0)\n--\n\n"                                                            \
    "Takes `count` mutable blocks, all or none" result "\n\n"                                                          \
    "count: 1 .. 1048576. timeout: seconds to wait in line while there are too few; 0: do not wait; None: no limit.\n" \
    "OutOfBlocksError (.requested, .available), OperationTimeoutError, ClosedError, OverloadedError."
#define REGISTER_DOC(result)                                                                                           \
    "register_blocks($self, blocks, tokens=None, salt=None, *, hashes=None, parent=None, priority=0, "                 \
    "priority_ttl=None, keep_duplicates=False)\n--\n\n"                                                                \
    "Publishes mutable blocks under their sequence hashes" result "\n\n"                                               \
    "blocks: a BlockList or a sequence of Block, in chain order. They are consumed: use the returned ones. On an "     \
    "error\n"                                                                                                          \
    "  they stay as they were.\n"                                                                                      \
    "tokens: len(blocks) * page_size ids; the hashes are hash_tokens(tokens, page_size, salt=salt, parent=parent).\n"  \
    "hashes: one 16-byte hash for each block, instead. With neither, the blocks' own tokens count; blocks without\n"   \
    "  tokens get unique anonymous hashes.\n"                                                                          \
    "priority: 0 (evicted first) .. 7, for priority_ttl seconds (None: for ever).\n"                                   \
    "A hash that is resident already gives its resident block, marked .duplicate, and the given block goes back to "   \
    "the\n"                                                                                                            \
    "pool; keep_duplicates=True keeps the given one, registered but not matchable. Tensors of a block stay valid;\n"   \
    "writing through them after registration is an error that cannot be detected.\n"                                   \
    "StaleBlockError, ImmutableBlockError, IncompleteBlockError, WrongManagerError, InvalidArgumentError, "            \
    "ClosedError."
#define MATCH_DOC(result)                                                                                              \
    "match_sequence_hashes($self, hashes)\n--\n\n"                                                                     \
    "Leases the longest prefix of `hashes` that is resident" result "\n\n"                                             \
    "hashes: SequenceHashes (fastest), a buffer of n * 16 bytes, or a sequence of 16-byte objects. The list may be\n"  \
    "empty. TypeError or InvalidArgumentError naming a wrong hash, ClosedError."
#define CONTAINS_DOC(result)                                                                                           \
    "contains($self, hashes)\n--\n\n"                                                                                  \
    "Residency of each hash in this pool, without leasing and without counting as use" result "\n\n"                   \
    "hashes: as for match_sequence_hashes."
#define GAUGES                                                                                                         \
    {"total_blocks", pool_total, METH_NOARGS, "total_blocks($self, /)\n--\n\nThe pool's capacity in blocks."},         \
        {"available_blocks", pool_available, METH_NOARGS,                                                              \
         "available_blocks($self, /)\n--\n\nBlocks that an allocation could have: free and evictable ones."},          \
        {"usage", pool_usage, METH_NOARGS, "usage($self, /)\n--\n\n1 - available_blocks() / total_blocks()."}, {       \
        "stats", pool_stats, METH_NOARGS,                                                                              \
            "stats($self, /)\n--\n\nGauges and counters, by name: the fields of kvbm_pool_stats."                      \
    }
#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL | METH_KEYWORDS

static PyMethodDef plain_methods[] = {
    GAUGES,
    {"allocate_blocks", FAST(plain_allocate), ALLOCATE_DOC(", as a BlockList.")},
    {"register_blocks", FAST(plain_register), REGISTER_DOC(". Returns the registered blocks, leased.")},
    {"match_sequence_hashes", FAST(plain_match), MATCH_DOC(", as a BlockList.")},
    {"contains", FAST(plain_contains), CONTAINS_DOC(", as a list of bool.")},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef async_methods[] = {
    GAUGES,
    {"allocate_blocks", FAST(async_allocate), ALLOCATE_DOC(". Await it for the BlockList.")},
    {"register_blocks", FAST(async_register), REGISTER_DOC(". Await it for the registered blocks, leased.")},
    {"match_sequence_hashes", FAST(async_match), MATCH_DOC(". Await it for the BlockList.")},
    {"contains", FAST(async_contains), CONTAINS_DOC(". Await it for a list of bool.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"tier", pool_tier, NULL, "\"device\", \"host\", \"disk\" or \"remote\".", NULL},
    {"block_bytes", pool_block_bytes, NULL, "Payload bytes of one block.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyk_pool_object, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject *pool_type(PyObject *module, const char *name, PyMethodDef *methods, const char *doc) {
    PyType_Slot slots[] = {
        {Py_tp_dealloc, pool_dealloc},
        {Py_tp_traverse, pool_traverse},
        {Py_tp_repr, pool_repr},
        {Py_tp_methods, methods},
        {Py_tp_getset, getters},
        {Py_tp_members, members},
        {Py_tp_doc, (void *)(uintptr_t)doc},
        {0, NULL},
    };
    PyType_Spec spec = {name, sizeof(struct pyk_pool_object), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

PyTypeObject *pyk_pool_type(PyObject *module) {
    return pool_type(module, "dynamo_llm.BlockPool", plain_methods,
                     "The blocks of one tier, plain face. From BlockManager.get_host_pool(); keeps the manager.");
}

PyTypeObject *pyk_async_pool_type(PyObject *module) {
    return pool_type(module, "dynamo_llm.aio.BlockPool", async_methods,
                     "The blocks of one tier, asyncio face: operations return awaitables, gauges are plain calls.");
}
