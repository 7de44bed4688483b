/* Elements of activation buffers, and how ops share out their rows. A loop is written once, in a function that NB_CPU_INLINE makes
 * part of its caller, and called with the dtype as a constant: the compiler then sees one plain loop for each dtype. */
#ifndef NB_DEVICE_CPU_ELEMENT_H
#define NB_DEVICE_CPU_ELEMENT_H

#include "device/cpu/cpu.h"

#define NB_CPU_INLINE static inline __attribute__((always_inline))

/* Calls function(arguments..., dtype) with dtype as a constant, F32 or BF16. */
#define NB_CPU_SPECIALIZE(dtype, function, ...)     \
    do {                                            \
        if ((dtype) == NB_DTYPE_F32)                \
            function(__VA_ARGS__, NB_DTYPE_F32);    \
        else                                        \
            function(__VA_ARGS__, NB_DTYPE_BF16);   \
    } while (0)

NB_CPU_INLINE float nb_cpu_get(const void *x, enum nb_dtype dtype, int64_t i)
{
    return dtype == NB_DTYPE_F32 ? ((const float *)x)[i] : nb_bf16_to_float(((const nb_bf16 *)x)[i]);
}

/* Rounds once to the dtype. */
NB_CPU_INLINE void nb_cpu_put(void *y, enum nb_dtype dtype, int64_t i, float value)
{
    if (dtype == NB_DTYPE_F32)
        ((float *)y)[i] = value;
    else
        ((nb_bf16 *)y)[i] = nb_bf16_from_float(value);
}

/* Threads for a loop over this many elements: waking a team costs about as much as 16,384 elements. Ops give the same bits at any
 * number of threads, so this changes none. */
static inline int nb_cpu_threads(const struct nb_cpu *cpu, int64_t elements)
{
    return elements < 16384 ? 1 : cpu->threads;
}

#endif
