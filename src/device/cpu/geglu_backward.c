#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(geglu_backward)

/* One row, [width] each. */
struct row_f32 {
    const float *gate, *up, *dy;
    float *d_gate, *d_up;
};

struct row_bf16 {
    const nb_bf16 *gate, *up, *dy;
    nb_bf16 *d_gate, *d_up;
};

/* gelu(g) = g * s with s = 1 / (1 + exp(-p)), p = 2 sqrt(2/pi) (g + 0.044715 g^3), as in geglu.c. */
struct gelu {
    float value, slope;
};

/* slope = s * (1 + (1 - s) * g * dp/dg). From |g| = 16 on s is 0 or 1 and the slope with it: g is cut there, so that
 * its powers stay finite. */
static inline struct gelu differentiate(float g)
{
    float cut = g > 16.0f ? 16.0f : g;
    cut = cut < -16.0f ? -16.0f : cut;
    float square = cut * cut;
    float below = 1.0f + nb_expf(-1.5957691216f * (cut + 0.044715f * square * cut));
    float s = 1.0f / below, rise = cut * (1.5957691216f * (1.0f + 0.134145f * square));
    return (struct gelu){g / below, s * (1.0f + (1.0f - s) * rise)};
}

NB_CLONES
static void differentiate_f32(struct row_f32 r, int width)
{
#pragma GCC ivdep /* d_gate may be gate, d_up may be up */
    for (int i = 0; i < width; i++) {
        float u = r.up[i], d = r.dy[i];
        struct gelu gelu = differentiate(r.gate[i]);
        r.d_gate[i] = d * u * gelu.slope;
        r.d_up[i] = d * gelu.value;
    }
}

/* In pieces that pass through the first-level cache as fp32, as in swiglu_backward.c. */
NB_CLONES
static void differentiate_bf16(struct row_bf16 r, int width)
{
    enum { PIECE = 512 };
    float g[PIECE], value[PIECE], slope[PIECE];
    for (int begin = 0; begin < width; begin += PIECE) {
        int count = width - begin < PIECE ? width - begin : PIECE;
        for (int i = 0; i < count; i++)
            g[i] = nb_bf16_to_float(r.gate[begin + i]);
        for (int i = 0; i < count; i++) {
            struct gelu gelu = differentiate(g[i]);
            value[i] = gelu.value;
            slope[i] = gelu.slope;
        }
#pragma GCC ivdep
        for (int i = 0; i < count; i++) {
            float u = nb_bf16_to_float(r.up[begin + i]), d = nb_bf16_to_float(r.dy[begin + i]);
            r.d_gate[begin + i] = nb_bf16_from_float(d * u * slope[i]);
            r.d_up[begin + i] = nb_bf16_from_float(d * nb_cpu_round(NB_DTYPE_BF16, value[i]));
        }
    }
}

static void row(const struct nb_geglu_backward *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    const void *gate = nb_cpu_element(a->gate, a->activation, begin), *up = nb_cpu_element(a->up, a->activation, begin);
    const void *dy = nb_cpu_element(a->dy, a->activation, begin);
    void *d_gate = nb_cpu_element(a->d_gate, a->activation, begin),
         *d_up = nb_cpu_element(a->d_up, a->activation, begin);
    if (a->activation == NB_DTYPE_F32)
        differentiate_f32((struct row_f32){gate, up, dy, d_gate, d_up}, a->width);
    else
        differentiate_bf16((struct row_bf16){gate, up, dy, d_gate, d_up}, a->width);
}

void nb_cpu_run_geglu_backward(struct nb_cpu *cpu, const struct nb_geglu_backward *a)
{
    int tokens = nb_cpu_token_rows(a->slot, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->width))
    for (int t = 0; t < tokens; t++)
        row(a, t);
}
