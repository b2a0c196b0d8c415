/*
 * policy.c - the eviction policies by name. Owns nothing; any thread.
 */
#include "actors/policy.h"

#include <stddef.h>
#include <string.h>

static const struct kvbm_policy_ops *const policies[] = {
#define X(name) &kvbm_policy_##name,
    KVBM_POLICY_LIST(X)
#undef X
};

const struct kvbm_policy_ops *kvbm_policy_find(const char *name) {
    if (name == NULL)
        return NULL;
    for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    }
    return NULL;
}

const char *kvbm_policy_names(void) {
#define X(name) ", " #name
    static const char names[] = KVBM_POLICY_LIST(X);
#undef X
    return names + 2;
}
