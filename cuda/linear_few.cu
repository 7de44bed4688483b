/* y for up to 4 tokens, and the choice among the few-token products.
 *
 * A block takes 16 rows of W; its 8 warps take the steps of 256 columns in turn (linear_few.cuh) and add their sums in
 * order in shared memory: no partial sums, no second kernel. x comes through L1, which holds all of it. Bound by
 * reading W: 0.516 bytes a weight (4 bits and a nested scale a block of 64), out * in of them. Per warp and step 2 KB
 * are under way besides the 2 KB in work, 16 warps a multiprocessor: 32 KB, where 4.8 TB/s over 132 multiprocessors at
 * 0.8 us want 29 KB. The loop's SASS for sm_90a is 3.9 instructions a weight (2.6 decode, 0.5 scale the codebook; the
 * products 0.12): at 4 a clock and multiprocessor 33 weights, 17 bytes, 80% of what the memory of an H200 brings (20.8)
 * and several times that of cards with slower memory. With bf16 weights 2.5 instructions bring 2 bytes: bound by memory
 * everywhere. */
#include "cuda/linear_few.cuh"

enum { THREADS = 256, WARPS = THREADS / NB_WARP, ROWS = 16, TOKENS = NB_LORA_FEW_TOKENS };

enum {
    TABLE_BYTES = NB_FEW_TABLE_FLOATS * 4,
    SUM_BYTES = WARPS * ROWS * TOKENS * 4,
    SHARED_BYTES = TABLE_BYTES + SUM_BYTES,
};

/* sum += the step's weights times x, of which this lane reads its token's columns. Two chains of products. */
template <int KIND>
NB_KERNEL_FUNCTION void multiply_step(
    float sum[2][4], const struct nb_few_run<KIND> &run, const struct nb_few_rows &rows, const nb_bf16 *x, int column, int in)
{
    struct nb_scaled_codes codes[2];
    if constexpr (KIND == NB_FEW_PACKED) {
        nb_few_scale(codes, run, rows, column + nb_few_column<KIND>(0) < in);
        x += nb_few_run_column(column, in);
    }
#pragma unroll
    for (int i = 0; i < nb_few_shape<KIND>::PIECES; i++) {
        int at = column + nb_few_column<KIND>(i);
        uint4 tokens = {0, 0, 0, 0};
        if (KIND == NB_FEW_PACKED)
            tokens = *(const uint4 *)(x + 8 * i);
        else if (at < in)
            tokens = *(const uint4 *)(x + at);
        struct nb_few_weights weights = nb_few_weights_of(
            nb_few_decode<KIND>(run, codes, rows, 0, i, column, in), nb_few_decode<KIND>(run, codes, rows, 1, i, column, in));
        uint32_t first[2] = {tokens.x, tokens.y}, second[2] = {tokens.z, tokens.w};
        nb_mma_bf16(sum[0], weights.first, first);
        nb_mma_bf16(sum[1], weights.second, second);
    }
}

/* The warps' sums together, and the end: four threads an output, which share its branch. */
NB_KERNEL_FUNCTION void store_rows(const struct nb_few_part &part, const float *sums, int row, int valid)
{
    int output = threadIdx.x / 4 / TOKENS, token = threadIdx.x / 4 % TOKENS, share = threadIdx.x % 4;
    bool there = row + output < part.out && token < valid;
    float branch = 0, sum = 0;
    if (there && part.b) {
        const nb_bf16 *t = part.t + (int64_t)token * part.rank, *b = part.b + (int64_t)(row + output) * part.rank;
#pragma unroll 4
        for (int i = share; i < part.rank; i += 4)
            branch = fmaf(nb_bf16_value(t[i]), nb_bf16_value(b[i]), branch);
    }
    branch += nb_shuffle_xor(branch, 1);
    branch += nb_shuffle_xor(branch, 2);
    if (!there || share != 0)
        return;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        sum += sums[(warp * ROWS + output) * TOKENS + token];
    nb_few_store(part, token, row + output, sum, branch);
}

template <int KIND> __global__ void __launch_bounds__(THREADS, 2) linear_few_kernel(struct nb_few d)
{
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max), tile = blockIdx.x;
    if (valid == 0)
        return;
    int p = tile >= d.tiles[2] ? 2 : tile >= d.tiles[1] ? 1 : 0;
    const struct nb_few_part &part = d.part[p];
    int warp = threadIdx.x / NB_WARP, lane = threadIdx.x % NB_WARP, first = (tile - d.tiles[p]) * ROWS, in = d.in;
    float *table = (float *)nb_shared_memory(), *sums = table + NB_FEW_TABLE_FLOATS;
    const nb_bf16 *x = d.x + (int64_t)(lane / 4 < valid ? lane / 4 : 0) * d.x_stride;
    struct nb_few_rows rows = nb_few_rows_of<KIND>(part, table, first + lane / 4, in);
    constexpr int STRIDE = WARPS * nb_few_shape<KIND>::DEPTH;
    int column = warp * nb_few_shape<KIND>::DEPTH;
    struct nb_few_run<KIND> even, odd; /* one in work, one under way */
    if (column < in)
        nb_few_fetch<KIND>(&even, rows, column, in);
    nb_few_fill_table(table, part);
    nb_block_barrier();
    float sum[2][4] = {};
    while (column < in) {
        if (column + STRIDE < in)
            nb_few_fetch<KIND>(&odd, rows, column + STRIDE, in);
        multiply_step<KIND>(sum, even, rows, x, column, in);
        column += STRIDE;
        if (column >= in)
            break;
        if (column + STRIDE < in)
            nb_few_fetch<KIND>(&even, rows, column + STRIDE, in);
        multiply_step<KIND>(sum, odd, rows, x, column, in);
        column += STRIDE;
    }
    int token = lane % 4 * 2;
    if (token < TOKENS) {
        float *to = sums + (warp * ROWS + lane / 4) * TOKENS + token;
        to[0] = sum[0][0] + sum[1][0], to[1] = sum[0][1] + sum[1][1];
        to += 8 * TOKENS;
        to[0] = sum[0][2] + sum[1][2], to[1] = sum[0][3] + sum[1][3];
    }
    nb_block_barrier();
    store_rows(part, sums, first, valid);
}

