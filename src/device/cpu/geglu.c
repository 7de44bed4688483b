#include "device/cpu/gated.h"

NB_CPU_NO_SCRATCH(geglu)

/* With u = sqrt(2/pi) * (g + 0.044715 g^3): g/2 * (1 + tanh(u)) = g / (1 + exp(-2u)), which keeps its digits where
 * tanh(u) is near -1. exp(-2u) may overflow to infinity, and the quotient is 0. */
static inline float gelu(float g)
{
    float twice = 1.5957691216f * (g + 0.044715f * g * g * g);
    return g / (1.0f + nb_expf(-twice));
}

NB_CLONES
static void row_f32(const float *gate, const float *up, float *y, int width)
{
    nb_gated_row_f32(gelu, gate, up, y, width);
}

NB_CLONES
static void row_bf16(const nb_bf16 *gate, const nb_bf16 *up, nb_bf16 *y, int width)
{
    nb_gated_row_bf16(gelu, gate, up, y, width);
}

void nb_cpu_run_geglu(struct nb_cpu *cpu, const struct nb_geglu *a)
{
    int tokens = nb_cpu_token_rows(a->slot, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++) {
        uint64_t begin = (uint64_t)t * (uint64_t)a->width;
        const void *gate = nb_cpu_element(a->gate, a->activation, begin),
                   *up = nb_cpu_element(a->up, a->activation, begin);
        void *y = nb_cpu_element(a->y, a->activation, begin);
        if (a->activation == NB_DTYPE_F32)
            row_f32(gate, up, y, a->width);
        else
            row_bf16(gate, up, y, a->width);
    }
}
