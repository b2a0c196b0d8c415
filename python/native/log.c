/*
 * log.c - from native threads to Python's logging, without a native thread ever taking the GIL.
 *
 * Records go into one bounded ring of the process. They are emitted to the logger "dynamo_llm" by Python threads that
 * come by: when a manager is opened or closed, when a call fails, when an event loop drains its completions, and in
 * flush_logs(). A full ring, or one that another thread is just using, drops the record and counts it; the count is
 * emitted with the next record. The lock is only ever tried: whoever finds it taken goes on, so neither a fork nor a
 * descheduled thread can block anybody.
 */
#include "python/native/native_internal.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define RING_RECORDS 256

struct record {
    int level;
    char component[24];
    char text[360];
};

static struct {
    pthread_mutex_t lock;
    uint32_t first;
    _Atomic uint32_t count;
    _Atomic uint64_t dropped;
    struct record records[RING_RECORDS];
} ring = {.lock = PTHREAD_MUTEX_INITIALIZER};

void pyk_log_push(void *user, int level, const char *component, const char *text) {
    (void)user;
    if (pthread_mutex_trylock(&ring.lock) != 0) {
        (void)atomic_fetch_add_explicit(&ring.dropped, 1, memory_order_relaxed);
        return;
    }
    uint32_t count = atomic_load_explicit(&ring.count, memory_order_relaxed);
    if (count == RING_RECORDS) {
        (void)atomic_fetch_add_explicit(&ring.dropped, 1, memory_order_relaxed);
    } else {
        struct record *record = &ring.records[(ring.first + count) % RING_RECORDS];
        record->level = level;
        (void)snprintf(record->component, sizeof record->component, "%s", component);
        (void)snprintf(record->text, sizeof record->text, "%s", text);
        atomic_store_explicit(&ring.count, count + 1, memory_order_release);
    }
    (void)pthread_mutex_unlock(&ring.lock);
}

static bool pop(struct record *record) {
    if (atomic_load_explicit(&ring.count, memory_order_acquire) == 0 || pthread_mutex_trylock(&ring.lock) != 0) {
        return false;
    }
    uint32_t count = atomic_load_explicit(&ring.count, memory_order_relaxed);
    if (count != 0) {
        *record = ring.records[ring.first];
        ring.first = (ring.first + 1) % RING_RECORDS;
        atomic_store_explicit(&ring.count, count - 1, memory_order_release);
    }
    (void)pthread_mutex_unlock(&ring.lock);
    return count != 0;
}

bool pyk_log_waiting(void) {
    return atomic_load_explicit(&ring.count, memory_order_relaxed) != 0;
}

static void emit(struct pyk_state *state, int level, PyObject *text) {
    PyObject *number = PyLong_FromLong(level);
    PyObject *done = NULL;
    if (text != NULL && number != NULL) {
        PyObject *format = PyUnicode_FromString("%s");
        done = format == NULL ? NULL
                              : PyObject_CallMethodObjArgs(state->logger, state->str_log, number, format, text, NULL);
        Py_XDECREF(format);
    }
    if (done == NULL) {
        PyErr_WriteUnraisable(state->logger);
    }
    Py_XDECREF(done);
    Py_XDECREF(number);
    Py_XDECREF(text);
}

void pyk_log_drain(struct pyk_state *state) {
    if (!pyk_log_waiting() || state->logger == NULL) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    struct record record;
    for (int i = 0; i < RING_RECORDS && pop(&record); i++) {
        emit(state, record.level * 10, PyUnicode_FromFormat("%s: %s", record.component, record.text));
    }
    uint64_t dropped = atomic_exchange_explicit(&ring.dropped, 0, memory_order_relaxed);
    if (dropped != 0) {
        emit(state, 30, PyUnicode_FromFormat("log: %llu records were dropped", (unsigned long long)dropped));
    }
    PyErr_Restore(type, value, traceback);
}

int pyk_log_level(struct pyk_state *state) {
    if (state->logger == NULL) {
        PyObject *logging = PyImport_ImportModule("logging");
        state->logger = logging == NULL ? NULL : PyObject_CallMethod(logging, "getLogger", "s", "dynamo_llm");
        Py_XDECREF(logging);
    }
    PyObject *level = state->logger == NULL ? NULL : PyObject_CallMethod(state->logger, "getEffectiveLevel", NULL);
    long number = level == NULL ? 30 : PyLong_AsLong(level);
    Py_XDECREF(level);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        number = 30;
    }
    return number <= 10 ? 1 : number <= 20 ? 2 : number <= 30 ? 3 : number <= 40 ? 4 : 9;
}
