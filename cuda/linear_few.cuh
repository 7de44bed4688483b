/* What the two few-token products share: a warp multiplies 16 rows of W by the tokens, weights on the 16 side of the
 * tensor cores.
 *
 * The order of the columns within a product may be any as long as both sides keep it. So a lane reads what is handy to
 * decode: with g = lane / 4 and q = lane % 4, lane (g, q) owns of rows g and g + 8 a run of 64 weights, q runs beside
 * each other making a step of 256 columns. A run of 4 bits is one block: two 16-byte loads, one scale, one scaled
 * codebook in registers (dequantize_block.cuh), no shuffles, no shared memory, and bit for bit the weights that prefill
 * and training use. Eight weights are the a of two products, and the same eight columns of a token, 16 bytes, their b.
 * Runs of bf16 are pieces of 16 bytes, each 64 bytes from the next, so that four lanes read 64 bytes together; a step
 * is 128 columns. Where `in` is no multiple of 64 blocks straddle rows, and each eight weights get their own block's
 * scale. */
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

/* A lane's two rows of W, g and g + 8 of a warp's 16. Rows behind the part's last are read as the last; what comes of
 * them is not stored. */
struct nb_few_rows {
    const uint8_t *data[2]; /* their first bytes; straddling: the matrix's */
    int64_t block[2];       /* packed: their first blocks; straddling: their first flat index */
    const void *absmax;
    const float *nested_absmax, *table; /* table: nb_few_fill_table's */
    float offset;
};

template <int KIND>
NB_KERNEL_FUNCTION struct nb_few_rows nb_few_rows_of(const struct nb_few_part &part, const float *table, int row, int in)
{
    struct nb_few_rows rows = {{}, {}, part.packed.absmax, part.packed.nested_absmax, table, 0.0f};
    if (rows.nested_absmax)
        rows.offset = part.packed.nested_offset[0];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = row + 8 * i < part.out ? row + 8 * i : part.out - 1;
        int64_t flat = (int64_t)(part.row_begin + at) * in;
        rows.data[i] = KIND == NB_FEW_DENSE ? (const uint8_t *)(part.dense + flat) : part.packed.data;
        rows.data[i] += KIND == NB_FEW_PACKED ? flat / 2 : 0;
        rows.block[i] = KIND == NB_FEW_PACKED ? flat / 64 : flat;
    }
    return rows;
}

/* A lane's two runs as they lie in memory, and what makes their scales. */
template <int KIND> struct nb_few_run {
    uint4 data[2][nb_few_shape<KIND>::LOADS];
    uint32_t code[2];
    float absmax[2]; /* plain: the scale; nested: of the superblock */
};

/* Where a lane's run of a packed matrix begins in a row, for the step at `column`; behind `in` the first, which there
 * counts as zeros. */
NB_KERNEL_FUNCTION int nb_few_run_column(int column, int in)
{
    int at = column + nb_few_column<NB_FEW_PACKED>(0);
    return at < in ? at : 0;
}

/* Fetches a lane's runs of the step at `column`. Straddling: nothing, their bytes come when they are decoded. */
template <int KIND>
NB_KERNEL_FUNCTION void nb_few_fetch(struct nb_few_run<KIND> *run, const struct nb_few_rows &rows, int column, int in)
{
    int first = nb_few_run_column(column, in);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (KIND == NB_FEW_DENSE) {
            uint4 zero = {0, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < nb_few_shape<KIND>::LOADS; j++) {
                int at = column + nb_few_column<KIND>(j);
                run->data[i][j] = at < in ? nb_load_once_16(rows.data[i] + 2 * at) : zero;
            }
        } else if (KIND == NB_FEW_PACKED) {
#pragma unroll
            for (int j = 0; j < nb_few_shape<KIND>::LOADS; j++)
                run->data[i][j] = nb_load_once_16(rows.data[i] + (first / 2 + 16 * j));
            int64_t block = rows.block[i] + first / 64;
            if (rows.nested_absmax) {
                run->code[i] = ((const uint8_t *)rows.absmax)[block];
                run->absmax[i] = rows.nested_absmax[block / 256];
            } else {
                run->absmax[i] = ((const float *)rows.absmax)[block];
            }
        }
    }
}

/* Eight weights of a run whose blocks straddle rows, straight from memory. */
NB_KERNEL_FUNCTION uint4 nb_few_straddling(const struct nb_few_rows &rows, int i, int column, int in)
{
    uint4 zero = {0, 0, 0, 0};
    if (column >= in)
        return zero;
    int64_t flat = rows.block[i] + column, block = flat / 64;
    float scale;
    if (rows.nested_absmax) {
        scale = rows.table[((const uint8_t *)rows.absmax)[block]] * rows.nested_absmax[block / 256];
        scale = scale + rows.offset;
    } else {
        scale = ((const float *)rows.absmax)[block];
    }
    return nb_decode_8(nb_scale_codes(rows.table + 256, scale), *(const uint32_t *)(rows.data[i] + flat / 2));
}

/* The codes of a lane's two runs times their scales; times zero where they lie behind `in`. */
NB_KERNEL_FUNCTION void nb_few_scale(
    struct nb_scaled_codes codes[2], const struct nb_few_run<NB_FEW_PACKED> &run, const struct nb_few_rows &rows, bool inside)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float scale = run.absmax[i];
        if (rows.nested_absmax) {
            scale = rows.table[run.code[i]] * scale;
            scale = scale + rows.offset;
        }
        codes[i] = nb_scale_codes(rows.table + 256, inside ? scale : 0.0f);
    }
}

/* The runs' piece `piece` as weights: eight columns of row i. */
template <int KIND>
NB_KERNEL_FUNCTION uint4 nb_few_decode(const struct nb_few_run<KIND> &run, const struct nb_scaled_codes codes[2],
    const struct nb_few_rows &rows, int i, int piece, int column, int in)
{
    if constexpr (KIND == NB_FEW_DENSE) {
        return run.data[i][piece];
    } else if constexpr (KIND == NB_FEW_STRADDLING) {
        return nb_few_straddling(rows, i, column + nb_few_column<KIND>(piece), in);
    } else {
        const uint4 &words = run.data[i][piece / 4];
        int word = piece % 4;
        return nb_decode_8(codes[i], word == 0 ? words.x : word == 1 ? words.y : word == 2 ? words.z : words.w);
    }
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
