/*
 * operations_fuzz.c - libFuzzer target of the C API: bytes become a sequence of calls on a driven manager.
 *
 * One thread; clock, random numbers, waits and maps are the input's own, so an input always does the same. Handles,
 * keys, ids, sizes, counts and flags are sound, stale or garbage as the bytes say. Memory that a caller must provide is
 * always there (that is the API's one condition); everything else must be answered with a result or an error. After
 * each call the manager's own checker runs; at the end every accepted operation has been answered and every map given
 * back.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actors/kvbm.h"
#include "actors/manager_internal.h"
#include "runtime/port.h"
#include "runtime/reactor.h"

#define OPS_MAX     24
#define BATCH_MAX   40
#define HANDLES_MAX 128
#define PORTS_MAX   2
#define MAPS_MAX    128
#define CALLS_MAX   400
#define PAGE_SIZE   2
#define STRUCT_MAX  256 /* room behind every argument struct, for sizes of a newer header */

#define REQUIRE(cond)                                                                                                  \
    do {                                                                                                               \
        if (!(cond))                                                                                                   \
            abort();                                                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz_op {
    bool used, completed;
    bool waits; /* neither callback nor port */
    int port;   /* -1: none */
    int kind;
    uint64_t count;
    kvbm_op id;
    kvbm_completion inline_completion;
    kvbm_block blocks[BATCH_MAX], out_blocks[BATCH_MAX];
    kvbm_key keys[BATCH_MAX], out_keys[BATCH_MAX];
    bool duplicates[BATCH_MAX];
    uint8_t tiers[BATCH_MAX];
};

static struct {
    const uint8_t *data;
    size_t left;
    struct kvbm_os os;
    kvbm_manager *manager;
    struct kvbm_reactor *reactor;
    bool parked, closing, finished;
    uint32_t callback_depth;
    uint64_t now_ns, random;
    struct fuzz_op ops[OPS_MAX];
    kvbm_block handles[HANDLES_MAX];
    uint32_t handle_count;
    kvbm_op last_id;
    kvbm_port *ports[PORTS_MAX];
    struct {
        void *address;
        size_t bytes;
    } maps[MAPS_MAX];
    uint32_t map_count, map_fail_in;
} f;

/* ----------------------------------------------------------------------------------------------------------- input */

static uint8_t byte(void) {
    if (f.left == 0)
        return 0;
    f.left--;
    return *f.data++;
}

static uint64_t word(void) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | byte();
    return value;
}

/* Mostly small. */
static uint64_t count_any(void) {
    uint8_t how = byte();
    return how < 240 ? how % (BATCH_MAX + 1) : how < 248 ? KVBM_BATCH_COUNT_MAX + (uint64_t)(how - 244) : word();
}

static uint64_t count_fitting(void) {
    return 1 + byte() % BATCH_MAX;
}

static kvbm_block handle_any(void) {
    uint8_t how = byte();
    if (how >= 250)
        return (kvbm_block){word()};
    if (f.handle_count == 0)
        return (kvbm_block){0};
    kvbm_block block = f.handles[how % f.handle_count];
    if (how >= 240)
        block.bits ^= UINT64_C(1) << byte() % 64;
    return block;
}

static void handle_note(kvbm_block block) {
    if (f.handle_count < HANDLES_MAX)
        f.handles[f.handle_count++] = block;
    else
        f.handles[block.bits % HANDLES_MAX] = block;
}

static void key_any(kvbm_key *key) {
    memset(key, 0, sizeof *key);
    key->bytes[15] = byte() % 24;
}

/* A size for an option struct: its own, or one that an older or newer header would have, or none. */
static size_t size_any(size_t own) {
    uint8_t how = byte();
    return how < 230 ? own : how < 250 ? how % (STRUCT_MAX + 1) : 0;
}

/* ------------------------------------------------------------------------------------------------ virtual functions */

static uint64_t os_now_ns(void *ctx) {
    (void)ctx;
    return f.now_ns;
}

static uint64_t os_random_u64(void *ctx) {
    (void)ctx;
    f.random = f.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return f.random ^ f.random >> 29;
}

static int os_thread_start(void *ctx, struct kvbm_thread *thread, void (*run)(void *), void *arg, const char *name) {
    (void)ctx, (void)thread, (void)run, (void)arg, (void)name;
    abort(); /* a driven manager starts none */
}

