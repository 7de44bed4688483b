/* u = round(output_scale * scale * dy B) and db += output_scale * scale * dy^T t, in one pass over dy.
 *
 * lora_product_kernel: a block takes 256 tokens (an absolute tile), a range of outputs and a tile of the rank. dy comes in
 * stages of 128 tokens by 64 outputs (16 KB, cp.async, 2 to 3 under way), and each is used twice: as it lies for u,
 * whose sums over the range stay in registers, and transposed by ldmatrix for db, whose sums over the tile's tokens are
 * complete after two stages. Both leave as fp32 partial sums: u one a range, db one a tile. finish_kernel adds them in
 * order, u over the ranges and db tile by tile into the gradient. The work goes group of tiles by group, so that
 * partial sums take 32 MiB at most and stay in L2. Bound by reading dy, 2 * tokens * out bytes; partial sums are a
 * share of 2 * rank / range of that for u and rank / 128 for db, written and read again. At r = 16 ldmatrix reads 1,280
 * clocks for 32 KB of dy and the warps issue 1,020: 25 bytes a clock and multiprocessor, where the memory of an H200
 * brings 20.8. At r = 64 the former are 2,816, 12 bytes a clock: shared memory is the bound there. */
#include "cuda/lora.cuh"
#include "cuda/lora_tile.cuh"

enum { THREADS = 256, PIECES = NB_LORA_DEPTH / 8, HALF = NB_TILE_TOKENS / 2 };

struct adapter {
    const nb_bf16 *dy, *b, *t;
    nb_bf16 *u;
    float *db, *u_partials, *db_partials; /* partials: struct nb_lora_backward_plan */
    int out, dy_stride, rank, width;      /* width: rank up to 8s; 0: no adapter */
    int ranges, rank_tiles;
    float scale;
};

struct lora_products {
    struct adapter part[NB_LINEAR_PARTS];
    const struct nb_slot *slot;
    enum nb_row_count rows_from;
    int row_begin, tokens_max;
    int range, blocks;     /* blocks: of a tile of tokens */
    int first, tiles;      /* of this group: first token, and how many tiles */
    unsigned u_blocks[NB_LINEAR_PARTS + 1], db_blocks[NB_LINEAR_PARTS + 1]; /* of finish_kernel, before each part */
};

template <int TILE> struct lora_shape {
    static constexpr int STAGES = TILE == 16 ? 4 : 3, AHEAD = STAGES - 1;
    static constexpr int ROW_BYTES = nb_tile_row<TILE>::BYTES;
    static constexpr int T_BYTES = NB_TILE_TOKENS * ROW_BYTES, B_BYTES = NB_LORA_DEPTH * ROW_BYTES;
    static constexpr int DY_BYTES = HALF * NB_LORA_DEPTH * 2;
    /* t; then B of the AHEAD steps whose dy may be under way; then the stages of dy. */
    static constexpr int B_AT = (T_BYTES + 127) / 128 * 128, DY_AT = B_AT + (AHEAD * B_BYTES + 127) / 128 * 128;
    static constexpr int BYTES = DY_AT + STAGES * DY_BYTES;
};

/* What a block works on. */
struct place {
    int token, valid;      /* first token of the tile, and the end of the valid ones */
    int tile;              /* within the group */
    int range, begin, end; /* outputs */
    int rank;              /* first of the tile of ranks */
};

/* Rows [first, first + count) of a [rows, rank] matrix into a tile, zeros behind its rows. */
template <int TILE>
NB_KERNEL_FUNCTION void fill_ranks(
    unsigned char *tile, const nb_bf16 *matrix, int first, int count, int end, int column, int rank)
{
    for (int i = threadIdx.x; i < count * (TILE / 8); i += THREADS) {
        int row = i / (TILE / 8), piece = i % (TILE / 8), at = first + row;
        const nb_bf16 *from = at < end ? matrix + (int64_t)at * rank : NULL;
        nb_tile_stage(nb_tile_at<TILE>(tile, row, piece), from, column + 8 * piece, rank);
    }
}

