/*
 * wake_model.c - depth-first search over every interleaving of the wake and borrow protocol (wake_model.h).
 *
 * Owns the visited set (64-bit fingerprints of states) and the stack of one exploration. Each case of a step_* function
 * below is one atomic step: it reads or writes one shared word, or fences.
 */
#include "tests/sim/wake_model.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { RUNNING = 0, PARKED = 1, BORROWED = 2, WANTED = 4 };

/* Words of memory that several threads share. */
enum { STATE, PENDING, TAIL0, TAIL1, TAIL2, RETURNS, WANT, WORD_COUNT };
#define LANE_COUNT 3 /* one each for two producers and for the borrower when it cannot borrow */

enum { PRODUCER0, PRODUCER1, RETURNER, BORROWER, REACTOR, THREAD_COUNT };

#define BUFFER_COUNT 3

struct thread {
    uint8_t pc, left, value, wake;
    uint8_t buffered;
    uint8_t buffer[BUFFER_COUNT]; /* word << 4 | value, oldest first */
};

struct world {
    uint8_t memory[WORD_COUNT];
    uint8_t heads[LANE_COUNT], returns_head; /* owner of the reactor only */
    uint8_t waiting;                         /* owner only: an actor waits for a returned id */
    uint8_t timer, deadline;                 /* owner only: what the thread's timer was set to, what is armed */
    uint8_t timer_live;                      /* the loop's timer will fire */
    uint8_t async;                           /* the loop has been told to wake up */
    uint8_t spurious;                        /* wake-ups for no reason that may still happen */
    uint8_t firings;                         /* times that the loop's timer may still fire */
    uint8_t owners;                          /* threads that believe they own the reactor */
    struct thread threads[THREAD_COUNT];
};

struct search {
    enum wake_variant variant;
    uint64_t *visited;
    uint64_t visited_mask, visited_count;
    struct world *stack;
    uint64_t stack_count, stack_capacity;
    struct wake_result result;
};

/* ----------------------------------------------------------------------------------------------- memory of a thread */

static uint8_t load(const struct world *w, int self, int word) {
    const struct thread *t = &w->threads[self];
    for (int i = t->buffered - 1; i >= 0; i--)
        if (t->buffer[i] >> 4 == word)
            return t->buffer[i] & 15;
    return w->memory[word];
}

/* False: the buffer is full, the step must wait for a flush. */
static bool store(struct world *w, int self, int word, uint8_t value) {
    struct thread *t = &w->threads[self];
    if (t->buffered == BUFFER_COUNT)
        return false;
    t->buffer[t->buffered++] = (uint8_t)(word << 4 | value);
    return true;
}

/* A fence, and an atomic exchange, wait until the thread's stores have reached memory. */
static bool fenced(const struct world *w, int self) {
    return w->threads[self].buffered == 0;
}

static void flush_one(struct world *w, int self) {
    struct thread *t = &w->threads[self];
    w->memory[t->buffer[0] >> 4] = t->buffer[0] & 15;
    t->buffered--;
    memmove(t->buffer, t->buffer + 1, BUFFER_COUNT - 1);
    t->buffer[BUFFER_COUNT - 1] = 0;
}

/* --------------------------------------------------------------------------------------------------------- threads */

/* Steps that end a post: fence, test the state, exchange wake_pending, wake the loop. From `pc` on; returns whether it
 * stepped, and sets *done when the last one was made. */
static bool step_wake(struct world *w, int self, int stage, bool *done) {
    struct thread *t = &w->threads[self];
    *done = false;
    switch (stage) {
    case 0: /* the state */
        t->value = load(w, self, STATE);
        *done = t->value != PARKED;
        t->pc++;
        return true;
    case 1: /* exchange wake_pending, and wake if it was clear */
        if (!fenced(w, self))
            return false;
        if (w->memory[PENDING] == 0) {
            w->memory[PENDING] = 1;
            w->async = 1;
        }
        *done = true;
        return true;
    }
    return false;
}

