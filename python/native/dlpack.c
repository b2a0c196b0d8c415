/*
 * dlpack.c - tensors out (DLPack 1.x capsules, and legacy ones) and in (copies from any producer on the CPU).
 *
 * An exported tensor pins its holder. Its deleter may run on any thread, without the GIL, after every Python object of
 * ours is gone: it touches only native reference counts. If it drops the last reference to a manager's memory, that
 * manager has been closed (manager.c closes before it lets go), so nothing is waited for there.
 */
#include "python/native/native_internal.h"

#include <dlpack/dlpack.h>

#include <stdlib.h>
#include <string.h>

#define AXES            4
#define SOURCE_AXES_MAX 4
/* From here on copies let other Python threads run. */
#define COPY_ALONE_BYTES 65536

static const char versioned_name[] = "dltensor_versioned";
static const char legacy_name[] = "dltensor";

/* ----------------------------------------------------------------------------------------------------------- export */

struct exported {
    union {
        DLManagedTensorVersioned versioned;
        DLManagedTensor legacy;
    } tensor;
    struct pyk_holder *holder; /* pinned; NULL: `copy` */
    void *copy;
    int64_t shape[AXES], strides[AXES];
};

static void exported_free(struct exported *exported) {
    if (exported->holder != NULL) {
        pyk_holder_unpin(exported->holder);
    }
    free(exported->copy);
    free(exported);
}

static void delete_versioned(DLManagedTensorVersioned *self) {
    exported_free(self->manager_ctx);
}

static void delete_legacy(DLManagedTensor *self) {
    exported_free(self->manager_ctx);
}

/* A capsule that nobody consumed still has its name. */
static void capsule_destructor(PyObject *capsule) {
    for (int i = 0; i < 2; i++) {
        const char *name = i == 0 ? versioned_name : legacy_name;
        if (PyCapsule_IsValid(capsule, name)) {
            void *tensor = PyCapsule_GetPointer(capsule, name);
            if (i == 0) {
                ((DLManagedTensorVersioned *)tensor)->deleter(tensor);
            } else {
                ((DLManagedTensor *)tensor)->deleter(tensor);
            }
            return;
        }
    }
}

/* Copies the planes of a view from or to memory with strides of its own (in bytes). */
static void copy_planes(const struct pyk_core *core, char *data, int axes, const int64_t *shape, const int64_t *strides,
                        char *other, const int64_t *other_strides, bool out) {
    int64_t layers = axes == AXES ? shape[0] : 1;
    const int64_t *inner_shape = shape + (axes - 3);
    const int64_t *inner_strides = strides + (axes - 3);
    const int64_t *far = other_strides + (axes - 3);
    int64_t element = (int64_t)core->element_bytes;
    bool dense_rows = far[2] == element;
    bool dense_planes = dense_rows && far[1] == inner_shape[2] * element;
    for (int64_t layer = 0; layer < layers; layer++) {
        for (int64_t outer = 0; outer < inner_shape[0]; outer++) {
            char *near = data + (axes == AXES ? layer * strides[0] * element : 0) + outer * inner_strides[0] * element;
            char *away = other + (axes == AXES ? layer * other_strides[0] : 0) + outer * far[0];
            int64_t rows = dense_planes ? 1 : inner_shape[1];
            size_t row_bytes =
                (size_t)(dense_planes ? inner_shape[1] * inner_shape[2] : inner_shape[2]) * core->element_bytes;
            for (int64_t row = 0; row < rows; row++) {
                char *at = near + row * inner_shape[2] * element;
                char *from = away + row * far[1];
                if (out) {
                    memcpy(from, at, row_bytes);
                } else if (dense_rows) {
                    memcpy(at, from, row_bytes);
                } else {
                    for (int64_t i = 0; i < inner_shape[2]; i++) {
                        memcpy(at + i * element, from + i * far[2], core->element_bytes);
                    }
                }
            }
        }
    }
}

