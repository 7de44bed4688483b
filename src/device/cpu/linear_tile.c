#include "device/cpu/linear_tile.h"

#include <string.h>

#include "device/cpu/element.h"
#include "device/cpu/weight.h"
#include "device/dropout.h"

/* Rows of a weight that a thread dequantizes at a time. */
enum { FILL_ROWS = 16 };

uint64_t nb_linear_weight_bytes(const struct nb_linear_part *part, int in)
{
    return part->weight.format == NB_WEIGHT_BF16 ? 0 : nb_aligned((uint64_t)part->out * (uint64_t)in * sizeof(nb_bf16));
}

void nb_linear_weights_locate(
    const struct nb_linear_part *part, int parts, int in, char **scratch, struct nb_linear_weights *weights)
{
    for (int p = 0; p < parts; p++) {
        if (part[p].weight.format == NB_WEIGHT_BF16) {
            weights->data[p] = (const nb_bf16 *)nb_cpu_pointer(part[p].weight.data) + (int64_t)part[p].row_begin * in;
            weights->dequantized[p] = NULL;
        } else {
            weights->dequantized[p] = (nb_bf16 *)(void *)*scratch;
            weights->data[p] = weights->dequantized[p];
            *scratch += nb_linear_weight_bytes(&part[p], in);
        }
    }
}

void nb_linear_weights_fill(
    const struct nb_linear_part *part, int parts, int in, const struct nb_linear_weights *weights)
{
    for (int p = 0; p < parts; p++) {
        if (!weights->dequantized[p])
            continue;
        struct nb_quant_matrix matrix = nb_cpu_quant_matrix(&part[p].weight);
#pragma omp for schedule(dynamic) nowait
        for (int row = 0; row < part[p].out; row += FILL_ROWS) {
            int rows = part[p].out - row < FILL_ROWS ? part[p].out - row : FILL_ROWS;
            nb_dequantize_bf16(&matrix, (uint64_t)(part[p].row_begin + row) * (uint64_t)in,
                (uint64_t)rows * (uint64_t)in, weights->dequantized[p] + (int64_t)row * in);
        }
    }
}

/* ---- a thread's scratch ---- */

enum {
    SUM_BYTES = NB_PRODUCT_ROWS * NB_PRODUCT_COLUMNS * 4,
    ROWS_ELEMENTS = NB_PRODUCT_ROWS * NB_PRODUCT_DEPTH,
    ROWS_TOO_ELEMENTS = NB_TILE_TOKENS * NB_PRODUCT_COLUMNS,
};

static uint64_t product_bytes(enum nb_dtype activation, bool bf16)
{
    struct nb_product largest = {.a_dtype = activation,
        .b_dtype = NB_DTYPE_BF16,
        .m = NB_PRODUCT_ROWS,
        .n = NB_PRODUCT_COLUMNS,
        .k = NB_PRODUCT_DEPTH};
    return nb_product_scratch_bytes(&largest, bf16);
}

uint64_t nb_linear_local_bytes(enum nb_dtype activation, bool bf16)
{
    return 2 * SUM_BYTES + (ROWS_ELEMENTS + ROWS_TOO_ELEMENTS) * nb_dtype_bytes(activation) +
           product_bytes(activation, bf16);
}

struct nb_linear_local nb_linear_local(char *scratch, int thread, enum nb_dtype activation, bool bf16)
{
    char *base = scratch + (uint64_t)thread * nb_linear_local_bytes(activation, bf16);
    char *rows = base + 2 * SUM_BYTES, *rows_too = rows + ROWS_ELEMENTS * nb_dtype_bytes(activation);
    return (struct nb_linear_local){
        .sum = (float *)(void *)base,
        .branch = (float *)(void *)(base + SUM_BYTES),
        .rows = rows,
        .rows_too = rows_too,
        .product = rows_too + ROWS_TOO_ELEMENTS * nb_dtype_bytes(activation),
    };
}

/* ---- rows ---- */

struct nb_linear_mask nb_linear_mask(
    const struct nb_lora *lora, nb_dptr step, nb_dptr slot, nb_dptr rows, int row_begin, int row)
{
    struct nb_linear_mask mask = {.lora = lora, .step = nb_cpu_step(step), .token = nb_cpu_slot(slot)->token_offset};
    if (nb_dptr_is_null(rows))
        mask.token += (uint32_t)(row_begin + row);
    else
        mask.rows = (const int32_t *)nb_cpu_pointer(rows) + row_begin + row;
    return mask;
}

static struct nb_dropout dropout_of(const struct nb_linear_mask *mask, int row)
{
    uint32_t token = mask->token + (uint32_t)(mask->rows ? mask->rows[row] : row);
    return nb_dropout(mask->lora->dropout, mask->lora->module, mask->step->random_step, mask->step->seed, token);
}

