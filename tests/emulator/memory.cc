/* Device memory and pinned memory: bounds, what was written, and who touched which word in a launch.
 *
 * Within a block, the barriers order (machine.h). Blocks are ordered by atomic operations alone. A block's writes
 * carry the number of an interval of it; a fence ends the interval, and the block's next atomic operation
 * publishes those that fences ended. A block that performs an atomic operation later, on whatever address, has
 * acquired them. So: write, fence, atomic; atomic, then read. A word of an interval that was not acquired is a
 * race to touch. Of a word only the last writer and one of its readers are kept. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include "emulator/machine.h"

#define NB_PLACE __builtin_return_address(0)

/* writer, reader: numbers of intervals; of this launch when at least launch_begin. In `reader` the top bit: by
 * nb_load_once_16. The stamps say which thread of that block it was, and when: the time since the block's start
 * above 10 bits of thread; 0: of no more interest. */
struct nb_global_record {
    uint32_t writer, reader, write_stamp, read_stamp;
};
enum : uint32_t { NB_READ_ONCE = 1u << 31 };
enum { NB_STAMP_THREAD_BITS = 10 };

struct nb_allocation {
    uintptr_t base;
    size_t bytes;
    bool device;
    uint8_t *state;                  /* by byte; NULL in host memory */
    struct nb_global_record *words;  /* accesses to whole words */
    uint32_t *parts;                 /* by word: the last interval that touched a part of it */
    struct nb_global_record *pieces; /* by byte: those accesses */
};

struct interval {
    uint32_t block;
    uint32_t published; /* a time; UINT32_MAX: not yet */
};

static struct {
    std::mutex mutex;
    std::vector<struct nb_allocation *> allocations; /* by address */
    uint32_t launch_begin, next_interval, time;
    struct interval *intervals; /* [number - launch_begin] */
} memory = {{}, {}, 1, 1, 0, NULL};
static const size_t intervals_max = (size_t)1 << 30;

/* Bytes of the maps; the words at both ends may be shared with nobody, for gaps are wide. */
static size_t words_of(const struct nb_allocation *allocation)
{
    return (allocation->bytes + (allocation->base & 3) + 3) / 4;
}

static std::vector<struct nb_allocation *>::iterator first_after(uintptr_t address)
{
    return std::upper_bound(memory.allocations.begin(), memory.allocations.end(), address,
        [](uintptr_t a, const struct nb_allocation *b) { return a < b->base; });
}

static struct nb_allocation *find(uintptr_t address)
{
    auto next = first_after(address);
    if (next == memory.allocations.begin())
        return NULL;
    struct nb_allocation *allocation = *--next;
    return address - allocation->base < allocation->bytes ? allocation : NULL;
}

void nb_emulator_memory_add(void *address, size_t bytes, bool device)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    struct nb_allocation *made = new struct nb_allocation();
    made->base = (uintptr_t)address, made->bytes = bytes, made->device = device;
    if (device)
        made->state = (uint8_t *)nb_map_bytes(bytes + 64);
    made->words = (struct nb_global_record *)nb_map_bytes(words_of(made) * sizeof *made->words + 64);
    made->parts = (uint32_t *)nb_map_bytes(words_of(made) * sizeof *made->parts + 64);
    made->pieces = (struct nb_global_record *)nb_map_bytes(words_of(made) * 4 * sizeof *made->pieces + 64);
    memory.allocations.insert(first_after(made->base), made);
}

static void unmap(struct nb_allocation *gone)
{
    if (gone->state)
        munmap(gone->state, gone->bytes + 64);
    munmap(gone->words, words_of(gone) * sizeof *gone->words + 64);
    munmap(gone->parts, words_of(gone) * sizeof *gone->parts + 64);
    munmap(gone->pieces, words_of(gone) * 4 * sizeof *gone->pieces + 64);
}

void nb_emulator_memory_remove(void *address)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    auto next = first_after((uintptr_t)address);
    if (next == memory.allocations.begin() || (*--next)->base != (uintptr_t)address)
        return;
    unmap(*next);
    delete *next;
    memory.allocations.erase(next);
}

/* ---- by the runtime ---- */

