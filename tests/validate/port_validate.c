/*
 * port_validate.c - counts every message that producers push through one port to a consumer that sleeps in poll().
 *
 * Each producer owns a fixed set of messages and pushes them in order, in bursts of random length; the consumer checks
 * that the sequence of each producer has no gap, repetition or swap, and hands the message back by a counter. After a
 * burst a producer waits for its messages, and every millisecond all of them pause until the consumer sleeps. The
 * eventfd may be written once for each time it was armed: once at open, and once after each read of it.
 */
#include <errno.h>
#include <poll.h>

#include "runtime/port.h"
#include "tests/validate/validate.h"

enum { MESSAGES_EACH = 128, KIND_WORK = 1 };

static struct options options = {.messages = 100000000, .producers = 8, .seed = 1};
static struct kvbm_os counting_os;
static uint64_t clear_count; /* consumer only */
static struct kvbm_port *port;
static struct lull lull;

static bool consumer_asleep(void) {
    return atomic_load(&port->head) == NULL && atomic_load(&port->armed) == 1;
}

struct producer {
    struct kvbm_thread thread;
    uint32_t index;
    uint64_t seed;
    uint64_t total;
    uint64_t full_count;
    _Alignas(64) _Atomic uint32_t returned; /* messages handed back, modulo 2^32; futex word */
    _Atomic uint32_t asleep;
    _Atomic uint32_t wanted; /* while asleep: the count worth waking for */
    struct kvbm_msg messages[MESSAGES_EACH];
};

static void count_clear(void *ctx, int fd) {
    (void)ctx;
    clear_count++;
    kvbm_os_real()->event_clear(NULL, fd);
}

/* Waits until `returned` has reached `wanted`. */
static void wait_returned(struct producer *p, uint32_t wanted) {
    uint64_t until = now_ns() + STALL_NS;
    atomic_store(&p->wanted, wanted);
    /* Sequentially consistent, as in hand_back: the consumer sees asleep, or this sees its count. */
    atomic_store(&p->asleep, 1);
    for (uint32_t seen = atomic_load(&p->returned); (int32_t)(seen - wanted) < 0; seen = atomic_load(&p->returned)) {
        int rc = kvbm_os_real()->wait_u32(NULL, &p->returned, seen, until);
        CHECK(rc != -ETIMEDOUT, "producer %u waited %llu s for its messages", p->index, STALL_NS / NS_PER_SECOND);
    }
    atomic_store(&p->asleep, 0);
}

static void produce(void *arg) {
    struct producer *p = arg;
    uint64_t sent = 0;
    while (sent < p->total) {
        uint64_t burst = 1 + (random_next(&p->seed) >> 33) % MESSAGES_EACH;
        while (burst != 0 && sent < p->total) {
            uint32_t returned = atomic_load(&p->returned);
            if ((uint32_t)sent - returned == MESSAGES_EACH || kvbm_port_credit_take_mt(port) != 0) {
                p->full_count++;
                if ((uint32_t)sent == returned) /* others hold every credit */
                    kvbm_os_real()->wait_u32(NULL, &p->returned, returned, now_ns() + 20000);
                else
                    wait_returned(p, returned + 1 + ((uint32_t)sent - returned) / 2);
                continue;
            }
            struct kvbm_msg *msg = &p->messages[sent % MESSAGES_EACH];
            *msg = (struct kvbm_msg){.kind = KIND_WORK, .user = p->index, .op = sent};
            sent++;
            burst--;
            CHECK(kvbm_port_push_mt(port, msg), "an open port refused a push");
        }
        wait_returned(p, (uint32_t)sent);
        lull_rest(&lull);
    }
    lull_leave(&lull);
}

static void hand_back(struct producer *p) {
    uint32_t returned = atomic_fetch_add(&p->returned, 1) + 1;
    if (atomic_load(&p->asleep) != 0 && (int32_t)(returned - atomic_load(&p->wanted)) >= 0)
        kvbm_os_real()->wake_u32(NULL, &p->returned, true);
}

/* Takes everything; returns how often it slept. */
static uint64_t consume(struct producer **producers) {
    static uint64_t expected[PRODUCER_COUNT_MAX];
    uint64_t sleeps = 0;
    for (uint64_t taken = 0; taken < options.messages;) {
        struct kvbm_msg *msg = kvbm_port_take(port);
        if (msg == NULL) {
            struct pollfd poll_fd = {.fd = port->fd, .events = POLLIN};
            int ready = poll(&poll_fd, 1, (int)(STALL_NS / 1000000));
            CHECK(ready == 1, "the consumer slept for %llu s: a lost wake-up", STALL_NS / NS_PER_SECOND);
            sleeps++;
            continue;
        }
        CHECK(msg->op == expected[msg->user], "producer %u: message %llu came, %llu was due", msg->user,
              (unsigned long long)msg->op, (unsigned long long)expected[msg->user]);
        expected[msg->user]++;
        taken++;
        hand_back(producers[msg->user]);
    }
    return sleeps;
}

int main(int argc, char **argv) {
    options_parse(argc, argv, &options);
    const struct kvbm_os *os = kvbm_os_real();
    counting_os = *os;
    counting_os.event_clear = count_clear;
    struct producer *producers[PRODUCER_COUNT_MAX];
    /* Half of all messages: credits run out too. */
    uint32_t capacity = (uint32_t)options.producers * MESSAGES_EACH / 2;
    uint64_t full = 0;
    uint64_t begin = now_ns();
    CHECK(kvbm__port_open(&counting_os, capacity, &port) == 0, "kvbm__port_open");
    for (uint32_t i = 0; i < options.producers; i++) {
        producers[i] = zeroed(sizeof *producers[i]);
        producers[i]->index = i;
        producers[i]->seed = options.seed * 0x9E3779B97F4A7C15ull + i + 1;
        producers[i]->total = options.messages / options.producers + (i < options.messages % options.producers);
    }
    for (uint32_t i = 0; i < options.producers; i++)
        CHECK(os->thread_start(NULL, &producers[i]->thread, produce, producers[i], "producer") == 0, "thread_start");
    lull_start(&lull, (uint32_t)options.producers, consumer_asleep);
    uint64_t sleeps = consume(producers);
    for (uint32_t i = 0; i < options.producers; i++) {
        os->thread_join(NULL, &producers[i]->thread);
        full += producers[i]->full_count;
    }
    lull_join(&lull);
    CHECK(kvbm_port_take(port) == NULL, "a message too many");
    CHECK(kvbm_port_credits_out_mt(port) == 0, "%u credits are out at the end", kvbm_port_credits_out_mt(port));
    CHECK(sleeps > 0, "the consumer never slept");
    uint64_t signals = port->signal_count;
    CHECK(signals <= clear_count + 1, "%llu eventfd writes for %llu sleeps", (unsigned long long)signals,
          (unsigned long long)clear_count + 1);
    CHECK(kvbm__port_close(port) == NULL, "a message too many");
    printf("port_validate: ok messages=%llu producers=%llu full=%llu sleeps=%llu forced_sleeps=%llu "
           "eventfd_writes=%llu seconds=%.1f\n",
           (unsigned long long)options.messages, (unsigned long long)options.producers, (unsigned long long)full,
           (unsigned long long)sleeps, (unsigned long long)lull.count, (unsigned long long)signals,
           (double)(now_ns() - begin) / 1e9);
    for (uint32_t i = 0; i < options.producers; i++)
        free(producers[i]);
    return 0;
}
