/*
 * policy_prefix.c - the policy "prefix": leaf first, and among leaves the one whose memory is worth least.
 *
 * A prefix cache finds a block only through all blocks before it, so a block without its parent is waste. This policy
 * knows the tree of resident blocks and gives up leaves: a block without a resident child. Among them it compares what
 * a slot earns if the leaf stays: hits for the time that the slot is occupied, times the cost of computing the block
 * anew.
 *
 * The rate is learned, not assumed. Blocks are told apart by uses (0, 1, 2, 3 or more since the key came) and by age:
 * blocks published since the last use, in eighths of the capacity. For each number of uses, H[age] counts the uses that
 * came at an age and N the lives that began (a life is the time from one use to the next); both fade. What is left of N
 * after the hits up to an age, S[age], is how many lives last so long. The value of a leaf of age a is the best rate
 * that any plan to keep it until some age b offers:
 *
 *   value(uses, a) = max over b >= a of (H[a] + .. + H[b]) / (S[a] + .. + S[b]) * weight(tokens before it)
 *
 * which is Gittins' index of a job that ends with a reward (Gittins 1979). It is near to LHD's hit density (Beckmann,
 * Chen, Cidon: "LHD: improving cache hit rate by maximizing hit density", NSDI 2018), with the stopping time instead of
 * the expected lifetime, exact instead of sampled victims, and leaves instead of all objects. Lives do not end with
 * eviction: evicted keys are remembered with uses and age (policy_parts.h), so the policy sees what it would have had,
 * and what comes back keeps its uses. What is read once goes soon, what was used often stays long.
 *
 * Two things keep it from learning noise, for a few long chains that are used as a whole look like much evidence. No
 * leaf is worth more than a younger one with as many uses: among equals the order is LRU's. And a belief in recency
 * is counted along (BELIEF_SHARE). Without them agents with long prompts hit up to a tenth less than with LRU.
 *
 * The cost of a block is linear in its tokens plus attention to all tokens before: 1 + tokens_before / 49,152, a middle
 * of current models of 8 to 70 billion parameters, where attention costs as much as all the rest at 30,000 to 55,000
 * tokens. Its weight is the square root: with the whole cost, deep leaves displaced so many cheap hits that less
 * compute was saved, with none hits of little worth were kept (docs/core/eviction.md). Three classes of depth.
 *
 * Order of a victim: the lowest level of priority that has a leaf; the list (class, epoch of last use) of lowest value;
 * in it the first in. Each list is one epoch, so no leaf is ever moved by getting older; those of GONE_AGE epochs and
 * more are joined. The best list is cached, also while it is empty between a victim and its parent's coming; when it
 * stays empty, the next victim costs a scan of at most CLASS_COUNT * LIST_AGES bits.
 *
 * The tree: each slot has a family, shared with its siblings, and a block that has children has an own one, which
 * counts the children that are resident and those of them that are held. A family whose parent is not resident waits in
 * a hash by the parent's key, so that order of publication does not matter. A block whose resident children are all
 * leased is no leaf; only if there is no leaf left at all does it go (all that is unleased is promised to whoever
 * allocates), and still after its unleased children. Keys that callers made up can be each other's ancestors: the
 * blocks of such a ring go last.
 *
 * Memory of a slot, touched on first use: 28 bytes, 24 if it has children, 20 to 40 of remembered keys, 20 once its
 * priority expires, 4 if it was an orphan. Fixed: about 30 KB. Thread: the registry's reactor.
 */
#include <errno.h>

#include "actors/policy_parts.h"

#define NONE KVBM_SLOT_NONE

#define LEVEL_COUNT (KVBM_PRIORITY_MAX + 1u)
#define USES_MAX    3u
#define USES_COUNT  (USES_MAX + 1u)
#define DEPTH_COUNT 3u
#define CLASS_COUNT (USES_COUNT * DEPTH_COUNT)

