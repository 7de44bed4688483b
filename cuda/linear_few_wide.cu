/* y for 5 to 64 tokens.
 *
 * A block takes 128 rows of W, 16 a warp, and a cut of `in` in steps of 256 columns. Weights go straight to registers,
 * one step ahead; the tokens' columns of a step come by cp.async, two stages, and are read by all warps. Where 128 rows
 * a block do not fill the chip, `in` is cut by (out, in) alone, and sum_kernel adds the cuts' fp32 sums in order: 4,096
 * by 4,096 is 32 blocks by 8 cuts. Bound by reading W as in linear_few.cu up to about 16 tokens; above by the tokens'
 * fragments from shared memory, one 16-byte read for two products: at 64 tokens 2,048 clocks a step of 32,768 weights,
 * beside 1,600 of the tensor cores. */
#include "cuda/linear_few.cuh"

enum { THREADS = 256, ROWS = 16 };

/* A token's 256 columns in shared memory. Packed: quarters of 64 apart by a piece more than they hold, and rows by four
 * pieces more than a multiple of eight, so that the eight lanes of a 16-byte phase, two tokens by four quarters, meet
 * eight bank groups; with bf16 the quarters are neighbours. */
enum { ROW_BYTES = 576, QUARTER_BYTES = 144, TABLE_BYTES = (NB_FEW_TABLE_FLOATS * 4 + 127) / 128 * 128 };

template <int KIND> NB_KERNEL_FUNCTION int x_offset(int token, int column)
{
    int piece = column / 8;
    return token * ROW_BYTES + (KIND == NB_FEW_DENSE ? piece * 16 : piece / 8 * QUARTER_BYTES + piece % 8 * 16);
}

template <int TILES> struct linear_wide_shape {
    static constexpr int TOKENS = 8 * TILES, STAGE_BYTES = TOKENS * ROW_BYTES, BYTES = TABLE_BYTES + 2 * STAGE_BYTES;
};

/* A warp a token: 32 pieces of 16 bytes. */
template <int KIND, int TILES>
NB_KERNEL_FUNCTION void fill_stage(unsigned char *stage, const struct nb_few &d, int column, int valid)
{
    int at = threadIdx.x % NB_WARP * 8;
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        int token = threadIdx.x / NB_WARP + 8 * n;
        bool inside = token < valid && column + at < d.in;
        const nb_bf16 *from = inside ? d.x + (int64_t)token * d.x_stride + column + at : d.x;
        nb_copy_async_16(stage + x_offset<KIND>(token, at), from, inside ? 16 : 0);
    }
}

template <int TILES> struct linear_wide_sum {
    float of[TILES][4];
};

/* sum += the weights of the run at `column`, times all tokens. stage: the columns from `column` - `within` on. */
template <int KIND, int TILES>
NB_KERNEL_FUNCTION void multiply_run(struct linear_wide_sum<TILES> &sum, const struct nb_few_run<KIND> &run,
    const struct nb_few_rows &rows, const unsigned char *stage, int column, int within, int in)
{
    struct nb_scaled_codes codes[2];
    if constexpr (KIND == NB_FEW_PACKED)
        nb_few_scale(codes, run, rows, column + nb_few_column<KIND>(0) < in);
    int token = threadIdx.x % NB_WARP / 4;
#pragma unroll
    for (int i = 0; i < nb_few_shape<KIND>::PIECES; i++) {
        struct nb_few_weights weights = nb_few_weights_of(
            nb_few_decode<KIND>(run, codes, rows, 0, i, column, in), nb_few_decode<KIND>(run, codes, rows, 1, i, column, in));
        const unsigned char *piece = stage + x_offset<KIND>(token, within) + x_offset<KIND>(0, nb_few_column<KIND>(i));
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            uint4 tokens = *(const uint4 *)(piece + 8 * n * ROW_BYTES);
            uint32_t first[2] = {tokens.x, tokens.y}, second[2] = {tokens.z, tokens.w};
            nb_mma_bf16(sum.of[n], weights.first, first);
            nb_mma_bf16(sum.of[n], weights.second, second);
        }
    }
}

/* Through shared memory, so that neighbouring threads end neighbouring outputs. A token's row of sums is padded for the
 * writes' banks. */
enum { SUM_ROW = NB_FEW_ROWS + 4 };

template <int TILES>
NB_KERNEL_FUNCTION void store_sums(
    const struct nb_few &d, int p, float *sums, int first, int split, int valid, const struct linear_wide_sum<TILES> &sum)
{
    const struct nb_few_part &part = d.part[p];
    int lane = threadIdx.x % NB_WARP, row = threadIdx.x / NB_WARP * ROWS + lane / 4, outputs = d.outputs[NB_LINEAR_PARTS];
    nb_block_barrier();
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[(8 * n + lane % 4 * 2 + i % 2) * SUM_ROW + row + i / 2 * 8] = sum.of[n][i];
    nb_block_barrier();
#pragma unroll 1
    for (int i = threadIdx.x; i < valid * NB_FEW_ROWS; i += THREADS) {
        int token = i / NB_FEW_ROWS, output = first + i % NB_FEW_ROWS;
        float value = sums[token * SUM_ROW + i % NB_FEW_ROWS];
        if (output >= part.out)
            continue;
        if (d.splits > 1)
            d.partials[((int64_t)split * d.tokens_max + token) * outputs + d.outputs[p] + output] = value;
        else
            nb_few_store(part, token, output, value, part.b ? nb_few_branch(part, token, output) : 0.0f);
    }
}

