/*
 * policies_test.c - the policies "s3fifo" and "prefix": models, properties, bounds; what holds for every policy.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "actors/policy_parts.h"
#include "tests/actors/kit.h"
#include "tests/support/dies.h"
#include "tests/support/random.h"
#include "tests/support/refusing_os.h"

static const char *const all_policies[] = {"lru", "s3fifo", "prefix"};
#define POLICY_COUNT 3

static struct kvbm_policy *policy_open(struct refusing_os *os, const char *name, uint32_t slot_count) {
    struct kvbm_policy *policy = NULL;
    refusing_os_init(os);
    ck_assert_int_eq(kvbm_policy_find(name)->open(&os->os, slot_count, &policy), 0);
    ck_assert_str_eq(policy->ops->name, name);
    ck_assert_uint_eq(policy->ops->bytes(policy), os->open_bytes);
    return policy;
}

static void policy_close(struct kvbm_policy *policy, struct refusing_os *os) {
    ck_assert_uint_eq(policy->ops->check(policy), 0);
    policy->ops->close(policy);
    ck_assert_uint_eq(os->open_maps, 0);
}

static kvbm_key key_of(uint64_t number) {
    kvbm_key key;
    number = (number + 1) * UINT64_C(0x9e3779b97f4a7c15);
    number ^= number >> 29;
    uint64_t other = number * UINT64_C(0xbf58476d1ce4e5b9);
    memcpy(key.bytes, &number, sizeof number);
    memcpy(key.bytes + 8, &other, sizeof other);
    return key;
}

/* parent: number of its key, UINT64_MAX for none. */
static void publish(struct kvbm_policy *policy, uint32_t slot, uint64_t number, uint64_t parent, uint32_t parent_slot,
                    uint64_t tokens) {
    kvbm_key key = key_of(number), parent_key = key_of(parent);
    struct kvbm_policy_place place = {.key = &key,
                                      .parent = parent != UINT64_MAX ? &parent_key : NULL,
                                      .parent_slot = parent_slot,
                                      .tokens_before = tokens};
    policy->ops->publish(policy, slot, &place);
}

static void insert(struct kvbm_policy *policy, uint32_t slot, uint8_t priority, uint64_t expires_ns, uint64_t now_ns) {
    struct kvbm_policy_meta meta = {.priority = priority, .expires_ns = expires_ns};
    policy->ops->insert(policy, slot, &meta, now_ns);
}

/* A block without a parent, cached. */
static void root(struct kvbm_policy *policy, uint32_t slot, uint64_t number) {
    publish(policy, slot, number, UINT64_MAX, KVBM_SLOT_NONE, 0);
    insert(policy, slot, 0, 0, 0);
}

static uint32_t evict(struct kvbm_policy *policy, uint64_t now_ns) {
    uint32_t slot = policy->ops->victim(policy, now_ns);
    if (slot != KVBM_SLOT_NONE)
        policy->ops->forget(policy, slot);
    return slot;
}

/* ----------------------------------------------------------------------------------------- a cache of single blocks */

#define NUMBERS 40000

struct cache {
    struct refusing_os os;
    struct kvbm_policy *policy;
    uint32_t capacity, used;
    uint64_t numbers[2048];  /* of each slot */
    uint32_t slots[NUMBERS]; /* of each number; KVBM_SLOT_NONE: absent */
};

static void cache_open(struct cache *c, const char *name, uint32_t capacity) {
    c->policy = policy_open(&c->os, name, capacity);
    c->capacity = capacity;
    c->used = 0;
    memset(c->slots, 0xff, sizeof c->slots);
}

/* One use of a block that has no parent; whether it was there. */
static bool cache_use(struct cache *c, uint64_t number) {
    uint32_t slot = c->slots[number];
    bool there = slot != KVBM_SLOT_NONE;
    if (there) {
        c->policy->ops->hit(c->policy, slot);
        ck_assert(c->policy->ops->remove(c->policy, slot));
    } else {
        if (c->used < c->capacity) {
            slot = c->used++;
        } else {
            slot = evict(c->policy, 0);
            ck_assert_uint_lt(slot, c->capacity);
            c->slots[c->numbers[slot]] = KVBM_SLOT_NONE;
        }
        c->numbers[slot] = number;
        c->slots[number] = slot;
        publish(c->policy, slot, number, UINT64_MAX, KVBM_SLOT_NONE, 0);
    }
    insert(c->policy, slot, 0, 0, 0);
    return there;
}