/* Ages in epochs. */
#define EPOCHS_A_CAPACITY 8u
#define GONE_AGE          32u
#define LIST_AGES         (GONE_AGE + 1u)
#define GHOST_EPOCHS      ((1u << KVBM_GHOST_NOTE_BITS) / USES_COUNT)
#define GHOST_SHARE       2u /* remembered keys for each slot */

/* Ages are counted finely when young: 0..7 one by one, 8..15 by twos, 16..31 by fours, then all together. */
#define BUCKET_GONE  16u
#define BUCKET_COUNT (BUCKET_GONE + 1u)

/* Before anything is learned half the lives end by BELIEF_AGE, 2/3 by twice that, 3/4 by three times: younger is
 * better. So sure as of lives that are this part of the capacity. */
#define BELIEF_AGE   2.0f
#define BELIEF_SHARE 0.1f

#define LEARN_USES_MIN 64u
#define FADE           0.9f

/* Lists: for each level and class one for each epoch and one of the old; then for each level STUCK and BLOCKED. */
#define LEAF_LISTS   (LEVEL_COUNT * CLASS_COUNT * LIST_AGES)
#define LIST_STUCK   LEAF_LISTS                 /* children are resident, none is held */
#define LIST_BLOCKED (LIST_STUCK + LEVEL_COUNT) /* children are held */
#define LIST_COUNT   (LIST_BLOCKED + LEVEL_COUNT)

#define TAG_HELD  1u
#define TAG_TIMED 2u

_Static_assert(KVBM_SLOT_COUNT_MAX + LIST_COUNT <= KVBM_NODE_LINK_MASK, "a link names every slot and every head");
_Static_assert(LIST_AGES <= 64, "one bit for each list of a class");

struct prefix_slot {
    uint32_t family; /* of which it is a child; NONE: the first of a chain */
    uint32_t own;    /* of which it is the parent; NONE: no resident children */
    uint32_t epoch;  /* of the last use */
    uint32_t digest;
    uint8_t uses, depth, level;
    bool published;
};

struct prefix_family {
    uint64_t key;       /* digest of the parent's key */
    uint32_t kid_count; /* > 0 while the family is in use */
    uint32_t held_count;
    uint32_t parent; /* its slot; NONE: not resident, the family is an orphan */
    uint32_t next;   /* family + 1 in the orphans' bucket or the free list; 0: the
                      last */
};

struct prefix {
    struct kvbm_policy policy;
    const struct kvbm_os *os;
    uint64_t *nodes; /* slot_count slots, then LIST_COUNT heads */
    struct prefix_slot *slots;
    struct prefix_family *families;
    uint32_t *orphans; /* buckets: family + 1 */
    struct kvbm__timers timers;
    struct kvbm__ghosts ghosts;
    uint64_t mapped_bytes;
    uint64_t secret;
    uint32_t slot_count, held_count, published_count;
    uint32_t family_fresh, family_free; /* families never used yet start at fresh; free + 1 */
    uint32_t orphan_mask, orphan_count;
    uint32_t epoch, epoch_publishes, publishes; /* now; publishes an epoch has; those of this one */
    uint32_t uses, uses_a_lesson;
    uint32_t best; /* no other list that has slots goes before it; NONE: look for it */
    float belief, lives[USES_COUNT], hits[USES_COUNT][BUCKET_COUNT];
    float values[CLASS_COUNT][LIST_AGES];
    uint64_t leaves[LEVEL_COUNT][CLASS_COUNT]; /* bit: the list has slots */
};

/* Epochs; the last bucket has no end and is taken to have one. */
static const float bucket_widths[BUCKET_COUNT] = {1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 64};
/* Square roots of the mean costs 1.15, 1.8 and 3.0, by the first. */
static const float depth_weights[DEPTH_COUNT] = {1.0f, 1.25f, 1.6f};

static inline struct prefix *prefix_of(struct kvbm_policy *policy) {
    return (struct prefix *)policy;
}

