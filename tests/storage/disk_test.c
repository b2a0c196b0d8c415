/*
 * disk_test.c - the disk store moves bytes: sizes, segments, alignments, stripes, both backends, through closing and
 * opening; and it keeps its bounds: lines, deadlines, cancellation, shedding, close.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/errors.h"
#include "storage/checksum.h"
#include "tests/storage/disk_kit.h"
#include "tests/support/random.h"

#define MS UINT64_C(1000000)

/* The loop index of a test: backend and O_DIRECT. */
static void choose(struct kit *kit, int form) {
    kit->options.backend = form % 2 == 0 ? KVBM_DISK_URING : KVBM_DISK_THREADS;
    kit->options.files.no_direct = form >= 2;
}

static void open_fresh(struct kit *kit) {
    int rc = kit_open(kit, KVBM_DISK_CREATE);
    ck_assert_msg(rc == 0, "%d %s", rc, kit->failure.text);
}

static void open_again(struct kit *kit) {
    kit_close(kit);
    int rc = kit_open(kit, KVBM_DISK_OPEN);
    ck_assert_msg(rc == 0, "%d %s", rc, kit->failure.text);
}

/* A store with the failing backend in front, one file, threads behind. */
static void open_faulty(struct kit *kit, uint32_t blocks) {
    kit_init(kit, NULL, 1, 8192, blocks);
    kit->faulty = true;
    kit->options.backend = KVBM_DISK_THREADS;
    kit->options.depth = 2;
    kit->options.write_depth_mixed = 1;
    kit->options.line_items = 4;
    kit->options.probe_ns = 20 * MS;
    kit->options.error_limit = 3;
    open_fresh(kit);
}

static uint64_t now_ns(void) {
    return kvbm_os_real()->now_ns(kvbm_os_real()->ctx);
}

/* ------------------------------------------------------------------------------------------------------- round trips */

START_TEST(what_is_written_is_read_before_and_after_opening_again) {
    struct kit kit;
    kit_init(&kit, NULL, 2, 65536, 9);
    choose(&kit, _i);
    open_fresh(&kit);
    for (uint32_t slot = 0; slot < 9; slot++) {
        ck_assert_int_eq(kit_read(&kit, slot, 1), -ENOENT);
        ck_assert_int_eq(kit_write(&kit, slot, 1), 0);
        ck_assert_int_eq(kit_read(&kit, slot, 1), 0);
        ck_assert_int_eq(kit_read(&kit, slot, 2), -ENOENT);
    }
    ck_assert_int_eq(kit_write(&kit, 3, 2), 0);
    ck_assert_int_eq(kit_erase(&kit, 4), 0);
    ck_assert_int_eq(kit_flush(&kit), 0);
    struct kvbm_tier_stats stats = kit_stats(&kit);
    ck_assert_uint_eq(stats.resident_blocks, 8);
    ck_assert_uint_eq(stats.write_count, 10);
    ck_assert_uint_eq(stats.read_count, 9);
    ck_assert_uint_eq(stats.miss_count, 18);
    ck_assert_uint_eq(stats.erase_count, 1);
    ck_assert_uint_eq(stats.flush_count, 1);
    open_again(&kit);
    ck_assert_uint_eq(kit_stats(&kit).resident_blocks, 8);
    for (uint32_t slot = 0; slot < 9; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, slot == 3 ? 2 : 1), slot == 4 ? -ENOENT : 0);
    ck_assert_int_eq(kit_read(&kit, 3, 1), -ENOENT);
    kit_end(&kit);
}
END_TEST

static const uint64_t sizes[] = {1, 511, 4096, 4097, 12288, 100000, 1 << 20, (4 << 20) + 4096};
#define SIZE_COUNT ((int)(sizeof sizes / sizeof sizes[0]))

