/*
 * hashes.c - SequenceHashes, a packed immutable array of 16-byte keys, and hash_tokens. Slices share the array.
 */
#include "python/native/native_internal.h"

#include <stdlib.h>
#include <string.h>

#define KEY_BYTES ((Py_ssize_t)sizeof(kvbm_key))

static const kvbm_key *keys_of(const struct pyk_hashes_object *self) {
    return self->keys->keys + self->start;
}

PyObject *pyk_hashes_new(struct pyk_state *state, struct pyk_keys *keys, uint64_t start, uint64_t count) {
    if (keys == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    struct pyk_hashes_object *self = PyObject_New(struct pyk_hashes_object, state->types.hashes);
    if (self == NULL) {
        pyk_keys_release(keys);
        return NULL;
    }
    self->keys = keys;
    self->start = start;
    self->count = (Py_ssize_t)count;
    self->hash = -1;
    return (PyObject *)self;
}

static PyObject *hashes_tp_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static const char *const names[] = {"hashes", NULL};
    static const struct pyk_signature signature = {"SequenceHashes", names, 1, 1, 0};
    struct pyk_state *state = PyType_GetModuleState(type);
    PyObject *values[1];
    if (pyk_arguments_tuple(&signature, args, keywords, values) < 0) {
        return NULL;
    }
    if (values[0] != NULL && Py_TYPE(values[0]) == type) {
        return Py_NewRef(values[0]);
    }
    struct pyk_keys *keys = values[0] == NULL ? pyk_keys_new(0) : pyk_argument_keys(state, values[0], "hashes");
    return pyk_hashes_new(state, keys, 0, keys == NULL ? 0 : keys->count);
}

static void hashes_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    pyk_keys_release(((struct pyk_hashes_object *)object)->keys);
    PyObject_Free(object);
    Py_DECREF(type);
}

static Py_ssize_t hashes_length(PyObject *self) {
    return ((struct pyk_hashes_object *)self)->count;
}

static PyObject *hashes_item(PyObject *object, Py_ssize_t index) {
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    if (index < 0 || index >= self->count) {
        PyErr_Format(PyExc_IndexError, "SequenceHashes index %zd out of range for %zd hashes", index, self->count);
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)keys_of(self)[index].bytes, KEY_BYTES);
}

static PyObject *hashes_slice(struct pyk_hashes_object *self, PyObject *slice) {
    struct pyk_state *state = pyk_state_of((PyObject *)self);
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(slice, &start, &stop, &step) < 0) {
        return NULL;
    }
    Py_ssize_t count = PySlice_AdjustIndices(self->count, &start, &stop, step);
    if (step == 1) {
        return pyk_hashes_new(state, pyk_keys_retain(self->keys), self->start + (uint64_t)start, (uint64_t)count);
    }
    struct pyk_keys *keys = pyk_keys_new((uint64_t)count);
    for (Py_ssize_t i = 0; keys != NULL && i < count; i++) {
        keys->keys[i] = keys_of(self)[start + i * step];
    }
    return pyk_hashes_new(state, keys, 0, (uint64_t)count);
}

