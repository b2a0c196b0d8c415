/*
 * memory.c - reads /proc/meminfo and the limits of control groups. See memory.h. Owns nothing; set-up only, any thread.
 *
 * A control group's usage counts page cache, which the kernel drops before it kills; so what is available below a limit
 * is limit - usage + cached file pages. A limit holds for all groups below it, hence the walk up to the root of the
 * hierarchy. In a container the path that /proc/self/cgroup names may not exist below /sys/fs/cgroup; the walk then
 * finds the container's own files at the root of the mount.
 */
#include "storage/memory.h"

#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MEMORY_TEXT_BYTES 16384

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Adds without passing KVBM_MEMORY_UNKNOWN. */
static uint64_t sum(uint64_t a, uint64_t b) {
    uint64_t c;
    return __builtin_add_overflow(a, b, &c) ? KVBM_MEMORY_UNKNOWN : c;
}

/* The first MEMORY_TEXT_BYTES - 1 bytes of root + path, as a string. */
static bool text_read(const char *root, const char *path, char text[MEMORY_TEXT_BYTES]) {
    char name[PATH_MAX];
    int length = snprintf(name, sizeof(name), "%s%s", root, path);
    if (length < 0 || (size_t)length >= sizeof(name))
        return false;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t used = 0;
    while (used < MEMORY_TEXT_BYTES - 1) {
        ssize_t n = read(fd, text + used, MEMORY_TEXT_BYTES - 1 - used);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    (void)close(fd);
    text[used] = '\0';
    return used > 0;
}

/* The number behind `label` at the start of a line, times `unit`; KVBM_MEMORY_UNKNOWN if there is none. Behind the
 * number stands a blank or the end of the line. */
static uint64_t text_field(const char *text, const char *label, uint64_t unit) {
    size_t length = strlen(label);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, label, length) != 0)
            continue;
        const char *digits = line + length + strspn(line + length, " \t");
        const char *end = digits;
        uint64_t value = 0;
        bool fits = true;
        for (; *end >= '0' && *end <= '9'; end++)
            fits = fits && !__builtin_mul_overflow(value, UINT64_C(10), &value) &&
                   !__builtin_add_overflow(value, (uint64_t)(*end - '0'), &value);
        if (end == digits || strchr(" \t\n", *end) == NULL || !fits || __builtin_mul_overflow(value, unit, &value))
            return KVBM_MEMORY_UNKNOWN;
        return value;
    }
    return KVBM_MEMORY_UNKNOWN;
}

static uint64_t field_or_zero(const char *text, const char *label, uint64_t unit) {
    uint64_t value = text_field(text, label, unit);
    return value != KVBM_MEMORY_UNKNOWN ? value : 0;
}

/* One number in a file: a limit ("max" is none) or a usage. */
static uint64_t file_number(const char *root, const char *directory, const char *file) {
    char path[PATH_MAX], text[MEMORY_TEXT_BYTES];
    int length = snprintf(path, sizeof(path), "%s/%s", directory, file);
    if (length < 0 || (size_t)length >= sizeof(path) || !text_read(root, path, text))
        return KVBM_MEMORY_UNKNOWN;
    return text_field(text, "", 1);
}

/* Names of the files of one version of control groups. */
struct group_files {
    const char *mount, *limit, *usage;
    const char *inactive, *active; /* lines of memory.stat */
};

static const struct group_files group_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ",
                                            "active_file "};
static const struct group_files group_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                            "total_inactive_file ", "total_active_file "};

/* Applies the limit, if any, of the group whose files lie in `directory`. */
static void group_apply(const char *root, const char *directory, const struct group_files *files,
                        struct kvbm_memory *memory) {
    uint64_t limit = file_number(root, directory, files->limit);
    if (limit == KVBM_MEMORY_UNKNOWN)
        return;
    memory->total_bytes = smaller(memory->total_bytes, limit);
    uint64_t usage = file_number(root, directory, files->usage);
    if (usage == KVBM_MEMORY_UNKNOWN)
        return;
    uint64_t cached = 0;
    char path[PATH_MAX], text[MEMORY_TEXT_BYTES];
    int length = snprintf(path, sizeof(path), "%s/memory.stat", directory);
    if (length > 0 && (size_t)length < sizeof(path) && text_read(root, path, text))
        cached = sum(field_or_zero(text, files->inactive, 1), field_or_zero(text, files->active, 1));
    uint64_t fixed = usage > cached ? usage - cached : 0;
    memory->available_bytes = smaller(memory->available_bytes, limit > fixed ? limit - fixed : 0);
}

/* Applies the group named `path` ("/a/b", of `length` characters) and each one around it. */
static void group_walk(const char *root, const char *path, size_t length, const struct group_files *files,
                       struct kvbm_memory *memory) {
    char directory[PATH_MAX];
    int written = snprintf(directory, sizeof(directory), "%s%.*s", files->mount, (int)length, path);
    if (written < 0 || (size_t)written >= sizeof(directory))
        return;
    char *mount_end = directory + strlen(files->mount);
    for (;;) {
        group_apply(root, directory, files, memory);
        char *slash = strrchr(mount_end, '/');
        if (slash == NULL)
            return;
        *slash = '\0';
    }
}

/* Lines are "number:controllers:path"; version 2 has number 0 and no controllers. */
static void groups_apply(const char *root, struct kvbm_memory *memory) {
    char text[MEMORY_TEXT_BYTES];
    if (!text_read(root, "/proc/self/cgroup", text))
        return;
    for (char *line = text, *next; line != NULL && *line != '\0'; line = next) {
        next = strchr(line, '\n');
        size_t length = next != NULL ? (size_t)(next - line) : strlen(line);
        next = next != NULL ? next + 1 : NULL;
        char *controllers = memchr(line, ':', length);
        char *path =
            controllers != NULL ? memchr(controllers + 1, ':', length - (size_t)(controllers + 1 - line)) : NULL;
        if (path == NULL || path[1] != '/' || length >= PATH_MAX)
            continue;
        size_t path_length = length - (size_t)(path + 1 - line);
        size_t name_length = (size_t)(path - controllers - 1);
        if (name_length == 0)
            group_walk(root, path + 1, path_length, &group_v2, memory);
        else if (name_length == strlen("memory") && strncmp(controllers + 1, "memory", name_length) == 0)
            group_walk(root, path + 1, path_length, &group_v1, memory);
    }
}

void kvbm_memory_read(const char *root, struct kvbm_memory *memory) {
    char text[MEMORY_TEXT_BYTES];
    *memory = (struct kvbm_memory){KVBM_MEMORY_UNKNOWN, KVBM_MEMORY_UNKNOWN, 0};
    if (text_read(root, "/proc/meminfo", text)) {
        uint64_t total = text_field(text, "MemTotal:", 1024);
        memory->total_bytes = sum(total, field_or_zero(text, "SwapTotal:", 1024));
        memory->available_bytes = text_field(text, "MemAvailable:", 1024);
        uint64_t huge_free = field_or_zero(text, "HugePages_Free:", 1);
        uint64_t huge_reserved = field_or_zero(text, "HugePages_Rsvd:", 1);
        uint64_t huge_bytes = field_or_zero(text, "Hugepagesize:", 1024);
        if (huge_free > huge_reserved &&
            __builtin_mul_overflow(huge_free - huge_reserved, huge_bytes, &memory->huge_free_bytes))
            memory->huge_free_bytes = 0;
    }
    groups_apply(root, memory);
}