static inline uint32_t age_bucket(uint32_t age) {
    return age < 8 ? age : age < 16 ? 8 + (age - 8) / 2 : age < GONE_AGE ? 12 + (age - 16) / 4 : BUCKET_GONE;
}

static inline uint32_t class_of(const struct prefix_slot *slot) {
    return slot->depth * USES_COUNT + slot->uses;
}

/* What the memory of evicted keys knows a slot's key by. */
static inline uint64_t slot_digest(const struct prefix_slot *slot) {
    return slot->digest * UINT64_C(0x9e3779b97f4a7c15);
}

static inline uint32_t slot_age(const struct prefix *p, uint32_t epoch) {
    uint32_t age = p->epoch - epoch;
    return age < GONE_AGE ? age : GONE_AGE;
}

/* ------------------------------------------------------------------------------------------------------------ lists */

static inline uint32_t leaf_list(uint32_t level, uint32_t class, uint32_t place) {
    return (level * CLASS_COUNT + class) * LIST_AGES + place;
}

/* Value and age of what is in a leaf list. */
static inline float list_value(const struct prefix *p, uint32_t list, uint32_t *age) {
    uint32_t place = list % LIST_AGES, class = list / LIST_AGES % CLASS_COUNT;
    *age = place == GONE_AGE ? GONE_AGE : (p->epoch - place) % GONE_AGE;
    return p->values[class][*age];
}

/* Whether victims come from leaf list a before list b. */
static bool list_before(const struct prefix *p, uint32_t a, uint32_t b) {
    uint32_t level_a = a / (CLASS_COUNT * LIST_AGES), level_b = b / (CLASS_COUNT * LIST_AGES), age_a, age_b;
    float value_a = list_value(p, a, &age_a), value_b = list_value(p, b, &age_b);
    if (level_a != level_b)
        return level_a < level_b;
    if (value_a < value_b || value_b < value_a)
        return value_a < value_b;
    return age_a > age_b;
}

static void list_find_best(struct prefix *p) {
    p->best = NONE;
    for (uint32_t level = 0; level < LEVEL_COUNT && p->best == NONE; level++) {
        for (uint32_t class = 0; class < CLASS_COUNT; class ++) {
            for (uint64_t bits = p->leaves[level][class]; bits != 0; bits &= bits - 1) {
                uint32_t list = leaf_list(level, class, (uint32_t)__builtin_ctzll(bits));
                if (p->best == NONE || list_before(p, list, p->best))
                    p->best = list;
            }
        }
    }
}

/* Puts a held slot, which is in no list, where it belongs now. */
static void place(struct prefix *p, uint32_t slot, bool timed) {
    const struct prefix_slot *s = &p->slots[slot];
    const struct prefix_family *own = s->own != NONE ? &p->families[s->own] : NULL;
    uint32_t list;
    if (own != NULL) {
        list = (own->held_count > 0 ? LIST_BLOCKED : LIST_STUCK) + s->level;
    } else {
        uint32_t class = class_of(s);
        uint32_t at = slot_age(p, s->epoch) < GONE_AGE ? s->epoch % GONE_AGE : GONE_AGE;
        list = leaf_list(s->level, class, at);
        p->leaves[s->level][class] |= UINT64_C(1) << at;
        if (p->best != NONE && list != p->best && list_before(p, list, p->best))
            p->best = list;
    }
    kvbm__list_append(p->nodes, p->slot_count + list, slot, TAG_HELD | (timed ? TAG_TIMED : 0));
}

static void unplace(struct prefix *p, uint32_t slot) {
    uint32_t emptied = kvbm__list_unlink(p->nodes, slot);
    if (emptied == NONE)
        return;
    KVBM_ASSERT(emptied >= p->slot_count);
    uint32_t list = emptied - p->slot_count;
    if (list >= LEAF_LISTS)
        return;
    p->leaves[list / (CLASS_COUNT * LIST_AGES)][list / LIST_AGES % CLASS_COUNT] &= ~(UINT64_C(1) << list % LIST_AGES);
}

