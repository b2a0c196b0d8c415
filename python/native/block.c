/*
 * block.c - Block and Layer: owners of one holder each. Neither refers to another Python object, so neither can be part
 * of a cycle, and both outlive their list and their manager.
 */
#include "python/native/native_internal.h"

#include <structmember.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const tier_names[KVBM_TIER_COUNT] = {"device", "host", "disk", "remote"};

static struct pyk_holder *holder_of(PyObject *self) {
    return ((struct pyk_block_object *)self)->holder;
}

static const struct pyk_core *core_of(PyObject *self) {
    return holder_of(self)->chunk->core;
}

static int64_t layer_of(PyObject *self, const struct pyk_state *state) {
    return Py_TYPE(self) == state->types.layer ? (int64_t)((struct pyk_layer_object *)self)->layer : -1;
}

PyObject *pyk_block_new(struct pyk_state *state, struct pyk_holder *holder) {
    struct pyk_block_object *self = PyObject_New(struct pyk_block_object, state->types.block);
    if (self != NULL) {
        pyk_holder_own(holder);
        self->holder = holder;
        self->weak_references = NULL;
    }
    return (PyObject *)self;
}

int pyk_holder_check(struct pyk_state *state, const struct pyk_holder *holder, const char *what) {
    uint32_t hold = pyk_holder_state(holder);
    return hold == PYK_HELD ? 0 : pyk_raise_hold(state, what, hold);
}

int pyk_block_geometry(const struct pyk_holder *holder, int64_t layer, int64_t *shape, int64_t *strides) {
    const struct pyk_core *core = holder->chunk->core;
    const struct kvbm_layout *layout = &core->layout;
    const struct kvbm_geometry *geometry = &layout->geometry;
    int axis = 0;
    if (layer < 0) {
        shape[axis] = geometry->num_layers;
        strides[axis++] = (int64_t)(layout->layer_stride / core->element_bytes);
    }
    shape[axis] = geometry->outer_dim;
    strides[axis++] = (int64_t)(layout->outer_stride / core->element_bytes);
    shape[axis] = geometry->page_size;
    strides[axis++] = geometry->inner_dim;
    shape[axis] = geometry->inner_dim;
    strides[axis++] = 1;
    return axis;
}

/* ----------------------------------------------------------------------------------------- what both types can tell */