/* How much of a working set of half the capacity, used four times, is left after a scan of ten capacities. */
static uint32_t left_after_scan(const char *name) {
    static struct cache c;
    cache_open(&c, name, 1000);
    uint32_t left = 0;
    for (uint64_t i = 0; i < 2000; i++)
        cache_use(&c, i % 500);
    for (uint64_t i = 0; i < 10000; i++)
        ck_assert(!cache_use(&c, 1000 + i));
    for (uint64_t i = 0; i < 500; i++)
        left += c.slots[i] != KVBM_SLOT_NONE;
    policy_close(c.policy, &c.os);
    return left;
}

START_TEST(a_scan_of_ten_capacities_leaves_a_reused_working_set_alone) {
    ck_assert_uint_eq(left_after_scan("lru"), 0);
    ck_assert_uint_eq(left_after_scan("s3fifo"), 500);
}
END_TEST

/* -------------------------------------------------------------------------------------------------- s3fifo: a model */

#define SLOTS 120

struct s3_slot {
    bool published, held, main, timed;
    uint32_t hits;
    uint8_t level;
    uint64_t expires_ns, order, inserted;
};

struct s3_model {
    struct s3_slot slots[SLOTS];
    uint64_t order;
};

static uint32_t s3_first(const struct s3_model *m, uint32_t level, bool main) {
    uint32_t first = KVBM_SLOT_NONE;
    for (uint32_t s = 0; s < SLOTS; s++) {
        const struct s3_slot *at = &m->slots[s];
        if (at->held && at->level == level && at->main == main &&
            (first == KVBM_SLOT_NONE || at->order < m->slots[first].order))
            first = s;
    }
    return first;
}

static void s3_expire(struct s3_model *m, uint64_t now_ns) {
    for (;;) {
        uint32_t next = KVBM_SLOT_NONE;
        for (uint32_t s = 0; s < SLOTS; s++) {
            const struct s3_slot *at = &m->slots[s], *n = next != KVBM_SLOT_NONE ? &m->slots[next] : NULL;
            if (at->held && at->timed && at->expires_ns <= now_ns &&
                (n == NULL || at->expires_ns < n->expires_ns ||
                 (at->expires_ns == n->expires_ns && at->inserted < n->inserted)))
                next = s;
        }
        if (next == KVBM_SLOT_NONE)
            return;
        m->slots[next].timed = false;
        m->slots[next].level = 0;
        m->slots[next].order = ++m->order;
    }
}

static uint32_t s3_victim(struct s3_model *m, uint64_t now_ns) {
    s3_expire(m, now_ns);
    for (uint32_t level = 0; level <= KVBM_PRIORITY_MAX; level++) {
        for (;;) {
            uint32_t small = s3_first(m, level, false), main = s3_first(m, level, true), count = 0;
            for (uint32_t s = 0; s < SLOTS; s++)
                count += m->slots[s].held && !m->slots[s].main;
            if (small == KVBM_SLOT_NONE && main == KVBM_SLOT_NONE)
                break;
            bool from_small = small != KVBM_SLOT_NONE && (count > SLOTS / 4 || main == KVBM_SLOT_NONE);
            struct s3_slot *at = &m->slots[from_small ? small : main];
            if (at->hits == 0) {
                at->held = false;
                return (uint32_t)(at - m->slots);
            }
            at->hits = from_small ? 0 : at->hits - 1;
            at->main = true;
            at->order = ++m->order;
        }
    }
    return KVBM_SLOT_NONE;
}