/* The slot's children changed. */
static void replace(struct prefix *p, uint32_t slot) {
    uint64_t node = p->nodes[slot];
    if (node == 0)
        return;
    unplace(p, slot);
    place(p, slot, (kvbm__node_tag(node) & TAG_TIMED) != 0);
}

/* --------------------------------------------------------------------------------------------------------- learning */

/* The values of slots with so many uses, from what was counted and what is believed before anything is. */
static void learn_uses(struct prefix *p, uint32_t uses) {
    float hits[BUCKET_COUNT], lasting[BUCKET_COUNT], values[BUCKET_COUNT];
    float left = p->lives[uses] + p->belief, age = 0;
    for (uint32_t b = 0; b < BUCKET_COUNT; b++) {
        float end = age + bucket_widths[b];
        hits[b] = p->hits[uses][b] + p->belief / (1 + age / BELIEF_AGE) - p->belief / (1 + end / BELIEF_AGE);
        age = end;
        float middle = left - hits[b] / 2;
        lasting[b] = middle > 0 ? middle : 0;
        left = left > hits[b] ? left - hits[b] : 0;
    }
    for (uint32_t from = 0; from < BUCKET_COUNT; from++) {
        float hit = 0, occupied = 1e-9f, best = 0;
        for (uint32_t b = from; b < BUCKET_COUNT; b++) {
            hit += hits[b];
            occupied += (lasting[b] + 0.25f) * bucket_widths[b];
            best = hit > best * occupied ? hit / occupied : best;
        }
        values[from] = best;
    }
    /* The older is never worth more. */
    for (uint32_t b = 1; b < BUCKET_COUNT; b++)
        values[b] = values[b] < values[b - 1] ? values[b] : values[b - 1];
    for (uint32_t a = 0; a <= GONE_AGE; a++)
        for (uint32_t depth = 0; depth < DEPTH_COUNT; depth++)
            p->values[depth * USES_COUNT + uses][a] = values[age_bucket(a)] * depth_weights[depth];
    p->lives[uses] *= FADE;
    for (uint32_t b = 0; b < BUCKET_COUNT; b++)
        p->hits[uses][b] *= FADE;
}

/* A key that had so many uses was used again after `age` epochs. */
static inline void learn_hit(struct prefix *p, uint32_t uses, uint32_t age) {
    p->hits[uses][age_bucket(age)] += 1.0f;
}

/* A life of the slot begins. */
static void learn_life(struct prefix *p, struct prefix_slot *s) {
    s->epoch = p->epoch;
    p->lives[s->uses] += 1.0f;
    if (++p->uses < p->uses_a_lesson)
        return;
    p->uses = 0;
    for (uint32_t uses = 0; uses < USES_COUNT; uses++)
        learn_uses(p, uses);
    p->best = NONE;
}

/* A block was published: time passes. */
static void tick(struct prefix *p) {
    if (++p->publishes < p->epoch_publishes)
        return;
    p->publishes = 0;
    p->epoch++;
    p->best = NONE;
    /* What was used GONE_AGE epochs ago makes room for what is used now. */
    uint32_t at = p->epoch % GONE_AGE;
    uint64_t bit = UINT64_C(1) << at, gone = UINT64_C(1) << GONE_AGE;
    for (uint32_t level = 0; level < LEVEL_COUNT; level++) {
        for (uint32_t class = 0; class < CLASS_COUNT; class ++) {
            uint64_t *leaves = &p->leaves[level][class];
            if ((*leaves & bit) == 0)
                continue;
            *leaves = (*leaves & ~bit) | gone;
            kvbm__list_splice(p->nodes, p->slot_count + leaf_list(level, class, at),
                              p->slot_count + leaf_list(level, class, GONE_AGE));
        }
    }
}

