/* da += u^T dropout(x) / (1 - dropout).
 *
 * A block owns 64 columns of `in` and a tile of the parts' stacked ranks, and walks all tokens in stages of 64 (cp.async, 4 to 6 under way).
 * Its 4 warps take 16 columns each. The sum of each absolute tile of 256 tokens starts from zero and is added to the gradient, which stays in
 * registers from the first tile to the last: no partial sums in memory, and chunks of whole tiles give the bits of the whole.
 * Bound by reading x once, 2 * tokens * in bytes: at in = 4,096 64 blocks with 40 KB under way each. u comes again for each block, from L2.
 * With dropout a tile of ranks is one part's, and threads mask the pieces that they copied; then Philox is the bound. */
#include "cuda/lora.cuh"
#include "cuda/lora_tile.cuh"

enum { THREADS = 128, TOKENS = 64, COLUMNS = 64, PIECES = COLUMNS / 8, TILE_STAGES = NB_TILE_TOKENS / TOKENS };

struct backward {
    const nb_bf16 *x;
    const struct nb_slot *slot;
    struct nb_tile_dropout random;
    struct nb_stacked_part part[NB_LINEAR_PARTS];
    enum nb_row_count rows_from;
    int row_begin, tokens_max, in, x_stride, tiles;
};

template <int TILE> struct shape {
    static constexpr int STAGES = TILE <= 64 ? 6 : 4;
    static constexpr int X_BYTES = TOKENS * COLUMNS * 2, U_BYTES = TOKENS * nb_tile_row<TILE>::BYTES;
    static constexpr int STAGE_BYTES = (X_BYTES + U_BYTES + 127) / 128 * 128, BYTES = STAGES * STAGE_BYTES;
};

template <int TILE> struct fragments {
    float of[TILE / 16][2][4];
};

/* Tokens [token, token + 64): x's columns from `column` on and u's stacked ranks from `rank` on, zeros behind the valid tokens. */
template <int TILE>
NB_KERNEL_FUNCTION void fill_stage(unsigned char *stage, const struct backward &d, int token, int valid, int column, int rank)
{
    int piece = threadIdx.x % PIECES;
    bool inside = column + 8 * piece < d.in;
#pragma unroll
    for (int i = 0; i < TOKENS * PIECES / THREADS; i++) {
        int row = threadIdx.x / PIECES + i * (THREADS / PIECES);
        bool there = inside && token + row < valid;
        nb_copy_async_16(nb_tile_at<COLUMNS>(stage, row, piece),
            there ? d.x + (int64_t)(token + row) * d.x_stride + column + 8 * piece : d.x, there ? 16 : 0);
    }
    unsigned char *ranks = stage + shape<TILE>::X_BYTES;
    for (int i = threadIdx.x; i < TOKENS * (TILE / 8); i += THREADS) {
        int row = i / (TILE / 8), within = rank + i % (TILE / 8) * 8;
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &within);
        bool there = part.rank > 0 && token + row < valid;
        nb_tile_stage(nb_tile_at<TILE>(ranks, row, i % (TILE / 8)),
            there ? part.matrix + (int64_t)(token + row) * part.rank : NULL, within, part.rank);
    }
}

template <int TILE> NB_KERNEL_FUNCTION void multiply_stage(unsigned char *stage, struct fragments<TILE> &sum)
{
    int piece = threadIdx.x / NB_WARP * 2;
#pragma unroll
    for (int k = 0; k < TOKENS / 16; k++) {
        uint32_t b[4];
        nb_tile_load_b_transposed<COLUMNS>(b, stage, 16 * k, piece);
#pragma unroll
        for (int m = 0; m < TILE / 16; m++) {
            uint32_t a[4];
            nb_tile_load_a_transposed<TILE>(a, stage + shape<TILE>::X_BYTES, 16 * k, 2 * m);
            nb_mma_bf16(sum.of[m][0], a, b);
            nb_mma_bf16(sum.of[m][1], a, b + 2);
        }
    }
}