static bool step_post(const struct search *s, struct world *w, int self, int lane, int pc) {
    struct thread *t = &w->threads[self];
    bool done = false, stepped = false;
    switch (pc) {
    case 0: /* publish in the lane */
        stepped = store(w, self, TAIL0 + lane, (uint8_t)(load(w, self, TAIL0 + lane) + 1));
        t->pc = (uint8_t)(t->pc + stepped);
        return stepped;
    case 1: /* fence */
        if (!fenced(w, self) && s->variant != WAKE_NO_PRODUCER_FENCE)
            return false;
        t->pc++;
        return true;
    default:
        stepped = step_wake(w, self, pc - 2, &done);
    }
    if (done) {
        t->pc = 0;
        t->value = 0;
        t->left--;
    }
    return stepped;
}

static bool step_producer(const struct search *s, struct world *w, int self) {
    struct thread *t = &w->threads[self];
    return t->left != 0 && step_post(s, w, self, self - PRODUCER0, t->pc);
}

/* Pushes an id to a return lane; wakes only if an actor waits for one. */
static bool step_returner(const struct search *s, struct world *w, int self) {
    struct thread *t = &w->threads[self];
    bool done = false, stepped = true;
    if (t->left == 0)
        return false;
    switch (t->pc) {
    case 0:
        stepped = store(w, self, RETURNS, (uint8_t)(load(w, self, RETURNS) + 1));
        t->pc = (uint8_t)(t->pc + stepped);
        break;
    case 1:
        if (!fenced(w, self) && s->variant != WAKE_NO_RETURNS_FENCE)
            return false;
        t->pc++;
        break;
    case 2:
        done = load(w, self, WANT) == 0;
        t->pc++;
        break;
    default:
        stepped = step_wake(w, self, t->pc - 3, &done);
    }
    if (done) {
        t->pc = 0;
        t->value = 0;
        t->left--;
    }
    return stepped;
}

/* Owner: ids that came back end the wait. */
static bool drain_returns(struct world *w, int self) {
    w->returns_head = load(w, self, RETURNS);
    if (w->returns_head != 0 && w->waiting) {
        w->waiting = 0;
        return store(w, self, WANT, 0);
    }
    return true;
}

/* Owner: takes one message from the lanes; the first of lane 0 makes an actor wait for a returned id. Returns whether
 * there was one. */
static bool consume(const struct search *s, struct world *w, int self) {
    for (int lane = 0; lane < LANE_COUNT; lane++) {
        if (load(w, self, TAIL0 + lane) == w->heads[lane])
            continue;
        bool first = lane == 0 && w->heads[0] == 0;
        w->heads[lane]++;
        if (first && w->returns_head == 0) {
            w->waiting = 1;
            store(w, self, WANT, 1);
            w->threads[self].value = s->variant == WAKE_RETURNS_NOT_DRAINED ? 0 : 1; /* drain once more */
        }
        return true;
    }
    return false;
}

static bool lanes_hold(const struct search *s, const struct world *w, int self) {
    for (int lane = 0; lane < LANE_COUNT; lane++)
        if (load(w, self, TAIL0 + lane) != w->heads[lane])
            return true;
    return s->variant != WAKE_RETURNS_NOT_DRAINED && w->waiting && load(w, self, RETURNS) != w->returns_head;
}

enum { R_TURN, R_FENCE_WANT, R_DRAIN, R_PARK, R_FENCE, R_RECHECK, R_TAKE_BACK, R_SLEEP, R_CLEAR, R_TAKE, R_CLEAR_LATE };