/* Half `step` % 2 of the tile's tokens by outputs begin + 64 * (step / 2); with the first half, B of these outputs. */
template <int TILE>
NB_KERNEL_FUNCTION void fill_stage(unsigned char *shared, const struct adapter &part, const struct place &at, int step)
{
    typedef struct lora_shape<TILE> s;
    unsigned char *dy = shared + s::DY_AT + step % s::STAGES * s::DY_BYTES;
    int piece = threadIdx.x % PIECES, output = at.begin + step / 2 * NB_LORA_DEPTH, column = output + 8 * piece;
    int bytes = at.end - column < 8 ? (at.end - column) * 2 : 16;
#pragma unroll
    for (int i = 0; i < HALF * PIECES / THREADS; i++) {
        int row = threadIdx.x / PIECES + i * (THREADS / PIECES), token = at.token + step % 2 * HALF + row;
        bool inside = token < at.valid && bytes > 0;
        nb_copy_async_16(nb_tile_at<NB_LORA_DEPTH>(dy, row, piece),
            inside ? part.dy + (int64_t)token * part.dy_stride + column : part.dy, inside ? bytes : 0);
    }
    if (step % 2 == 0)
        fill_ranks<TILE>(shared + s::B_AT + step / 2 % s::AHEAD * s::B_BYTES, part.b, output, NB_LORA_DEPTH, at.end,
            at.rank, part.rank);
}

/* A warp's 16 tokens by TILE ranks: sum += dy B. */
template <int TILE> struct u_sum {
    float of[2][TILE / 8][4]; /* of each half of the tokens */
};

template <int TILE>
NB_KERNEL_FUNCTION void multiply_u(float sum[TILE / 8][4], unsigned char *dy, unsigned char *b)
{
    int row = threadIdx.x / NB_WARP * 16;
#pragma unroll
    for (int k = 0; k < NB_LORA_DEPTH / 16; k++) {
        uint32_t a[4];
        nb_tile_load_a<NB_LORA_DEPTH>(a, dy, row, 2 * k);
#pragma unroll
        for (int n = 0; n < TILE / 16; n++) {
            uint32_t ranks[4];
            nb_tile_load_b_transposed<TILE>(ranks, b, 16 * k, 2 * n);
            nb_mma_bf16(sum[2 * n], a, ranks);
            nb_mma_bf16(sum[2 * n + 1], a, ranks + 2);
        }
    }
}

/* A warp's 16 outputs by half the tile's ranks: sum += dy^T t over one half of the tokens. Warps w and w + 4 share
 * outputs. */
template <int TILE> struct db_sum {
    float of[TILE / 16][4];
};

template <int TILE>
NB_KERNEL_FUNCTION void multiply_db(struct db_sum<TILE> &sum, unsigned char *dy, unsigned char *t, int half)
{
    int warp = threadIdx.x / NB_WARP, output = warp % 4 * 2, rank = warp / 4 * (TILE / 16);
#pragma unroll
    for (int k = 0; k < HALF / 16; k++) {
        uint32_t a[4], b[4];
        nb_tile_load_a_transposed<NB_LORA_DEPTH>(a, dy, 16 * k, output);
        if (TILE == 16) {
            nb_tile_load_b_half_transposed<TILE>(b, t, half * HALF + 16 * k, rank);
            nb_mma_bf16(sum.of[0], a, b);
        }
#pragma unroll
        for (int n = 0; n < TILE / 32; n++) {
            nb_tile_load_b_transposed<TILE>(b, t, half * HALF + 16 * k, rank + 2 * n);
            nb_mma_bf16(sum.of[2 * n], a, b);
            nb_mma_bf16(sum.of[2 * n + 1], a, b + 2);
        }
    }
}

