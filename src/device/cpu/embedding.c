#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(embedding)

NB_CPU_INLINE void scaled_row_as(const nb_bf16 *restrict from, float scale, void *restrict x, int width, enum nb_dtype dtype)
{
    for (int i = 0; i < width; i++)
        nb_cpu_put(x, dtype, i, nb_bf16_to_float(from[i]) * scale);
}

NB_CLONES
static void scaled_row(const nb_bf16 *from, float scale, void *x, int width, enum nb_dtype dtype)
{
    NB_CPU_SPECIALIZE(dtype, scaled_row_as, from, scale, x, width);
}

void nb_cpu_run_embedding(struct nb_cpu *cpu, const struct nb_embedding *a)
{
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max), width = a->width;
    const nb_bf16 *table = nb_cpu_pointer(a->table); /* [vocabulary, width] */
    const int32_t *ids = nb_cpu_pointer(a->ids);     /* [tokens] */
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * width))
    for (int t = 0; t < tokens; t++)
        scaled_row(table + (int64_t)ids[t] * width, a->scale, nb_cpu_element(a->x, a->activation, (uint64_t)t * (uint64_t)width),
                   width, a->activation);
}
