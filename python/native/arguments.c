/*
 * arguments.c - from Python arguments to C values, each complaint naming the argument, its value and what is allowed.
 *
 * Written by hand for speed: METH_FASTCALL | METH_KEYWORDS functions call pyk_arguments with their own table.
 */
#include "python/native/native_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_SECOND 1e9
#define SECONDS_MAX   1e9

/* ------------------------------------------------------------------------------------------------------- parameters */

static Py_ssize_t find(const struct pyk_signature *signature, PyObject *name) {
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        if (PyUnicode_CompareWithASCIIString(name, signature->names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

static int put(const struct pyk_signature *signature, PyObject *name, PyObject *value, PyObject **values) {
    Py_ssize_t at = find(signature, name);
    if (at < 0) {
        PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", signature->function, name);
        return -1;
    }
    if (values[at] != NULL) {
        PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", signature->function,
                     signature->names[at]);
        return -1;
    }
    values[at] = value;
    return 0;
}

static int check_positional(const struct pyk_signature *signature, Py_ssize_t nargs) {
    if (nargs > signature->positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd positional arguments (%zd given)", signature->function,
                     signature->positional, nargs);
        return -1;
    }
    return 0;
}

static int check_required(const struct pyk_signature *signature, PyObject *const *values) {
    for (Py_ssize_t i = 0; i < signature->required; i++) {
        if (values[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s' (pos %zd)", signature->function,
                         signature->names[i], i + 1);
            return -1;
        }
    }
    return 0;
}

int pyk_arguments(const struct pyk_signature *signature, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords,
                  PyObject **values) {
    if (check_positional(signature, nargs) < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        values[i] = i < nargs ? args[i] : NULL;
    }
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    for (Py_ssize_t i = 0; i < named; i++) {
        if (put(signature, PyTuple_GetItem(keywords, i), args[nargs + i], values) < 0) {
            return -1;
        }
    }
    return check_required(signature, values);
}

int pyk_arguments_tuple(const struct pyk_signature *signature, PyObject *args, PyObject *keywords, PyObject **values) {
    Py_ssize_t nargs = PyTuple_Size(args);
    if (check_positional(signature, nargs) < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        values[i] = i < nargs ? PyTuple_GetItem(args, i) : NULL;
    }
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (keywords != NULL && PyDict_Next(keywords, &position, &name, &value)) {
        if (put(signature, name, value, values) < 0) {
            return -1;
        }
    }
    return check_required(signature, values);
}

/* ---------------------------------------------------------------------------------------------------------- numbers */

static const char *type_name(PyObject *value, PyObject **keep) {
    *keep = PyType_GetQualName(Py_TYPE(value));
    const char *name = *keep == NULL ? NULL : PyUnicode_AsUTF8AndSize(*keep, NULL);
    if (name == NULL) {
        PyErr_Clear();
        return "?";
    }
    return name;
}

int pyk_raise_type(PyObject *value, const char *name, const char *wanted) {
    PyObject *keep;
    PyErr_Format(PyExc_TypeError, "%s: must be %s, not %s", name, wanted, type_name(value, &keep));
    Py_XDECREF(keep);
    return -1;
}

static int raise_range(struct pyk_state *state, PyObject *value, const char *name, uint64_t low, uint64_t high) {
    return pyk_raise_argument(state, "%s: must be %llu .. %llu, not %R", name, (unsigned long long)low,
                              (unsigned long long)high, value);
}

int pyk_argument_uint(struct pyk_state *state, PyObject *value, const char *name, uint64_t low, uint64_t high,
                      uint64_t *result) {
    if (PyBool_Check(value) || (!PyLong_Check(value) && !PyIndex_Check(value))) {
        return pyk_raise_type(value, name, "an int");
    }
    PyObject *number = PyLong_Check(value) ? Py_NewRef(value) : PyNumber_Index(value);
    if (number == NULL) {
        return -1;
    }
    int overflow = 0;
    long long small = PyLong_AsLongLongAndOverflow(number, &overflow);
    uint64_t wide = (uint64_t)small;
    int status = 0;
    if (overflow > 0 && high > INT64_MAX) {
        wide = PyLong_AsUnsignedLongLong(number);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            status = -1;
        }
    } else if (overflow != 0 || small < 0) {
        status = -1;
    }
    if (status < 0 || wide < low || wide > high) {
        status = raise_range(state, number, name, low, high);
    } else {
        *result = wide;
    }
    Py_DECREF(number);
    return status;
}

