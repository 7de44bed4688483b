#include <float.h>
#include <math.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(cross_entropy)

/* Logits that stay in the first-level cache between finding their maximum and adding their exponentials. */
enum { BLOCK = 2048 };

/* A float's order as a signed integer's, and back: whole numbers have a vector maximum without regard to NaN. A positive NaN comes
 * out largest, a negative one smallest; either way it shows in the sum of exponentials. */
static inline int32_t order_of(float value)
{
    int32_t bits = (int32_t)nb_float_bits(value);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

static inline float value_of(int32_t order)
{
    return nb_float_from_bits((uint32_t)(order ^ ((order >> 31) & 0x7fffffff)));
}

NB_CPU_INLINE float maximum_of_block(const void *x, int64_t begin, int count, float maximum, enum nb_dtype dtype)
{
    int32_t largest = order_of(maximum);
    for (int i = 0; i < count; i++) {
        int32_t order = order_of(nb_cpu_get(x, dtype, begin + i));
        largest = order > largest ? order : largest;
    }
    return value_of(largest);
}

NB_CPU_INLINE float exponentials_of_block(const void *x, int64_t begin, int count, float maximum, enum nb_dtype dtype)
{
    float power[BLOCK], lane[16] = {0};
    for (int i = 0; i < count; i++)
        power[i] = nb_expf(nb_cpu_get(x, dtype, begin + i) - maximum);
    int i = 0;
    for (; i + 16 <= count; i += 16)
        for (int l = 0; l < 16; l++)
            lane[l] += power[i + l];
    for (int l = 0; i + l < count; l++)
        lane[l] += power[i + l];
    return nb_sum16(lane);
}

/* Two passes over the row: the first finds the maximum and the sum of exponentials block by block, the sum so far rescaled when a
 * block raises the maximum; the second writes the gradient. */
NB_CPU_INLINE void row_as(void *x, int vocabulary, int32_t label, float *loss, bool gradient, enum nb_dtype dtype)
{
    float maximum = -FLT_MAX, at_label = nb_cpu_get(x, dtype, label);
    double sum = 0;
    for (int64_t begin = 0; begin < vocabulary; begin += BLOCK) {
        int count = vocabulary - begin < BLOCK ? (int)(vocabulary - begin) : BLOCK;
        float raised = maximum_of_block(x, begin, count, maximum, dtype);
        if (raised > maximum)
            sum *= exp((double)maximum - (double)raised);
        maximum = raised;
        sum += exponentials_of_block(x, begin, count, maximum, dtype);
    }
    *loss = (float)((double)maximum - (double)at_label + log(sum));
    if (!gradient)
        return;
    float inverse = (float)(1.0 / sum);
#pragma GCC ivdep
    for (int64_t i = 0; i < vocabulary; i++)
        nb_cpu_put(x, dtype, i, nb_expf(nb_cpu_get(x, dtype, i) - maximum) * inverse);
    nb_cpu_put(x, dtype, label, nb_expf(at_label - maximum) * inverse - 1.0f);
}

NB_CLONES
static void row(const struct nb_cross_entropy *a, int i)
{
    int64_t trained = (int64_t)a->row_begin + i;
    void *logits = nb_cpu_element(a->logits, a->activation, (uint64_t)i * (uint64_t)a->logits_stride);
    int32_t label = ((const int32_t *)nb_cpu_pointer(a->labels))[trained];
    float *loss = (float *)nb_cpu_pointer(a->loss) + trained;
    NB_CPU_SPECIALIZE(a->activation, row_as, logits, a->vocabulary, label, loss, a->gradient);
}

void nb_cpu_run_cross_entropy(struct nb_cpu *cpu, const struct nb_cross_entropy *a)
{
    int rows = nb_cpu_trained_rows(a->slot, a->row_begin, a->rows_max);
#pragma omp parallel for num_threads(nb_cpu_threads(cpu, (int64_t)rows * a->vocabulary))
    for (int i = 0; i < rows; i++)
        row(a, i);
}
