/*
 * sim_runtime.c - the simulation of the runtime alone: several virtual reactors, actors that ask each other along an
 * acyclic graph, application threads that post, call (and so borrow), cancel and return ids.
 *
 * The model is a ledger: every message taken from the pool is owned by exactly one place at every instant, is answered
 * once, and of the messages that one sender puts into one lane each is handled after those before it.
 */
#include <errno.h>
#include <string.h>

#include "runtime/pool.h"
#include "runtime/reactor.h"
#include "tests/sim/sim.h"

#define REACTORS_MAX   4
#define ACTORS_MAX     7
#define MESSAGES_MAX   48
#define SENDERS        (ACTORS_MAX + 2) /* and the two application threads */
#define QUIET_ROUNDS   50000
#define STATUS_TIMEOUT (-ETIMEDOUT)

enum { KIND_WORK = 1, KIND_CREDIT = 2, KIND_COUNT = 3 };

enum place { PLACE_POOL, PLACE_QUEUE, PLACE_HANDLER, PLACE_CREDIT, PLACE_CHILD, PLACE_DEADLINE, PLACE_RETURNS };

struct work {
    struct kvbm_msg head;
    struct work *parent; /* the message on whose behalf an actor asks */
    struct work *next_held;
    uint64_t sequence;
    uint32_t sender, index;
    uint8_t place;
    uint8_t holder; /* actor, where an actor keeps it */
    uint8_t hops;
    bool answered;
    bool lane; /* went through a lane, so that its order is known */
};

struct test_actor {
    struct kvbm_actor actor; /* first */
    struct runtime *runtime;
    uint32_t number, reactor;
    struct kvbm_msg credit[ACTORS_MAX]; /* to each actor after it */
    bool credit_out[ACTORS_MAX];
    uint32_t waiting[ACTORS_MAX]; /* messages that wait for that credit */
    uint32_t returns_waiting;
    bool wants_returns;
};

struct virtual_reactor {
    struct kvbm_reactor r;
    struct kvbm_retlane lane; /* message numbers: asked to end */
    struct runtime *runtime;
    uint32_t number;
    bool open, parked, wake_asked;
    uint64_t wake_not_before, timer_ns;
};

struct runtime {
    struct sim sim;
    struct virtual_reactor reactors[REACTORS_MAX];
    struct test_actor actors[ACTORS_MAX];
    uint32_t reactor_count, actor_count;
    struct kvbm_pool pool;
    bool pool_open;
    uint32_t message_count;
    struct work *objects[MESSAGES_MAX];
    bool lane_queued[REACTORS_MAX][MESSAGES_MAX];
    uint64_t sent[SENDERS][REACTORS_MAX], seen[SENDERS][REACTORS_MAX];
    uint64_t in_flight;
    uint32_t depth; /* handlers that this thread is inside of */
    bool ending;
    /* Drawn for the run. */
    uint32_t post_permille, call_permille, drive_permille, clock_permille, park_permille, late_permille;
    uint32_t cancel_permille, at_once_permille, take_back_permille, other_permille, spurious_permille, nest_permille;
    uint32_t weights[6]; /* what a handler does */
    uint32_t weight_sum;
    uint32_t budget_max;
    uint64_t clock_ns_max;
};

static struct runtime world;

static void post_one(struct runtime *t);
static void act(struct runtime *t, struct test_actor *self, struct work *work);

/* ------------------------------------------------------------------------------------------------------ the ledger */

static struct work *work_of(struct kvbm_msg *msg) {
    return (struct work *)msg;
}

static void move(struct runtime *t, struct work *work, enum place from, enum place to) {
    SIM_CHECK(&t->sim, work->place == from, "message %u is in place %u, not %u: it has two owners", work->index,
              work->place, from);
    work->place = (uint8_t)to;
}