START_TEST(every_size_makes_the_round_trip) {
    struct kit kit;
    kit_init(&kit, NULL, 1 + (uint32_t)_i % 3, sizes[_i % SIZE_COUNT], 5);
    choose(&kit, _i / SIZE_COUNT);
    open_fresh(&kit);
    for (uint32_t slot = 0; slot < 5; slot++)
        ck_assert_int_eq(kit_write(&kit, slot, slot + 7), 0);
    for (uint32_t slot = 0; slot < 5; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, slot + 7), 0);
    open_again(&kit);
    for (uint32_t slot = 0; slot < 5; slot++)
        ck_assert_int_eq(kit_read(&kit, slot, slot + 7), 0);
    kit_end(&kit);
}
END_TEST

/* Cuts the io's memory into `count` segments; aligned: at whole pages. */
static void cut(struct kit_io *io, uint64_t *seed, uint32_t count, bool aligned) {
    uint64_t left = io->bytes, at = 0;
    free(io->segments);
    io->segments = calloc(count, sizeof *io->segments);
    ck_assert_ptr_nonnull(io->segments);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes = i + 1 == count ? left : random_below(seed, (uint32_t)(2 * left / (count - i)) + 1);
        if (i + 1 < count && aligned)
            bytes &= ~UINT64_C(4095);
        io->segments[i] = (struct kvbm_tier_segment){io->memory + at, bytes};
        at += bytes;
        left -= bytes;
    }
    io->item.segments = io->segments;
    io->item.segment_count = count;
}

START_TEST(segments_of_any_cut_hold_the_same_bytes) {
    struct kit kit;
    uint64_t seed = 77 + (uint64_t)_i;
    kit_init(&kit, NULL, 1, 1 << 18, 4);
    choose(&kit, _i);
    open_fresh(&kit);
    for (uint32_t round = 0; round < 60; round++) {
        struct kit_io write, read;
        uint32_t slot = round % 4;
        kit_io_init(&kit, &write, KVBM_TIER_WRITE, slot, round);
        kit_io_init(&kit, &read, KVBM_TIER_READ, slot, round);
        cut(&write, &seed, 1 + random_below(&seed, 40), round % 3 == 0);
        cut(&read, &seed, 1 + random_below(&seed, 40), round % 2 == 0);
        ck_assert_int_eq(kit_submit(&kit, &write), 0);
        kit_until(&kit, &write.done);
        ck_assert_int_eq(write.item.status, 0);
        ck_assert_int_eq(kit_submit(&kit, &read), 0);
        kit_until(&kit, &read.done);
        ck_assert_int_eq(read.item.status, 0);
        ck_assert(kit_is(read.memory, read.bytes, slot, round));
        ck_assert_uint_eq(read.item.checksum, kvbm_checksum_mt(read.memory, read.bytes));
        ck_assert_uint_eq(read.item.checksum, write.item.checksum);
        kit_io_free(&write);
        kit_io_free(&read);
    }
    kit_end(&kit);
}
END_TEST

START_TEST(registered_memory_and_other_memory_both_work) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 65536, 8);
    kit.options.backend = KVBM_DISK_URING;
    uint8_t *slab = aligned_alloc(4096, 8 * 65536);
    ck_assert_ptr_nonnull(slab);
    struct iovec buffer = {slab, 8 * 65536};
    kit.options.buffers = &buffer;
    kit.options.buffer_count = 1;
    open_fresh(&kit);
    struct kvbm_disk_info info;
    kvbm_disk_info(kit.store, &info);
    ck_assert_str_eq(info.backend, "io_uring");
    ck_assert(info.fixed_files);
    ck_assert(info.fixed_buffers || kit_logged(&kit, "not registered"));
    for (uint32_t slot = 0; slot < 8; slot++) {
        struct kit_io io;
        kit_io_init(&kit, &io, KVBM_TIER_WRITE, slot, 1);
        memcpy(slab + slot * 65536, io.memory, 65536);
        io.segments[0].address = slab + slot * 65536;
        ck_assert_int_eq(kit_submit(&kit, &io), 0);
        kit_until(&kit, &io.done);
        ck_assert_int_eq(io.item.status, 0);
        kit_io_free(&io);
        ck_assert_int_eq(kit_read(&kit, slot, 1), 0);
    }
    kit_end(&kit);
    free(slab);
}
END_TEST

