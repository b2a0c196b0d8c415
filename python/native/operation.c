/*
 * operation.c - Operation: what the asyncio face returns. A one-shot awaitable that is a coroutine by its methods.
 *
 * It is submitted at the first send. What the borrowed reactor answers at once is returned at once: no future, no turn
 * of the loop. Otherwise one future of the running loop is yielded, and the loop's bridge (loop.c) completes it. The
 * request (shared.c) then belongs to the flight, and comes back here with its completion.
 *
 * A task that is cancelled throws into the operation: it cancels natively, forgets its request and raises. The request
 * completes later and is disposed of by whoever gets it, the bridge or the orphan callback; so its blocks come back
 * when the operation is settled, never before and never not.
 *
 * While in flight the bridge keeps the operation (hence the task that waits for it) alive, as a timer of the loop
 * would.
 */
#include "python/native/native_internal.h"

#include <structmember.h>

#include <errno.h>
#include <string.h>

static struct pyk_operation_object *self_of(PyObject *self) {
    return (struct pyk_operation_object *)self;
}

static struct pyk_operation_object *operation_make(struct pyk_state *state, PyObject *owner, int phase) {
    struct pyk_operation_object *self = PyObject_GC_New(struct pyk_operation_object, state->types.operation);
    if (self != NULL) {
        memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
        self->module = state;
        self->owner = Py_XNewRef(owner);
        self->name = phase == PYK_OP_CLOSE ? "close" : "operation";
        self->state = (enum pyk_operation_state)phase;
    }
    return self;
}

PyObject *pyk_operation_new(struct pyk_state *state, PyObject *owner, struct pyk_request *request) {
    struct pyk_operation_object *self = operation_make(state, owner, PYK_OP_NEW);
    if (self == NULL) {
        pyk_request_free(request);
        return NULL;
    }
    self->request = request;
    self->name = pyk_request_name(request);
    PyObject_GC_Track((PyObject *)self);
    return (PyObject *)self;
}

PyObject *pyk_operation_ready(struct pyk_state *state, PyObject *result) {
    struct pyk_operation_object *self = operation_make(state, NULL, PYK_OP_READY);
    if (self == NULL) {
        Py_XDECREF(result);
        return NULL;
    }
    self->result = result;
    PyObject_GC_Track((PyObject *)self);
    return (PyObject *)self;
}

PyObject *pyk_operation_close(struct pyk_state *state, PyObject *owner, PyObject *timeout) {
    struct pyk_operation_object *self = operation_make(state, owner, PYK_OP_CLOSE);
    if (self != NULL) {
        self->result = Py_XNewRef(timeout);
        PyObject_GC_Track((PyObject *)self);
    }
    return (PyObject *)self;
}

static const char *name_of(const struct pyk_operation_object *self) {
    return self->name;
}

/* Lets go of what only a waiting operation needs. */
static void settle(struct pyk_operation_object *self) {
    PyObject *timer = self->timer;
    self->state = PYK_OP_DONE;
    self->bridge = NULL;
    self->timer = NULL;
    if (timer != NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback); /* it may be dropped while an exception is on its way */
        PyObject *done = PyObject_CallMethodObjArgs(timer, self->module->str_cancel, NULL);
        if (done == NULL) {
            PyErr_WriteUnraisable(timer);
        }
        Py_XDECREF(done);
        Py_DECREF(timer);
        PyErr_Restore(type, value, traceback);
    }
    Py_CLEAR(self->future);
}

/* ----------------------------------------------------------------------------------------------- called by a bridge */

void pyk_operation_abandon(struct pyk_operation_object *self) {
    struct pyk_request *request = self->request;
    self->request = NULL;
    Py_INCREF((PyObject *)self);
    if (self->state == PYK_OP_PENDING) {
        request->operation = NULL;
        pyk_line_remove(&self->bridge->pending, self);
        (void)kvbm_cancel_mt(request->core->manager, request->id);
    } else if (self->state == PYK_OP_CREDIT) {
        pyk_line_remove(&self->bridge->credit, self);
        pyk_request_free(request);
    }
    settle(self);
    Py_DECREF((PyObject *)self);
}

