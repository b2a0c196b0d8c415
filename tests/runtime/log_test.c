/*
 * log_test.c - facts about logging and panics.
 */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "runtime/log.h"
#include "tests/runtime/support.h"

static struct support_os fake;
static struct kvbm_logger logger;
static struct {
    int count;
    int level;
    char component[32];
    char text[2048];
} last;

static void remember(void *user, int level, const char *component, const char *text) {
    ck_assert_ptr_eq(user, &last);
    last.count++;
    last.level = level;
    snprintf(last.component, sizeof last.component, "%s", component);
    snprintf(last.text, sizeof last.text, "%s", text);
}

static void setup(int level, uint32_t burst) {
    support_os_init(&fake);
    memset(&last, 0, sizeof last);
    kvbm_logger_init(&logger, &fake.table, remember, &last, level, burst);
}

START_TEST(record_carries_level_component_and_formatted_text) {
    setup(KVBM_LOG_DEBUG, 0);
    KVBM_LOG(&logger, WARNING, "slab", "huge pages refused error=%s size=%d", "EPERM", 42);
    ck_assert_int_eq(last.count, 1);
    ck_assert_int_eq(last.level, KVBM_LOG_WARNING);
    ck_assert_str_eq(last.component, "slab");
    ck_assert_str_eq(last.text, "huge pages refused error=EPERM size=42");
}
END_TEST

START_TEST(records_below_the_level_and_of_no_logger_cost_nothing) {
    setup(KVBM_LOG_WARNING, 0);
    KVBM_LOG(&logger, INFO, "x", "not seen");
    KVBM_LOG(NULL, ERROR, "x", "not seen");
    ck_assert_int_eq(last.count, 0);
    KVBM_LOG(&logger, ERROR, "x", "seen");
    ck_assert_int_eq(last.count, 1);
    atomic_store(&logger.level, KVBM_LOG_OFF);
    KVBM_LOG(&logger, ERROR, "x", "not seen");
    ck_assert_int_eq(last.count, 1);
}
END_TEST

static void say(int i) {
    KVBM_LOG(&logger, INFO, "loop", "i=%d", i);
}

START_TEST(a_site_is_limited_to_burst_a_second_and_says_what_it_held_back) {
    setup(KVBM_LOG_DEBUG, 3);
    for (int i = 0; i < 10; i++)
        say(i);
    ck_assert_int_eq(last.count, 3);
    ck_assert_str_eq(last.text, "i=2");
    fake.now_ns += 1000000000;
    say(10);
    ck_assert_int_eq(last.count, 4);
    ck_assert_str_eq(last.text, "i=10 suppressed=7");
    say(11);
    ck_assert_str_eq(last.text, "i=11");
}
END_TEST

START_TEST(a_noisy_site_does_not_silence_another) {
    setup(KVBM_LOG_DEBUG, 1);
    for (int i = 0; i < 10; i++)
        say(i);
    /* Sites share one of 256 limits by hash: of two others at least one has its own. */
    int before = last.count;
    KVBM_LOG(&logger, INFO, "other", "a");
    KVBM_LOG(&logger, INFO, "other", "b");
    ck_assert_int_gt(last.count, before);
}
END_TEST

START_TEST(burst_zero_is_no_limit) {
    setup(KVBM_LOG_DEBUG, 0);
    for (int i = 0; i < 1000; i++)
        say(i);
    ck_assert_int_eq(last.count, 1000);
    ck_assert_uint_eq(fake.clock_reads, 0);
}
END_TEST

START_TEST(text_that_is_too_long_is_cut) {
    setup(KVBM_LOG_DEBUG, 0);
    char longer[4000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    KVBM_LOG(&logger, INFO, "x", "%s", longer);
    ck_assert_uint_eq(strlen(last.text), 1023);
}
END_TEST

static void log_to_stderr(void *arg) {
    (void)arg;
    kvbm_logger_init(&logger, kvbm_os_real(), NULL, NULL, KVBM_LOG_DEBUG, 0);
    KVBM_LOG(&logger, WARNING, "slab", "pages=%d", 3);
    KVBM_LOG(&logger, ERROR, "disk", "gone");
    KVBM_LOG(&logger, INFO, "a", "b");
    KVBM_LOG(&logger, DEBUG, "c", "d");
}

START_TEST(without_a_callback_records_go_to_standard_error_as_one_line) {
    char text[512];
    ck_assert(!support_aborts(log_to_stderr, NULL, text, sizeof text));
    ck_assert_str_eq(text, "kvbm level=warning component=slab pages=3\nkvbm level=error component=disk gone\n"
                           "kvbm level=info component=a b\nkvbm level=debug component=c d\n");
}
END_TEST

static void violate(void *arg) {
    int *zero = arg;
    KVBM_ASSERT_MSG(*zero == 1, "zero is %d", *zero);
}

static void violate_plainly(void *arg) {
    KVBM_ASSERT(arg != NULL);
}

START_TEST(panic_names_place_condition_and_detail_and_aborts) {
    char text[512];
    int zero = 0;
    ck_assert(support_aborts(violate, &zero, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "log_test.c:"));
    ck_assert_ptr_nonnull(strstr(text, "*zero == 1: zero is 0\n"));
    ck_assert(support_aborts(violate_plainly, NULL, text, sizeof text));
    ck_assert_ptr_nonnull(strstr(text, "arg != NULL: violate_plainly"));
}
END_TEST

static void say_often(void *arg) {
    (void)arg;
    for (int i = 0; i < 1000; i++)
        say(i);
}

static _Atomic int counted;

static void count_record(void *user, int level, const char *component, const char *text) {
    (void)user;
    (void)level;
    (void)component;
    (void)text;
    atomic_fetch_add(&counted, 1);
}

START_TEST(several_threads_share_one_limit) {
    setup(KVBM_LOG_DEBUG, 100);
    logger.fn = count_record;
    const struct kvbm_os *os = kvbm_os_real();
    struct kvbm_thread threads[4];
    for (int t = 0; t < 4; t++)
        ck_assert_int_eq(os->thread_start(os->ctx, &threads[t], say_often, NULL, "say"), 0);
    for (int t = 0; t < 4; t++)
        os->thread_join(os->ctx, &threads[t]);
    /* The clock stands still: one second. Its first moment may pass a record a thread more. */
    ck_assert_int_ge(counted, 90);
    ck_assert_int_le(counted, 104);
}
END_TEST

SUPPORT_MAIN("log", record_carries_level_component_and_formatted_text,
             records_below_the_level_and_of_no_logger_cost_nothing,
             a_site_is_limited_to_burst_a_second_and_says_what_it_held_back, a_noisy_site_does_not_silence_another,
             burst_zero_is_no_limit, text_that_is_too_long_is_cut,
             without_a_callback_records_go_to_standard_error_as_one_line,
             panic_names_place_condition_and_detail_and_aborts, several_threads_share_one_limit)
