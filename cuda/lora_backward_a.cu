/* da += u^T dropout(x) / (1 - dropout).
 *
 * A block owns 64 (or 32) columns of `in` and a tile of the parts' stacked ranks, and walks all tokens in stages of 64
 * (cp.async). Its 4 warps take 16 (or 8) columns each. The sum of each absolute tile of 256 tokens starts from zero and
 * is added to the gradient, which stays in registers from the first tile to the last: no partial sums in memory, and
 * chunks of whole tiles give the bits of the whole. Bound by reading x once, 2 * tokens * in bytes: at in = 4,096 and r
 * = 16 128 blocks of 32 columns with 28 KB of x under way each, at 14,336 224 of 64 with 40 KB. u comes again for each
 * block, from L2: rank / 32 (rank / 64) of the bytes of x. With dropout a tile of ranks is one part's, and threads mask
 * the pieces that they copied; then Philox is the bound. */
#include "cuda/lora.cuh"
#include "cuda/lora_tile.cuh"

enum { THREADS = 128, TOKENS = 64, TILE_STAGES = NB_TILE_TOKENS / TOKENS };

struct lora_gradient {
    const nb_bf16 *x;
    const struct nb_slot *slot;
    struct nb_tile_dropout random;
    struct nb_stacked_part part[NB_LINEAR_PARTS];
    enum nb_row_count rows_from;
    int row_begin, tokens_max, in, x_stride, tiles;
};

/* COLUMNS: 64, or 32 where wider ones would leave multiprocessors without a block. A result's bits are the same with
 * either. */
template <int TILE, int COLUMNS> struct gradient_shape {
    static constexpr int STAGES = TILE > 64 ? 4 : COLUMNS == 64 ? 6 : 8;
    /* A thread's pieces of x are ROWS apart. */
    static constexpr int PIECES = COLUMNS / 8, X_PIECES = TOKENS * PIECES / THREADS, ROWS = THREADS / PIECES;
    static constexpr int X_BYTES = TOKENS * nb_tile_row<COLUMNS>::BYTES, U_BYTES = TOKENS * nb_tile_row<TILE>::BYTES;
    static constexpr int STAGE_BYTES = (X_BYTES + U_BYTES + 127) / 128 * 128, BYTES = STAGES * STAGE_BYTES;
    static constexpr int WARP_TILES = COLUMNS / 32; /* of eight columns, a warp */
};

template <int TILE, int COLUMNS> struct fragments {
    float of[TILE / 16][COLUMNS / 32][4];
};

/* Tokens [token, token + 64): x's columns from `column` on and u's stacked ranks from `rank` on, zeros behind the valid
 * tokens. */
template <int TILE, int COLUMNS>
NB_KERNEL_FUNCTION void fill_stage(unsigned char *stage, const struct lora_gradient &d, int token, int valid, int column, int rank)
{
    typedef struct gradient_shape<TILE, COLUMNS> s;
    int piece = threadIdx.x % s::PIECES;
    bool inside = column + 8 * piece < d.in;
#pragma unroll
    for (int i = 0; i < s::X_PIECES; i++) {
        int row = threadIdx.x / s::PIECES + i * s::ROWS;
        bool there = inside && token + row < valid;
        nb_copy_async_16(nb_tile_at<COLUMNS>(stage, row, piece),
            there ? d.x + (int64_t)(token + row) * d.x_stride + column + 8 * piece : d.x, there ? 16 : 0);
    }
    unsigned char *ranks = stage + s::X_BYTES;
    for (int i = threadIdx.x; i < TOKENS * (TILE / 8); i += THREADS) {
        int row = i / (TILE / 8), within = rank + i % (TILE / 8) * 8;
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &within);
        bool there = part.rank > 0 && token + row < valid;
        nb_tile_stage(nb_tile_at<TILE>(ranks, row, i % (TILE / 8)),
            there ? part.matrix + (int64_t)(token + row) * part.rank : NULL, within, part.rank);
    }
}

/* Drops what this thread copied of a stage. */
template <int TILE, int COLUMNS>
NB_KERNEL_FUNCTION void mask_stage(
    unsigned char *stage, const struct lora_gradient &d, struct nb_dropout dropout, int token, int valid, int column)
{
    typedef struct gradient_shape<TILE, COLUMNS> s;
    int piece = threadIdx.x % s::PIECES;
#pragma unroll 1
    for (int i = 0; i < s::X_PIECES; i++) {
        int row = threadIdx.x / s::PIECES + i * s::ROWS;
        if (token + row >= valid)
            continue;
        dropout.token = nb_dropout_token(d.random, token + row);
        nb_dropout_piece(nb_tile_at<COLUMNS>(stage, row, piece), dropout, column + 8 * piece);
    }
}