/* The grid: tiles of rows, cut by cut. */
template <int KIND, int TILES> __global__ void __launch_bounds__(THREADS, 1) linear_wide_kernel(struct nb_few d)
{
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max);
    int tiles = d.tiles[NB_LINEAR_PARTS], tile = blockIdx.x % tiles, split = blockIdx.x / tiles;
    if (valid == 0)
        return;
    int p = tile >= d.tiles[2] ? 2 : tile >= d.tiles[1] ? 1 : 0;
    const struct nb_few_part &part = d.part[p];
    float *table = (float *)nb_shared_memory();
    unsigned char *stages = nb_shared_memory() + TABLE_BYTES;
    int first = (tile - d.tiles[p]) * NB_FEW_ROWS;
    int row = first + threadIdx.x / NB_WARP * ROWS + threadIdx.x % NB_WARP / 4;
    int width = d.steps * NB_FEW_DEPTH, begin = split * width, end = begin + width < d.in ? begin + width : d.in;
    constexpr int DEPTH = nb_few_shape<KIND>::DEPTH;
    struct nb_few_rows rows = nb_few_rows_of<KIND>(part, table, row, d.in);
    struct nb_few_run<KIND> next;
    nb_few_fetch<KIND>(&next, rows, begin, d.in);
    fill_stage<KIND, TILES>(stages, d, begin, valid);
    nb_copy_async_commit();
    nb_few_fill_table(table, part);
    struct linear_wide_sum<TILES> sum = {};
    for (int column = begin, stage = 0; column < end; column += NB_FEW_DEPTH, stage ^= 1) {
        nb_copy_async_wait<0>();
        nb_block_barrier();
        if (column + NB_FEW_DEPTH < end)
            fill_stage<KIND, TILES>(stages + (stage ^ 1) * linear_wide_shape<TILES>::STAGE_BYTES, d, column + NB_FEW_DEPTH, valid);
        nb_copy_async_commit();
#pragma unroll
        for (int within = 0; within < NB_FEW_DEPTH; within += DEPTH) {
            struct nb_few_run<KIND> run = next;
            if (column + within + DEPTH < end)
                nb_few_fetch<KIND>(&next, rows, column + within + DEPTH, d.in);
            if (column + within < end)
                multiply_run<KIND, TILES>(
                    sum, run, rows, stages + stage * linear_wide_shape<TILES>::STAGE_BYTES, column + within, within, d.in);
        }
    }
    nb_copy_async_wait<0>();
    store_sums<TILES>(d, p, (float *)stages, first, split, valid, sum);
}

/* y from the cuts' sums: a thread an output of a token. */
static __global__ void __launch_bounds__(THREADS) sum_kernel(struct nb_few d)
{
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int outputs = d.outputs[NB_LINEAR_PARTS], token = (int)(index / outputs), output = (int)(index % outputs);
    if (token >= nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max))
        return;
    float sum = 0;
#pragma unroll 8
    for (int split = 0; split < d.splits; split++)
        sum += d.partials[((int64_t)split * d.tokens_max + token) * outputs + output];
    int p = output >= d.outputs[2] ? 2 : output >= d.outputs[1] ? 1 : 0;
    const struct nb_few_part &part = d.part[p];
    output -= d.outputs[p];
    nb_few_store(part, token, output, sum, part.b ? nb_few_branch(part, token, output) : 0.0f);
}

/* ---- launching ---- */

struct linear_wide_choice {
    int tokens, shared_bytes;
    void (*kernel)(struct nb_few);
};

template <int KIND, int TILES> static struct linear_wide_choice choice_of()
{
    struct linear_wide_choice choice = {linear_wide_shape<TILES>::TOKENS, linear_wide_shape<TILES>::BYTES, linear_wide_kernel<KIND, TILES>};
    return choice;
}

enum { KINDS = 3, CHOICES = 4 };

static struct linear_wide_choice choice_at(int kind, int index)
{
    static struct linear_wide_choice (*const of[KINDS][CHOICES])() = {
        {choice_of<NB_FEW_PACKED, 1>, choice_of<NB_FEW_PACKED, 2>, choice_of<NB_FEW_PACKED, 4>, choice_of<NB_FEW_PACKED, 8>},
        {choice_of<NB_FEW_STRADDLING, 1>, choice_of<NB_FEW_STRADDLING, 2>, choice_of<NB_FEW_STRADDLING, 4>,
            choice_of<NB_FEW_STRADDLING, 8>},
        {choice_of<NB_FEW_DENSE, 1>, choice_of<NB_FEW_DENSE, 2>, choice_of<NB_FEW_DENSE, 4>, choice_of<NB_FEW_DENSE, 8>},
    };
    return of[kind][index]();
}

nb_status nb_linear_few_wide(cudaStream_t stream, const struct nb_few *few, enum nb_few_kind kind)
{
    int index = 0;
    while (choice_at(kind, index).tokens < few->tokens_max)
        index++;
    struct linear_wide_choice choice = choice_at(kind, index);
    struct nb_launch launch = {dim3((unsigned)(few->tiles[NB_LINEAR_PARTS] * few->splits)), THREADS, choice.shared_bytes};
    NB_TRY(nb_cuda_launch("linear, up to 64 tokens", choice.kernel, launch, stream, *few));
    if (few->splits == 1)
        return NB_OK;
    launch.grid = dim3(nb_blocks_of((int64_t)few->tokens_max * few->outputs[NB_LINEAR_PARTS], THREADS));
    launch.shared_bytes = 0;
    return nb_cuda_launch("linear, up to 64 tokens, sum", sum_kernel, launch, stream, *few);
}

nb_status nb_linear_few_wide_prepare(void)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < CHOICES; i++)
            NB_TRY(nb_cuda_load("linear, up to 64 tokens", choice_at(kind, i).kernel, choice_at(kind, i).shared_bytes));
    return nb_cuda_load("linear, up to 64 tokens, sum", sum_kernel, 0);
}