/* Lowest and highest (exclusive) offset of a view's elements, in bytes. */
static void extent(int axes, const int64_t *shape, const int64_t *strides, int64_t element, int64_t *low,
                   int64_t *high) {
    *low = 0;
    *high = element;
    for (int i = 0; i < axes; i++) {
        int64_t reach = (shape[i] - 1) * strides[i];
        *low += reach < 0 ? reach : 0;
        *high += reach > 0 ? reach : 0;
    }
}

/* True if no byte of a view is one of another view's of the same shape, whose first element is `distance` bytes further
 * on. Strides in bytes. False also where that is not easily seen; blocks and layers beside each other are. */
static bool are_apart(int axes, const int64_t *shape, const int64_t *strides, const int64_t *other_strides,
                      int64_t element, int64_t distance) {
    int64_t low, high, other_low, other_high;
    extent(axes, shape, strides, element, &low, &high);
    extent(axes, shape, other_strides, element, &other_low, &other_high);
    if (high <= other_low + distance || other_high + distance <= low) {
        return true;
    }
    if (axes <= 2 || (shape[0] != 1 && strides[0] != other_strides[0])) {
        return false;
    }
    for (int64_t i = 1 - shape[0]; i < shape[0]; i++) {
        if (!are_apart(axes - 1, shape + 1, strides + 1, other_strides + 1, element, distance + i * strides[0])) {
            return false;
        }
    }
    return true;
}

struct request {
    bool versioned, copy, copy_given;
};

/* (a, b) of ints; -1 with an exception. */
static int pair(struct pyk_state *state, PyObject *value, const char *name, uint64_t *a, uint64_t *b) {
    if (!PyTuple_Check(value) || PyTuple_Size(value) != 2) {
        PyErr_Format(PyExc_TypeError, "%s: must be a tuple of two ints or None, not %R", name, value);
        return -1;
    }
    return pyk_argument_uint(state, PyTuple_GetItem(value, 0), name, 0, INT32_MAX, a) < 0 ||
                   pyk_argument_uint(state, PyTuple_GetItem(value, 1), name, 0, INT32_MAX, b) < 0
               ? -1
               : 0;
}

static int parse(struct pyk_state *state, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords,
                 struct request *request) {
    static const char *const names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    static const struct pyk_signature signature = {"__dlpack__", names, 4, 4, 0};
    PyObject *values[4];
    uint64_t a, b;
    *request = (struct request){.versioned = false};
    if (pyk_arguments(&signature, args, nargs, keywords, values) < 0) {
        return -1;
    }
    if (values[0] != NULL && values[0] != Py_None) {
        PyErr_Format(PyExc_BufferError, "stream: must be None for host memory, not %R", values[0]);
        return -1;
    }
    if (values[1] != NULL && values[1] != Py_None) {
        if (pair(state, values[1], "max_version", &a, &b) < 0) {
            return -1;
        }
        request->versioned = a >= 1;
    }
    if (values[2] != NULL && values[2] != Py_None) {
        if (pair(state, values[2], "dl_device", &a, &b) < 0) {
            return -1;
        }
        if (a != kDLCPU || b != 0) {
            PyErr_Format(PyExc_BufferError, "dl_device: host blocks can be had on (1, 0), the CPU, only, not %R",
                         values[2]);
            return -1;
        }
    }
    if (values[3] != NULL && values[3] != Py_None) {
        return pyk_argument_bool(values[3], "copy", &request->copy);
    }
    return 0;
}

