/*
 * fault.c - see fault.h. Owns the inner store and a shadow for each request: the inner store sees the shadow, with the
 * items that are to be performed. Thread: the store's.
 */
#include "storage/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/errors.h"
#include "runtime/log.h"
#include "storage/turn.h"

#define IO_COUNT_DEFAULT  256u
#define ITEMS_MAX_DEFAULT 256u
#define TICK_NS           UINT64_C(1000000) /* between looks at deadlines of what is held */

struct shadow {
    struct kvbm_tier_io io; /* first: the inner store's request */
    struct kvbm_tier_io *outer;
    struct kvbm_tier_item *items; /* those of the inner request */
    uint32_t *numbers;            /* of each of these in the outer request */
    int *rules;                   /* that fired for each outer item; -1: none */
    struct fault *fault;
    struct shadow *next; /* free */
    uint64_t due_ns;     /* not told before */
    bool used, inner_has, held, cancelled, late;
};

struct fault {
    struct kvbm_store store; /* first */
    struct kvbm_store *inner;
    const struct kvbm_os *os;
    bool has_turn, lost;
    struct kvbm_turn turn;
    uint64_t seed;
    uint32_t shadow_count, rule_count, out;
    struct shadow *shadows, *free_shadows;
    struct kvbm_tier_item *items;
    uint32_t *numbers;
    int *item_rules;
    struct kvbm_fault_rule rules[KVBM_FAULT_RULE_COUNT_MAX];
    uint64_t hits[KVBM_FAULT_RULE_COUNT_MAX];
    int closing; /* 1: draining, 2: the inner store, or the handles */
    void (*closed)(void *arg);
    void *closed_arg;
};

static struct fault *fault_of(struct kvbm_store *store) {
    return (struct fault *)store;
}

static uint64_t draw(struct fault *f) { /* SplitMix64 */
    uint64_t z = (f->seed += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static bool fires(struct fault *f, struct kvbm_fault_rule *rule, int op, uint32_t slot) {
    uint32_t ops = rule->ops != 0 ? rule->ops : ~(1u << KVBM_TIER_FLUSH);
    if ((ops & 1u << op) == 0 || (rule->slot != KVBM_FAULT_ANY && rule->slot != slot))
        return false;
    if (rule->after_count > 0) {
        rule->after_count--;
        return false;
    }
    if (rule->per_million != 0 && draw(f) % 1000000 >= rule->per_million)
        return false;
    if (rule->count == UINT32_MAX) /* used up */
        return false;
    if (rule->count > 0 && --rule->count == 0)
        rule->count = UINT32_MAX;
    return true;
}

/* The rule for one item, or -1. */
static int choose(struct fault *f, int op, uint32_t slot) {
    for (uint32_t i = 0; i < f->rule_count; i++) {
        if (!fires(f, &f->rules[i], op, slot))
            continue;
        f->hits[i]++;
        f->lost = f->lost || f->rules[i].effect == KVBM_FAULT_LOST;
        return (int)i;
    }
    return -1;
}

static int error_of(const struct kvbm_fault_rule *rule) {
    return rule->effect == KVBM_FAULT_LOST ? -ENODEV : rule->error != 0 ? rule->error : -EIO;
}

static bool performed(const struct kvbm_fault_rule *rule, int op) {
    return rule->effect == KVBM_FAULT_FAIL_AFTER || rule->effect == KVBM_FAULT_LATE ||
           rule->effect == KVBM_FAULT_CORRUPT || (rule->effect == KVBM_FAULT_SHORT && op == KVBM_TIER_READ);
}

/* --------------------------------------------------------------------------------------------------------- requests */

static void scribble(const struct kvbm_tier_item *item, uint64_t from, bool all) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < item->segment_count; i++) {
        uint8_t *bytes = item->segments[i].address;
        for (uint64_t b = 0; b < item->segments[i].bytes; b++, at++)
            if (at >= from && (all || at == from))
                bytes[b] ^= 0x55;
    }
}

