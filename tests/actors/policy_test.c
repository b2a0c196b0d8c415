/*
 * policy_test.c - the registry of policies, and lru against a naive model that searches for each victim.
 */
#include "actors/policy.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/dies.h"
#include "tests/support/random.h"
#include "tests/support/refusing_os.h"

static struct kvbm_policy *open_lru(struct refusing_os *os, uint32_t slot_count) {
    struct kvbm_policy *policy = NULL;
    refusing_os_init(os);
    ck_assert_int_eq(kvbm_policy_find("lru")->open(&os->os, slot_count, &policy), 0);
    ck_assert_ptr_nonnull(policy);
    ck_assert_ptr_eq(policy->ops, kvbm_policy_find("lru"));
    ck_assert_uint_eq(policy->ops->bytes(policy), os->open_bytes);
    return policy;
}

static void close_lru(struct kvbm_policy *policy, struct refusing_os *os) {
    policy->ops->close(policy);
    ck_assert_uint_eq(os->open_maps, 0);
}

static void insert(struct kvbm_policy *policy, uint32_t slot, uint8_t priority, uint64_t expires_ns, uint64_t now_ns) {
    struct kvbm_policy_meta meta = {.priority = priority, .expires_ns = expires_ns};
    policy->ops->insert(policy, slot, &meta, now_ns);
}

/* ------------------------------------------------------------------------------------------------------- the model */

#define SLOTS 300

struct held {
    bool held, timed, expired;
    uint8_t level;
    uint64_t expires_ns;
    uint64_t order; /* of insertion; of running out once `expired` */
    uint64_t inserted;
};

struct model {
    struct held slots[SLOTS];
    uint64_t order;
    uint32_t count;
};

static void model_insert(struct model *m, uint32_t slot, uint8_t priority, uint64_t expires_ns, uint64_t now_ns) {
    bool timed = priority > 0 && expires_ns != 0;
    bool over = timed && now_ns >= expires_ns;
    m->order++;
    m->slots[slot] = (struct held){.held = true,
                                   .timed = timed && !over,
                                   .level = over ? 0 : priority,
                                   .expires_ns = expires_ns,
                                   .order = m->order,
                                   .inserted = m->order};
    m->count++;
}

/* The timed slot that runs out next, by time and then by insertion; KVBM_SLOT_NONE if none has by now_ns. */
static uint32_t model_next_expired(const struct model *m, uint64_t now_ns) {
    uint32_t next = KVBM_SLOT_NONE;
    for (uint32_t s = 0; s < SLOTS; s++) {
        const struct held *h = &m->slots[s];
        if (!h->held || !h->timed || h->expires_ns > now_ns)
            continue;
        if (next == KVBM_SLOT_NONE || h->expires_ns < m->slots[next].expires_ns ||
            (h->expires_ns == m->slots[next].expires_ns && h->inserted < m->slots[next].inserted))
            next = s;
    }
    return next;
}

static uint32_t model_victim(struct model *m, uint64_t now_ns) {
    for (uint32_t s; (s = model_next_expired(m, now_ns)) != KVBM_SLOT_NONE;) {
        m->slots[s].timed = false;
        m->slots[s].expired = true;
        m->slots[s].level = 0;
        m->slots[s].order = ++m->order;
    }
    uint32_t victim = KVBM_SLOT_NONE;
    for (uint32_t s = 0; s < SLOTS; s++) {
        const struct held *h = &m->slots[s], *v = victim != KVBM_SLOT_NONE ? &m->slots[victim] : NULL;
        if (!h->held)
            continue;
        if (v == NULL || h->expired > v->expired ||
            (h->expired == v->expired && (h->level < v->level || (h->level == v->level && h->order < v->order))))
            victim = s;
    }
    if (victim != KVBM_SLOT_NONE) {
        m->slots[victim].held = false;
        m->count--;
    }
    return victim;
}

static bool model_uses_clock(const struct model *m) {
    for (uint32_t s = 0; s < SLOTS; s++)
        if (m->slots[s].held && m->slots[s].timed)
            return true;
    return false;
}