static struct work *work_take(struct runtime *t) {
    uint64_t id = 0;
    struct work *work = kvbm_pool_take_mt(&t->pool, &id);
    if (work == NULL) {
        SIM_CHECK(&t->sim, t->in_flight == t->message_count, "the pool is empty with %llu of %u taken",
                  (unsigned long long)t->in_flight, t->message_count);
        return NULL;
    }
    uint32_t index = (uint32_t)id;
    SIM_CHECK(&t->sim, index < t->message_count && kvbm_pool_find_mt(&t->pool, id) == work, "a pool's id");
    SIM_CHECK(&t->sim, t->objects[index] == NULL, "the pool gave one object twice");
    memset(work, 0, sizeof *work);
    work->head = (struct kvbm_msg){.kind = KIND_WORK, .op = id, .pool = &t->pool, .deadline_slot = KVBM_DEADLINE_NONE};
    work->index = index;
    work->place = PLACE_HANDLER;
    t->objects[index] = work;
    t->in_flight++;
    return work;
}

static void work_give(struct runtime *t, struct work *work) {
    uint64_t id = work->head.op;
    SIM_CHECK(&t->sim, work->head.deadline_slot == KVBM_DEADLINE_NONE, "message %u is still armed", work->index);
    move(t, work, PLACE_HANDLER, PLACE_POOL);
    t->objects[work->index] = NULL;
    t->in_flight--;
    kvbm_pool_give_mt(&t->pool, work);
    SIM_CHECK(&t->sim, kvbm_pool_find_mt(&t->pool, id) == NULL, "a stale id finds an object");
}

/* ---------------------------------------------------------------------------------------------------------- actors */

static void reply(struct runtime *t, struct test_actor *self, struct work *work, int32_t status) {
    SIM_CHECK(&t->sim, !work->answered, "message %u is answered twice", work->index);
    work->answered = true;
    move(t, work, PLACE_HANDLER, PLACE_QUEUE);
    sim_event(&t->sim, SIM_R_REPLIED, work->index, (uint64_t)(uint32_t)status);
    kvbm_actor_reply(&self->actor, &work->head, status);
}

/* Sends on, or keeps the message until the receiver's reactor has room. */
static void send(struct runtime *t, struct test_actor *self, struct work *work, uint32_t to) {
    struct test_actor *target = &t->actors[to];
    bool remote = target->reactor != self->reactor;
    move(t, work, PLACE_HANDLER, PLACE_QUEUE);
    work->sender = self->number;
    work->lane = remote;
    work->sequence = t->sent[self->number][target->reactor] + 1;
    uint64_t before = t->sent[self->number][target->reactor];
    t->sent[self->number][target->reactor]++; /* first: the receiver may run before send returns */
    int rc = kvbm_actor_send(&self->actor, &target->actor, &work->head);
    if (rc == 0)
        return;
    SIM_CHECK(&t->sim, rc == -EAGAIN && remote, "send: %d", rc);
    t->sent[self->number][target->reactor] = before;
    sim_event(&t->sim, SIM_R_SEND_FULL, self->number, to);
    move(t, work, PLACE_QUEUE, PLACE_CREDIT);
    work->holder = (uint8_t)self->number;
    work->head.user = to;
    self->waiting[to]++;
    if (!self->credit_out[to]) {
        self->credit_out[to] = true;
        sim_event(&t->sim, SIM_R_CREDIT_WANTED, self->number, to);
        self->credit[to] = (struct kvbm_msg){
            .kind = KIND_CREDIT, .reply_to = &self->actor, .user = to, .deadline_slot = KVBM_DEADLINE_NONE};
        kvbm_actor_want_credit(&self->actor, &target->actor, &self->credit[to]);
    }
}

static void hold_until(struct runtime *t, struct test_actor *self, struct work *work) {
    move(t, work, PLACE_HANDLER, PLACE_DEADLINE);
    work->holder = (uint8_t)self->number;
    work->head.to = &self->actor;
    work->head.deadline_ns = t->sim.now_ns + sim_between(&t->sim, 1, t->clock_ns_max * 3);
    sim_event(&t->sim, SIM_R_ARMED, work->index, 0);
    kvbm_reactor_arm(self->actor.reactor, &work->head);
}

static void returns_want(struct test_actor *self) {
    bool want = self->returns_waiting != 0;
    if (want != self->wants_returns)
        kvbm_reactor_want_returns(self->actor.reactor, want ? 1 : -1);
    self->wants_returns = want;
}

static void hold_for_return(struct runtime *t, struct test_actor *self, struct work *work) {
    move(t, work, PLACE_HANDLER, PLACE_RETURNS);
    work->holder = (uint8_t)self->number;
    self->returns_waiting++;
    returns_want(self);
}

