/* What nb_linear and its backward share: the weights as bf16 matrices, a thread's scratch, dropout, the storing of a
 * tile.
 *
 * Tiles are fixed by the sizes alone: 128 token rows (the last tile's rows rounded up to 16, through a zero-padded
 * copy), at most 256 columns, sums in chunks of at most 1,024. Every product is single-threaded, so threads change no
 * bit. */
#ifndef NB_DEVICE_CPU_LINEAR_TILE_H
#define NB_DEVICE_CPU_LINEAR_TILE_H

#include "device/cpu/tile.h"

/* Rows of a part's weight as bf16: data [out, in], row 0 the part's row_begin. */
struct nb_linear_weights {
    const nb_bf16 *data[NB_LINEAR_PARTS];
    nb_bf16 *dequantized[NB_LINEAR_PARTS]; /* the same, where the op fills it from 4 bits; else NULL */
};

/* Bytes of a part's dequantized rows: 0 for a bf16 weight. A multiple of 256. */
uint64_t nb_linear_weight_bytes(const struct nb_linear_part *part, int in);

/* Points at bf16 weights, and carves `*scratch` for the others. */
void nb_linear_weights_locate(
    const struct nb_linear_part *part, int parts, int in, char **scratch, struct nb_linear_weights *weights);

/* Fills what is to be dequantized, shared out among the threads of the parallel region it is called from; ends without
 * a barrier. */
void nb_linear_weights_fill(
    const struct nb_linear_part *part, int parts, int in, const struct nb_linear_weights *weights);

/* A thread's own scratch. */
struct nb_linear_local {
    float *sum;     /* [128, 256] */
    float *branch;  /* [128, 256]: the adapter's share, where dropout masks it */
    void *rows;     /* [128, 1024] activations: copied rows */
    void *rows_too; /* [256, 256] activations */
    void *product;  /* nb_product_multiply's */
};

uint64_t nb_linear_local_bytes(enum nb_dtype activation, bool bf16);
struct nb_linear_local nb_linear_local(char *scratch, int thread, enum nb_dtype activation, bool bf16);

/* Where the numbers of an adapter's dropout begin. */
struct nb_linear_mask {
    const struct nb_lora *lora;
    const struct nb_step *step;
    uint32_t token;      /* of the tile's first row, within the step; with `rows`, of the micro-batch's first token */
    const int32_t *rows; /* which token of the micro-batch each row of the tile is, or NULL: one after the other */
};

/* For the rows from `row` on of an op's buffers; `rows` and `row_begin` are the op's rows and row_begin_chunk. */
struct nb_linear_mask nb_linear_mask(
    const struct nb_lora *lora, nb_dptr step, nb_dptr slot, nb_dptr rows, int row_begin, int row);

/* A copy of the rows in `buffer`, contiguous, zero where dropout drops feature `feature` + column (a multiple of 4) and
 * behind. */
const void *nb_linear_rows_masked(
    const struct nb_tile_rows *rows, const struct nb_linear_mask *mask, int feature, void *buffer);

/* sum[i][j] += branch[i][j] / (1 - dropout), the factor rounded first, where feature + j of row i is kept; both [rows,
 * columns] contiguous. */
void nb_linear_add_masked(
    float *sum, const float *branch, int rows, int columns, const struct nb_linear_mask *mask, int feature);

/* y = (accumulate ? y : 0) + round(scale * (sum + bias)), rounded again where it accumulates. */
struct nb_linear_store {
    nb_dptr y;
    enum nb_dtype dtype;
    int64_t index; /* of y's first element */
    int stride, rows, columns;
    const nb_bf16 *bias; /* [columns] or NULL */
    float scale;
    bool accumulate;
};
void nb_linear_store(const struct nb_linear_store *s, const float *sum);

#endif