void pyk_operation_completed(struct pyk_operation_object *self) {
    Py_INCREF((PyObject *)self);
    pyk_line_remove(self->state == PYK_OP_PENDING ? &self->bridge->pending : &self->bridge->credit, self);
    self->state = PYK_OP_COMPLETED;
    self->bridge = NULL;
    self->request->operation = NULL;
    if (self->future != NULL) {
        PyObject *done = PyObject_CallMethodObjArgs(self->future, self->module->str_set_result, Py_None, NULL);
        if (done == NULL) {
            PyErr_Clear(); /* cancelled meanwhile: its task will throw */
        }
        Py_XDECREF(done);
    }
    Py_DECREF((PyObject *)self);
}

static void fail(struct pyk_operation_object *self, int status) {
    self->submit_status = status;
    pyk_operation_completed(self);
}

bool pyk_operation_retry(struct pyk_operation_object *self) {
    struct pyk_request *request = self->request;
    kvbm_failure failure = {.size = sizeof failure};
    uint64_t timeout_ns = request->timeout_ns;
    if (timeout_ns != 0) {
        uint64_t waited_ns = pyk_now_ns() - request->submitted_ns;
        if (waited_ns >= timeout_ns) {
            fail(self, -ETIMEDOUT);
            return true;
        }
        request->timeout_ns = timeout_ns - waited_ns;
    }
    int status = pyk_request_submit(request, self->bridge->port, &failure);
    request->timeout_ns = timeout_ns;
    if (status == -EAGAIN) {
        return false;
    }
    if (status < 0) {
        fail(self, status);
    } else if (status == 1) {
        pyk_operation_completed(self);
    } else {
        Py_INCREF((PyObject *)self);
        pyk_line_remove(&self->bridge->credit, self);
        pyk_line_add(&self->bridge->pending, self);
        self->state = PYK_OP_PENDING;
        request->operation = self;
        Py_DECREF((PyObject *)self);
    }
    return true;
}

/* ---------------------------------------------------------------------------------------------------------- sending */

/* Yields the operation's future as asyncio's futures yield themselves. */
static PySendResult yield_future(struct pyk_operation_object *self, PyObject **result) {
    if (PyObject_SetAttr(self->future, self->module->str_blocking, Py_True) < 0) {
        return PYGEN_ERROR;
    }
    *result = Py_NewRef(self->future);
    return PYGEN_NEXT;
}

static PySendResult finish(struct pyk_operation_object *self, PyObject **result) {
    struct pyk_request *request = self->request;
    self->request = NULL;
    if (self->future != NULL) {
        settle(self);
    }
    self->state = PYK_OP_DONE;
    if (self->submit_status < 0) {
        const char *name = pyk_request_name(request);
        if (self->submit_status == -ETIMEDOUT) {
            request->completion.status = -ETIMEDOUT;
            pyk_raise_completion(self->module, request, name);
        } else {
            pyk_raise_status(self->module, name, self->submit_status);
        }
        pyk_request_free(request);
        return PYGEN_ERROR;
    }
    *result = pyk_request_result(self->module, request);
    if (*result == NULL) {
        return PYGEN_ERROR;
    }
    if (self->in_context) {
        self->result = Py_NewRef(*result);
    }
    return PYGEN_RETURN;
}

/* In flight, or in line for a slot: from here on the bridge holds it. */
static PySendResult wait_in(struct pyk_operation_object *self, struct pyk_bridge_object *bridge, int phase,
                            PyObject **result) {
    self->state = (enum pyk_operation_state)phase;
    self->bridge = bridge;
    if (phase == PYK_OP_PENDING) {
        self->request->operation = self;
    }
    pyk_line_add(phase == PYK_OP_PENDING ? &bridge->pending : &bridge->credit, self);
    self->future = PyObject_CallMethodObjArgs(bridge->loop, self->module->str_create_future, NULL);
    if (self->future == NULL) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        pyk_operation_abandon(self);
        PyErr_Restore(type, value, traceback);
        return PYGEN_ERROR;
    }
    return yield_future(self, result);
}