static void s3_run(uint64_t seed, uint32_t levels) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = policy_open(&os, "s3fifo", SLOTS);
    static struct s3_model m;
    memset(&m, 0, sizeof m);
    uint64_t state = seed, now_ns = 1000, number = 0;
    for (int step = 0; step < 20000; step++) {
        uint32_t slot = random_below(&state, SLOTS), choice = random_below(&state, 8);
        struct s3_slot *at = &m.slots[slot];
        now_ns += random_below(&state, 40);
        if (choice < 4 && !at->held) {
            if (!at->published) {
                publish(policy, slot, number++, UINT64_MAX, KVBM_SLOT_NONE, 0); /* never a key that is remembered */
                *at = (struct s3_slot){.published = true};
            }
            at->level = (uint8_t)random_below(&state, levels);
            at->expires_ns = random_below(&state, 4) == 0 ? (now_ns + random_below(&state, 4000)) / 100 * 100 : 0;
            insert(policy, slot, at->level, at->expires_ns, now_ns);
            at->held = true;
            at->timed = at->level > 0 && at->expires_ns != 0;
            if (at->timed && now_ns >= at->expires_ns) {
                at->timed = false;
                at->level = 0;
            }
            at->order = at->inserted = ++m.order;
        } else if (choice < 6 && at->published) {
            policy->ops->hit(policy, slot);
            at->hits += at->hits < 3;
            ck_assert_int_eq(policy->ops->remove(policy, slot), at->held);
            at->held = false;
        } else if (choice == 6) {
            uint32_t victim = policy->ops->victim(policy, now_ns);
            ck_assert_uint_eq(victim, s3_victim(&m, now_ns));
            if (victim != KVBM_SLOT_NONE) {
                policy->ops->forget(policy, victim);
                m.slots[victim].published = false;
            }
        } else if (at->published && !at->held) {
            policy->ops->forget(policy, slot);
            at->published = false;
        }
        if (step % 64 == 0)
            ck_assert_uint_eq(policy->ops->check(policy), 0);
    }
    policy_close(policy, &os);
}

START_TEST(s3fifo_agrees_with_a_naive_model) {
    for (uint64_t seed = 1; seed <= 6; seed++)
        s3_run(seed, seed % 2 ? 1 : 8);
}
END_TEST

START_TEST(s3fifo_keeps_a_key_that_comes_back_while_it_is_remembered) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = policy_open(&os, "s3fifo", 8);
    for (uint32_t slot = 0; slot < 8; slot++)
        root(policy, slot, slot);
    ck_assert_uint_eq(evict(policy, 0), 0);
    root(policy, 0, 0); /* back: in the main queue, though the last to come */
    for (uint32_t slot = 1; slot < 6; slot++)
        ck_assert_uint_eq(evict(policy, 0), slot);
    ck_assert_uint_eq(evict(policy, 0), 0); /* the small queue has shrunk to its quarter */
    ck_assert_uint_eq(evict(policy, 0), 6);
    /* Nothing of a slot's hits passes to its next content. */
    policy->ops->hit(policy, 7);
    ck_assert(policy->ops->remove(policy, 7));
    policy->ops->forget(policy, 7);
    root(policy, 7, 100);
    root(policy, 6, 101);
    ck_assert_uint_eq(evict(policy, 0), 7);
    policy_close(policy, &os);
}
END_TEST

/* ------------------------------------------------------------------------------------------- prefix: what must hold */

#define TREE_NUMBERS 400

struct tree_slot {
    bool published, held, timed;
    uint8_t level;
    uint64_t number, expires_ns;
};

struct tree {
    struct kvbm_policy *policy;
    struct tree_slot slots[SLOTS];
    uint64_t parents[TREE_NUMBERS]; /* key of the parent; UINT64_MAX: none */
    uint32_t at[TREE_NUMBERS];      /* slot of a key; KVBM_SLOT_NONE: not resident */
    bool rings;
};

/* Children of the slot's key that are resident, and of those the ones that are held. */
static uint32_t tree_children(const struct tree *t, uint32_t slot, uint32_t *held) {
    uint32_t count = 0;
    *held = 0;
    for (uint32_t s = 0; s < SLOTS; s++) {
        if (t->slots[s].published && t->parents[t->slots[s].number] == t->slots[slot].number) {
            count++;
            *held += t->slots[s].held;
        }
    }
    return count;
}

