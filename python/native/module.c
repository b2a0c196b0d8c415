/*
 * module.c - the extension module: its state, types and functions. Multi-phase initialisation, one state an
 * interpreter; an interpreter with a GIL of its own is refused by CPython, since the module does not declare support
 * for it.
 */
#include "python/native/native_internal.h"

#include <string.h>

PyMODINIT_FUNC PyInit__kvbm(void);

static PyObject *flush_logs(PyObject *module, PyObject *unused) {
    (void)unused;
    pyk_log_drain(PyModule_GetState(module));
    return Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"hash_tokens", (PyCFunction)(void (*)(void))pyk_hash_tokens, METH_FASTCALL | METH_KEYWORDS, pyk_hash_tokens_doc},
    {"flush_logs", flush_logs, METH_NOARGS,
     "flush_logs()\n--\n\n"
     "Emits log records of native threads to the logger \"dynamo_llm\" now. Otherwise they are emitted when a manager "
     "is\n"
     "opened or closed, when a call fails, and when an event loop takes completions."},
    {NULL, NULL, 0, NULL},
};

static int intern(PyObject **place, const char *text) {
    *place = PyUnicode_InternFromString(text);
    return *place == NULL ? -1 : 0;
}

static int make_strings(struct pyk_state *state) {
    return intern(&state->str_create_future, "create_future") < 0 || intern(&state->str_set_result, "set_result") < 0 ||
                   intern(&state->str_blocking, "_asyncio_future_blocking") < 0 ||
                   intern(&state->str_add_reader, "add_reader") < 0 ||
                   intern(&state->str_call_later, "call_later") < 0 || intern(&state->str_cancel, "cancel") < 0 ||
                   intern(&state->str_result, "result") < 0 ||
                   intern(&state->str_run_in_executor, "run_in_executor") < 0 ||
                   intern(&state->str_dlpack, "__dlpack__") < 0 ||
                   intern(&state->str_dlpack_device, "__dlpack_device__") < 0 || intern(&state->str_log, "log") < 0 ||
                   intern(&state->str_close, "_close") < 0
               ? -1
               : 0;
}

static int make_types(PyObject *module, struct pyk_state *state) {
#define X(field, name)                                                                                                 \
    state->types.field = pyk_##field##_type(module);                                                                   \
    if (state->types.field == NULL ||                                                                                  \
        ((name) != NULL && PyModule_AddObjectRef(module, (name), (PyObject *)state->types.field) < 0)) {               \
        return -1;                                                                                                     \
    }
    PYK_TYPE_LIST(X)
#undef X
    return pyk_dtype_members(state);
}

/* BlockList and SequenceHashes are sequences for isinstance and for match statements. */
static int register_sequences(const struct pyk_state *state) {
    PyObject *abc = PyImport_ImportModule("collections.abc");
    PyObject *sequence = abc == NULL ? NULL : PyObject_GetAttrString(abc, "Sequence");
    PyTypeObject *const types[] = {state->types.list, state->types.hashes};
    int status = sequence == NULL ? -1 : 0;
    for (size_t i = 0; status == 0 && i < 2; i++) {
        PyObject *done = PyObject_CallMethod(sequence, "register", "O", (PyObject *)types[i]);
        status = done == NULL ? -1 : 0;
        Py_XDECREF(done);
    }
    Py_XDECREF(sequence);
    Py_XDECREF(abc);
    return status;
}

static int module_exec(PyObject *module) {
    struct pyk_state *state = PyModule_GetState(module);
    return pyk_errors_init(module, state) < 0 || make_strings(state) < 0 || make_types(module, state) < 0 ||
                   register_sequences(state) < 0 ||
                   PyModule_AddStringConstant(module, "__version__", kvbm_version_mt()) < 0
               ? -1
               : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    struct pyk_state *state = PyModule_GetState(module);
#define X(field, name, bases, doc) Py_VISIT(state->errors.field);
    PYK_EXCEPTION_LIST(X)
#undef X
#define X(field, name) Py_VISIT((PyObject *)state->types.field);
    PYK_TYPE_LIST(X)
#undef X
    for (int i = 0; i < PYK_DTYPE_COUNT; i++) {
        Py_VISIT(state->dtypes[i]);
    }
    Py_VISIT(state->get_running_loop);
    Py_VISIT(state->logger);
    return 0;
}

static int module_clear(PyObject *module) {
    struct pyk_state *state = PyModule_GetState(module);
#define X(field, name, bases, doc) Py_CLEAR(state->errors.field);
    PYK_EXCEPTION_LIST(X)
#undef X
    for (int i = 0; i < PYK_DTYPE_COUNT; i++) {
        Py_CLEAR(state->dtypes[i]);
    }
    Py_CLEAR(state->get_running_loop);
    Py_CLEAR(state->logger);
    return 0;
}

/* Types and strings stay until here: what still lives uses them while it is dropped. */
static void module_free(void *module) {
    struct pyk_state *state = PyModule_GetState(module);
    (void)module_clear(module);
#define X(field, name) Py_CLEAR(state->types.field);
    PYK_TYPE_LIST(X)
#undef X
    PyObject **const strings[] = {&state->str_create_future, &state->str_set_result, &state->str_blocking,
                                  &state->str_add_reader,    &state->str_call_later, &state->str_cancel,
                                  &state->str_result,        &state->str_dlpack,     &state->str_run_in_executor,
                                  &state->str_dlpack_device, &state->str_log,        &state->str_close};
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        Py_CLEAR(*strings[i]);
    }
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

PyDoc_STRVAR(doc, "The C extension of dynamo_llm; the package re-exports it (dynamo_llm, dynamo_llm.aio).");

PyModuleDef pyk_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dynamo_llm._kvbm",
    .m_doc = doc,
    .m_size = sizeof(struct pyk_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__kvbm(void) {
    return PyModuleDef_Init(&pyk_module_def);
}