static void ask_child(struct runtime *t, struct test_actor *self, struct work *work, uint32_t to) {
    struct work *child = work_take(t);
    if (child == NULL) {
        reply(t, self, work, -ENOMEM);
        return;
    }
    child->parent = work;
    child->hops = (uint8_t)(work->hops + 1);
    child->head.reply_to = &self->actor;
    move(t, work, PLACE_HANDLER, PLACE_CHILD);
    work->holder = (uint8_t)self->number;
    sim_event(&t->sim, SIM_R_CHILD, work->index, child->index);
    send(t, self, child, to);
}

static void act(struct runtime *t, struct test_actor *self, struct work *work) {
    uint64_t at = sim_below(&t->sim, t->weight_sum);
    int choice = 0;
    while (at >= t->weights[choice])
        at -= t->weights[choice++];
    bool last = self->number + 1 >= t->actor_count;
    uint32_t to = last ? 0 : (uint32_t)sim_between(&t->sim, self->number + 1, t->actor_count - 1);
    if ((choice == 1 || choice == 2) && last)
        choice = 0;
    if (t->ending && choice > 2)
        choice = 0;
    switch (choice) {
    case 1:
        sim_event(&t->sim, SIM_R_FORWARDED, work->index, to);
        send(t, self, work, to);
        break;
    case 2:
        ask_child(t, self, work, to);
        break;
    case 3:
        hold_until(t, self, work);
        break;
    case 4:
        hold_for_return(t, self, work);
        break;
    default:
        reply(t, self, work, 0);
    }
}

static void other_post(void *arg) {
    struct runtime *t = arg;
    sim_event(&t->sim, SIM_R_OTHER_THREAD, 0, 0);
    post_one(t);
}

/* While a handler runs: the reactor's thread may wake up, another thread may post, and so may this one. */
static void meanwhile(struct runtime *t, struct test_actor *self) {
    struct sim *sim = &t->sim;
    struct virtual_reactor *v = &t->reactors[self->reactor];
    SIM_CHECK(sim, kvbm_reactor_current_mt() == &v->r, "a handler runs outside of its reactor's turn");
    if (v->parked && sim_chance(sim, t->take_back_permille)) {
        bool taken = kvbm_reactor_take(&v->r);
        sim_event(sim, SIM_R_TAKE_REFUSED, self->reactor, taken);
        SIM_CHECK(sim, !taken, "two owners of reactor %u", self->reactor);
        v->wake_asked = false;
    }
    if (t->depth == 1 && !t->ending && sim_chance(sim, t->nest_permille))
        post_one(t);
    if (t->depth == 1 && !t->ending && !sim->on_other && sim_chance(sim, t->other_permille))
        sim_other_run(sim, other_post, t);
}

static void on_work(struct kvbm_actor *actor, struct kvbm_msg *msg) {
    struct test_actor *self = (struct test_actor *)actor;
    struct runtime *t = self->runtime;
    struct work *work = work_of(msg);
    sim_event(&t->sim, SIM_R_HANDLED, work->index, self->number);
    move(t, work, PLACE_QUEUE, PLACE_HANDLER);
    if (work->lane) {
        SIM_CHECK(&t->sim, work->sequence > t->seen[work->sender][self->reactor],
                  "message %u of sender %u overtook another on its way to reactor %u", work->index, work->sender,
                  self->reactor);
        t->seen[work->sender][self->reactor] = work->sequence;
    }
    t->depth++;
    meanwhile(t, self);
    t->depth--;
    act(t, self, work);
}

static void on_work_reply(struct kvbm_actor *actor, struct kvbm_msg *msg) {
    struct test_actor *self = (struct test_actor *)actor;
    struct runtime *t = self->runtime;
    struct work *work = work_of(msg), *parent = work->parent;
    move(t, work, PLACE_QUEUE, PLACE_HANDLER);
    SIM_CHECK(&t->sim, work->answered, "a reply that nobody gave");
    int32_t status = msg->status;
    work_give(t, work);
    if (parent == NULL)
        return; /* it came home */
    move(t, parent, PLACE_CHILD, PLACE_HANDLER);
    reply(t, self, parent, status);
}

