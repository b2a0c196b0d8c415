/*
 * loop.c - bridges: one for each running event loop, with the loop's port and the operations that wait in it.
 *
 * Who owns whom. loop -> (its reader of the port's fd) -> bridge -> operations in flight -> their futures -> loop.
 * Nothing else owns a bridge: the module's list is of borrowed pointers that bridges take themselves out of. So a loop
 * that is closed drops its readers, hence its bridge; a loop that is only forgotten is a cycle that the garbage
 * collector sees. Either way the bridge shuts: it cancels what is in flight, abandons the Python side of it, and closes
 * the port, from when on completions go to the orphan callback of shared.c. The bridge holds a reference to its loop,
 * so another loop can never be taken for it, not even at the same address.
 *
 * The fd becomes readable at most once between two drains; the loop then calls the bridge, which drains in batches. The
 * port is used by the loop's own thread only, as asyncio objects are.
 */
#include "python/native/native_internal.h"

#include <structmember.h>

#include <errno.h>

#define PORT_CAPACITY (1u << 19)
#define DRAIN_BATCH   256
/* Then the loop gets a turn; the fd stays readable. */
#define DRAIN_ROUNDS 16
#define POLL_SECONDS 0.005

/* ------------------------------------------------------------------------------------------------------------ lines */

void pyk_line_add(struct pyk_line *line, struct pyk_operation_object *operation) {
    Py_INCREF((PyObject *)operation);
    operation->next = NULL;
    operation->previous = line->last;
    if (line->last != NULL) {
        line->last->next = operation;
    } else {
        line->first = operation;
    }
    line->last = operation;
}

void pyk_line_remove(struct pyk_line *line, struct pyk_operation_object *operation) {
    if (operation->previous != NULL) {
        operation->previous->next = operation->next;
    } else {
        line->first = operation->next;
    }
    if (operation->next != NULL) {
        operation->next->previous = operation->previous;
    } else {
        line->last = operation->previous;
    }
    operation->next = NULL;
    operation->previous = NULL;
    Py_DECREF((PyObject *)operation);
}

/* ---------------------------------------------------------------------------------------------------------- credits */

bool pyk_bridge_waits(const struct pyk_bridge_object *bridge, const struct pyk_core *core) {
    const struct pyk_operation_object *operation = bridge->credit.first;
    while (operation != NULL && operation->request->core != core) {
        operation = operation->next;
    }
    return operation != NULL;
}

int pyk_bridge_want_credit(struct pyk_bridge_object *bridge, struct pyk_core *core) {
    int status = kvbm_port_want_credit_mt(bridge->port, core->manager, core);
    if (status != -EAGAIN) {
        return status == -EALREADY ? 0 : status;
    }
    if (!bridge->polls) {
        PyObject *delay = PyFloat_FromDouble(POLL_SECONDS);
        PyObject *timer = delay == NULL ? NULL
                                        : PyObject_CallMethodObjArgs(bridge->loop, bridge->module->str_call_later,
                                                                     delay, (PyObject *)bridge, NULL);
        Py_XDECREF(delay);
        if (timer == NULL) {
            PyErr_Clear();
            return -ENOMEM;
        }
        Py_DECREF(timer);
        bridge->polls = true;
    }
    return 0;
}

/* Submits again what waits for `core` (NULL: for any), in order, until one is refused; then asks anew. */
static void retry(struct pyk_bridge_object *bridge, const void *core) {
    struct pyk_operation_object *operation = bridge->credit.first;
    bool goes_on = true;
    while (goes_on && operation != NULL) {
        struct pyk_operation_object *next = operation->next;
        struct pyk_core *of = operation->request->core;
        /* Completing runs Python code, which may end other operations. */
        Py_XINCREF((PyObject *)next);
        if ((core == NULL || of == core) && !pyk_operation_retry(operation)) {
            int status = pyk_bridge_want_credit(bridge, of);
            if (status < 0) {
                operation->submit_status = status;
                pyk_operation_completed(operation);
            } else {
                goes_on = core == NULL;
            }
        }
        operation = next == NULL || next->state == PYK_OP_CREDIT ? next : bridge->credit.first;
        Py_XDECREF((PyObject *)next); /* held by the line, or not looked at again */
    }
}

/* ------------------------------------------------------------------------------------------------------------ drain */

static void take(struct pyk_bridge_object *bridge, const kvbm_completion *completion) {
    if (completion->kind == KVBM_OP_CREDIT) {
        retry(bridge, completion->user);
        return;
    }
    struct pyk_request *request = completion->user;
    request->completion = *completion;
    if (request->operation != NULL) {
        pyk_operation_completed(request->operation);
    } else {
        pyk_request_drop(request);
    }
}

static void drain(struct pyk_bridge_object *bridge) {
    kvbm_completion batch[DRAIN_BATCH];
    for (int round = 0; round < DRAIN_ROUNDS && bridge->port != NULL; round++) {
        int count = kvbm_port_drain(bridge->port, batch, DRAIN_BATCH);
        for (int i = 0; i < count; i++) {
            take(bridge, &batch[i]);
        }
        if (count <= 0) {
            break;
        }
    }
    if (bridge->polls && bridge->port != NULL) {
        bridge->polls = false;
        retry(bridge, NULL);
    }
    pyk_log_drain(bridge->module);
}

