/* Products with the frozen weights, as linear and linear_backward ask for them: y = scale * (sum of segments + bias),
 * one kernel for all.
 *
 * A segment is one product left x right, summed into the same fp32 accumulators as the segment before it. Forward a part of nb_linear
 * is the segments t B^T (whose sum is then multiplied by the adapter's scale) and x W^T; backward the one output dx sums dy W of every
 * part and u A of every part. So an adapter is a few more steps of the same loop, and nothing is rounded or re-read between. */
#ifndef NB_CUDA_LINEAR_PRODUCT_CUH
#define NB_CUDA_LINEAR_PRODUCT_CUH

#include "cuda/dequantize_block.cuh"

enum { NB_PRODUCT_SEGMENTS = 2 * NB_LINEAR_PARTS };

/* left [rows, depth], row stride left_stride. right: forward [width, depth], backward [depth, width], row stride right_stride; bf16 at
 * `right`, or, where that is NULL, 4 bits: element (0, 0) is the flat element packed_begin of `packed` (a multiple of 64, and so is the
 * stride). Strides and addresses are any; where they allow it copies are 16 bytes wide. Afterwards the sum so far is multiplied by
 * `factor`. */
struct nb_product_segment {
    const nb_bf16 *left, *right;
    struct nb_packed_weight packed;
    int64_t packed_begin;
    int left_stride, right_stride, depth;
    float factor;
};

/* backward only, after the segments: sum += keep(row, first_feature + column) ? left right / (1 - dropout) : 0, with left and right as in a
 * segment. */
struct nb_product_masked {
    struct nb_product_segment segment;
    int first_feature; /* of the output's column 0: a multiple of 4 */
    float dropout;
    uint64_t module;
};

/* y [rows, width] = (accumulate ? y : 0) + round(scale * (sum + bias)); y aligned to 16 bytes, its stride a multiple of 8. Sums the
 * segments segment_begin .. segment_end. */
struct nb_product_output {
    nb_bf16 *y;
    const nb_bf16 *bias; /* [width] or NULL */
    int stride, width, segment_begin, segment_end;
    bool accumulate;
    float scale;
};

/* Kernel argument, by value. */
struct nb_product {
    struct nb_product_segment segment[NB_PRODUCT_SEGMENTS];
    struct nb_product_masked masked[NB_LINEAR_PARTS];
    struct nb_product_output output[NB_LINEAR_PARTS];
    int outputs, masked_count;
    const struct nb_slot *slot;
    const struct nb_step *step; /* with masked_count alone */
    const int32_t *tokens;      /* of all rows, for dropout. NULL: row i is token row_begin + i */
    int rows_max, row_begin;
    enum nb_row_count rows_from;
    bool backward;
    int row_tiles, column_tiles[NB_LINEAR_PARTS], column_tiles_all; /* set by nb_product_launch */
};

/* A kernel with the tile it works by. */
struct nb_product_kernel_choice {
    void (*kernel)(const struct nb_product);
    const char *name;
    int rows, columns, threads, shared_bytes;
};

/* The mma.sync kernels, compiled apart: forward in one file, backward in the other. packed: for segments of 4-bit weights. */
struct nb_product_kernel_choice nb_product_forward_kernel(enum nb_product_tile tile, bool packed);
struct nb_product_kernel_choice nb_product_backward_kernel(enum nb_product_tile tile, bool packed);

/* Enqueues it, with the kernel and the tile for this GPU and size. The bits of a row depend on neither. Without an output nothing is
 * enqueued. */
nb_status nb_product_launch(struct nb_cuda *cuda, cudaStream_t stream, struct nb_product product);

/* Loads every kernel that nb_product_launch may pick on this GPU, and nb_weight_chunk's. */
nb_status nb_product_prepare(struct nb_cuda *cuda);

/* scratch [rows, width] bf16, contiguous = `rows` rows and `width` columns of a 4-bit matrix, beginning at (row_begin, column_begin).
 * width and column_begin are multiples of 8. */
struct nb_weight_region {
    int row_begin, rows, column_begin, width;
};
nb_status nb_weight_chunk(cudaStream_t stream, const struct nb_weight *weight, struct nb_weight_region region, nb_dptr scratch);
nb_status nb_weight_chunk_prepare(void);

/* ---- chunks of dequantized weights, on the two paths that have them ---- */

/* What to do for each chunk: `dequantize` enqueues its weights into `scratch`, `multiply` the product with them, each on the stream given.
 * Both paths are one loop: with overlap the weights of chunk i + 1 are made on cuda->side while chunk i multiplies. */
struct nb_chunk_loop {
    const void *context;
    int chunks;
    bool overlapped;
    nb_dptr scratch;
    uint64_t scratch_bytes; /* of one chunk: overlapped uses two */
    nb_status (*dequantize)(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch);
    nb_status (*multiply)(struct nb_cuda *cuda, cudaStream_t stream, const void *context, int chunk, nb_dptr scratch);
};
nb_status nb_chunk_loop_run(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_chunk_loop *loop);

#endif