/* The allocation around the bytes, or a fault. */
static struct nb_allocation *find_whole(const void *address, size_t bytes, const char *doing)
{
    struct nb_allocation *allocation = find((uintptr_t)address);
    if (allocation && (uintptr_t)address - allocation->base + bytes <= allocation->bytes)
        return allocation;
    nb_emulator_fail(NB_EMULATOR_OUT_OF_BOUNDS,
        "out of bounds: the runtime %s %zu bytes at %p, not within one allocation", doing, bytes, address);
    return NULL;
}

bool nb_emulator_memory_touch(const void *address, size_t bytes, bool written)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    if (!bytes)
        return true;
    struct nb_allocation *allocation = find_whole(address, bytes, written ? "writes" : "reads");
    if (allocation && written && allocation->state)
        memset(allocation->state + ((uintptr_t)address - allocation->base), NB_BYTE_INITIALIZED, bytes);
    return allocation != NULL;
}

bool nb_emulator_memory_copied(void *to, const void *from, size_t bytes)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    if (!bytes)
        return true;
    struct nb_allocation *target = find_whole(to, bytes, "writes"), *source = find_whole(from, bytes, "reads");
    if (!target || !source)
        return false;
    if (!target->state)
        return true;
    uint8_t *state = target->state + ((uintptr_t)to - target->base);
    if (source->state)
        memmove(state, source->state + ((uintptr_t)from - source->base), bytes);
    else
        memset(state, NB_BYTE_INITIALIZED, bytes);
    return true;
}

void nb_emulator_memory_forget(void *address, size_t bytes)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    struct nb_allocation *allocation = bytes ? find_whole(address, bytes, "forgets") : NULL;
    if (allocation && allocation->state)
        memset(allocation->state + ((uintptr_t)address - allocation->base), NB_BYTE_UNINITIALIZED, bytes);
}

/* ---- intervals ---- */

static uint32_t new_interval(const struct nb_machine *machine, uint32_t published)
{
    uint32_t number = __atomic_fetch_add(&memory.next_interval, 1, __ATOMIC_RELAXED);
    struct interval *made = &memory.intervals[number - memory.launch_begin];
    made->block = (uint32_t)machine->block_linear;
    __atomic_store_n(&made->published, published, __ATOMIC_RELEASE);
    return number;
}

void nb_memory_launch(uint64_t blocks)
{
    std::lock_guard<std::mutex> lock(memory.mutex);
    if (!memory.intervals)
        memory.intervals = (struct interval *)nb_map_bytes(intervals_max * sizeof *memory.intervals);
    if (memory.next_interval > (1u << 30) || blocks > (1u << 29)) {
        for (struct nb_allocation *allocation : memory.allocations) {
            madvise(allocation->words, words_of(allocation) * sizeof *allocation->words, MADV_DONTNEED);
            madvise(allocation->parts, words_of(allocation) * sizeof *allocation->parts, MADV_DONTNEED);
            madvise(allocation->pieces, words_of(allocation) * 4 * sizeof *allocation->pieces, MADV_DONTNEED);
        }
        memory.next_interval = 1;
    }
    memory.launch_begin = memory.next_interval;
    memory.time = 0;
}

void nb_memory_block(struct nb_machine *machine)
{
    machine->begun = machine->floor;
    machine->interval = new_interval(machine, UINT32_MAX);
    machine->interval_written = false;
    machine->intervals_closed.clear();
    machine->acquired = 0;
}

void nb_memory_fence(struct nb_machine *machine)
{
    if (!machine->interval_written)
        return;
    machine->intervals_closed.push_back(machine->interval);
    machine->interval = new_interval(machine, UINT32_MAX);
    machine->interval_written = false;
}

void nb_memory_publish(struct nb_machine *machine)
{
    uint32_t time = __atomic_add_fetch(&memory.time, 1, __ATOMIC_ACQ_REL);
    for (uint32_t closed : machine->intervals_closed)
        __atomic_store_n(&memory.intervals[closed - memory.launch_begin].published, time, __ATOMIC_RELEASE);
    machine->intervals_closed.clear();
}

void nb_memory_acquire(struct nb_machine *machine)
{
    machine->acquired = __atomic_add_fetch(&memory.time, 1, __ATOMIC_ACQ_REL);
}