template <int TILE>
NB_KERNEL_FUNCTION void store_db(
    const struct adapter &part, const struct place &at, int output, const struct db_sum<TILE> &sum)
{
    int warp = threadIdx.x / NB_WARP, lane = threadIdx.x % NB_WARP;
    output += warp % 4 * 16 + lane / 4;
    int rank = at.rank + warp / 4 * (TILE / 2) + lane % 4 * 2;
    float *to = part.db_partials + ((int64_t)at.tile * part.out + output) * part.width + rank;
#pragma unroll
    for (int n = 0; n < TILE / 16; n++) {
        if (rank + 8 * n >= part.width)
            continue;
        float2 low = {sum.of[n][0], sum.of[n][1]}, high = {sum.of[n][2], sum.of[n][3]};
        if (output < at.end)
            *(float2 *)(to + 8 * n) = low;
        if (output + 8 < at.end)
            *(float2 *)(to + 8 * part.width + 8 * n) = high;
    }
}

template <int TILE>
NB_KERNEL_FUNCTION void store_u(
    const struct adapter &part, const struct place &at, int tiles, const struct u_sum<TILE> &sum)
{
    int lane = threadIdx.x % NB_WARP, row = threadIdx.x / NB_WARP * 16 + lane / 4, rank = at.rank + lane % 4 * 2;
    float *to = part.u_partials + ((int64_t)(at.range * tiles + at.tile) * NB_TILE_TOKENS + row) * part.width + rank;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            if (rank + 8 * n >= part.width)
                continue;
            const float *of = sum.of[half][n];
            float2 low = {of[0], of[1]}, high = {of[2], of[3]};
            float *row_to = to + (int64_t)half * HALF * part.width + 8 * n;
            if (at.token + half * HALF + row < at.valid)
                *(float2 *)row_to = low;
            if (at.token + half * HALF + row + 8 < at.valid)
                *(float2 *)(row_to + 8 * part.width) = high;
        }
    }
}

/* Which part, range and ranks a block has. Tiles of ranks lie next to each other in the grid: they read the same dy. */
NB_KERNEL_FUNCTION struct adapter place_of(const struct lora_products &d, struct place *at)
{
    int inner = blockIdx.x % d.blocks;
    at->tile = blockIdx.x / d.blocks;
    at->token = d.first + at->tile * NB_TILE_TOKENS;
    at->valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max);
    struct adapter part = d.part[0];
#pragma unroll
    for (int p = 1; p < NB_LINEAR_PARTS; p++) {
        int blocks = part.ranges * part.rank_tiles;
        if (inner >= blocks) {
            inner -= blocks;
            part = d.part[p];
        }
    }
    at->range = inner / part.rank_tiles;
    at->begin = at->range * d.range;
    at->end = at->begin + d.range < part.out ? at->begin + d.range : part.out;
    at->rank = inner % part.rank_tiles;
    return part;
}

template <int TILE> __global__ void __launch_bounds__(THREADS, TILE == 64 ? 1 : 2) lora_product_kernel(struct lora_products d)
{
    typedef struct lora_shape<TILE> s;
    struct place at;
    struct adapter part = place_of(d, &at);
    at.rank *= TILE;
    if (at.token >= at.valid)
        return;
    unsigned char *shared = nb_shared_memory();
    int steps = (at.end - at.begin + NB_LORA_DEPTH - 1) / NB_LORA_DEPTH * 2;
    fill_ranks<TILE>(shared, part.t, at.token, NB_TILE_TOKENS, at.valid, at.rank, part.rank);
    for (int step = 0; step < s::AHEAD; step++) {
        if (step < steps)
            fill_stage<TILE>(shared, part, at, step);
        nb_copy_async_commit();
    }
    struct u_sum<TILE> u = {};
    for (int step = 0; step < steps; step += 2) {
        struct db_sum<TILE> db = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            nb_copy_async_wait<s::AHEAD - 1>();
            nb_block_barrier();
            if (step + half + s::AHEAD < steps)
                fill_stage<TILE>(shared, part, at, step + half + s::AHEAD);
            nb_copy_async_commit();
            unsigned char *dy = shared + s::DY_AT + (step + half) % s::STAGES * s::DY_BYTES;
            multiply_u<TILE>(u.of[half], dy, shared + s::B_AT + step / 2 % s::AHEAD * s::B_BYTES);
            multiply_db<TILE>(db, dy, shared, half);
        }
        store_db<TILE>(part, at, at.begin + step / 2 * NB_LORA_DEPTH, db);
    }
    nb_copy_async_wait<0>();
    store_u<TILE>(part, at, d.tiles, u);
}

