/* t = round(dropout(x) A^T / (1 - dropout)) for the parts of a linear.
 *
 * lora_down_kernel: a block multiplies 128 tokens by a tile of the stacked ranks of all parts over a fixed cut of `in`,
 * through a pipeline of cp.async stages of 64 columns. One tile of ranks covers 128 of them, so x is read once: 2 *
 * tokens * in bytes, which is what bounds it (r = 16 for q, k and v: ldmatrix reads 512 clocks a stage of 16 KB, 32
 * bytes a clock, where the memory of an H200 brings 20.8). Where the tiles of tokens alone do not fill the chip `in` is
 * cut by its length and the site, and sum_kernel adds the cuts' fp32 sums in order: at 2,048 tokens and in = 4,096
 * eight cuts, 128 blocks with 48 KB under way each, 6% more bytes for r = 16, which stay in L2. With dropout a tile of
 * ranks is one part's, for each part masks x by its own numbers: each thread masks the pieces that it copied itself, so
 * no barrier is added. Then Philox is the bound: about 25 instructions an element and part. few_kernel (up to 4
 * tokens): a block a rank, fp32, no partial sums; bound by its own latency. */
#include "cuda/lora.cuh"
#include "cuda/lora_tile.cuh"

enum { THREADS = 256, FEW_THREADS = 128, PIECES = NB_LORA_DEPTH / 8 };

struct lora_down {
    const nb_bf16 *x;
    const struct nb_slot *slot;
    struct nb_tile_dropout random;
    struct nb_stacked_part part[NB_LINEAR_PARTS];
    float *partials;
    enum nb_row_count rows_from;
    int row_begin, tokens_max, in, x_stride, width; /* width: stacked columns of a row of partials */
    int tiles, splits, split_columns;
};

template <int TILE> struct lora_down_shape {
    static constexpr int WARPS_N = TILE >= 64 ? 2 : 1, ROWS = NB_LORA_ROWS / (8 / WARPS_N), COLUMNS = TILE / WARPS_N;
    static constexpr int STAGES = TILE <= 64 ? 4 : 3;
    static constexpr int STAGE_BYTES = (NB_LORA_ROWS + TILE) * NB_LORA_DEPTH * 2, BYTES = STAGES * STAGE_BYTES;
    static constexpr int X_PIECES = NB_LORA_ROWS * PIECES / THREADS, A_PIECES = (TILE * PIECES + THREADS - 1) / THREADS;
};

/* A warp's share of the block's tile, in fragments of 16 by 8. */
template <int TILE> struct lora_down_sum {
    float of[lora_down_shape<TILE>::ROWS / 16][lora_down_shape<TILE>::COLUMNS / 8][4];
};

/* A thread's share of filling the stages: x rows tid / 8, + 32, ..., ranks the same, always piece tid % 8. */
template <int TILE> struct lora_down_source {
    const nb_bf16 *x[lora_down_shape<TILE>::X_PIECES]; /* NULL: no such row */
    const nb_bf16 *a[lora_down_shape<TILE>::A_PIECES];
};

template <int TILE>
NB_KERNEL_FUNCTION void fill_stage(unsigned char *stage, const struct lora_down_source<TILE> &from, int column, int end)
{
    typedef lora_down_shape<TILE> shape;
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    bool inside = column < end;
#pragma unroll
    for (int i = 0; i < shape::X_PIECES; i++)
        nb_copy_async_16(nb_tile_at<NB_LORA_DEPTH>(stage, row + i * (THREADS / PIECES), piece), from.x[i] + column,
            inside && from.x[i] ? 16 : 0);
    unsigned char *ranks = stage + NB_LORA_ROWS * NB_LORA_DEPTH * 2;
#pragma unroll
    for (int i = 0; i < shape::A_PIECES; i++)
        if (TILE * PIECES % THREADS == 0 || row + i * (THREADS / PIECES) < TILE)
            nb_copy_async_16(nb_tile_at<NB_LORA_DEPTH>(ranks, row + i * (THREADS / PIECES), piece), from.a[i] + column,
                inside && from.a[i] ? 16 : 0);
}

