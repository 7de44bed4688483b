/* Products without a library: operands are packed into fp32 panels, and a small block of c is kept in registers while it walks along
 * k. Compiled with a * b + c contracted to FMA where the machine has it (meson.build): which additions fuse is this file's own affair.
 *
 * Panels: a as [m / 8][k][8], b as [n / 32][k][32], the last ones padded with zeros. A row of c is summed over k in one order whatever
 * m is, so its bits depend on nothing else. */
#include <stdlib.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/simd.h"
#include "device/cpu/cpu.h"
#include "device/cpu/product.h"

/* A block of c: 8 rows of 2 vectors of 16 floats, 16 accumulators: half of AVX-512's registers, and GCC splits each vector in two where
 * the machine has 256 bits. */
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
    int64_t floats = (round_up(largest->m, BLOCK_ROWS) + round_up(largest->n, BLOCK_COLUMNS)) * largest->k;
    return (uint64_t)round_up(floats * (int64_t)sizeof(float), 256);
}

/* One operand, for packing: element (i, d), i along m or n, d along k, stands at i * along + d * deep. */
struct operand {
    const void *data;
    enum nb_dtype dtype;
    int count, depth;
    int64_t along, deep;
};

/* to[d][0 .. width) = elements i0 + 0 .. of depth d, zeros where there are none. */
static inline __attribute__((always_inline)) void pack_panel_of(float *restrict to, const struct operand *o, int i0, int width,
                                                                enum nb_dtype dtype)
{
    int valid = o->count - i0 < width ? o->count - i0 : width;
    const float *restrict wide = o->data;
    const nb_bf16 *restrict narrow = o->data;
    if (o->along == 1) {
        for (int d = 0; d < o->depth; d++) {
            int64_t at = i0 + d * o->deep;
            for (int i = 0; i < valid; i++)
                to[(int64_t)d * width + i] = dtype == NB_DTYPE_F32 ? wide[at + i] : nb_bf16_to_float(narrow[at + i]);
            for (int i = valid; i < width; i++)
                to[(int64_t)d * width + i] = 0.0f;
        }
        return;
    }
    /* Rows lie along k: turned over in squares of 16 depths, which are read whole. */
    for (int d0 = 0; d0 < o->depth; d0 += VECTOR) {
        int depths = o->depth - d0 < VECTOR ? o->depth - d0 : VECTOR;
        for (int i = 0; i < width; i++) {
            float row[VECTOR] = {0};
            int64_t at = (i0 + i) * o->along + d0;
            if (i < valid)
                for (int d = 0; d < depths; d++)
                    row[d] = dtype == NB_DTYPE_F32 ? wide[at + d] : nb_bf16_to_float(narrow[at + d]);
            for (int d = 0; d < depths; d++)
                to[(int64_t)(d0 + d) * width + i] = row[d];
        }
    }
}

/* All panels of an operand. */
NB_CLONES static void pack(float *to, const struct operand *o, int width)
{
    for (int i = 0; i < o->count; i += width, to += (int64_t)width * o->depth) {
        if (width == BLOCK_ROWS && o->dtype == NB_DTYPE_F32)
            pack_panel_of(to, o, i, BLOCK_ROWS, NB_DTYPE_F32);
        else if (width == BLOCK_ROWS)
            pack_panel_of(to, o, i, BLOCK_ROWS, NB_DTYPE_BF16);
        else if (o->dtype == NB_DTYPE_F32)
            pack_panel_of(to, o, i, BLOCK_COLUMNS, NB_DTYPE_F32);
        else
            pack_panel_of(to, o, i, BLOCK_COLUMNS, NB_DTYPE_BF16);
    }
}

/* block [8, 32] = the product of one panel of a and one of b. The loops have constant ends, so that all of sum stays in registers. */
static inline __attribute__((always_inline)) void multiply_block(const float *restrict a, const float *restrict b, int depth,
                                                                 vector block[BLOCK_ROWS][2])
{
    vector sum[BLOCK_ROWS][2] = {0};
    for (int d = 0; d < depth; d++) {
        const vector *right = (const vector *)(const void *)(b + (int64_t)d * BLOCK_COLUMNS);
        vector b0 = right[0], b1 = right[1];
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK_ROWS; i++) {
            float left = a[(int64_t)d * BLOCK_ROWS + i];
            sum[i][0] += left * b0;
            sum[i][1] += left * b1;
        }
    }
    memcpy(block, sum, sizeof sum);
}

NB_CLONES static void multiply_panels(const struct nb_product *p, const float *a, const float *b, float *c)
{
    for (int j = 0; j < p->n; j += BLOCK_COLUMNS) {
        int columns = p->n - j < BLOCK_COLUMNS ? p->n - j : BLOCK_COLUMNS;
        for (int i = 0; i < p->m; i += BLOCK_ROWS) {
            int rows = p->m - i < BLOCK_ROWS ? p->m - i : BLOCK_ROWS;
            vector block[BLOCK_ROWS][2];
            multiply_block(a + (int64_t)i * p->k, b + (int64_t)j * p->k, p->k, block);
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

void nb_product_multiply(struct nb_products *products, const struct nb_product *p, const void *a, const void *b, float *c, void *scratch)
{
    (void)products;
    struct operand left = {a, p->a_dtype, p->m, p->k, p->a_transposed ? 1 : p->a_stride, p->a_transposed ? p->a_stride : 1};
    struct operand right = {b, p->b_dtype, p->n, p->k, p->b_transposed ? p->b_stride : 1, p->b_transposed ? 1 : p->b_stride};
    float *b_panels = scratch, *a_panels = b_panels + round_up(p->n, BLOCK_COLUMNS) * p->k;
    pack(b_panels, &right, BLOCK_COLUMNS);
    pack(a_panels, &left, BLOCK_ROWS);
    multiply_panels(p, a_panels, b_panels, c);
}