/* The next victim is one of those that may go. */
static uint32_t tree_evict(struct tree *t, uint64_t now_ns) {
    uint32_t leaves = 0, lowest = 99, held_count = 0, held;
    for (uint32_t s = 0; s < SLOTS; s++) {
        struct tree_slot *at = &t->slots[s];
        if (at->held && at->timed && at->expires_ns <= now_ns) {
            at->timed = false;
            at->level = 0;
        }
        held_count += at->held;
        if (at->held && tree_children(t, s, &held) == 0) {
            leaves++;
            lowest = at->level < lowest ? at->level : lowest;
        }
    }
    ck_assert_uint_eq(t->policy->ops->count(t->policy), held_count);
    uint32_t victim = t->policy->ops->victim(t->policy, now_ns);
    if (held_count == 0) {
        ck_assert_uint_eq(victim, KVBM_SLOT_NONE);
        return victim;
    }
    ck_assert_uint_lt(victim, SLOTS);
    struct tree_slot *at = &t->slots[victim];
    ck_assert(at->held);
    uint32_t children = tree_children(t, victim, &held);
    if (leaves > 0) {
        ck_assert_uint_eq(children, 0);
        ck_assert_uint_eq(at->level, lowest);
    } else if (!t->rings) {
        ck_assert_uint_eq(held, 0); /* its children are leased, all of them */
    }
    at->held = at->published = false;
    t->at[at->number] = KVBM_SLOT_NONE;
    t->policy->ops->forget(t->policy, victim);
    return victim;
}

static void tree_publish(struct tree *t, uint64_t *state, uint32_t slot) {
    uint64_t number = random_below(state, TREE_NUMBERS), parent = t->parents[number];
    if (t->at[number] != KVBM_SLOT_NONE)
        return;
    uint32_t parent_slot = parent != UINT64_MAX ? t->at[parent] : KVBM_SLOT_NONE;
    publish(t->policy, slot, number, parent, parent_slot, random_below(state, 100000));
    t->slots[slot] = (struct tree_slot){.published = true, .number = number};
    t->at[number] = slot;
}

static void tree_run(uint64_t seed, uint32_t levels, bool rings) {
    struct refusing_os os = {0};
    static struct tree t;
    t = (struct tree){.policy = policy_open(&os, "prefix", SLOTS), .rings = rings};
    uint64_t state = seed, now_ns = 1000;
    for (uint64_t n = 0; n < TREE_NUMBERS; n++) {
        t.at[n] = KVBM_SLOT_NONE;
        /* Chains with branches; a ring where a parent comes after its child. */
        uint64_t before = n > 0 ? n - 1 - random_below(&state, n < 3 ? (uint32_t)n : 3) : 0;
        t.parents[n] = rings && n % 10 == 0 ? random_below(&state, TREE_NUMBERS) : n % 16 == 0 ? UINT64_MAX : before;
    }
    for (int step = 0; step < 20000; step++) {
        uint32_t slot = random_below(&state, SLOTS), choice = random_below(&state, 10);
        struct tree_slot *at = &t.slots[slot];
        now_ns += random_below(&state, 40);
        if (!at->published) {
            tree_publish(&t, &state, slot);
        } else if (choice < 5 && !at->held) {
            at->level = (uint8_t)random_below(&state, levels);
            at->expires_ns = random_below(&state, 4) == 0 ? now_ns + 1 + random_below(&state, 4000) : 0;
            at->timed = at->level > 0 && at->expires_ns != 0;
            insert(t.policy, slot, at->level, at->expires_ns, now_ns);
            at->held = true;
        } else if (choice < 7) {
            t.policy->ops->hit(t.policy, slot);
            ck_assert_int_eq(t.policy->ops->remove(t.policy, slot), at->held);
            at->held = false;
        } else if (choice == 7 && !at->held) {
            t.policy->ops->forget(t.policy, slot);
            at->published = false;
            t.at[at->number] = KVBM_SLOT_NONE;
        } else {
            tree_evict(&t, now_ns);
        }
        if (step % 32 == 0)
            ck_assert_uint_eq(t.policy->ops->check(t.policy), 0);
    }
    while (tree_evict(&t, now_ns) != KVBM_SLOT_NONE)
        ;
    policy_close(t.policy, &os);
}