static bool reactor_turn(const struct search *s, struct world *w, struct thread *t) {
    if (t->buffered >= BUFFER_COUNT - 1)
        return false;
    if (!drain_returns(w, REACTOR))
        return false;
    if (consume(s, w, REACTOR))
        t->pc = t->value ? R_FENCE_WANT : R_TURN;
    else
        t->pc = s->variant == WAKE_PENDING_CLEARED_LATE && t->wake ? R_CLEAR_LATE : R_PARK;
    t->value = 0;
    return true;
}

static bool reactor_park(const struct search *s, struct world *w, struct thread *t) {
    switch (t->pc) {
    case R_PARK:
        if (!store(w, REACTOR, STATE, PARKED))
            return false;
        w->timer = w->timer_live = w->deadline;
        w->owners--;
        t->pc = s->variant == WAKE_NO_RECHECK ? R_SLEEP : s->variant == WAKE_NO_PARKER_FENCE ? R_RECHECK : R_FENCE;
        return true;
    case R_FENCE:
        if (!fenced(w, REACTOR))
            return false;
        t->pc = R_RECHECK;
        return true;
    case R_RECHECK: /* coarser than the code, which looks at one lane after another */
        t->pc = lanes_hold(s, w, REACTOR) ? R_TAKE_BACK : R_SLEEP;
        return true;
    case R_TAKE_BACK:
        if (!fenced(w, REACTOR))
            return false;
        t->pc = R_SLEEP;
        if (w->memory[STATE] == PARKED) {
            w->memory[STATE] = RUNNING;
            w->owners++;
            t->pc = R_TURN;
        }
        return true;
    }
    return false;
}

static bool reactor_wake(const struct search *s, struct world *w, struct thread *t) {
    switch (t->pc) {
    case R_SLEEP:
        if (w->async == 0)
            return false;
        w->async = 0;
        t->wake = 1;
        t->pc = s->variant == WAKE_PENDING_NOT_CLEARED || s->variant == WAKE_PENDING_CLEARED_LATE ? R_TAKE : R_CLEAR;
        return true;
    case R_CLEAR:
    case R_CLEAR_LATE:
        if (!store(w, REACTOR, PENDING, 0))
            return false;
        t->pc = t->pc == R_CLEAR ? R_TAKE : R_PARK;
        t->wake = 0;
        return true;
    case R_TAKE:
        if (!fenced(w, REACTOR))
            return false;
        if (w->memory[STATE] == PARKED) {
            w->memory[STATE] = RUNNING;
            w->owners++;
            t->pc = R_TURN;
        } else {
            w->memory[STATE] = BORROWED | WANTED;
            t->pc = R_SLEEP;
        }
        return true;
    }
    return false;
}

static bool step_reactor(const struct search *s, struct world *w) {
    struct thread *t = &w->threads[REACTOR];
    switch (t->pc) {
    case R_TURN:
        return reactor_turn(s, w, t);
    case R_FENCE_WANT: /* after want_returns(+1) */
        if (!fenced(w, REACTOR))
            return false;
        t->pc = R_DRAIN;
        return true;
    case R_DRAIN:
        if (t->buffered >= BUFFER_COUNT - 1)
            return false;
        drain_returns(w, REACTOR);
        t->pc = R_TURN;
        return true;
    case R_PARK:
    case R_FENCE:
    case R_RECHECK:
    case R_TAKE_BACK:
        return reactor_park(s, w, t);
    default:
        return reactor_wake(s, w, t);
    }
}

enum {
    B_TRY,
    B_TURN,
    B_FENCE_WANT,
    B_DRAIN,
    B_RETURN,
    B_RECHECK,
    B_WAKE,
    B_RACY,     /* BORROW_WITHOUT_EXCHANGE: between the test and the store */
    B_POST = 10 /* could not borrow: an ordinary post */
};

