/* Products without a library: b is packed into fp32 panels of 32 columns, a is widened to fp32 rows, and a block of c,
 * 8 rows of 32 columns, stays in registers while it walks along k. Compiled with a * b + c contracted to FMA where the
 * machine has it (meson.build): which additions fuse is this file's own affair.
 *
 * A row of c is summed over k in one order whatever m is, so its bits depend on nothing else. */
#include <stdlib.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/simd.h"
#include "device/cpu/cpu.h"
#include "device/cpu/product.h"

/* A block of c: 8 rows of 2 vectors of 16 floats, 16 accumulators: half of AVX-512's registers, and GCC splits each
 * vector in two where the machine has 256 bits. */
enum { BLOCK_ROWS = 8, VECTOR = 16, BLOCK_COLUMNS = 2 * VECTOR };

typedef float vector __attribute__((vector_size(VECTOR * sizeof(float)), aligned(64)));

struct nb_products {
    char unused;
};

int nb_products_enter(void)
{
    return 0;
}

void nb_products_leave(int entered)
{
    (void)entered;
}

/* Widened to fp32, bf16 gains nothing here. */
bool nb_products_have_bf16(void)
{
    return false;
}

const char *nb_cpu_backend_description(void)
{
    return "own loops";
}

nb_status nb_products_create(int threads, struct nb_products **products)
{
    (void)threads;
    *products = calloc(1, sizeof **products);
    return *products ? NB_OK : nb_fail(NB_MEMORY, "no memory for the matrix products");
}

void nb_products_destroy(struct nb_products **products)
{
    free(*products);
    *products = NULL;
}

nb_status nb_products_status(struct nb_products *products)
{
    (void)products;
    return NB_OK;
}

static int64_t round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

uint64_t nb_product_scratch_bytes(const struct nb_product *largest, bool bf16)
{
    (void)bf16;
    int64_t floats = (largest->m + round_up(largest->n, BLOCK_COLUMNS)) * (int64_t)largest->k;
    return (uint64_t)round_up(floats * (int64_t)sizeof(float), 256);
}

/* ---- packing ---- */

static inline __attribute__((always_inline)) vector load(const void *from, int64_t at, int count, enum nb_dtype dtype)
{
    float lanes[VECTOR] = {0};
    const float *restrict wide = (const float *)from + at;
    const nb_bf16 *restrict narrow = (const nb_bf16 *)from + at;
    if (count == VECTOR) /* the constant count is what vectorizes */
        for (int l = 0; l < VECTOR; l++)
            lanes[l] = dtype == NB_DTYPE_F32 ? wide[l] : nb_bf16_to_float(narrow[l]);
    else
        for (int l = 0; l < count; l++)
            lanes[l] = dtype == NB_DTYPE_F32 ? wide[l] : nb_bf16_to_float(narrow[l]);
    vector v;
    memcpy(&v, lanes, sizeof v);
    return v;
}

/* Transposes a square of 16 vectors: interleaving the upper with the lower half four times over turns indices (i, l)
 * into (l, i). */
