/* What g++ -fsanitize=thread,alignment makes kernels call at each access. There is no libtsan or libubsan: these
 * are the functions.
 *
 * Host code of the same files calls them too, where there is nothing to check. Memory that cannot be seen from
 * outside a fiber (variables whose address never leaves it) is not instrumented; the rest of its stack is told by
 * its address. */
#include <cstdint>
#include <cstring>

#include "emulator/machine.h"

#define NB_PLACE __builtin_return_address(0)

enum alignment { NATURAL, ANY };

template <bool WRITES>
static inline __attribute__((always_inline)) void check(
    void *pointer, size_t bytes, enum alignment alignment, const void *place)
{
    struct nb_machine *machine = nb_machine_here;
    if (!machine)
        return;
    uintptr_t address = (uintptr_t)pointer, offset = address - (uintptr_t)machine->shared;
    bool shared = offset < machine->shared_bytes;
    if (!shared && address - (uintptr_t)machine->lane->stack < NB_FIBER_STACK_BYTES)
        return;
    if (__builtin_expect(alignment == NATURAL && (address & (bytes - 1)), 0))
        nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, place, "%s %zu bytes at %s %zu: must be aligned to as many",
            WRITES ? "writes" : "reads", bytes, shared ? "shared byte" : "address",
            (size_t)(shared ? offset : address));
    nb_machine_burn(machine);
    if (!shared)
        nb_memory_access(machine, address, bytes, WRITES ? NB_ACCESS_WRITE : NB_ACCESS_READ, NULL, place);
    else if (WRITES)
        nb_shared_write(machine, (uint32_t)offset, (uint32_t)bytes, place);
    else
        nb_shared_read(machine, (uint32_t)offset, (uint32_t)bytes, place);
}

extern "C" {

/* clang-format off */
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void *) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

#define NB_ACCESS(name, bytes, writes, alignment) \
    void __tsan_##name##bytes(void *address) { check<writes>(address, bytes, alignment, NB_PLACE); }
#define NB_ACCESSES(bytes)                               \
    NB_ACCESS(read, bytes, false, NATURAL)               \
    NB_ACCESS(write, bytes, true, NATURAL)               \
    NB_ACCESS(volatile_read, bytes, false, NATURAL)      \
    NB_ACCESS(volatile_write, bytes, true, NATURAL)      \
    NB_ACCESS(unaligned_read, bytes, false, ANY)         \
    NB_ACCESS(unaligned_write, bytes, true, ANY)         \
    NB_ACCESS(unaligned_volatile_read, bytes, false, ANY) \
    NB_ACCESS(unaligned_volatile_write, bytes, true, ANY)

NB_ACCESSES(1)
NB_ACCESSES(2)
NB_ACCESSES(4)
NB_ACCESSES(8)
NB_ACCESSES(16)

void __tsan_read_range(void *address, size_t bytes)
{
    if (bytes)
        check<false>(address, bytes, ANY, NB_PLACE);
}

void __tsan_write_range(void *address, size_t bytes)
{
    if (bytes)
        check<true>(address, bytes, ANY, NB_PLACE);
}

/* Host code alone has C++ atomics: guards of static variables, shared pointers. Kernels have nb_atomic_add and
 * nb_atomic_max. */
#define NB_FETCH(bits, type, operation)                                                  \
    type __tsan_atomic##bits##_fetch_##operation(volatile type *at, type value, int)     \
    {                                                                                    \
        return __atomic_fetch_##operation(at, value, __ATOMIC_SEQ_CST);                  \
    }
#define NB_COMPARE_EXCHANGE(bits, type, strength)                                                                     \
    int __tsan_atomic##bits##_compare_exchange_##strength(volatile type *at, type *expected, type value, int, int)    \
    {                                                                                                                 \
        return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);           \
    }
#define NB_ATOMICS(bits, type)                                                           \
    type __tsan_atomic##bits##_load(const volatile type *at, int)                        \
    {                                                                                    \
        return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                    \
    }                                                                                    \
    void __tsan_atomic##bits##_store(volatile type *at, type value, int)                 \
    {                                                                                    \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                   \
    }                                                                                    \
    type __tsan_atomic##bits##_exchange(volatile type *at, type value, int)              \
    {                                                                                    \
        return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                         \
    }                                                                                    \
    NB_FETCH(bits, type, add)                                                            \
    NB_FETCH(bits, type, sub)                                                            \
    NB_FETCH(bits, type, and)                                                            \
    NB_FETCH(bits, type, or)                                                             \
    NB_FETCH(bits, type, xor)                                                            \
    NB_COMPARE_EXCHANGE(bits, type, strong)                                              \
    NB_COMPARE_EXCHANGE(bits, type, weak)

NB_ATOMICS(8, uint8_t)
NB_ATOMICS(16, uint16_t)
NB_ATOMICS(32, uint32_t)
NB_ATOMICS(64, uint64_t)

void __tsan_atomic_thread_fence(int)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void __tsan_atomic_signal_fence(int) {}
/* clang-format on */

/* -fsanitize=alignment: whole vectors are checked before the optimizer takes them apart. The data begin with the
 * source's place: file, line, column; then the type, then the logarithm of the alignment (gcc's ubsan.cc,
 * ubsan_create_data). */
struct mismatch {
    const char *file;
    uint32_t line, column;
    const void *type;
    unsigned char log_alignment;
};

void __ubsan_handle_type_mismatch_v1(void *data, uintptr_t address)
{
    struct nb_machine *machine = nb_machine_here;
    const struct mismatch *mismatch = (const struct mismatch *)data;
    if (!machine)
        return;
    uint32_t offset;
    bool shared = nb_shared_offset(machine, (const void *)address, &offset);
    const char *slash = strrchr(mismatch->file ? mismatch->file : "", '/');
    const char *file = slash ? slash + 1 : mismatch->file;
    nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, NULL, "touches %s %zu, which must be a multiple of %d (%s:%u)",
        shared ? "shared byte" : "address", shared ? (size_t)offset : (size_t)address, 1 << mismatch->log_alignment,
        file ? file : "?", mismatch->line);
}

void __ubsan_handle_type_mismatch_v1_abort(void *data, uintptr_t address)
{
    __ubsan_handle_type_mismatch_v1(data, address);
}
}
