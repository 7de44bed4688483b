#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(layernorm_backward)

/* One row: n = (x - mean) * scale, d = w * dy. */
struct row {
    const nb_bf16 *w;
    const void *x, *dy;
    void *dx;
    float mean, scale;
    int width;
    bool accumulate;
};

/* mean(d) and mean(d * n). */
struct means {
    float of_d, of_products;
};

NB_CPU_INLINE float weighted(const struct row *r, int i, enum nb_dtype dtype)
{
    return nb_bf16_to_float(r->w[i]) * nb_cpu_get(r->dy, dtype, i);
}

NB_CPU_INLINE float normalized(const struct row *r, int i, enum nb_dtype dtype)
{
    return (nb_cpu_get(r->x, dtype, i) - r->mean) * r->scale;
}

NB_CPU_INLINE struct means means_of(const struct row *r, enum nb_dtype dtype)
{
    float d_lane[16] = {0}, product_lane[16] = {0};
    int i = 0;
    for (; i + 16 <= r->width; i += 16)
        for (int l = 0; l < 16; l++) {
            d_lane[l] += weighted(r, i + l, dtype);
            product_lane[l] += weighted(r, i + l, dtype) * normalized(r, i + l, dtype);
        }
    for (int l = 0; i + l < r->width; l++) {
        d_lane[l] += weighted(r, i + l, dtype);
        product_lane[l] += weighted(r, i + l, dtype) * normalized(r, i + l, dtype);
    }
    return (struct means){nb_sum16(d_lane) / (float)r->width, nb_sum16(product_lane) / (float)r->width};
}

NB_CPU_INLINE void row_as(const struct row *given, enum nb_dtype dtype)
{
    struct row r = *given;
    struct means mean = means_of(&r, dtype);
#pragma GCC ivdep /* dx may be dy */
    for (int i = 0; i < r.width; i++) {
        float before = r.accumulate ? nb_cpu_get(r.dx, dtype, i) : 0.0f;
        float d = weighted(&r, i, dtype), n = normalized(&r, i, dtype);
        nb_cpu_put(r.dx, dtype, i, before + r.scale * (d - mean.of_d - n * mean.of_products));
    }
}

NB_CLONES
static void row(const struct nb_layernorm_backward *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    const float *moments = (const float *)nb_cpu_pointer(a->moments) + 2 * (int64_t)t;
    struct row r = {
        .w = nb_cpu_pointer(a->w),
        .x = nb_cpu_element(a->x, a->activation, begin),
        .dy = nb_cpu_element(a->dy, a->activation, begin),
        .dx = nb_cpu_element(a->dx, a->activation, begin),
        .mean = moments[0],
        .scale = moments[1],
        .width = a->width,
        .accumulate = a->accumulate,
    };
    NB_CPU_SPECIALIZE(a->activation, row_as, &r);
}

void nb_cpu_run_layernorm_backward(struct nb_cpu *cpu, const struct nb_layernorm_backward *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)rows * a->width))
    for (int t = 0; t < rows; t++)
        row(a, t);
}