/* After the inner store has performed an item. */
static void spoil(struct fault *f, const struct kvbm_fault_rule *rule, int op, struct kvbm_tier_item *item) {
    if (rule->effect == KVBM_FAULT_FAIL_AFTER && item->status == 0)
        item->status = error_of(rule);
    if (op != KVBM_TIER_READ || item->status != 0)
        return;
    if (rule->effect == KVBM_FAULT_SHORT) {
        scribble(item, f->store.payload_bytes / 2, true);
        item->status = -EIO;
    } else if (rule->effect == KVBM_FAULT_CORRUPT) {
        scribble(item, draw(f) % f->store.payload_bytes, false);
        item->status = rule->silent ? 0 : -KVBM_ECORRUPT;
    }
}

static void on_inner_done(struct kvbm_tier_io *io) {
    struct shadow *s = (struct shadow *)io;
    struct fault *f = s->fault;
    for (uint32_t i = 0; i < io->item_count; i++) {
        struct kvbm_tier_item *item = &s->outer->items[s->numbers[i]];
        item->status = s->items[i].status;
        item->checksum = s->items[i].checksum;
        if (s->rules[s->numbers[i]] >= 0)
            spoil(f, &f->rules[s->rules[s->numbers[i]]], io->op, item);
    }
    s->inner_has = false;
    if (f->has_turn)
        kvbm_turn_again(&f->turn, true);
}

static void tell_late(struct shadow *s) {
    if (s->late)
        return;
    s->late = true;
    if (s->outer->late != NULL)
        s->outer->late(s->outer);
}

static void on_inner_late(struct kvbm_tier_io *io) {
    tell_late((struct shadow *)io);
}

/* Decides for each item, and hands on those that are to be performed. */
static void plan(struct fault *f, struct shadow *s, struct kvbm_tier_io *io) {
    uint64_t now_ns = f->os->now_ns(f->os->ctx);
    uint32_t count = 0, draws = io->op == KVBM_TIER_FLUSH ? 1 : io->item_count;
    bool flush = io->op == KVBM_TIER_FLUSH;
    io->status = 0;
    for (uint32_t i = 0; i < draws; i++) {
        int number = choose(f, io->op, flush ? KVBM_FAULT_ANY : io->items[i].slot);
        const struct kvbm_fault_rule *rule = number >= 0 ? &f->rules[number] : NULL;
        s->rules[i] = number;
        s->held = s->held || (rule != NULL && rule->effect == KVBM_FAULT_NEVER);
        if (rule != NULL && rule->effect == KVBM_FAULT_LATE && s->due_ns < now_ns + rule->delay_ns)
            s->due_ns = now_ns + rule->delay_ns;
        if (rule != NULL && !performed(rule, io->op)) {
            if (flush)
                io->status = error_of(rule);
            else
                io->items[i].status = error_of(rule);
        } else if (!flush) {
            s->numbers[count] = i;
            s->items[count++] = io->items[i];
        }
    }
    s->io = (struct kvbm_tier_io){.op = io->op,
                                  .item_count = count,
                                  .items = s->items,
                                  .deadline_ns = io->deadline_ns,
                                  .done = on_inner_done,
                                  .late = on_inner_late};
}

static int fault_submit(struct kvbm_store *store, struct kvbm_tier_io *io) {
    struct fault *f = fault_of(store);
    if (f->closing != 0)
        return -KVBM_ECLOSED;
    if (f->lost)
        return -KVBM_EDEGRADED;
    if (io->done == NULL || io->item_count > store->items_max || (io->item_count == 0) != (io->op == KVBM_TIER_FLUSH))
        return -EINVAL;
    struct shadow *s = f->free_shadows;
    if (s == NULL)
        return -EAGAIN;
    struct shadow kept = *s;
    plan(f, s, io);
    bool hand_on = io->op == KVBM_TIER_FLUSH ? io->status == 0 : s->io.item_count > 0;
    if (hand_on) {
        int rc = f->inner->ops->submit(f->inner, &s->io);
        if (rc != 0) {
            *s = kept; /* the rules that fired have done so for a request that never was */
            return rc;
        }
    }
    f->free_shadows = s->next;
    s->outer = io;
    s->inner_has = hand_on;
    s->used = true;
    f->out++;
    if (f->has_turn)
        kvbm_turn_again(&f->turn, true);
    return 0;
}

