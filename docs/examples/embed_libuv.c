/*
 * embed_libuv.c - KVBM inside a libuv program: the manager runs on the program's own loop and answers by callback.
 *
 * Two prompts share their first blocks. For the first one blocks are allocated, filled and registered; the second one
 * finds them by their keys and checks every byte. All of it happens in callbacks on one thread, between whatever else
 * the loop does (here: a timer that ticks).
 *
 *     cc embed_libuv.c -lkvbm -luv
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "actors/kvbm.h"

#define PAGE_SIZE   16 /* tokens a block */
#define BLOCK_COUNT 8
#define TOKEN_COUNT (BLOCK_COUNT * PAGE_SIZE)

struct program {
    uv_loop_t loop;
    uv_timer_t ticker;
    uv_timer_t closer; /* closes the manager from outside of its callbacks */
    int ticks;
    kvbm_manager *manager;
    const struct kvbm_layout *layout;
    kvbm_key keys[BLOCK_COUNT];
    kvbm_block blocks[BLOCK_COUNT];
};

static void check(int rc, const char *what) {
    if (rc >= 0)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, kvbm_error_name_mt(rc), kvbm_error_text_mt(rc));
    exit(1);
}

/* What is written into a plane of a block: a function of the block's key. */
static unsigned char plane_byte(const kvbm_key *key, uint32_t layer, uint32_t outer) {
    return (unsigned char)(key->bytes[(layer * 2 + outer) % sizeof(key->bytes)] + layer);
}

/* Visits every plane of the blocks: writes it, or counts its wrong bytes. */
static uint64_t visit_planes(struct program *p, int write) {
    uint64_t wrong = 0;
    for (uint32_t b = 0; b < BLOCK_COUNT; b++) {
        for (uint32_t layer = 0; layer < p->layout->geometry.num_layers; layer++) {
            for (uint32_t outer = 0; outer < p->layout->geometry.outer_dim; outer++) {
                void *plane;
                check(kvbm_block_data_mt(p->manager, p->blocks[b], layer, outer, &plane), "kvbm_block_data_mt");
                unsigned char byte = plane_byte(&p->keys[b], layer, outer);
                if (write)
                    memset(plane, byte, p->layout->plane_bytes);
                else
                    for (uint64_t i = 0; i < p->layout->plane_bytes; i++)
                        wrong += ((unsigned char *)plane)[i] != byte;
            }
        }
    }
    return wrong;
}

static kvbm_submit submit_to(kvbm_done_callback done, struct program *p) {
    return (kvbm_submit){.size = sizeof(kvbm_submit), .done = done, .user = p, .timeout_ns = 5000000000};
}

static void on_closer(uv_timer_t *timer) {
    struct program *p = timer->data;
    /* Returns at once: the loop ends when the manager's handles are closed. */
    check(kvbm_manager_close_mt(p->manager, 0), "kvbm_manager_close_mt");
    uv_timer_stop(&p->ticker);
    uv_close((uv_handle_t *)&p->ticker, NULL);
    uv_close((uv_handle_t *)&p->closer, NULL);
}

static void on_matched(void *user, const kvbm_completion *c) {
    struct program *p = user;
    check(c->status, "match");
    printf("matched    %" PRIu64 " of %d blocks by their keys\n", c->count, BLOCK_COUNT);
    uint64_t wrong = visit_planes(p, 0);
    printf("verified   %" PRIu64 " bytes, %" PRIu64 " wrong\n", c->count * p->layout->payload_bytes, wrong);
    if (c->count != BLOCK_COUNT || wrong != 0)
        exit(1);
    check(kvbm_release_mt(p->manager, p->blocks, c->count), "kvbm_release_mt");
    printf("released   the blocks stay cached until their room is needed\n");
    uv_timer_start(&p->closer, on_closer, 0, 0); /* a callback of the manager must not close it */
}

static void on_registered(void *user, const kvbm_completion *c) {
    struct program *p = user;
    check(c->status, "register");
    printf("registered %" PRIu64 " blocks under their sequence hashes\n", c->count);
    check(kvbm_release_mt(p->manager, p->blocks, BLOCK_COUNT), "kvbm_release_mt");
    kvbm_match_args args = {.size = sizeof(args), .count = BLOCK_COUNT, .keys = p->keys, .blocks = p->blocks};
    kvbm_submit submit = submit_to(on_matched, p);
    check(kvbm_match_mt(p->manager, &args, &submit, NULL), "kvbm_match_mt");
}

static void on_allocated(void *user, const kvbm_completion *c) {
    struct program *p = user;
    check(c->status, "allocate");
    printf("allocated  %" PRIu64 " blocks of %" PRIu64 " bytes\n", c->count, p->layout->payload_bytes);
    visit_planes(p, 1);
    kvbm_register_args args = {
        .size = sizeof(args), .count = BLOCK_COUNT, .blocks = p->blocks, .keys = p->keys, .out_blocks = p->blocks};
    kvbm_submit submit = submit_to(on_registered, p);
    check(kvbm_register_mt(p->manager, &args, &submit, NULL), "kvbm_register_mt");
}

static void on_tick(uv_timer_t *timer) {
    ((struct program *)timer->data)->ticks++;
}

static void open_manager(struct program *p) {
    kvbm_group_options group = {.size = sizeof(group),
                                .geometry = {.num_layers = 4,
                                             .outer_dim = 2,
                                             .page_size = PAGE_SIZE,
                                             .inner_dim = 128,
                                             .dtype = KVBM_DTYPE_FP16,
                                             .form = KVBM_LAYOUT_FULLY_CONTIGUOUS},
                                .host_blocks = 64};
    kvbm_options options = {.size = sizeof(options), .groups = &group, .group_count = 1, .uv_loop = &p->loop};
    kvbm_failure failure = {.size = sizeof(failure)};
    if (kvbm_manager_open(&options, &p->manager, &failure) != 0) {
        fprintf(stderr, "kvbm_manager_open: %s\n", failure.text);
        exit(1);
    }
    p->layout = kvbm_manager_layout_mt(p->manager, 0, KVBM_TIER_HOST);
}

int main(void) {
    static struct program p;
    uint32_t tokens[TOKEN_COUNT];
    uv_loop_init(&p.loop);
    uv_timer_init(&p.loop, &p.ticker);
    uv_timer_init(&p.loop, &p.closer);
    p.ticker.data = p.closer.data = &p;
    uv_timer_start(&p.ticker, on_tick, 1, 1);
    open_manager(&p);

    for (uint32_t i = 0; i < TOKEN_COUNT; i++)
        tokens[i] = 1000 + i;
    kvbm_keys_compute_mt(tokens, BLOCK_COUNT, PAGE_SIZE, NULL, 0, NULL, p.keys);
    kvbm_allocate_args args = {.size = sizeof(args), .tier = KVBM_TIER_HOST, .count = BLOCK_COUNT, .blocks = p.blocks};
    kvbm_submit submit = submit_to(on_allocated, &p);
    check(kvbm_allocate_mt(p.manager, &args, &submit, NULL), "kvbm_allocate_mt");

    uv_run(&p.loop, UV_RUN_DEFAULT);
    kvbm_manager_release_mt(p.manager);
    int rc = uv_loop_close(&p.loop);
    printf("closed     uv_loop_close() = %d\n", rc);
    return rc == 0 ? 0 : 1;
}