int pyk_argument_bool(PyObject *value, const char *name, bool *result) {
    if (!PyBool_Check(value)) {
        return pyk_raise_type(value, name, "True or False");
    }
    *result = value == Py_True;
    return 0;
}

int pyk_argument_seconds(struct pyk_state *state, PyObject *value, const char *name, bool none_allowed, uint64_t *ns,
                         bool *forever) {
    *forever = value == Py_None;
    *ns = 0;
    if (*forever && none_allowed) {
        return 0;
    }
    if (PyBool_Check(value) || (!PyFloat_Check(value) && !PyLong_Check(value) && !PyIndex_Check(value))) {
        return pyk_raise_type(value, name, none_allowed ? "a number of seconds or None" : "a number of seconds");
    }
    double seconds = PyFloat_AsDouble(value);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
            return -1;
        }
        PyErr_Clear();
        seconds = INFINITY;
    }
    if (!(seconds >= 0 && seconds <= SECONDS_MAX)) {
        return pyk_raise_argument(state, "%s: must be 0 .. 1e9 seconds%s, not %R", name, none_allowed ? " or None" : "",
                                  value);
    }
    *ns = (uint64_t)ceil(seconds * NS_PER_SECOND);
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- salt and keys */

/* After a refusal by PyObject_GetBuffer: those for the memory's form name the argument. Always returns -1. */
static int raise_buffer(struct pyk_state *state, const char *name) {
    if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        pyk_raise_argument(state, "%s: must be a C-contiguous buffer (%S)", name, value == NULL ? type : value);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    return -1;
}

int pyk_argument_salt(struct pyk_state *state, PyObject *value, void **salt, uint64_t *count) {
    const char *bytes = NULL;
    char number[8];
    Py_ssize_t size = 0;
    *salt = NULL;
    *count = 0;
    if (value == NULL || value == Py_None) {
        return 0;
    }
    if (PyBytes_Check(value)) {
        bytes = PyBytes_AsString(value);
        size = PyBytes_Size(value);
    } else if (PyUnicode_Check(value)) {
        bytes = PyUnicode_AsUTF8AndSize(value, &size);
    } else if (PyIndex_Check(value) && !PyBool_Check(value)) {
        uint64_t wide;
        if (pyk_argument_uint(state, value, "salt", 0, UINT64_MAX, &wide) < 0) {
            return -1;
        }
        for (int i = 0; i < 8; i++) {
            number[i] = (char)(wide >> (8 * i) & 0xff);
        }
        bytes = number;
        size = sizeof number;
    } else {
        return pyk_raise_type(value, "salt", "bytes, str, int or None");
    }
    if (bytes == NULL) {
        return -1;
    }
    *salt = malloc((size_t)size + 1);
    if (*salt == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(*salt, bytes, (size_t)size);
    *count = (uint64_t)size;
    return 0;
}

int pyk_argument_key(struct pyk_state *state, PyObject *value, const char *name, kvbm_key *key) {
    if (!PyBytes_Check(value)) {
        return pyk_raise_type(value, name, "bytes of length 16");
    }
    if (PyBytes_Size(value) != (Py_ssize_t)sizeof key->bytes) {
        return pyk_raise_argument(state, "%s: must be 16 bytes, not %zd", name, PyBytes_Size(value));
    }
    memcpy(key->bytes, PyBytes_AsString(value), sizeof key->bytes);
    return 0;
}

/* One element of a sequence of hashes that is not bytes: any buffer of 16 bytes. */
static int key_from_item(struct pyk_state *state, PyObject *item, const char *name, Py_ssize_t index, kvbm_key *key) {
    Py_buffer view;
    if (!PyObject_CheckBuffer(item)) {
        PyObject *keep;
        PyErr_Format(PyExc_TypeError, "%s[%zd]: must be 16 bytes, not %s", name, index, type_name(item, &keep));
        Py_XDECREF(keep);
        return -1;
    }
    if (PyObject_GetBuffer(item, &view, PyBUF_SIMPLE) < 0) {
        char place[64];
        (void)PyOS_snprintf(place, sizeof place, "%s[%zd]", name, index);
        return raise_buffer(state, place);
    }
    int status = 0;
    if (view.len == (Py_ssize_t)sizeof key->bytes) {
        memcpy(key->bytes, view.buf, sizeof key->bytes);
    } else {
        status = pyk_raise_argument(state, "%s[%zd]: must be 16 bytes, not %zd", name, index, view.len);
    }
    PyBuffer_Release(&view);
    return status;
}

static struct pyk_keys *keys_from_sequence(struct pyk_state *state, PyObject *value, const char *name) {
    PyObject *sequence = PySequence_Fast(value, "must be iterable");
    if (sequence == NULL) {
        return NULL;
    }
    bool is_list = PyList_Check(sequence);
    Py_ssize_t count = is_list ? PyList_Size(sequence) : PyTuple_Size(sequence);
    struct pyk_keys *keys = pyk_keys_new((uint64_t)count);
    if (keys == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; keys != NULL && i < count; i++) {
        /* Another buffer's code may run Python and shorten the list: GetItem then raises. */
        PyObject *item = is_list ? PyList_GetItem(sequence, i) : PyTuple_GetItem(sequence, i);
        char *bytes;
        if (item != NULL && PyBytes_Check(item) && PyBytes_Size(item) == (Py_ssize_t)sizeof(kvbm_key)) {
            bytes = PyBytes_AsString(item);
            memcpy(keys->keys[i].bytes, bytes, sizeof(kvbm_key));
        } else {
            Py_XINCREF(item);
            if (item == NULL || key_from_item(state, item, name, i, &keys->keys[i]) < 0) {
                pyk_keys_release(keys);
                keys = NULL;
            }
            Py_XDECREF(item);
        }
    }
    Py_DECREF(sequence);
    return keys;
}

static struct pyk_keys *keys_from_buffer(struct pyk_state *state, PyObject *value, const char *name) {
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_SIMPLE) < 0) {
        raise_buffer(state, name);
        return NULL;
    }
    struct pyk_keys *keys = NULL;
    if (view.len % (Py_ssize_t)sizeof(kvbm_key) != 0) {
        pyk_raise_argument(state, "%s: a buffer of hashes must be a multiple of 16 bytes long, not %zd", name,
                           view.len);
    } else if ((keys = pyk_keys_new((uint64_t)view.len / sizeof(kvbm_key))) == NULL) {
        PyErr_NoMemory();
    } else {
        memcpy(keys->keys, view.buf, (size_t)view.len);
    }
    PyBuffer_Release(&view);
    return keys;
}