/* timed_of_8: how many of 8 insertions have a priority that expires. */
static void model_run(uint64_t seed, uint32_t levels, uint32_t timed_of_8) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, SLOTS);
    struct model m = {.count = 0};
    uint64_t state = seed, now_ns = 1000;
    for (int step = 0; step < 20000; step++) {
        uint32_t slot = random_below(&state, SLOTS), choice = random_below(&state, 8);
        now_ns += random_below(&state, 3) == 0 ? random_below(&state, 40) : 0;
        bool grow = choice < (step / 2000 % 2 ? 3 : 6);
        if (grow && !m.slots[slot].held) {
            uint8_t priority = (uint8_t)random_below(&state, levels);
            /* Few distinct times, so that many run out together; some have run out already. */
            uint64_t expires_ns =
                random_below(&state, 8) < timed_of_8 ? (now_ns + random_below(&state, 2000)) / 100 * 100 : 0;
            insert(policy, slot, priority, expires_ns, now_ns);
            model_insert(&m, slot, priority, expires_ns, now_ns);
        } else if (choice < 4) {
            ck_assert_int_eq(policy->ops->remove(policy, slot), m.slots[slot].held);
            m.count -= m.slots[slot].held;
            m.slots[slot].held = false;
        } else if (choice == 7) {
            ck_assert_uint_eq(policy->ops->victim(policy, now_ns), model_victim(&m, now_ns));
        }
        ck_assert_uint_eq(policy->ops->count(policy), m.count);
        if (step % 64 == 0)
            ck_assert_int_eq(policy->ops->uses_clock(policy), model_uses_clock(&m));
    }
    for (uint32_t expected; (expected = model_victim(&m, now_ns)) != KVBM_SLOT_NONE;)
        ck_assert_uint_eq(policy->ops->victim(policy, now_ns), expected);
    ck_assert_uint_eq(policy->ops->victim(policy, now_ns), KVBM_SLOT_NONE);
    close_lru(policy, &os);
}

START_TEST(random_use_agrees_with_a_naive_model) {
    for (uint64_t seed = 1; seed <= 4; seed++) {
        model_run(seed, 1, 0);
        model_run(seed, 8, 0);
        model_run(seed, 8, 2);
        model_run(seed, 8, 8);
        model_run(seed, 2, 8);
    }
}
END_TEST

/* ---------------------------------------------------------------------------------------------------- single facts */

START_TEST(the_least_recently_inserted_goes_first) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 8);
    static const uint32_t order[8] = {3, 1, 7, 0, 2, 6, 5, 4};
    for (int i = 0; i < 8; i++)
        insert(policy, order[i], 0, 0, 0);
    /* 7 is leased and released again: now the most recent. */
    ck_assert(policy->ops->remove(policy, 7));
    ck_assert(!policy->ops->remove(policy, 7));
    insert(policy, 7, 0, 0, 0);
    static const uint32_t victims[8] = {3, 1, 0, 2, 6, 5, 4, 7};
    for (int i = 0; i < 8; i++)
        ck_assert_uint_eq(policy->ops->victim(policy, 0), victims[i]);
    ck_assert_uint_eq(policy->ops->victim(policy, 0), KVBM_SLOT_NONE);
    ck_assert_uint_eq(policy->ops->victim(policy, 0), KVBM_SLOT_NONE);
    close_lru(policy, &os);
}
END_TEST

START_TEST(every_lower_priority_goes_before_any_higher) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 16);
    for (uint32_t slot = 0; slot < 16; slot++)
        insert(policy, slot, (uint8_t)(7 - slot / 2), 0, 0);
    for (uint32_t i = 0; i < 16; i++)
        ck_assert_uint_eq(policy->ops->victim(policy, UINT64_MAX), 14 - i / 2 * 2 + i % 2);
    close_lru(policy, &os);
}
END_TEST

