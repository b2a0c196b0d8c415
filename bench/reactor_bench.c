/*
 * reactor_bench.c - the actor machine alone, with no domain behind it.
 *
 *   c_reactor_message        messages a second from one application thread through its lane to an actor on a reactor's
 *                            own thread, from an array that is used in turn
 *   c_reactor_message_pool   the same with each message taken from a pool here and given back there
 *   c_reactor_message_local  post and turn on one thread: what a message costs without a second processor, ns
 *   c_reactor_call           kvbm_reactor_call_mt on a parked reactor: borrow, handle, return, ns
 *   c_histogram_record       one latency recorded, ns
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "bench/bench.h"
#include "runtime/histogram.h"
#include "runtime/pool.h"
#include "runtime/reactor.h"
#include "runtime/reactor_uv.h"

#define POOL  4096
#define LANE  1024
#define LOCAL 256

struct kvbm_msg_count {
    struct kvbm_msg head;
    uint64_t value;
};
#define MESSAGES(X) X(COUNT, count)
KVBM_MSG_DEFINE_ENUM(MESSAGES);
static KVBM_MSG_DEFINE_INFO(kinds, MESSAGES);

struct counter {
    struct kvbm_actor actor;
    struct kvbm_pool pool;
    uint64_t sum;
    _Atomic uint64_t handled;
    struct kvbm_msg_count *ring; /* POOL messages, used in turn; NULL: they come from the pool */
    uint64_t sent;
};

static void on_count(struct kvbm_actor *self, struct kvbm_msg *msg) {
    struct counter *counter = (struct counter *)self;
    counter->sum += ((struct kvbm_msg_count *)msg)->value;
    if (counter->ring == NULL)
        kvbm_pool_give_mt(&counter->pool, msg);
    /* One writer: no locked instruction needed. */
    uint64_t handled = atomic_load_explicit(&counter->handled, memory_order_relaxed);
    atomic_store_explicit(&counter->handled, handled + 1, memory_order_release);
}

static const kvbm_handler_fn on_request[KVBM_MSG_KIND_COUNT] = {[KVBM_MSG_COUNT] = on_count};
static const kvbm_handler_fn on_reply[KVBM_MSG_KIND_COUNT];

struct machine {
    struct kvbm_reactor reactor;
    struct kvbm_reactor_uv uv;
    struct counter counter;
    uint64_t full_count; /* posts that found the lane full */
};

static void no_wake(void *ctx) {
    (void)ctx;
}

static void machine_open(struct machine *machine, bool own_thread, bool borrowable, bool pooled) {
    struct kvbm_reactor_options options = {
        .name = "bench",
        .os = kvbm_os_real(),
        .mailbox = {.control_capacity = 64, .data_capacity = LANE, .thread_capacity = LANE, .lane_batch = 64},
        .deadline_capacity = POOL,
        .turn_budget = LOCAL,
        .borrowable = borrowable,
        .wake = own_thread ? kvbm_reactor_uv_wake : no_wake,
        .wake_ctx = own_thread ? &machine->uv : NULL,
        .kinds = kinds,
        .kind_count = KVBM_MSG_KIND_COUNT,
    };
    bench_must("kvbm_reactor_open", kvbm_reactor_open(&machine->reactor, &options));
    bench_must("kvbm_pool_open",
               kvbm_pool_open(&machine->counter.pool, options.os, POOL, sizeof(struct kvbm_msg_count)));
    machine->counter.actor = (struct kvbm_actor){
        .name = "counter", .on_request = on_request, .on_reply = on_reply, .kind_count = KVBM_MSG_KIND_COUNT};
    if (!pooled)
        machine->counter.ring = bench_alloc(POOL, sizeof(struct kvbm_msg_count));
    kvbm_reactor_actor_add(&machine->reactor, &machine->counter.actor);
    if (own_thread)
        bench_must("kvbm_reactor_uv_start", kvbm_reactor_uv_start(&machine->uv, &machine->reactor, NULL));
}