/* ---- the partial sums' sum ---- */

/* A thread: two ranks of a row of u. Rows from the last valid one to the end of its tile become zeros. */
NB_KERNEL_FUNCTION void finish_u(const struct adapter &part, const struct lora_products &d, int64_t pair, int valid)
{
    int64_t row = pair / (part.width / 2), token = d.first + row;
    int rank = (int)(pair % (part.width / 2)) * 2;
    int64_t end = (valid + (int64_t)NB_TILE_TOKENS - 1) / NB_TILE_TOKENS * NB_TILE_TOKENS;
    int64_t group = (int64_t)d.tiles * NB_TILE_TOKENS;
    if (row >= group || token >= d.tokens_max || token >= end)
        return;
    float first = 0, second = 0;
    const float *from = part.u_partials + row * part.width + rank;
    if (token < valid) {
#pragma unroll 8
        for (int range = 0; range < part.ranges; range++) {
            float2 value = *(const float2 *)(from + range * group * part.width);
            first += value.x, second += value.y;
        }
    }
    nb_bf16 *u = part.u + token * part.rank + rank;
    if (rank < part.rank)
        u[0] = nb_bf16_round(part.scale * first);
    if (rank + 1 < part.rank)
        u[1] = nb_bf16_round(part.scale * second);
}

/* A thread: two ranks of a row of db. */
NB_KERNEL_FUNCTION void finish_db(const struct adapter &part, const struct lora_products &d, int64_t pair, int valid)
{
    int64_t output = pair / (part.width / 2);
    int rank = (int)(pair % (part.width / 2)) * 2;
    int tiles = (valid - d.first + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS;
    if (output >= part.out || rank >= part.rank)
        return;
    tiles = tiles < d.tiles ? tiles : d.tiles;
    bool two = rank + 1 < part.rank;
    float *db = part.db + output * part.rank + rank, first = db[0], second = two ? db[1] : 0.0f;
    const float *from = part.db_partials + output * part.width + rank;
#pragma unroll 4
    for (int tile = 0; tile < tiles; tile++) {
        float2 value = *(const float2 *)(from + (int64_t)tile * part.out * part.width);
        first += part.scale * value.x, second += part.scale * value.y;
    }
    db[0] = first;
    if (two)
        db[1] = second;
}

static __global__ void __launch_bounds__(THREADS) finish_kernel(struct lora_products d)
{
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max);
    if (d.first >= valid)
        return;
    unsigned block = blockIdx.x, u_blocks = d.u_blocks[NB_LINEAR_PARTS];
    bool of_u = block < u_blocks;
    block -= of_u ? 0 : u_blocks;
    struct adapter part = d.part[0];
    unsigned begin = 0;
#pragma unroll
    for (int p = 1; p < NB_LINEAR_PARTS; p++) {
        unsigned before = of_u ? d.u_blocks[p] : d.db_blocks[p];
        if (block >= before && d.part[p].width > 0) {
            part = d.part[p];
            begin = before;
        }
    }
    int64_t pair = (int64_t)(block - begin) * THREADS + threadIdx.x;
    if (of_u)
        finish_u(part, d, pair, valid);
    else
        finish_db(part, d, pair, valid);
}

/* ---- launching ---- */