static struct exported *exported_new(struct pyk_holder *holder, int64_t layer, void *data,
                                     const struct request *request, bool readonly) {
    const struct pyk_core *core = holder->chunk->core;
    struct exported *exported = calloc(1, sizeof *exported);
    if (exported == NULL) {
        return NULL;
    }
    int axes = pyk_block_geometry(holder, layer, exported->shape, exported->strides);
    if (request->copy) {
        int64_t dense[AXES];
        int64_t bytes = (int64_t)core->element_bytes;
        int64_t strides[AXES];
        memcpy(strides, exported->strides, sizeof strides);
        for (int i = axes - 1; i >= 0; i--) {
            dense[i] = bytes;
            exported->strides[i] = bytes / (int64_t)core->element_bytes;
            bytes *= exported->shape[i];
        }
        size_t rounded = ((size_t)bytes + 255) & ~(size_t)255;
        exported->copy = aligned_alloc(256, rounded);
        if (exported->copy == NULL) {
            free(exported);
            return NULL;
        }
        copy_planes(core, data, axes, exported->shape, strides, exported->copy, dense, true);
        data = exported->copy;
    } else {
        pyk_holder_pin(holder);
        exported->holder = holder;
    }
    DLTensor tensor = {.data = data,
                       .device = {.device_type = kDLCPU, .device_id = 0},
                       .ndim = axes,
                       .shape = exported->shape,
                       .strides = exported->strides};
    tensor.dtype.lanes = 1;
    (void)kvbm_dtype_dlpack_mt(core->layout.geometry.dtype, &tensor.dtype.code, &tensor.dtype.bits);
    if (request->versioned) {
        DLManagedTensorVersioned *managed = &exported->tensor.versioned;
        managed->version.major = DLPACK_MAJOR_VERSION;
        managed->version.minor = DLPACK_MINOR_VERSION;
        managed->manager_ctx = exported;
        managed->deleter = delete_versioned;
        managed->flags = request->copy ? DLPACK_FLAG_BITMASK_IS_COPIED : readonly ? DLPACK_FLAG_BITMASK_READ_ONLY : 0;
        managed->dl_tensor = tensor;
    } else {
        exported->tensor.legacy.dl_tensor = tensor;
        exported->tensor.legacy.manager_ctx = exported;
        exported->tensor.legacy.deleter = delete_legacy;
    }
    return exported;
}

/* Address of the view of a HELD block, and whether it is registered. */
static int locate(struct pyk_state *state, const struct pyk_holder *holder, int64_t layer, const char *what,
                  void **data, bool *readonly) {
    kvbm_manager *manager = holder->chunk->core->manager;
    if (pyk_holder_check(state, holder, what) < 0) {
        return -1;
    }
    int found = kvbm_block_state_mt(manager, holder->handle);
    int status =
        found < 0 ? found : kvbm_block_data_mt(manager, holder->handle, layer < 0 ? 0 : (uint32_t)layer, 0, data);
    *readonly = found == KVBM_BLOCK_REGISTERED;
    return status < 0 ? pyk_raise_status(state, what, status) : 0;
}