/* sum += the warp's part of a stage. */
template <int TILE>
NB_KERNEL_FUNCTION void multiply_stage(unsigned char *stage, struct lora_down_sum<TILE> &sum)
{
    typedef lora_down_shape<TILE> shape;
    int warp = threadIdx.x / NB_WARP, row = warp / shape::WARPS_N * shape::ROWS;
    int rank = warp % shape::WARPS_N * shape::COLUMNS;
    unsigned char *ranks = stage + NB_LORA_ROWS * NB_LORA_DEPTH * 2;
#pragma unroll
    for (int k = 0; k < NB_LORA_DEPTH / 16; k++) {
        uint32_t a[shape::ROWS / 16][4];
#pragma unroll
        for (int m = 0; m < shape::ROWS / 16; m++)
            nb_tile_load_a<NB_LORA_DEPTH>(a[m], stage, row + 16 * m, 2 * k);
#pragma unroll
        for (int n = 0; n < shape::COLUMNS / 16; n++) {
            uint32_t b[4];
            nb_tile_load_b<NB_LORA_DEPTH>(b, ranks, rank + 16 * n, 2 * k);
#pragma unroll
            for (int m = 0; m < shape::ROWS / 16; m++) {
                nb_mma_bf16(sum.of[m][2 * n], a[m], b);
                nb_mma_bf16(sum.of[m][2 * n + 1], a[m], b + 2);
            }
        }
    }
}

/* Two neighbouring columns of a row of a part's t. */
NB_KERNEL_FUNCTION void store_pair(const struct nb_stacked_part &part, int64_t row, int column, float first, float second)
{
    nb_bf16 *t = part.t + row * part.rank + column;
    if (column < part.rank)
        t[0] = nb_bf16_round(first * part.factor);
    if (column + 1 < part.rank)
        t[1] = nb_bf16_round(second * part.factor);
}

template <int TILE>
NB_KERNEL_FUNCTION void store_tile(
    const struct lora_down &d, int row, int column, int split, int valid, struct lora_down_sum<TILE> &sum)
{
    typedef lora_down_shape<TILE> shape;
    int warp = threadIdx.x / NB_WARP, lane = threadIdx.x % NB_WARP;
    row += warp / shape::WARPS_N * shape::ROWS + lane / 4;
    column += warp % shape::WARPS_N * shape::COLUMNS + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < shape::COLUMNS / 8; n++) {
        int within = column + 8 * n; /* eight columns are of one part */
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &within);
#pragma unroll
        for (int i = 0; i < shape::ROWS / 8; i++) {
            int64_t at = row + 8 * i;
            float2 pair = {sum.of[i / 2][n][2 * (i % 2)], sum.of[i / 2][n][2 * (i % 2) + 1]};
            if (at >= valid)
                continue;
            if (d.splits > 1)
                *(float2 *)(d.partials + ((int64_t)split * d.tokens_max + at) * d.width + column + 8 * n) = pair;
            else
                store_pair(part, at, within, pair.x, pair.y);
        }
    }
}

/* The grid: tiles of tokens, within them cuts of `in`, within them tiles of ranks, which share the x they read. */
template <int TILE, bool DROPOUT>
__global__ void __launch_bounds__(THREADS, TILE <= 64 ? 2 : 1) lora_down_kernel(struct lora_down d)
{
    typedef lora_down_shape<TILE> shape;
    int tile = blockIdx.x % d.tiles, split = blockIdx.x / d.tiles % d.splits;
    int row = (int)(blockIdx.x / (d.tiles * d.splits)) * NB_LORA_ROWS, column = tile * TILE;
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max);
    if (row >= valid)
        return;
    unsigned char *shared = nb_shared_memory();
    int begin = split * d.split_columns, end = begin + d.split_columns < d.in ? begin + d.split_columns : d.in;
    int steps = (end - begin + NB_LORA_DEPTH - 1) / NB_LORA_DEPTH;
    int own = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    struct lora_down_source<TILE> from;
    struct nb_dropout dropout[shape::X_PIECES];
    int masked_column = column;
    struct nb_stacked_part masked = nb_stacked_part_of(d.part, &masked_column);
    bool drops = DROPOUT && masked.rank > 0 && masked.dropout > 0;
#pragma unroll
    for (int i = 0; i < shape::X_PIECES; i++) {
        int at = row + own + i * (THREADS / PIECES);
        from.x[i] = at < valid ? d.x + (int64_t)at * d.x_stride : NULL;
        if (drops)
            dropout[i] = nb_dropout(masked.dropout, masked.module, d.random.step->random_step, d.random.step->seed,
                at < valid ? nb_dropout_token(d.random, at) : 0);
    }
