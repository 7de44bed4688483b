#include "device/check.h"
#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(rope_backward)

/* One head: the rotation undone, and what the norm before it needs. */
struct head {
    const void *x, *dy;
    void *dx;
    const nb_bf16 *w;
    const float *cosine, *sine;
    float rms;
    int head_dim;
};

NB_CPU_INLINE void rotate_back(const struct head *d, enum nb_dtype dtype)
{
    int half = d->head_dim / 2;
    const void *dy = d->dy;
    void *dx = d->dx;
    const float *cosine = d->cosine, *sine = d->sine;
#pragma GCC ivdep /* dx may be dy: a pair is read before it is written */
    for (int i = 0; i < half; i++) {
        float di = nb_cpu_get(dy, dtype, i), dj = nb_cpu_get(dy, dtype, i + half);
        nb_cpu_put(dx, dtype, i, di * cosine[i] + dj * sine[i]);
        nb_cpu_put(dx, dtype, i + half, dj * cosine[i] - di * sine[i]);
    }
}

/* With n = x * rms and d = w * (dy rotated back): dx = rms * (d - n * mean(d * n)), as in rmsnorm_backward. */
NB_CPU_INLINE void rotate_and_norm_back(const struct head *r, enum nb_dtype dtype)
{
    int half = r->head_dim / 2;
    float d[NB_HEAD_DIM_MAX], n[NB_HEAD_DIM_MAX], lane[16] = {0};
    for (int i = 0; i < half; i++) {
        float di = nb_cpu_get(r->dy, dtype, i), dj = nb_cpu_get(r->dy, dtype, i + half);
        d[i] = nb_bf16_to_float(r->w[i]) * (di * r->cosine[i] + dj * r->sine[i]);
        d[i + half] = nb_bf16_to_float(r->w[i + half]) * (dj * r->cosine[i] - di * r->sine[i]);
    }
    for (int i = 0; i < r->head_dim; i++)
        n[i] = nb_cpu_get(r->x, dtype, i) * r->rms;
    for (int i = 0; i < r->head_dim; i++)
        lane[i % 16] += d[i] * n[i];
    float mean = nb_sum16(lane) / (float)r->head_dim;
    for (int i = 0; i < r->head_dim; i++)
        nb_cpu_put(r->dx, dtype, i, r->rms * (d[i] - n[i] * mean));
}

NB_CPU_INLINE void head_as(const struct head *d, enum nb_dtype dtype)
{
    if (d->w)
        rotate_and_norm_back(d, dtype);
    else
        rotate_back(d, dtype);
}

NB_CLONES
static void token(const struct nb_rope_backward *a, int t)
{
    int64_t at = (int64_t)((const int32_t *)nb_cpu_pointer(a->positions))[t] * (a->head_dim / 2);
    bool norm = !nb_dptr_is_null(a->w);
    for (int h = 0; h < a->heads; h++) {
        uint64_t begin = (uint64_t)(h * a->head_dim), row = (uint64_t)t;
        struct head d = {
            .x = norm ? nb_cpu_element(a->x, a->activation, row * (uint64_t)a->x_stride + begin) : NULL,
            .dy = nb_cpu_element(a->dy, a->activation, row * (uint64_t)a->dy_stride + begin),
            .dx = nb_cpu_element(a->dx, a->activation, row * (uint64_t)a->dx_stride + begin),
            .w = nb_cpu_pointer(a->w),
            .cosine = (const float *)nb_cpu_pointer(a->cosine) + at,
            .sine = (const float *)nb_cpu_pointer(a->sine) + at,
            .rms = norm ? ((const float *)nb_cpu_pointer(a->rms))[(int64_t)t * a->heads + h] : 0.0f,
            .head_dim = a->head_dim,
        };
        NB_CPU_SPECIALIZE(a->activation, head_as, &d);
    }
}

void nb_cpu_run_rope_backward(struct nb_cpu *cpu, const struct nb_rope_backward *a)
{
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)tokens * a->heads * a->head_dim))
    for (int t = 0; t < tokens; t++)
        token(a, t);
}
