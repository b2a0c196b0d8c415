/*
 * deadline_test.c - facts about the deadline heap, and the heap against a naive model.
 */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "runtime/deadline.h"
#include "tests/runtime/support.h"

static struct support_os fake;
static struct kvbm_deadlines heap;

static void open_heap(uint32_t capacity) {
    support_os_init(&fake);
    ck_assert_int_eq(kvbm_deadlines_open(&heap, &fake.table, capacity), 0);
}

START_TEST(zeroed_message_is_not_armed) {
    open_heap(4);
    struct kvbm_msg msg = {0};
    ck_assert_uint_eq(msg.deadline_slot, KVBM_DEADLINE_NONE);
    kvbm_deadlines_disarm(&heap, &msg);
    ck_assert_uint_eq(kvbm_deadlines_next_ns(&heap), KVBM_NO_DEADLINE);
    ck_assert_ptr_null(kvbm_deadlines_expire(&heap, UINT64_MAX));
    kvbm_deadlines_close(&heap);
    ck_assert_int_eq(fake.maps, 0);
}
END_TEST

START_TEST(messages_expire_in_deadline_order_and_not_before) {
    open_heap(8);
    struct kvbm_msg msgs[5];
    const uint64_t when[] = {50, 10, 40, 20, 30};
    for (int i = 0; i < 5; i++) {
        msgs[i] = (struct kvbm_msg){.deadline_ns = when[i]};
        kvbm_deadlines_arm(&heap, &msgs[i]);
    }
    ck_assert_uint_eq(kvbm_deadlines_next_ns(&heap), 10);
    ck_assert_ptr_null(kvbm_deadlines_expire(&heap, 9));
    ck_assert_ptr_eq(kvbm_deadlines_expire(&heap, 10), &msgs[1]);
    ck_assert_uint_eq(msgs[1].deadline_slot, KVBM_DEADLINE_NONE);
    ck_assert_ptr_eq(kvbm_deadlines_expire(&heap, 45), &msgs[3]);
    ck_assert_ptr_eq(kvbm_deadlines_expire(&heap, 45), &msgs[4]);
    ck_assert_ptr_eq(kvbm_deadlines_expire(&heap, 45), &msgs[2]);
    ck_assert_ptr_null(kvbm_deadlines_expire(&heap, 45));
    kvbm_deadlines_disarm(&heap, &msgs[0]);
    kvbm_deadlines_disarm(&heap, &msgs[0]);
    kvbm_deadlines_close(&heap);
}
END_TEST

enum { MODEL_COUNT = 200, MODEL_STEPS = 200000 };

START_TEST(heap_agrees_with_a_naive_model_under_random_operations) {
    open_heap(MODEL_COUNT);
    static struct kvbm_msg msgs[MODEL_COUNT];
    static bool armed[MODEL_COUNT];
    memset(msgs, 0, sizeof msgs);
    memset(armed, 0, sizeof armed);
    uint64_t seed = 7;
    uint32_t count = 0;
    for (int step = 0; step < MODEL_STEPS; step++) {
        uint32_t i = (uint32_t)(support_random(&seed) % MODEL_COUNT);
        uint64_t earliest = KVBM_NO_DEADLINE;
        switch (support_random(&seed) % 4) {
        case 0:
        case 1: /* arm, or disarm what is armed */
            if (!armed[i]) {
                msgs[i].deadline_ns = 1 + support_random(&seed) % 64; /* many equal ones */
                kvbm_deadlines_arm(&heap, &msgs[i]);
                count++;
            } else {
                kvbm_deadlines_disarm(&heap, &msgs[i]);
                count--;
            }
            armed[i] = !armed[i];
            break;
        case 2: /* disarm, mostly a no-op */
            kvbm_deadlines_disarm(&heap, &msgs[i]);
            count -= armed[i];
            armed[i] = false;
            break;
        default: {
            uint64_t now = support_random(&seed) % 64;
            struct kvbm_msg *msg = kvbm_deadlines_expire(&heap, now);
            for (uint32_t j = 0; j < MODEL_COUNT; j++) {
                if (armed[j] && msgs[j].deadline_ns < earliest)
                    earliest = msgs[j].deadline_ns;
            }
            ck_assert((msg != NULL) == (earliest <= now));
            if (msg != NULL) {
                ck_assert_uint_eq(msg->deadline_ns, earliest);
                ck_assert(armed[msg - msgs]);
                armed[msg - msgs] = false;
                count--;
            }
            break;
        }
        }
        ck_assert_uint_eq(heap.count, count);
        if (step % 64 == 0) {
            for (uint32_t slot = 1; slot <= heap.count; slot++)
                ck_assert_uint_eq(heap.heap[slot]->deadline_slot, slot);
        }
    }
    for (uint32_t i = 0; i < MODEL_COUNT; i++)
        kvbm_deadlines_disarm(&heap, &msgs[i]);
    kvbm_deadlines_close(&heap);
}
END_TEST

static void arm_twice(void *arg) {
    kvbm_deadlines_arm(&heap, arg);
    kvbm_deadlines_arm(&heap, arg);
}

static void arm_none(void *arg) {
    ((struct kvbm_msg *)arg)->deadline_ns = 0;
    kvbm_deadlines_arm(&heap, arg);
}

static void arm_too_many(void *arg) {
    struct kvbm_msg second = {.deadline_ns = 1};
    kvbm_deadlines_arm(&heap, arg);
    kvbm_deadlines_arm(&heap, &second);
}

START_TEST(misuse_is_refused_or_aborts) {
    char text[512];
    support_os_init(&fake);
    ck_assert_int_eq(kvbm_deadlines_open(&heap, &fake.table, UINT32_MAX), -EINVAL);
    fake.map_fail_after = 0;
    ck_assert_int_eq(kvbm_deadlines_open(&heap, &fake.table, 4), -ENOMEM);
    open_heap(1);
    struct kvbm_msg msg = {.deadline_ns = 5};
    ck_assert(support_aborts(arm_twice, &msg, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "already armed"));
    ck_assert(support_aborts(arm_none, &msg, text, sizeof text));
    ck_assert(support_aborts(arm_too_many, &msg, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "deadline_capacity=1"));
    kvbm_deadlines_close(&heap);
}
END_TEST

START_TEST(capacity_zero_is_a_heap_that_arms_nothing) {
    open_heap(0);
    ck_assert_uint_eq(kvbm_deadlines_next_ns(&heap), KVBM_NO_DEADLINE);
    kvbm_deadlines_close(&heap);
}
END_TEST

SUPPORT_MAIN("deadline", zeroed_message_is_not_armed, messages_expire_in_deadline_order_and_not_before,
             heap_agrees_with_a_naive_model_under_random_operations, misuse_is_refused_or_aborts,
             capacity_zero_is_a_heap_that_arms_nothing)