/* No slot: waits for one, not longer than its own timeout. */
static PySendResult wait_for_credit(struct pyk_operation_object *self, struct pyk_bridge_object *bridge,
                                    PyObject **result) {
    struct pyk_request *request = self->request;
    request->submitted_ns = pyk_now_ns();
    int status = pyk_bridge_want_credit(bridge, request->core);
    if (status < 0) {
        self->submit_status = status;
        return finish(self, result);
    }
    if (request->timeout_ns != 0) {
        PyObject *expire = PyObject_GetAttrString((PyObject *)self, "_expire");
        PyObject *delay = PyFloat_FromDouble((double)request->timeout_ns / 1e9);
        if (expire != NULL && delay != NULL) {
            self->timer = PyObject_CallMethodObjArgs(bridge->loop, self->module->str_call_later, delay, expire, NULL);
        }
        Py_XDECREF(expire);
        Py_XDECREF(delay);
        if (self->timer == NULL) {
            self->request = NULL;
            self->state = PYK_OP_DONE;
            pyk_request_free(request);
            return PYGEN_ERROR;
        }
    }
    return wait_in(self, bridge, PYK_OP_CREDIT, result);
}

static PySendResult begin(struct pyk_operation_object *self, PyObject **result) {
    struct pyk_request *request = self->request;
    kvbm_failure failure;
    struct pyk_bridge_object *bridge = pyk_bridge_running(self->module);
    if (bridge == NULL) {
        self->request = NULL;
        self->state = PYK_OP_DONE;
        pyk_request_free(request);
        return PYGEN_ERROR;
    }
    failure.size = sizeof failure;
    failure.text[0] = '\0';
    int status =
        pyk_bridge_waits(bridge, request->core) ? -EAGAIN : pyk_request_submit(request, bridge->port, &failure);
    if (status == 1) {
        return finish(self, result);
    }
    if (status == 0) {
        return wait_in(self, bridge, PYK_OP_PENDING, result);
    }
    if (status == -EAGAIN) {
        return wait_for_credit(self, bridge, result);
    }
    pyk_raise_submit(self->module, request, status, &failure);
    self->request = NULL;
    self->state = PYK_OP_DONE;
    pyk_request_free(request);
    return PYGEN_ERROR;
}

static PySendResult begin_close(struct pyk_operation_object *self, PyObject **result) {
    struct pyk_state *state = self->module;
    PyObject *timeout = self->result;
    PyObject *loop = pyk_loop_running(state);
    PyObject *close = loop == NULL ? NULL : PyObject_GetAttr(self->owner, state->str_close);
    self->result = NULL;
    self->state = PYK_OP_DONE;
    if (close != NULL) {
        self->future = PyObject_CallMethodObjArgs(loop, state->str_run_in_executor, Py_None, close, timeout, NULL);
    }
    Py_XDECREF(timeout);
    Py_XDECREF(close);
    Py_XDECREF(loop);
    if (self->future == NULL) {
        return PYGEN_ERROR;
    }
    self->state = PYK_OP_CLOSING;
    return yield_future(self, result);
}

/* The executor's future is done: its result or its exception. */
static PySendResult end_close(struct pyk_operation_object *self, PyObject **result) {
    *result = PyObject_CallMethodObjArgs(self->future, self->module->str_result, NULL);
    settle(self);
    return *result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

/* It was begun before. Raises RuntimeError, naming both loops if there are two. */
static void raise_reuse(struct pyk_operation_object *self) {
    if (self->state == PYK_OP_PENDING || self->state == PYK_OP_CREDIT) {
        PyObject *loop = pyk_loop_running(self->module);
        PyErr_Clear();
        if (loop != NULL && loop != self->bridge->loop) {
            PyErr_Format(PyExc_RuntimeError, "%s was begun on the event loop %R and cannot be awaited on %R",
                         name_of(self), self->bridge->loop, loop);
        } else {
            PyErr_Format(PyExc_RuntimeError, "%s is being awaited already", name_of(self));
        }
        Py_XDECREF(loop);
        return;
    }
    PyErr_Format(PyExc_RuntimeError, "%s was awaited already, or closed: an operation can be awaited once",
                 name_of(self));
}

static PySendResult operation_send(PyObject *object, PyObject *value, PyObject **result) {
    struct pyk_operation_object *self = self_of(object);
    *result = NULL;
    if (value != NULL && value != Py_None && self->state != PYK_OP_DONE) {
        PyErr_SetString(PyExc_TypeError, "can't send a value to an operation");
        return PYGEN_ERROR;
    }
    switch (self->state) {
    case PYK_OP_NEW:
        return begin(self, result);
    case PYK_OP_COMPLETED:
        return finish(self, result);
    case PYK_OP_READY:
        *result = self->result;
        self->result = NULL;
        self->state = PYK_OP_DONE;
        return PYGEN_RETURN;
    case PYK_OP_CLOSE:
        return begin_close(self, result);
    case PYK_OP_CLOSING:
        return end_close(self, result);
    default:
        raise_reuse(self);
        return PYGEN_ERROR;
    }
}

/* --------------------------------------------------------------------------------------------- the coroutine's rest */

static PyObject *operation_next(PyObject *self) {
    PyObject *result;
    PySendResult sent = operation_send(self, Py_None, &result);
    if (sent == PYGEN_RETURN) {
        if (result == Py_None) {
            PyErr_SetNone(PyExc_StopIteration);
        } else {
            PyErr_SetObject(PyExc_StopIteration, result);
        }
        Py_CLEAR(result);
    }
    return sent == PYGEN_NEXT ? result : NULL;
}

static PyObject *operation_send_method(PyObject *self, PyObject *value) {
    if (value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "can't send a value to an operation");
        return NULL;
    }
    return operation_next(self);
}