static void drive(bool park) {
    if (f.finished || f.callback_depth != 0)
        return;
    if (f.parked) {
        REQUIRE(kvbm_reactor_take(f.reactor));
        f.parked = false;
    }
    kvbm_reactor_turn(f.reactor, 1u + f.now_ns % 8);
    uint64_t timer_ns;
    if (park)
        f.parked = kvbm_reactor_park(f.reactor, &timer_ns);
}

static int os_wait_u32(void *ctx, _Atomic uint32_t *at, uint32_t expected, uint64_t deadline_ns) {
    (void)ctx;
    REQUIRE(f.callback_depth == 0);
    if (atomic_load(at) != expected)
        return -EAGAIN;
    drive(true);
    if (atomic_load(at) != expected)
        return 0;
    if (deadline_ns == KVBM_NO_DEADLINE)
        return -EINTR;
    f.now_ns = f.now_ns < deadline_ns ? deadline_ns : f.now_ns;
    return -ETIMEDOUT;
}

static void os_wake_u32(void *ctx, _Atomic uint32_t *at, bool all) {
    (void)ctx, (void)at, (void)all;
}

static int os_event_open(void *ctx) {
    (void)ctx;
    return 1000;
}

static void os_event_any(void *ctx, int fd) {
    (void)ctx, (void)fd;
}

static int os_map(void *ctx, size_t size, unsigned flags, void **address, unsigned *got) {
    (void)ctx, (void)flags;
    if (f.map_fail_in != 0 && --f.map_fail_in == 0)
        return -ENOMEM;
    REQUIRE(f.map_count < MAPS_MAX);
    if (size > (size_t)64 << 20 || posix_memalign(address, 4096, size) != 0)
        return -ENOMEM;
    memset(*address, 0, size);
    f.maps[f.map_count].address = *address;
    f.maps[f.map_count++].bytes = size;
    if (got != NULL)
        *got = 0;
    return 0;
}

static void os_unmap(void *ctx, void *address, size_t size) {
    (void)ctx;
    for (uint32_t i = 0; i < f.map_count; i++) {
        if (f.maps[i].address != address)
            continue;
        REQUIRE(f.maps[i].bytes == size);
        free(address);
        f.maps[i] = f.maps[--f.map_count];
        return;
    }
    abort();
}

static int os_bind_node(void *ctx, void *address, size_t size, int node) {
    (void)ctx, (void)address, (void)size, (void)node;
    return -ENOSYS;
}

static unsigned os_cpu_count(void *ctx) {
    (void)ctx;
    return 1;
}

static void on_wake(void *ctx) {
    (void)ctx;
}

static void on_log(void *user, int level, const char *component, const char *text) {
    (void)user, (void)level;
    REQUIRE(component != NULL && text != NULL);
}

/* ------------------------------------------------------------------------------------------------------ operations */

static void call(void);

static void completed(struct fuzz_op *op, const kvbm_completion *c) {
    REQUIRE(op->used && !op->completed && c->kind == op->kind);
    op->completed = true;
    if (c->status != 0)
        return;
    REQUIRE(c->count <= op->count);
    if (op->kind != KVBM_OP_QUERY)
        for (uint64_t i = 0; i < c->count; i++)
            handle_note(op->out_blocks[i]);
}

static void on_done(void *user, const kvbm_completion *c) {
    struct fuzz_op *op = user;
    f.callback_depth++;
    completed(op, c);
    op->used = false;
    if (f.callback_depth < 3 && f.left != 0 && byte() % 4 == 0)
        call();
    f.callback_depth--;
}

static struct fuzz_op *op_new(int kind) {
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct fuzz_op *op = &f.ops[i];
        if (op->used)
            continue;
        op->used = true;
        op->completed = op->waits = false;
        op->kind = kind;
        op->port = -1;
        op->id = 0;
        return op;
    }
    return NULL;
}

static void submit_any(struct fuzz_op *op, kvbm_submit *submit) {
    uint8_t how = byte();
    submit->size = size_any(sizeof *submit);
    submit->user = op;
    if (how & 1) {
        submit->done = on_done;
    } else if (how & 2) {
        op->port = (how >> 2) % PORTS_MAX;
        submit->port = f.ports[op->port];
        submit->done = on_done; /* so that a closed port's completions are known */
        if (submit->port == NULL)
            op->port = -1;
    } else {
        op->waits = true;
    }
    if (how & 16)
        submit->flags = KVBM_SUBMIT_INLINE;
    if (how & 32)
        submit->flags |= KVBM_SUBMIT_WAIT;
    if (how & 64)
        submit->timeout_ns = byte() < 200 ? byte() : word();
    if (how == 255)
        submit->flags = (uint32_t)word();
    submit->completion = how == 254 ? NULL : &op->inline_completion;
}