START_TEST(many_requests_of_many_items_all_end_once_with_the_right_bytes) {
    enum { IOS = 12, ITEMS = 5, BLOCKS = IOS * ITEMS };
    struct kit kit;
    kit_init(&kit, NULL, 3, 16384, BLOCKS);
    choose(&kit, _i);
    kit.options.line_items = BLOCKS;
    open_fresh(&kit);
    uint8_t *memory = aligned_alloc(4096, BLOCKS * 16384);
    struct kvbm_tier_segment *segments = calloc(BLOCKS, sizeof *segments);
    struct kvbm_tier_item *items = calloc(BLOCKS, sizeof *items);
    struct kit_io ios[IOS];
    ck_assert(memory != NULL && segments != NULL && items != NULL);
    for (int op = KVBM_TIER_WRITE; op >= KVBM_TIER_READ; op--) {
        for (uint32_t b = 0; b < BLOCKS; b++) {
            if (op == KVBM_TIER_WRITE)
                kit_fill(memory + b * 16384, 16384, b, 3);
            segments[b] = (struct kvbm_tier_segment){memory + b * 16384, 16384};
            items[b] = (struct kvbm_tier_item){.slot = b, .segments = &segments[b], .segment_count = 1};
            kit_label(b, 3, &items[b].label);
        }
        for (int i = 0; i < IOS; i++) {
            kit_io_init(&kit, &ios[i], op, 0, 0);
            ios[i].io.items = items + i * ITEMS;
            ios[i].io.item_count = ITEMS;
            ck_assert_int_eq(kit_submit(&kit, &ios[i]), 0);
        }
        for (int i = 0; i < IOS; i++) {
            kit_until(&kit, &ios[i].done);
            ck_assert_int_eq(ios[i].io.status, 0);
            kit_io_free(&ios[i]);
        }
        for (uint32_t b = 0; b < BLOCKS; b++)
            ck_assert(kit_is(memory + b * 16384, 16384, b, 3));
        memset(memory, 0, BLOCKS * 16384);
    }
    kit_end(&kit);
    free(memory);
    free(segments);
    free(items);
}
END_TEST

struct found {
    uint32_t count, slots;
    uint64_t generations[8];
};

static void on_found(void *arg, uint32_t slot, const struct kvbm_tier_label *label, uint64_t generation) {
    struct found *found = arg;
    struct kvbm_tier_label wanted;
    ck_assert_uint_lt(slot, 8);
    kit_label(slot, slot, &wanted);
    ck_assert_mem_eq(label->key, wanted.key, 16);
    ck_assert_mem_eq(label->parent, wanted.parent, 16);
    ck_assert_uint_eq(label->group, wanted.group);
    ck_assert_uint_eq(label->depth, wanted.depth);
    ck_assert_uint_eq(label->priority, wanted.priority);
    ck_assert((found->slots & 1u << slot) == 0);
    found->slots |= 1u << slot;
    found->generations[slot] = generation;
    found->count++;
}

START_TEST(a_scan_finds_labels_in_the_order_of_writing) {
    struct kit kit;
    kit_init(&kit, NULL, 3, 4096, 8);
    open_fresh(&kit);
    for (uint32_t i = 8; i-- > 0;)
        ck_assert_int_eq(kit_write(&kit, i, i), 0);
    ck_assert_int_eq(kit_erase(&kit, 5), 0);
    open_again(&kit);
    struct found found = {0};
    ck_assert_int_eq(kit.store->ops->scan(kit.store, on_found, &found), 0);
    ck_assert_uint_eq(found.slots, 0xff & ~(1u << 5));
    for (uint32_t i = 1; i < 8; i++)
        if (i != 5 && i != 6)
            ck_assert_uint_lt(found.generations[i], found.generations[i - 1]);
    ck_assert_int_eq(kit_write(&kit, 5, 5), 0);
    open_again(&kit);
    found = (struct found){0};
    ck_assert_int_eq(kit.store->ops->scan(kit.store, on_found, &found), 0);
    ck_assert_uint_gt(found.generations[5], found.generations[0]); /* generations go on after opening */
    kit_end(&kit);
}
END_TEST

