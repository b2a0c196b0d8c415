/*
 * borrow_validate.c - threads hammer one borrowable reactor for some seconds, by every way in; checks inside the
 * actors.
 *
 * Each thread submits batches of operations to the core reactor, which its own libuv thread and all callers borrow from
 * each other, and waits for every answer. Operations:
 *     ECHO    front -> back -> front, all on the core
 *     FAR     front -> an actor on another libuv thread -> front: replies that wake a parked core
 *     DELAY   kept until a deadline that is some microseconds away
 *     TOKEN   kept until an id comes through the return lane, which the submitter pushes afterwards
 * Checked: one owner at every instant and no reentrancy (a flag exchanged around every handler, and plain counters for
 * ThreadSanitizer), each operation answered exactly once, nobody waits for ever.
 */
#include <errno.h>

#include "runtime/reactor_uv.h"
#include "tests/validate/validate.h"

enum { KIND_ECHO = 1, KIND_FAR, KIND_DELAY, KIND_TOKEN, KIND_CREDIT, KIND_COUNT, BATCH_MAX = 16 };
enum { OP_FREE, OP_SUBMITTED, OP_ANSWERED };

static struct options options = {.seconds = 60, .producers = 8, .seed = 1};

struct op {
    struct kvbm_msg head;
    _Atomic uint32_t state;
    _Atomic uint32_t *answered_count; /* of its thread; futex word */
};

static struct kvbm_reactor *core, *far;
static struct kvbm_reactor_uv *core_uv, *far_uv;
static struct kvbm_actor front, back, distant;
static struct kvbm_retlane lane;
static _Atomic uint32_t lane_queued[PRODUCER_COUNT_MAX];
static _Atomic uint32_t inside; /* 1 while a handler of the core runs */
/* Plain: the core's owner only. */
static uint64_t handled, tokens, token_waiters, deadline_count, far_full_count;
static struct kvbm_msg *token_head, **token_tail = &token_head;
static struct kvbm_msg *far_head; /* waits for credit */
static struct kvbm_msg far_credit;
static bool far_credit_out;

static void enter(void) {
    CHECK(atomic_exchange(&inside, 1) == 0, "two owners at once, or a handler inside a handler");
    CHECK(kvbm_reactor_current_mt() == core, "a handler outside its reactor");
    handled++;
}

static void leave(void) {
    CHECK(atomic_exchange(&inside, 0) == 1, "somebody else left this handler");
}

static void answer(struct kvbm_msg *msg) {
    struct op *op = (struct op *)msg;
    _Atomic uint32_t *count = op->answered_count;
    uint32_t before = atomic_exchange(&op->state, OP_ANSWERED);
    CHECK(before == OP_SUBMITTED, "operation answered in state %u", before);
    /* From here on the operation is its submitter's. */
    atomic_fetch_add(count, 1);
    kvbm_os_real()->wake_u32(NULL, count, true);
}

static void send_far(struct kvbm_msg *msg) {
    msg->reply_to = &front;
    if (!far_credit_out && kvbm_actor_send(&front, &distant, msg) == 0)
        return;
    far_full_count++;
    msg->next = far_head;
    far_head = msg;
    if (far_credit_out)
        return;
    far_credit_out = true;
    far_credit = (struct kvbm_msg){.kind = KIND_CREDIT, .reply_to = &front};
    kvbm_actor_want_credit(&front, &distant, &far_credit);
}

static void front_request(struct kvbm_actor *self, struct kvbm_msg *msg) {
    enter();
    msg->reply_to = self;
    switch (msg->kind) {
    case KIND_ECHO:
        CHECK(kvbm_actor_send(self, &back, msg) == 0, "a local send failed");
        break;
    case KIND_FAR:
        send_far(msg);
        break;
    case KIND_DELAY:
        kvbm_reactor_arm(core, msg);
        break;
    default:
        if (tokens > 0) {
            tokens--;
            answer(msg);
            break;
        }
        msg->next = NULL;
        *token_tail = msg;
        token_tail = &msg->next;
        token_waiters++;
        kvbm_reactor_want_returns(core, 1);
        break;
    }
    leave();
}

static void back_request(struct kvbm_actor *self, struct kvbm_msg *msg) {
    enter();
    kvbm_actor_reply(self, msg, 0);
    leave();
}

static void front_reply(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    enter();
    answer(msg);
    leave();
}

static void front_credit(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    enter();
    CHECK(msg == &far_credit && far_credit_out, "a credit that nobody waits for");
    struct kvbm_msg *waiting = far_head;
    far_credit_out = false;
    far_head = NULL;
    while (waiting != NULL) {
        struct kvbm_msg *next = waiting->next;
        send_far(waiting);
        waiting = next;
    }
    leave();
}

static void front_deadline(struct kvbm_actor *self, struct kvbm_msg *msg) {
    (void)self;
    enter();
    deadline_count++;
    CHECK(msg->deadline_ns <= now_ns(), "a deadline ran out early");
    answer(msg);
    leave();
}

static void distant_request(struct kvbm_actor *self, struct kvbm_msg *msg) {
    kvbm_actor_reply(self, msg, 0);
}