struct pyk_keys *pyk_argument_keys(struct pyk_state *state, PyObject *value, const char *name) {
    if (Py_TYPE(value) == state->types.hashes) {
        struct pyk_hashes_object *hashes = (struct pyk_hashes_object *)value;
        if (hashes->start == 0 && (uint64_t)hashes->count == hashes->keys->count) {
            return pyk_keys_retain(hashes->keys);
        }
        return keys_from_buffer(state, value, name);
    }
    if (PyObject_CheckBuffer(value)) {
        return keys_from_buffer(state, value, name);
    }
    if (PyUnicode_Check(value)) {
        pyk_raise_type(value, name, "SequenceHashes, a buffer or a sequence of 16-byte objects");
        return NULL;
    }
    struct pyk_keys *keys = keys_from_sequence(state, value, name);
    if (keys == NULL && PyErr_ExceptionMatches(PyExc_TypeError) && !PySequence_Check(value) && !PyIter_Check(value)) {
        PyErr_Clear();
        pyk_raise_type(value, name, "SequenceHashes, a buffer or a sequence of 16-byte objects");
    }
    return keys;
}

/* ----------------------------------------------------------------------------------------------------------- tokens */

static int tokens_copy_new(struct pyk_tokens *tokens, Py_ssize_t count) {
    tokens->copy = malloc((size_t)count * sizeof *tokens->copy + 1);
    if (tokens->copy == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    tokens->tokens = tokens->copy;
    tokens->count = (uint64_t)count;
    return 0;
}

static int raise_token(struct pyk_state *state, const char *name, Py_ssize_t index, PyObject *token) {
    if (token == NULL) {
        return -1;
    }
    return pyk_raise_argument(state, "%s[%zd]: must be 0 .. 4294967295, not %R", name, index, token);
}

static int tokens_from_sequence(struct pyk_state *state, PyObject *value, const char *name, struct pyk_tokens *tokens) {
    PyObject *sequence = PySequence_Fast(value, "must be iterable");
    if (sequence == NULL) {
        return -1;
    }
    bool is_list = PyList_Check(sequence);
    Py_ssize_t count = is_list ? PyList_Size(sequence) : PyTuple_Size(sequence);
    int status = tokens_copy_new(tokens, count);
    for (Py_ssize_t i = 0; status == 0 && i < count; i++) {
        PyObject *item = is_list ? PyList_GetItem(sequence, i) : PyTuple_GetItem(sequence, i);
        int overflow = 0;
        if (item == NULL) {
            status = -1;
        } else if (PyLong_Check(item) && !PyBool_Check(item)) {
            long long token = PyLong_AsLongLongAndOverflow(item, &overflow);
            if (overflow != 0 || token < 0 || token > UINT32_MAX) {
                status = raise_token(state, name, i, item);
            } else {
                tokens->copy[i] = (uint32_t)token;
            }
        } else {
            char place[64];
            uint64_t token;
            (void)PyOS_snprintf(place, sizeof place, "%s[%zd]", name, i);
            Py_INCREF(item);
            status = pyk_argument_uint(state, item, place, 0, UINT32_MAX, &token);
            Py_DECREF(item);
            tokens->copy[i] = (uint32_t)token;
        }
    }
    Py_DECREF(sequence);
    return status;
}

/* 'i' or 'u' and the width for a format of native integers, else 0. */
static char format_kind(const Py_buffer *view) {
    const char *format = view->format == NULL ? "B" : view->format;
    if (*format == '@' || *format == '=' || *format == '<') {
        format++;
    }
    if (format[0] == '\0' || format[1] != '\0' || (view->itemsize != 4 && view->itemsize != 8)) {
        return 0;
    }
    return strchr("ilq", *format) != NULL ? 'i' : strchr("ILQ", *format) != NULL ? 'u' : (char)0;
}

/* Checks signed values, narrows 64-bit ones, and moves what is not aligned as integers are. */
static int tokens_from_view(struct pyk_state *state, const char *name, char kind, struct pyk_tokens *tokens) {
    const Py_buffer *view = &tokens->buffer;
    Py_ssize_t count = view->len / view->itemsize;
    if (view->itemsize == 8) {
        if (tokens_copy_new(tokens, count) < 0) {
            return -1;
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            uint64_t wide;
            memcpy(&wide, (const char *)view->buf + i * 8, sizeof wide);
            if (wide > UINT32_MAX) {
                PyObject *token =
                    kind == 'i' ? PyLong_FromLongLong((long long)wide) : PyLong_FromUnsignedLongLong(wide);
                raise_token(state, name, i, token);
                Py_XDECREF(token);
                return -1;
            }
            tokens->copy[i] = (uint32_t)wide;
        }
        return 0;
    }
    if ((uintptr_t)view->buf % _Alignof(uint32_t) != 0) {
        if (tokens_copy_new(tokens, count) < 0) {
            return -1;
        }
        memcpy(tokens->copy, view->buf, (size_t)view->len);
    } else {
        tokens->tokens = view->buf;
        tokens->count = (uint64_t)count;
    }
    for (Py_ssize_t i = 0; kind == 'i' && i < count; i++) {
        if (tokens->tokens[i] > INT32_MAX) {
            PyObject *token = PyLong_FromLong((long)(int32_t)tokens->tokens[i]);
            raise_token(state, name, i, token);
            Py_XDECREF(token);
            return -1;
        }
    }
    return 0;
}

int pyk_tokens_get(struct pyk_state *state, PyObject *value, const char *name, struct pyk_tokens *tokens) {
    *tokens = (struct pyk_tokens){.count = 0};
    if (PyObject_CheckBuffer(value)) {
        if (PyObject_GetBuffer(value, &tokens->buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) {
            return raise_buffer(state, name);
        }
        tokens->has_buffer = true;
        char kind = format_kind(&tokens->buffer);
        int status = -1;
        if (kind == 0 || tokens->buffer.ndim != 1) {
            PyErr_Format(PyExc_TypeError,
                         "%s: a buffer must have one axis of 32-bit or 64-bit native integers, not %d of format '%s'",
                         name, tokens->buffer.ndim, tokens->buffer.format == NULL ? "B" : tokens->buffer.format);
        } else {
            status = tokens_from_view(state, name, kind, tokens);
        }
        if (status < 0) {
            pyk_tokens_free(tokens);
        }
        return status;
    }
    if (PyUnicode_Check(value) || (!PySequence_Check(value) && !PyIter_Check(value))) {
        return pyk_raise_type(value, name, "a sequence of ints or a buffer of 32-bit integers");
    }
    int status = tokens_from_sequence(state, value, name, tokens);
    if (status < 0) {
        pyk_tokens_free(tokens);
    }
    return status;
}

void pyk_tokens_free(struct pyk_tokens *tokens) {
    if (tokens->has_buffer) {
        PyBuffer_Release(&tokens->buffer);
        tokens->has_buffer = false;
    }
    free(tokens->copy);
    tokens->copy = NULL;
}