START_TEST(tmpfs_works_with_or_without_direct_io) {
    struct kit kit;
    if (access("/dev/shm", W_OK) != 0)
        return;
    kit_init(&kit, "/dev/shm", 1, 10000, 4);
    choose(&kit, _i);
    open_fresh(&kit);
    ck_assert_int_eq(kit_write(&kit, 2, 9), 0);
    open_again(&kit);
    ck_assert_int_eq(kit_read(&kit, 2, 9), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(bad_requests_are_refused_and_stay_the_callers) {
    struct kit kit;
    struct kit_io io;
    kit_init(&kit, NULL, 1, 4096, 4);
    open_fresh(&kit);
    for (int i = 0; i < 8; i++) {
        kit_io_init(&kit, &io, i == 6 ? KVBM_TIER_FLUSH : KVBM_TIER_WRITE, 0, 1);
        if (i == 0)
            io.item.slot = 4;
        else if (i == 1)
            io.segments[0].bytes = 4095;
        else if (i == 2)
            io.segments[0].bytes = UINT64_MAX;
        else if (i == 3)
            io.item.segment_count = 0;
        else if (i == 4)
            io.io.item_count = 0;
        else if (i == 5)
            io.io.item_count = kit.store->items_max + 1;
        else if (i == 6)
            io.io.item_count = 1;
        else
            io.io.op = 5;
        ck_assert_int_eq(kit_submit(&kit, &io), -EINVAL);
        kit_run_ms(&kit, 2);
        ck_assert(!io.done);
        kit_io_free(&io);
    }
    kit_end(&kit);
}
END_TEST

/* ------------------------------------------------------------------------------------------------------------ bounds */

START_TEST(a_passed_deadline_is_told_early_and_memory_comes_back_late) {
    struct kit kit;
    struct kit_io io;
    open_faulty(&kit, 4);
    ck_assert_int_eq(kit_write(&kit, 1, 1), 0);
    int op = _i == 0 ? KVBM_TIER_READ : KVBM_TIER_WRITE;
    kit.fault = (struct kit_fault){
        .kinds = 1u << KVBM_DISK_READ | 1u << KVBM_DISK_WRITE, .count = 1, .hold = true, .after = true};
    kit_io_init(&kit, &io, op, 1, op == KVBM_TIER_READ ? 1 : 2);
    io.io.deadline_ns = now_ns() + 20 * MS;
    ck_assert_int_eq(kit_submit(&kit, &io), 0);
    kit_until(&kit, &io.late);
    ck_assert_uint_ge(now_ns(), io.io.deadline_ns);
    kit_run_ms(&kit, 20);
    ck_assert(!io.done);
    kit_release(&kit);
    kit_until(&kit, &io.done);
    ck_assert_int_eq(io.item.status, -ETIMEDOUT);
    kit_io_free(&io);
    struct kvbm_tier_stats stats = kit_stats(&kit);
    ck_assert_uint_eq(stats.late_count, 1);
    ck_assert_uint_eq(stats.timed_out_count, 1);
    /* A late read has changed nothing; a late write has taken the block that was there. */
    ck_assert_int_eq(kit_read(&kit, 1, 1), op == KVBM_TIER_READ ? 0 : -ENOENT);
    ck_assert_int_eq(kit_read(&kit, 1, 2), -ENOENT);
    open_again(&kit);
    ck_assert_int_eq(kit_read(&kit, 1, 1), op == KVBM_TIER_READ ? 0 : -ENOENT);
    ck_assert_int_eq(kit_read(&kit, 1, 2), -ENOENT);
    kit_end(&kit);
}
END_TEST

START_TEST(a_write_whose_record_is_on_its_way_ends_as_the_record_does) {
    struct kit kit;
    struct kit_io io;
    open_faulty(&kit, 4);
    kit.fault = (struct kit_fault){
        .kinds = 1u << KVBM_DISK_WRITE, .records_only = true, .count = 1, .hold = true, .after = true};
    kit_io_init(&kit, &io, KVBM_TIER_WRITE, 1, 2);
    io.io.deadline_ns = now_ns() + 10 * MS;
    ck_assert_int_eq(kit_submit(&kit, &io), 0);
    kit_until(&kit, &io.late);
    kit.store->ops->cancel(kit.store, &io.io);
    kit_release(&kit);
    kit_until(&kit, &io.done);
    ck_assert_int_eq(io.item.status, 0);
    kit_io_free(&io);
    ck_assert_int_eq(kit_read(&kit, 1, 2), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(what_waits_in_line_times_out_and_is_cancelled_at_once) {
    struct kit kit;
    struct kit_io held[2], waiting, cancelled;
    open_faulty(&kit, 4);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = 2, .hold = true, .after = true};
    for (uint32_t i = 0; i < 2; i++) {
        kit_io_init(&kit, &held[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &held[i]), 0);
    }
    kit_run_ms(&kit, 5);
    ck_assert_uint_eq(kit_held(&kit), 2);
    kit_io_init(&kit, &waiting, KVBM_TIER_WRITE, 2, 1);
    waiting.io.deadline_ns = now_ns() + 10 * MS;
    kit_io_init(&kit, &cancelled, KVBM_TIER_WRITE, 3, 1);
    ck_assert_int_eq(kit_submit(&kit, &waiting), 0);
    ck_assert_int_eq(kit_submit(&kit, &cancelled), 0);
    kit.store->ops->cancel(kit.store, &cancelled.io);
    ck_assert(!cancelled.done); /* never from inside */
    kit_until(&kit, &cancelled.done);
    ck_assert_int_eq(cancelled.item.status, -ECANCELED);
    kit_until(&kit, &waiting.done);
    ck_assert_int_eq(waiting.item.status, -ETIMEDOUT);
    ck_assert(!waiting.late); /* nothing of it was lent to the hardware */
    kit.store->ops->cancel(kit.store, &held[0].io);
    kit_run_ms(&kit, 10);
    ck_assert(!held[0].done);
    kit_release(&kit);
    kit_until(&kit, &held[0].done);
    kit_until(&kit, &held[1].done);
    ck_assert_int_eq(held[0].item.status, -ECANCELED);
    ck_assert_int_eq(held[1].item.status, 0);
    ck_assert_uint_eq(kit_stats(&kit).cancelled_count, 2);
    for (int i = 0; i < 2; i++)
        kit_io_free(&held[i]);
    kit_io_free(&waiting);
    kit_io_free(&cancelled);
    kit_end(&kit);
}
END_TEST

START_TEST(a_full_line_refuses_and_keeps_what_it_has) {
    struct kit kit;
    struct kit_io ios[8];
    open_faulty(&kit, 8);
    kit.options.shed_wait_ns = UINT64_MAX;
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = UINT32_MAX, .hold = true, .after = true};
    for (uint32_t i = 0; i < 2; i++) {
        kit_io_init(&kit, &ios[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), 0);
    }
    kit_run_ms(&kit, 5);
    for (uint32_t i = 2; i < 8; i++) {
        kit_io_init(&kit, &ios[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), i < 6 ? 0 : -EAGAIN);
    }
    kit_run_ms(&kit, 5);
    ck_assert_uint_eq(kit_stats(&kit).line_items, 4);
    ck_assert_uint_eq(kit_stats(&kit).device_items, 2);
    ck_assert_uint_eq(kit_stats(&kit).refused_count, 2);
    kit_release(&kit);
    for (uint32_t i = 0; i < 6; i++) {
        kit_until(&kit, &ios[i].done);
        ck_assert_int_eq(ios[i].item.status, 0);
    }
    for (uint32_t i = 0; i < 8; i++) {
        ck_assert(ios[i].done == (i < 6));
        kit_io_free(&ios[i]);
    }
    kit_end(&kit);
}
END_TEST

START_TEST(writes_are_shed_when_the_device_is_behind_and_taken_when_it_is_idle) {
    struct kit kit;
    struct kit_io ios[2], shed;
    kit_init(&kit, NULL, 1, 8192, 8);
    kit.faulty = true;
    kit.options.depth = 2;
    kit.options.shed_wait_ns = 5 * MS;
    open_fresh(&kit);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = UINT32_MAX, .hold = true, .after = true};
    for (uint32_t i = 0; i < 2; i++) {
        kit_io_init(&kit, &ios[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), 0);
    }
    kit_run_ms(&kit, 60); /* that long does a write take here */
    kit_release(&kit);
    kit_until(&kit, &ios[0].done);
    kit_until(&kit, &ios[1].done);
    kit_io_free(&ios[0]);
    kit_io_free(&ios[1]);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = UINT32_MAX, .hold = true, .after = true};
    kit_io_init(&kit, &ios[0], KVBM_TIER_WRITE, 2, 1);
    ck_assert_int_eq(kit_submit(&kit, &ios[0]), 0); /* idle: taken */
    kit_run_ms(&kit, 5);
    kit_io_init(&kit, &shed, KVBM_TIER_WRITE, 3, 1);
    ck_assert_int_eq(kit_submit(&kit, &shed), -KVBM_ESHED);
    ck_assert_uint_eq(kit_stats(&kit).shed_count, 1);
    ck_assert_int_eq(kit_read(&kit, 0, 1), 0); /* reads are not shed */
    kit_release(&kit);
    kit_until(&kit, &ios[0].done);
    ck_assert_int_eq(ios[0].item.status, 0);
    kit_io_free(&ios[0]);
    kit_io_free(&shed);
    kit_end(&kit);
}
END_TEST