static void on_credit(struct kvbm_actor *actor, struct kvbm_msg *msg) {
    struct test_actor *self = (struct test_actor *)actor;
    struct runtime *t = self->runtime;
    uint32_t to = msg->user;
    SIM_CHECK(&t->sim, self->credit_out[to] && msg == &self->credit[to] && msg->status == 0, "a credit of nobody");
    sim_event(&t->sim, SIM_R_CREDIT_CAME, self->number, to);
    self->credit_out[to] = false;
    for (uint32_t i = 0; i < t->message_count && self->waiting[to] != 0; i++) {
        struct work *work = t->objects[i];
        if (work == NULL || work->place != PLACE_CREDIT || work->holder != self->number || work->head.user != to)
            continue;
        self->waiting[to]--;
        move(t, work, PLACE_CREDIT, PLACE_HANDLER);
        send(t, self, work, to);
        if (self->credit_out[to])
            return;
    }
}

static void on_deadline(struct kvbm_actor *actor, struct kvbm_msg *msg) {
    struct test_actor *self = (struct test_actor *)actor;
    struct runtime *t = self->runtime;
    struct work *work = work_of(msg);
    SIM_CHECK(&t->sim, work->holder == self->number && msg->deadline_ns <= t->sim.now_ns, "a deadline came too early");
    sim_event(&t->sim, SIM_R_EXPIRED, work->index, 0);
    move(t, work, PLACE_DEADLINE, PLACE_HANDLER);
    reply(t, self, work, STATUS_TIMEOUT);
}

/* A number came back through a return lane: the message ends, if an actor of this reactor keeps it. */
static void on_returned(void *arg, uint32_t index) {
    struct virtual_reactor *v = arg;
    struct runtime *t = v->runtime;
    SIM_CHECK(&t->sim, index < t->message_count && t->lane_queued[v->number][index], "number %u was not returned",
              index);
    t->lane_queued[v->number][index] = false;
    struct work *work = t->objects[index];
    if (work == NULL || (work->place != PLACE_DEADLINE && work->place != PLACE_RETURNS))
        return;
    struct test_actor *self = &t->actors[work->holder];
    if (self->reactor != v->number)
        return;
    sim_event(&t->sim, SIM_R_CANCELLED, index, work->place);
    if (work->place == PLACE_DEADLINE) {
        kvbm_reactor_disarm(&v->r, &work->head);
        sim_event(&t->sim, SIM_R_DISARMED, index, 0);
    } else {
        self->returns_waiting--;
        returns_want(self);
    }
    move(t, work, (enum place)work->place, PLACE_HANDLER);
    reply(t, self, work, -ECANCELED);
}

/* ---------------------------------------------------------------------------------------------- application threads */

static void post_one(struct runtime *t) {
    struct sim *sim = &t->sim;
    struct work *work = work_take(t);
    if (work == NULL)
        return;
    struct test_actor *to = &t->actors[sim_below(sim, t->actor_count)];
    struct virtual_reactor *v = &t->reactors[to->reactor];
    bool inside = kvbm_reactor_current_mt() == &v->r;
    uint32_t sender = ACTORS_MAX + sim->on_other, index = work->index;
    work->head.to = &to->actor;
    work->head.reply_to = &t->actors[sim_below(sim, t->actor_count)].actor;
    move(t, work, PLACE_HANDLER, PLACE_QUEUE);
    work->sender = sender;
    work->lane = !inside;
    work->sequence = ++t->sent[sender][to->reactor];
    uint64_t borrowed = atomic_load(&v->r.borrow_count), lost = atomic_load(&v->r.borrow_lost_count);
    bool call = sim_chance(sim, t->call_permille);
    sim_event(sim, call ? SIM_R_CALL : SIM_R_POST, index, to->number);
    int rc = call ? kvbm_reactor_call_mt(&v->r, &work->head) : kvbm_reactor_post_mt(&v->r, &work->head);
    if (atomic_load(&v->r.borrow_count) != borrowed)
        sim_event(sim, SIM_R_BORROWED, to->reactor, 0);
    if (atomic_load(&v->r.borrow_lost_count) != lost)
        sim_event(sim, SIM_R_BORROW_LOST, to->reactor, 0);
    if (rc == 0)
        return;
    SIM_CHECK(sim, rc == -EAGAIN && !inside, "post: %d", rc);
    sim_event(sim, SIM_R_LANE_FULL, to->reactor, 0);
    t->sent[sender][to->reactor]--;
    move(t, work, PLACE_QUEUE, PLACE_HANDLER);
    work_give(t, work);
}