static inline bool is_own(const struct nb_machine *machine, uint32_t number)
{
    return number == machine->interval ||
           (number >= memory.launch_begin &&
               memory.intervals[number - memory.launch_begin].block == (uint32_t)machine->block_linear);
}

static inline uint32_t stamp_now(const struct nb_machine *machine)
{
    uint32_t time = machine->now - machine->begun;
    return time >= 1u << (32 - NB_STAMP_THREAD_BITS) ? 0 : time << NB_STAMP_THREAD_BITS | machine->lane->thread;
}

/* Whether a barrier stands between what a thread of this block did and now. */
static inline bool is_ordered(const struct nb_machine *machine, uint32_t stamp)
{
    uint32_t time = machine->begun + (stamp >> NB_STAMP_THREAD_BITS),
             thread = stamp & ((1u << NB_STAMP_THREAD_BITS) - 1);
    return time <= machine->floor || thread == machine->lane->thread ||
           nb_machine_knows(machine, machine->lane->thread, thread, time);
}

/* The block of an interval that must not be touched without synchronization, or -1. */
static inline int64_t stranger(const struct nb_machine *machine, uint32_t number)
{
    if (number < memory.launch_begin || number == machine->interval)
        return -1;
    const struct interval *made = &memory.intervals[number - memory.launch_begin];
    if (made->block == (uint32_t)machine->block_linear)
        return -1;
    return __atomic_load_n(&made->published, __ATOMIC_ACQUIRE) < machine->acquired ? -1 : (int64_t)made->block;
}

/* ---- by kernels ---- */

static const char *const does_words[] = {"reads", "writes", "reads once", "updates", "copies from"};

[[noreturn]] static void report_bounds(
    struct nb_machine *machine, uintptr_t address, size_t bytes, enum nb_access access, const void *place)
{
    intptr_t offset = (intptr_t)(address - (uintptr_t)machine->shared);
    if (offset > -65536 && offset < NB_SHARED_MAX + 65536)
        nb_machine_fault(machine, NB_EMULATOR_OUT_OF_BOUNDS, place, "%s %zu bytes at shared byte %zd of %u",
            does_words[access], bytes, (ssize_t)offset, machine->shared_bytes);
    auto next = first_after(address);
    char near[160] = "";
    if (next != memory.allocations.begin()) {
        const struct nb_allocation *before = *(next - 1);
        snprintf(near, sizeof near, "; %zu bytes into the allocation of %zu bytes at %p",
            (size_t)(address - before->base), before->bytes, (void *)before->base);
    }
    if (next != memory.allocations.end() &&
        (!near[0] || (*next)->base - address < address - ((*(next - 1))->base + (*(next - 1))->bytes)))
        snprintf(near, sizeof near, "; %zu bytes before the allocation of %zu bytes at %p",
            (size_t)((*next)->base - address), (*next)->bytes, (void *)(*next)->base);
    nb_machine_fault(machine, NB_EMULATOR_OUT_OF_BOUNDS, place, "%s %zu bytes at %p%s", does_words[access], bytes,
        (void *)address, near);
}

[[noreturn]] static void report_race(struct nb_machine *machine, uintptr_t address, enum nb_access access,
    int64_t block, const char *did, const void *place)
{
    const struct nb_allocation *allocation = find(address);
    nb_machine_fault(machine, NB_EMULATOR_RACE, place,
        "%s byte %zu of the allocation of %zu bytes at %p, which block %lld of the same launch %s, with no atomic "
        "operation after a fence between",
        does_words[access], (size_t)(address - allocation->base), allocation->bytes, (void *)allocation->base,
        (long long)block, did);
}

[[noreturn]] static void report_race_within(struct nb_machine *machine, uintptr_t address, enum nb_access access,
    uint32_t stamp, const char *did, const void *place)
{
    const struct nb_allocation *allocation = find(address);
    nb_machine_fault(machine, NB_EMULATOR_RACE, place,
        "%s byte %zu of the allocation of %zu bytes at %p, which thread %u of the block %s with no barrier between",
        does_words[access], (size_t)(address - allocation->base), allocation->bytes, (void *)allocation->base,
        stamp & ((1u << NB_STAMP_THREAD_BITS) - 1), did);
}

