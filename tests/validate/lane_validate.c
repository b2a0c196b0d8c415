/*
 * lane_validate.c - counts every message that producers send through one reactor's lanes.
 *
 * Each producer has a reactor of its own, driven by its thread, and a fixed set of messages which it sends in bursts of
 * random length, each burst through the shared data lane (as an actor of another reactor) or through its thread lane
 * (as an application thread). The receiver checks that the sequence of each (producer, lane) has no gap, no repetition
 * and no swap, and replies; the reply stack brings the message home. After a burst the producer waits until all its
 * messages are back, so the receiver, on a libuv thread, runs dry and parks all the time, and so do the producers.
 */
#include <errno.h>

#include "runtime/reactor_uv.h"
#include "tests/validate/validate.h"

enum { KIND_WORK = 1, KIND_CREDIT, KIND_COUNT, MESSAGES_EACH = 256 };
enum { LANE_DATA, LANE_THREAD, LANE_COUNT };

static struct options options = {.messages = 100000000, .producers = 8, .seed = 1};

/* ---- receiver */

static struct kvbm_reactor *receiver_reactor;
static struct kvbm_reactor_uv *receiver_uv;
static struct kvbm_actor receiver;
static uint64_t expected[PRODUCER_COUNT_MAX][LANE_COUNT]; /* plain: only the reactor's owner touches it */
static uint64_t received;
static struct lull lull;

static bool receiver_asleep(void) {
    return atomic_load(&receiver_reactor->state) == KVBM_REACTOR_PARKED;
}

static void on_work(struct kvbm_actor *self, struct kvbm_msg *msg) {
    uint32_t producer = msg->user >> 1;
    uint32_t lane = msg->user & 1;
    CHECK(msg->op == expected[producer][lane], "producer %u lane %u: message %llu came, %llu was due", producer, lane,
          (unsigned long long)msg->op, (unsigned long long)expected[producer][lane]);
    expected[producer][lane]++;
    received++;
    kvbm_actor_reply(self, msg, 0);
}

static const kvbm_handler_fn receiver_requests[KIND_COUNT] = {[KIND_WORK] = on_work};

static void receiver_open(void) {
    receiver_reactor = zeroed(sizeof *receiver_reactor);
    receiver_uv = zeroed(sizeof *receiver_uv);
    const struct kvbm_reactor_options reactor_options = {
        .name = "receiver",
        .os = kvbm_os_real(),
        .mailbox = {.control_capacity = 16, .data_capacity = 512, .thread_capacity = 128, .lane_batch = 16},
        .turn_budget = 256,
        .wake = kvbm_reactor_uv_wake,
        .wake_ctx = receiver_uv,
    };
    receiver = (struct kvbm_actor){.name = "receiver", .on_request = receiver_requests, .kind_count = KIND_COUNT};
    CHECK(kvbm_reactor_open(receiver_reactor, &reactor_options) == 0, "kvbm_reactor_open");
    kvbm_reactor_actor_add(receiver_reactor, &receiver);
    CHECK(kvbm_reactor_uv_start(receiver_uv, receiver_reactor, NULL) == 0, "kvbm_reactor_uv_start");
}

/* ---- producers */

struct producer {
    struct kvbm_actor actor; /* first: handlers find the producer by it */
    struct kvbm_thread thread;
    struct kvbm_reactor *reactor;
    _Atomic uint32_t word;
    uint32_t index;
    uint64_t seed;
    uint64_t left;
    uint64_t sent[LANE_COUNT];
    uint64_t full_count;
    struct kvbm_msg *free;
    uint32_t out;
    uint32_t credit_out;
    struct kvbm_msg credit;
    struct kvbm_msg messages[MESSAGES_EACH];
};

static void on_home(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct producer *p = (struct producer *)self;
    CHECK(p->out > 0 && msg >= p->messages && msg < p->messages + MESSAGES_EACH, "a reply that nobody waits for");
    msg->next = p->free;
    p->free = msg;
    p->out--;
}

static void on_credit(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct producer *p = (struct producer *)self;
    CHECK(msg == &p->credit && p->credit_out == 1, "a credit that nobody waits for");
    p->credit_out = 0;
}

static const kvbm_handler_fn producer_replies[KIND_COUNT] = {[KIND_WORK] = on_home, [KIND_CREDIT] = on_credit};

/* Sends the next message of `lane`. False: the lane is full, and the message still ours. */
static bool send_one(struct producer *p, uint32_t lane) {
    struct kvbm_msg *msg = p->free;
    struct kvbm_msg *rest = msg->next;
    msg->kind = KIND_WORK;
    msg->user = p->index << 1 | lane;
    msg->op = p->sent[lane];
    msg->to = &receiver;
    msg->reply_to = &p->actor;
    int rc =
        lane == LANE_DATA ? kvbm_actor_send(&p->actor, &receiver, msg) : kvbm_reactor_post_mt(receiver_reactor, msg);
    if (rc != 0) {
        CHECK(rc == -EAGAIN, "post: %d", rc);
        CHECK(msg->op == p->sent[lane] && msg->next == rest, "a refused message was changed");
        p->full_count++;
        return false;
    }
    p->free = rest; /* `msg` is no longer ours */
    p->sent[lane]++;
    p->out++;
    p->left--;
    return true;
}