static void submitted(struct fuzz_op *op, int rc, kvbm_op id) {
    if (rc == 1)
        completed(op, &op->inline_completion);
    if (rc != 0) {
        REQUIRE(rc < 0 || rc == 1);
        op->used = false;
        return;
    }
    REQUIRE(id != 0);
    f.last_id = id;
    /* A callback may have come already, and the record may serve another by now: then it has an id. */
    if (op->used && !op->completed && op->id == 0)
        op->id = id;
}

/* Fields of the structs below are set in a buffer that is larger than any of them, so that `size` may be anything. */
union arguments {
    unsigned char bytes[STRUCT_MAX];
    kvbm_allocate_args allocate;
    kvbm_register_args registering;
    kvbm_match_args match;
    kvbm_query_args query;
    kvbm_submit submit;
};

/* A record is taken by one submit; where a callback inside it takes the same record again, its id is not noted. */
static void submit_allocate(void) {
    struct fuzz_op *op = op_new(KVBM_OP_ALLOCATE);
    if (op == NULL)
        return;
    union arguments args = {{0}}, submit = {{0}};
    submit_any(op, &submit.submit);
    uint8_t how = byte();
    uint64_t count = how < 240 ? count_fitting() : count_any();
    op->count = count;
    args.allocate = (kvbm_allocate_args){.size = size_any(sizeof args.allocate),
                                         .group = how < 240 ? how % 2u : (uint32_t)word(),
                                         .tier = how < 245 ? KVBM_TIER_HOST : (int)byte() - 128,
                                         .count = count,
                                         .blocks = how == 255 ? NULL : op->out_blocks};
    if (count > BATCH_MAX) /* no such array: must be refused for its count, or for a pool that is smaller */
        args.allocate.count = count <= KVBM_BATCH_COUNT_MAX ? KVBM_BATCH_COUNT_MAX + 1 : count;
    kvbm_op id = 0;
    int rc = kvbm_allocate_mt(f.manager, &args.allocate, how == 253 ? NULL : &submit.submit, how == 252 ? NULL : &id);
    if (rc == 0 && how == 252)
        id = 1; /* unknown: a callback or a port tells */
    if (how == 253)
        op->waits = rc == 0;
    submitted(op, rc, id);
}

static void submit_register(void) {
    struct fuzz_op *op = op_new(KVBM_OP_REGISTER);
    if (op == NULL)
        return;
    union arguments args = {{0}}, submit = {{0}};
    submit_any(op, &submit.submit);
    uint8_t how = byte(), more = byte();
    op->count = 1 + byte() % 6;
    for (uint64_t i = 0; i < op->count; i++) {
        op->blocks[i] = handle_any();
        key_any(&op->keys[i]);
    }
    args.registering = (kvbm_register_args){
        .size = size_any(sizeof args.registering),
        .count = how < 250 ? op->count : 0,
        .blocks = how == 249 ? NULL : op->blocks,
        .keys = how & 1 ? op->keys : NULL,
        .parent = how & 2 ? &op->keys[0] : NULL,
        .salt = how & 4 ? f.handles : NULL,
        .salt_bytes = how & 4 ? sizeof f.handles[0] : more == 255,
        .flags = more < 240 ? more & 3u : (uint32_t)word(),
        .priority = more < 230 ? (uint32_t)(more >> 2) % 9 : (uint32_t)word(),
        .priority_ttl_ns = more & 8 ? byte() : 0,
        .out_blocks = more == 254 ? NULL
                      : more & 16 ? op->blocks
                                  : op->out_blocks,
        .out_keys = how & 8 ? op->out_keys : NULL,
        .out_duplicate = how & 16 ? op->duplicates : NULL,
    };
    kvbm_op id = 0;
    if (args.registering.out_blocks == op->blocks) /* in place */
        memcpy(op->out_blocks, op->blocks, sizeof op->out_blocks);
    int rc = kvbm_register_mt(f.manager, &args.registering, &submit.submit, &id);
    submitted(op, rc, id);
}

