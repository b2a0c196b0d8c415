/*
 * requests.c - from the arguments of allocate_blocks, register_blocks, match_sequence_hashes and contains to requests,
 * and from completed requests to results; and the plain face's way between, which blocks.
 *
 * The plain face waits with the GIL released, in slices of 50 ms between which signals are looked at. An interrupt
 * cancels the operation, waits until it is settled, gives back what it brought, and is then raised.
 */
#include "python/native/native_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WAIT_SLICE_NS UINT64_C(50000000)
/* How long the plain face tries to get an operation slot. */
#define OVERLOAD_NS UINT64_C(1000000000)
/* Less than this is not to wait: a deadline that has passed at submit would refuse blocks that are there. */
#define TIMEOUT_MIN_NS UINT64_C(1000)
#define TTL_FOREVER    UINT64_C(0)

const char *pyk_request_name(const struct pyk_request *request) {
    switch (request->kind) {
    case KVBM_OP_ALLOCATE:
        return "allocate_blocks";
    case KVBM_OP_REGISTER:
        return "register_blocks";
    case KVBM_OP_MATCH:
        return "match_sequence_hashes";
    default:
        return "contains";
    }
}

int pyk_raise_submit(struct pyk_state *state, const struct pyk_request *request, int status,
                     const kvbm_failure *failure) {
    const char *name = pyk_request_name(request);
    if (request->kind != KVBM_OP_REGISTER || failure->text[0] == '\0') {
        return pyk_raise_status(state, name, status);
    }
    /* The class by the code, the text by the failure. */
    (void)pyk_raise_status(state, name, status);
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    (void)pyk_raise(type, status, "%s: %s", name, failure->text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return -1;
}

/* ------------------------------------------------------------------------------------------------------ the waiting */

int pyk_wait(struct pyk_core *core, kvbm_op id, kvbm_completion *completion) {
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    bool interrupted = false;
    for (;;) {
        int status;
        Py_BEGIN_ALLOW_THREADS status = kvbm_wait_mt(core->manager, id, WAIT_SLICE_NS, completion);
        Py_END_ALLOW_THREADS if (status != -ETIMEDOUT && status != -EINTR) {
            if (status < 0) {
                *completion = (kvbm_completion){.status = status};
            }
            break;
        }
        if (!interrupted && PyErr_CheckSignals() < 0) {
            interrupted = true;
            PyErr_Fetch(&type, &value, &traceback);
            (void)kvbm_cancel_mt(core->manager, id);
        }
    }
    if (interrupted) {
        PyErr_Restore(type, value, traceback);
        return -1;
    }
    return 0;
}

/* Sleeps a little, longer each time. False when the time is over, or with an exception. */
static bool back_off(uint64_t *begun_ns, uint64_t *sleep_ns) {
    uint64_t now_ns = pyk_now_ns();
    if (*begun_ns == 0) {
        *begun_ns = now_ns;
        *sleep_ns = 20000;
    }
    if (now_ns - *begun_ns > OVERLOAD_NS || PyErr_CheckSignals() < 0) {
        return false;
    }
    struct timespec sleep = {.tv_nsec = (long)*sleep_ns};
    *sleep_ns = *sleep_ns * 2 < 5000000 ? *sleep_ns * 2 : 5000000;
    Py_BEGIN_ALLOW_THREADS(void) nanosleep(&sleep, NULL);
    Py_END_ALLOW_THREADS return true;
}

PyObject *pyk_request_run(struct pyk_state *state, struct pyk_request *request) {
    uint64_t begun_ns = 0, sleep_ns = 0;
    kvbm_failure failure = {.size = sizeof failure, .index = UINT64_MAX};
    int status;
    do {
        failure.text[0] = '\0';
        status = pyk_request_submit(request, NULL, &failure);
    } while (status == -EAGAIN && back_off(&begun_ns, &sleep_ns));
    if (status < 0) {
        if (!PyErr_Occurred()) {
            pyk_raise_submit(state, request, status, &failure);
        }
        pyk_request_free(request);
        return NULL;
    }
    if (status == 0 && pyk_wait(request->core, request->id, &request->completion) < 0) {
        pyk_request_drop(request);
        return NULL;
    }
    return pyk_request_result(state, request);
}

static PyObject *residency(const struct pyk_request *request) {
    PyObject *list = PyList_New((Py_ssize_t)request->count);
    for (uint64_t i = 0; list != NULL && i < request->count; i++) {
        bool resident = (request->tiers[i] & KVBM_TIER_BIT((uint32_t)request->tier)) != 0;
        if (PyList_SetItem(list, (Py_ssize_t)i, PyBool_FromLong(resident)) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

PyObject *pyk_request_result(struct pyk_state *state, struct pyk_request *request) {
    PyObject *result = NULL;
    pyk_request_settle(request);
    if (request->completion.status < 0) {
        pyk_raise_completion(state, request, pyk_request_name(request));
    } else if (request->kind == KVBM_OP_QUERY) {
        result = residency(request);
    } else {
        pyk_request_exchange(request);
        result = pyk_list_from_request(state, request);
    }
    pyk_request_free(request);
    return result;
}

static void *no_memory(void) {
    PyErr_NoMemory();
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- allocate */

static int allocate_arguments(struct pyk_state *state, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords,
                              uint64_t *count, uint64_t *timeout_ns, bool *wait) {
    static const char *const names[] = {"count", "timeout", NULL};
    static const struct pyk_signature signature = {"allocate_blocks", names, 2, 1, 1};
    PyObject *values[2] = {NULL, NULL};
    if (nargs == 1 && keywords == NULL) {
        values[0] = args[0];
    } else if (pyk_arguments(&signature, args, nargs, keywords, values) < 0) {
        return -1;
    }
    *timeout_ns = 0;
    *wait = false;
    if (pyk_argument_uint(state, values[0], "count", 1, KVBM_BATCH_COUNT_MAX, count) < 0) {
        return -1;
    }
    if (values[1] != NULL) {
        bool forever;
        if (pyk_argument_seconds(state, values[1], "timeout", true, timeout_ns, &forever) < 0) {
            return -1;
        }
        *timeout_ns = *timeout_ns < TIMEOUT_MIN_NS ? 0 : *timeout_ns;
        *wait = forever || *timeout_ns != 0;
    }
    return 0;
}

static int raise_allocate(struct pyk_state *state, struct pyk_core *core, int status, uint64_t count,
                          uint64_t timeout_ns, const kvbm_completion *completion) {
    struct pyk_request request = {.kind = KVBM_OP_ALLOCATE, .core = core, .count = count, .timeout_ns = timeout_ns};
    if (status < 0) {
        return pyk_raise_status(state, "allocate_blocks", status);
    }
    request.completion = *completion;
    return pyk_raise_completion(state, &request, "allocate_blocks");
}

/* The plain face's hot path: handles go straight into the list. */
PyObject *pyk_allocate_from(struct pyk_state *state, struct pyk_core *core, int tier, PyObject *const *args,
                            Py_ssize_t nargs, PyObject *keywords) {
    uint64_t count, timeout_ns;
    uint64_t begun_ns = 0, sleep_ns = 0;
    bool wait;
    if (allocate_arguments(state, args, nargs, keywords, &count, &timeout_ns, &wait) < 0) {
        return NULL;
    }
    struct pyk_list_object *list = pyk_list_new(state, core, count);
    if (list == NULL) {
        return NULL;
    }
    kvbm_completion completion;
    kvbm_op id;
    kvbm_allocate_args allocate = {.size = sizeof allocate, .tier = tier, .count = count, .blocks = list->handles};
    kvbm_submit submit = {.size = sizeof submit,
                          .flags = KVBM_SUBMIT_INLINE | (wait ? (uint32_t)KVBM_SUBMIT_WAIT : 0),
                          .timeout_ns = timeout_ns,
                          .completion = &completion};
    int status;
    do {
        status = kvbm_allocate_mt(core->manager, &allocate, &submit, &id);
    } while (status == -EAGAIN && back_off(&begun_ns, &sleep_ns));
    bool interrupted = status < 0 && PyErr_Occurred();
    if (status == 0) {
        interrupted = pyk_wait(core, id, &completion) < 0;
    }
    if (status >= 0 && completion.status == 0) {
        list->count = (Py_ssize_t)count;
        if (!interrupted) {
            return (PyObject *)list;
        }
    }
    Py_DECREF((PyObject *)list); /* with the blocks, if they came */
    if (!interrupted) {
        raise_allocate(state, core, status, count, timeout_ns, &completion);
    }
    return NULL;
}

struct pyk_request *pyk_allocate_request(struct pyk_state *state, struct pyk_core *core, int tier,
                                         PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    uint64_t count, timeout_ns;
    bool wait;
    if (allocate_arguments(state, args, nargs, keywords, &count, &timeout_ns, &wait) < 0) {
        return NULL;
    }
    struct pyk_request *request = pyk_request_new(core, KVBM_OP_ALLOCATE, tier, count);
    if (request == NULL) {
        return no_memory();
    }
    request->timeout_ns = timeout_ns;
    request->wait = wait;
    return request;
}

/* -------------------------------------------------------------------------------------------------- match, contains */

struct pyk_request *pyk_keys_request(struct pyk_state *state, struct pyk_core *core, int kind, int tier,
                                     PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    static const char *const names[] = {"hashes", NULL};
    static const struct pyk_signature match = {"match_sequence_hashes", names, 1, 1, 1};
    static const struct pyk_signature contains = {"contains", names, 1, 1, 1};
    PyObject *values[1];
    if (pyk_arguments(kind == KVBM_OP_MATCH ? &match : &contains, args, nargs, keywords, values) < 0) {
        return NULL;
    }
    struct pyk_keys *keys = pyk_argument_keys(state, values[0], "hashes");
    if (keys == NULL) {
        return NULL;
    }
    if (keys->count > KVBM_BATCH_COUNT_MAX) {
        pyk_raise_argument(state, "hashes: must be at most %lu, not %llu", (unsigned long)KVBM_BATCH_COUNT_MAX,
                           (unsigned long long)keys->count);
        pyk_keys_release(keys);
        return NULL;
    }
    struct pyk_request *request = pyk_request_new(core, kind, tier, keys->count);
    if (request == NULL) {
        pyk_keys_release(keys);
        return no_memory();
    }
    request->keys = keys;
    return request;
}

/* --------------------------------------------------------------------------------------------------------- register */

enum { R_BLOCKS, R_TOKENS, R_SALT, R_HASHES, R_PARENT, R_PRIORITY, R_TTL, R_KEEP, R_COUNT };

static PyObject *given(PyObject *const *values, int at) {
    return values[at] == Py_None ? NULL : values[at];
}

static int add_holder(struct pyk_state *state, struct pyk_request *request, uint64_t at, struct pyk_holder *holder) {
    if (holder->chunk->core != request->core) {
        return pyk_raise(state->errors.wrong_manager, -KVBM_EWRONGMANAGER,
                         "register_blocks: blocks[%llu] is of another manager ('%s'), not of '%s'",
                         (unsigned long long)at, holder->chunk->core->name, request->core->name);
    }
    pyk_holder_own(holder);
    request->holders[at] = holder;
    return 0;
}

/* A request with the holders of `blocks`. */
static struct pyk_request *register_blocks(struct pyk_state *state, struct pyk_core *core, int tier, PyObject *blocks) {
    bool is_list = Py_TYPE(blocks) == state->types.list;
    if (!is_list && (Py_TYPE(blocks) == state->types.block || PyUnicode_Check(blocks) || !PySequence_Check(blocks))) {
        pyk_raise_type(blocks, "blocks", "a BlockList or a sequence of Block");
        return NULL;
    }
    PyObject *items = is_list ? Py_NewRef(blocks) : PySequence_Tuple(blocks);
    if (items == NULL || (is_list && pyk_list_spread((struct pyk_list_object *)items) < 0)) {
        Py_XDECREF(items);
        return NULL;
    }
    Py_ssize_t count = is_list ? ((struct pyk_list_object *)items)->count : PyTuple_Size(items);
    struct pyk_request *request = NULL;
    if ((uint64_t)count > KVBM_BATCH_COUNT_MAX) {
        pyk_raise_argument(state, "blocks: must be at most %lu, not %zd", (unsigned long)KVBM_BATCH_COUNT_MAX, count);
    } else if ((request = pyk_request_new(core, KVBM_OP_REGISTER, tier, (uint64_t)count)) == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; request != NULL && i < count; i++) {
        struct pyk_holder *holder = NULL;
        if (is_list) {
            holder = pyk_list_holder((struct pyk_list_object *)items, i);
        } else {
            PyObject *item = PyTuple_GetItem(items, i);
            if (Py_TYPE(item) == state->types.block) {
                holder = ((struct pyk_block_object *)item)->holder;
            } else {
                char name[32];
                snprintf(name, sizeof name, "blocks[%zd]", i);
                pyk_raise_type(item, name, "a Block");
            }
        }
        if (holder == NULL || add_holder(state, request, (uint64_t)i, holder) < 0) {
            pyk_request_free(request);
            request = NULL;
        }
    }
    Py_DECREF(items);
    return request;
}

static int keys_from_tokens(struct pyk_state *state, struct pyk_request *request, PyObject *value) {
    struct pyk_tokens tokens;
    uint32_t page_size = request->core->layout.geometry.page_size;
    uint64_t wanted = request->count * page_size;
    if (pyk_tokens_get(state, value, "tokens", &tokens) < 0) {
        return -1;
    }
    int status = 0;
    if (tokens.count < wanted) {
        status = pyk_raise(state->errors.incomplete_block, -KVBM_EINCOMPLETE,
                           "tokens: %llu do not fill %llu blocks of %lu tokens", (unsigned long long)tokens.count,
                           (unsigned long long)request->count, (unsigned long)page_size);
    } else if (tokens.count > wanted) {
        status = pyk_raise_argument(state, "tokens: must be %llu (%llu blocks of %lu tokens), not %llu",
                                    (unsigned long long)wanted, (unsigned long long)request->count,
                                    (unsigned long)page_size, (unsigned long long)tokens.count);
    } else if ((request->keys = pyk_keys_new(request->count)) == NULL) {
        no_memory();
        status = -1;
    } else {
        kvbm_keys_compute_mt(tokens.tokens, request->count, page_size, request->salt, request->salt_bytes,
                             request->has_parent ? &request->parent : NULL, request->keys->keys);
    }
    pyk_tokens_free(&tokens);
    return status;
}

/* Neither tokens nor hashes: by the blocks' own tokens if all are complete, anonymous if none has any. */
static int keys_from_blocks(struct pyk_state *state, struct pyk_request *request, bool salted) {
    uint64_t complete = 0, empty = 0;
    int page_size = (int)request->core->layout.geometry.page_size;
    for (uint64_t i = 0; i < request->count; i++) {
        int tokens = 0;
        if (request->core->tracks_tokens && pyk_holder_state(request->holders[i]) == PYK_HELD) {
            tokens = kvbm_block_tokens(request->core->manager, request->holders[i]->handle, NULL, 0);
        }
        complete += tokens == page_size;
        empty += tokens <= 0;
        if (tokens > 0 && tokens != page_size) {
            return pyk_raise(state->errors.incomplete_block, -KVBM_EINCOMPLETE,
                             "register_blocks: blocks[%llu] has %d tokens of %d", (unsigned long long)i, tokens,
                             page_size);
        }
    }
    if (complete != 0 && empty != 0) {
        return pyk_raise(state->errors.incomplete_block, -KVBM_EINCOMPLETE,
                         "register_blocks: %llu of %llu blocks have no tokens", (unsigned long long)empty,
                         (unsigned long long)request->count);
    }
    if (complete == 0) {
        request->flags |= KVBM_REGISTER_ANONYMOUS;
        if (salted) {
            return pyk_raise_argument(state, "%s: needs tokens, and neither they nor the blocks' own were given",
                                      request->has_parent ? "parent" : "salt");
        }
    }
    request->out_keys = pyk_keys_new(request->count);
    if (request->out_keys == NULL) {
        no_memory();
        return -1;
    }
    return 0;
}

static int register_keys(struct pyk_state *state, struct pyk_request *request, PyObject *const *values) {
    PyObject *tokens = given(values, R_TOKENS);
    PyObject *hashes = given(values, R_HASHES);
    PyObject *parent = given(values, R_PARENT);
    if (parent != NULL) {
        if (pyk_argument_key(state, parent, "parent", &request->parent) < 0) {
            return -1;
        }
        request->has_parent = true;
    }
    if (pyk_argument_salt(state, values[R_SALT], &request->salt, &request->salt_bytes) < 0) {
        return -1;
    }
    if (hashes == NULL) {
        return tokens != NULL ? keys_from_tokens(state, request, tokens)
                              : keys_from_blocks(state, request, parent != NULL || request->salt != NULL);
    }
    if (tokens != NULL || request->salt != NULL) {
        return pyk_raise_argument(state, "hashes: cannot be given together with %s",
                                  tokens != NULL ? "tokens" : "salt");
    }
    request->keys = pyk_argument_keys(state, hashes, "hashes");
    if (request->keys != NULL && request->keys->count != request->count) {
        return pyk_raise_argument(state, "hashes: must be %llu, one for each block, not %llu",
                                  (unsigned long long)request->count, (unsigned long long)request->keys->count);
    }
    return request->keys == NULL ? -1 : 0;
}

static int register_options(struct pyk_state *state, struct pyk_request *request, PyObject *const *values) {
    uint64_t priority = 0;
    bool keep = false, forever;
    if ((values[R_PRIORITY] != NULL &&
         pyk_argument_uint(state, values[R_PRIORITY], "priority", 0, KVBM_PRIORITY_MAX, &priority) < 0) ||
        (values[R_KEEP] != NULL && pyk_argument_bool(values[R_KEEP], "keep_duplicates", &keep) < 0)) {
        return -1;
    }
    if (values[R_TTL] != NULL) {
        if (pyk_argument_seconds(state, values[R_TTL], "priority_ttl", true, &request->priority_ttl_ns, &forever) < 0) {
            return -1;
        }
        if (!forever && request->priority_ttl_ns == TTL_FOREVER) {
            request->priority_ttl_ns = 1;
        }
    }
    request->priority = (uint32_t)priority;
    request->flags |= keep ? (uint32_t)KVBM_REGISTER_KEEP_DUPLICATES : 0;
    return 0;
}

struct pyk_request *pyk_register_request(struct pyk_state *state, struct pyk_core *core, int tier,
                                         PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
    static const char *const names[] = {"blocks",       "tokens",          "salt", "hashes", "parent", "priority",
                                        "priority_ttl", "keep_duplicates", NULL};
    static const struct pyk_signature signature = {"register_blocks", names, R_COUNT, 3, 1};
    PyObject *values[R_COUNT];
    if (pyk_arguments(&signature, args, nargs, keywords, values) < 0) {
        return NULL;
    }
    struct pyk_request *request = register_blocks(state, core, tier, values[R_BLOCKS]);
    if (request != NULL &&
        (register_options(state, request, values) < 0 || register_keys(state, request, values) < 0)) {
        pyk_request_free(request);
        request = NULL;
    }
    return request;
}