#pragma unroll
    for (int i = 0; i < shape::A_PIECES; i++) {
        int rank = column + own + i * (THREADS / PIECES);
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &rank);
        from.a[i] = part.rank > 0 ? part.matrix + (int64_t)rank * d.in : NULL;
    }
    struct lora_down_sum<TILE> sum = {};
    for (int step = 0; step < shape::STAGES - 1; step++) {
        if (step < steps)
            fill_stage<TILE>(shared + step * shape::STAGE_BYTES, from, begin + step * NB_LORA_DEPTH + 8 * piece, end);
        nb_copy_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        unsigned char *stage = shared + step % shape::STAGES * shape::STAGE_BYTES;
        nb_copy_async_wait<shape::STAGES - 2>();
        if (drops) {
#pragma unroll
            for (int i = 0; i < shape::X_PIECES; i++)
                nb_dropout_piece(nb_tile_at<NB_LORA_DEPTH>(stage, own + i * (THREADS / PIECES), piece), dropout[i],
                    begin + step * NB_LORA_DEPTH + 8 * piece);
        }
        nb_block_barrier();
        int next = step + shape::STAGES - 1;
        if (next < steps)
            fill_stage<TILE>(shared + next % shape::STAGES * shape::STAGE_BYTES, from,
                begin + next * NB_LORA_DEPTH + 8 * piece, end);
        nb_copy_async_commit();
        multiply_stage<TILE>(stage, sum);
    }
    nb_copy_async_wait<0>();
    store_tile<TILE>(d, row, column, split, valid, sum);
}

/* t from the cuts' sums: a thread a pair of stacked columns. */
static __global__ void __launch_bounds__(THREADS) sum_kernel(struct lora_down d)
{
    int64_t pair = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t row = pair / (d.width / 2);
    if (row >= nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max))
        return;
    int column = (int)(pair % (d.width / 2)) * 2;
    const float *from = d.partials + row * d.width + column;
    int64_t step = (int64_t)d.tokens_max * d.width;
    float first = 0, second = 0;
#pragma unroll 8
    for (int split = 0; split < d.splits; split++) {
        float2 value = *(const float2 *)(from + split * step);
        first += value.x, second += value.y;
    }
    struct nb_stacked_part part = nb_stacked_part_of(d.part, &column);
    store_pair(part, row, column, first, second);
}

/* A stacked column of t for up to NB_LORA_FEW_TOKENS tokens. */
static __global__ void __launch_bounds__(FEW_THREADS) few_kernel(struct lora_down d)
{
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max), column = blockIdx.x;
    struct nb_stacked_part part = nb_stacked_part_of(d.part, &column);
    if (part.rank == 0 || valid == 0)
        return;
    const nb_bf16 *a = part.matrix + (int64_t)column * d.in;
    float sum[NB_LORA_FEW_TOKENS] = {};
#pragma unroll 2
    for (int i = threadIdx.x * 8; i < d.in; i += FEW_THREADS * 8) {
        float w[8], x[8];
        nb_unpack8(*(const uint4 *)(a + i), w);
#pragma unroll
        for (int token = 0; token < NB_LORA_FEW_TOKENS; token++) {
            if (token >= valid)
                continue;
            nb_unpack8(*(const uint4 *)(d.x + (int64_t)token * d.x_stride + i), x);
#pragma unroll
            for (int j = 0; j < 8; j++)
                sum[token] = fmaf(x[j], w[j], sum[token]);
        }
    }
    float *warps = (float *)nb_shared_memory(); /* [tokens][warps] */
    int warp = threadIdx.x / NB_WARP;
#pragma unroll
    for (int token = 0; token < NB_LORA_FEW_TOKENS; token++) {
        float all = nb_warp_sum(sum[token]);
        if (threadIdx.x % NB_WARP == 0)
            warps[token * (FEW_THREADS / NB_WARP) + warp] = all;
    }
    nb_block_barrier();
    int token = threadIdx.x;
    if (token < NB_LORA_FEW_TOKENS && token < valid) {
        const float *mine = warps + token * (FEW_THREADS / NB_WARP);
        part.t[(int64_t)token * part.rank + column] = nb_bf16_round((mine[0] + mine[1]) + (mine[2] + mine[3]));
    }
}

/* ---- launching ---- */

typedef void (*lora_down_function)(struct lora_down);

struct lora_down_choice {
    int tile, shared_bytes;
    lora_down_function plain, dropping;
};

