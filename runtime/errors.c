/*
 * errors.c - names and texts of error codes. Owns nothing. Thread: any.
 */
#include "runtime/errors.h"

#include <stddef.h>
#include <string.h>

struct error_entry {
    int code;
    const char *name;
    const char *text;
};

static const struct error_entry entries[] = {
#define X(name, value, text) {value, "KVBM_E" #name, text},
    KVBM_ERROR_LIST(X)
#undef X
};

static const struct error_entry *find(unsigned magnitude) {
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        if ((unsigned)entries[i].code == magnitude)
            return &entries[i];
    }
    return NULL;
}

/* |code| without overflow for INT_MIN. */
static unsigned magnitude_of(int code) {
    return code < 0 ? 0u - (unsigned)code : (unsigned)code;
}

const char *kvbm_error_name_mt(int code) {
    unsigned magnitude = magnitude_of(code);
    const struct error_entry *entry = find(magnitude);
    if (entry != NULL)
        return entry->name;
    const char *name = magnitude == 0 || magnitude > 4095 ? NULL : strerrorname_np((int)magnitude);
    return name != NULL ? name : magnitude == 0 ? "OK" : "EUNKNOWN";
}

const char *kvbm_error_text_mt(int code) {
    unsigned magnitude = magnitude_of(code);
    const struct error_entry *entry = find(magnitude);
    if (entry != NULL)
        return entry->text;
    const char *text = magnitude > 4095 ? NULL : strerrordesc_np((int)magnitude);
    return text != NULL ? text : "unknown error";
}