START_TEST(a_priority_that_ran_out_counts_as_zero_from_its_very_instant) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    insert(policy, 0, 0, 0, 10);
    insert(policy, 1, 7, 100, 10);
    insert(policy, 2, 1, 0, 10);
    ck_assert(policy->ops->uses_clock(policy));
    ck_assert_uint_eq(policy->ops->victim(policy, 99), 0);
    ck_assert_uint_eq(policy->ops->victim(policy, 100), 1);
    ck_assert(!policy->ops->uses_clock(policy));
    ck_assert_uint_eq(policy->ops->victim(policy, 101), 2);
    close_lru(policy, &os);
}
END_TEST

START_TEST(slots_that_ran_out_together_go_in_the_order_of_their_insertion) {
    /* A chain registered with one time to live and released last block first: children go before their parents. */
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 100);
    insert(policy, 99, 0, 0, 0);
    for (uint32_t slot = 50; slot-- > 0;)
        insert(policy, slot, 5, 1000, 1);
    for (uint32_t slot = 50; slot-- > 0;)
        ck_assert_uint_eq(policy->ops->victim(policy, 1000), slot);
    ck_assert_uint_eq(policy->ops->victim(policy, 1000), 99);
    close_lru(policy, &os);
}
END_TEST

START_TEST(a_priority_that_ran_out_before_insertion_makes_an_ordinary_recent_slot) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    insert(policy, 0, 0, 0, 500);
    insert(policy, 1, 7, 400, 500);
    ck_assert(!policy->ops->uses_clock(policy));
    ck_assert_uint_eq(policy->ops->victim(policy, 500), 0);
    ck_assert_uint_eq(policy->ops->victim(policy, 500), 1);
    close_lru(policy, &os);
}
END_TEST

START_TEST(priority_zero_has_nothing_to_lose_by_expiry) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    insert(policy, 0, 0, 0, 1);
    insert(policy, 1, 0, 2, 1);
    ck_assert(!policy->ops->uses_clock(policy));
    ck_assert_uint_eq(policy->ops->victim(policy, 10), 0);
    close_lru(policy, &os);
}
END_TEST

START_TEST(a_removed_slot_takes_its_timer_along) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    insert(policy, 1, 7, 100, 1);
    ck_assert(policy->ops->remove(policy, 1));
    ck_assert(!policy->ops->uses_clock(policy));
    insert(policy, 1, 7, 0, 1); /* for ever, this time */
    insert(policy, 2, 6, 0, 1);
    ck_assert_uint_eq(policy->ops->victim(policy, 1000), 2);
    close_lru(policy, &os);
}
END_TEST

START_TEST(hits_and_forgetting_leave_the_order_alone) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    insert(policy, 0, 0, 0, 0);
    insert(policy, 1, 0, 0, 0);
    policy->ops->hit(policy, 0);
    policy->ops->hit(policy, 3);
    policy->ops->forget(policy, 3);
    ck_assert_uint_eq(policy->ops->victim(policy, 0), 0);
    policy->ops->forget(policy, 0);
    ck_assert_uint_eq(policy->ops->count(policy), 1);
    close_lru(policy, &os);
}
END_TEST

START_TEST(a_policy_of_one_slot_and_of_the_most_slots) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 1);
    insert(policy, 0, 7, 5, 0);
    ck_assert_uint_eq(policy->ops->victim(policy, 0), 0);
    close_lru(policy, &os);
    /* Maps are touched lazily: two gigabytes, of which this touches some pages. */
    policy = open_lru(&os, KVBM_SLOT_COUNT_MAX);
    uint32_t last = KVBM_SLOT_COUNT_MAX - 1;
    insert(policy, last, 7, 0, 0);
    insert(policy, 0, 7, 5, 0);
    insert(policy, last - 1, 1, 0, 0);
    ck_assert_uint_eq(policy->ops->victim(policy, 5), 0);
    ck_assert_uint_eq(policy->ops->victim(policy, 5), last - 1);
    ck_assert_uint_eq(policy->ops->victim(policy, 5), last);
    close_lru(policy, &os);
}
END_TEST