START_TEST(reads_go_before_writes_that_came_earlier) {
    struct kit kit;
    struct kit_io writes[4], read;
    open_faulty(&kit, 8);
    ck_assert_int_eq(kit_write(&kit, 7, 1), 0);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = 2, .hold = true, .after = true};
    for (uint32_t i = 0; i < 4; i++) {
        kit_io_init(&kit, &writes[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &writes[i]), 0);
        if (i == 1)
            kit_run_ms(&kit, 5);
    }
    kit_io_init(&kit, &read, KVBM_TIER_READ, 7, 1);
    ck_assert_int_eq(kit_submit(&kit, &read), 0);
    kit.fault.count = 0;
    kit_release(&kit);
    kit_until(&kit, &read.done);
    ck_assert(!writes[3].done);
    for (uint32_t i = 0; i < 4; i++) {
        kit_until(&kit, &writes[i].done);
        ck_assert_int_eq(writes[i].item.status, 0);
        kit_io_free(&writes[i]);
    }
    ck_assert_int_eq(read.item.status, 0);
    kit_io_free(&read);
    kit_end(&kit);
}
END_TEST

START_TEST(a_slot_in_change_is_busy_for_changes_and_empty_for_reads) {
    struct kit kit;
    struct kit_io write;
    open_faulty(&kit, 4);
    ck_assert_int_eq(kit_write(&kit, 1, 1), 0);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = 1, .hold = true, .after = true};
    kit_io_init(&kit, &write, KVBM_TIER_WRITE, 1, 2);
    ck_assert_int_eq(kit_submit(&kit, &write), 0);
    kit_run_ms(&kit, 3);
    ck_assert_int_eq(kit_write(&kit, 1, 3), -EBUSY);
    ck_assert_int_eq(kit_erase(&kit, 1), -EBUSY);
    ck_assert_int_eq(kit_read(&kit, 1, 1), -ENOENT);
    ck_assert_int_eq(kit_read(&kit, 1, 2), -ENOENT);
    kit_release(&kit);
    kit_until(&kit, &write.done);
    kit_io_free(&write);
    ck_assert_int_eq(kit_read(&kit, 1, 2), 0);
    kit_end(&kit);
}
END_TEST