static PyObject *hashes_subscript(PyObject *object, PyObject *index) {
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    if (PySlice_Check(index)) {
        return hashes_slice(self, index);
    }
    if (!PyIndex_Check(index)) {
        PyErr_Format(PyExc_TypeError, "SequenceHashes indices must be integers or slices, not %R",
                     (PyObject *)Py_TYPE(index));
        return NULL;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return hashes_item(object, at < 0 ? at + self->count : at);
}

/* Index of the first equal hash from `start` on, -1: none. */
static Py_ssize_t search(const struct pyk_hashes_object *self, PyObject *value, Py_ssize_t start, Py_ssize_t stop) {
    if (!PyBytes_Check(value) || PyBytes_Size(value) != KEY_BYTES) {
        return -1;
    }
    const char *bytes = PyBytes_AsString(value);
    for (Py_ssize_t i = start; i < stop; i++) {
        if (memcmp(keys_of(self)[i].bytes, bytes, sizeof(kvbm_key)) == 0) {
            return i;
        }
    }
    return -1;
}

static int hashes_contains(PyObject *self, PyObject *value) {
    return search((struct pyk_hashes_object *)self, value, 0, hashes_length(self)) >= 0;
}

static PyObject *hashes_index(PyObject *self, PyObject *args) {
    PyObject *value;
    Py_ssize_t count = hashes_length(self);
    Py_ssize_t start = 0, stop = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(args, "O|nn:index", &value, &start, &stop)) {
        return NULL;
    }
    start = start < 0 ? (start + count < 0 ? 0 : start + count) : start;
    stop = stop < 0 ? stop + count : stop > count ? count : stop;
    Py_ssize_t at = search((struct pyk_hashes_object *)self, value, start, stop);
    if (at < 0) {
        PyErr_Format(PyExc_ValueError, "%R is not in the SequenceHashes", value);
        return NULL;
    }
    return PyLong_FromSsize_t(at);
}

static PyObject *hashes_count(PyObject *self, PyObject *value) {
    Py_ssize_t total = 0;
    Py_ssize_t at = -1;
    while ((at = search((struct pyk_hashes_object *)self, value, at + 1, hashes_length(self))) >= 0) {
        total++;
    }
    return PyLong_FromSsize_t(total);
}

static PyObject *hashes_compare(PyObject *a, PyObject *b, int operation) {
    if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(a) != Py_TYPE(b)) {
        return Py_NewRef(Py_NotImplemented);
    }
    const struct pyk_hashes_object *x = (struct pyk_hashes_object *)a;
    const struct pyk_hashes_object *y = (struct pyk_hashes_object *)b;
    bool equal = x->count == y->count && memcmp(keys_of(x), keys_of(y), (size_t)x->count * sizeof(kvbm_key)) == 0;
    return PyBool_FromLong(equal == (operation == Py_EQ));
}

static Py_hash_t hashes_hash(PyObject *object) {
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    if (self->hash == -1) {
        kvbm_key key;
        kvbm_key_from_bytes_mt(keys_of(self), (size_t)self->count * sizeof(kvbm_key), &key);
        memcpy(&self->hash, key.bytes, sizeof self->hash);
        self->hash -= self->hash == -1;
    }
    return self->hash;
}

static PyObject *hashes_repr(PyObject *object) {
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    if (self->count == 0) {
        return PyUnicode_FromString("SequenceHashes()");
    }
    PyObject *last = hashes_item(object, self->count - 1);
    PyObject *hex = last == NULL ? NULL : PyObject_CallMethod(last, "hex", NULL);
    PyObject *text = hex == NULL ? NULL : PyUnicode_FromFormat("<SequenceHashes: %zd, the last %U>", self->count, hex);
    Py_XDECREF(hex);
    Py_XDECREF(last);
    return text;
}

static PyObject *hashes_reduce(PyObject *object, PyObject *unused) {
    (void)unused;
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    return Py_BuildValue("O(y#)", (PyObject *)Py_TYPE(object), (const char *)keys_of(self), self->count * KEY_BYTES);
}

static int hashes_buffer(PyObject *object, Py_buffer *view, int flags) {
    struct pyk_hashes_object *self = (struct pyk_hashes_object *)object;
    return PyBuffer_FillInfo(view, object, (void *)(uintptr_t)keys_of(self), self->count * KEY_BYTES, 1, flags);
}

/* What CPython 3.12 and later have for every exporter, and type checkers look for. */
static PyObject *hashes_memoryview(PyObject *self, PyObject *flags) {
    (void)flags;
    return PyMemoryView_FromObject(self);
}

