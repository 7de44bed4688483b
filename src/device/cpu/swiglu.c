#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(swiglu)

NB_CPU_INLINE void row_as(const void *gate, const void *up, void *y, int width, enum nb_dtype dtype)
{
#pragma GCC ivdep /* y may be gate or up */
    for (int i = 0; i < width; i++) {
        float g = nb_cpu_get(gate, dtype, i);
        float silu = nb_cpu_round(dtype, g / (1.0f + nb_expf(-g)));
        nb_cpu_put(y, dtype, i, silu * nb_cpu_get(up, dtype, i));
    }
}

NB_CLONES
static void row(const struct nb_swiglu *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    NB_CPU_SPECIALIZE(a->activation, row_as, nb_cpu_element(a->gate, a->activation, begin),
                      nb_cpu_element(a->up, a->activation, begin), nb_cpu_element(a->y, a->activation, begin), a->width);
}

void nb_cpu_run_swiglu(struct nb_cpu *cpu, const struct nb_swiglu *a)
{
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++)
        row(a, t);
}