template <int TILE, int COLUMNS>
NB_KERNEL_FUNCTION void multiply_stage(unsigned char *stage, struct fragments<TILE, COLUMNS> &sum)
{
    typedef struct gradient_shape<TILE, COLUMNS> s;
    int piece = threadIdx.x / NB_WARP * s::WARP_TILES;
#pragma unroll
    for (int k = 0; k < TOKENS / 16; k++) {
        uint32_t b[4];
        if (COLUMNS == 64)
            nb_tile_load_b_transposed<COLUMNS>(b, stage, 16 * k, piece);
        else
            nb_tile_load_b_half_transposed<COLUMNS>(b, stage, 16 * k, piece);
#pragma unroll
        for (int m = 0; m < TILE / 16; m++) {
            uint32_t a[4];
            nb_tile_load_a_transposed<TILE>(a, stage + s::X_BYTES, 16 * k, 2 * m);
#pragma unroll
            for (int n = 0; n < s::WARP_TILES; n++)
                nb_mma_bf16(sum.of[m][n], a, b + 2 * n);
        }
    }
}

/* gradient += factor * sum, and the sum starts anew. */
template <int TILE, int COLUMNS>
NB_KERNEL_FUNCTION void add_tile(
    struct fragments<TILE, COLUMNS> &gradient, struct fragments<TILE, COLUMNS> &sum, const float factor[TILE / 8])
{
#pragma unroll
    for (int m = 0; m < TILE / 16; m++) {
#pragma unroll
        for (int n = 0; n < COLUMNS / 32; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                gradient.of[m][n][i] += factor[2 * m + i / 2] * sum.of[m][n][i];
                sum.of[m][n][i] = 0.0f;
            }
        }
    }
}

/* The gradient's elements of this thread, to registers or back. Eight ranks are of one part, eight columns inside `in`
 * or not. */
template <int TILE, int COLUMNS, bool STORE>
NB_KERNEL_FUNCTION void move_gradient(
    const struct lora_gradient &d, int column, int rank, struct fragments<TILE, COLUMNS> &gradient, float factor[TILE / 8])
{
    int lane = threadIdx.x % NB_WARP;
    column += threadIdx.x / NB_WARP * (COLUMNS / 4) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        int within = rank + 8 * i + lane / 4;
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &within);
        if (!STORE)
            factor[i] = part.factor;
#pragma unroll
        for (int n = 0; n < COLUMNS / 32; n++) {
            float *of = &gradient.of[i / 2][n][i % 2 * 2];
            bool there = part.rank > 0 && column + 8 * n < d.in;
            float2 value = {of[0], of[1]};
            float2 *at = (float2 *)(part.da + (int64_t)within * d.in + column + 8 * n);
            if (STORE && there)
                *at = value;
            if (!STORE) {
                value.x = value.y = 0.0f;
                if (there)
                    value = *at;
                of[0] = value.x, of[1] = value.y;
            }
        }
    }
}

template <int TILE, int COLUMNS, bool DROPOUT> __global__ void __launch_bounds__(THREADS, 1) lora_a_kernel(struct lora_gradient d)
{
    typedef struct gradient_shape<TILE, COLUMNS> s;
    int rank = (int)(blockIdx.x % d.tiles) * TILE, column = (int)(blockIdx.x / d.tiles) * COLUMNS;
    int valid = nb_valid_rows(d.slot, d.rows_from, d.row_begin, d.tokens_max), steps = (valid + TOKENS - 1) / TOKENS;
    if (valid == 0)
        return;
    unsigned char *shared = nb_shared_memory();
    int masked_rank = rank;
    struct nb_stacked_part masked = nb_stacked_part_of(d.part, &masked_rank);
    bool drops = DROPOUT && masked.rank > 0 && masked.dropout > 0;
    struct nb_dropout dropout = {};
    if (drops)
        dropout = nb_dropout(masked.dropout, masked.module, d.random.step->random_step, d.random.step->seed, 0);
    for (int step = 0; step < s::STAGES - 1; step++) {
        if (step < steps)
            fill_stage<TILE, COLUMNS>(shared + step * s::STAGE_BYTES, d, step * TOKENS, valid, column, rank);
        nb_copy_async_commit();
    }
    struct fragments<TILE, COLUMNS> gradient, sum = {};
    float factor[TILE / 8];
    move_gradient<TILE, COLUMNS, false>(d, column, rank, gradient, factor);
    for (int step = 0; step < steps; step++) {
        unsigned char *stage = shared + step % s::STAGES * s::STAGE_BYTES;
        nb_copy_async_wait<s::STAGES - 2>();
        if (drops)
            mask_stage<TILE, COLUMNS>(stage, d, dropout, step * TOKENS, valid, column);
        nb_block_barrier();
        int next = step + s::STAGES - 1;
        if (next < steps)
            fill_stage<TILE, COLUMNS>(shared + next % s::STAGES * s::STAGE_BYTES, d, next * TOKENS, valid, column, rank);
        nb_copy_async_commit();
        multiply_stage<TILE, COLUMNS>(stage, sum);
        if (step % TILE_STAGES == TILE_STAGES - 1 || step == steps - 1)
            add_tile<TILE, COLUMNS>(gradient, sum, factor);
    }
    nb_copy_async_wait<0>();
    move_gradient<TILE, COLUMNS, true>(d, column, rank, gradient, factor);
}

