#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(add)

NB_CPU_INLINE void row_as(const void *a, const void *b, void *y, int width, enum nb_dtype dtype)
{
#pragma GCC ivdep /* y may be a or b */
    for (int i = 0; i < width; i++)
        nb_cpu_put(y, dtype, i, nb_cpu_get(a, dtype, i) + nb_cpu_get(b, dtype, i));
}

NB_CLONES
static void row(const struct nb_add *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    NB_CPU_SPECIALIZE(a->activation, row_as, nb_cpu_element(a->a, a->activation, begin), nb_cpu_element(a->b, a->activation, begin),
                      nb_cpu_element(a->y, a->activation, begin), a->width);
}

void nb_cpu_run_add(struct nb_cpu *cpu, const struct nb_add *a)
{
    int tokens = nb_cpu_token_rows(a->slot, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++)
        row(a, t);
}
