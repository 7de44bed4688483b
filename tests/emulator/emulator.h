/* An emulator of the CUDA machine, for tests: runs the kernels of cuda/ on the host, thread by thread, and finds
 * what a GPU would show only sometimes. C++17, g++ alone, no CUDA toolkit.
 *
 * A block's threads are fibers of one OS thread; they switch at barriers, warp operations and waits, in an order
 * drawn from the seed. The kernels are compiled with -fsanitize=thread, whose call-outs (__tsan_read4, ...) are this
 * emulator's own: every access through a plain pointer is seen. Memory is
 *   shared    the running block's: NaN at start; per word the last writer, readers and the barrier epoch tell races
 *   device    what cudaMalloc gave: bounds by allocation, uninitialized bytes tracked, words written by one block of a
 *             launch and touched by another without atomics are races, and those within a block as in shared memory
 *   host      pinned memory that kernels may touch; anything else but the fiber's own stack and constants is out of
 *             bounds.
 * The first fault of a launch is kept with kernel, block, thread and address; the launch is abandoned, and from then
 * on every call of the runtime returns cudaErrorLaunchFailure, as on a real device, until nb_emulator_reset. */
#ifndef NB_TESTS_EMULATOR_H
#define NB_TESTS_EMULATOR_H

#include <cstddef>
#include <cstdint>
#include <functional>

enum nb_emulator_fault_kind {
    NB_EMULATOR_NO_FAULT,
    NB_EMULATOR_RACE,              /* shared or global memory, two threads without a barrier between */
    NB_EMULATOR_OUT_OF_BOUNDS,
    NB_EMULATOR_MISALIGNED,
    NB_EMULATOR_UNINITIALIZED,     /* read before anything wrote it; also shared memory under an asynchronous copy */
    NB_EMULATOR_DEADLOCK,          /* a full round of the block's threads without progress */
    NB_EMULATOR_DIVERGENT_BARRIER, /* a barrier or a warp operation that part of its threads never reach, or reach at another place */
    NB_EMULATOR_BAD_LAUNCH,        /* too many threads or too much shared memory */
    NB_EMULATOR_BAD_INSTRUCTION,   /* operands that the machine refuses */
};

/* ---- for tests ---- */

/* Order of fibers, blocks and streams, and of the sums of mma.sync (by seed / 8 alone: within a group of eight seeds
 * bits may be compared) and of the reference for cuBLASLt. Takes effect at the next launch. */
void nb_emulator_seed(uint64_t seed);
/* What it was set to last (0 at start). */
uint64_t nb_emulator_seed_value(void);

/* The first fault since the last reset, and its words ("race: kernel rmsnorm_kernel, block 3, thread 17: reads
 * shared byte 128, which thread 4 wrote at epoch 2 ..."). "" without one. */
enum nb_emulator_fault_kind nb_emulator_fault(void);
const char *nb_emulator_fault_message(void);
void nb_emulator_reset(void);

/* ---- between the machine (machine.cc, memory.cc) and the runtime (runtime.cc) ---- */

struct nb_emulator_grid {
    const char *name;
    unsigned grid[3];
    int threads, shared_bytes;
    std::function<void()> body; /* calls the kernel with its arguments; run once by each thread */
};

/* Runs every block to its end, in an order drawn from the seed, several OS threads at a time. False after a fault. */
bool nb_emulator_run(const struct nb_emulator_grid &grid);

/* Device (or pinned host) memory comes and goes. A gap of at least 512 bytes of no allocation follows each. Device
 * memory starts uninitialized; host memory counts as initialized. */
void nb_emulator_memory_add(void *address, size_t bytes, bool device);
void nb_emulator_memory_remove(void *address);
/* A copy or fill by the runtime: within one allocation, or a fault. `written`: its bytes become initialized. A read
 * of bytes that nobody wrote is allowed here (whole slabs are copied); the copy carries their state along where both
 * sides are device memory. */
bool nb_emulator_memory_touch(const void *address, size_t bytes, bool written);
bool nb_emulator_memory_copied(void *to, const void *from, size_t bytes);
/* Marks bytes as uninitialized again: what an arena released. */
void nb_emulator_memory_forget(void *address, size_t bytes);

/* Records a fault from outside a kernel. */
void nb_emulator_fail(enum nb_emulator_fault_kind kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
