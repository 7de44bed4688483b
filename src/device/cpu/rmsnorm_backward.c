#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(rmsnorm_backward)

/* One row: n = x * rms, d = w * dy, mean = mean(d * n). */
struct row {
    const nb_bf16 *w;
    const void *x, *dy;
    void *dx;
    float rms;
    int width;
    bool accumulate;
};

NB_CPU_INLINE float product(const struct row *r, int i, enum nb_dtype dtype)
{
    float n = nb_cpu_get(r->x, dtype, i) * r->rms;
    return nb_bf16_to_float(r->w[i]) * nb_cpu_get(r->dy, dtype, i) * n;
}

NB_CPU_INLINE float mean_of_products(const struct row *r, enum nb_dtype dtype)
{
    float lane[16] = {0};
    int i = 0;
    for (; i + 16 <= r->width; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += product(r, i + l, dtype);
    for (int l = 0; i + l < r->width; l++)
        lane[l] += product(r, i + l, dtype);
    return nb_sum16(lane) / (float)r->width;
}

NB_CPU_INLINE void row_as(const struct row *r, enum nb_dtype dtype)
{
    float mean = mean_of_products(r, dtype), rms = r->rms;
    const nb_bf16 *w = r->w;
    const void *x = r->x, *dy = r->dy;
    void *dx = r->dx;
    bool accumulate = r->accumulate;
#pragma GCC ivdep /* dx may be dy */
    for (int i = 0; i < r->width; i++) {
        float before = accumulate ? nb_cpu_get(dx, dtype, i) : 0.0f;
        float n = nb_cpu_get(x, dtype, i) * rms, d = nb_bf16_to_float(w[i]) * nb_cpu_get(dy, dtype, i);
        nb_cpu_put(dx, dtype, i, before + rms * (d - n * mean));
    }
}

NB_CLONES
static void row(const struct nb_rmsnorm_backward *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    struct row r = {
        .w = nb_cpu_pointer(a->w),
        .x = nb_cpu_element(a->x, a->activation, begin),
        .dy = nb_cpu_element(a->dy, a->activation, begin),
        .dx = nb_cpu_element(a->dx, a->activation, begin),
        .rms = ((const float *)nb_cpu_pointer(a->rms))[t],
        .width = a->width,
        .accumulate = a->accumulate,
    };
    NB_CPU_SPECIALIZE(a->activation, row_as, &r);
}

void nb_cpu_run_rmsnorm_backward(struct nb_cpu *cpu, const struct nb_rmsnorm_backward *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)rows * a->width))
    for (int t = 0; t < rows; t++)
        row(a, t);
}
