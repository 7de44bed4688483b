/* Shared memory: what its bytes hold, who touched them last, asynchronous copies into them. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "emulator/machine.h"

#define NB_PLACE __builtin_return_address(0)

static const size_t record_bytes = NB_SHARED_MAX * sizeof(struct nb_shared_record);

void nb_shared_create(struct nb_machine *machine)
{
    machine->shared = (unsigned char *)nb_map_bytes(NB_SHARED_MAX);
    machine->state = (uint8_t *)nb_map_bytes(NB_SHARED_MAX + 64);
    machine->words = (struct nb_shared_record *)nb_map_bytes(record_bytes / 4);
    machine->bytes = (struct nb_shared_record *)nb_map_bytes(record_bytes);
}

void nb_shared_destroy(struct nb_machine *machine)
{
    munmap(machine->shared, NB_SHARED_MAX);
    munmap(machine->state, NB_SHARED_MAX + 64);
    munmap(machine->words, record_bytes / 4);
    munmap(machine->bytes, record_bytes);
}

void nb_shared_reset(struct nb_machine *machine)
{
    machine->shared_bytes = (uint32_t)machine->grid->shared_bytes;
    memset(machine->shared, 0xff, machine->shared_bytes); /* NaN in every format */
    memset(machine->state, NB_BYTE_UNINITIALIZED, machine->shared_bytes);
    if (machine->now > UINT32_MAX / 2) {
        madvise(machine->words, record_bytes / 4, MADV_DONTNEED);
        madvise(machine->bytes, record_bytes, MADV_DONTNEED);
        memset(machine->known, 0, sizeof machine->known);
        machine->now = 0;
    }
    /* Earlier blocks' records are of times before the floor: nothing to clear. */
    machine->floor = ++machine->now;
    machine->now++;
}

bool nb_shared_offset(const struct nb_machine *machine, const void *address, uint32_t *offset)
{
    uintptr_t from = (uintptr_t)address - (uintptr_t)machine->shared;
    *offset = (uint32_t)from;
    return from < machine->shared_bytes;
}

/* ---- races ---- */

bool nb_machine_knows(const struct nb_machine *machine, unsigned reader, unsigned thread, uint32_t time)
{
    if (time <= machine->known[reader / NB_LANES][thread / NB_LANES])
        return true;
    return machine->threads_known && time <= machine->thread_known[(size_t)reader * machine->threads + thread];
}

/* Whether what `thread` did at `time` is before what the running thread does now. */
static inline bool ordered(const struct nb_machine *machine, unsigned self, unsigned thread, uint32_t time)
{
    return time <= machine->floor || thread == self || nb_machine_knows(machine, self, thread, time);
}

[[noreturn]] static void report_race(
    struct nb_machine *machine, uint32_t offset, const char *does, unsigned thread, const char *did, const void *place)
{
    nb_machine_fault(machine, NB_EMULATOR_RACE, place, "%s shared byte %u, which thread %u %s with no barrier between",
        does, offset, thread, did);
}

static inline void check_read(
    struct nb_machine *machine, struct nb_shared_record *record, unsigned self, uint32_t offset, const void *place)
{
    if (!ordered(machine, self, record->writer, record->written))
        report_race(machine, offset, "reads", record->writer, "wrote", place);
    if (record->reader / NB_LANES != self / NB_LANES) {
        record->other = record->reader;
        record->other_read = record->read;
    }
    record->reader = (uint16_t)self;
    record->read = machine->now;
}

static inline void check_write(
    struct nb_machine *machine, struct nb_shared_record *record, unsigned self, uint32_t offset, const void *place)
{
    if (!ordered(machine, self, record->writer, record->written))
        report_race(machine, offset, "writes", record->writer, "wrote", place);
    if (!ordered(machine, self, record->reader, record->read))
        report_race(machine, offset, "writes", record->reader, "read", place);
    if (!ordered(machine, self, record->other, record->other_read))
        report_race(machine, offset, "writes", record->other, "read", place);
    record->writer = (uint16_t)self;
    record->written = machine->now;
    record->read = record->other_read = 0;
}

/* A word whose bytes were touched apart: each has its own record until a whole word is written. */
static void split_word(struct nb_machine *machine, uint32_t word)
{
    struct nb_shared_record *record = &machine->words[word];
    if (record->split)
        return;
    for (int i = 0; i < 4; i++)
        machine->bytes[4 * word + i] = *record;
    record->split = 1;
}