static void fault_cancel(struct kvbm_store *store, struct kvbm_tier_io *io) {
    struct fault *f = fault_of(store);
    for (uint32_t i = 0; i < f->shadow_count; i++) {
        struct shadow *s = &f->shadows[i];
        if (!s->used || s->outer != io)
            continue;
        s->cancelled = true;
        if (s->inner_has)
            f->inner->ops->cancel(f->inner, &s->io);
        return;
    }
    KVBM_ASSERT_MSG(false, "cancel of a request that the store does not have");
}

/* What was not performed of a cancelled or expired request ends as such; then all is told. */
static void tell(struct fault *f, struct shadow *s) {
    struct kvbm_tier_io *io = s->outer;
    int ended = s->cancelled ? -ECANCELED : s->late ? -ETIMEDOUT : 0;
    if (io->op == KVBM_TIER_FLUSH && io->status == 0)
        io->status = s->io.status;
    for (uint32_t i = 0; i < io->item_count; i++) {
        int rule = s->rules[i];
        if (ended != 0 && rule >= 0 && !performed(&f->rules[rule], io->op))
            io->items[i].status = ended;
        if (io->status == 0)
            io->status = io->items[i].status;
    }
    s->used = s->held = s->cancelled = s->late = false;
    s->due_ns = 0;
    s->next = f->free_shadows;
    f->free_shadows = s;
    f->out--;
    io->done(io);
}

static void close_inner_when_idle(struct fault *f);

uint64_t kvbm_fault_tick(struct kvbm_store *store, uint64_t now_ns) {
    struct fault *f = fault_of(store);
    uint64_t next_ns = KVBM_NO_DEADLINE;
    for (uint32_t i = 0; i < f->shadow_count && f->out > 0; i++) {
        struct shadow *s = &f->shadows[i];
        if (!s->used || s->inner_has)
            continue;
        if (!s->held && (now_ns >= s->due_ns || s->cancelled || f->closing != 0)) {
            tell(f, s);
            continue;
        }
        if (s->outer->deadline_ns != 0 && now_ns >= s->outer->deadline_ns)
            tell_late(s);
        uint64_t look_ns = s->held || s->due_ns > now_ns + TICK_NS ? now_ns + TICK_NS : s->due_ns;
        next_ns = look_ns < next_ns ? look_ns : next_ns;
    }
    close_inner_when_idle(f);
    return next_ns;
}

/* ------------------------------------------------------------------------------------------------------------ close */

static void fault_free(struct fault *f) {
    free(f->shadows);
    free(f->items);
    free(f->numbers);
    free(f->item_rules);
    free(f);
}

static void on_all_closed(void *arg) {
    struct fault *f = arg;
    void (*closed)(void *arg) = f->closed;
    void *closed_arg = f->closed_arg;
    fault_free(f);
    closed(closed_arg);
}

static void on_inner_closed(void *arg) {
    struct fault *f = arg;
    if (f->has_turn)
        kvbm_turn_close(&f->turn, on_all_closed, f);
    else
        on_all_closed(f);
}

static void close_inner_when_idle(struct fault *f) {
    if (f->closing != 1 || f->out > 0)
        return;
    f->closing = 2;
    if (f->has_turn)
        kvbm_turn_again(&f->turn, false);
    f->inner->ops->close(f->inner, on_inner_closed, f);
}

/* The inner store ends what it has, then the rest is told by ticks: with a loop here, without one by the caller's. */
static void fault_close(struct kvbm_store *store, void (*closed)(void *arg), void *arg) {
    struct fault *f = fault_of(store);
    KVBM_ASSERT(f->closing == 0);
    f->closing = 1;
    f->closed = closed;
    f->closed_arg = arg;
    kvbm_fault_release(store);
    for (uint32_t i = 0; i < f->shadow_count; i++)
        if (f->shadows[i].used && f->shadows[i].inner_has)
            f->inner->ops->cancel(f->inner, &f->shadows[i].io);
    if (f->has_turn)
        kvbm_turn_again(&f->turn, true);
    else
        close_inner_when_idle(f);
}

static void on_turn(void *arg) {
    struct fault *f = arg;
    if (f->closing == 2)
        return;
    bool closing = f->closing == 1;
    uint32_t out = f->out;
    uint64_t next_ns = kvbm_fault_tick(&f->store, f->os->now_ns(f->os->ctx));
    if (f->closing == 2)
        return; /* the tick found that all is told */
    kvbm_turn_again(&f->turn, f->out != out || closing != (f->closing == 1));
    kvbm_turn_at(&f->turn, next_ns);
}

