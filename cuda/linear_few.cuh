/* What the two few-token products share: a warp multiplies 16 rows of W by the tokens, weights on the 16 side of the tensor cores.
 *
 * The order of the columns within a product may be any as long as both sides keep it. So a lane reads what is handy to decode: with g = lane /
 * 4 and q = lane % 4, lane (g, q) owns of rows g and g + 8 a run of 64 weights, q runs beside each other making a step of 256 columns. A run
 * of 4 bits is one block: two 16-byte loads, one scale, one scaled codebook in registers (dequantize_block.cuh), no shuffles, no shared
 * memory, and bit for bit the weights that prefill and training use. Eight weights are the a of two products, and the same eight columns of a
 * token, 16 bytes, their b.
 * Runs of bf16 are pieces of 16 bytes, each 64 bytes from the next, so that four lanes read 64 bytes together; a step is 128 columns.
 * Where `in` is no multiple of 64 blocks straddle rows, and each eight weights get their own block's scale. */
#ifndef NB_CUDA_LINEAR_FEW_CUH
#define NB_CUDA_LINEAR_FEW_CUH

#include "cuda/dequantize_block.cuh"
#include "cuda/lora.cuh"
#include "device/cuda/lora_plan.h"

enum nb_few_kind { NB_FEW_PACKED, NB_FEW_STRADDLING, NB_FEW_DENSE };

struct nb_few_part {
    struct nb_packed_weight packed;
    const nb_bf16 *dense; /* NULL: packed */
    const nb_bf16 *bias, *b, *t; /* b NULL: no adapter */
    nb_bf16 *y;
    int row_begin, out, y_stride, rank;
    float output_scale, lora_scale;
    bool accumulate;
};

struct nb_few {
    struct nb_few_part part[NB_LINEAR_PARTS];
    const nb_bf16 *x;
    const struct nb_slot *slot;
    float *partials;
    enum nb_row_count rows_from;
    int row_begin, tokens_max, in, x_stride;
    int tiles[NB_LINEAR_PARTS + 1];   /* tiles of rows in the parts before each */
    int outputs[NB_LINEAR_PARTS + 1]; /* rows in the parts before each */
    int splits, steps;                /* of 5 tokens and more: struct nb_linear_few_plan */
};

/* What a kernel of this kind needs besides, in shared memory: the second-level scales' map and the codebook. */
enum { NB_FEW_TABLE_FLOATS = 256 + 16 };

NB_KERNEL_FUNCTION void nb_few_fill_table(float *table, const struct nb_few_part &part)
{
    if (part.dense)
        return;
    for (int i = threadIdx.x; i < NB_FEW_TABLE_FLOATS; i += blockDim.x) {
        if (i >= 256)
            table[i] = part.packed.codebook[i - 256];
        else if (part.packed.nested_absmax)
            table[i] = part.packed.nested_map[i];
    }
}

template <int KIND> struct nb_few_shape {
    static constexpr int PIECES = KIND == NB_FEW_DENSE ? 4 : 8; /* of eight columns, in a lane's run */
    static constexpr int DEPTH = PIECES * 32;                   /* columns of a step */
    static constexpr int LOADS = KIND == NB_FEW_DENSE ? 4 : 2;  /* of 16 bytes, a row's run */
};

/* The first of the eight columns of a lane's piece `piece` within a step. */
template <int KIND> NB_KERNEL_FUNCTION int nb_few_column(int piece)
{
    int quarter = threadIdx.x % 4;
    return KIND == NB_FEW_DENSE ? 32 * piece + 8 * quarter : 64 * quarter + 8 * piece;
}

/* A lane's two runs as they lie in memory, and what makes their scales. */
template <int KIND> struct nb_few_run {
    uint4 data[2][nb_few_shape<KIND>::LOADS];
    uint32_t code[2];
    float absmax[2]; /* plain: the scale; nested: of the superblock */
};