typedef void check(
    struct nb_machine *machine, struct nb_shared_record *record, unsigned self, uint32_t offset, const void *place);

/* Bytes of one word, or a whole split one. */
template <check CHECK>
static void check_bytes(struct nb_machine *machine, unsigned self, uint32_t offset, uint32_t bytes, const void *place)
{
    split_word(machine, offset / 4);
    for (uint32_t i = 0; i < bytes; i++)
        CHECK(machine, &machine->bytes[offset + i], self, offset + i, place);
}

template <check CHECK, bool WRITES>
static inline void check_range(
    struct nb_machine *machine, unsigned self, uint32_t offset, uint32_t bytes, const void *place)
{
    uint32_t end = offset + bytes;
    while (offset < end) {
        uint32_t word = offset / 4, size = std::min(end - offset, 4 - offset % 4);
        struct nb_shared_record *record = &machine->words[word];
        if (__builtin_expect(size == 4 && !record->split, 1)) {
            CHECK(machine, record, self, offset, place);
        } else {
            check_bytes<CHECK>(machine, self, offset, size, place);
            if (WRITES && size == 4) {
                *record = machine->bytes[offset];
                record->split = 0;
            }
        }
        offset += size;
    }
}

[[noreturn]] static void report_state(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place)
{
    uint32_t at = offset;
    while (at + 1 < offset + bytes && machine->state[at] == NB_BYTE_INITIALIZED)
        at++;
    nb_machine_fault(machine, NB_EMULATOR_UNINITIALIZED, place, "reads %u bytes at shared byte %u, of which byte %u %s",
        bytes, offset, at,
        machine->state[at] == NB_BYTE_UNDER_COPY ? "is under an asynchronous copy that has not been waited for"
                                                 : "was never written");
}

static inline void check_initialized(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place)
{
    static const uint8_t all[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const uint8_t *state = machine->state + offset;
    bool good;
    switch (bytes) {
    case 4:
        good = !memcmp(state, all, 4);
        break;
    case 8:
        good = !memcmp(state, all, 8);
        break;
    case 16:
        good = !memcmp(state, all, 16);
        break;
    default:
        good = true;
        for (uint32_t i = 0; i < bytes; i++)
            good &= state[i] == NB_BYTE_INITIALIZED;
    }
    if (!good)
        report_state(machine, offset, bytes, place);
}

static inline void check_inside(
    struct nb_machine *machine, const char *does, uint32_t offset, uint32_t bytes, const void *place)
{
    if (offset + bytes > machine->shared_bytes)
        nb_machine_fault(machine, NB_EMULATOR_OUT_OF_BOUNDS, place, "%s %u bytes at shared byte %u of %u", does, bytes,
            offset, machine->shared_bytes);
}

void nb_shared_read(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place)
{
    check_inside(machine, "reads", offset, bytes, place);
    check_initialized(machine, offset, bytes, place);
    check_range<check_read, false>(machine, machine->lane->thread, offset, bytes, place);
}

void nb_shared_write(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place)
{
    check_inside(machine, "writes", offset, bytes, place);
    for (uint32_t i = 0; i < bytes; i++)
        if (machine->state[offset + i] == NB_BYTE_UNDER_COPY)
            nb_machine_fault(machine, NB_EMULATOR_RACE, place,
                "writes shared byte %u, which is under an asynchronous copy", offset + i);
    check_range<check_write, true>(machine, machine->lane->thread, offset, bytes, place);
    memset(machine->state + offset, NB_BYTE_INITIALIZED, bytes);
}

/* Its words go to lanes of the whole warp, so the lane that names the row has no better right than the others. */
static inline void check_warp_read(
    struct nb_machine *machine, struct nb_shared_record *record, unsigned self, uint32_t offset, const void *place)
{
    if (record->writer / NB_LANES == self / NB_LANES && record->written > machine->floor &&
        !nb_machine_knows(machine, self, record->writer, record->written))
        report_race(machine, offset, "reads for its warp", record->writer, "wrote", place);
    check_read(machine, record, self, offset, place);
}

void nb_shared_read_by_warp(
    struct nb_machine *machine, struct nb_lane *lane, uint32_t offset, uint32_t bytes, const void *place)
{
    check_inside(machine, "reads", offset, bytes, place);
    check_initialized(machine, offset, bytes, place);
    check_range<check_warp_read, false>(machine, lane->thread, offset, bytes, place);
}

/* ---- asynchronous copies ---- */

static void forget_landed(struct nb_machine *machine, struct nb_lane *lane)
{
    lane->copies.clear();
    lane->landed = 0;
    for (struct nb_late_arrival &late : machine->late)
        if (late.lane == lane)
            late.copies = 0;
}

extern "C" void nb_emulator_copy_async(void *shared, const void *global, int valid, int bytes)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_lane *lane = machine->lane;
    uint32_t offset;
    nb_machine_burn(machine);
    if (!nb_shared_offset(machine, shared, &offset))
        nb_machine_fault(machine, NB_EMULATOR_OUT_OF_BOUNDS, NB_PLACE,
            "copies to %p, which is not in the block's %u bytes of shared memory", shared, machine->shared_bytes);
    check_inside(machine, "copies", offset, (uint32_t)bytes, NB_PLACE);
    if (valid < 0 || valid > bytes)
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, NB_PLACE, "copies %d bytes of %d", valid, bytes);
    if (offset % (unsigned)bytes || (valid && (uintptr_t)global % (unsigned)bytes))
        nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, NB_PLACE,
            "copies %d bytes from %p to shared byte %u: both must be aligned", bytes, global, offset);
    for (int i = 0; i < bytes; i++)
        if (machine->state[offset + (unsigned)i] == NB_BYTE_UNDER_COPY)
            nb_machine_fault(machine, NB_EMULATOR_RACE, NB_PLACE,
                "copies to shared byte %u, which is under another asynchronous copy", offset + (unsigned)i);
    check_range<check_write, true>(machine, lane->thread, offset, (uint32_t)bytes, NB_PLACE);
    memset(machine->state + offset, NB_BYTE_UNDER_COPY, (size_t)bytes);
    memset(machine->shared + offset, 0xff, (size_t)bytes);
    if (lane->landed == lane->copies.size())
        forget_landed(machine, lane);
    lane->copies.push_back({(const unsigned char *)global, offset, lane->groups, (uint8_t)bytes, (uint8_t)valid});
}