/* Returns a number: asks for the end of what an actor keeps, or of something that has ended meanwhile. */
static void return_one(struct runtime *t, uint32_t index) {
    struct work *work = t->objects[index];
    bool kept = work != NULL && (work->place == PLACE_DEADLINE || work->place == PLACE_RETURNS);
    uint32_t number = kept ? t->actors[work->holder].reactor : (uint32_t)sim_below(&t->sim, t->reactor_count);
    struct virtual_reactor *v = &t->reactors[number];
    if (t->lane_queued[number][index])
        return;
    t->lane_queued[number][index] = true;
    sim_event(&t->sim, SIM_R_CANCEL, index, number);
    bool asleep = v->parked && !v->wake_asked;
    kvbm_retlane_push_mt(&v->lane, index);
    kvbm_reactor_returned_mt(&v->r);
    if (asleep && v->wake_asked)
        sim_event(&t->sim, SIM_R_RETURNS_WOKE, number, 0);
}

/* --------------------------------------------------------------------------------------------------------- reactors */

static void reactor_take(struct virtual_reactor *v, uint32_t event) {
    sim_event(&v->runtime->sim, event, v->number, 0);
    v->wake_asked = false;
    SIM_CHECK(&v->runtime->sim, kvbm_reactor_take(&v->r), "take of parked reactor %u was refused", v->number);
    v->parked = false;
}

static void reactor_park(struct virtual_reactor *v) {
    uint64_t timer_ns = 0;
    bool parked = kvbm_reactor_park(&v->r, &timer_ns);
    sim_event(&v->runtime->sim, parked ? SIM_R_PARK : SIM_R_PARK_REFUSED, v->number, 0);
    v->parked = parked;
    v->timer_ns = timer_ns;
}

static void on_wake(void *ctx) {
    struct virtual_reactor *v = ctx;
    struct runtime *t = v->runtime;
    sim_event(&t->sim, SIM_R_WAKE_ASKED, v->number, 0);
    SIM_CHECK(&t->sim, !v->wake_asked, "reactor %u is woken twice in one sleep", v->number);
    v->wake_not_before = t->sim.step + (sim_chance(&t->sim, t->late_permille) ? sim_below(&t->sim, 60) : 0);
    v->wake_asked = true;
    /* The thread can be faster than whoever wakes it: it takes, runs and parks before this returns. */
    if (t->depth < 2 && !t->sim.on_other && v->parked && atomic_load(&v->r.state) == KVBM_REACTOR_PARKED &&
        sim_chance(&t->sim, t->at_once_permille)) {
        t->depth++;
        reactor_take(v, SIM_R_WAKE);
        kvbm_reactor_turn(&v->r, t->budget_max);
        reactor_park(v);
        t->depth--;
    }
}

static void drive(struct runtime *t, struct virtual_reactor *v) {
    struct sim *sim = &t->sim;
    if (!v->parked) {
        if (sim_chance(sim, t->park_permille))
            reactor_park(v);
        else
            kvbm_reactor_turn(&v->r, (uint32_t)sim_between(sim, 1, t->budget_max));
    } else if (v->wake_asked && sim->step >= v->wake_not_before) {
        reactor_take(v, SIM_R_WAKE);
    } else if (v->timer_ns <= sim->now_ns) {
        reactor_take(v, SIM_R_TIMER);
    } else if (sim_chance(sim, t->spurious_permille)) {
        reactor_take(v, SIM_R_TAKE_SPURIOUS);
    }
}

static void check(struct runtime *t) {
    struct sim *sim = &t->sim;
    for (uint32_t i = 0; i < t->reactor_count; i++) {
        struct virtual_reactor *v = &t->reactors[i];
        uint32_t state = atomic_load(&v->r.state);
        SIM_CHECK(sim, state == (v->parked ? KVBM_REACTOR_PARKED : KVBM_REACTOR_RUNNING), "reactor %u is in state %u",
                  i, state);
        if (!v->parked || v->wake_asked)
            continue;
        bool returns = atomic_load(&v->r.returns_wanted) != 0 && !kvbm_retlane_empty_mt(&v->lane);
        SIM_CHECK(sim, kvbm_mailbox_empty_mt(&v->r.mailbox) && v->r.local_head == NULL && !returns,
                  "lost wake: reactor %u is parked, has work, and no wake-up is pending", i);
        SIM_CHECK(sim, kvbm_deadlines_next_ns(&v->r.deadlines) >= v->timer_ns,
                  "lost timer: reactor %u sleeps past its earliest deadline", i);
    }
    SIM_CHECK(sim, kvbm_pool_taken_mt(&t->pool) == t->in_flight, "%u objects are taken, %llu are owned",
              kvbm_pool_taken_mt(&t->pool), (unsigned long long)t->in_flight);
}