static PyMethodDef methods[] = {
    {"__buffer__", hashes_memoryview, METH_O, "__buffer__($self, flags, /)\n--\n\nA read-only memoryview."},
    {"index", hashes_index, METH_VARARGS,
     "index($self, value, start=0, stop=9223372036854775807, /)\n--\n\n"
     "Index of the first equal hash; ValueError if there is none."},
    {"count", hashes_count, METH_O, "count($self, value, /)\n--\n\nHow many hashes equal value."},
    {"__reduce__", hashes_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(doc,
             "SequenceHashes(hashes=())\n--\n\n"
             "An immutable packed array of 16-byte sequence hashes; exports the buffer protocol (n * 16 bytes).\n\n"
             "hashes: an iterable of 16-byte objects, or a buffer whose length is a multiple of 16. Slices with\n"
             "step 1 share memory. TypeError or InvalidArgumentError, naming the element, for anything else.");

PyTypeObject *pyk_hashes_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_new, hashes_tp_new},          {Py_tp_dealloc, hashes_dealloc},
        {Py_tp_repr, hashes_repr},           {Py_tp_hash, hashes_hash},
        {Py_tp_richcompare, hashes_compare}, {Py_tp_methods, methods},
        {Py_sq_length, hashes_length},       {Py_sq_item, hashes_item},
        {Py_sq_contains, hashes_contains},   {Py_mp_length, hashes_length},
        {Py_mp_subscript, hashes_subscript}, {Py_bf_getbuffer, hashes_buffer},
        {Py_tp_doc, (void *)(uintptr_t)doc}, {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.SequenceHashes", sizeof(struct pyk_hashes_object), 0, Py_TPFLAGS_DEFAULT,
                               slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

/* ------------------------------------------------------------------------------------------------------ hash_tokens */

const char pyk_hash_tokens_doc[] =
    "hash_tokens(tokens, page_size, *, salt=None, parent=None)\n--\n\n"
    "Sequence hashes of the full pages in `tokens`, as SequenceHashes; a trailing part of a page is ignored.\n\n"
    "tokens: a sequence of ints in 0 .. 2**32 - 1, or a buffer of 32-bit native integers (read in place; 64-bit\n"
    "  ones are converted). page_size: tokens a block, 1 .. 65536.\n"
    "salt: bytes, str (UTF-8) or int (8 bytes, little-endian): tenant, adapter or media; enters the first hash.\n"
    "parent: the 16-byte hash before the first page; then salt is not used.\n"
    "Chain: XXH3-128(parent hash || tokens of the page, little-endian 32-bit).";

PyObject *pyk_hash_tokens(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    static const char *const names[] = {"tokens", "page_size", "salt", "parent", NULL};
    static const struct pyk_signature signature = {"hash_tokens", names, 4, 2, 2};
    struct pyk_state *state = PyModule_GetState(module);
    PyObject *values[4];
    uint64_t page_size, salt_bytes;
    kvbm_key parent;
    void *salt;
    if (pyk_arguments(&signature, args, nargs, keywords, values) < 0 ||
        pyk_argument_uint(state, values[1], "page_size", 1, 65536, &page_size) < 0) {
        return NULL;
    }
    bool has_parent = values[3] != NULL && values[3] != Py_None;
    if ((has_parent && pyk_argument_key(state, values[3], "parent", &parent) < 0) ||
        pyk_argument_salt(state, values[2], &salt, &salt_bytes) < 0) {
        return NULL;
    }
    struct pyk_tokens tokens;
    PyObject *result = NULL;
    if (pyk_tokens_get(state, values[0], "tokens", &tokens) == 0) {
        uint64_t count = tokens.count / page_size;
        struct pyk_keys *keys = pyk_keys_new(count);
        if (keys != NULL) {
            kvbm_keys_compute_mt(tokens.tokens, count, (uint32_t)page_size, salt, salt_bytes,
                                 has_parent ? &parent : NULL, keys->keys);
        }
        result = pyk_hashes_new(state, keys, 0, count);
        pyk_tokens_free(&tokens);
    }
    free(salt);
    return result;
}