[[noreturn]] static void report_once(
    struct nb_machine *machine, uintptr_t address, enum nb_access access, const void *place)
{
    nb_machine_fault(machine, NB_EMULATOR_RACE, place,
        "%s %p: bytes that a launch reads once (ld.global.nc) must not be written by it", does_words[access],
        (void *)address);
}

/* Of what this launch wrote or read before. */
static inline void check_order(struct nb_machine *machine, uint32_t number, uint32_t stamp, uintptr_t address,
    enum nb_access access, const char *did, const void *place)
{
    int64_t block = stranger(machine, number);
    if (__builtin_expect(block >= 0, 0))
        report_race(machine, address, access, block, did, place);
    if (access != NB_ACCESS_ATOMIC && is_own(machine, number) && __builtin_expect(!is_ordered(machine, stamp), 0))
        report_race_within(machine, address, access, stamp, did, place);
}

static inline void check_record(struct nb_machine *machine, struct nb_global_record *record, uintptr_t address,
    enum nb_access access, const void *place)
{
    uint32_t writer = __atomic_load_n(&record->writer, __ATOMIC_ACQUIRE);
    if (writer >= memory.launch_begin) {
        check_order(machine, writer, record->write_stamp, address, access, "wrote", place);
        if (access == NB_ACCESS_READ_ONCE)
            report_once(machine, address, access, place);
    }
    uint32_t reader = __atomic_load_n(&record->reader, __ATOMIC_ACQUIRE);
    bool read = (reader & ~NB_READ_ONCE) >= memory.launch_begin, once = reader & NB_READ_ONCE;
    if (access == NB_ACCESS_WRITE || access == NB_ACCESS_ATOMIC) {
        if (read) {
            check_order(machine, reader & ~NB_READ_ONCE, record->read_stamp, address, access, "read", place);
            if (once)
                report_once(machine, address, access, place);
        }
        record->write_stamp = access == NB_ACCESS_ATOMIC ? 0 : stamp_now(machine);
        __atomic_store_n(&record->writer, machine->interval, __ATOMIC_RELEASE);
    } else {
        record->read_stamp = stamp_now(machine);
        bool sticky = (read && once) || access == NB_ACCESS_READ_ONCE;
        __atomic_store_n(&record->reader, machine->interval | (sticky ? (uint32_t)NB_READ_ONCE : 0), __ATOMIC_RELEASE);
    }
}

static void check_words(struct nb_machine *machine, struct nb_allocation *allocation, uintptr_t address, size_t bytes,
    enum nb_access access, const void *place)
{
    uintptr_t origin = allocation->base & ~(uintptr_t)3, end = address + bytes;
    while (address < end) {
        size_t word = (address - origin) / 4, size = std::min<size_t>(end - address, 4 - (address & 3));
        if (size == 4) {
            check_record(machine, &allocation->words[word], address, access, place);
            if (__builtin_expect(__atomic_load_n(&allocation->parts[word], __ATOMIC_RELAXED) >= memory.launch_begin, 0))
                for (size_t i = 0; i < 4; i++)
                    check_record(machine, &allocation->pieces[4 * word + i], address + i, access, place);
        } else {
            /* Against whole words as they are, without becoming one of their readers or writers. */
            struct nb_global_record whole = allocation->words[word];
            check_record(machine, &whole, address, access, place);
            __atomic_store_n(&allocation->parts[word], machine->interval, __ATOMIC_RELAXED);
            for (size_t i = 0; i < size; i++)
                check_record(machine, &allocation->pieces[address - origin + i], address + i, access, place);
        }
        address += size;
    }
}