static PyObject *integers(const int64_t *values, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple != NULL && i < count; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (value == NULL || PyTuple_SetItem(tuple, i, value) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

static PyObject *any_shape(PyObject *self, void *unused) {
    (void)unused;
    int64_t shape[4], strides[4];
    return integers(shape, pyk_block_geometry(holder_of(self), layer_of(self, pyk_state_of(self)), shape, strides));
}

static PyObject *any_strides(PyObject *self, void *unused) {
    (void)unused;
    int64_t shape[4], strides[4];
    return integers(strides, pyk_block_geometry(holder_of(self), layer_of(self, pyk_state_of(self)), shape, strides));
}

static PyObject *any_dtype(PyObject *self, void *unused) {
    (void)unused;
    return Py_NewRef(pyk_state_of(self)->dtypes[core_of(self)->layout.geometry.dtype]);
}

static PyObject *any_nbytes(PyObject *self, void *unused) {
    (void)unused;
    const struct kvbm_layout *layout = &core_of(self)->layout;
    bool is_layer = layer_of(self, pyk_state_of(self)) >= 0;
    return PyLong_FromUnsignedLongLong(is_layer ? layout->plane_bytes * layout->geometry.outer_dim
                                                : layout->payload_bytes);
}

/* enum kvbm_block_state of a HELD block; -1 with an exception otherwise. */
static int native_state(PyObject *self, const char *what) {
    struct pyk_state *state = pyk_state_of(self);
    struct pyk_holder *holder = holder_of(self);
    if (pyk_holder_check(state, holder, what) < 0) {
        return -1;
    }
    int found = kvbm_block_state_mt(core_of(self)->manager, holder->handle);
    return found < 0 ? pyk_raise_status(state, what, found) : found;
}

static PyObject *any_readonly(PyObject *self, void *unused) {
    (void)unused;
    int found = native_state(self, "readonly");
    return found < 0 ? NULL : PyBool_FromLong(found == KVBM_BLOCK_REGISTERED);
}

static void any_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (type == pyk_state_of(self)->types.block && ((struct pyk_block_object *)self)->weak_references != NULL) {
        PyObject_ClearWeakRefs(self);
    }
    pyk_holder_disown(holder_of(self));
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *any_dlpack(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    return pyk_dlpack_export(self, holder_of(self), layer_of(self, pyk_state_of(self)), args, nargs, keywords);
}

static PyObject *any_copy_from(PyObject *self, PyObject *source) {
    return pyk_dlpack_import(self, holder_of(self), layer_of(self, pyk_state_of(self)), source);
}

#define DLPACK_DOC                                                                                                     \
    "__dlpack__($self, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"                              \
    "DLPack capsule of this memory; the tensor made from it keeps the block.\n\n"                                      \
    "stream: None (host memory has no streams). max_version: (1, 0) or later gives a versioned capsule, read-only\n"   \
    "  for registered blocks; without it a legacy one, which only mutable blocks can have. dl_device: None or\n"       \
    "  (1, 0), the CPU. copy: True copies, False and None never do.\n"                                                 \
    "BufferError for what cannot be had; StaleBlockError after release; BlockManagerError if the manager has no "      \
    "bytes."
#define DEVICE_DOC "__dlpack_device__($self, /)\n--\n\n(1, 0): the CPU."
#define COPY_DOC                                                                                                       \
    "copy_from($self, source, /)\n--\n\n"                                                                              \
    "Copies a tensor in: any DLPack producer on the CPU (or its capsule) of the same shape and dtype, any "            \
    "strides.\n\n"                                                                                                     \
    "ImmutableBlockError on a registered block; InvalidArgumentError naming what differs; StaleBlockError."

/* ------------------------------------------------------------------------------------------------------------ Layer */

static PyObject *layer_new(struct pyk_state *state, struct pyk_holder *holder, uint32_t layer) {
    struct pyk_layer_object *self = PyObject_New(struct pyk_layer_object, state->types.layer);
    if (self != NULL) {
        pyk_holder_own(holder);
        self->holder = holder;
        self->layer = layer;
    }
    return (PyObject *)self;
}

static PyObject *layer_data_ptr(PyObject *self, void *unused) {
    (void)unused;
    void *address;
    struct pyk_state *state = pyk_state_of(self);
    struct pyk_holder *holder = holder_of(self);
    if (pyk_holder_check(state, holder, "data_ptr") < 0) {
        return NULL;
    }
    int status = kvbm_block_data_mt(core_of(self)->manager, holder->handle, ((struct pyk_layer_object *)self)->layer, 0,
                                    &address);
    if (status < 0) {
        pyk_raise_status(state, "data_ptr", status);
        return NULL;
    }
    return PyLong_FromVoidPtr(address);
}

static PyObject *layer_repr(PyObject *self) {
    PyObject *shape = any_shape(self, NULL);
    PyObject *text = shape == NULL
                         ? NULL
                         : PyUnicode_FromFormat("<Layer %lu of block %llu, shape %R, %s>",
                                                (unsigned long)((struct pyk_layer_object *)self)->layer,
                                                (unsigned long long)kvbm_block_slot(holder_of(self)->handle), shape,
                                                kvbm_dtype_name_mt(core_of(self)->layout.geometry.dtype));
    Py_XDECREF(shape);
    return text;
}

static PyMethodDef layer_methods[] = {
    {"__dlpack__", (PyCFunction)(void (*)(void))any_dlpack, METH_FASTCALL | METH_KEYWORDS, DLPACK_DOC},
    {"__dlpack_device__", pyk_dlpack_device, METH_NOARGS, DEVICE_DOC},
    {"copy_from", any_copy_from, METH_O, COPY_DOC},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef layer_getters[] = {
    {"shape", any_shape, NULL, "(outer_dim, page_size, inner_dim).", NULL},
    {"strides", any_strides, NULL, "Strides of the axes of shape, in elements.", NULL},
    {"dtype", any_dtype, NULL, "Element type, a DType.", NULL},
    {"nbytes", any_nbytes, NULL, "Bytes of the layer's elements.", NULL},
    {"readonly", any_readonly, NULL, "True when the block is registered. StaleBlockError after release.", NULL},
    {"data_ptr", layer_data_ptr, NULL, "Address of the first element; valid while the block is held.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(layer_doc,
             "One layer of a block: a view of shape (outer_dim, page_size, inner_dim) that keeps the block.\n\n"
             "Exchange it by DLPack: numpy.from_dlpack(layer), torch.from_dlpack(layer), layer.copy_from(array).");

PyTypeObject *pyk_layer_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, any_dealloc},
        {Py_tp_repr, layer_repr},
        {Py_tp_methods, layer_methods},
        {Py_tp_getset, layer_getters},
        {Py_tp_doc, (void *)(uintptr_t)layer_doc},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.Layer", sizeof(struct pyk_layer_object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

/* ------------------------------------------------------------------------------------------------------------ Block */

static Py_ssize_t block_length(PyObject *self) {
    return (Py_ssize_t)core_of(self)->layout.geometry.num_layers;
}

static PyObject *block_item(PyObject *self, Py_ssize_t index) {
    if (index < 0 || index >= block_length(self)) {
        PyErr_Format(PyExc_IndexError, "layer index %zd out of range for %zd layers", index, block_length(self));
        return NULL;
    }
    return layer_new(pyk_state_of(self), holder_of(self), (uint32_t)index);
}

static PyObject *block_subscript(PyObject *self, PyObject *index) {
    if (!PyIndex_Check(index)) {
        PyErr_Format(PyExc_TypeError, "layer indices must be integers, not %R", (PyObject *)Py_TYPE(index));
        return NULL;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return block_item(self, at < 0 ? at + block_length(self) : at);
}

static PyObject *block_to_list(PyObject *self, PyObject *unused) {
    (void)unused;
    return PySequence_List(self);
}

static PyObject *block_iter(PyObject *self) {
    return PySeqIter_New(self);
}

static const char *state_name(PyObject *self) {
    struct pyk_holder *holder = holder_of(self);
    uint32_t hold = pyk_holder_state(holder);
    if (hold == PYK_RELEASED || hold == PYK_CONSUMED || hold == PYK_BUSY_RELEASE) {
        return "released";
    }
    switch (kvbm_block_state_mt(core_of(self)->manager, holder->handle)) {
    case KVBM_BLOCK_PARTIAL:
        return "partial";
    case KVBM_BLOCK_COMPLETE:
        return "complete";
    case KVBM_BLOCK_REGISTERED:
        return "registered";
    default:
        return "released";
    }
}

static PyObject *block_state(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(state_name(self));
}

static PyObject *block_tier(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(tier_names[kvbm_block_tier(holder_of(self)->handle)]);
}

static PyObject *block_id(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(kvbm_block_slot(holder_of(self)->handle));
}

static PyObject *block_duplicate(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(holder_of(self)->duplicate);
}

static PyObject *block_tokens(PyObject *self, void *unused) {
    (void)unused;
    struct pyk_state *state = pyk_state_of(self);
    if (pyk_holder_check(state, holder_of(self), "tokens") < 0) {
        return NULL;
    }
    uint32_t capacity = core_of(self)->layout.geometry.page_size;
    uint32_t *tokens = malloc(capacity * sizeof *tokens);
    if (tokens == NULL) {
        return PyErr_NoMemory();
    }
    int count = kvbm_block_tokens(core_of(self)->manager, holder_of(self)->handle, tokens, capacity);
    PyObject *list = NULL;
    if (count < 0) {
        pyk_raise_status(state, "tokens", count);
    } else {
        list = PyList_New(count);
    }
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *token = PyLong_FromUnsignedLong(tokens[i]);
        if (token == NULL || PyList_SetItem(list, i, token) < 0) {
            Py_CLEAR(list);
        }
    }
    free(tokens);
    return list;
}

static PyObject *write_tokens(PyObject *self, PyObject *value, const char *what,
                              int (*write)(kvbm_manager *, kvbm_block, const uint32_t *, uint32_t)) {
    struct pyk_state *state = pyk_state_of(self);
    uint32_t page_size = core_of(self)->layout.geometry.page_size;
    struct pyk_tokens tokens;
    if (pyk_tokens_get(state, value, "tokens", &tokens) < 0) {
        return NULL;
    }
    int status = pyk_holder_check(state, holder_of(self), what);
    if (status == 0) {
        status = tokens.count > page_size
                     ? -EOVERFLOW
                     : write(core_of(self)->manager, holder_of(self)->handle, tokens.tokens, (uint32_t)tokens.count);
        if (status == -EOVERFLOW) {
            pyk_raise_argument(state, "tokens: %llu more do not fit a block of %lu tokens",
                               (unsigned long long)tokens.count, (unsigned long)page_size);
        } else if (status == -ENOTSUP) {
            pyk_raise(state->errors.manager_error, status, "%s: the manager was made with track_tokens=False", what);
        } else if (status < 0) {
            pyk_raise_status(state, what, status);
        }
    }
    pyk_tokens_free(&tokens);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *block_append_tokens(PyObject *self, PyObject *value) {
    return write_tokens(self, value, "append_tokens", kvbm_block_append_tokens);
}

static PyObject *block_set_tokens(PyObject *self, PyObject *value) {
    return write_tokens(self, value, "set_tokens", kvbm_block_set_tokens);
}

static PyObject *block_sequence_hash(PyObject *self, PyObject *unused) {
    (void)unused;
    kvbm_key key;
    struct pyk_state *state = pyk_state_of(self);
    if (pyk_holder_check(state, holder_of(self), "sequence_hash") < 0) {
        return NULL;
    }
    int status = kvbm_block_key_mt(core_of(self)->manager, holder_of(self)->handle, &key);
    if (status < 0) {
        pyk_raise_status(state, "sequence_hash", status);
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)key.bytes, sizeof key.bytes);
}

static PyObject *block_release(PyObject *self, PyObject *unused) {
    (void)unused;
    pyk_holder_give_back(holder_of(self));
    return Py_NewRef(Py_None);
}

static PyObject *block_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *block_exit(PyObject *self, PyObject *args) {
    (void)args;
    return block_release(self, NULL);
}

static PyObject *block_repr(PyObject *self) {
    return PyUnicode_FromFormat(
        "<Block %llu of the %s pool of '%s', %s>", (unsigned long long)kvbm_block_slot(holder_of(self)->handle),
        tier_names[kvbm_block_tier(holder_of(self)->handle)], core_of(self)->name, state_name(self));
}

static PyObject *block_compare(PyObject *a, PyObject *b, int operation) {
    if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(a) != Py_TYPE(b)) {
        return Py_NewRef(Py_NotImplemented);
    }
    bool equal = core_of(a) == core_of(b) && holder_of(a)->handle.bits == holder_of(b)->handle.bits;
    return PyBool_FromLong(equal == (operation == Py_EQ));
}

static Py_hash_t block_hash(PyObject *self) {
    Py_hash_t hash = (Py_hash_t)(kvbm_block_slot(holder_of(self)->handle) ^ (uint64_t)(uintptr_t)core_of(self));
    return hash == -1 ? -2 : hash;
}

static PyMethodDef block_methods[] = {
    {"to_list", block_to_list, METH_NOARGS, "to_list($self, /)\n--\n\nThe layers as a list."},
    {"append_tokens", block_append_tokens, METH_O,
     "append_tokens($self, tokens, /)\n--\n\n"
     "Appends token ids (ints, or a buffer of 32-bit integers); all or none.\n\n"
     "InvalidArgumentError past the page, ImmutableBlockError once registered."},
    {"set_tokens", block_set_tokens, METH_O,
     "set_tokens($self, tokens, /)\n--\n\nReplaces the tokens; as append_tokens, from empty."},
    {"sequence_hash", block_sequence_hash, METH_NOARGS,
     "sequence_hash($self, /)\n--\n\nThe 16 bytes that identify the content. BlockStateError before registration."},
    {"release", block_release, METH_NOARGS,
     "release($self, /)\n--\n\n"
     "Gives the block back now (idempotent); every object for it is released. Live tensors keep the memory until they\n"
     "are gone."},
    {"__enter__", block_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nThe block itself."},
    {"__exit__", block_exit, METH_VARARGS, "__exit__($self, t, v, tb, /)\n--\n\nReleases the block."},
    {"__dlpack__", (PyCFunction)(void (*)(void))any_dlpack, METH_FASTCALL | METH_KEYWORDS, DLPACK_DOC},
    {"__dlpack_device__", pyk_dlpack_device, METH_NOARGS, DEVICE_DOC},
    {"copy_from", any_copy_from, METH_O, COPY_DOC},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef block_getters[] = {
    {"shape", any_shape, NULL, "(num_layers, outer_dim, page_size, inner_dim).", NULL},
    {"strides", any_strides, NULL, "Strides of the axes of shape, in elements.", NULL},
    {"dtype", any_dtype, NULL, "Element type, a DType.", NULL},
    {"nbytes", any_nbytes, NULL, "Bytes of the block's elements.", NULL},
    {"readonly", any_readonly, NULL, "True when the block is registered. StaleBlockError after release.", NULL},
    {"state", block_state, NULL, "\"partial\", \"complete\", \"registered\" or \"released\".", NULL},
    {"tier", block_tier, NULL, "Tier of the pool: \"device\", \"host\", \"disk\" or \"remote\".", NULL},
    {"block_id", block_id, NULL, "Slot number in its pool, 0 .. total_blocks() - 1.", NULL},
    {"duplicate", block_duplicate, NULL, "Returned by register_blocks for a hash that was resident already.", NULL},
    {"tokens", block_tokens, NULL, "The token ids set or appended so far.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef block_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyk_block_object, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(
    block_doc,
    "One KV block: page_size tokens of all layers, shape (num_layers, outer_dim, page_size, inner_dim).\n\n"
    "A sequence of layers. Dropping the last reference (tensors included) gives it back to its pool. Equal to\n"
    "another Block of the same manager that holds the same block.");

PyTypeObject *pyk_block_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, any_dealloc},
        {Py_tp_repr, block_repr},
        {Py_tp_hash, block_hash},
        {Py_tp_richcompare, block_compare},
        {Py_tp_iter, block_iter},
        {Py_tp_methods, block_methods},
        {Py_tp_getset, block_getters},
        {Py_tp_members, block_members},
        {Py_sq_length, block_length},
        {Py_sq_item, block_item},
        {Py_mp_length, block_length},
        {Py_mp_subscript, block_subscript},
        {Py_tp_doc, (void *)(uintptr_t)block_doc},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.Block", sizeof(struct pyk_block_object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