/* The gradient's elements of this thread, to registers or back. Eight ranks are of one part, eight columns inside `in` or not. */
template <int TILE, bool STORE>
NB_KERNEL_FUNCTION void move_gradient(const struct backward &d, int column, int rank, struct fragments<TILE> &gradient, float factor[TILE / 8])
{
    int lane = threadIdx.x % NB_WARP;
    column += threadIdx.x / NB_WARP * 16 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        int within = rank + 8 * i + lane / 4;
        struct nb_stacked_part part = nb_stacked_part_of(d.part, &within);
        if (!STORE)
            factor[i] = part.factor;
#pragma unroll
        for (int n = 0; n < 2; n++) {
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

template <int TILE, bool DROPOUT> __global__ void __launch_bounds__(THREADS, 1) a_kernel(struct backward d)
{
    typedef struct shape<TILE> s;
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
            fill_stage<TILE>(shared + step * s::STAGE_BYTES, d, step * TOKENS, valid, column, rank);
        nb_copy_async_commit();
    }
    struct fragments<TILE> gradient, sum = {};
    float factor[TILE / 8];
    move_gradient<TILE, false>(d, column, rank, gradient, factor);
    for (int step = 0; step < steps; step++) {
        unsigned char *stage = shared + step % s::STAGES * s::STAGE_BYTES;
        nb_copy_async_wait<s::STAGES - 2>();
        if (drops) {
            int piece = threadIdx.x % PIECES;
            for (int i = 0; i < TOKENS * PIECES / THREADS; i++) {
                int row = threadIdx.x / PIECES + i * (THREADS / PIECES);
                if (step * TOKENS + row >= valid)
                    continue;
                dropout.token = nb_dropout_token(d.random, step * TOKENS + row);
                nb_dropout_piece(nb_tile_at<COLUMNS>(stage, row, piece), dropout, column + 8 * piece);
            }
        }
        nb_block_barrier();
        int next = step + s::STAGES - 1;
        if (next < steps)
            fill_stage<TILE>(shared + next % s::STAGES * s::STAGE_BYTES, d, next * TOKENS, valid, column, rank);
        nb_copy_async_commit();
        multiply_stage<TILE>(stage, sum);
        if (step % TILE_STAGES == TILE_STAGES - 1 || step == steps - 1) {
#pragma unroll
            for (int i = 0; i < TILE / 8 * 4; i++) {
                float *of = &sum.of[i / 8][i / 4 % 2][i % 4];
                gradient.of[i / 8][i / 4 % 2][i % 4] += factor[i / 8 * 2 + i % 4 / 2] * *of;
                *of = 0.0f;
            }
        }
    }
    nb_copy_async_wait<0>();
    move_gradient<TILE, true>(d, column, rank, gradient, factor);
}

/* ---- launching ---- */

struct choice {
    int tile, shared_bytes;
    void (*plain)(struct backward);
    void (*dropping)(struct backward);
};

template <int TILE> static struct choice choice_of()
{
    struct choice choice = {TILE, shape<TILE>::BYTES, a_kernel<TILE, false>, a_kernel<TILE, true>};
    return choice;
}

enum { CHOICES = 6 };

static struct choice choice_at(int index)
{
    static struct choice (*const of[CHOICES])() = {
        choice_of<16>, choice_of<32>, choice_of<48>, choice_of<64>, choice_of<96>, choice_of<128>};
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
    struct backward d = {};
    d.x = nb_pointer<const nb_bf16>(args->x);
    d.slot = nb_pointer<const struct nb_slot>(args->slot);
    d.random.slot = d.slot;
    d.random.step = nb_pointer<const struct nb_step>(args->step);
    d.random.rows = nb_dptr_is_null(args->rows) ? NULL : nb_pointer<const int32_t>(args->rows) + args->row_begin_chunk;
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
    int index = 0;
    while (choice_at(index).tile != stack.tile)
        index++;
    struct choice choice = choice_at(index);
    struct nb_launch launch = {dim3(nb_blocks_of(args->in, COLUMNS) * (unsigned)stack.tiles), THREADS, choice.shared_bytes};
    return nb_cuda_launch("lora backward, da", stack.dropout ? choice.dropping : choice.plain, launch, stream, d);
}

nb_status nb_lora_backward_a_prepare(void)
{
    for (int i = 0; i < CHOICES; i++) {
        struct choice choice = choice_at(i);
        NB_TRY(nb_cuda_load("lora backward, da", choice.plain, choice.shared_bytes));
        NB_TRY(nb_cuda_load("lora backward, da with dropout", choice.dropping, choice.shared_bytes));
    }
    return NB_OK;
}