static void on_token(void *arg, uint32_t id) {
    (void)arg;
    enter();
    atomic_store_explicit(&lane_queued[id], 0, memory_order_release); /* may be pushed again; pairs with push_token */
    struct kvbm_msg *msg = token_head;
    if (msg == NULL) {
        tokens++;
    } else {
        token_head = msg->next;
        if (token_head == NULL)
            token_tail = &token_head;
        token_waiters--;
        kvbm_reactor_want_returns(core, -1);
        answer(msg);
    }
    leave();
}

static const kvbm_handler_fn front_requests[KIND_COUNT] = {[KIND_ECHO] = front_request,
                                                           [KIND_FAR] = front_request,
                                                           [KIND_DELAY] = front_request,
                                                           [KIND_TOKEN] = front_request};
static const kvbm_handler_fn front_replies[KIND_COUNT] = {
    [KIND_ECHO] = front_reply, [KIND_FAR] = front_reply, [KIND_CREDIT] = front_credit};
static const kvbm_handler_fn back_requests[KIND_COUNT] = {[KIND_ECHO] = back_request};
static const kvbm_handler_fn distant_requests[KIND_COUNT] = {[KIND_FAR] = distant_request};

/* ---- hammering threads */

struct hammer {
    struct kvbm_thread thread;
    uint32_t index;
    uint64_t seed;
    uint64_t submitted, called, posted, settled, full;
    _Alignas(64) _Atomic uint32_t answered;
    struct op ops[BATCH_MAX];
};

static _Atomic uint32_t stop;

static void push_token(struct hammer *h) {
    uint64_t until = now_ns() + STALL_NS;
    /* The id is still in the lane: nobody need be awake to drain it, so do so. Acquire: pairs with on_token. */
    while (atomic_load_explicit(&lane_queued[h->index], memory_order_acquire) != 0) {
        if (!kvbm_reactor_settle_mt(core))
            kvbm_os_real()->wait_u32(NULL, &lane_queued[h->index], 1, now_ns() + 5000);
        CHECK(now_ns() < until, "an id stayed in the return lane for %llu s", STALL_NS / NS_PER_SECOND);
    }
    atomic_store_explicit(&lane_queued[h->index], 1, memory_order_relaxed);
    if (h->seed & 64)
        kvbm_retlane_push_mt(&lane, h->index);
    else
        kvbm_retlane_push_many_mt(&lane, &h->index, 1);
    kvbm_reactor_returned_mt(core);
}

static void submit(struct hammer *h, struct op *op) {
    static const uint16_t choice[8] = {KIND_ECHO, KIND_ECHO, KIND_ECHO,  KIND_ECHO,
                                       KIND_FAR,  KIND_FAR,  KIND_DELAY, KIND_TOKEN};
    uint64_t random = random_next(&h->seed) >> 20;
    op->head = (struct kvbm_msg){.kind = choice[random % 8], .to = &front, .user = h->index};
    op->answered_count = &h->answered;
    if (op->head.kind == KIND_DELAY)
        op->head.deadline_ns = now_ns() + (random >> 8) % 300000;
    uint32_t before = atomic_exchange(&op->state, OP_SUBMITTED);
    CHECK(before != OP_SUBMITTED, "an operation is used twice");
    bool call = (random >> 3 & 3) != 0;
    bool token = op->head.kind == KIND_TOKEN;
    int rc = 0;
    while ((rc = call ? kvbm_reactor_call_mt(core, &op->head) : kvbm_reactor_post_mt(core, &op->head)) == -EAGAIN) {
        h->full++;
        if (!kvbm_reactor_settle_mt(core)) /* the owner is at it */
            lull_nap(20000);
    }
    CHECK(rc == 0, "submit: %d", rc);
    h->submitted++;
    h->called += call;
    h->posted += !call;
    if (token)
        push_token(h);
}

static void run_hammer(void *arg) {
    struct hammer *h = arg;
    while (atomic_load_explicit(&stop, memory_order_relaxed) == 0) {
        uint32_t batch = 1 + (uint32_t)(random_next(&h->seed) >> 40) % BATCH_MAX;
        uint32_t due = atomic_load(&h->answered) + batch;
        for (uint32_t i = 0; i < batch; i++)
            submit(h, &h->ops[i]);
        if ((random_next(&h->seed) >> 40) % 4 == 0)
            h->settled += kvbm_reactor_settle_mt(core);
        uint64_t until = now_ns() + STALL_NS;
        for (uint32_t seen = atomic_load(&h->answered); seen != due; seen = atomic_load(&h->answered)) {
            int rc = kvbm_os_real()->wait_u32(NULL, &h->answered, seen, until);
            CHECK(rc != -ETIMEDOUT, "thread %u: %u answers are missing after %llu s", h->index, due - seen,
                  STALL_NS / NS_PER_SECOND);
        }
        for (uint32_t i = 0; i < batch; i++)
            CHECK(atomic_load(&h->ops[i].state) == OP_ANSWERED, "an answer counted for another operation");
    }
}

