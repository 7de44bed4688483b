#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(swiglu_backward)

/* One row, [width] each. */
struct row_f32 {
    const float *gate, *up, *dy;
    float *d_gate, *d_up;
};

struct row_bf16 {
    const nb_bf16 *gate, *up, *dy;
    nb_bf16 *d_gate, *d_up;
};

/* d silu(g) / dg, with s = 1 / (1 + exp(-g)). */
static inline float slope(float g, float s)
{
    return s * (1.0f + g * (1.0f - s));
}

NB_CLONES
static void differentiate_f32(struct row_f32 r, int width)
{
#pragma GCC ivdep /* d_gate may be gate, d_up may be up */
    for (int i = 0; i < width; i++) {
        float g = r.gate[i], u = r.up[i], d = r.dy[i], below = 1.0f + nb_expf(-g);
        r.d_gate[i] = d * u * slope(g, 1.0f / below);
        r.d_up[i] = d * (g / below);
    }
}

/* In pieces that pass through the first-level cache as fp32: a loop that widens, computes and rounds at once runs out of vector
 * registers and takes a third longer. */
NB_CLONES
static void differentiate_bf16(struct row_bf16 r, int width)
{
    enum { PIECE = 512 };
    float g[PIECE], s[PIECE], silu[PIECE];
    for (int begin = 0; begin < width; begin += PIECE) {
        int count = width - begin < PIECE ? width - begin : PIECE;
        for (int i = 0; i < count; i++)
            g[i] = nb_bf16_to_float(r.gate[begin + i]);
        for (int i = 0; i < count; i++) {
            float below = 1.0f + nb_expf(-g[i]);
            s[i] = 1.0f / below;
            silu[i] = g[i] / below;
        }
#pragma GCC ivdep
        for (int i = 0; i < count; i++) {
            float u = nb_bf16_to_float(r.up[begin + i]), d = nb_bf16_to_float(r.dy[begin + i]);
            r.d_gate[begin + i] = nb_bf16_from_float(d * u * slope(g[i], s[i]));
            r.d_up[begin + i] = nb_bf16_from_float(d * nb_cpu_round(NB_DTYPE_BF16, silu[i]));
        }
    }
}

static void row(const struct nb_swiglu_backward *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    const void *gate = nb_cpu_element(a->gate, a->activation, begin), *up = nb_cpu_element(a->up, a->activation, begin);
    const void *dy = nb_cpu_element(a->dy, a->activation, begin);
    void *d_gate = nb_cpu_element(a->d_gate, a->activation, begin), *d_up = nb_cpu_element(a->d_up, a->activation, begin);
    if (a->activation == NB_DTYPE_F32)
        differentiate_f32((struct row_f32){gate, up, dy, d_gate, d_up}, a->width);
    else
        differentiate_bf16((struct row_bf16){gate, up, dy, d_gate, d_up}, a->width);
}

void nb_cpu_run_swiglu_backward(struct nb_cpu *cpu, const struct nb_swiglu_backward *a)
{
    int tokens = nb_cpu_token_rows(a->slot, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++)
        row(a, t);
}
