#include "device/cpu/linear_few.h"

#include "device/cpu/element.h"
#include "device/cpu/tile.h"
#include "device/cpu/weight.h"

/* Outputs that a thread takes at a time. */
enum { OUTPUTS = 16 };

/* The sum of x[i] * w[i] in four times 16 fixed lanes: one chain of additions would wait for itself. */
static inline float dot(const float *restrict x, const float *restrict w, int count)
{
    float lane[64] = {0}, sixteen[16];
    int i = 0;
    for (; i + 64 <= count; i += 64)
        for (int l = 0; l < 64; l++)
            lane[l] += x[i + l] * w[i + l];
    for (; i < count; i += 16)
        for (int l = 0; l < 16 && i + l < count; l++)
            lane[l] += x[i + l] * w[i + l];
    for (int l = 0; l < 16; l++)
        sixteen[l] = (lane[l] + lane[l + 16]) + (lane[l + 32] + lane[l + 48]);
    return nb_sum16(sixteen);
}

/* A row of weights, of an adapter's matrix or of the base's. */
struct weights {
    const void *row; /* [count] */
    enum nb_dtype dtype;
    int count;
};

/* out[r] = the dot product of row r of x [rows, count] and the weights, which are widened in `wide` if they are bf16. */
NB_CLONES static void dot_rows(float *out, const float *x, int rows, struct weights w, float *wide)
{
    const float *row = w.row;
    if (w.dtype == NB_DTYPE_BF16) {
        const nb_bf16 *restrict narrow = w.row;
        for (int i = 0; i < w.count; i++)
            wide[i] = nb_bf16_to_float(narrow[i]);
        row = wide;
    }
    for (int r = 0; r < rows; r++)
        out[r] = dot(x + (int64_t)r * w.count, row, w.count);
}

struct work {
    const struct nb_linear *a;
    int rows;
    float *x;     /* [rows, in] */
    float *t;     /* [parts][rows, rank]: rounded to the activation dtype, as stored */
    char *locals; /* a thread's row of weights, wide and as bf16 */
};

static uint64_t local_bytes(const struct nb_linear *a)
{
    int longest = a->in;
    for (int p = 0; p < a->parts; p++)
        longest = a->part[p].lora.rank > longest ? a->part[p].lora.rank : longest;
    return nb_aligned((uint64_t)longest * (sizeof(float) + sizeof(nb_bf16)));
}

static uint64_t t_offset(const struct nb_linear *a, int part)
{
    uint64_t elements = 0;
    for (int p = 0; p < part; p++)
        elements += (uint64_t)NB_LINEAR_FEW_ROWS * (uint64_t)a->part[p].lora.rank;
    return elements;
}

/* x and t, which all threads read. */
static uint64_t shared_bytes(const struct nb_linear *a)
{
    return nb_aligned(((uint64_t)NB_LINEAR_FEW_ROWS * (uint64_t)a->in + t_offset(a, a->parts)) * sizeof(float));
}

uint64_t nb_linear_few_scratch_bytes(const struct nb_device_profile *profile, const struct nb_linear *a)
{
    return shared_bytes(a) + (uint64_t)profile->multiprocessors * local_bytes(a);
}

/* One output's weight row, as bf16: in place, or dequantized into `packed`. */
static const nb_bf16 *weight_row(const struct nb_linear_part *part, int in, int output, nb_bf16 *packed)
{
    uint64_t begin = ((uint64_t)part->row_begin + (uint64_t)output) * (uint64_t)in;
    if (part->weight.format == NB_WEIGHT_BF16)
        return (const nb_bf16 *)nb_cpu_pointer(part->weight.data) + begin;
    struct nb_quant_matrix matrix = nb_cpu_quant_matrix(&part->weight);
    nb_dequantize_bf16(&matrix, begin, (uint64_t)in, packed);
    return packed;
}

