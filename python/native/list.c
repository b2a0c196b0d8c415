/*
 * list.c - BlockList: the blocks of one operation.
 *
 * A fresh list is "bulk": it owns n handles in one array (inside the object up to 8), makes no other objects, and gives
 * all of them back with one call when it is dropped. The first index, slice or registration spreads it: each handle
 * moves into a holder (shared_internal.h), and Block objects are made as they are asked for and kept, so that the same
 * index gives the same object. Slices and sums share the holders. A list refers to Blocks, which refer to nothing: no
 * cycles, so no GC.
 */
#include "python/native/native_internal.h"

#include <structmember.h>

#include <stdlib.h>
#include <string.h>

static struct pyk_list_object *self_of(PyObject *self) {
    return (struct pyk_list_object *)self;
}

struct pyk_list_object *pyk_list_new(struct pyk_state *state, struct pyk_core *core, uint64_t count) {
    struct pyk_list_object *self = PyObject_New(struct pyk_list_object, state->types.list);
    if (self == NULL) {
        return NULL;
    }
    self->core = pyk_core_retain(core);
    self->count = 0;
    self->released = false;
    self->handles = self->few;
    self->chunk = NULL;
    self->holders = NULL;
    self->blocks = NULL;
    self->duplicates = NULL;
    self->keys = NULL;
    self->weak_references = NULL;
    if (count > PYK_FEW) {
        self->handles = malloc(count * sizeof *self->handles);
        if (self->handles == NULL) {
            self->handles = self->few;
            Py_DECREF((PyObject *)self);
            PyErr_NoMemory();
            return NULL;
        }
    }
    return self;
}

struct pyk_holder *pyk_list_holder(struct pyk_list_object *list, Py_ssize_t index) {
    return list->chunk != NULL ? &list->chunk->holders[index] : list->holders[index];
}

static bool is_bulk(const struct pyk_list_object *list) {
    return list->chunk == NULL && list->holders == NULL;
}