static PyObject *bridge_call(PyObject *self, PyObject *args, PyObject *keywords) {
    (void)args;
    (void)keywords;
    Py_INCREF(self);
    drain((struct pyk_bridge_object *)self);
    Py_DECREF(self);
    return Py_NewRef(Py_None);
}

/* --------------------------------------------------------------------------------------------------- life and death */

PyObject *pyk_loop_running(struct pyk_state *state) {
    if (state->get_running_loop == NULL) {
        PyObject *asyncio = PyImport_ImportModule("asyncio");
        state->get_running_loop = asyncio == NULL ? NULL : PyObject_GetAttrString(asyncio, "get_running_loop");
        Py_XDECREF(asyncio);
        if (state->get_running_loop == NULL) {
            return NULL;
        }
    }
    return PyObject_CallNoArgs(state->get_running_loop);
}

static int raise_port(struct pyk_state *state, int status) {
    return pyk_raise(state->errors.storage_error, status, "event loop: a completion queue could not be opened: %s",
                     kvbm_error_text_mt(status));
}

/* The loop's reader owns it; the pointer returned is borrowed. */
static struct pyk_bridge_object *bridge_new(struct pyk_state *state, PyObject *loop) {
    struct pyk_bridge_object *self = PyObject_GC_New(struct pyk_bridge_object, state->types.bridge);
    if (self == NULL) {
        return NULL;
    }
    self->module = state;
    self->loop = Py_NewRef(loop);
    self->port = NULL;
    self->pending = (struct pyk_line){NULL, NULL};
    self->credit = (struct pyk_line){NULL, NULL};
    self->polls = false;
    self->next = state->bridges;
    state->bridges = self;
    PyObject_GC_Track((PyObject *)self);
    int status = kvbm_port_open(PORT_CAPACITY, &self->port);
    PyObject *done = NULL;
    if (status < 0) {
        self->port = NULL;
        raise_port(state, status);
    } else {
        PyObject *fd = PyLong_FromLong(kvbm_port_fd(self->port));
        if (fd != NULL) {
            done = PyObject_CallMethodObjArgs(loop, state->str_add_reader, fd, (PyObject *)self, NULL);
        }
        Py_XDECREF(fd);
    }
    Py_DECREF((PyObject *)self);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    return self;
}

struct pyk_bridge_object *pyk_bridge_running(struct pyk_state *state) {
    PyObject *loop = pyk_loop_running(state);
    if (loop == NULL) {
        return NULL;
    }
    struct pyk_bridge_object **link = &state->bridges;
    while (*link != NULL && (*link)->loop != loop) {
        link = &(*link)->next;
    }
    struct pyk_bridge_object *found = *link;
    if (found == NULL) {
        found = bridge_new(state, loop);
    } else if (link != &state->bridges) {
        *link = found->next;
        found->next = state->bridges;
        state->bridges = found;
    }
    Py_DECREF(loop);
    return found;
}

static void shut(struct pyk_bridge_object *self) {
    struct pyk_bridge_object **link = &self->module->bridges;
    while (*link != NULL && *link != self) {
        link = &(*link)->next;
    }
    if (*link != NULL) {
        *link = self->next;
    }
    self->next = NULL;
    while (self->pending.first != NULL) {
        pyk_operation_abandon(self->pending.first);
    }
    while (self->credit.first != NULL) {
        pyk_operation_abandon(self->credit.first);
    }
    kvbm_port *port = self->port;
    self->port = NULL;
    if (port != NULL) {
        kvbm_port_close(port);
    }
    Py_CLEAR(self->loop);
}

static int bridge_traverse(PyObject *object, visitproc visit, void *arg) {
    struct pyk_bridge_object *self = (struct pyk_bridge_object *)object;
    Py_VISIT((PyObject *)Py_TYPE(object));
    Py_VISIT(self->loop);
    for (struct pyk_operation_object *operation = self->pending.first; operation != NULL; operation = operation->next) {
        Py_VISIT((PyObject *)operation);
    }
    for (struct pyk_operation_object *operation = self->credit.first; operation != NULL; operation = operation->next) {
        Py_VISIT((PyObject *)operation);
    }
    return 0;
}

static int bridge_clear(PyObject *self) {
    shut((struct pyk_bridge_object *)self);
    return 0;
}

static void bridge_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    shut((struct pyk_bridge_object *)self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyTypeObject *pyk_bridge_type(PyObject *module) {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, bridge_dealloc},
        {Py_tp_traverse, bridge_traverse},
        {Py_tp_clear, bridge_clear},
        {Py_tp_call, bridge_call},
        {0, NULL},
    };
    static PyType_Spec spec = {"dynamo_llm._kvbm._Bridge", sizeof(struct pyk_bridge_object), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