/* -------------------------------------------------------------------------------------------------------------- run */

static const kvbm_handler_fn requests[KIND_COUNT] = {[KIND_WORK] = on_work};
static const kvbm_handler_fn replies[KIND_COUNT] = {[KIND_WORK] = on_work_reply, [KIND_CREDIT] = on_credit};

static uint32_t permille(struct sim *sim, uint32_t most) {
    return sim_chance(sim, 300) ? 0 : (uint32_t)sim_between(sim, 1, most);
}

static void draw(struct runtime *t) {
    struct sim *sim = &t->sim;
    t->reactor_count = (uint32_t)sim_between(sim, 1, REACTORS_MAX);
    t->actor_count = (uint32_t)sim_between(sim, 2, ACTORS_MAX);
    t->message_count = (uint32_t)sim_between(sim, 2, MESSAGES_MAX);
    t->post_permille = (uint32_t)sim_between(sim, 50, 700);
    t->call_permille = permille(sim, 1000);
    t->clock_permille = permille(sim, 60);
    t->cancel_permille = permille(sim, 100);
    t->park_permille = (uint32_t)sim_between(sim, 20, 900);
    t->late_permille = permille(sim, 800);
    t->at_once_permille = permille(sim, 300);
    t->take_back_permille = permille(sim, 100);
    t->other_permille = sim_chance(sim, 850) ? 0 : (uint32_t)sim_between(sim, 1, 40);
    t->spurious_permille = permille(sim, 100);
    t->nest_permille = permille(sim, 200);
    t->budget_max = sim_chance(sim, 400) ? 1 : (uint32_t)sim_between(sim, 1, 16);
    t->clock_ns_max = UINT64_C(1) << sim_between(sim, 4, 30);
    t->weight_sum = 0;
    for (uint32_t i = 0; i < 6; i++) {
        t->weights[i] = i != 0 && sim_chance(sim, 200) ? 0 : (uint32_t)sim_between(sim, 1, 20);
        t->weight_sum += t->weights[i];
    }
}

static void open_all(struct runtime *t) {
    struct sim *sim = &t->sim;
    SIM_CHECK(sim, kvbm_pool_open(&t->pool, &sim->os, t->message_count, sizeof(struct work)) == 0, "pool");
    for (uint32_t i = 0; i < t->reactor_count; i++) {
        struct virtual_reactor *v = &t->reactors[i];
        v->runtime = t;
        v->number = i;
        struct kvbm_reactor_options options = {
            .name = "virtual",
            .os = &sim->os,
            .mailbox = {.control_capacity = 4,
                        .data_capacity = UINT32_C(4) << sim_below(sim, 2),
                        .thread_capacity = UINT32_C(4) << sim_below(sim, 3),
                        .lane_batch = (uint32_t)sim_between(sim, 1, 4)},
            .deadline_capacity = t->message_count,
            .turn_budget = (uint32_t)sim_between(sim, 1, 32),
            .borrowable = sim_chance(sim, 700),
            .wake = on_wake,
            .wake_ctx = v,
            .kind_count = KIND_COUNT,
        };
        SIM_CHECK(sim, kvbm_reactor_open(&v->r, &options) == 0, "reactor");
        SIM_CHECK(sim, kvbm_retlane_open(&v->lane, &sim->os, t->message_count) == 0, "return lane");
        kvbm_reactor_retlane_add(&v->r, &v->lane, on_returned, v);
    }
    for (uint32_t i = 0; i < t->actor_count; i++) {
        struct test_actor *a = &t->actors[i];
        *a = (struct test_actor){.runtime = t, .number = i};
        a->actor = (struct kvbm_actor){.name = "test",
                                       .on_request = requests,
                                       .on_reply = replies,
                                       .kind_count = KIND_COUNT,
                                       .on_deadline = on_deadline};
        a->reactor = (uint32_t)sim_below(sim, t->reactor_count);
        kvbm_reactor_actor_add(&t->reactors[a->reactor].r, &a->actor);
    }
}