/* PARKED -> BORROWED, or an ordinary post. */
static bool borrower_try(const struct search *s, struct world *w, struct thread *t) {
    if (t->pc == B_RACY) {
        w->memory[STATE] = BORROWED;
        w->owners++;
        t->pc = B_TURN;
        return true;
    }
    if (!fenced(w, BORROWER))
        return false;
    t->pc = B_POST;
    if (w->memory[STATE] == PARKED) {
        if (s->variant == WAKE_BORROW_WITHOUT_EXCHANGE) {
            t->pc = B_RACY;
            return true;
        }
        w->memory[STATE] = BORROWED;
        w->owners++;
        t->pc = B_TURN;
    }
    return true;
}

static bool borrower_return(const struct search *s, struct world *w, struct thread *t) {
    switch (t->pc) {
    case B_RETURN: /* exchange; the timer is compared while still the owner */
        if (!fenced(w, BORROWER))
            return false;
        t->wake = w->deadline != w->timer && s->variant != WAKE_NO_TIMER_WAKE;
        if ((w->memory[STATE] & WANTED) && s->variant != WAKE_WANTED_FORGOTTEN)
            t->wake = 1;
        w->memory[STATE] = PARKED;
        w->owners--;
        t->pc = t->wake ? B_WAKE : B_RECHECK;
        break;
    case B_RECHECK:
        t->pc = lanes_hold(s, w, BORROWER) && s->variant != WAKE_NO_RETURN_RECHECK ? B_WAKE : B_TRY;
        break;
    case B_WAKE:
        if (!fenced(w, BORROWER))
            return false;
        if (w->memory[PENDING] == 0) {
            w->memory[PENDING] = 1;
            w->async = 1;
        }
        t->pc = B_TRY;
        break;
    }
    t->wake = t->pc == B_TRY ? 0 : t->wake;
    t->left = (uint8_t)(t->left - (t->pc == B_TRY));
    return true;
}

static bool step_borrower(const struct search *s, struct world *w) {
    struct thread *t = &w->threads[BORROWER];
    if (t->left == 0)
        return false;
    switch (t->pc) {
    case B_TRY:
    case B_RACY:
        return borrower_try(s, w, t);
    case B_TURN: /* at most one message that stood in the lanes, then its own, which arms a deadline */
        if (t->buffered >= BUFFER_COUNT - 1 || !drain_returns(w, BORROWER))
            return false;
        consume(s, w, BORROWER);
        w->deadline = 1;
        t->pc = t->value ? B_FENCE_WANT : B_RETURN;
        t->value = 0;
        return true;
    case B_FENCE_WANT:
        if (!fenced(w, BORROWER))
            return false;
        t->pc = B_DRAIN;
        return true;
    case B_DRAIN:
        drain_returns(w, BORROWER);
        t->pc = B_RETURN;
        return true;
    case B_RETURN:
    case B_RECHECK:
    case B_WAKE:
        return borrower_return(s, w, t);
    default:
        return step_post(s, w, BORROWER, 2, t->pc - B_POST);
    }
}

/* ---------------------------------------------------------------------------------------------------------- search */

static uint64_t fingerprint(const struct world *w) {
    const unsigned char *bytes = (const unsigned char *)w;
    uint64_t hash = UINT64_C(0x243f6a8885a308d3);
    for (size_t i = 0; i < sizeof *w; i++) {
        hash = (hash ^ bytes[i]) * UINT64_C(0x9fb21c651e98df25);
        hash ^= hash >> 29;
    }
    return hash | 1; /* 0 is an empty place of the table */
}

static void *must(void *memory) {
    if (memory == NULL)
        abort();
    return memory;
}

static bool visit(struct search *s, uint64_t print) {
    for (uint64_t i = print & s->visited_mask;; i = (i + 1) & s->visited_mask) {
        if (s->visited[i] == print)
            return false;
        if (s->visited[i] == 0) {
            s->visited[i] = print;
            s->visited_count++;
            return true;
        }
    }
}