PyObject *pyk_dlpack_export(PyObject *self, struct pyk_holder *holder, int64_t layer, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *keywords) {
    struct pyk_state *state = pyk_state_of(self);
    struct request request;
    void *data;
    bool readonly;
    if (parse(state, args, nargs, keywords, &request) < 0 ||
        locate(state, holder, layer, "__dlpack__", &data, &readonly) < 0) {
        return NULL;
    }
    if (readonly && !request.versioned && !request.copy) {
        PyErr_SetString(PyExc_BufferError,
                        "the block is registered, hence read-only, which a legacy DLPack capsule cannot say: ask for a "
                        "version (max_version=(1, 0), or pass the object itself to from_dlpack) or for copy=True");
        return NULL;
    }
    struct exported *exported = exported_new(holder, layer, data, &request, readonly);
    if (exported == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *capsule =
        PyCapsule_New(&exported->tensor, request.versioned ? versioned_name : legacy_name, capsule_destructor);
    if (capsule == NULL) {
        exported_free(exported);
    }
    return capsule;
}

PyObject *pyk_dlpack_device(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return Py_BuildValue("(ii)", (int)kDLCPU, 0);
}

/* ----------------------------------------------------------------------------------------------------------- import */

/* A consumed capsule. */
struct imported {
    const DLTensor *tensor;
    DLManagedTensorVersioned *versioned;
    DLManagedTensor *legacy;
};

static void imported_free(struct imported *imported) {
    if (imported->versioned != NULL && imported->versioned->deleter != NULL) {
        imported->versioned->deleter(imported->versioned);
    } else if (imported->legacy != NULL && imported->legacy->deleter != NULL) {
        imported->legacy->deleter(imported->legacy);
    }
}

static int check_device(PyObject *source, const struct pyk_state *state) {
    PyObject *device = PyObject_CallMethodObjArgs(source, state->str_dlpack_device, NULL);
    if (device == NULL) {
        return -1;
    }
    int status = 0;
    long type = -1;
    if (PyTuple_Check(device) && PyTuple_Size(device) == 2) {
        type = PyLong_AsLong(PyTuple_GetItem(device, 0));
    }
    if (type == -1 && PyErr_Occurred()) {
        status = -1;
    } else if (type != kDLCPU && type != kDLCUDAHost) {
        PyErr_Format(PyExc_BufferError, "source: must be on the CPU, not on DLPack device %R", device);
        status = -1;
    }
    Py_DECREF(device);
    return status;
}

/* Asks for a versioned capsule, and again without a version from producers that know none. */
static PyObject *ask(PyObject *source, const struct pyk_state *state) {
    if (PyCapsule_IsValid(source, versioned_name) || PyCapsule_IsValid(source, legacy_name)) {
        return Py_NewRef(source);
    }
    PyObject *method = PyObject_GetAttr(source, state->str_dlpack);
    if (method == NULL) {
        PyErr_Clear();
        pyk_raise_type(source, "source", "a DLPack capsule, or have __dlpack__ and __dlpack_device__");
        return NULL;
    }
    PyObject *capsule = NULL;
    if (check_device(source, state) == 0) {
        PyObject *none = PyTuple_New(0);
        PyObject *keywords =
            Py_BuildValue("{s(ii)}", "max_version", (int)DLPACK_MAJOR_VERSION, (int)DLPACK_MINOR_VERSION);
        if (none != NULL && keywords != NULL) {
            capsule = PyObject_Call(method, none, keywords);
            if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
                PyErr_Clear();
                capsule = PyObject_Call(method, none, NULL);
            }
        }
        Py_XDECREF(none);
        Py_XDECREF(keywords);
    }
    Py_DECREF(method);
    return capsule;
}

/* Takes the tensor out of its capsule. */
static int consume(PyObject *capsule, struct imported *imported) {
    *imported = (struct imported){.tensor = NULL};
    if (PyCapsule_IsValid(capsule, versioned_name)) {
        imported->versioned = PyCapsule_GetPointer(capsule, versioned_name);
        if (imported->versioned->version.major != DLPACK_MAJOR_VERSION) {
            PyErr_Format(PyExc_BufferError, "source: has DLPack version %lu.%lu, this package knows %d",
                         (unsigned long)imported->versioned->version.major,
                         (unsigned long)imported->versioned->version.minor, DLPACK_MAJOR_VERSION);
            return -1; /* the capsule keeps it */
        }
        imported->tensor = &imported->versioned->dl_tensor;
        return PyCapsule_SetName(capsule, "used_dltensor_versioned");
    }
    if (PyCapsule_IsValid(capsule, legacy_name)) {
        imported->legacy = PyCapsule_GetPointer(capsule, legacy_name);
        imported->tensor = &imported->legacy->dl_tensor;
        return PyCapsule_SetName(capsule, "used_dltensor");
    }
    PyErr_SetString(PyExc_BufferError, "source: __dlpack__ returned no unused DLPack capsule");
    return -1;
}