static inline __attribute__((always_inline)) void transpose(vector square[VECTOR])
{
    for (int stage = 0; stage < 4; stage++) {
        vector next[VECTOR];
        for (int i = 0; i < VECTOR / 2; i++) {
            const vector upper = square[i], lower = square[i + VECTOR / 2];
            next[2 * i] = __builtin_shufflevector(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] = __builtin_shufflevector(upper, lower, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(square, next, sizeof next);
    }
}

/* A matrix [rows, columns] with a stride, to be copied as fp32. */
struct source {
    const void *data;
    enum nb_dtype dtype;
    int rows, columns, stride;
};

/* to[i * to_stride + j] = s[i][begin + j], j < width, zeros beyond the last column. width is a multiple of 16. */
static inline __attribute__((always_inline)) void copy_columns(
    float *restrict to, int64_t to_stride, const struct source *s, int begin, int width, enum nb_dtype dtype)
{
    for (int i = 0; i < s->rows; i++) {
        for (int j = 0; j < width; j += VECTOR) {
            int left = s->columns - begin - j, count = left > VECTOR ? VECTOR : left > 0 ? left : 0;
            vector v = load(s->data, (int64_t)i * s->stride + begin + j, count, dtype);
            memcpy(to + i * to_stride + j, &v, sizeof v);
        }
    }
}

/* to[j * to_stride + i] = s[begin + i][j], i < 16, zeros beyond the last row; all columns j. */
static inline __attribute__((always_inline)) void transpose_rows(
    float *restrict to, int64_t to_stride, const struct source *s, int begin, enum nb_dtype dtype)
{
    for (int j = 0; j < s->columns; j += VECTOR) {
        int count = s->columns - j < VECTOR ? s->columns - j : VECTOR;
        vector square[VECTOR];
        for (int i = 0; i < VECTOR; i++)
            square[i] =
                begin + i < s->rows ? load(s->data, (int64_t)(begin + i) * s->stride + j, count, dtype) : (vector){0};
        transpose(square);
        for (int l = 0; l < count; l++)
            memcpy(to + (j + l) * to_stride, &square[l], sizeof square[l]);
    }
}

/* b as panels [n / 32][k][32]. */
NB_CLONES static void pack_b(float *to, const struct nb_product *p, const void *b)
{
    struct source s = {b, p->b_dtype, p->b_transposed ? p->n : p->k, p->b_transposed ? p->k : p->n, p->b_stride};
    for (int j = 0; j < p->n; j += BLOCK_COLUMNS, to += (int64_t)p->k * BLOCK_COLUMNS) {
        if (!p->b_transposed && p->b_dtype == NB_DTYPE_F32) {
            copy_columns(to, BLOCK_COLUMNS, &s, j, BLOCK_COLUMNS, NB_DTYPE_F32);
        } else if (!p->b_transposed) {
            copy_columns(to, BLOCK_COLUMNS, &s, j, BLOCK_COLUMNS, NB_DTYPE_BF16);
        } else {
            for (int half = 0; half < 2; half++) {
                if (p->b_dtype == NB_DTYPE_F32)
                    transpose_rows(to + half * VECTOR, BLOCK_COLUMNS, &s, j + half * VECTOR, NB_DTYPE_F32);
                else
                    transpose_rows(to + half * VECTOR, BLOCK_COLUMNS, &s, j + half * VECTOR, NB_DTYPE_BF16);
            }
        }
    }
}

/* a as fp32 rows: those of a itself where that is what it is, else a copy; *stride is set to theirs. */
NB_CLONES static const float *rows_of_a(float *to, const struct nb_product *p, const void *a, int64_t *stride)
{
    *stride = p->a_stride;
    if (!p->a_transposed && p->a_dtype == NB_DTYPE_F32)
        return a;
    *stride = p->k;
    for (int i = 0; i < p->m; i++) {
        for (int d = 0; d < p->k; d++) {
            int64_t at = p->a_transposed ? (int64_t)d * p->a_stride + i : (int64_t)i * p->a_stride + d;
            to[(int64_t)i * p->k + d] =
                p->a_dtype == NB_DTYPE_F32 ? ((const float *)a)[at] : nb_bf16_to_float(((const nb_bf16 *)a)[at]);
        }
    }
    return to;
}

/* ---- multiplying ---- */

/* block [8, 32] = 8 rows of a by a panel of b. The loops have constant ends, so that all of sum stays in registers. */
static inline __attribute__((always_inline)) void multiply_block(
    const float *const row[BLOCK_ROWS], const float *restrict b, int depth, vector block[BLOCK_ROWS][2])
{
    vector sum[BLOCK_ROWS][2] = {0};
    for (int d = 0; d < depth; d++) {
        const vector *right = (const vector *)(const void *)(b + (int64_t)d * BLOCK_COLUMNS);
        vector b0 = right[0], b1 = right[1];
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK_ROWS; i++) {
            float left = row[i][d];
            sum[i][0] += left * b0;
            sum[i][1] += left * b1;
        }
    }
    memcpy(block, sum, sizeof sum);
}

NB_CLONES static void multiply_panels(
    const struct nb_product *p, const float *a, int64_t a_stride, const float *b, float *c)
{
    for (int j = 0; j < p->n; j += BLOCK_COLUMNS) {
        int columns = p->n - j < BLOCK_COLUMNS ? p->n - j : BLOCK_COLUMNS;
        for (int i = 0; i < p->m; i += BLOCK_ROWS) {
            int rows = p->m - i < BLOCK_ROWS ? p->m - i : BLOCK_ROWS;
            const float *row[BLOCK_ROWS];
            vector block[BLOCK_ROWS][2];
            for (int r = 0; r < BLOCK_ROWS; r++) /* beyond the last row: the first again, multiplied for nothing */
                row[r] = a + (i + (r < rows ? r : 0)) * a_stride;
            multiply_block(row, b + (int64_t)j * p->k, p->k, block);
            for (int r = 0; r < rows; r++) {
                const float *from = (const float *)(const void *)block[r];
                float *to = c + (int64_t)(i + r) * p->c_stride + j;
                if (p->accumulate)
                    for (int l = 0; l < columns; l++)
                        to[l] += p->scale * from[l];
                else
                    for (int l = 0; l < columns; l++)
                        to[l] = p->scale * from[l];
            }
        }
    }
}

void nb_product_multiply(
    struct nb_products *products, const struct nb_product *p, const void *a, const void *b, float *c, void *scratch)
{
    (void)products;
    float *panels = scratch;
    int64_t a_stride;
    const float *rows = rows_of_a(panels + round_up(p->n, BLOCK_COLUMNS) * p->k, p, a, &a_stride);
    pack_b(panels, p, b);
    multiply_panels(p, rows, a_stride, panels, c);
}
