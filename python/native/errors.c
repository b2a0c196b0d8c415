/*
 * errors.c - the exception classes, and what the C API's codes become. Needs the GIL.
 */
#include "python/native/native_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

enum base { BASE_EXCEPTION, BASE_KVBM, BASE_MANAGER, BASE_STATE, BASE_VALUE, BASE_TIMEOUT };

/* A new reference: an exception class, or a tuple of two. NULL without an exception: Exception itself. */
static PyObject *bases_of(const struct pyk_state *state, enum base base) {
    switch (base) {
    case BASE_KVBM:
        return Py_NewRef(state->errors.kvbm_error);
    case BASE_MANAGER:
        return Py_NewRef(state->errors.manager_error);
    case BASE_STATE:
        return Py_NewRef(state->errors.block_state);
    case BASE_VALUE:
        return PyTuple_Pack(2, state->errors.manager_error, PyExc_ValueError);
    case BASE_TIMEOUT:
        return PyTuple_Pack(2, state->errors.manager_error, PyExc_TimeoutError);
    case BASE_EXCEPTION:
        break;
    }
    return NULL;
}

static PyObject *make(PyObject *module, const struct pyk_state *state, const char *name, enum base base,
                      const char *doc) {
    char full[64];
    (void)PyOS_snprintf(full, sizeof full, "dynamo_llm.%s", name);
    PyObject *bases = bases_of(state, base);
    PyObject *type = PyErr_Occurred() ? NULL : PyErr_NewExceptionWithDoc(full, doc, bases, NULL);
    Py_XDECREF(bases);
    if (type != NULL && PyModule_AddObjectRef(module, name, type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

int pyk_errors_init(PyObject *module, struct pyk_state *state) {
#define X(field, name, base, doc)                                                                                      \
    state->errors.field = make(module, state, name, base, doc);                                                        \
    if (state->errors.field == NULL) {                                                                                 \
        return -1;                                                                                                     \
    }
    PYK_EXCEPTION_LIST(X)
#undef X
    return 0;
}

/* Sets an attribute of a new exception; the value is stolen. */
static int attribute(PyObject *error, const char *name, PyObject *value) {
    int status = value == NULL ? -1 : PyObject_SetAttrString(error, name, value);
    Py_XDECREF(value);
    return status;
}

static PyObject *error_new(PyObject *type, int code, PyObject *text) {
    PyObject *error = text == NULL ? NULL : PyObject_CallFunctionObjArgs(type, text, NULL);
    Py_XDECREF(text);
    if (error != NULL && attribute(error, "code", PyUnicode_FromString(kvbm_error_name_mt(code))) < 0) {
        Py_CLEAR(error);
    }
    return error;
}

static int error_raise(PyObject *error) {
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return -1;
}

int pyk_raise(PyObject *type, int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    PyObject *text = PyUnicode_FromFormatV(format, list);
    va_end(list);
    return error_raise(error_new(type, code, text));
}

int pyk_raise_argument(struct pyk_state *state, const char *format, ...) {
    va_list list;
    va_start(list, format);
    PyObject *text = PyUnicode_FromFormatV(format, list);
    va_end(list);
    return error_raise(error_new(state->errors.invalid_argument, -EINVAL, text));
}

/* X(code, field) */
#define STATUS_LIST(X)                                                                                                 \
    X(EINVAL, invalid_argument)                                                                                        \
    X(EAGAIN, overloaded)                                                                                              \
    X(ENOMEM, storage_error)                                                                                           \
    X(EMFILE, storage_error)                                                                                           \
    X(ETIMEDOUT, operation_timeout)                                                                                    \
    X(KVBM_ENOBLOCKS, out_of_blocks)                                                                                   \
    X(KVBM_ESTALE, stale_block)                                                                                        \
    X(KVBM_ENOTOWNED, block_state)                                                                                     \
    X(KVBM_EINCOMPLETE, incomplete_block)                                                                              \
    X(KVBM_EIMMUTABLE, immutable_block)                                                                                \
    X(KVBM_EMUTABLE, block_state)                                                                                      \
    X(KVBM_ECLOSED, closed)                                                                                            \
    X(KVBM_EFORKED, forked)                                                                                            \
    X(KVBM_EGEOMETRY, invalid_argument)                                                                                \
    X(KVBM_EWRONGMANAGER, wrong_manager)                                                                               \
    X(KVBM_ESHUTDOWN, closed)                                                                                          \
    X(KVBM_ELEASES, block_state)                                                                                       \
    X(KVBM_EDUPLICATE, invalid_argument)

int pyk_raise_status(struct pyk_state *state, const char *what, int status) {
    pyk_log_drain(state);
    PyObject *type = state->errors.manager_error;
    switch (-status) {
#define X(code, field)                                                                                                 \
    case code:                                                                                                         \
        type = state->errors.field;                                                                                    \
        break;
        STATUS_LIST(X)
#undef X
    default:
        break;
    }
    return pyk_raise(type, status, "%s: %s", what, kvbm_error_text_mt(status));
}

int pyk_raise_completion(struct pyk_state *state, const struct pyk_request *request, const char *what) {
    const kvbm_completion *done = &request->completion;
    const struct pyk_core *core = request->core;
    if (done->status == -ETIMEDOUT) {
        pyk_log_drain(state);
        return pyk_raise(
            state->errors.operation_timeout, done->status, "%s: no %llu blocks came free within the timeout of %llu ms",
            what, (unsigned long long)request->count, (unsigned long long)((request->timeout_ns + 999999) / 1000000));
    }
    if (done->status != -KVBM_ENOBLOCKS) {
        return pyk_raise_status(state, what, done->status);
    }
    pyk_log_drain(state);
    PyObject *text =
        PyUnicode_FromFormat("%s: %llu blocks requested, %llu available of %llu in the host pool of manager '%s'", what,
                             (unsigned long long)done->requested, (unsigned long long)done->available,
                             (unsigned long long)core->layout.block_count, core->name);
    PyObject *error = error_new(state->errors.out_of_blocks, done->status, text);
    if (error != NULL && (attribute(error, "requested", PyLong_FromUnsignedLongLong(done->requested)) < 0 ||
                          attribute(error, "available", PyLong_FromUnsignedLongLong(done->available)) < 0)) {
        Py_CLEAR(error);
    }
    return error_raise(error);
}

int pyk_raise_hold(struct pyk_state *state, const char *what, uint32_t hold) {
    if (hold == PYK_BUSY || hold == PYK_BUSY_RELEASE) {
        return pyk_raise(state->errors.block_state, -KVBM_ENOTOWNED, "%s: the block is being registered", what);
    }
    return pyk_raise(state->errors.stale_block, -KVBM_ESTALE, "%s: the block was %s", what,
                     hold == PYK_CONSUMED ? "registered: use the block that register_blocks returned" : "released");
}