static void open_reactor(struct kvbm_reactor **r, struct kvbm_reactor_uv **drv, const char *name, bool borrowable) {
    *r = zeroed(sizeof **r);
    *drv = zeroed(sizeof **drv);
    const struct kvbm_reactor_options reactor_options = {
        .name = name,
        .os = kvbm_os_real(),
        .mailbox = {.control_capacity = 8, .data_capacity = 8, .thread_capacity = 8, .lane_batch = 4},
        .deadline_capacity = PRODUCER_COUNT_MAX * BATCH_MAX,
        .turn_budget = 16, /* small: budgets end, lanes fill, reactors change hands */
        .borrowable = borrowable,
        .wake = kvbm_reactor_uv_wake,
        .wake_ctx = *drv,
    };
    CHECK(kvbm_reactor_open(*r, &reactor_options) == 0, "kvbm_reactor_open");
}

static void open_all(void) {
    open_reactor(&core, &core_uv, "core", true);
    open_reactor(&far, &far_uv, "far", false);
    front = (struct kvbm_actor){.name = "front",
                                .on_request = front_requests,
                                .on_reply = front_replies,
                                .kind_count = KIND_COUNT,
                                .on_deadline = front_deadline};
    back = (struct kvbm_actor){.name = "back", .on_request = back_requests, .kind_count = KIND_COUNT};
    distant = (struct kvbm_actor){.name = "distant", .on_request = distant_requests, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(core, &front);
    kvbm_reactor_actor_add(core, &back);
    kvbm_reactor_actor_add(far, &distant);
    CHECK(kvbm_retlane_open(&lane, kvbm_os_real(), PRODUCER_COUNT_MAX) == 0, "kvbm_retlane_open");
    kvbm_reactor_retlane_add(core, &lane, on_token, NULL);
    CHECK(kvbm_reactor_uv_start(far_uv, far, NULL) == 0, "kvbm_reactor_uv_start");
    CHECK(kvbm_reactor_uv_start(core_uv, core, NULL) == 0, "kvbm_reactor_uv_start");
}

/* After the threads: everything is answered, so nothing may be left anywhere. */
static void close_all(void) {
    kvbm_reactor_uv_stop(core_uv, NULL, NULL);
    kvbm_reactor_uv_stop(far_uv, NULL, NULL);
    while (kvbm_reactor_has_work(core)) /* ids in the return lane that nobody waited for */
        kvbm_reactor_turn(core, 16);
    CHECK(token_waiters == 0 && token_head == NULL && far_head == NULL && tokens == 0, "somebody still waits");
    CHECK(core->returns_wanted == 0 && core->deadlines.count == 0, "something is still armed");
    kvbm_reactor_close(core);
    kvbm_reactor_close(far);
    kvbm_retlane_close(&lane);
}

int main(int argc, char **argv) {
    options_parse(argc, argv, &options);
    const struct kvbm_os *os = kvbm_os_real();
    struct hammer *hammers[PRODUCER_COUNT_MAX];
    struct hammer sum = {0};
    uint64_t begin = now_ns();
    open_all();
    for (uint32_t i = 0; i < options.producers; i++) {
        hammers[i] = zeroed(sizeof *hammers[i]);
        hammers[i]->index = i;
        hammers[i]->seed = options.seed * 0x9E3779B97F4A7C15ull + i + 1;
        CHECK(os->thread_start(NULL, &hammers[i]->thread, run_hammer, hammers[i], "hammer") == 0, "thread_start");
    }
    os->wait_u32(NULL, &stop, 0, begin + options.seconds * NS_PER_SECOND);
    while (now_ns() < begin + options.seconds * NS_PER_SECOND)
        os->wait_u32(NULL, &stop, 0, begin + options.seconds * NS_PER_SECOND);
    atomic_store(&stop, 1);
    for (uint32_t i = 0; i < options.producers; i++) {
        os->thread_join(NULL, &hammers[i]->thread);
        sum.submitted += hammers[i]->submitted;
        sum.called += hammers[i]->called;
        sum.posted += hammers[i]->posted;
        sum.settled += hammers[i]->settled;
        sum.full += hammers[i]->full;
        free(hammers[i]);
    }
    close_all();
    printf("borrow_validate: ok operations=%llu calls=%llu posts=%llu settles=%llu borrows=%llu lost_borrows=%llu "
           "wakes=%llu deadlines=%llu full=%llu far_full=%llu handlers=%llu threads=%llu seconds=%.1f\n",
           (unsigned long long)sum.submitted, (unsigned long long)sum.called, (unsigned long long)sum.posted,
           (unsigned long long)sum.settled, (unsigned long long)core->borrow_count,
           (unsigned long long)core->borrow_lost_count, (unsigned long long)core->wake_count,
           (unsigned long long)deadline_count, (unsigned long long)sum.full, (unsigned long long)far_full_count,
           (unsigned long long)handled, (unsigned long long)options.producers, (double)(now_ns() - begin) / 1e9);
    free(core);
    free(far);
    free(core_uv);
    free(far_uv);
    return 0;
}