static PyObject *operation_await(PyObject *object) {
    struct pyk_operation_object *self = self_of(object);
    if (self->state != PYK_OP_NEW && self->state != PYK_OP_READY && self->state != PYK_OP_CLOSE) {
        raise_reuse(self);
        return NULL;
    }
    return Py_NewRef(object);
}

/* A task may wait for an operation that other code ends: it is woken, resumes the operation and is told. */
static void abandon_and_wake(struct pyk_operation_object *self) {
    PyObject *future = Py_XNewRef(self->future);
    pyk_operation_abandon(self);
    PyObject *done =
        future == NULL ? NULL : PyObject_CallMethodObjArgs(future, self->module->str_set_result, Py_None, NULL);
    if (done == NULL) {
        PyErr_Clear(); /* done before: its own task was cancelled */
    }
    Py_XDECREF(done);
    Py_XDECREF(future);
}

/* Ends it without a result. No exception may be set. */
static void stop(struct pyk_operation_object *self) {
    struct pyk_request *request = self->request;
    switch (self->state) {
    case PYK_OP_PENDING:
    case PYK_OP_CREDIT:
        abandon_and_wake(self);
        return;
    case PYK_OP_COMPLETED:
        self->request = NULL;
        if (self->submit_status < 0) {
            pyk_request_free(request);
        } else {
            pyk_request_drop(request);
        }
        break;
    case PYK_OP_NEW:
        self->request = NULL;
        pyk_request_free(request);
        break;
    default:
        break;
    }
    settle(self);
}

static PyObject *operation_throw(PyObject *object, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs < 1 || nargs > 3) {
        PyErr_Format(PyExc_TypeError, "throw() takes 1 to 3 arguments (%zd given)", nargs);
        return NULL;
    }
    PyObject *type = args[0];
    PyObject *value = nargs > 1 && args[1] != Py_None ? args[1] : NULL;
    PyObject *traceback = nargs > 2 && args[2] != Py_None ? args[2] : NULL;
    bool is_instance = PyObject_TypeCheck(type, (PyTypeObject *)PyExc_BaseException);
    if (!is_instance &&
        !(PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, (PyTypeObject *)PyExc_BaseException))) {
        PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException, not %R",
                     (PyObject *)Py_TYPE(type));
        return NULL;
    }
    stop(self_of(object));
    if (is_instance) {
        value = type;
        type = (PyObject *)Py_TYPE(value);
        PyObject *own = traceback == NULL ? PyException_GetTraceback(value) : Py_NewRef(traceback);
        PyErr_Restore(Py_NewRef(type), Py_NewRef(value), own);
    } else {
        PyErr_Restore(Py_NewRef(type), Py_XNewRef(value), Py_XNewRef(traceback));
    }
    return NULL;
}

static PyObject *operation_close(PyObject *self, PyObject *unused) {
    (void)unused;
    stop(self_of(self));
    return Py_NewRef(Py_None);
}

static PyObject *operation_expire(PyObject *object, PyObject *unused) {
    (void)unused;
    if (self_of(object)->state == PYK_OP_CREDIT) {
        fail(self_of(object), -ETIMEDOUT);
    }
    return Py_NewRef(Py_None);
}

static PyObject *operation_enter(PyObject *object, PyObject *unused) {
    (void)unused;
    struct pyk_operation_object *self = self_of(object);
    if (self->request == NULL || self->request->kind == KVBM_OP_QUERY || self->state != PYK_OP_NEW) {
        PyErr_Format(PyExc_TypeError, "%s cannot be used with 'async with'", name_of(self));
        return NULL;
    }
    self->in_context = true;
    return Py_NewRef(object);
}