static void land(struct nb_machine *machine, struct nb_lane *lane, const struct nb_copy *copy, uint32_t time)
{
    uint8_t state[16];
    memset(state, NB_BYTE_INITIALIZED, sizeof state);
    if (copy->valid) {
        nb_memory_access(machine, (uintptr_t)copy->from, copy->valid, NB_ACCESS_COPY, state, NULL);
        memcpy(machine->shared + copy->to, copy->from, copy->valid);
    }
    memset(machine->shared + copy->to + copy->valid, 0, (size_t)(copy->bytes - copy->valid));
    memcpy(machine->state + copy->to, state, copy->bytes);
    for (uint32_t word = copy->to / 4; word < (copy->to + copy->bytes) / 4u; word++) {
        machine->words[word].writer = lane->thread;
        machine->words[word].written = time;
    }
}

/* Those before number `until`. */
void nb_copies_land(struct nb_machine *machine, struct nb_lane *lane, uint32_t until, uint32_t time)
{
    struct nb_lane *running = machine->lane;
    machine->lane = lane; /* it is the one who reads, and who is told of in a fault */
    for (; lane->landed < until; lane->landed++)
        land(machine, lane, &lane->copies[lane->landed], time);
    machine->lane = running;
}

extern "C" void nb_emulator_copy_async_commit(void)
{
    nb_machine_here->lane->groups++;
}

extern "C" void nb_emulator_copy_async_wait(int groups)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_lane *lane = machine->lane;
    uint32_t until = lane->landed;
    while (until < lane->copies.size() && lane->copies[until].group + (uint32_t)groups < lane->groups)
        until++;
    /* What an arrival at an mbarrier covers was written for its waiters as of then, though it lands at this wait. */
    for (const struct nb_late_arrival &late : machine->late)
        if (late.lane == lane && late.copies > lane->landed)
            nb_copies_land(machine, lane, std::min(until, late.copies), late.time);
    nb_copies_land(machine, lane, until, machine->now);
}