static void machine_close(struct machine *machine, bool own_thread) {
    if (own_thread)
        kvbm_reactor_uv_stop(&machine->uv, NULL, NULL);
    while (kvbm_reactor_has_work(&machine->reactor))
        kvbm_reactor_turn(&machine->reactor, LOCAL);
    kvbm_reactor_close(&machine->reactor);
    kvbm_pool_close(&machine->counter.pool);
    free(machine->counter.ring);
}

/* NULL while every message is on its way. */
static struct kvbm_msg *message(struct machine *machine) {
    struct counter *counter = &machine->counter;
    struct kvbm_msg_count *msg;
    uint64_t id = 0;
    if (counter->ring == NULL)
        msg = kvbm_pool_take_mt(&counter->pool, &id);
    else if (counter->sent - atomic_load_explicit(&counter->handled, memory_order_acquire) < POOL)
        msg = &counter->ring[counter->sent++ % POOL];
    else
        msg = NULL;
    if (msg == NULL)
        return NULL;
    msg->head = (struct kvbm_msg){.kind = KVBM_MSG_COUNT,
                                  .op = id,
                                  .to = &counter->actor,
                                  .pool = &counter->pool,
                                  .deadline_slot = KVBM_DEADLINE_NONE};
    msg->value = 1;
    return &msg->head;
}

static uint64_t across(void *arg, uint64_t iterations) {
    struct machine *machine = arg;
    uint64_t before = atomic_load(&machine->counter.handled), start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++) {
        struct kvbm_msg *msg;
        while ((msg = message(machine)) == NULL)
            sched_yield();
        while (kvbm_reactor_post_mt(&machine->reactor, msg) != 0) {
            machine->full_count++;
            sched_yield();
        }
    }
    while (atomic_load_explicit(&machine->counter.handled, memory_order_acquire) - before < iterations)
        sched_yield();
    return bench_now_ns() - start;
}

static uint64_t local(void *arg, uint64_t iterations) {
    struct machine *machine = arg;
    uint64_t start = bench_now_ns();
    for (uint64_t done = 0; done < iterations; done += LOCAL) {
        for (int i = 0; i < LOCAL; i++)
            bench_must("kvbm_reactor_post_mt", kvbm_reactor_post_mt(&machine->reactor, message(machine)));
        kvbm_reactor_turn(&machine->reactor, LOCAL);
    }
    return bench_now_ns() - start;
}

static uint64_t call(void *arg, uint64_t iterations) {
    struct machine *machine = arg;
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++)
        bench_must("kvbm_reactor_call_mt", kvbm_reactor_call_mt(&machine->reactor, message(machine)));
    return bench_now_ns() - start;
}

/* ---- reference: the queue that everybody writes first */

struct mutex_queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    uint64_t slots[LANE];
    uint64_t head, tail, sum;
    _Atomic uint64_t handled;
    bool stop;
};

static void *mutex_consumer(void *arg) {
    struct mutex_queue *queue = arg;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        while (queue->head == queue->tail && !queue->stop)
            pthread_cond_wait(&queue->filled, &queue->lock);
        if (queue->head == queue->tail)
            break;
        uint64_t value = queue->slots[queue->head++ % LANE];
        pthread_mutex_unlock(&queue->lock);
        queue->sum += value;
        atomic_fetch_add_explicit(&queue->handled, 1, memory_order_release);
        pthread_mutex_lock(&queue->lock);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

static uint64_t mutex_across(void *arg, uint64_t iterations) {
    struct mutex_queue *queue = arg;
    uint64_t before = atomic_load(&queue->handled), start = bench_now_ns();
    for (uint64_t i = 0; i < iterations;) {
        pthread_mutex_lock(&queue->lock);
        bool room = queue->tail - queue->head < LANE;
        if (room) {
            queue->slots[queue->tail++ % LANE] = 1;
            pthread_cond_signal(&queue->filled);
            i++;
        }
        pthread_mutex_unlock(&queue->lock);
        if (!room)
            sched_yield();
    }
    while (atomic_load_explicit(&queue->handled, memory_order_acquire) - before < iterations)
        sched_yield();
    return bench_now_ns() - start;
}

/* ---- histogram */

static uint64_t record(void *arg, uint64_t iterations) {
    struct kvbm_histogram *histogram = arg;
    uint64_t value = 1, start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++) {
        value = value * UINT64_C(6364136223846793005) + 1;
        kvbm_histogram_record_mt(histogram, value >> 44);
    }
    return bench_now_ns() - start;
}