/* --------------------------------------------------------------------------------------------------------- families */

static uint32_t family_new(struct prefix *p, uint64_t key, uint32_t parent) {
    uint32_t family = p->family_free != 0 ? p->family_free - 1 : p->family_fresh++;
    KVBM_ASSERT(family < p->slot_count); /* each has a child */
    struct prefix_family *f = &p->families[family];
    if (p->family_free != 0)
        p->family_free = f->next;
    *f = (struct prefix_family){.key = key, .parent = parent};
    return family;
}

/* The place in the orphans' hash that names the family with this key, or the end of its bucket. */
static uint32_t *orphan_find(struct prefix *p, uint64_t key) {
    uint32_t *at = &p->orphans[(uint32_t)(key >> 32) & p->orphan_mask];
    while (*at != 0 && p->families[*at - 1].key != key)
        at = &p->families[*at - 1].next;
    return at;
}

static void orphan_add(struct prefix *p, uint32_t family) {
    struct prefix_family *f = &p->families[family];
    uint32_t *bucket = &p->orphans[(uint32_t)(f->key >> 32) & p->orphan_mask];
    f->parent = NONE;
    f->next = *bucket;
    *bucket = family + 1;
    p->orphan_count++;
}

/* The family is an orphan. */
static void orphan_remove(struct prefix *p, uint32_t family) {
    struct prefix_family *f = &p->families[family];
    uint32_t *at = &p->orphans[(uint32_t)(f->key >> 32) & p->orphan_mask];
    while (*at != family + 1)
        at = &p->families[*at - 1].next;
    *at = f->next;
    f->next = 0;
    p->orphan_count--;
}

/* Of the children of this parent. */
static uint32_t family_of_parent(struct prefix *p, const struct kvbm_policy_place *at) {
    uint64_t key = kvbm__policy_digest(at->parent, p->secret);
    if (at->parent_slot != NONE) {
        struct prefix_slot *parent = &p->slots[at->parent_slot];
        KVBM_ASSERT(at->parent_slot < p->slot_count && parent->published);
        if (parent->own == NONE)
            parent->own = family_new(p, key, at->parent_slot);
        return parent->own;
    }
    uint32_t known = *orphan_find(p, key);
    if (known != 0)
        return known - 1;
    uint32_t family = family_new(p, key, NONE);
    orphan_add(p, family);
    return family;
}

/* A child's lease ended (+1) or began (-1). */
static void family_held(struct prefix *p, uint32_t family, int change) {
    if (family == NONE)
        return;
    struct prefix_family *f = &p->families[family];
    bool before = f->held_count > 0;
    f->held_count += (uint32_t)change;
    KVBM_ASSERT(f->held_count <= f->kid_count);
    if (before != (f->held_count > 0) && f->parent != NONE)
        replace(p, f->parent);
}

/* A child is not resident any more. */
static void family_leave(struct prefix *p, uint32_t family) {
    struct prefix_family *f = &p->families[family];
    KVBM_ASSERT(f->kid_count > 0);
    if (--f->kid_count > 0)
        return;
    uint32_t parent = f->parent;
    if (parent == NONE)
        orphan_remove(p, family);
    else
        p->slots[parent].own = NONE;
    f->next = p->family_free;
    p->family_free = family + 1;
    if (parent != NONE)
        replace(p, parent);
}

/* --------------------------------------------------------------------------------------------------- open and close */