/* Fetches the runs of rows `row` and row + 8 (of the part; those behind its last become zeros) of the step at `column`. */
template <int KIND>
NB_KERNEL_FUNCTION void nb_few_fetch(struct nb_few_run<KIND> *run, const struct nb_few_part &part, int row, int column, int in)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool there = row + 8 * i < part.out;
        int64_t flat = (int64_t)(part.row_begin + row + 8 * i) * in + column;
        uint4 zero = {0, 0, 0, 0};
        if (KIND == NB_FEW_DENSE) {
#pragma unroll
            for (int j = 0; j < nb_few_shape<KIND>::LOADS; j++) {
                int at = nb_few_column<KIND>(j);
                run->data[i][j] = there && column + at < in ? nb_load_once_16(part.dense + flat + at) : zero;
            }
        } else if (KIND == NB_FEW_PACKED) {
            int at = nb_few_column<KIND>(0);
            there = there && column + at < in;
            int64_t block = (flat + at) / 64;
#pragma unroll
            for (int j = 0; j < 2; j++)
                run->data[i][j] = there ? nb_load_once_16(part.packed.data + (flat + at) / 2 + 16 * j) : zero;
            run->code[i] = 0;
            run->absmax[i] = 0.0f;
            if (there && part.packed.nested_absmax) {
                run->code[i] = ((const uint8_t *)part.packed.absmax)[block];
                run->absmax[i] = part.packed.nested_absmax[block / 256];
            } else if (there) {
                run->absmax[i] = ((const float *)part.packed.absmax)[block];
            }
        }
    }
}

/* Eight weights of a run whose blocks straddle rows, straight from memory. */
NB_KERNEL_FUNCTION uint4 nb_few_straddling(const struct nb_few_part &part, const float *table, int row, int column, int in)
{
    uint4 zero = {0, 0, 0, 0};
    if (row >= part.out || column >= in)
        return zero;
    int64_t flat = (int64_t)(part.row_begin + row) * in + column;
    float scale = nb_block_scale(part.packed, table, flat / 64);
    struct nb_scaled_codes codes = nb_scale_codes(table + 256, scale);
    return nb_decode_8(codes, *(const uint32_t *)(part.packed.data + flat / 2));
}

/* The codes of a lane's two runs times their scales. */
NB_KERNEL_FUNCTION void nb_few_scale(
    struct nb_scaled_codes codes[2], const struct nb_few_run<NB_FEW_PACKED> &run, const struct nb_few_part &part, const float *table)
{
    bool nested = part.packed.nested_absmax != NULL;
    float offset = nested ? part.packed.nested_offset[0] : 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float scale = run.absmax[i];
        if (nested) {
            scale = table[run.code[i]] * scale;
            scale = scale + offset;
        }
        codes[i] = nb_scale_codes(table + 256, scale);
    }
}

NB_KERNEL_FUNCTION uint32_t nb_word_of(const uint4 data[2], int word)
{
    const uint4 &half = data[word / 4];
    return word % 4 == 0 ? half.x : word % 4 == 1 ? half.y : word % 4 == 2 ? half.z : half.w;
}

/* The a of two products: eight columns of rows g and g + 8. */
struct nb_few_weights {
    uint32_t first[4], second[4];
};

NB_KERNEL_FUNCTION struct nb_few_weights nb_few_weights_of(uint4 low, uint4 high)
{
    struct nb_few_weights w = {{low.x, high.x, low.y, high.y}, {low.z, high.z, low.w, high.w}};
    return w;
}

/* ---- the end of an output ---- */

/* t[token] . b[row]. */
NB_KERNEL_FUNCTION float nb_few_branch(const struct nb_few_part &part, int token, int row)
{
    const nb_bf16 *t = part.t + (int64_t)token * part.rank, *b = part.b + (int64_t)row * part.rank;
    float sum = 0;
    if (part.rank % 8 == 0) {
        for (int i = 0; i < part.rank; i += 8) {
            float left[8], right[8];
            nb_unpack8(*(const uint4 *)(t + i), left);
            nb_unpack8(*(const uint4 *)(b + i), right);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum = fmaf(left[j], right[j], sum);
        }
    } else {
        for (int i = 0; i < part.rank; i++)
            sum = fmaf(nb_bf16_value(t[i]), nb_bf16_value(b[i]), sum);
    }
    return sum;
}

/* y from the sum over `in` and the branch's, which is unscaled. */
NB_KERNEL_FUNCTION void nb_few_store(const struct nb_few_part &part, int token, int row, float sum, float branch)
{
    if (part.b)
        sum += part.lora_scale * branch;
    if (part.bias)
        sum += nb_bf16_value(part.bias[row]);
    float value = part.output_scale * sum;
    nb_bf16 *y = part.y + (int64_t)token * part.y_stride + row;
    if (part.accumulate)
        value = nb_bf16_value(*y) + nb_bf16_rounded(value);
    *y = nb_bf16_round(value);
}

/* linear_few_wide.cu: 5 to NB_CUDA_FEW_TOKENS tokens. d's tiles and outputs, for parts of one kind, are set. */
nb_status nb_linear_few_wide(cudaStream_t stream, const struct nb_few *few, enum nb_few_kind kind);
nb_status nb_linear_few_wide_prepare(void);

#endif