static void step(struct runtime *t) {
    struct sim *sim = &t->sim;
    sim->step++;
    uint64_t choice = sim_below(sim, 1000);
    struct virtual_reactor *v = &t->reactors[sim_below(sim, t->reactor_count)];
    if (choice < t->post_permille) {
        post_one(t);
    } else if (choice < t->post_permille + t->cancel_permille) {
        return_one(t, (uint32_t)sim_below(sim, t->message_count));
    } else if (choice < t->post_permille + t->cancel_permille + t->clock_permille) {
        sim->now_ns += sim_between(sim, 1, t->clock_ns_max);
    } else {
        drive(t, v);
    }
    check(t);
}

/* Nothing new begins; what is kept ends; then nobody owns anything. */
static void drain(struct runtime *t) {
    struct sim *sim = &t->sim;
    t->ending = true;
    for (uint32_t round = 0; t->in_flight != 0; round++) {
        SIM_CHECK(sim, round < QUIET_ROUNDS, "%llu messages are never answered", (unsigned long long)t->in_flight);
        sim->step++;
        drive(t, &t->reactors[sim_below(sim, t->reactor_count)]);
        if (round % 64 == 0) {
            sim->now_ns += t->clock_ns_max;
            return_one(t, (uint32_t)sim_below(sim, t->message_count));
        }
        check(t);
    }
}

static void close_all(struct runtime *t) {
    struct sim *sim = &t->sim;
    for (uint32_t i = 0; i < t->reactor_count; i++) {
        struct virtual_reactor *v = &t->reactors[i];
        if (v->parked)
            reactor_take(v, SIM_R_TAKE_SPURIOUS);
        for (uint32_t round = 0; kvbm_reactor_has_work(&v->r); round++) { /* credits, and numbers of what has ended */
            SIM_CHECK(sim, round < QUIET_ROUNDS, "reactor %u never runs dry", i);
            kvbm_reactor_turn(&v->r, 4);
        }
    }
    for (uint32_t i = 0; i < t->reactor_count; i++) /* a credit's reply can have come after its reactor ran dry */
        while (kvbm_reactor_has_work(&t->reactors[i].r))
            kvbm_reactor_turn(&t->reactors[i].r, 4);
    for (uint32_t i = 0; i < t->actor_count; i++)
        for (uint32_t to = 0; to < t->actor_count; to++)
            SIM_CHECK(sim, !t->actors[i].credit_out[to] && t->actors[i].waiting[to] == 0 && !t->actors[i].wants_returns,
                      "actor %u still waits for credit of %u", i, to);
    for (uint32_t i = 0; i < t->reactor_count; i++) {
        SIM_CHECK(sim, t->reactors[i].r.deadlines.count == 0, "reactor %u: deadlines are armed", i);
        kvbm_reactor_close(&t->reactors[i].r);
        kvbm_retlane_close(&t->reactors[i].lane);
    }
    kvbm_pool_close(&t->pool);
    sim_event(sim, SIM_R_DRAINED, 0, 0);
    sim_check_balance(sim);
}

static void run(struct runtime *t) {
    draw(t);
    open_all(t);
    uint64_t steps = sim_between(&t->sim, 200, 2000);
    if (t->sim.options.steps != 0)
        steps = t->sim.options.steps;
    for (uint64_t i = 0; i < steps; i++)
        step(t);
    drain(t);
    close_all(t);
}

struct sim_result sim_runtime_run(uint64_t seed, const struct sim_options *options, struct sim_counts *counts) {
    struct runtime *t = &world;
    jmp_buf unwind;
    struct sim_result result = {0};
    memset(t, 0, sizeof *t);
    sim_begin(&t->sim, seed, 0xa0, options, counts);
    t->sim.unwind = &unwind;
    if (setjmp(unwind) == 0)
        run(t);
    else
        result.failed = true;
    result.hash = t->sim.hash;
    result.steps = t->sim.step;
    memcpy(result.failure, t->sim.failure, sizeof result.failure);
    sim_end(&t->sim);
    return result;
}