START_TEST(a_read_that_a_write_overtakes_misses_and_quarantines_nothing) {
    struct kit kit;
    struct kit_io read;
    open_faulty(&kit, 4);
    ck_assert_int_eq(kit_write(&kit, 1, 1), 0);
    /* Not performed: its memory stays as it was, as if it had been read when the write was half way. */
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_READ, .count = 1, .hold = true};
    kit_io_init(&kit, &read, KVBM_TIER_READ, 1, 1);
    ck_assert_int_eq(kit_submit(&kit, &read), 0);
    kit_run_ms(&kit, 3);
    ck_assert_int_eq(kit_write(&kit, 1, 2), 0);
    kit_release(&kit);
    kit_until(&kit, &read.done);
    ck_assert_int_eq(read.item.status, -ENOENT);
    kit_io_free(&read);
    ck_assert_int_eq(kit_read(&kit, 1, 2), 0);
    ck_assert_uint_eq(kit_stats(&kit).quarantined_blocks, 0);
    kit_end(&kit);
}
END_TEST

START_TEST(close_ends_what_waits_and_waits_for_what_the_device_has) {
    struct kit kit;
    struct kit_io ios[4];
    open_faulty(&kit, 8);
    kit.fault = (struct kit_fault){.kinds = 1u << KVBM_DISK_WRITE, .count = 2, .hold = true, .after = true};
    for (uint32_t i = 0; i < 4; i++) {
        kit_io_init(&kit, &ios[i], KVBM_TIER_WRITE, i, 1);
        ck_assert_int_eq(kit_submit(&kit, &ios[i]), 0);
        if (i == 1)
            kit_run_ms(&kit, 3);
    }
    kit_close_begin(&kit);
    struct kit_io after;
    kit_io_init(&kit, &after, KVBM_TIER_READ, 0, 1);
    ck_assert_int_eq(kit_submit(&kit, &after), -KVBM_ECLOSED);
    kit_io_free(&after);
    kit_run_ms(&kit, 20);
    ck_assert(!kit.closed);
    ck_assert(ios[2].done && ios[3].done && !ios[0].done && !ios[1].done);
    ck_assert_int_eq(ios[3].item.status, -ECANCELED);
    kit_release(&kit);
    kit_until(&kit, &kit.closed);
    ck_assert(ios[0].done && ios[1].done);
    ck_assert_int_eq(ios[0].item.status, 0);
    for (int i = 0; i < 4; i++)
        kit_io_free(&ios[i]);
    ck_assert_int_eq(kit_open(&kit, KVBM_DISK_OPEN), 0);
    ck_assert_int_eq(kit_read(&kit, 0, 1), 0);
    ck_assert_int_eq(kit_read(&kit, 2, 1), -ENOENT);
    kit_end(&kit);
}
END_TEST