START_TEST(prefix_evicts_children_before_parents_and_low_levels_first_whatever_happens) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        tree_run(seed, 1, false);
        tree_run(seed, 8, false);
        tree_run(seed, 3, true);
    }
}
END_TEST

START_TEST(prefix_takes_a_chain_from_its_end_whatever_order_it_was_released_in) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = policy_open(&os, "prefix", 10);
    for (uint32_t slot = 0; slot < 10; slot++)
        publish(policy, slot, slot, slot > 0 ? slot - 1 : UINT64_MAX, slot > 0 ? slot - 1 : KVBM_SLOT_NONE, slot);
    for (uint32_t i = 0; i < 10; i++)
        insert(policy, i * 7 % 10, 0, 0, 0);
    for (uint32_t slot = 10; slot-- > 0;)
        ck_assert_uint_eq(evict(policy, 0), slot);
    policy_close(policy, &os);
}
END_TEST

START_TEST(prefix_lets_a_low_parent_outlive_its_high_child) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = policy_open(&os, "prefix", 4);
    publish(policy, 0, 0, UINT64_MAX, KVBM_SLOT_NONE, 0);
    publish(policy, 1, 1, 0, 0, 1);
    publish(policy, 2, 2, UINT64_MAX, KVBM_SLOT_NONE, 0);
    insert(policy, 0, 0, 0, 0);
    insert(policy, 1, 7, 0, 0);
    insert(policy, 2, 3, 0, 0);
    ck_assert_uint_eq(evict(policy, 0), 2);
    ck_assert_uint_eq(evict(policy, 0), 1);
    ck_assert_uint_eq(evict(policy, 0), 0);
    policy_close(policy, &os);
}
END_TEST

START_TEST(prefix_gives_up_the_parent_of_a_leased_child_only_when_nothing_else_is_left) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = policy_open(&os, "prefix", 4);
    publish(policy, 0, 0, UINT64_MAX, KVBM_SLOT_NONE, 0);
    publish(policy, 1, 1, 0, 0, 1);
    publish(policy, 2, 2, 1, 1, 2); /* stays leased */
    root(policy, 3, 3);
    insert(policy, 0, 0, 0, 0);
    insert(policy, 1, 0, 0, 0);
    ck_assert_uint_eq(evict(policy, 0), 3);
    ck_assert_uint_eq(evict(policy, 0), 1);
    ck_assert_uint_eq(evict(policy, 0), 0);
    /* The parent comes back in another slot and finds its child. */
    publish(policy, 3, 1, UINT64_MAX, KVBM_SLOT_NONE, 1);
    insert(policy, 3, 0, 0, 0);
    insert(policy, 2, 7, 0, 0);
    ck_assert_uint_eq(evict(policy, 0), 2);
    ck_assert_uint_eq(evict(policy, 0), 3);
    policy_close(policy, &os);
}
END_TEST

/* ----------------------------------------------------------------------------------------------------- every policy */

START_TEST(every_policy_works_with_one_to_four_slots) {
    for (uint32_t p = 0; p < POLICY_COUNT; p++) {
        for (uint32_t slots = 1; slots <= 4; slots++) {
            static struct cache c;
            cache_open(&c, all_policies[p], slots);
            uint64_t state = slots;
            for (uint64_t i = 0; i < 5000; i++) {
                cache_use(&c, random_below(&state, 7));
                ck_assert_uint_eq(c.policy->ops->count(c.policy), c.used);
            }
            policy_close(c.policy, &c.os);
        }
    }
}
END_TEST

