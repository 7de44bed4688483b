#include "device/cpu/gated.h"

NB_CPU_NO_SCRATCH(swiglu)

static inline float silu(float g)
{
    return g / (1.0f + nb_expf(-g));
}

NB_CLONES
static void row_f32(const float *gate, const float *up, float *y, int width)
{
    nb_gated_row_f32(silu, gate, up, y, width);
}

NB_CLONES
static void row_bf16(const nb_bf16 *gate, const nb_bf16 *up, nb_bf16 *y, int width)
{
    nb_gated_row_bf16(silu, gate, up, y, width);
}

void nb_cpu_run_swiglu(struct nb_cpu *cpu, const struct nb_swiglu *a)
{
    int tokens = nb_cpu_token_rows(a->slot, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++) {
        uint64_t begin = (uint64_t)t * (uint64_t)a->width;
        const void *gate = nb_cpu_element(a->gate, a->activation, begin), *up = nb_cpu_element(a->up, a->activation, begin);
        void *y = nb_cpu_element(a->y, a->activation, begin);
        if (a->activation == NB_DTYPE_F32)
            row_f32(gate, up, y, a->width);
        else
            row_bf16(gate, up, y, a->width);
    }
}
