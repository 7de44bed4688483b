#include <math.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(rmsnorm)

NB_CPU_INLINE float sum_of_squares(const void *x, int width, enum nb_dtype dtype)
{
    float lane[16] = {0};
    int i = 0;
    for (; i + 16 <= width; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += nb_cpu_get(x, dtype, i + l) * nb_cpu_get(x, dtype, i + l);
    for (int l = 0; i + l < width; l++)
        lane[l] += nb_cpu_get(x, dtype, i + l) * nb_cpu_get(x, dtype, i + l);
    return nb_sum16(lane);
}

NB_CPU_INLINE void row_as(const struct nb_rmsnorm *a, const nb_bf16 *w, const void *x, void *y, float *rms, enum nb_dtype dtype)
{
    int width = a->width;
    float scale = 1.0f / sqrtf(sum_of_squares(x, width, dtype) / (float)width + a->epsilon);
    *rms = scale;
#pragma GCC ivdep /* y may be x: an element is read before it is written */
    for (int i = 0; i < width; i++)
        nb_cpu_put(y, dtype, i, nb_bf16_to_float(w[i]) * nb_cpu_round(dtype, nb_cpu_get(x, dtype, i) * scale));
}

NB_CLONES
static void row(const struct nb_rmsnorm *a, int t)
{
    uint64_t begin = (uint64_t)t * (uint64_t)a->width;
    NB_CPU_SPECIALIZE(a->activation, row_as, a, nb_cpu_pointer(a->w), nb_cpu_element(a->x, a->activation, begin),
                      nb_cpu_element(a->y, a->activation, begin), (float *)nb_cpu_pointer(a->rms) + t);
}

void nb_cpu_run_rmsnorm(struct nb_cpu *cpu, const struct nb_rmsnorm *a)
{
    int rows = nb_cpu_rows(a->slot, a->rows_from, a->row_begin, a->tokens_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)rows * a->width))
    for (int t = 0; t < rows; t++)
        row(a, t);
}
