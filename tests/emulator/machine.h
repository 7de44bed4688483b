/* The emulated machine from the inside. One nb_machine an OS thread; it runs one block at a time, whose threads
 * are fibers.
 *
 * Time is a counter of the machine that goes up at each synchronization. What a thread did before its release at
 * time t is done for everyone who acquired t or later; `known` says how far each warp has acquired of each.
 * Barriers are met by whole warps (PTX's .aligned forms), so one number a pair of warps does; mbarriers alone are
 * met by single threads, and bring in `thread_known`, a row for each thread.
 *
 * Warp operations other than the warp's barrier bring the lanes together but order no memory: so the PTX ISA has
 * it. */
#ifndef NB_TESTS_EMULATOR_MACHINE_H
#define NB_TESTS_EMULATOR_MACHINE_H

#include <cstdint>
#include <map>
#include <vector>

#include "emulator/emulator.h"
#include "emulator/fiber.h"

typedef float nb_float_x4 __attribute__((vector_size(16)));
typedef uint32_t nb_u32_x4 __attribute__((vector_size(16)));

enum {
    NB_LANES = 32,
    NB_THREADS_MAX = 1024,
    NB_WARPS_MAX = NB_THREADS_MAX / NB_LANES,
    NB_SHARED_MAX = 227 * 1024,
    NB_NAMED_BARRIERS = 16,
};

/* What brings the lanes of a warp together. */
enum nb_operation {
    NB_OPERATION_NONE,
    NB_OPERATION_SHUFFLE_XOR,
    NB_OPERATION_SHUFFLE,
    NB_OPERATION_SHUFFLE_UP,
    NB_OPERATION_BALLOT,
    NB_OPERATION_WARP_ANY,
    NB_OPERATION_WARP_ALL,
    NB_OPERATION_WARP_BARRIER,
    NB_OPERATION_BLOCK_BARRIER,
    NB_OPERATION_BLOCK_ANY,
    NB_OPERATION_NAMED_BARRIER,
    NB_OPERATION_NAMED_ARRIVE,
    NB_OPERATION_LDMATRIX_X2,
    NB_OPERATION_LDMATRIX_X4,
    NB_OPERATION_LDMATRIX_X2_TRANS,
    NB_OPERATION_LDMATRIX_X4_TRANS,
    NB_OPERATION_MMA,
};

struct nb_copy {
    const unsigned char *from;
    uint32_t to;    /* shared offset */
    uint32_t group; /* how many groups this thread had committed before */
    uint8_t bytes, valid;
};

struct nb_mbarrier;

struct nb_lane {
    struct nb_fiber fiber;
    unsigned char *stack; /* NB_FIBER_STACK_BYTES */
    uint16_t thread;
    uint8_t index; /* in the warp */
    struct nb_warp *warp;
    /* Asynchronous copies, oldest first; those before `landed` have landed. */
    std::vector<struct nb_copy> copies;
    uint32_t landed, groups;
    const void *place; /* of the barrier or warp operation that it came to last */
    /* The mbarrier's phase for which it waits. NULL: none. */
    struct nb_mbarrier *waits_for;
    uint32_t waits_parity;
};

/* What the lanes hand in and get back. Two of them in turn: a lane that is through an operation may reach the next
 * one before the others have taken their results, but not the one after. */
struct nb_exchange {
    uint32_t value[NB_LANES];
    uint32_t result;
    const unsigned char *row[NB_LANES];
    nb_u32_x4 a[NB_LANES];
    uint64_t b[NB_LANES];
    nb_float_x4 d[NB_LANES];
    nb_u32_x4 matrix[NB_LANES];
};

struct nb_warp {
    uint32_t runnable, arrived, exited; /* lanes */
    uint8_t operation, turn, index;
    uint8_t rotation, descending; /* the order in which lanes go on */
    uint8_t barrier;              /* named */
    int barrier_threads;
    bool any;
    struct nb_exchange exchange[2];
};

/* Of one word (or byte) of shared memory. Times at most `floor` are of no more interest. `other` is the latest
 * reader of another warp than `reader`'s: with more, the oldest are forgotten (so a race may be missed on a word;
 * it is not on all words and seeds). */
struct nb_shared_record {
    uint32_t written, read, other_read; /* times */
    uint16_t writer, reader, other;
    uint16_t split; /* of a word: its bytes have records of their own */
};

enum nb_byte_state : uint8_t { NB_BYTE_UNINITIALIZED = 0, NB_BYTE_INITIALIZED = 1, NB_BYTE_UNDER_COPY = 2 };

struct nb_named_barrier {
    int threads, arrived;
    uint32_t waiting;             /* warps */
    uint32_t known[NB_WARPS_MAX]; /* of those that arrived */
    std::vector<uint32_t> thread_known;
};

struct nb_mbarrier {
    uint32_t offset;
    int arrivals, pending;
    uint32_t phases;             /* complete */
    std::vector<uint32_t> known; /* by thread */
};

/* cp.async.mbarrier.arrive: an arrival that comes when the thread's copies before `copies` have landed. */
struct nb_late_arrival {
    struct nb_lane *lane;
    struct nb_mbarrier *barrier;
    uint32_t copies, time;
};

struct nb_allocation;
enum { NB_ALLOCATION_CACHE = 64 };