START_TEST(every_policy_refuses_bad_counts_and_survives_a_refused_map) {
    for (uint32_t p = 0; p < POLICY_COUNT; p++) {
        const struct kvbm_policy_ops *ops = kvbm_policy_find(all_policies[p]);
        struct refusing_os os = {.map_refuse_at = 1};
        struct kvbm_policy *policy = NULL;
        refusing_os_init(&os);
        ck_assert_int_eq(ops->open(&os.os, 0, &policy), -EINVAL);
        ck_assert_int_eq(ops->open(&os.os, KVBM_SLOT_COUNT_MAX + 1, &policy), -EINVAL);
        ck_assert_int_eq(ops->open(&os.os, 10, &policy), -ENOMEM);
        ck_assert_ptr_null(policy);
        ck_assert_uint_eq(os.open_maps, 0);
    }
}
END_TEST

START_TEST(memory_is_bounded_for_each_slot_and_mapped_lazily) {
    static const uint64_t bytes_max[POLICY_COUNT] = {30, 60, 130}; /* mapped, with timers and remembered keys */
    for (uint32_t p = 0; p < POLICY_COUNT; p++) {
        struct refusing_os os = {0};
        struct kvbm_policy *policy = policy_open(&os, all_policies[p], 1000000);
        ck_assert_uint_lt(policy->ops->bytes(policy), bytes_max[p] * 1000000 + 65536);
        policy_close(policy, &os);
        /* The most slots: gigabytes, of which this touches some pages. */
        policy = policy_open(&os, all_policies[p], KVBM_SLOT_COUNT_MAX);
        uint32_t last = KVBM_SLOT_COUNT_MAX - 1;
        root(policy, last, 1);
        root(policy, 0, 2);
        ck_assert_uint_eq(evict(policy, 0), last);
        ck_assert_uint_eq(evict(policy, 0), 0);
        policy->ops->close(policy);
        ck_assert_uint_eq(os.open_maps, 0);
    }
}
END_TEST

START_TEST(remembered_keys_are_those_of_the_last_window) {
    enum { WINDOW = 4096 };
    static _Alignas(64) uint64_t entries[2 * WINDOW];
    struct kvbm__ghosts ghosts = {0};
    uint32_t note, found = 0;
    ck_assert_uint_eq(kvbm__ghosts_entries(WINDOW), 2 * WINDOW);
    kvbm__ghosts_init(&ghosts, entries, WINDOW);
    for (uint64_t n = 0; n < 10 * WINDOW; n++) {
        kvbm_key key = key_of(n);
        kvbm__ghosts_add(&ghosts, kvbm__policy_digest(&key, 7), (uint32_t)n & 0x3fff);
    }
    for (uint64_t n = 0; n < 8 * WINDOW; n++) {
        kvbm_key key = key_of(n);
        ck_assert(!kvbm__ghosts_take(&ghosts, kvbm__policy_digest(&key, 7), &note));
    }
    for (uint64_t n = 9 * WINDOW; n < 10 * WINDOW; n++) {
        kvbm_key key = key_of(n);
        if (!kvbm__ghosts_take(&ghosts, kvbm__policy_digest(&key, 7), &note))
            continue;
        found++;
        ck_assert_uint_eq(note, n & 0x3fff);
        ck_assert(!kvbm__ghosts_take(&ghosts, kvbm__policy_digest(&key, 7), &note)); /* once */
    }
    ck_assert_uint_gt(found, WINDOW * 95 / 100);
}
END_TEST

static const char *misused;

static void insert_unpublished(void *policy) {
    insert(policy, 1, 0, 0, 0);
}

static void publish_twice(void *policy) {
    root(policy, 1, 1);
    root(policy, 1, 1);
}

static void forget_held(void *policy) {
    root(policy, 1, 1);
    ((struct kvbm_policy *)policy)->ops->forget(policy, 1);
}

