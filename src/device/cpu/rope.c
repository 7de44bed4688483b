#include <math.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(rope)

/* 1/rms of a head in 16 fixed lanes. */
NB_CPU_INLINE float inverse_rms(const void *x, int head_dim, float epsilon, enum nb_dtype dtype)
{
    float lane[16] = {0};
    for (int i = 0; i < head_dim; i++)
        lane[i % 16] += nb_cpu_get(x, dtype, i) * nb_cpu_get(x, dtype, i);
    return 1.0f / sqrtf(nb_sum16(lane) / (float)head_dim + epsilon);
}

/* One head. */
struct head {
    const void *x;
    void *y;
    const nb_bf16 *w;           /* [head_dim], or NULL */
    const float *cosine, *sine; /* [head_dim / 2] */
    float *rms;                 /* one, with w */
    int head_dim;
    float epsilon;
};

NB_CPU_INLINE void head_as(const struct head *h, enum nb_dtype dtype)
{
    const void *x = h->x;
    void *y = h->y;
    const nb_bf16 *w = h->w;
    const float *cosine = h->cosine, *sine = h->sine;
    int half = h->head_dim / 2;
    if (!w) {
#pragma GCC ivdep /* y may be x: a pair is read before it is written */
        for (int i = 0; i < half; i++) {
            float xi = nb_cpu_get(x, dtype, i), xj = nb_cpu_get(x, dtype, i + half);
            nb_cpu_put(y, dtype, i, xi * cosine[i] - xj * sine[i]);
            nb_cpu_put(y, dtype, i + half, xj * cosine[i] + xi * sine[i]);
        }
        return;
    }
    float scale = inverse_rms(x, h->head_dim, h->epsilon, dtype);
    *h->rms = scale;
#pragma GCC ivdep
    for (int i = 0; i < half; i++) {
        float ni = nb_cpu_round(dtype, nb_cpu_get(x, dtype, i) * scale);
        float nj = nb_cpu_round(dtype, nb_cpu_get(x, dtype, i + half) * scale);
        float xi = nb_cpu_round(dtype, nb_bf16_to_float(w[i]) * ni);
        float xj = nb_cpu_round(dtype, nb_bf16_to_float(w[i + half]) * nj);
        nb_cpu_put(y, dtype, i, xi * cosine[i] - xj * sine[i]);
        nb_cpu_put(y, dtype, i + half, xj * cosine[i] + xi * sine[i]);
    }
}

NB_CLONES
static void token(const struct nb_rope *a, int t)
{
    int64_t at = (int64_t)((const int32_t *)nb_cpu_pointer(a->positions))[t] * (a->head_dim / 2);
    bool norm = !nb_dptr_is_null(a->w);
    for (int h = 0; h < a->heads; h++) {
        uint64_t begin = (uint64_t)(h * a->head_dim), row = (uint64_t)t;
        struct head head = {
            .x = nb_cpu_element(a->x, a->activation, row * (uint64_t)a->x_stride + begin),
            .y = nb_cpu_element(a->y, a->activation, row * (uint64_t)a->y_stride + begin),
            .w = nb_cpu_pointer(a->w),
            .cosine = (const float *)nb_cpu_pointer(a->cosine) + at,
            .sine = (const float *)nb_cpu_pointer(a->sine) + at,
            .rms = norm ? (float *)nb_cpu_pointer(a->rms) + (int64_t)t * a->heads + h : NULL,
            .head_dim = a->head_dim,
            .epsilon = a->epsilon,
        };
        NB_CPU_SPECIALIZE(a->activation, head_as, &head);
    }
}

void nb_cpu_run_rope(struct nb_cpu *cpu, const struct nb_rope *a)
{
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->heads * a->head_dim))
    for (int t = 0; t < tokens; t++)
        token(a, t);
}