static void submit_match(bool query) {
    struct fuzz_op *op = op_new(query ? KVBM_OP_QUERY : KVBM_OP_MATCH);
    if (op == NULL)
        return;
    union arguments args = {{0}}, submit = {{0}};
    submit_any(op, &submit.submit);
    uint8_t how = byte();
    op->count = byte() % (BATCH_MAX + 1);
    for (uint64_t i = 0; i < op->count && i < 8; i++)
        key_any(&op->keys[i]);
    uint64_t count = how < 245 ? op->count : how < 250 ? KVBM_BATCH_COUNT_MAX + 1 + word() % 1000 : UINT64_MAX;
    uint32_t group = how < 230 ? how % 2u : (uint32_t)word();
    kvbm_op id = 0;
    int rc;
    if (query) {
        args.query = (kvbm_query_args){.size = size_any(sizeof args.query),
                                       .group = group,
                                       .count = count,
                                       .keys = how == 229 ? NULL : op->keys,
                                       .tiers = how == 228 ? NULL : op->tiers};
        rc = kvbm_query_mt(f.manager, &args.query, &submit.submit, &id);
    } else {
        args.match = (kvbm_match_args){.size = size_any(sizeof args.match),
                                       .group = group,
                                       .tiers = byte() % 20,
                                       .count = count,
                                       .keys = how == 229 ? NULL : op->keys,
                                       .blocks = how == 228 ? NULL : op->out_blocks};
        rc = kvbm_match_mt(f.manager, &args.match, &submit.submit, &id);
    }
    submitted(op, rc, id);
}

/* ----------------------------------------------------------------------------------------------------- other calls */

static void call_release(void) {
    kvbm_block blocks[8];
    uint64_t count = byte() % 9;
    for (uint64_t i = 0; i < count; i++)
        blocks[i] = handle_any();
    if (byte() < 200)
        kvbm_release_mt(f.manager, count == 0 ? NULL : blocks, count);
    else
        kvbm_block_retain_mt(f.manager, blocks, count);
}

static void call_block(void) {
    kvbm_block block = handle_any();
    kvbm_key key;
    void *address = NULL;
    uint32_t tokens[PAGE_SIZE + 2] = {1, 2, 3, 4};
    uint8_t how = byte();
    int state = kvbm_block_state_mt(f.manager, block);
    REQUIRE(state <= KVBM_BLOCK_REGISTERED);
    kvbm_block_key_mt(f.manager, block, how == 255 ? NULL : &key);
    if (kvbm_block_data_mt(f.manager, block, how & 3, how >> 2 & 3, &address) == 0)
        memset(address, how, 8); /* a plane is longer than that: the sanitizer looks */
    if (how & 16)
        kvbm_block_append_tokens(f.manager, block, tokens, how & 3);
    else if (how & 32)
        kvbm_block_set_tokens(f.manager, block, tokens, how & 3);
    int have = kvbm_block_tokens(f.manager, block, tokens, how & 3);
    REQUIRE(have <= PAGE_SIZE);
    if (how & 64)
        kvbm_block_append_tokens(f.manager, block, tokens, UINT32_MAX);
    (void)kvbm_block_group(block);
    (void)kvbm_block_tier(block);
    (void)kvbm_block_slot(block);
}

static void call_wait(void) {
    kvbm_completion completion;
    uint8_t how = byte();
    struct fuzz_op *op = &f.ops[how % OPS_MAX];
    kvbm_op id = how < 200 ? op->id : how < 250 ? f.last_id : word();
    if (how & 64) {
        int rc = kvbm_cancel_mt(f.manager, id);
        REQUIRE(rc == 0 || rc == -EINVAL);
        return;
    }
    int rc = kvbm_wait_mt(f.manager, id, f.callback_depth != 0 ? 0 : byte() % 64, &completion);
    if (rc != 0)
        return;
    op = completion.user;
    REQUIRE(op == NULL || (op->used && op->waits));
    if (op == NULL) /* submitted without options: found by its id */
        for (uint32_t i = 0; i < OPS_MAX; i++)
            if (f.ops[i].used && f.ops[i].waits && f.ops[i].id == id)
                op = &f.ops[i];
    REQUIRE(op != NULL);
    completed(op, &completion);
    op->used = false;
}

static void drain(int port) {
    kvbm_completion completions[4];
    int n = kvbm_port_drain(f.ports[port], completions, 4);
    for (int i = 0; i < n; i++) {
        if (completions[i].kind == KVBM_OP_CREDIT)
            continue;
        struct fuzz_op *op = completions[i].user;
        completed(op, &completions[i]);
        op->used = false;
    }
}