/* ---- launching ---- */

static enum nb_few_kind kind_of(const struct nb_linear *args, int p)
{
    if (args->part[p].weight.format == NB_WEIGHT_BF16)
        return NB_FEW_DENSE;
    return args->in % 64 == 0 ? NB_FEW_PACKED : NB_FEW_STRADDLING;
}

static struct nb_few_part part_of(const struct nb_linear_part *from)
{
    struct nb_few_part part = {};
    if (from->weight.format == NB_WEIGHT_BF16)
        part.dense = nb_pointer<const nb_bf16>(from->weight.data);
    else
        part.packed = nb_packed_weight_of(&from->weight);
    part.bias = nb_pointer<const nb_bf16>(from->bias);
    if (!nb_dptr_is_null(from->lora.a)) {
        part.b = nb_pointer<const nb_bf16>(from->lora.b);
        part.t = nb_pointer<const nb_bf16>(from->lora.t);
        part.rank = from->lora.rank;
        part.lora_scale = from->lora.scale;
    }
    part.y = nb_pointer<nb_bf16>(from->y);
    part.row_begin = from->row_begin;
    part.out = from->out;
    part.y_stride = from->y_stride;
    part.output_scale = from->output_scale;
    part.accumulate = from->accumulate;
    return part;
}

static nb_status launch_narrow(cudaStream_t stream, const struct nb_few *few, enum nb_few_kind kind)
{
    struct nb_launch launch = {dim3((unsigned)few->tiles[NB_LINEAR_PARTS]), THREADS, SHARED_BYTES};
    if (kind == NB_FEW_PACKED)
        return nb_cuda_launch("linear, few tokens", linear_few_kernel<NB_FEW_PACKED>, launch, stream, *few);
    if (kind == NB_FEW_STRADDLING)
        return nb_cuda_launch(
            "linear, few tokens, blocks that straddle rows", linear_few_kernel<NB_FEW_STRADDLING>, launch, stream, *few);
    return nb_cuda_launch("linear, few tokens, bf16", linear_few_kernel<NB_FEW_DENSE>, launch, stream, *few);
}

/* All parts of a kind in one launch; the parts of a linear are nearly always of one. */
nb_status nb_linear_few(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *args, nb_dptr partials)
{
    (void)cuda;
    struct nb_linear_few_plan plan;
    nb_linear_few_plan_of(args, &plan);
    bool narrow = nb_lora_site_tokens(args->site_tokens, args->tokens_max) <= NB_LORA_FEW_TOKENS;
    for (int kind = NB_FEW_PACKED; kind <= NB_FEW_DENSE; kind++) {
        struct nb_few few = {};
        few.x = nb_pointer<const nb_bf16>(args->x);
        few.slot = nb_pointer<const struct nb_slot>(args->slot);
        few.partials = nb_pointer<float>(partials);
        few.rows_from = args->rows_from;
        few.row_begin = args->row_begin_chunk;
        few.tokens_max = args->tokens_max;
        few.in = args->in;
        few.x_stride = args->x_stride;
        few.splits = plan.splits;
        few.steps = plan.steps;
        for (int p = 0; p < NB_LINEAR_PARTS; p++) {
            bool mine = p < args->parts && kind_of(args, p) == kind;
            int out = mine ? args->part[p].out : 0;
            if (mine)
                few.part[p] = part_of(&args->part[p]);
            few.tiles[p + 1] = few.tiles[p] + (int)nb_blocks_of(out, narrow ? (int)ROWS : (int)NB_FEW_ROWS);
            few.outputs[p + 1] = few.outputs[p] + out;
        }
        if (few.tiles[NB_LINEAR_PARTS] == 0)
            continue;
        NB_TRY(narrow ? launch_narrow(stream, &few, (enum nb_few_kind)kind)
                      : nb_linear_few_wide(stream, &few, (enum nb_few_kind)kind));
    }
    return NB_OK;
}

nb_status nb_linear_few_prepare(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("linear, few tokens", linear_few_kernel<NB_FEW_PACKED>, SHARED_BYTES));
    NB_TRY(nb_cuda_load("linear, few tokens, blocks that straddle rows", linear_few_kernel<NB_FEW_STRADDLING>, SHARED_BYTES));
    NB_TRY(nb_cuda_load("linear, few tokens, bf16", linear_few_kernel<NB_FEW_DENSE>, SHARED_BYTES));
    return nb_linear_few_wide_prepare();
}