int pyk_list_spread(struct pyk_list_object *list) {
    if (!is_bulk(list) || list->count == 0) {
        return 0;
    }
    list->chunk = pyk_chunk_new(list->core, list->handles, (uint64_t)list->count, list->released);
    if (list->chunk == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (list->duplicates != NULL) {
        for (Py_ssize_t i = 0; i < list->count; i++) {
            list->chunk->holders[i].duplicate = list->duplicates[i];
        }
        free(list->duplicates);
        list->duplicates = NULL;
    }
    if (list->handles != list->few) {
        free(list->handles);
        list->handles = list->few;
    }
    return 0;
}

void pyk_list_release_all(struct pyk_list_object *list) {
    if (is_bulk(list)) {
        if (!list->released && list->count != 0) {
            (void)kvbm_release_mt(list->core->manager, list->handles, (uint64_t)list->count);
        }
    } else if (list->chunk != NULL) {
        pyk_holders_give_back(list->chunk->holders, (uint64_t)list->count);
    } else {
        for (Py_ssize_t i = 0; i < list->count; i++) {
            pyk_holder_give_back(list->holders[i]);
        }
    }
    list->released = true;
}

static void list_dealloc(PyObject *object) {
    struct pyk_list_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    if (self->blocks != NULL) {
        for (Py_ssize_t i = 0; i < self->count; i++) {
            Py_XDECREF(self->blocks[i]);
        }
        free(self->blocks);
    }
    if (self->chunk != NULL) {
        pyk_chunk_disown(self->chunk, (uint64_t)self->count);
    } else if (self->holders != NULL) {
        pyk_holders_disown(self->holders, (uint64_t)self->count);
        free(self->holders);
    } else if (!self->released && self->count != 0) {
        (void)kvbm_release_mt(self->core->manager, self->handles, (uint64_t)self->count);
    }
    if (self->handles != self->few) {
        free(self->handles);
    }
    free(self->duplicates);
    pyk_keys_release(self->keys);
    pyk_core_release(self->core);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* Keys of a result: those asked for by a match, given to or made by a register. */
static struct pyk_keys *result_keys(const struct pyk_request *request) {
    struct pyk_keys *keys = request->out_keys != NULL ? request->out_keys : request->keys;
    return keys != NULL && keys->count >= request->completion.count ? pyk_keys_retain(keys) : NULL;
}

PyObject *pyk_list_from_request(struct pyk_state *state, struct pyk_request *request) {
    uint64_t count = request->completion.count;
    struct pyk_list_object *list = pyk_list_new(state, request->core, count > PYK_FEW ? 0 : count);
    bool *duplicates = NULL;
    for (uint64_t i = 0; list != NULL && request->duplicates != NULL && duplicates == NULL && i < count; i++) {
        if (request->duplicates[i]) {
            duplicates = malloc(count);
            if (duplicates == NULL) {
                Py_DECREF((PyObject *)list);
                list = NULL;
                PyErr_NoMemory();
            } else {
                memcpy(duplicates, request->duplicates, count);
            }
        }
    }
    if (list == NULL) {
        (void)kvbm_release_mt(request->core->manager, request->blocks, count);
        request->completion.count = 0;
        return NULL;
    }
    if (count <= PYK_FEW) {
        memcpy(list->few, request->blocks, count * sizeof *list->few);
    } else if (request->holders == NULL) {
        list->handles = request->blocks; /* as it is; trimmed if a match brought much less than it had room for */
        request->blocks = request->few;
        kvbm_block *less = count < request->count / 2 ? realloc(list->handles, count * sizeof *less) : NULL;
        list->handles = less != NULL ? less : list->handles;
    } else {
        list->handles = malloc(count * sizeof *list->handles);
        if (list->handles == NULL) {
            list->handles = list->few;
            free(duplicates);
            Py_DECREF((PyObject *)list);
            (void)kvbm_release_mt(request->core->manager, request->blocks, count);
            request->completion.count = 0;
            return PyErr_NoMemory();
        }
        memcpy(list->handles, request->blocks, count * sizeof *list->handles);
    }
    list->count = (Py_ssize_t)count;
    list->duplicates = duplicates;
    list->keys = result_keys(request);
    request->completion.count = 0;
    return (PyObject *)list;
}

/* ------------------------------------------------------------------------------------------------------- a sequence */

static Py_ssize_t list_length(PyObject *self) {
    return self_of(self)->count;
}

static PyObject *list_item(PyObject *object, Py_ssize_t index) {
    struct pyk_list_object *self = self_of(object);
    if (index < 0 || index >= self->count) {
        PyErr_Format(PyExc_IndexError, "block index %zd out of range for %zd blocks", index, self->count);
        return NULL;
    }
    if (self->blocks == NULL) {
        if (pyk_list_spread(self) < 0) {
            return NULL;
        }
        self->blocks = calloc((size_t)self->count, sizeof *self->blocks);
        if (self->blocks == NULL) {
            return PyErr_NoMemory();
        }
    }
    if (self->blocks[index] == NULL) {
        self->blocks[index] = pyk_block_new(pyk_state_of(object), pyk_list_holder(self, index));
    }
    return Py_XNewRef(self->blocks[index]);
}

/* A spread list of `count` holders, filled by the caller. */
static struct pyk_list_object *spread_new(struct pyk_state *state, struct pyk_core *core, Py_ssize_t count) {
    struct pyk_list_object *list = pyk_list_new(state, core, 0);
    if (list != NULL) {
        list->holders = malloc((size_t)count * sizeof *list->holders + 1);
        list->blocks = calloc((size_t)count + 1, sizeof *list->blocks);
        if (list->holders == NULL || list->blocks == NULL) {
            Py_DECREF((PyObject *)list);
            PyErr_NoMemory();
            return NULL;
        }
    }
    return list;
}

/* Shares element `index` of a spread list as the next element of `list`. */
static void share(struct pyk_list_object *list, struct pyk_list_object *from, Py_ssize_t index) {
    list->holders[list->count] = pyk_list_holder(from, index);
    pyk_holder_own(list->holders[list->count]);
    list->blocks[list->count] = from->blocks == NULL ? NULL : Py_XNewRef(from->blocks[index]);
    list->count++;
}

static PyObject *list_slice(struct pyk_list_object *self, PyObject *slice) {
    Py_ssize_t start, stop, step;
    if (PySlice_Unpack(slice, &start, &stop, &step) < 0 || pyk_list_spread(self) < 0) {
        return NULL;
    }
    Py_ssize_t count = PySlice_AdjustIndices(self->count, &start, &stop, step);
    struct pyk_list_object *list = spread_new(pyk_state_of((PyObject *)self), self->core, count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        share(list, self, start + i * step);
    }
    if (list != NULL) {
        list->released = self->released;
        list->keys = self->keys != NULL && start == 0 && step == 1 ? pyk_keys_retain(self->keys) : NULL;
    }
    return (PyObject *)list;
}

static PyObject *list_subscript(PyObject *self, PyObject *index) {
    if (PySlice_Check(index)) {
        return list_slice(self_of(self), index);
    }
    if (!PyIndex_Check(index)) {
        PyErr_Format(PyExc_TypeError, "block indices must be integers or slices, not %R", (PyObject *)Py_TYPE(index));
        return NULL;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return list_item(self, at < 0 ? at + list_length(self) : at);
}

static PyObject *list_add(PyObject *a, PyObject *b) {
    if (Py_TYPE(a) != Py_TYPE(b)) {
        PyErr_Format(PyExc_TypeError, "a BlockList can be added to a BlockList only, not to %R",
                     (PyObject *)Py_TYPE(b));
        return NULL;
    }
    struct pyk_list_object *x = self_of(a);
    struct pyk_list_object *y = self_of(b);
    struct pyk_state *state = pyk_state_of(a);
    if (x->core != y->core) {
        pyk_raise(state->errors.wrong_manager, -KVBM_EWRONGMANAGER,
                  "BlockList + BlockList: one is of manager '%s', the other of another manager ('%s')", x->core->name,
                  y->core->name);
        return NULL;
    }
    if (pyk_list_spread(x) < 0 || pyk_list_spread(y) < 0) {
        return NULL;
    }
    struct pyk_list_object *list = spread_new(state, x->core, x->count + y->count);
    for (Py_ssize_t i = 0; list != NULL && i < x->count; i++) {
        share(list, x, i);
    }
    for (Py_ssize_t i = 0; list != NULL && i < y->count; i++) {
        share(list, y, i);
    }
    return (PyObject *)list;
}

static PyObject *list_iter(PyObject *self) {
    return PySeqIter_New(self);
}

/* Index of the first Block equal to value from `start` on; -1: none; -2: an exception. */
static Py_ssize_t search(PyObject *self, PyObject *value, Py_ssize_t start, Py_ssize_t stop) {
    for (Py_ssize_t i = start; i < stop; i++) {
        PyObject *block = list_item(self, i);
        int equal = block == NULL ? -1 : PyObject_RichCompareBool(block, value, Py_EQ);
        Py_XDECREF(block);
        if (equal != 0) {
            return equal < 0 ? -2 : i;
        }
    }
    return -1;
}

static int list_contains(PyObject *self, PyObject *value) {
    Py_ssize_t at = search(self, value, 0, list_length(self));
    return at == -2 ? -1 : at >= 0;
}

static PyObject *list_index(PyObject *self, PyObject *args) {
    PyObject *value;
    Py_ssize_t count = list_length(self);
    Py_ssize_t start = 0, stop = PY_SSIZE_T_MAX;
    if (!PyArg_ParseTuple(args, "O|nn:index", &value, &start, &stop)) {
        return NULL;
    }
    start = start < 0 ? (start + count < 0 ? 0 : start + count) : start;
    stop = stop < 0 ? stop + count : stop > count ? count : stop;
    Py_ssize_t at = search(self, value, start, stop);
    if (at == -1) {
        PyErr_Format(PyExc_ValueError, "%R is not in the BlockList", value);
    }
    return at < 0 ? NULL : PyLong_FromSsize_t(at);
}

static PyObject *list_count(PyObject *self, PyObject *value) {
    Py_ssize_t total = 0;
    Py_ssize_t at = -1;
    while ((at = search(self, value, at + 1, list_length(self))) >= 0) {
        total++;
    }
    return at == -2 ? NULL : PyLong_FromSsize_t(total);
}

/* ---------------------------------------------------------------------------------------------------------- methods */

static PyObject *list_sequence_hashes(PyObject *object, PyObject *unused) {
    (void)unused;
    struct pyk_list_object *self = self_of(object);
    struct pyk_state *state = pyk_state_of(object);
    uint64_t count = (uint64_t)self->count;
    if (self->keys != NULL) {
        return pyk_hashes_new(state, pyk_keys_retain(self->keys), 0, count);
    }
    if (self->released && count != 0) {
        pyk_raise_hold(state, "sequence_hashes", PYK_RELEASED);
        return NULL;
    }
    struct pyk_keys *keys = pyk_keys_new(count);
    for (Py_ssize_t i = 0; keys != NULL && i < self->count; i++) {
        struct pyk_holder *holder = is_bulk(self) ? NULL : pyk_list_holder(self, i);
        int status = 0;
        if (holder != NULL && pyk_holder_check(state, holder, "sequence_hashes") < 0) {
            status = -1;
        } else {
            status = kvbm_block_key_mt(self->core->manager, holder != NULL ? holder->handle : self->handles[i],
                                       &keys->keys[i]);
            if (status < 0) {
                pyk_raise_status(state, "sequence_hashes", status);
            }
        }
        if (status < 0) {
            pyk_keys_release(keys);
            return NULL;
        }
    }
    return pyk_hashes_new(state, keys, 0, count);
}

static PyObject *list_release(PyObject *self, PyObject *unused) {
    (void)unused;
    pyk_list_release_all(self_of(self));
    return Py_NewRef(Py_None);
}

static PyObject *list_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *list_exit(PyObject *self, PyObject *args) {
    (void)args;
    return list_release(self, NULL);
}

static PyObject *list_aenter(PyObject *self, PyObject *unused) {
    (void)unused;
    return pyk_operation_ready(pyk_state_of(self), Py_NewRef(self));
}

static PyObject *list_aexit(PyObject *self, PyObject *args) {
    (void)args;
    pyk_list_release_all(self_of(self));
    return pyk_operation_ready(pyk_state_of(self), Py_NewRef(Py_None));
}

static PyObject *list_repr(PyObject *object) {
    struct pyk_list_object *self = self_of(object);
    return PyUnicode_FromFormat("<BlockList: %zd blocks of '%s'%s>", self->count, self->core->name,
                                self->released ? ", released" : "");
}

static PyMethodDef methods[] = {
    {"sequence_hashes", list_sequence_hashes, METH_NOARGS,
     "sequence_hashes($self, /)\n--\n\n"
     "The 16-byte hashes of all blocks, as SequenceHashes. BlockStateError if one is not registered."},
    {"release", list_release, METH_NOARGS,
     "release($self, /)\n--\n\n"
     "Gives all blocks back now (idempotent), also those that Block objects and slices of this list refer to. Live\n"
     "tensors keep their block's memory until they are gone."},
    {"index", list_index, METH_VARARGS,
     "index($self, value, start=0, stop=9223372036854775807, /)\n--\n\n"
     "Index of the first block equal to value; ValueError if there is none."},
    {"count", list_count, METH_O, "count($self, value, /)\n--\n\nHow many blocks equal value."},
    {"__enter__", list_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nThe list itself."},
    {"__exit__", list_exit, METH_VARARGS, "__exit__($self, t, v, tb, /)\n--\n\nReleases all blocks."},
    {"__aenter__", list_aenter, METH_NOARGS, "__aenter__($self, /)\n--\n\nThe list itself, awaited."},
    {"__aexit__", list_aexit, METH_VARARGS, "__aexit__($self, t, v, tb, /)\n--\n\nReleases all blocks."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef list_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyk_list_object, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(doc,
             "The blocks of one operation: a sequence, and a context manager that releases them at its end.\n\n"
             "Dropping the list gives back the blocks that no Block, slice or tensor refers to. The same index gives\n"
             "the same Block each time; slices and sums of lists share the blocks.");

PyTypeObject *pyk_list_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, list_dealloc},
        {Py_tp_repr, list_repr},
        {Py_tp_iter, list_iter},
        {Py_tp_methods, methods},
        {Py_tp_members, list_members},
        {Py_sq_length, list_length},
        {Py_sq_item, list_item},
        {Py_sq_contains, list_contains},
        {Py_mp_length, list_length},
        {Py_mp_subscript, list_subscript},
        {Py_sq_concat, list_add},
        {Py_tp_doc, (void *)(uintptr_t)doc},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.BlockList", sizeof(struct pyk_list_object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