static void call_port(void) {
    uint8_t how = byte();
    int index = how % PORTS_MAX;
    if (f.ports[index] == NULL) {
        REQUIRE(kvbm__port_open(&f.os, 1u + (how >> 2) % 5, &f.ports[index]) == 0);
    } else if (how < 128) {
        drain(index);
    } else if (how < 200) {
        kvbm_port_want_credit_mt(f.ports[index], f.manager, NULL);
        (void)kvbm_port_fd(f.ports[index]);
    } else if (how < 216 && f.callback_depth == 0) {
        kvbm_port *port = f.ports[index];
        f.ports[index] = NULL;
        kvbm_port_close(port);
    }
    kvbm_port *none = NULL;
    REQUIRE(kvbm_port_open(0, &none) == -EINVAL && kvbm_port_open(UINT32_MAX, &none) == -EINVAL);
    REQUIRE(kvbm_port_drain(NULL, NULL, 0) == -EINVAL);
}

static void call_stats(void) {
    union {
        unsigned char bytes[sizeof(kvbm_stats) + STRUCT_MAX];
        kvbm_stats stats;
    } stats = {{0}};
    kvbm_pool_stats pool = {.size = sizeof(pool)};
    uint8_t how = byte();
    stats.stats.size = how < 200 ? sizeof stats.stats : how % sizeof stats.stats;
    kvbm_manager_stats_mt(f.manager, &stats.stats);
    kvbm_pool_stats_mt(f.manager, how < 128 ? how & 1 : (uint32_t)word(), how < 250 ? KVBM_TIER_HOST : how, &pool);
    kvbm_pool_available_mt(f.manager, how & 1, KVBM_TIER_HOST);
    (void)kvbm_manager_layout_mt(f.manager, how, how & 7);
    kvbm_key keys[2];
    uint32_t tokens[4] = {how, how, how, how};
    kvbm_keys_compute_mt(tokens, 2, 2, tokens, how % 17, how & 1 ? &keys[0] : NULL, keys);
    kvbm_key_from_bytes_mt(tokens, how % 17, &keys[0]);
    (void)kvbm_error_text_mt((int)word());
    (void)kvbm_error_name_mt((int)how - 128);
}

static void call_nothing(void) {
    kvbm_completion completion;
    kvbm_op id;
    REQUIRE(kvbm_allocate_mt(NULL, NULL, NULL, &id) < 0 && kvbm_allocate_mt(f.manager, NULL, NULL, &id) < 0);
    REQUIRE(kvbm_register_mt(f.manager, NULL, NULL, &id) < 0 && kvbm_match_mt(f.manager, NULL, NULL, &id) < 0);
    REQUIRE(kvbm_query_mt(f.manager, NULL, NULL, &id) < 0 && kvbm_release_mt(NULL, NULL, 1) < 0);
    REQUIRE(kvbm_release_mt(f.manager, NULL, 1) < 0 && kvbm_cancel_mt(f.manager, 0) == -EINVAL);
    REQUIRE(kvbm_wait_mt(f.manager, 0, 0, &completion) < 0 && kvbm_block_state_mt(NULL, f.handles[0]) < 0);
}

static void call(void) {
    switch (byte() % 20) {
    case 0:
    case 1:
    case 2:
        submit_allocate();
        break;
    case 3:
    case 4:
    case 5:
        submit_register();
        break;
    case 6:
    case 7:
        submit_match(false);
        break;
    case 8:
        submit_match(true);
        break;
    case 9:
    case 10:
        call_release();
        break;
    case 11:
        call_block();
        break;
    case 12:
    case 13:
        call_wait();
        break;
    case 14:
        call_port();
        break;
    case 15:
        f.now_ns += byte();
        break;
    case 16:
        if (f.callback_depth == 0)
            call_stats();
        break;
    case 17:
        if (f.left != 0 && byte() == 77)
            call_nothing();
        break;
    default:
        drive(byte() & 1);
    }
}

/* ------------------------------------------------------------------------------------------------------- one input */

static void check(void) {
    char text[400] = "";
    if (!f.finished && kvbm__manager_check(f.manager, text, sizeof text) != 0) {
        fprintf(stderr, "manager check: %s\n", text);
        abort();
    }
}