static PyObject *shape_tuple(const int64_t *shape, int axes) {
    PyObject *tuple = PyTuple_New(axes);
    for (int i = 0; tuple != NULL && i < axes; i++) {
        PyObject *value = PyLong_FromLongLong(shape[i]);
        if (value == NULL || PyTuple_SetItem(tuple, i, value) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

static int check_tensor(struct pyk_state *state, const DLTensor *tensor, int axes, const int64_t *shape, int dtype) {
    uint8_t code, bits;
    (void)kvbm_dtype_dlpack_mt(dtype, &code, &bits);
    if (tensor->device.device_type != kDLCPU && tensor->device.device_type != kDLCUDAHost) {
        PyErr_Format(PyExc_BufferError, "source: must be on the CPU, not on DLPack device type %d",
                     (int)tensor->device.device_type);
        return -1;
    }
    if (tensor->dtype.code != code || tensor->dtype.bits != bits || tensor->dtype.lanes != 1) {
        return pyk_raise_argument(state, "source: must be of dtype %s (DLPack code %d, %d bits), not code %d, %d bits",
                                  kvbm_dtype_name_mt(dtype), (int)code, (int)bits, (int)tensor->dtype.code,
                                  (int)tensor->dtype.bits);
    }
    bool same = tensor->ndim == axes;
    for (int i = 0; same && i < axes; i++) {
        same = tensor->shape[i] == shape[i];
    }
    if (!same) {
        PyObject *wanted = shape_tuple(shape, axes);
        PyObject *given = shape_tuple(tensor->shape, tensor->ndim);
        if (wanted != NULL && given != NULL) {
            pyk_raise_argument(state, "source: must have the shape %R, not %R", wanted, given);
        }
        Py_XDECREF(wanted);
        Py_XDECREF(given);
        return -1;
    }
    return 0;
}

/* Through a dense copy where the source is other elements of the same memory. -1 with MemoryError. */
static int copy_in(struct pyk_holder *holder, char *data, int axes, const int64_t *shape, const int64_t *strides,
                   const DLTensor *tensor) {
    const struct pyk_core *core = holder->chunk->core;
    int64_t far[SOURCE_AXES_MAX], near[AXES], dense[AXES], dense_strides[AXES];
    int64_t element = (int64_t)core->element_bytes;
    int64_t bytes = element;
    bool same = true;
    for (int i = axes - 1; i >= 0; i--) {
        dense[i] = bytes;
        dense_strides[i] = bytes / element;
        near[i] = strides[i] * element;
        far[i] = tensor->strides == NULL ? bytes : tensor->strides[i] * element;
        same &= shape[i] == 1 || near[i] == far[i];
        bytes *= shape[i];
    }
    char *source = (char *)tensor->data + tensor->byte_offset;
    if (same && source == data) {
        return 0;
    }
    char *between = NULL;
    if (!are_apart(axes, shape, near, far, element, (int64_t)((intptr_t)source - (intptr_t)data))) {
        between = malloc((size_t)bytes);
        if (between == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    PyThreadState *thread = NULL;
    if (bytes >= COPY_ALONE_BYTES) {
        pyk_holder_pin(holder);
        thread = PyEval_SaveThread();
    }
    if (between != NULL) {
        copy_planes(core, between, axes, shape, dense_strides, source, far, false);
        copy_planes(core, data, axes, shape, strides, between, dense, false);
    } else {
        copy_planes(core, data, axes, shape, strides, source, far, false);
    }
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
        pyk_holder_unpin(holder);
    }
    free(between);
    return 0;
}

PyObject *pyk_dlpack_import(PyObject *self, struct pyk_holder *holder, int64_t layer, PyObject *source) {
    struct pyk_state *state = pyk_state_of(self);
    int64_t shape[AXES], strides[AXES];
    struct imported imported;
    PyObject *capsule = ask(source, state);
    if (capsule == NULL) {
        return NULL;
    }
    int status = consume(capsule, &imported);
    Py_DECREF(capsule);
    if (status < 0) {
        return NULL;
    }
    void *data;
    bool readonly;
    int axes = pyk_block_geometry(holder, layer, shape, strides);
    status = check_tensor(state, imported.tensor, axes, shape, holder->chunk->core->layout.geometry.dtype);
    if (status == 0) {
        status = locate(state, holder, layer, "copy_from", &data, &readonly);
    }
    if (status == 0 && readonly) {
        status = pyk_raise(state->errors.immutable_block, -KVBM_EIMMUTABLE,
                           "copy_from: the block is registered, hence read-only");
    }
    if (status == 0) {
        status = copy_in(holder, data, axes, shape, strides, imported.tensor);
    }
    imported_free(&imported);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}