static struct lora_products backward_of(const struct nb_linear_backward *args, const struct nb_lora_backward_plan *plan,
    const nb_dptr u[NB_LINEAR_PARTS], nb_dptr partials)
{
    struct lora_products d = {};
    d.slot = nb_pointer<const struct nb_slot>(args->slot);
    d.rows_from = args->rows_from;
    d.row_begin = args->row_begin_chunk;
    d.tokens_max = args->tokens_max;
    d.range = plan->range;
    d.blocks = plan->blocks;
    for (int p = 0; p < args->parts; p++) {
        const struct nb_linear_part *from = &args->part[p];
        struct adapter *part = &d.part[p];
        if (plan->width[p] == 0)
            continue;
        part->dy = nb_pointer<const nb_bf16>(from->y);
        part->b = nb_pointer<const nb_bf16>(from->lora.b);
        part->t = nb_pointer<const nb_bf16>(from->lora.t);
        part->u = nb_pointer<nb_bf16>(u[p]);
        part->db = nb_pointer<float>(from->lora.db);
        part->u_partials = nb_pointer<float>(nb_dptr_at(partials, plan->u[p]));
        part->db_partials = nb_pointer<float>(nb_dptr_at(partials, plan->db[p]));
        part->out = from->out;
        part->dy_stride = from->y_stride;
        part->rank = from->lora.rank;
        part->width = plan->width[p];
        part->ranges = plan->ranges[p];
        part->rank_tiles = plan->rank_tiles[p];
        part->scale = from->output_scale * from->lora.scale;
    }
    return d;
}

/* Both kernels for the group of tiles that begins at d->first. */
static nb_status run_group(cudaStream_t stream, struct lora_products *d, int tile)
{
    for (int p = 0; p < NB_LINEAR_PARTS; p++) {
        int64_t half = d->part[p].width / 2;
        d->u_blocks[p + 1] = d->u_blocks[p] + nb_blocks_of((int64_t)d->tiles * NB_TILE_TOKENS * half, THREADS);
        d->db_blocks[p + 1] = d->db_blocks[p] + nb_blocks_of(d->part[p].out * half, THREADS);
    }
    unsigned blocks = (unsigned)(d->tiles * d->blocks);
    struct nb_launch launch = {dim3(blocks), THREADS, lora_shape<16>::BYTES};
    if (tile == 16) {
        NB_TRY(nb_cuda_launch("lora backward", lora_product_kernel<16>, launch, stream, *d));
    } else if (tile == 32) {
        launch.shared_bytes = lora_shape<32>::BYTES;
        NB_TRY(nb_cuda_launch("lora backward", lora_product_kernel<32>, launch, stream, *d));
    } else {
        launch.shared_bytes = lora_shape<64>::BYTES;
        NB_TRY(nb_cuda_launch("lora backward", lora_product_kernel<64>, launch, stream, *d));
    }
    struct nb_launch finish = {dim3(d->u_blocks[NB_LINEAR_PARTS] + d->db_blocks[NB_LINEAR_PARTS]), THREADS, 0};
    return nb_cuda_launch("lora backward, sum", finish_kernel, finish, stream, *d);
}

nb_status nb_lora_backward(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *args,
    const nb_dptr u[NB_LINEAR_PARTS], nb_dptr partials)
{
    struct nb_lora_backward_plan plan;
    nb_lora_backward_plan_of(args, &plan);
    if (plan.blocks == 0)
        return NB_OK;
    struct lora_products d = backward_of(args, &plan, u, partials);
    int tiles = (int)nb_blocks_of(args->tokens_max, NB_TILE_TOKENS);
    d.tiles = plan.group;
    for (int tile = 0; tile < tiles; tile += plan.group) {
        d.first = tile * NB_TILE_TOKENS;
        NB_TRY(run_group(stream, &d, plan.tile));
    }
    return nb_lora_backward_a(cuda, stream, args, u);
}

nb_status nb_lora_backward_prepare(void)
{
    NB_TRY(nb_cuda_load("lora backward", lora_product_kernel<16>, lora_shape<16>::BYTES));
    NB_TRY(nb_cuda_load("lora backward", lora_product_kernel<32>, lora_shape<32>::BYTES));
    NB_TRY(nb_cuda_load("lora backward", lora_product_kernel<64>, lora_shape<64>::BYTES));
    return nb_cuda_load("lora backward, sum", finish_kernel, 0);
}