static uint64_t add(void *arg, uint64_t iterations) {
    _Atomic uint64_t *word = arg;
    uint64_t start = bench_now_ns();
    for (uint64_t i = 0; i < iterations; i++)
        atomic_fetch_add_explicit(word, 1, memory_order_relaxed);
    return bench_now_ns() - start;
}

/* ns a message -> messages a second */
static struct bench_summary rate(struct bench_summary ns) {
    return (struct bench_summary){.median = 1e9 / ns.median,
                                  .p10 = 1e9 / ns.p90,
                                  .p90 = 1e9 / ns.p10,
                                  .batches = ns.batches,
                                  .per_batch = ns.per_batch};
}

int main(void) {
    static struct machine threaded, pooled, driven, lent;
    static struct mutex_queue queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER};
    static struct kvbm_histogram histogram;
    static _Atomic uint64_t word;
    pthread_t consumer;
    machine_open(&threaded, true, false, false);
    machine_open(&pooled, true, false, true);
    machine_open(&driven, false, false, false);
    machine_open(&lent, true, true, false);
    bench_must("pthread_create", -pthread_create(&consumer, NULL, mutex_consumer, &queue));
    struct bench_subject runs[] = {
        {.fn = across, .arg = &threaded, .iterations = 20000},
        {.fn = mutex_across, .arg = &queue, .iterations = 20000},
        {.fn = local, .arg = &driven, .iterations = 8L * LOCAL},
        {.fn = call, .arg = &lent, .iterations = 2000},
        {.fn = record, .arg = &histogram, .iterations = 10000},
        {.fn = add, .arg = &word, .iterations = 10000},
        {.fn = across, .arg = &pooled, .iterations = 20000},
    };
    bench_run(runs, sizeof runs / sizeof *runs, 200);
    struct bench_summary messages = rate(runs[0].result), mutex_messages = rate(runs[1].result);
    bench_report(&(struct bench_result){.name = "c_reactor_message",
                                        .unit = "messages/s",
                                        .value = messages,
                                        .reference_name = "a queue behind a mutex and a condition variable",
                                        .reference_value = mutex_messages.median},
                 "\"lane\": %d, \"posts_refused\": %llu, \"wakes\": %llu", LANE,
                 (unsigned long long)threaded.full_count,
                 (unsigned long long)atomic_load(&threaded.reactor.wake_count));
    bench_report(&(struct bench_result){.name = "c_reactor_message_pool",
                                        .unit = "messages/s",
                                        .value = rate(runs[6].result),
                                        .reference_name = "c_reactor_message",
                                        .reference_value = messages.median},
                 "\"messages\": %d", POOL);
    bench_report(&(struct bench_result){.name = "c_reactor_message_local", .unit = "ns", .value = runs[2].result},
                 "\"turn_budget\": %d", LOCAL);
    bench_report(&(struct bench_result){.name = "c_reactor_call",
                                        .unit = "ns",
                                        .value = runs[3].result,
                                        .reference_name = "c_reactor_message_local",
                                        .reference_value = runs[2].result.median},
                 "\"borrowed\": %llu", (unsigned long long)atomic_load(&lent.reactor.borrow_count));
    bench_report(&(struct bench_result){.name = "c_histogram_record",
                                        .unit = "ns",
                                        .value = runs[4].result,
                                        .reference_name = "one relaxed atomic add",
                                        .reference_value = runs[5].result.median},
                 "\"buckets\": %d", KVBM_HISTOGRAM_BUCKET_COUNT);
    pthread_mutex_lock(&queue.lock);
    queue.stop = true;
    pthread_cond_signal(&queue.filled);
    pthread_mutex_unlock(&queue.lock);
    pthread_join(consumer, NULL);
    machine_close(&threaded, true);
    machine_close(&pooled, true);
    machine_close(&driven, false);
    machine_close(&lent, true);
    return 0;
}