START_TEST(a_flush_interval_flushes_by_itself_and_only_when_there_is_something) {
    struct kit kit;
    kit_init(&kit, NULL, 2, 4096, 4);
    kit.options.flush_ns = 10 * MS;
    open_fresh(&kit);
    kit_run_ms(&kit, 50);
    ck_assert_uint_eq(kit_stats(&kit).flush_count, 0);
    ck_assert_int_eq(kit_write(&kit, 1, 1), 0);
    kit_run_ms(&kit, 300);
    ck_assert_uint_eq(kit_stats(&kit).flush_count, 1);
    kit_end(&kit);
}
END_TEST

START_TEST(an_idle_store_lets_its_loop_sleep) {
    struct kit kit;
    kit_init(&kit, NULL, 1, 4096, 4);
    open_fresh(&kit);
    ck_assert_int_eq(kit_write(&kit, 1, 1), 0);
    kit_run_ms(&kit, 20);
    for (int i = 0; i < 3; i++)
        uv_run(&kit.loop, UV_RUN_NOWAIT);
    int timeout_ms = uv_backend_timeout(&kit.loop);
    ck_assert_msg(timeout_ms < 0 || timeout_ms > 100, "it would wake up after %d ms", timeout_ms);
    kit_end(&kit);
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- allocation */

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static _Atomic uint64_t allocation_count;
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);