static uint64_t rounded(uint64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static int prefix_open(const struct kvbm_os *os, uint32_t slot_count, struct kvbm_policy **policy) {
    if (slot_count == 0 || slot_count > KVBM_SLOT_COUNT_MAX)
        return -EINVAL;
    uint64_t ghost_window = (uint64_t)GHOST_SHARE * slot_count, buckets = 1;
    while (buckets < slot_count)
        buckets *= 2;
    uint64_t at[8], end = 0;
    uint64_t sizes[8] = {sizeof(struct prefix),
                         ((uint64_t)slot_count + LIST_COUNT) * sizeof(uint64_t),
                         (uint64_t)slot_count * sizeof(struct prefix_slot),
                         (uint64_t)slot_count * sizeof(struct prefix_family),
                         (uint64_t)slot_count * sizeof(struct kvbm__timer),
                         (uint64_t)slot_count * sizeof(uint32_t),
                         kvbm__ghosts_entries(ghost_window) * sizeof(uint64_t),
                         buckets * sizeof(uint32_t)};
    for (uint32_t i = 0; i < 8; i++) {
        at[i] = end;
        end += rounded(sizes[i]);
    }
    void *map = NULL;
    unsigned got;
    int rc = os->map(os->ctx, (size_t)end, KVBM_MAP_LAZY, &map, &got);
    if (rc != 0)
        return rc;
    unsigned char *base = map;
    struct prefix *p = map;
    p->policy.ops = &kvbm_policy_prefix;
    p->os = os;
    p->nodes = (uint64_t *)(void *)(base + at[1]);
    p->slots = (struct prefix_slot *)(void *)(base + at[2]);
    p->families = (struct prefix_family *)(void *)(base + at[3]);
    p->timers.heap = (struct kvbm__timer *)(void *)(base + at[4]);
    p->timers.positions = (uint32_t *)(void *)(base + at[5]);
    kvbm__ghosts_init(&p->ghosts, (uint64_t *)(void *)(base + at[6]), ghost_window);
    p->orphans = (uint32_t *)(void *)(base + at[7]);
    p->orphan_mask = (uint32_t)(buckets - 1);
    p->mapped_bytes = end;
    p->slot_count = slot_count;
    p->secret = os->random_u64(os->ctx);
    p->epoch_publishes = (slot_count + EPOCHS_A_CAPACITY - 1) / EPOCHS_A_CAPACITY;
    p->uses_a_lesson = slot_count / 2 > LEARN_USES_MIN ? slot_count / 2 : LEARN_USES_MIN;
    p->best = NONE;
    p->belief = BELIEF_SHARE * (float)slot_count;
    for (uint32_t uses = 0; uses < USES_COUNT; uses++)
        learn_uses(p, uses);
    for (uint32_t list = 0; list < LIST_COUNT; list++)
        kvbm__list_init(p->nodes, slot_count + list);
    *policy = &p->policy;
    return 0;
}

static void prefix_close(struct kvbm_policy *policy) {
    struct prefix *p = prefix_of(policy);
    p->os->unmap(p->os->ctx, p, (size_t)p->mapped_bytes);
}

/* ---------------------------------------------------------------------------------------------------- the interface */

static void prefix_publish(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_place *at) {
    struct prefix *p = prefix_of(policy);
    KVBM_ASSERT(slot < p->slot_count);
    struct prefix_slot *s = &p->slots[slot];
    KVBM_ASSERT(!s->published && p->nodes[slot] == 0);
    tick(p);
    *s = (struct prefix_slot){.family = NONE,
                              .own = NONE,
                              .digest = (uint32_t)kvbm__policy_digest(at->key, 0),
                              .depth = at->tokens_before < 16384   ? 0
                                       : at->tokens_before < 65536 ? 1
                                                                   : 2,
                              .published = true};
    p->published_count++;
    uint32_t note;
    if (kvbm__ghosts_take(&p->ghosts, slot_digest(s), &note)) {
        uint32_t age = (p->epoch - note / USES_COUNT) % GHOST_EPOCHS;
        s->uses = (uint8_t)(note % USES_COUNT);
        learn_hit(p, s->uses, age < GONE_AGE ? age : GONE_AGE);
        s->uses = (uint8_t)(s->uses + (s->uses < USES_MAX));
    }
    learn_life(p, s);
    if (at->parent != NULL) {
        s->family = family_of_parent(p, at);
        struct prefix_family *f = &p->families[s->family];
        if (++f->kid_count == 1 && f->parent != NONE)
            replace(p, f->parent);
    }
    if (p->orphan_count > 0) {
        uint32_t known = *orphan_find(p, kvbm__policy_digest(at->key, p->secret));
        if (known != 0) {
            orphan_remove(p, known - 1);
            p->families[known - 1].parent = slot;
            s->own = known - 1;
        }
    }
}

static void prefix_insert(struct kvbm_policy *policy, uint32_t slot, const struct kvbm_policy_meta *meta,
                          uint64_t now_ns) {
    struct prefix *p = prefix_of(policy);
    KVBM_ASSERT(slot < p->slot_count);
    struct prefix_slot *s = &p->slots[slot];
    KVBM_ASSERT(s->published && p->nodes[slot] == 0);
    bool timed;
    s->level = (uint8_t)kvbm__policy_level(meta, now_ns, &timed);
    place(p, slot, timed);
    if (timed)
        kvbm__timers_add(&p->timers, slot, meta->expires_ns);
    p->held_count++;
    family_held(p, s->family, 1);
}

static bool prefix_remove(struct kvbm_policy *policy, uint32_t slot) {
    struct prefix *p = prefix_of(policy);
    KVBM_ASSERT(slot < p->slot_count);
    if (p->nodes[slot] == 0)
        return false;
    if (kvbm__node_tag(p->nodes[slot]) & TAG_TIMED)
        kvbm__timers_remove(&p->timers, slot);
    unplace(p, slot);
    p->held_count--;
    family_held(p, p->slots[slot].family, -1);
    return true;
}

/* The first slot of the first of `count` lists from `list` that has one. */
static uint32_t first_of(const struct prefix *p, uint32_t list, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (!kvbm__list_empty(p->nodes, p->slot_count + list + i))
            return kvbm__node_next(p->nodes[p->slot_count + list + i]);
    return NONE;
}

static uint32_t prefix_victim(struct kvbm_policy *policy, uint64_t now_ns) {
    struct prefix *p = prefix_of(policy);
    for (uint32_t slot; (slot = kvbm__timers_expired(&p->timers, now_ns)) != NONE;) {
        unplace(p, slot);
        p->slots[slot].level = 0;
        place(p, slot, false);
    }
    if (p->held_count == 0)
        return NONE;
    if (p->best == NONE || kvbm__list_empty(p->nodes, p->slot_count + p->best))
        list_find_best(p);
    uint32_t slot =
        p->best != NONE ? kvbm__node_next(p->nodes[p->slot_count + p->best]) : first_of(p, LIST_STUCK, LEVEL_COUNT);
    if (slot == NONE)
        slot = first_of(p, LIST_BLOCKED, LEVEL_COUNT);
    KVBM_ASSERT(slot < p->slot_count);
    const struct prefix_slot *s = &p->slots[slot];
    kvbm__ghosts_add(&p->ghosts, slot_digest(s), s->epoch % GHOST_EPOCHS * USES_COUNT + s->uses);
    bool held = prefix_remove(policy, slot);
    KVBM_ASSERT(held);
    return slot;
}

static void prefix_hit(struct kvbm_policy *policy, uint32_t slot) {
    struct prefix *p = prefix_of(policy);
    KVBM_ASSERT(slot < p->slot_count && p->slots[slot].published);
    struct prefix_slot *s = &p->slots[slot];
    learn_hit(p, s->uses, slot_age(p, s->epoch));
    if (s->uses < USES_MAX)
        s->uses++;
    learn_life(p, s);
}

static void prefix_forget(struct kvbm_policy *policy, uint32_t slot) {
    struct prefix *p = prefix_of(policy);
    KVBM_ASSERT(slot < p->slot_count);
    struct prefix_slot *s = &p->slots[slot];
    KVBM_ASSERT(s->published && p->nodes[slot] == 0);
    s->published = false;
    p->published_count--;
    if (s->family != NONE)
        family_leave(p, s->family);
    if (s->own != NONE)
        orphan_add(p, s->own);
}

static uint32_t prefix_count(const struct kvbm_policy *policy) {
    return ((const struct prefix *)policy)->held_count;
}

static uint64_t prefix_bytes(const struct kvbm_policy *policy) {
    return ((const struct prefix *)policy)->mapped_bytes;
}

static bool prefix_uses_clock(const struct kvbm_policy *policy) {
    return ((const struct prefix *)policy)->timers.count > 0;
}

/* ------------------------------------------------------------------------------------------------------------ check */

/* Whether a list is where `place` would put the slot today, or did when it was used last. */
static bool check_list(const struct prefix *p, uint32_t list, uint32_t slot) {
    const struct prefix_slot *s = &p->slots[slot];
    if (s->own != NONE)
        return list == (p->families[s->own].held_count > 0 ? LIST_BLOCKED : LIST_STUCK) + s->level;
    return list < LEAF_LISTS && list / (CLASS_COUNT * LIST_AGES) == s->level;
}

static uint64_t prefix_check(const struct kvbm_policy *policy) {
    const struct prefix *p = (const struct prefix *)policy;
    uint64_t violations = 0, held = 0, timed = 0, published = 0, children = 0, kids = 0, held_kids = 0,
             held_children = 0;
    for (uint32_t list = 0; list < LIST_COUNT; list++) {
        uint32_t head = p->slot_count + list, count = 0, previous = head;
        for (uint32_t at = kvbm__node_next(p->nodes[head]); at != head && count <= p->slot_count; count++) {
            violations += kvbm__node_previous(p->nodes[at]) != previous || !p->slots[at].published;
            violations += !check_list(p, list, at);
            timed += (kvbm__node_tag(p->nodes[at]) & TAG_TIMED) != 0;
            held_children += p->slots[at].family != NONE;
            previous = at;
            at = kvbm__node_next(p->nodes[at]);
        }
        held += count;
        if (list < LEAF_LISTS)
            violations +=
                (p->leaves[list / (CLASS_COUNT * LIST_AGES)][list / LIST_AGES % CLASS_COUNT] >> list % LIST_AGES & 1) !=
                (count > 0);
    }
    for (uint32_t slot = 0; slot < p->slot_count; slot++) {
        const struct prefix_slot *s = &p->slots[slot];
        if (!s->published)
            continue;
        published++;
        children += s->family != NONE;
        violations += s->family != NONE && p->families[s->family].kid_count == 0;
        violations += s->own != NONE && (p->families[s->own].parent != slot || p->families[s->own].kid_count == 0);
    }
    uint32_t families = 0, orphans = 0, unused = 0;
    for (uint32_t family = 0; family < p->family_fresh; family++) {
        const struct prefix_family *f = &p->families[family];
        families += f->kid_count > 0;
        orphans += f->kid_count > 0 && f->parent == NONE;
        kids += f->kid_count;
        held_kids += f->kid_count > 0 ? f->held_count : 0;
    }
    for (uint32_t at = p->family_free; at != 0 && unused <= p->family_fresh; at = p->families[at - 1].next)
        unused++;
    return violations + (held != p->held_count) + (timed != p->timers.count) + (published != p->published_count) +
           (kids != children) + (held_kids != held_children) + (orphans != p->orphan_count) +
           (families + unused != p->family_fresh);
}

const struct kvbm_policy_ops kvbm_policy_prefix = {
    .name = "prefix",
    .open = prefix_open,
    .close = prefix_close,
    .publish = prefix_publish,
    .insert = prefix_insert,
    .remove = prefix_remove,
    .victim = prefix_victim,
    .hit = prefix_hit,
    .forget = prefix_forget,
    .count = prefix_count,
    .bytes = prefix_bytes,
    .uses_clock = prefix_uses_clock,
    .check = prefix_check,
};