struct nb_machine {
    struct nb_lane *lane;  /* running; NULL between blocks */
    unsigned char *shared; /* NB_SHARED_MAX, aligned to 1,024 */
    uint32_t shared_bytes;
    uint32_t fuse; /* accesses until the next switch for no reason */
    uint32_t now, floor;
    uint32_t known[NB_WARPS_MAX][NB_WARPS_MAX]; /* [w][v]: what w has acquired of v */
    uint8_t *state;                             /* by shared byte: enum nb_byte_state */
    struct nb_shared_record *words, *bytes;
    bool threads_known;                 /* thread_known is in use */
    std::vector<uint32_t> thread_known; /* [threads][threads] */

    const struct nb_emulator_grid *grid;
    int threads, warps;
    unsigned block[3];
    uint64_t block_linear, order; /* order: its turn in the launch */
    uint64_t random;
    uint32_t ready;       /* warps with a runnable lane */
    int living;           /* threads */
    unsigned mma_order;   /* of the sums over k: of the launch, by the seed alone */
    int at_block_barrier; /* warps */
    bool any;
    struct nb_named_barrier named[NB_NAMED_BARRIERS];
    std::map<uint32_t, struct nb_mbarrier> mbarriers;
    std::vector<struct nb_late_arrival> late;

    /* Global memory: memory.cc. */
    struct nb_allocation *cache[NB_ALLOCATION_CACHE];
    uint32_t interval; /* the number that stands for this block's writes now */
    bool interval_written;
    std::vector<uint32_t> intervals_closed; /* by a fence, not yet published by an atomic operation */
    uint32_t acquired;
    uint32_t begun; /* the time when the block began */

    struct nb_fiber scheduler;
    struct nb_fiber_stacks stacks;
    struct nb_lane lanes[NB_THREADS_MAX];
    struct nb_warp warp[NB_WARPS_MAX];
};

/* The OS thread's machine while it runs kernels, else NULL. Initial-exec: a load without a call. */
extern __thread struct nb_machine *nb_machine_here __attribute__((tls_model("initial-exec")));

static inline uint64_t nb_machine_random(struct nb_machine *machine)
{
    /* xorshift64*; the upper bits are the good ones. */
    uint64_t x = machine->random;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    machine->random = x;
    return x * 0x2545f4914f6cdd1dull >> 16;
}

/* ---- machine.cc ---- */

/* The first fault of a launch, by the order of blocks: keeps it, gives up the block and never returns. `place`:
 * the instruction, or NULL. */
[[noreturn]] void nb_machine_fault(struct nb_machine *machine, enum nb_emulator_fault_kind kind, const void *place,
    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* The running lane stays runnable, and another may go on. */
void nb_machine_yield(struct nb_machine *machine);
/* The running lane cannot go on; returns when it can. */
void nb_machine_suspend(struct nb_machine *machine);
void nb_machine_wake(struct nb_machine *machine, struct nb_warp *warp, uint32_t lanes);
/* True for the last lane to arrive at a warp operation, which must compute and call nb_machine_release; the others
 * return when it did. */
bool nb_machine_arrive(struct nb_machine *machine, enum nb_operation operation, const void *place);
void nb_machine_release(struct nb_machine *machine);
const char *nb_operation_name(int operation);
/* Whether the running lane's warp shares work of time `time` by `thread` through its barriers. */
bool nb_machine_knows(const struct nb_machine *machine, unsigned reader, unsigned thread, uint32_t time);

static inline void nb_machine_burn(struct nb_machine *machine)
{
    if (__builtin_expect(--machine->fuse == 0, 0))
        nb_machine_yield(machine);
}

/* ---- fault.cc ---- */
uint64_t nb_emulator_launch_number(void);
void nb_fault_record(enum nb_emulator_fault_kind kind, uint64_t order, const char *message);
uint64_t nb_fault_order(void); /* of the earliest block with a fault; UINT64_MAX: none */
void nb_fault_launch(void);    /* a new launch begins */
void nb_fault_describe_place(const void *place, char *text, size_t bytes);

/* ---- shared.cc ---- */
void nb_shared_create(struct nb_machine *machine);
void nb_shared_destroy(struct nb_machine *machine);
void nb_shared_reset(struct nb_machine *machine); /* a block begins */
void nb_shared_read(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place);
void nb_shared_write(struct nb_machine *machine, uint32_t offset, uint32_t bytes, const void *place);
/* By the warp at once: any write by one of its lanes since its barrier is a race. */
void nb_shared_read_by_warp(
    struct nb_machine *machine, struct nb_lane *lane, uint32_t offset, uint32_t bytes, const void *place);
bool nb_shared_offset(const struct nb_machine *machine, const void *address, uint32_t *offset);
void nb_copies_land(struct nb_machine *machine, struct nb_lane *lane, uint32_t until, uint32_t time);
bool nb_copies_land_late(struct nb_machine *machine);

/* ---- memory.cc ---- */
enum nb_access { NB_ACCESS_READ, NB_ACCESS_WRITE, NB_ACCESS_READ_ONCE, NB_ACCESS_ATOMIC, NB_ACCESS_COPY };
void nb_memory_launch(uint64_t blocks);
void nb_memory_block(struct nb_machine *machine);
/* Any address that is neither shared nor the fiber's stack. Copy: reads uninitialized bytes, whose states go to
 * `state`. */
void nb_memory_access(struct nb_machine *machine, uintptr_t address, size_t bytes, enum nb_access access,
    uint8_t *state, const void *place);
void nb_memory_fence(struct nb_machine *machine);
void nb_memory_publish(struct nb_machine *machine); /* before an atomic operation */
void nb_memory_acquire(struct nb_machine *machine); /* after it */

#endif
