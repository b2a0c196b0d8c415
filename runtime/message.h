/*
 * message.h - the head that every message starts with, and the macros that turn one list into enum, names and sizes.
 *
 * A message is a typed struct whose first member is `struct kvbm_msg head`. It has exactly one owner at every instant:
 * its maker, the queue it stands in, or the actor whose handler holds it. Sending moves it to the queue; a handler owns
 * what it was given and ends by replying, forwarding, or keeping it in a list of its own. The reply is the request
 * object itself, with `status` set, so answering needs no memory and no credit and cannot fail.
 *
 * The domain lists its messages once:
 *     #define KVBM_MESSAGES(X) X(ALLOCATE, allocate) X(MATCH, match) ...
 * and instantiates KVBM_MSG_DEFINE_ENUM / KVBM_MSG_DEFINE_INFO below. `X(NAME, name)` stands for enum KVBM_MSG_NAME,
 * struct kvbm_msg_name and handler on_name.
 */
#ifndef KVBM_RUNTIME_MESSAGE_H
#define KVBM_RUNTIME_MESSAGE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define KVBM_CACHE_LINE_BYTES 64

struct kvbm_actor;

enum kvbm_msg_flags {
    KVBM_MSG_REPLY = 1,   /* travels back to `reply_to` */
    KVBM_MSG_CONTROL = 2, /* uses the control lane */
    KVBM_MSG_CANCEL = 4,  /* a cancel was asked for; set by the owning reactor only */
};

/* Exactly one cache line. Plain fields: whoever owns the message may touch them, and queues hand over with
 * release/acquire. */
struct kvbm_msg {
    struct kvbm_msg *next;       /* link of the queue that owns it; must be the first member */
    uint16_t kind;               /* enum of the domain's X-macro */
    uint16_t flags;              /* enum kvbm_msg_flags */
    int32_t status;              /* of a reply: 0, -errno or -KVBM_E* */
    uint64_t op;                 /* operation id: generation << 32 | index, 0 for none */
    uint64_t deadline_ns;        /* monotonic; 0 for none */
    struct kvbm_actor *to;       /* receiver of the request */
    struct kvbm_actor *reply_to; /* receiver of the reply; NULL: nobody waits, the handler disposes */
    void *pool;                  /* the pool it came from, NULL if it is embedded elsewhere */
    uint32_t deadline_slot;      /* place in the reactor's deadline heap, KVBM_DEADLINE_NONE if not armed */
    uint32_t user;               /* free for the message's maker */
};
static_assert(sizeof(struct kvbm_msg) == KVBM_CACHE_LINE_BYTES, "a message head is one cache line");

/* Zero, so that a zeroed message is not armed. */
#define KVBM_DEADLINE_NONE 0u

struct kvbm_msg_info {
    const char *name; /* "ALLOCATE" */
    size_t size_bytes;
};

/* kinds start at 1; 0 is never sent */
#define KVBM_MSG_ENUM_(NAME, name)       KVBM_MSG_##NAME,
#define KVBM_MSG_DEFINE_ENUM(list)       enum kvbm_msg_kind { KVBM_MSG_NONE_ = 0, list(KVBM_MSG_ENUM_) KVBM_MSG_KIND_COUNT }
#define KVBM_MSG_ROW_(kind, text, bytes) [kind] = {text, bytes},
#define KVBM_MSG_INFO_(NAME, name)       KVBM_MSG_ROW_(KVBM_MSG_##NAME, #NAME, sizeof(struct kvbm_msg_##name))
#define KVBM_MSG_DEFINE_INFO(var, list)  const struct kvbm_msg_info var[KVBM_MSG_KIND_COUNT] = {list(KVBM_MSG_INFO_)}

#endif