static void visited_grow(struct search *s) {
    uint64_t *old = s->visited, old_mask = s->visited_mask;
    s->visited_mask = old_mask * 2 + 1;
    s->visited = must(calloc(s->visited_mask + 1, sizeof *s->visited));
    s->visited_count = 0;
    for (uint64_t i = 0; i <= old_mask; i++)
        if (old[i] != 0)
            visit(s, old[i]);
    free(old);
}

static void push(struct search *s, const struct world *w) {
    if (s->visited_count * 2 > s->visited_mask)
        visited_grow(s);
    s->result.transitions++;
    if (!visit(s, fingerprint(w)))
        return;
    if (s->stack_count == s->stack_capacity) {
        s->stack_capacity = s->stack_capacity * 2 + 1024;
        s->stack = must(realloc(s->stack, s->stack_capacity * sizeof *s->stack));
    }
    s->stack[s->stack_count++] = *w;
}

/* What must hold where nothing more can happen. */
static const char *ending_violation(const struct world *w) {
    for (int i = 0; i < REACTOR; i++)
        if (w->threads[i].left != 0)
            return "a thread is stuck";
    if (w->threads[REACTOR].pc != R_SLEEP)
        return "the reactor's thread is stuck awake";
    for (int lane = 0; lane < LANE_COUNT; lane++)
        if (w->memory[TAIL0 + lane] != w->heads[lane])
            return "a message is left with a parked reactor and no wake-up is pending";
    if (w->waiting && w->memory[RETURNS] != w->returns_head)
        return "an actor waits for an id that was returned already";
    if (w->deadline && !w->timer_live)
        return "a deadline is armed and the thread's timer will not fire";
    return NULL;
}

static void expand(struct search *s, const struct world *from) {
    bool moved = false;
    for (int self = 0; self < THREAD_COUNT; self++) {
        struct world next = *from;
        bool stepped = self == BORROWER   ? step_borrower(s, &next)
                       : self == REACTOR  ? step_reactor(s, &next)
                       : self == RETURNER ? step_returner(s, &next, self)
                                          : step_producer(s, &next, self);
        if (stepped) {
            moved = true;
            if (next.owners > 1)
                s->result.violation = "two threads own the reactor";
            push(s, &next);
        }
        if (from->threads[self].buffered != 0) {
            moved = true;
            next = *from;
            flush_one(&next, self);
            push(s, &next);
        }
    }
    if (!moved) {
        s->result.endings++;
        const char *violation = ending_violation(from);
        if (violation != NULL)
            s->result.violation = violation;
    }
    if (from->spurious != 0 && from->async == 0) {
        struct world next = *from;
        next.spurious--;
        next.async = 1;
        push(s, &next);
    }
    if (from->firings != 0 && from->timer_live && from->async == 0) {
        struct world next = *from;
        next.firings--;
        next.timer_live = 0;
        next.async = 1;
        push(s, &next);
    }
}

struct wake_result wake_model_explore(enum wake_variant variant, bool large) {
    struct search s = {.variant = variant, .visited_mask = (1u << 16) - 1};
    s.visited = must(calloc(s.visited_mask + 1, sizeof *s.visited));
    struct world start;
    memset(&start, 0, sizeof start);
    start.owners = 1; /* the reactor's thread, RUNNING */
    start.spurious = large;
    start.firings = 1;
    start.threads[PRODUCER0].left = large ? 2 : 1;
    start.threads[PRODUCER1].left = large;
    start.threads[RETURNER].left = 1;
    start.threads[BORROWER].left = 2;
    push(&s, &start);
    while (s.stack_count != 0 && s.result.violation == NULL) {
        struct world from = s.stack[--s.stack_count];
        expand(&s, &from);
    }
    s.result.states = s.visited_count;
    free(s.visited);
    free(s.stack);
    return s.result;
}

const char *wake_variant_text(enum wake_variant variant) {
    static const char *const texts[WAKE_VARIANT_COUNT] = {
#define X(name, text) [WAKE_##name] = text,
        WAKE_VARIANTS(X)
#undef X
    };
    return texts[variant];
}