/* to[j] = keep[j] ? from[j] : 0, on the bits. */
NB_CPU_INLINE void mask_elements(void *to, const void *from, const uint8_t *keep, int count, enum nb_dtype dtype)
{
    if (dtype == NB_DTYPE_F32) {
        uint32_t *restrict y = to;
        const uint32_t *restrict x = from;
        for (int j = 0; j < count; j++)
            y[j] = x[j] & (0u - keep[j]);
    } else {
        uint16_t *restrict y = to;
        const uint16_t *restrict x = from;
        for (int j = 0; j < count; j++)
            y[j] = (uint16_t)(x[j] & (0u - keep[j]));
    }
}

enum { KEEP_COLUMNS = 256 };

/* keep[j] = 1 where feature begin + j is kept, else 0, for up to 256 features; begin is a multiple of 4. */
static inline void fill_keep(uint8_t keep[KEEP_COLUMNS], const struct nb_dropout *dropout, int begin, int count)
{
    struct nb_dropout d = *dropout;
    uint32_t packed[KEEP_COLUMNS / 4];
    for (int i = 0; i < (count + 3) / 4; i++)
        packed[i] = nb_dropout_keep_block(&d, (uint32_t)(begin / 4 + i));
    memcpy(keep, packed, KEEP_COLUMNS); /* bytes in order: every processor this runs on is little-endian */
}

NB_CLONES static void mask_row(
    void *to, const void *from, int columns, const struct nb_dropout *d, int feature, enum nb_dtype dtype)
{
    uint64_t bytes = nb_dtype_bytes(dtype);
    for (int j = 0; j < columns; j += KEEP_COLUMNS) {
        uint8_t keep[KEEP_COLUMNS];
        int count = columns - j < KEEP_COLUMNS ? columns - j : KEEP_COLUMNS;
        fill_keep(keep, d, feature + j, count);
        NB_CPU_SPECIALIZE(dtype, mask_elements, (char *)to + (uint64_t)j * bytes,
            (const char *)from + (uint64_t)j * bytes, keep, count);
    }
}

const void *nb_linear_rows_masked(
    const struct nb_tile_rows *rows, const struct nb_linear_mask *mask, int feature, void *buffer)
{
    uint64_t bytes = nb_dtype_bytes(rows->dtype), row_bytes = bytes * (uint64_t)rows->columns;
    const char *from = nb_cpu_element(rows->from, rows->dtype, (uint64_t)rows->index);
    for (int i = 0; i < rows->valid; i++) {
        struct nb_dropout d = dropout_of(mask, i);
        mask_row((char *)buffer + (uint64_t)i * row_bytes, from + (uint64_t)i * (uint64_t)rows->stride * bytes,
            rows->columns, &d, feature, rows->dtype);
    }
    memset((char *)buffer + (uint64_t)rows->valid * row_bytes, 0, (uint64_t)(rows->padded - rows->valid) * row_bytes);
    return buffer;
}

NB_CLONES static void add_masked_row(float *restrict sum, const float *restrict branch, int columns,
    const struct nb_dropout *d, int feature, float scale)
{
    for (int j = 0; j < columns; j += KEEP_COLUMNS) {
        uint8_t keep[KEEP_COLUMNS];
        int count = columns - j < KEEP_COLUMNS ? columns - j : KEEP_COLUMNS;
        fill_keep(keep, d, feature + j, count);
        for (int l = 0; l < count; l++)
            sum[j + l] += keep[l] ? scale * branch[j + l] : 0.0f;
    }
}

void nb_linear_add_masked(
    float *sum, const float *branch, int rows, int columns, const struct nb_linear_mask *mask, int feature)
{
    float scale = 1.0f / (1.0f - mask->lora->dropout);
    for (int i = 0; i < rows; i++) {
        struct nb_dropout d = dropout_of(mask, i);
        add_masked_row(sum + (int64_t)i * columns, branch + (int64_t)i * columns, columns, &d, feature, scale);
    }
}

/* ---- storing ---- */

NB_CPU_INLINE void store_row(void *y, const float *restrict sum, const struct nb_linear_store *s, enum nb_dtype dtype)
{
    int columns = s->columns;
    const nb_bf16 *restrict bias = s->bias;
    float scale = s->scale;
    if (!s->accumulate && !bias) {
        for (int j = 0; j < columns; j++)
            nb_cpu_put(y, dtype, j, scale * sum[j]);
    } else if (!s->accumulate) {
        for (int j = 0; j < columns; j++)
            nb_cpu_put(y, dtype, j, scale * (sum[j] + nb_bf16_to_float(bias[j])));
    } else {
        for (int j = 0; j < columns; j++) {
            float value = nb_cpu_round(dtype, scale * (sum[j] + (bias ? nb_bf16_to_float(bias[j]) : 0.0f)));
            nb_cpu_put(y, dtype, j, nb_cpu_get(y, dtype, j) + value);
        }
    }
}

NB_CLONES void nb_linear_store(const struct nb_linear_store *s, const float *sum)
{
    char *y = nb_cpu_element(s->y, s->dtype, (uint64_t)s->index);
    uint64_t row_bytes = (uint64_t)s->stride * nb_dtype_bytes(s->dtype);
    for (int i = 0; i < s->rows; i++)
        NB_CPU_SPECIALIZE(s->dtype, store_row, y + (uint64_t)i * row_bytes, sum + (int64_t)i * s->columns, s);
}
