/*
 * disk_bench.c - the disk store against fio: the same engine, depth, size, O_DIRECT and kind of file, in turn, in the
 * same run. fio's command is skipped, and the reference null, where there is no fio.
 *
 *   disk_read_SIZE, disk_write_SIZE   GB/s of blocks of 64 KiB to 8 MiB at depth 16, with checksums; write includes the
 *                                     records. Reference: fio, which does neither. CPU time a GB with and without
 *                                     checksums is among the conditions.
 *   disk_mixed_p99                    p99 of reads of 256 KiB while writes come at full rate, us. Reference: fio with
 *                                     half reads, half writes.
 *   disk_open_1m                      opening a file of 1,000,000 whole records, ms
 *
 *   --dir DIR   where the files go: a folder on the disk to be measured (default: one in /var/tmp); --seconds N of each
 *               measurement (default 2)
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <uv.h>

#include "bench/bench.h"
#include "storage/checksum.h"
#include "storage/disk.h"

#define DEPTH      16u
#define FILE_BYTES (UINT64_C(1) << 30)
#define ROUNDS     3
#define SAMPLE_MAX 200000u

static const char *dir = "/var/tmp/kvbm-bench";
static double seconds = 2;
static uv_loop_t loop;

struct worker {
    struct kvbm_tier_io io;
    struct kvbm_tier_item item;
    struct kvbm_tier_segment segment;
    struct load *load;
    uint64_t start_ns;
};

/* Reads, writes or both, kept at a depth for a time. */
struct load {
    struct kvbm_store *store;
    struct worker workers[2 * DEPTH];
    uint32_t worker_count, out;
    uint64_t end_ns, done_count, next;
    uint32_t blocks;
    uint32_t sample_count;
    double *samples; /* us, of reads */
};

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void label_of(uint32_t slot, struct kvbm_tier_label *label) {
    memset(label, 0, sizeof *label);
    memcpy(label->key, &slot, sizeof slot);
}

static void worker_go(struct load *load, struct worker *worker);

static void on_done(struct kvbm_tier_io *io) {
    struct worker *worker = io->user;
    struct load *load = worker->load;
    if (io->status != 0 && io->status != -EBUSY)
        bench_die("disk request", io->status);
    uint64_t now_ns = bench_now_ns();
    load->out--;
    load->done_count++;
    if (io->op == KVBM_TIER_READ && load->samples != NULL && load->sample_count < SAMPLE_MAX)
        load->samples[load->sample_count++] = (double)(now_ns - worker->start_ns) / 1e3;
    if (now_ns < load->end_ns)
        worker_go(load, worker);
}

/* Slots in an order that no read-ahead of the device follows. */
static void worker_go(struct load *load, struct worker *worker) {
    worker->item.slot = (uint32_t)(load->next++ * UINT64_C(2654435761) % load->blocks);
    label_of(worker->item.slot, &worker->item.label);
    worker->start_ns = bench_now_ns();
    bench_must("submit", load->store->ops->submit(load->store, &worker->io));
    load->out++;
}

static void load_run(struct load *load, int op, uint8_t *memory, uint64_t bytes, double for_s) {
    uint64_t start_ns = bench_now_ns();
    load->done_count = 0;
    load->end_ns = start_ns + (uint64_t)(for_s * 1e9);
    for (uint32_t i = 0; i < load->worker_count; i++) {
        struct worker *w = &load->workers[i];
        *w = (struct worker){.load = load, .segment = {memory + i * bytes, bytes}};
        w->item = (struct kvbm_tier_item){.segments = &w->segment, .segment_count = 1};
        int mine = op != 0 ? op : i % 2 == 0 ? KVBM_TIER_READ : KVBM_TIER_WRITE;
        w->io = (struct kvbm_tier_io){.op = mine, .item_count = 1, .items = &w->item, .done = on_done, .user = w};
        worker_go(load, w);
    }
    while (load->out > 0)
        uv_run(&loop, UV_RUN_ONCE);
}

/* ------------------------------------------------------------------------------------------------------------ store */