START_TEST(bad_counts_and_a_refused_map_leave_nothing_open) {
    struct refusing_os os = {.map_refuse_at = 1};
    struct kvbm_policy *policy = NULL;
    refusing_os_init(&os);
    ck_assert_int_eq(kvbm_policy_lru.open(&os.os, 0, &policy), -EINVAL);
    ck_assert_int_eq(kvbm_policy_lru.open(&os.os, KVBM_SLOT_COUNT_MAX + 1, &policy), -EINVAL);
    ck_assert_uint_eq(os.map_count, 0);
    ck_assert_int_eq(kvbm_policy_lru.open(&os.os, 10, &policy), -ENOMEM);
    ck_assert_ptr_null(policy);
    ck_assert_uint_eq(os.open_maps, 0);
}
END_TEST

START_TEST(policies_are_found_by_their_names_only) {
    static const char *const unknown[] = {"", "LRU", "lr", "lru ", "lru,", "fifo"};
    ck_assert_ptr_eq(kvbm_policy_find("lru"), &kvbm_policy_lru);
    ck_assert_str_eq(kvbm_policy_lru.name, "lru");
    ck_assert_ptr_null(kvbm_policy_find(NULL));
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        ck_assert_ptr_null(kvbm_policy_find(unknown[i]));
    /* Each name of the list is found. */
    char names[256];
    (void)strncpy(names, kvbm_policy_names(), sizeof(names) - 1);
    names[sizeof(names) - 1] = '\0';
    int count = 0;
    for (char *rest = NULL, *name = strtok_r(names, ", ", &rest); name != NULL; name = strtok_r(NULL, ", ", &rest)) {
        ck_assert_ptr_nonnull(kvbm_policy_find(name));
        count++;
    }
    ck_assert_int_ge(count, 1);
}
END_TEST

static void insert_twice(void *policy) {
    insert(policy, 1, 0, 0, 0);
    insert(policy, 1, 0, 0, 0);
}

static void insert_beyond(void *policy) {
    insert(policy, 4, 0, 0, 0);
}

static void insert_priority_8(void *policy) {
    insert(policy, 1, 8, 0, 0);
}

static void forget_held(void *policy) {
    insert(policy, 1, 0, 0, 0);
    ((struct kvbm_policy *)policy)->ops->forget(policy, 1);
}

START_TEST(misuse_is_a_programming_error) {
    struct refusing_os os = {0};
    struct kvbm_policy *policy = open_lru(&os, 4);
    ck_assert(dies(insert_twice, policy));
    ck_assert(dies(insert_beyond, policy));
    ck_assert(dies(insert_priority_8, policy));
    ck_assert(dies(forget_held, policy));
    close_lru(policy, &os);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("policy");
    TCase *tc = tcase_create("policy");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 240);
    tcase_add_test(tc, random_use_agrees_with_a_naive_model);
    tcase_add_test(tc, the_least_recently_inserted_goes_first);
    tcase_add_test(tc, every_lower_priority_goes_before_any_higher);
    tcase_add_test(tc, a_priority_that_ran_out_counts_as_zero_from_its_very_instant);
    tcase_add_test(tc, slots_that_ran_out_together_go_in_the_order_of_their_insertion);
    tcase_add_test(tc, a_priority_that_ran_out_before_insertion_makes_an_ordinary_recent_slot);
    tcase_add_test(tc, priority_zero_has_nothing_to_lose_by_expiry);
    tcase_add_test(tc, a_removed_slot_takes_its_timer_along);
    tcase_add_test(tc, hits_and_forgetting_leave_the_order_alone);
    tcase_add_test(tc, a_policy_of_one_slot_and_of_the_most_slots);
    tcase_add_test(tc, bad_counts_and_a_refused_map_leave_nothing_open);
    tcase_add_test(tc, policies_are_found_by_their_names_only);
    tcase_add_test(tc, misuse_is_a_programming_error);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
