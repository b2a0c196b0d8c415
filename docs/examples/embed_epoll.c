/*
 * embed_epoll.c - KVBM in a bare epoll loop: the manager has a thread of its own and answers through a port, whose file
 * descriptor the loop polls.
 *
 * Each step of the little story (allocate, write, register, release, match, verify) is submitted when the completion of
 * the one before was drained. With KVBM_SUBMIT_INLINE an operation that could be answered on the spot skips the port:
 * the submit returns 1 with the completion filled.
 *
 *     cc embed_epoll.c -lkvbm
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "actors/kvbm.h"

#define PAGE_SIZE   16
#define BLOCK_COUNT 8
#define TOKEN_COUNT (BLOCK_COUNT * PAGE_SIZE)

struct program {
    int epoll;
    kvbm_manager *manager;
    kvbm_port *port;
    const struct kvbm_layout *layout;
    kvbm_key keys[BLOCK_COUNT];
    kvbm_block blocks[BLOCK_COUNT];
    int answered_inline, answered_by_port;
};

static void check(int rc, const char *what) {
    if (rc >= 0)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, kvbm_error_name_mt(rc), kvbm_error_text_mt(rc));
    exit(1);
}

/* Sleeps in epoll until the port has something. */
static void wait_for_completion(struct program *p, kvbm_completion *completion) {
    for (;;) {
        int n = kvbm_port_drain(p->port, completion, 1);
        check(n, "kvbm_port_drain");
        if (n == 1) {
            p->answered_by_port++;
            return;
        }
        struct epoll_event event;
        if (epoll_wait(p->epoll, &event, 1, 5000) == 0) {
            fprintf(stderr, "no completion within five seconds\n");
            exit(1);
        }
    }
}

/* After a submit: the completion, from wherever it comes. `accepted` is what the submit returned. */
static uint64_t finish(struct program *p, int accepted, kvbm_completion *completion, const char *what) {
    check(accepted, what);
    if (accepted == 1)
        p->answered_inline++;
    else
        wait_for_completion(p, completion);
    check(completion->status, what);
    return completion->count;
}

static kvbm_submit submit_to(struct program *p, kvbm_completion *completion, uint32_t flags) {
    return (kvbm_submit){.size = sizeof(kvbm_submit),
                         .flags = flags,
                         .port = p->port,
                         .timeout_ns = 5000000000,
                         .completion = completion};
}

static unsigned char *plane_of(struct program *p, kvbm_block block, uint32_t layer, uint32_t outer) {
    void *plane;
    check(kvbm_block_data_mt(p->manager, block, layer, outer, &plane), "kvbm_block_data_mt");
    return plane;
}

/* Fills the blocks with bytes of their keys, or counts the bytes that are not as filled. */
static uint64_t fill_or_verify(struct program *p, int fill) {
    uint64_t wrong = 0;
    for (uint32_t b = 0; b < BLOCK_COUNT; b++) {
        for (uint32_t layer = 0; layer < p->layout->geometry.num_layers; layer++) {
            for (uint32_t outer = 0; outer < p->layout->geometry.outer_dim; outer++) {
                unsigned char *plane = plane_of(p, p->blocks[b], layer, outer);
                for (uint64_t i = 0; i < p->layout->plane_bytes; i++) {
                    unsigned char byte = (unsigned char)(p->keys[b].bytes[i % 16] + layer + outer);
                    if (fill)
                        plane[i] = byte;
                    else
                        wrong += plane[i] != byte;
                }
            }
        }
    }
    return wrong;
}

static void open_all(struct program *p) {
    kvbm_group_options group = {.size = sizeof(group),
                                .geometry = {.num_layers = 4,
                                             .outer_dim = 2,
                                             .page_size = PAGE_SIZE,
                                             .inner_dim = 128,
                                             .dtype = KVBM_DTYPE_BF16,
                                             .form = KVBM_LAYOUT_FULLY_CONTIGUOUS},
                                .host_blocks = 64};
    kvbm_options options = {.size = sizeof(options), .groups = &group, .group_count = 1};
    kvbm_failure failure = {.size = sizeof(failure)};
    if (kvbm_manager_open(&options, &p->manager, &failure) != 0) {
        fprintf(stderr, "kvbm_manager_open: %s\n", failure.text);
        exit(1);
    }
    p->layout = kvbm_manager_layout_mt(p->manager, 0, KVBM_TIER_HOST);
    check(kvbm_port_open(16, &p->port), "kvbm_port_open");
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (p->epoll < 0 || epoll_ctl(p->epoll, EPOLL_CTL_ADD, kvbm_port_fd(p->port), &event) != 0) {
        perror("epoll");
        exit(1);
    }
}

static void run(struct program *p) {
    kvbm_completion completion;
    kvbm_submit submit = submit_to(p, &completion, KVBM_SUBMIT_INLINE);
    kvbm_allocate_args allocate = {
        .size = sizeof(allocate), .tier = KVBM_TIER_HOST, .count = BLOCK_COUNT, .blocks = p->blocks};
    uint64_t count = finish(p, kvbm_allocate_mt(p->manager, &allocate, &submit, NULL), &completion, "allocate");
    printf("allocated  %" PRIu64 " blocks of %" PRIu64 " bytes\n", count, p->layout->payload_bytes);

    fill_or_verify(p, 1);
    kvbm_register_args registration = {.size = sizeof(registration),
                                       .count = BLOCK_COUNT,
                                       .blocks = p->blocks,
                                       .keys = p->keys,
                                       .out_blocks = p->blocks};
    submit = submit_to(p, &completion, 0); /* always through the port */
    count = finish(p, kvbm_register_mt(p->manager, &registration, &submit, NULL), &completion, "register");
    printf("registered %" PRIu64 " blocks under their sequence hashes\n", count);
    check(kvbm_release_mt(p->manager, p->blocks, BLOCK_COUNT), "kvbm_release_mt");

    kvbm_match_args match = {.size = sizeof(match), .count = BLOCK_COUNT, .keys = p->keys, .blocks = p->blocks};
    count = finish(p, kvbm_match_mt(p->manager, &match, &submit, NULL), &completion, "match");
    printf("matched    %" PRIu64 " of %d blocks by their keys\n", count, BLOCK_COUNT);
    uint64_t wrong = fill_or_verify(p, 0);
    printf("verified   %" PRIu64 " bytes, %" PRIu64 " wrong\n", count * p->layout->payload_bytes, wrong);
    if (count != BLOCK_COUNT || wrong != 0)
        exit(1);
    check(kvbm_release_mt(p->manager, p->blocks, count), "kvbm_release_mt");
    printf("released   answered at submit: %d, by the port: %d\n", p->answered_inline, p->answered_by_port);
}

int main(void) {
    static struct program p;
    uint32_t tokens[TOKEN_COUNT];
    open_all(&p);
    for (uint32_t i = 0; i < TOKEN_COUNT; i++)
        tokens[i] = 1000 + i;
    kvbm_keys_compute_mt(tokens, BLOCK_COUNT, PAGE_SIZE, "tenant-a", 8, NULL, p.keys);
    run(&p);
    kvbm_port_close(p.port);
    close(p.epoll);
    check(kvbm_manager_close_mt(p.manager, 5000000000), "kvbm_manager_close_mt");
    kvbm_manager_release_mt(p.manager);
    printf("closed\n");
    return 0;
}