static struct kvbm_store *open_store(uint64_t bytes, uint32_t blocks, int mode, bool verify, const struct iovec *memory,
                                     struct kvbm_disk_info *info) {
    char path[512];
    const char *paths[] = {path};
    snprintf(path, sizeof path, "%s/disk_bench.slab", dir);
    struct kvbm_disk_options options = {
        .os = kvbm_os_real(),
        .loop = &loop,
        .files = {.paths = paths, .path_count = 1, .payload_bytes = bytes, .capacity_blocks = blocks, .mode = mode},
        .skip_verify = !verify,
        .depth = 2 * DEPTH,
        .shed_wait_ns = UINT64_MAX,
        .buffers = memory,
        .buffer_count = memory != NULL,
    };
    struct kvbm_disk_failure failure;
    struct kvbm_store *store = NULL;
    int rc = kvbm_disk_open(&store, &options, &failure);
    if (rc != 0) {
        fprintf(stderr, "bench: %s\n", failure.text);
        bench_die("kvbm_disk_open", rc);
    }
    if (info != NULL)
        kvbm_disk_info(store, info);
    return store;
}

static void on_closed(void *arg) {
    *(bool *)arg = true;
}

static void close_store(struct kvbm_store *store) {
    bool closed = false;
    store->ops->close(store, on_closed, &closed);
    while (!closed)
        uv_run(&loop, UV_RUN_ONCE);
}

static void fill_store(struct load *load, uint8_t *memory, uint64_t bytes) {
    bool all = false;
    load->next = 0;
    while (!all) { /* the order visits each slot once, if blocks is no multiple of its step */
        load_run(load, KVBM_TIER_WRITE, memory, bytes, 0.2);
        struct kvbm_tier_stats stats;
        load->store->ops->stats_mt(load->store, &stats);
        all = stats.resident_blocks == load->blocks;
    }
}

/* -------------------------------------------------------------------------------------------------------------- fio */

/* GB/s of a job, or with `p99` the p99 of its reads in us; -1: no fio. */
static double fio_run(const char *rw, uint64_t bytes, bool p99) {
    char command[1024], text[256];
    snprintf(command, sizeof command,
             "fio --name=a --filename='%s/disk_bench.fio' --size=%llu --bs=%llu --rw=%s --ioengine=io_uring --direct=1 "
             "--iodepth=%u --fixedbufs=1 --registerfiles=1 --fallocate=native --time_based --runtime=%.2f "
             "--randrepeat=0 --norandommap --output-format=terse --terse-version=3 2>/dev/null | tail -1 | "
             "awk -F';' '{ b = $7 + $48; split($30, p, \"=\"); print (%d ? p[2] : b * 1024 / 1e9) }'",
             dir, (unsigned long long)FILE_BYTES, (unsigned long long)bytes, rw, p99 ? 2 * DEPTH : DEPTH, seconds, p99);
    bench_command(command, text, sizeof text);
    return text[0] != '\0' && strtod(text, NULL) > 0 ? strtod(text, NULL) : -1;
}

/* --------------------------------------------------------------------------------------------------------- results */

static void size_name(uint64_t bytes, char *text, size_t size) {
    if (bytes >= 1 << 20)
        snprintf(text, size, "%llum", (unsigned long long)(bytes >> 20));
    else
        snprintf(text, size, "%lluk", (unsigned long long)(bytes >> 10));
}

/* Bytes that no device can compress. */
static void fill(uint8_t *memory, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes; at += sizeof(kvbm_key)) {
        kvbm_key key = bench_key(at);
        memcpy(memory + at, &key, sizeof key);
    }
}