static void send_burst(struct producer *p) {
    uint32_t lane = (uint32_t)(random_next(&p->seed) >> 40 & 1);
    uint64_t burst = 1 + (random_next(&p->seed) >> 33) % MESSAGES_EACH;
    while (burst != 0 && p->left != 0) {
        if (p->free != NULL && p->credit_out == 0 && send_one(p, lane)) {
            burst--;
            continue;
        }
        if (p->free != NULL && p->credit_out == 0 && lane == LANE_DATA) {
            p->credit = (struct kvbm_msg){.kind = KIND_CREDIT, .reply_to = &p->actor};
            p->credit_out = 1;
            kvbm_actor_want_credit(&p->actor, &receiver, &p->credit);
        }
        reactor_step(p->reactor, &p->word); /* until a message or a credit comes home */
    }
}

static void produce(void *arg) {
    struct producer *p = arg;
    while (p->left != 0) {
        send_burst(p);
        while (p->out != 0 || p->credit_out != 0)
            reactor_step(p->reactor, &p->word);
        lull_rest(&lull);
    }
    lull_leave(&lull);
}

static struct producer *producer_open(uint32_t index) {
    struct producer *p = zeroed(sizeof *p);
    p->index = index;
    p->seed = options.seed * 0x9E3779B97F4A7C15ull + index + 1;
    p->left = options.messages / options.producers + (index < options.messages % options.producers);
    p->reactor = zeroed(sizeof *p->reactor);
    const struct kvbm_reactor_options reactor_options = {
        .name = "producer",
        .os = kvbm_os_real(),
        .mailbox = {.control_capacity = 4, .data_capacity = 4, .thread_capacity = 4, .lane_batch = 4},
        .turn_budget = MESSAGES_EACH,
        .wake = word_wake,
        .wake_ctx = &p->word,
    };
    CHECK(kvbm_reactor_open(p->reactor, &reactor_options) == 0, "kvbm_reactor_open");
    p->actor = (struct kvbm_actor){.name = "producer", .on_reply = producer_replies, .kind_count = KIND_COUNT};
    kvbm_reactor_actor_add(p->reactor, &p->actor);
    for (uint32_t i = 0; i < MESSAGES_EACH; i++) {
        p->messages[i].next = p->free;
        p->free = &p->messages[i];
    }
    return p;
}

int main(int argc, char **argv) {
    options_parse(argc, argv, &options);
    const struct kvbm_os *os = kvbm_os_real();
    struct producer *producers[PRODUCER_COUNT_MAX];
    uint64_t sent[LANE_COUNT] = {0};
    uint64_t full = 0;
    uint64_t sleeps = 0;
    uint64_t begin = now_ns();
    receiver_open();
    for (uint32_t i = 0; i < options.producers; i++)
        producers[i] = producer_open(i);
    lull_start(&lull, (uint32_t)options.producers, receiver_asleep);
    for (uint32_t i = 0; i < options.producers; i++)
        CHECK(os->thread_start(NULL, &producers[i]->thread, produce, producers[i], "producer") == 0, "thread_start");
    for (uint32_t i = 0; i < options.producers; i++)
        os->thread_join(NULL, &producers[i]->thread);
    lull_join(&lull);
    kvbm_reactor_uv_stop(receiver_uv, NULL, NULL);
    for (uint32_t i = 0; i < options.producers; i++) {
        struct producer *p = producers[i];
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
            CHECK(p->sent[lane] == expected[i][lane], "producer %u lane %u: %llu sent, %llu came", i, lane,
                  (unsigned long long)p->sent[lane], (unsigned long long)expected[i][lane]);
            sent[lane] += p->sent[lane];
        }
        full += p->full_count;
        sleeps += p->reactor->wake_count;
        kvbm_reactor_close(p->reactor);
        free(p->reactor);
        free(p);
    }
    CHECK(received == options.messages, "%llu of %llu came", (unsigned long long)received,
          (unsigned long long)options.messages);
    CHECK(receiver_reactor->wake_count > 0, "the receiver never parked");
    printf("lane_validate: ok messages=%llu data=%llu thread=%llu producers=%llu full=%llu receiver_wakes=%llu "
           "producer_wakes=%llu forced_parks=%llu seconds=%.1f\n",
           (unsigned long long)received, (unsigned long long)sent[LANE_DATA], (unsigned long long)sent[LANE_THREAD],
           (unsigned long long)options.producers, (unsigned long long)full,
           (unsigned long long)receiver_reactor->wake_count, (unsigned long long)sleeps, (unsigned long long)lull.count,
           (double)(now_ns() - begin) / 1e9);
    kvbm_reactor_close(receiver_reactor);
    free(receiver_reactor);
    free(receiver_uv);
    return 0;
}