/* ---- launching ---- */

struct gradient_choice {
    int tile, columns, shared_bytes;
    void (*plain)(struct lora_gradient);
    void (*dropping)(struct lora_gradient);
};

template <int TILE, int COLUMNS> static struct gradient_choice choice_of()
{
    struct gradient_choice choice = {
        TILE, COLUMNS, gradient_shape<TILE, COLUMNS>::BYTES, lora_a_kernel<TILE, COLUMNS, false>, lora_a_kernel<TILE, COLUMNS, true>};
    return choice;
}

/* Fewer blocks than that leave multiprocessors of the largest chips without work; but u's share of narrow columns grows
 * with the rank. */
enum { CHOICES = 8, BLOCKS = 128, NARROW_TILE = 32 };

static struct gradient_choice choice_at(int index)
{
    static struct gradient_choice (*const of[CHOICES])() = {
        choice_of<16, 64>, choice_of<32, 64>, choice_of<48, 64>, choice_of<64, 64>, choice_of<96, 64>, choice_of<128, 64>,
        choice_of<16, 32>, choice_of<32, 32>};
    return of[index]();
}

nb_status nb_lora_backward_a(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *args, const nb_dptr u[NB_LINEAR_PARTS])
{
    (void)cuda;
    struct nb_lora_stack stack;
    nb_lora_stack_of(args->part, args->parts, &stack);
    if (stack.tiles == 0)
        return NB_OK;
    struct lora_gradient d = {};
    d.x = nb_pointer<const nb_bf16>(args->x);
    d.slot = nb_pointer<const struct nb_slot>(args->slot);
    d.random.slot = d.slot;
    d.random.step = nb_pointer<const struct nb_step>(args->step);
    d.random.rows = nb_pointer<const int32_t>(args->rows);
    d.random.row_begin = args->row_begin_chunk;
    d.rows_from = args->rows_from;
    d.row_begin = args->row_begin_chunk;
    d.tokens_max = args->tokens_max;
    d.in = args->in;
    d.x_stride = args->x_stride;
    d.tiles = stack.tiles;
    for (int p = 0; p < args->parts; p++) {
        const struct nb_lora *lora = &args->part[p].lora;
        if (nb_dptr_is_null(lora->a))
            continue;
        d.part[p].matrix = nb_pointer<const nb_bf16>(u[p]);
        d.part[p].da = nb_pointer<float>(lora->da);
        d.part[p].module = lora->module;
        d.part[p].begin = stack.begin[p];
        d.part[p].rank = lora->rank;
        d.part[p].dropout = lora->dropout;
        d.part[p].factor = 1.0f / (1.0f - lora->dropout);
    }
    bool narrow = nb_blocks_of(args->in, 64) * (unsigned)stack.tiles < BLOCKS && stack.tile <= NARROW_TILE;
    int columns = narrow ? 32 : 64, index = 0;
    while (choice_at(index).tile != stack.tile || choice_at(index).columns != columns)
        index++;
    struct gradient_choice choice = choice_at(index);
    struct nb_launch launch = {dim3(nb_blocks_of(args->in, columns) * (unsigned)stack.tiles), THREADS, choice.shared_bytes};
    return nb_cuda_launch("lora backward, da", stack.dropout ? choice.dropping : choice.plain, launch, stream, d);
}

nb_status nb_lora_backward_a_prepare(void)
{
    for (int i = 0; i < CHOICES; i++) {
        struct gradient_choice choice = choice_at(i);
        NB_TRY(nb_cuda_load("lora backward, da", choice.plain, choice.shared_bytes));
        NB_TRY(nb_cuda_load("lora backward, da with dropout", choice.dropping, choice.shared_bytes));
    }
    return NB_OK;
}