/* One size, both directions; ours and fio's in turn, so that both see the same device. */
static void bench_size(uint64_t bytes) {
    uint32_t blocks = (uint32_t)(FILE_BYTES / bytes) | 1;
    uint8_t *memory = aligned_alloc(4096, DEPTH * bytes);
    if (memory == NULL)
        bench_die("aligned_alloc", -ENOMEM);
    fill(memory, DEPTH * bytes);
    struct iovec buffer = {memory, DEPTH * bytes};
    struct kvbm_disk_info info;
    static struct load load;
    load = (struct load){.worker_count = DEPTH, .blocks = blocks};
    load.store = open_store(bytes, blocks, KVBM_DISK_FORMAT, true, &buffer, &info);
    fill_store(&load, memory, bytes);
    for (int op = KVBM_TIER_READ; op <= KVBM_TIER_WRITE; op++) {
        const char *rw = op == KVBM_TIER_READ ? "randread" : "randwrite";
        double ours[ROUNDS], theirs[ROUNDS], cpu_gb = 0, cpu_gb_unchecked = 0;
        bool have = true;
        fio_run(rw, bytes, false); /* lays its file out */
        for (int round = 0; round < ROUNDS; round++) {
            double cpu = cpu_s();
            uint64_t start_ns = bench_now_ns();
            load_run(&load, op, memory, bytes, seconds);
            double gb = (double)(load.done_count * bytes) / 1e9;
            ours[round] = gb / (1e-9 * (double)(bench_now_ns() - start_ns));
            cpu_gb = (cpu_s() - cpu) / gb;
            theirs[round] = fio_run(rw, bytes, false);
            have = have && theirs[round] > 0;
        }
        if (op == KVBM_TIER_READ) {
            struct kvbm_store *checked = load.store;
            close_store(checked);
            load.store = open_store(bytes, blocks, KVBM_DISK_OPEN, false, &buffer, &info);
            double cpu = cpu_s();
            load_run(&load, op, memory, bytes, seconds);
            cpu_gb_unchecked = (cpu_s() - cpu) / ((double)(load.done_count * bytes) / 1e9);
            close_store(load.store);
            load.store = open_store(bytes, blocks, KVBM_DISK_OPEN, true, &buffer, &info);
        }
        char name[64], size[16], unchecked[64] = "";
        size_name(bytes, size, sizeof size);
        snprintf(name, sizeof name, "disk_%s_%s", op == KVBM_TIER_READ ? "read" : "write", size);
        if (op == KVBM_TIER_READ)
            snprintf(unchecked, sizeof unchecked, ", \"cpu_ms_per_gb_unchecked\": %.4g", 1e3 * cpu_gb_unchecked);
        struct bench_summary reference = bench_summarize(theirs, ROUNDS, 1);
        bench_report(&(struct bench_result){.name = name,
                                            .unit = "GB/s",
                                            .value = bench_summarize(ours, ROUNDS, 1),
                                            .reference_name = have ? "fio, same engine, depth, size and folder" : NULL,
                                            .reference_value = reference.median},
                     "\"depth\": %u, \"backend\": \"%s\", \"direct\": %d, \"fixed_buffers\": %d, "
                     "\"cpu_ms_per_gb\": %.4g%s",
                     DEPTH, info.backend, info.direct, info.fixed_buffers, 1e3 * cpu_gb, unchecked);
    }
    close_store(load.store);
    free(memory);
}

static void bench_mixed(void) {
    uint64_t bytes = 256 << 10;
    uint32_t blocks = (uint32_t)(FILE_BYTES / bytes) | 1;
    uint8_t *memory = aligned_alloc(4096, 2 * DEPTH * bytes);
    static struct load load;
    double ours[ROUNDS], theirs[ROUNDS];
    bool have = true;
    if (memory == NULL)
        bench_die("aligned_alloc", -ENOMEM);
    fill(memory, 2 * DEPTH * bytes);
    struct iovec buffer = {memory, 2 * DEPTH * bytes};
    load = (struct load){.worker_count = DEPTH, .blocks = blocks, .samples = bench_alloc(SAMPLE_MAX, sizeof(double))};
    load.store = open_store(bytes, blocks, KVBM_DISK_FORMAT, true, &buffer, NULL);
    fill_store(&load, memory, bytes);
    load.worker_count = 2 * DEPTH;
    double rate = 0;
    for (int round = 0; round < ROUNDS; round++) {
        load.sample_count = 0;
        load_run(&load, 0, memory, bytes, seconds);
        rate = (double)(load.done_count * bytes) / 1e9 / seconds;
        qsort(load.samples, load.sample_count, sizeof(double), bench_order);
        ours[round] = load.sample_count > 0 ? load.samples[(uint64_t)load.sample_count * 99 / 100] : 0;
        theirs[round] = fio_run("randrw", bytes, true);
        have = have && theirs[round] > 0;
    }
    struct bench_summary reference = bench_summarize(theirs, ROUNDS, 1);
    bench_report(&(struct bench_result){.name = "disk_mixed_p99",
                                        .unit = "us",
                                        .value = bench_summarize(ours, ROUNDS, 1),
                                        .reference_name = have ? "fio randrw, same depth and size" : NULL,
                                        .reference_value = reference.median},
                 "\"reads\": %u, \"writes\": %u, \"block_bytes\": %llu, \"both_gb_s\": %.4g", DEPTH, DEPTH,
                 (unsigned long long)bytes, rate);
    close_store(load.store);
    free(load.samples);
    free(memory);
}