static bool open_any(void) {
    uint8_t how = byte();
    kvbm_group_options groups[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        groups[i] = (kvbm_group_options){.size = sizeof groups[i], .host_blocks = 2 + byte() % 14};
        groups[i].geometry = (struct kvbm_geometry){
            .num_layers = 1 + (how & 1u),
            .outer_dim = 1 + (how >> 1 & 1u),
            .page_size = PAGE_SIZE,
            .inner_dim = 8,
            .dtype = KVBM_DTYPE_FP16,
            .form = 1 + byte() % 3,
        };
    }
    union {
        unsigned char bytes[STRUCT_MAX];
        kvbm_options options;
    } o = {{0}};
    o.options = (kvbm_options){
        .size = sizeof o.options,
        .groups = groups,
        .group_count = 1 + (how >> 2 & 1u),
        .flags = how >> 3 & 7u,
        .max_operations = 16,
        .huge_pages = 1,
        .touch_threads = UINT32_MAX,
        .log_level = 1,
        .log = on_log,
    };
    uint8_t wrong = byte();
    if (wrong >= 200) { /* some byte of the options, or of a group, is another one: pointers are left alone */
        kvbm_options before = o.options;
        groups[0].geometry.dtype ^= wrong & 1 ? byte() : 0;
        groups[0].geometry.alignment = wrong & 2 ? word() : 0;
        groups[0].host_blocks = wrong & 4 ? word() : groups[0].host_blocks;
        groups[0].geometry.num_layers = wrong & 8 ? (uint32_t)word() : 1;
        o.bytes[byte() % sizeof o.options] ^= byte();
        o.options.name = before.name;
        o.options.groups = before.groups;
        o.options.uv_loop = NULL;
        o.options.log = before.log;
        o.options.size = size_any(sizeof o.options);
        o.options.group_count = o.options.group_count == 1 || o.options.group_count == 2 ? o.options.group_count : 0;
    }
    f.map_fail_in = wrong < 8 ? wrong : 0;
    struct kvbm__drive drive_options = {
        .os = &f.os, .wake = on_wake, .thread_capacity = 4u << (how >> 6), .turn_budget = byte() % 5};
    kvbm_failure failure = {.size = sizeof failure};
    int rc = kvbm__manager_open_driven(&o.options, &drive_options, &f.manager, &failure);
    f.map_fail_in = 0;
    REQUIRE(rc == 0 || (rc < 0 && failure.code == rc && memchr(failure.text, 0, sizeof failure.text) != NULL));
    if (rc == 0)
        f.reactor = kvbm__manager_reactor(f.manager);
    return rc == 0;
}

static void finish(void) {
    f.closing = true;
    kvbm__manager_close_begin(f.manager);
    for (uint32_t round = 0; !kvbm__manager_drained(f.manager); round++) {
        REQUIRE(round < 100000);
        drive(false);
    }
    check();
    if (f.parked) {
        REQUIRE(kvbm_reactor_take(f.reactor));
        f.parked = false;
    }
    kvbm__manager_finish(f.manager);
    f.finished = true;
    for (int i = 0; i < PORTS_MAX; i++)
        if (f.ports[i] != NULL)
            kvbm_port_close(f.ports[i]); /* tells each record's callback */
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct fuzz_op *op = &f.ops[i];
        if (!op->used)
            continue;
        REQUIRE(op->waits); /* everything else has been answered */
        kvbm_completion completion;
        if (op->id > 1 && kvbm_wait_mt(f.manager, op->id, 0, &completion) == 0)
            op->used = false;
    }
    kvbm_manager_release_mt(f.manager);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    memset(&f, 0, sizeof f);
    f.data = data;
    f.left = size;
    f.now_ns = 1000;
    f.os = (struct kvbm_os){.now_ns = os_now_ns,
                            .wall_ns = os_now_ns,
                            .random_u64 = os_random_u64,
                            .thread_start = os_thread_start,
                            .wait_u32 = os_wait_u32,
                            .wake_u32 = os_wake_u32,
                            .event_open = os_event_open,
                            .event_signal = os_event_any,
                            .event_clear = os_event_any,
                            .event_close = os_event_any,
                            .map = os_map,
                            .unmap = os_unmap,
                            .bind_node = os_bind_node,
                            .cpu_count = os_cpu_count};
    if (open_any()) {
        for (uint32_t i = 0; i < CALLS_MAX && f.left != 0; i++) {
            call();
            check();
        }
        finish();
    }
    REQUIRE(f.map_count == 0);
    return 0;
}
