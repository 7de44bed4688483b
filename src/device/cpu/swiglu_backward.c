#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(swiglu_backward)

struct row {
    const void *gate, *up, *dy;
    void *d_gate, *d_up;
    int width;
};

NB_CPU_INLINE void row_as(const struct row *r, enum nb_dtype dtype)
{
    const void *gate = r->gate, *up = r->up, *dy = r->dy;
    void *d_gate = r->d_gate, *d_up = r->d_up;
#pragma GCC ivdep /* d_gate may be gate, d_up may be up */
    for (int i = 0; i < r->width; i++) {
        float g = nb_cpu_get(gate, dtype, i), u = nb_cpu_get(up, dtype, i), d = nb_cpu_get(dy, dtype, i);
        float below = 1.0f + nb_expf(-g);
        float s = 1.0f / below, silu = nb_cpu_round(dtype, g / below);
        nb_cpu_put(d_gate, dtype, i, d * u * (s * (1.0f + g * (1.0f - s))));
        nb_cpu_put(d_up, dtype, i, d * silu);
    }
}

NB_CLONES
static void row(const struct nb_swiglu_backward *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    struct row r = {
        .gate = nb_cpu_element(a->gate, a->activation, begin),
        .up = nb_cpu_element(a->up, a->activation, begin),
        .dy = nb_cpu_element(a->dy, a->activation, begin),
        .d_gate = nb_cpu_element(a->d_gate, a->activation, begin),
        .d_up = nb_cpu_element(a->d_up, a->activation, begin),
        .width = a->width,
    };
    NB_CPU_SPECIALIZE(a->activation, row_as, &r);
}

void nb_cpu_run_swiglu_backward(struct nb_cpu *cpu, const struct nb_swiglu_backward *a)
{
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++)
        row(a, t);
}