/* t = x A^T for one rank index. */
static void adapter_down(const struct work *w, int p, int index, float *wide)
{
    const struct nb_linear *a = w->a;
    const struct nb_lora *lora = &a->part[p].lora;
    float t[NB_LINEAR_FEW_ROWS];
    const void *row = nb_cpu_element(lora->a, a->activation, (uint64_t)index * (uint64_t)a->in);
    dot_rows(t, w->x, w->rows, (struct weights){row, a->activation, a->in}, wide);
    for (int r = 0; r < w->rows; r++) {
        int64_t at = (int64_t)r * lora->rank + index;
        nb_cpu_put(nb_cpu_pointer(lora->t), a->activation, at, t[r]);
        w->t[t_offset(a, p) + (uint64_t)at] = nb_cpu_round(a->activation, t[r]);
    }
}

static void compute_output(const struct work *w, int p, int output, nb_bf16 *packed, float *wide)
{
    const struct nb_linear *a = w->a;
    const struct nb_linear_part *part = &a->part[p];
    const struct nb_lora *lora = &part->lora;
    float sum[NB_LINEAR_FEW_ROWS], branch[NB_LINEAR_FEW_ROWS];
    struct weights base = {weight_row(part, a->in, output, packed), NB_DTYPE_BF16, a->in};
    dot_rows(sum, w->x, w->rows, base, wide);
    if (!nb_dptr_is_null(lora->a)) {
        const void *row = nb_cpu_element(lora->b, a->activation, (uint64_t)output * (uint64_t)lora->rank);
        dot_rows(branch, w->t + t_offset(a, p), w->rows, (struct weights){row, a->activation, lora->rank}, wide);
    }
    for (int r = 0; r < w->rows; r++) {
        float value = sum[r];
        if (!nb_dptr_is_null(lora->a))
            value += lora->scale * branch[r];
        if (!nb_dptr_is_null(part->bias))
            value += nb_bf16_to_float(((const nb_bf16 *)nb_cpu_pointer(part->bias))[output]);
        value = nb_cpu_round(a->activation, part->output_scale * value);
        void *y = nb_cpu_pointer(part->y);
        int64_t at = (int64_t)r * part->y_stride + output;
        nb_cpu_put(y, a->activation, at, part->accumulate ? nb_cpu_get(y, a->activation, at) + value : value);
    }
}

static void run_thread(const struct work *w)
{
    const struct nb_linear *a = w->a;
    float *wide = (float *)(void *)(w->locals + (uint64_t)nb_cpu_thread() * local_bytes(a));
    nb_bf16 *packed = (nb_bf16 *)(void *)(wide + local_bytes(a) / (sizeof(float) + sizeof(nb_bf16)));
    for (int p = 0; p < a->parts; p++) {
        if (nb_dptr_is_null(a->part[p].lora.a))
            continue;
#pragma omp for nowait
        for (int index = 0; index < a->part[p].lora.rank; index++)
            adapter_down(w, p, index, wide);
    }
#pragma omp barrier
    for (int p = 0; p < a->parts; p++) {
#pragma omp for schedule(dynamic) nowait
        for (int begin = 0; begin < a->part[p].out; begin += OUTPUTS)
            for (int output = begin; output < begin + OUTPUTS && output < a->part[p].out; output++)
                compute_output(w, p, output, packed, wide);
    }
}

void nb_linear_few(struct nb_cpu *cpu, const struct nb_linear *a, int rows)
{
    char *scratch = nb_cpu_pointer(a->scratch.base);
    struct work w = {.a = a, .rows = rows, .x = (float *)(void *)scratch, .locals = scratch + shared_bytes(a)};
    w.t = w.x + (int64_t)NB_LINEAR_FEW_ROWS * a->in;
    for (int r = 0; r < rows; r++)
        nb_cpu_load(w.x + (int64_t)r * a->in, a->x, a->activation, (uint64_t)r * (uint64_t)a->x_stride, a->in);
#pragma omp parallel num_threads(cpu->threads)
    run_thread(&w);
}
