/* Fibers: stacks of one OS thread that hand the processor to each other. */
#ifndef NB_TESTS_EMULATOR_FIBER_H
#define NB_TESTS_EMULATOR_FIBER_H

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif

struct nb_fiber {
#ifdef __x86_64__
    void *stack_pointer;
#else
    ucontext_t context;
#endif
};

/* Saves the running fiber in *from and goes on with *to: where it was saved, or at its entry. */
extern "C" void nb_fiber_switch(struct nb_fiber *from, struct nb_fiber *to);

/* A fiber that begins at `entry`, which never returns, on [stack, stack + bytes). */
void nb_fiber_start(struct nb_fiber *fiber, unsigned char *stack, size_t bytes, void (*entry)(void));

/* Zeroed pages, taken when they are first touched; munmap gives them back. Ends the program when there are none. */
void *nb_map_bytes(size_t bytes);

/* `count` stacks in one mapping, each with an inaccessible page below. */
enum { NB_FIBER_STACK_BYTES = 128 * 1024, NB_FIBER_STACK_STRIDE = NB_FIBER_STACK_BYTES + 4096 };
struct nb_fiber_stacks {
    unsigned char *memory; /* stack i: NB_FIBER_STACK_BYTES at memory + i * NB_FIBER_STACK_STRIDE + 4096 */
    int count;
};
void nb_fiber_stacks_create(struct nb_fiber_stacks *stacks, int count);
void nb_fiber_stacks_destroy(struct nb_fiber_stacks *stacks);

static inline unsigned char *nb_fiber_stack(const struct nb_fiber_stacks *stacks, int i)
{
    return stacks->memory + (size_t)i * NB_FIBER_STACK_STRIDE + 4096;
}

#endif