/* A million whole records, put there by hand: their blocks are of one page. */
static void write_records(const char *path) {
    enum { BATCH = 8192 };
    struct kvbm_disk_header header;
    struct kvbm_disk_failure failure;
    bench_must("inspect", kvbm_disk_file_inspect(path, &header, &failure));
    uint8_t *buffer = bench_alloc(BATCH, KVBM_DISK_RECORD_BYTES);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bench_must("open", fd);
    for (uint32_t slot = 0; slot < header.slot_count;) {
        uint32_t n = header.slot_count - slot < BATCH ? header.slot_count - slot : BATCH;
        for (uint32_t i = 0; i < n; i++) {
            struct kvbm_disk_record record = {.slot = slot + i, .generation = slot + i + 1};
            label_of(slot + i, &record.label);
            kvbm_disk_record_encode(&header, &record, buffer + i * KVBM_DISK_RECORD_BYTES);
        }
        bench_must("pwrite",
                   pwrite(fd, buffer, (size_t)n * KVBM_DISK_RECORD_BYTES, (off_t)kvbm_disk_record_at(&header, slot)));
        slot += n;
    }
    bench_must("fsync", fsync(fd));
    close(fd);
    free(buffer);
}

static void bench_open(void) {
    enum { COUNT = 1000000, TRIES = 5 };
    char path[512];
    struct kvbm_disk_info info;
    double cold[TRIES], warm[TRIES];
    snprintf(path, sizeof path, "%s/disk_bench.slab", dir);
    close_store(open_store(4096, COUNT, KVBM_DISK_FORMAT, true, NULL, NULL));
    write_records(path);
    for (int i = 0; i < 2 * TRIES; i++) {
        if (i % 2 == 0) { /* as after a boot */
            int fd = open(path, O_RDONLY | O_CLOEXEC);
            bench_must("posix_fadvise", -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
            close(fd);
        }
        uint64_t start_ns = bench_now_ns();
        struct kvbm_store *store = open_store(4096, COUNT, KVBM_DISK_OPEN, true, NULL, &info);
        *(i % 2 == 0 ? &cold[i / 2] : &warm[i / 2]) = (double)(bench_now_ns() - start_ns) / 1e6;
        if (info.records_whole != COUNT)
            bench_die("records found", (long)info.records_whole);
        close_store(store);
    }
    double warm_ms = bench_summarize(warm, TRIES, 1).median;
    bench_report(&(struct bench_result){.name = "disk_open_1m",
                                        .unit = "ms",
                                        .value = bench_summarize(cold, TRIES, 1),
                                        .reference_name = "target: 1 s",
                                        .reference_value = 1000,
                                        .target_value = 1000},
                 "\"cached_ms\": %.4g, \"bytes_per_block\": %.4g", warm_ms, (double)info.memory_bytes / COUNT);
}

int main(int argc, char **argv) {
    char path[512];
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--dir") == 0)
            dir = argv[i + 1];
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = strtod(argv[i + 1], NULL);
    }
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        bench_die("mkdir of --dir", -errno);
    bench_must("uv_loop_init", uv_loop_init(&loop));
    for (uint64_t bytes = 64 << 10; bytes <= 8 << 20; bytes *= bytes < 1 << 20 ? 4 : 8)
        bench_size(bytes);
    bench_mixed();
    bench_open();
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/disk_bench.%s", dir, i == 0 ? "slab" : "fio");
        unlink(path);
    }
    rmdir(dir); /* unless something else is in it */
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop) == 0 ? 0 : 1;
}