/* ------------------------------------------------------------------------------------------------------------- rest */

static int fault_scan(struct kvbm_store *store, kvbm_tier_found_fn found, void *arg) {
    struct fault *f = fault_of(store);
    return f->inner->ops->scan(f->inner, found, arg);
}

static void fault_stats(struct kvbm_store *store, struct kvbm_tier_stats *stats) {
    struct fault *f = fault_of(store);
    f->inner->ops->stats_mt(f->inner, stats);
}

int kvbm_fault_add(struct kvbm_store *store, const struct kvbm_fault_rule *rule) {
    struct fault *f = fault_of(store);
    if (f->rule_count == KVBM_FAULT_RULE_COUNT_MAX)
        return -ENOSPC;
    f->rules[f->rule_count] = *rule;
    f->hits[f->rule_count] = 0;
    return (int)f->rule_count++;
}

void kvbm_fault_clear(struct kvbm_store *store) {
    /* The rules stay in their places for requests that they have decided; none of them fires again. */
    struct fault *f = fault_of(store);
    if (f->out == 0)
        f->rule_count = 0;
    for (uint32_t i = 0; i < f->rule_count; i++)
        f->rules[i].count = UINT32_MAX;
}

uint64_t kvbm_fault_hits(const struct kvbm_store *store, int rule) {
    const struct fault *f = (const struct fault *)store;
    return rule >= 0 && (uint32_t)rule < KVBM_FAULT_RULE_COUNT_MAX ? f->hits[rule] : 0;
}

void kvbm_fault_release(struct kvbm_store *store) {
    struct fault *f = fault_of(store);
    for (uint32_t i = 0; i < f->shadow_count; i++)
        f->shadows[i].held = false;
    if (f->has_turn)
        kvbm_turn_again(&f->turn, true);
}

void kvbm_fault_heal(struct kvbm_store *store) {
    fault_of(store)->lost = false;
}

static const struct kvbm_tier_ops fault_ops = {.name = "fault",
                                               .submit = fault_submit,
                                               .cancel = fault_cancel,
                                               .scan = fault_scan,
                                               .close = fault_close,
                                               .stats_mt = fault_stats};

int kvbm_fault_open(struct kvbm_store **store, struct kvbm_store *inner, const struct kvbm_fault_options *options) {
    uint32_t ios = options->io_count != 0 ? options->io_count : IO_COUNT_DEFAULT;
    uint32_t items = options->items_max != 0                ? options->items_max
                     : inner->items_max < ITEMS_MAX_DEFAULT ? inner->items_max
                                                            : ITEMS_MAX_DEFAULT;
    if (options->os == NULL || ios > 1u << 16 || items > inner->items_max)
        return -EINVAL;
    struct fault *f = calloc(1, sizeof *f);
    if (f == NULL)
        return -ENOMEM;
    f->shadows = calloc(ios, sizeof *f->shadows);
    f->items = calloc((size_t)ios * items, sizeof *f->items);
    f->numbers = calloc((size_t)ios * items, sizeof *f->numbers);
    f->item_rules = calloc((size_t)ios * items, sizeof *f->item_rules);
    if (f->shadows == NULL || f->items == NULL || f->numbers == NULL || f->item_rules == NULL) {
        fault_free(f);
        return -ENOMEM;
    }
    for (uint32_t i = ios; i-- > 0;) {
        struct shadow *s = &f->shadows[i];
        *s = (struct shadow){.items = f->items + (size_t)i * items,
                             .numbers = f->numbers + (size_t)i * items,
                             .rules = f->item_rules + (size_t)i * items,
                             .fault = f,
                             .next = f->free_shadows};
        f->free_shadows = s;
    }
    f->shadow_count = ios;
    f->os = options->os;
    f->inner = inner;
    f->seed = options->seed;
    f->has_turn = options->loop != NULL;
    f->store = *inner;
    f->store.ops = &fault_ops;
    f->store.items_max = items;
    if (f->has_turn)
        kvbm_turn_open(&f->turn, f->os, options->loop, on_turn, f);
    *store = &f->store;
    return 0;
}
