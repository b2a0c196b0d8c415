/*
 * dtype.c - DType: one object for each element type of storage/dtype.h, as class attributes.
 */
#include "python/native/native_internal.h"

#include <string.h>

struct dtype_object {
    PyObject_HEAD int value; /* enum kvbm_dtype */
};

static const struct {
    int value;
    const char *attribute;
} members[] = {
#define X(upper, number, bytes, text, code, bits) {KVBM_DTYPE_##upper, #upper},
    KVBM_DTYPE_LIST(X)
#undef X
};

static const char *attribute_of(int value) {
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        if (members[i].value == value) {
            return members[i].attribute;
        }
    }
    return "?";
}

int pyk_dtype_value(PyObject *dtype) {
    return ((struct dtype_object *)dtype)->value;
}

static PyObject *dtype_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static const char *const names[] = {"name", NULL};
    static const struct pyk_signature signature = {"DType", names, 1, 1, 1};
    struct pyk_state *state = PyType_GetModuleState(type);
    PyObject *values[1];
    if (pyk_arguments_tuple(&signature, args, keywords, values) < 0) {
        return NULL;
    }
    if (Py_TYPE(values[0]) == type) {
        return Py_NewRef(values[0]);
    }
    if (!PyUnicode_Check(values[0])) {
        pyk_raise_type(values[0], "name", "a str");
        return NULL;
    }
    Py_ssize_t size;
    const char *name = PyUnicode_AsUTF8AndSize(values[0], &size);
    int value = name == NULL || strlen(name) != (size_t)size ? -1 : kvbm_dtype_parse_mt(name);
    if (value > 0) {
        return Py_NewRef(state->dtypes[value]);
    }
    if (name != NULL) {
        pyk_raise_argument(state, "name: must be one of fp8_e4m3, fp8_e5m2, fp16, bf16, fp32, int8, u8, not %R",
                           values[0]);
    }
    return NULL;
}

static PyObject *dtype_repr(PyObject *self) {
    return PyUnicode_FromFormat("DType.%s", attribute_of(pyk_dtype_value(self)));
}

static PyObject *dtype_name(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(kvbm_dtype_name_mt(pyk_dtype_value(self)));
}

static PyObject *dtype_itemsize(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(kvbm_dtype_bytes_mt(pyk_dtype_value(self)));
}

static PyObject *dtype_reduce(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("O(s)", (PyObject *)Py_TYPE(self), kvbm_dtype_name_mt(pyk_dtype_value(self)));
}

static void dtype_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"__reduce__", dtype_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"name", dtype_name, NULL, "Lower-case name, e.g. \"bf16\".", NULL},
    {"itemsize", dtype_itemsize, NULL, "Bytes of one element.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(doc, "DType(name)\n--\n\n"
                  "Element type of KV data. Members compare by identity; DType(\"bf16\") parses a name.\n\n"
                  "FP8_E4M3 and FP8_E5M2 (1 byte), FP16, BF16 (2), FP32 (4), INT8, U8 (1).");

PyTypeObject *pyk_dtype_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_new, dtype_new},
        {Py_tp_dealloc, dtype_dealloc},
        {Py_tp_repr, dtype_repr},
        {Py_tp_methods, methods},
        {Py_tp_getset, getters},
        {Py_tp_doc, (void *)(uintptr_t)doc},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.DType", sizeof(struct dtype_object), 0, Py_TPFLAGS_DEFAULT, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}

int pyk_dtype_members(struct pyk_state *state) {
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        allocfunc alloc = (allocfunc)PyType_GetSlot(state->types.dtype, Py_tp_alloc);
        struct dtype_object *member = (struct dtype_object *)alloc(state->types.dtype, 0);
        if (member == NULL) {
            return -1;
        }
        member->value = members[i].value;
        state->dtypes[members[i].value] = (PyObject *)member;
        if (PyObject_SetAttrString((PyObject *)state->types.dtype, members[i].attribute, (PyObject *)member) < 0) {
            return -1;
        }
    }
    return 0;
}