static inline bool all_initialized(const uint8_t *state, size_t bytes)
{
    static const uint8_t all[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    if (bytes == 4)
        return !memcmp(state, all, 4);
    if (bytes == 16)
        return !memcmp(state, all, 16);
    for (size_t i = 0; i < bytes; i++)
        if (state[i] != NB_BYTE_INITIALIZED)
            return false;
    return true;
}

static void check_state(struct nb_machine *machine, struct nb_allocation *allocation, uintptr_t address, size_t bytes,
    enum nb_access access, const void *place)
{
    uint8_t *state = allocation->state + (address - allocation->base);
    if (access == NB_ACCESS_WRITE) {
        memset(state, NB_BYTE_INITIALIZED, bytes);
    } else if (__builtin_expect(!all_initialized(state, bytes), 0)) {
        size_t i = 0;
        while (state[i] == NB_BYTE_INITIALIZED)
            i++;
        nb_machine_fault(machine, NB_EMULATOR_UNINITIALIZED, place,
            "%s %zu bytes at byte %zu of the allocation of %zu bytes at %p, of which byte "
            "%zu was never written",
            does_words[access], bytes, (size_t)(address - allocation->base), allocation->bytes,
            (void *)allocation->base, (size_t)(address - allocation->base + i));
    }
}

extern "C" const char __executable_start, end;

void nb_memory_access(struct nb_machine *machine, uintptr_t address, size_t bytes, enum nb_access access,
    uint8_t *state, const void *place)
{
    struct nb_allocation **cached = &machine->cache[(address >> 12) % NB_ALLOCATION_CACHE], *allocation = *cached;
    if (!allocation || address - allocation->base >= allocation->bytes) {
        /* Constants lie in the executable. */
        if (access == NB_ACCESS_READ && address >= (uintptr_t)&__executable_start && address < (uintptr_t)&end)
            return;
        allocation = find(address);
        if (!allocation)
            report_bounds(machine, address, bytes, access, place);
        *cached = allocation;
    }
    if (__builtin_expect(address - allocation->base + bytes > allocation->bytes, 0))
        report_bounds(machine, address, bytes, access, place);
    if (allocation->state) {
        if (access == NB_ACCESS_COPY)
            memcpy(state, allocation->state + (address - allocation->base), bytes);
        else
            check_state(machine, allocation, address, bytes, access, place);
    }
    if (access == NB_ACCESS_WRITE || access == NB_ACCESS_ATOMIC)
        machine->interval_written = true;
    check_words(machine, allocation, address, bytes, access, place);
}

/* ---- instructions ---- */

static void check_operand(
    struct nb_machine *machine, const void *global, size_t bytes, enum nb_access access, const void *place)
{
    if ((uintptr_t)global % bytes)
        nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, place, "%s %zu bytes at %p: must be aligned to as many",
            does_words[access], bytes, global);
    nb_memory_access(machine, (uintptr_t)global, bytes, access, NULL, place);
}

extern "C" void nb_emulator_device_fence(void)
{
    nb_machine_burn(nb_machine_here);
    nb_memory_fence(nb_machine_here);
}

extern "C" nb_u32_x4 nb_emulator_load_once(const void *global)
{
    nb_machine_burn(nb_machine_here);
    check_operand(nb_machine_here, global, 16, NB_ACCESS_READ_ONCE, NB_PLACE);
    return *(const nb_u32_x4 *)global;
}

extern "C" void nb_emulator_store_once(void *global, nb_u32_x4 value)
{
    nb_machine_burn(nb_machine_here);
    check_operand(nb_machine_here, global, 16, NB_ACCESS_WRITE, NB_PLACE);
    *(nb_u32_x4 *)global = value;
}

/* An atomic operation is an interval of its own, published at once: others' atomic operations on the word are no
 * race, nor are plain accesses by who performed one later. */
static void check_atomic(struct nb_machine *machine, uint32_t *global, const void *place)
{
    nb_machine_burn(machine);
    nb_memory_publish(machine);
    uint32_t plain = machine->interval;
    bool written = machine->interval_written;
    nb_memory_acquire(machine);
    machine->interval = new_interval(machine, 0);
    check_operand(machine, global, 4, NB_ACCESS_ATOMIC, place);
    machine->interval = plain;
    machine->interval_written = written;
}

extern "C" uint32_t nb_emulator_atomic_add(uint32_t *global, uint32_t value)
{
    check_atomic(nb_machine_here, global, NB_PLACE);
    uint32_t was = __atomic_fetch_add(global, value, __ATOMIC_ACQ_REL);
    nb_memory_acquire(nb_machine_here);
    return was;
}

extern "C" uint32_t nb_emulator_atomic_max(uint32_t *global, uint32_t value)
{
    check_atomic(nb_machine_here, global, NB_PLACE);
    uint32_t was = __atomic_load_n(global, __ATOMIC_ACQUIRE);
    while (was < value && !__atomic_compare_exchange_n(global, &was, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        continue;
    nb_memory_acquire(nb_machine_here);
    return was;
}
