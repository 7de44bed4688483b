#include "emulator/fiber.h"

#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

void *nb_map_bytes(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("the emulated GPU has no memory");
        abort();
    }
    return memory;
}

void nb_fiber_stacks_create(struct nb_fiber_stacks *stacks, int count)
{
    stacks->memory = (unsigned char *)nb_map_bytes((size_t)count * NB_FIBER_STACK_STRIDE);
    stacks->count = count;
    for (int i = 0; i < count; i++)
        mprotect(stacks->memory + (size_t)i * NB_FIBER_STACK_STRIDE, 4096, PROT_NONE);
}

void nb_fiber_stacks_destroy(struct nb_fiber_stacks *stacks)
{
    if (stacks->memory)
        munmap(stacks->memory, (size_t)stacks->count * NB_FIBER_STACK_STRIDE);
    stacks->memory = NULL;
}

#ifdef __x86_64__

/* The registers that a call preserves; the control words of the floating-point units are the same in all fibers.
 * The jump through a register, not a return: the processor's stack of return addresses knows nothing of fibers. */
asm(R"(
    .text
    .globl nb_fiber_switch
    .type nb_fiber_switch, @function
nb_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmpq *%rcx
    .size nb_fiber_switch, .-nb_fiber_switch
)");

void nb_fiber_start(struct nb_fiber *fiber, unsigned char *stack, size_t bytes, void (*entry)(void))
{
    void **top = (void **)(stack + bytes);
    *--top = NULL; /* the entry's return address, so that the stack is aligned as after a call */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    fiber->stack_pointer = top;
}

#else

void nb_fiber_switch(struct nb_fiber *from, struct nb_fiber *to)
{
    swapcontext(&from->context, &to->context);
}

void nb_fiber_start(struct nb_fiber *fiber, unsigned char *stack, size_t bytes, void (*entry)(void))
{
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = bytes;
    fiber->context.uc_link = NULL;
    makecontext(&fiber->context, entry, 0);
}

#endif