static PyObject *operation_exit(PyObject *object, PyObject *args) {
    (void)args;
    struct pyk_operation_object *self = self_of(object);
    if (self->result != NULL && Py_TYPE(self->result) == self->module->types.list) {
        pyk_list_release_all((struct pyk_list_object *)self->result);
    }
    Py_CLEAR(self->result);
    return pyk_operation_ready(self->module, Py_NewRef(Py_None));
}

static PyObject *operation_name(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(name_of(self_of(self)));
}

static PyObject *operation_repr(PyObject *self) {
    static const char *const phases[] = {"not awaited yet", "waits for a slot", "in flight", "completed",
                                         "ready",           "not awaited yet",  "closing",   "awaited"};
    return PyUnicode_FromFormat("<Operation %s, %s>", name_of(self_of(self)), phases[self_of(self)->state]);
}

/* --------------------------------------------------------------------------------------------------------- the type */

static int operation_traverse(PyObject *object, visitproc visit, void *arg) {
    struct pyk_operation_object *self = self_of(object);
    Py_VISIT((PyObject *)Py_TYPE(object));
    Py_VISIT(self->owner);
    Py_VISIT(self->future);
    Py_VISIT(self->timer);
    Py_VISIT(self->result);
    return 0;
}

static int operation_clear(PyObject *object) {
    struct pyk_operation_object *self = self_of(object);
    if (self->state == PYK_OP_PENDING || self->state == PYK_OP_CREDIT) {
        pyk_operation_abandon(self);
    }
    Py_CLEAR(self->owner);
    Py_CLEAR(self->future);
    Py_CLEAR(self->timer);
    Py_CLEAR(self->result);
    return 0;
}

static void warn_never_awaited(struct pyk_operation_object *self) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "operation '%s' was never awaited", name_of(self)) < 0) {
        PyErr_WriteUnraisable((PyObject *)self->module->types.operation);
    }
    PyErr_Restore(type, value, traceback);
}

static void operation_dealloc(PyObject *object) {
    struct pyk_operation_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weak_references != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    if (self->state == PYK_OP_NEW || self->state == PYK_OP_CLOSE) {
        warn_never_awaited(self);
    }
    stop(self);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->result);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"send", operation_send_method, METH_O,
     "send($self, value, /)\n--\n\nOne step, as a coroutine's: begins the operation, or raises StopIteration(result)."},
    {"throw", (PyCFunction)(void (*)(void))operation_throw, METH_FASTCALL,
     "throw($self, /, *args)\n--\n\nCancels the operation and raises the exception given."},
    {"close", operation_close, METH_NOARGS, "close($self, /)\n--\n\nCancels the operation; nothing is raised."},
    {"_expire", operation_expire, METH_NOARGS, NULL},
    {"__aenter__", operation_enter, METH_NOARGS,
     "__aenter__($self, /)\n--\n\nThe operation; awaited, its result, which __aexit__ releases."},
    {"__aexit__", operation_exit, METH_VARARGS, "__aexit__($self, t, v, tb, /)\n--\n\nReleases the result's blocks."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Operation[T]: an operation whose result is a T."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"__name__", operation_name, NULL, "Name of the call that made it.", NULL},
    {"__qualname__", operation_name, NULL, "Name of the call that made it.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct pyk_operation_object, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(
    doc, "What the asyncio face returns: a one-shot awaitable that create_task, gather and wait_for take as well.\n\n"
         "The operation is submitted when it is first awaited; if it is answered at once, awaiting it does not\n"
         "suspend. Cancelling the awaiting task cancels it: its blocks come back when it is settled. `async with`\n"
         "gives its result and releases it at the end. Awaiting it twice, or on two loops, is a RuntimeError.");

PyTypeObject *pyk_operation_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, operation_dealloc},
        {Py_tp_traverse, operation_traverse},
        {Py_tp_clear, operation_clear},
        {Py_tp_repr, operation_repr},
        {Py_tp_iternext, operation_next},
        {Py_tp_methods, methods},
        {Py_tp_getset, getters},
        {Py_tp_members, members},
        {Py_am_await, operation_await},
        {Py_am_send, operation_send},
        {Py_tp_doc, (void *)(uintptr_t)doc},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm.Operation", sizeof(struct pyk_operation_object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
