/* What the LoRA kernels share: tiles of bf16 in shared memory, fragments of them, and dropout on a tile. */
#ifndef NB_CUDA_LORA_TILE_CUH
#define NB_CUDA_LORA_TILE_CUH

#include "cuda/device.cuh"
#include "device/cuda/lora_plan.h"
#include "device/dropout.h"

/* ---- tiles of rows of WIDTH bf16, WIDTH a multiple of 16 ----
 * Eight rows' pieces of 16 bytes at one column lie in eight different bank groups: by exchanging pieces within 128
 * bytes where a row is whole lines, else because a row is an odd number of pieces. */

template <int WIDTH> struct nb_tile_row {
    static constexpr int BYTES = WIDTH % 64 == 0 ? WIDTH * 2 : WIDTH * 2 + 16;
};

template <int WIDTH> NB_KERNEL_FUNCTION unsigned char *nb_tile_at(unsigned char *tile, int row, int piece)
{
    return tile + row * nb_tile_row<WIDTH>::BYTES + ((WIDTH % 64 == 0 ? piece ^ (row & 7) : piece) << 4);
}

/* a of nb_mma_bf16, 16 by 16, from row `row` and piece `piece` (eight columns each): as it lies, or of the transposed
 * tile (rows are then the depth, pieces the rows of a). */
template <int WIDTH> NB_KERNEL_FUNCTION void nb_tile_load_a(uint32_t a[4], unsigned char *tile, int row, int piece)
{
    int lane = threadIdx.x % NB_WARP;
    nb_ldmatrix_x4(a, nb_tile_at<WIDTH>(tile, row + lane % 16, piece + lane / 16));
}

template <int WIDTH>
NB_KERNEL_FUNCTION void nb_tile_load_a_transposed(uint32_t a[4], unsigned char *tile, int row, int piece)
{
    int lane = threadIdx.x % NB_WARP;
    nb_ldmatrix_x4_trans(a, nb_tile_at<WIDTH>(tile, row + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2));
}

/* b of nb_mma_bf16 for two neighbouring tiles of eight columns, b[0..1] and b[2..3], 16 deep. From a tile whose rows
 * are the columns of b ... */
template <int WIDTH> NB_KERNEL_FUNCTION void nb_tile_load_b(uint32_t b[4], unsigned char *tile, int row, int piece)
{
    int lane = threadIdx.x % NB_WARP;
    nb_ldmatrix_x4(b, nb_tile_at<WIDTH>(tile, row + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2));
}

/* ... and from one whose rows are the depth, its pieces the columns of b. */
template <int WIDTH>
NB_KERNEL_FUNCTION void nb_tile_load_b_transposed(uint32_t b[4], unsigned char *tile, int row, int piece)
{
    int lane = threadIdx.x % NB_WARP;
    nb_ldmatrix_x4_trans(b, nb_tile_at<WIDTH>(tile, row + lane % 16, piece + lane / 16));
}

/* The same for one tile of eight columns. */
template <int WIDTH>
NB_KERNEL_FUNCTION void nb_tile_load_b_half_transposed(uint32_t b[2], unsigned char *tile, int row, int piece)
{
    int lane = threadIdx.x % NB_WARP;
    nb_ldmatrix_x2_trans(b, nb_tile_at<WIDTH>(tile, row + lane % 16, piece));
}

/* Columns [column, column + 8) of a row of `width` bf16 into a piece, zeros behind the width. A row whose width is a
 * multiple of 8 is copied asynchronously; of another one the pieces are not aligned, and this thread fetches them
 * itself. `row` may be NULL: zeros. */
NB_KERNEL_FUNCTION void nb_tile_stage(unsigned char *piece, const nb_bf16 *row, int column, int width)
{
    if (width % 8 == 0) {
        bool inside = row && column < width;
        nb_copy_async_16(piece, inside ? row + column : row, inside ? 16 : 0);
        return;
    }
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low = row && column + 2 * i < width ? row[column + 2 * i] : 0;
        uint32_t high = row && column + 2 * i + 1 < width ? row[column + 2 * i + 1] : 0;
        pair[i] = low | high << 16;
    }
    uint4 value;
    value.x = pair[0], value.y = pair[1], value.z = pair[2], value.w = pair[3];
    *(uint4 *)piece = value;
}

/* ---- dropout ---- */

/* Whose numbers mask a row of an op's buffers. */
struct nb_tile_dropout {
    const struct nb_slot *slot;
    const struct nb_step *step;
    const int32_t *rows; /* the op's, or NULL */
    int row_begin;
};

NB_KERNEL_FUNCTION uint32_t nb_dropout_token(const struct nb_tile_dropout &from, int row)
{
    row += from.row_begin;
    return from.slot->token_offset + (uint32_t)(from.rows ? from.rows[row] : row);
}

/* Zeroes what is dropped of the eight features from `feature` on, a multiple of 8, in a piece of shared memory. */
NB_KERNEL_FUNCTION void nb_dropout_piece(unsigned char *piece, const struct nb_dropout &dropout, int feature)
{
    uint32_t first = nb_dropout_keep_block(&dropout, (uint32_t)feature / 4) * 0xffu;
    uint32_t second = nb_dropout_keep_block(&dropout, (uint32_t)feature / 4 + 1) * 0xffu;
    uint4 value = *(uint4 *)piece;
    value.x &= nb_permute_bytes(first, first, 0x1100), value.y &= nb_permute_bytes(first, first, 0x3322);
    value.z &= nb_permute_bytes(second, second, 0x1100), value.w &= nb_permute_bytes(second, second, 0x3322);
    *(uint4 *)piece = value;
}

/* ---- parts ---- */

/* An adapter as the kernels of the stacked products take it. */
struct nb_stacked_part {
    const nb_bf16 *matrix; /* forward: A [rank, in]; backward: u [tokens, rank] */
    nb_bf16 *t;
    float *da;
    uint64_t module;
    int begin, rank;       /* first stacked column; 0: no adapter */
    float dropout, factor; /* factor: 1 / (1 - dropout) */
};

/* The part of a stacked column, by value, and the column within it in *column; rank 0 behind every rank. */
NB_KERNEL_FUNCTION struct nb_stacked_part nb_stacked_part_of(const struct nb_stacked_part part[NB_LINEAR_PARTS], int *column)
{
    struct nb_stacked_part found = part[0];
#pragma unroll
    for (int p = 1; p < NB_LINEAR_PARTS; p++)
        if (part[p].rank > 0 && *column >= part[p].begin)
            found = part[p];
    *column -= found.begin;
    if (*column < 0 || *column >= found.rank)
        found.rank = 0;
    return found;
}

#endif