void *malloc(size_t bytes) {
    allocation_count++;
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    allocation_count++;
    return __libc_calloc(count, bytes);
}

static void on_quiet_done(struct kvbm_tier_io *io) {
    ((struct kit_io *)io->user)->done = true;
}

START_TEST(an_open_store_allocates_nothing) {
    struct kit kit;
    struct kit_io write, read;
    kit_init(&kit, NULL, 2, 5000, 16);
    choose(&kit, _i);
    kit.options.log = NULL;
    open_fresh(&kit);
    kit_io_init(&kit, &write, KVBM_TIER_WRITE, 1, 1);
    kit_io_init(&kit, &read, KVBM_TIER_READ, 1, 1);
    write.io.done = read.io.done = on_quiet_done;
    uint64_t before = 0;
    for (int round = 0; round < 50; round++) {
        if (round == 2) /* libuv has grown its own arrays */
            before = allocation_count;
        write.done = read.done = false;
        /* Nothing of Check's in between: its assertions allocate. */
        int rc = kit_submit(&kit, &write);
        while (rc == 0 && !write.done)
            uv_run(&kit.loop, UV_RUN_ONCE);
        rc = rc == 0 ? kit_submit(&kit, &read) : rc;
        while (rc == 0 && !read.done)
            uv_run(&kit.loop, UV_RUN_ONCE);
        if (rc != 0 || read.item.status != 0)
            abort();
    }
    uint64_t after = allocation_count;
    ck_assert_uint_eq(after, before);
    kit_io_free(&write);
    kit_io_free(&read);
    kit_end(&kit);
}
END_TEST
#define HAVE_COUNT 1
#endif

int main(void) {
    Suite *suite = suite_create("disk");
    TCase *tc = tcase_create("disk");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_is_written_is_read_before_and_after_opening_again, 0, 4);
    tcase_add_loop_test(tc, every_size_makes_the_round_trip, 0, 4 * SIZE_COUNT);
    tcase_add_loop_test(tc, segments_of_any_cut_hold_the_same_bytes, 0, 4);
    tcase_add_test(tc, registered_memory_and_other_memory_both_work);
    tcase_add_loop_test(tc, many_requests_of_many_items_all_end_once_with_the_right_bytes, 0, 4);
    tcase_add_test(tc, a_scan_finds_labels_in_the_order_of_writing);
    tcase_add_loop_test(tc, tmpfs_works_with_or_without_direct_io, 0, 4);
    tcase_add_test(tc, bad_requests_are_refused_and_stay_the_callers);
    tcase_add_loop_test(tc, a_passed_deadline_is_told_early_and_memory_comes_back_late, 0, 2);
    tcase_add_test(tc, a_write_whose_record_is_on_its_way_ends_as_the_record_does);
    tcase_add_test(tc, what_waits_in_line_times_out_and_is_cancelled_at_once);
    tcase_add_test(tc, a_full_line_refuses_and_keeps_what_it_has);
    tcase_add_test(tc, writes_are_shed_when_the_device_is_behind_and_taken_when_it_is_idle);
    tcase_add_test(tc, reads_go_before_writes_that_came_earlier);
    tcase_add_test(tc, a_slot_in_change_is_busy_for_changes_and_empty_for_reads);
    tcase_add_test(tc, a_read_that_a_write_overtakes_misses_and_quarantines_nothing);
    tcase_add_test(tc, close_ends_what_waits_and_waits_for_what_the_device_has);
    tcase_add_test(tc, a_flush_interval_flushes_by_itself_and_only_when_there_is_something);
    tcase_add_test(tc, an_idle_store_lets_its_loop_sleep);
#ifdef HAVE_COUNT
    tcase_add_loop_test(tc, an_open_store_allocates_nothing, 0, 4);
#endif
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