START_TEST(misuse_is_a_programming_error) {
    for (uint32_t p = 1; p < POLICY_COUNT; p++) {
        struct refusing_os os = {0};
        misused = all_policies[p];
        struct kvbm_policy *policy = policy_open(&os, misused, 4);
        ck_assert(dies(insert_unpublished, policy));
        ck_assert(dies(publish_twice, policy));
        ck_assert(dies(forget_held, policy));
        policy_close(policy, &os);
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------------- through kvbm.h */

/* A group for each policy in one manager; chains of four keys go through each, more than there is room for. */
START_TEST(each_group_of_a_manager_has_the_policy_that_it_names) {
    kvbm_group_options groups[POLICY_COUNT];
    kvbm_options options = kit_options(&groups[0], 64);
    for (uint32_t g = 0; g < POLICY_COUNT; g++) {
        groups[g] = kit_group(64);
        groups[g].policy = all_policies[g];
    }
    options.group_count = POLICY_COUNT;
    kvbm_manager *m = kit_open_with(&options);
    for (uint32_t g = 0; g < POLICY_COUNT; g++) {
        for (uint32_t chain = 0; chain < 200; chain++) {
            kvbm_block blocks[4], out[4];
            kvbm_key keys[4];
            kvbm_completion completion;
            kit_keys(chain % 37, 0, 4, keys);
            ck_assert_int_eq(kit_allocate_c(m, g, blocks, 4, &completion), 0);
            kvbm_register_args args = {.size = sizeof(args),
                                       .count = 4,
                                       .blocks = blocks,
                                       .keys = keys,
                                       .out_blocks = out,
                                       .priority = (uint8_t)(chain % 3)};
            ck_assert_int_eq(kit_register_args(m, &args), 0);
            kit_release(m, out, 4);
        }
    }
    kit_end(m);
}
END_TEST

START_TEST(prefix_keeps_shared_beginnings_while_any_continuation_is_resident) {
    kvbm_group_options group;
    kvbm_options options = kit_options(&group, 12);
    group.policy = "prefix";
    kvbm_manager *m = kit_open_with(&options);
    kvbm_key shared[2], keys[4];
    uint8_t tiers[4];
    kit_keys(1, 0, 2, shared);
    for (uint32_t turn = 0; turn < 50; turn++) {
        kvbm_block held[4], fresh[4];
        memcpy(keys, shared, sizeof shared);
        kit_keys(100 + turn, 0, 2, keys + 2);
        int64_t hits = kit_match(m, keys, 4, held);
        ck_assert_int_eq(hits, turn == 0 ? 0 : 2);
        ck_assert_int_eq(kit_allocate(m, fresh, (uint64_t)(4 - hits)), 0);
        kvbm_register_args args = {.size = sizeof(args),
                                   .count = (uint64_t)(4 - hits),
                                   .blocks = fresh,
                                   .keys = keys + hits,
                                   .parent = hits > 0 ? &keys[hits - 1] : NULL,
                                   .out_blocks = fresh};
        ck_assert_int_eq(kit_register_args(m, &args), 0);
        /* The beginning is let go first, so that to recency it is the oldest. */
        if (hits > 0)
            kit_release(m, held, (uint64_t)hits);
        kit_release(m, fresh, (uint64_t)(4 - hits));
        ck_assert_int_eq(kit_query(m, keys, 4, tiers), 4);
    }
    kit_end(m);
}
END_TEST

KIT_MAIN("policies", a_scan_of_ten_capacities_leaves_a_reused_working_set_alone, s3fifo_agrees_with_a_naive_model,
         s3fifo_keeps_a_key_that_comes_back_while_it_is_remembered,
         prefix_evicts_children_before_parents_and_low_levels_first_whatever_happens,
         prefix_takes_a_chain_from_its_end_whatever_order_it_was_released_in,
         prefix_lets_a_low_parent_outlive_its_high_child,
         prefix_gives_up_the_parent_of_a_leased_child_only_when_nothing_else_is_left,
         every_policy_works_with_one_to_four_slots, every_policy_refuses_bad_counts_and_survives_a_refused_map,
         memory_is_bounded_for_each_slot_and_mapped_lazily, remembered_keys_are_those_of_the_last_window,
         misuse_is_a_programming_error, each_group_of_a_manager_has_the_policy_that_it_names,
         prefix_keeps_shared_beginnings_while_any_continuation_is_resident)