template <int TILE> static struct lora_down_choice choice_of()
{
    struct lora_down_choice choice = {TILE, lora_down_shape<TILE>::BYTES, lora_down_kernel<TILE, false>, lora_down_kernel<TILE, true>};
    return choice;
}

enum { CHOICES = 6 };

static struct lora_down_choice choice_at(int index)
{
    static struct lora_down_choice (*const of[CHOICES])() = {
        choice_of<16>, choice_of<32>, choice_of<48>, choice_of<64>, choice_of<96>, choice_of<128>};
    return of[index]();
}

static struct lora_down down_of(const struct nb_linear *args, const struct nb_lora_down_plan *plan, nb_dptr partials)
{
    struct lora_down d = {};
    d.x = nb_pointer<const nb_bf16>(args->x);
    d.slot = nb_pointer<const struct nb_slot>(args->slot);
    d.random.slot = d.slot;
    d.random.step = nb_pointer<const struct nb_step>(args->step);
    d.random.rows = nb_pointer<const int32_t>(args->rows);
    d.random.row_begin = args->row_begin_chunk;
    d.partials = nb_pointer<float>(partials);
    d.rows_from = args->rows_from;
    d.row_begin = args->row_begin_chunk;
    d.tokens_max = args->tokens_max;
    d.in = args->in;
    d.x_stride = args->x_stride;
    d.width = plan->stack.tile * plan->stack.tiles;
    d.tiles = plan->stack.tiles;
    d.splits = plan->splits;
    d.split_columns = plan->split_columns;
    for (int p = 0; p < args->parts; p++) {
        const struct nb_lora *lora = &args->part[p].lora;
        if (nb_dptr_is_null(lora->a))
            continue;
        d.part[p].matrix = nb_pointer<const nb_bf16>(lora->a);
        d.part[p].t = nb_pointer<nb_bf16>(lora->t);
        d.part[p].module = lora->module;
        d.part[p].begin = plan->stack.begin[p];
        d.part[p].rank = lora->rank;
        d.part[p].dropout = lora->dropout;
        d.part[p].factor = 1.0f / (1.0f - lora->dropout);
    }
    return d;
}

nb_status nb_lora_down(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *args, nb_dptr partials)
{
    (void)cuda;
    struct nb_lora_down_plan plan;
    nb_lora_down_plan_of(args, &plan);
    if (plan.stack.tiles == 0)
        return NB_OK;
    struct lora_down d = down_of(args, &plan, partials);
    if (nb_lora_site_tokens(args->site_tokens, args->tokens_max) <= NB_LORA_FEW_TOKENS && !plan.stack.dropout) {
        struct nb_launch few = {
            dim3((unsigned)plan.stack.begin[NB_LINEAR_PARTS]), FEW_THREADS, NB_LORA_FEW_TOKENS * FEW_THREADS / NB_WARP * 4};
        return nb_cuda_launch("lora down, few tokens", few_kernel, few, stream, d);
    }
    int index = 0;
    while (choice_at(index).tile != plan.stack.tile)
        index++;
    struct lora_down_choice choice = choice_at(index);
    unsigned blocks = nb_blocks_of(args->tokens_max, NB_LORA_ROWS) * (unsigned)(plan.stack.tiles * plan.splits);
    struct nb_launch launch = {dim3(blocks), THREADS, choice.shared_bytes};
    NB_TRY(nb_cuda_launch("lora down", plan.stack.dropout ? choice.dropping : choice.plain, launch, stream, d));
    if (plan.splits == 1)
        return NB_OK;
    launch.grid = dim3(nb_blocks_of((int64_t)args->tokens_max * (d.width / 2), THREADS));
    launch.shared_bytes = 0;
    return nb_cuda_launch("lora down, sum", sum_kernel, launch, stream, d);
}

nb_status nb_lora_down_prepare(void)
{
    for (int i = 0; i < CHOICES; i++) {
        struct lora_down_choice choice = choice_at(i);
        NB_TRY(nb_cuda_load("lora down", choice.plain, choice.shared_bytes));
        NB_TRY(nb_cuda_load("lora down with dropout", choice.dropping, choice.shared_bytes));
    }
    NB_TRY(nb_cuda_load("lora down, sum", sum_kernel, 0));
    return nb_cuda_load("lora down, few tokens", few_kernel, 0);
}

nb_status nb_lora_prepare(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_lora_down_prepare());
    NB_TRY(nb_lora_backward_prepare());
    return nb_lora_backward_a_prepare();
}
