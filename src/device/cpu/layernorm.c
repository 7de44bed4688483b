#include <math.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(layernorm)

/* One row. `b` may be NULL; `moments` are its mean and 1/sqrt(variance + epsilon). */
struct row {
    const void *x;
    const nb_bf16 *w, *b;
    void *y;
    float *moments;
    int width;
    float epsilon;
};

NB_CPU_INLINE float mean_of(const struct row *r, enum nb_dtype dtype)
{
    float lane[16] = {0};
    int i = 0;
    for (; i + 16 <= r->width; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += nb_cpu_get(r->x, dtype, i + l);
    for (int l = 0; i + l < r->width; l++)
        lane[l] += nb_cpu_get(r->x, dtype, i + l);
    return nb_sum16(lane) / (float)r->width;
}

NB_CPU_INLINE float square_of_deviation(const struct row *r, int i, float mean, enum nb_dtype dtype)
{
    float deviation = nb_cpu_get(r->x, dtype, i) - mean;
    return deviation * deviation;
}

NB_CPU_INLINE float variance_of(const struct row *r, float mean, enum nb_dtype dtype)
{
    float lane[16] = {0};
    int i = 0;
    for (; i + 16 <= r->width; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += square_of_deviation(r, i + l, mean, dtype);
    for (int l = 0; i + l < r->width; l++)
        lane[l] += square_of_deviation(r, i + l, mean, dtype);
    return nb_sum16(lane) / (float)r->width;
}

NB_CPU_INLINE void row_as(const struct row *r, enum nb_dtype dtype)
{
    float mean = mean_of(r, dtype), scale = 1.0f / sqrtf(variance_of(r, mean, dtype) + r->epsilon);
    int width = r->width;
    const nb_bf16 *w = r->w, *b = r->b;
    const void *x = r->x;
    void *y = r->y;
    r->moments[0] = mean;
    r->moments[1] = scale;
#pragma GCC ivdep /* y may be x: an element is read before it is written */
    for (int i = 0; i < width; i++) {
        float n = (nb_cpu_get(x, dtype, i) - mean) * scale;
        nb_cpu_put(y, dtype, i, nb_bf16_to_float(w[i]) * n + (b ? nb_bf16_to_float(b[i]) : 0.0f));
    }
}

NB_CLONES
static void row(const struct nb_layernorm *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    struct row r = {
        .x = nb_cpu_element(a->x, a->activation, begin),
        .w = nb_cpu_pointer(a->w),
        .b = nb_cpu_pointer(a->b),
        .y = nb_cpu_element(a->y, a->activation, begin),
        .moments = (float *)nb_cpu_pointer(a->moments) + 2 * (int64_t)t,
        .width = a->width,
        .epsilon = a->epsilon,
    };
    NB_CPU_SPECIALIZE(a->activation, row_as, &r);
}

void nb_cpu_run_layernorm(struct nb_cpu *cpu, const struct nb_layernorm *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)rows * a->width))
    for (int t = 0; t < rows; t++)
        row(a, t);
}
