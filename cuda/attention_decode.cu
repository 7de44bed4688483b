/* Attention of up to 16 queries against a long cache, as in generation (flash-decoding: Dao et al. 2023, and Dao 2023,
 * arXiv 2307.08691).
 *
 * Bound by the reading of the cache. All query heads of a kv head go together as rows of one tile of 16, so K and V are
 * read once for 16 rows; the keys are cut into pieces of a length that the bounds fix, a block each: 8 kv heads of an
 * 8,192-token cache are 512 blocks with 64 KiB to read. Within a block each warp takes 16 keys of a tile and keeps a
 * maximum, a sum and outputs of its own; the warps' are combined in shared memory, the blocks' by a second kernel, both
 * in the order of the keys. Two tiles of K and V are under way at a time. */
#include "cuda/attention_decode.cuh"

#include "cuda/attention_forward.cuh"
#include "device/cuda/attention_plan.h"

enum { ROWS = 16, COMBINE_THREADS = 128 };

struct decode {
    struct nb_attention_view view;
    float2 *stats; /* [tokens][heads][splits] {maximum in units of log2, sum} */
    float *output; /* [tokens][heads][splits][head_dim], not yet divided */
    int split_keys, splits, row_tiles;
};

template <int HD, int WARPS> struct decode_shape {
    enum {
        KEYS = 16 * WARPS, /* of a tile */
        THREADS = WARPS * NB_WARP,
        PITCH = nb_attention_layout<HD>::PITCH,
        BYTES = KEYS * PITCH,
        K_TILE = ROWS * PITCH, /* two */
        V_TILE = K_TILE + 2 * BYTES,
        SHARED = V_TILE + 2 * BYTES,
        /* Afterwards, in place of K and V. */
        OUTPUT = K_TILE,
        STATS = OUTPUT + WARPS * ROWS * HD * 4
    };
    static_assert(STATS + WARPS * ROWS * 8 <= SHARED, "the warps' results fit where K and V were");
    static_assert(64 % KEYS == 0, "a piece is whole tiles");
};

/* What a block does: rows of a sequence (query by query, within one the heads of the group) against keys [begin, end).
 */
struct piece {
    int query_begin, queries, key_begin, keys;
    int kv_head, split, row, rows, begin, end;
};

NB_KERNEL_FUNCTION bool find_piece(const struct decode &d, int tile_keys, struct piece *p)
{
    const struct nb_attention_view &a = d.view;
    unsigned index = blockIdx.x;
    int row_tile = (int)(index % (unsigned)d.row_tiles);
    index /= (unsigned)d.row_tiles;
    p->split = (int)(index % (unsigned)d.splits);
    index /= (unsigned)d.splits;
    p->kv_head = (int)(index % (unsigned)a.kv_heads);
    uint32_t sequence = index / (unsigned)a.kv_heads;
    if (sequence >= a.slot->sequences)
        return false;
    p->query_begin = a.query_starts[sequence], p->queries = a.query_starts[sequence + 1] - p->query_begin;
    p->key_begin = a.key_starts[sequence], p->keys = a.key_starts[sequence + 1] - p->key_begin;
    p->row = row_tile * ROWS;
    p->rows = p->queries * a.group - p->row;
    if (p->rows <= 0)
        return false;
    p->rows = p->rows < ROWS ? p->rows : (int)ROWS;
    int first = p->keys - p->queries + p->row / a.group, last = p->keys - p->queries + (p->row + p->rows - 1) / a.group;
    p->begin = first >= 0 && (unsigned)first >= a.reach ? first - (int)a.reach + 1 : 0;
    p->begin -= p->begin % tile_keys;
    int split_begin = p->split * d.split_keys, split_end = split_begin + d.split_keys;
    p->begin = p->begin > split_begin ? p->begin : split_begin;
    p->end = last + 1 < split_end ? last + 1 : split_end;
    return p->begin < p->end;
}

/* Row r of the tile is head kv_head * group + r % group of query r / group. */
template <int HD, int THREADS>
NB_KERNEL_FUNCTION void copy_rows(const struct nb_attention_view &a, const struct piece &p, unsigned char *tile)
{
    for (int i = (int)threadIdx.x; i < ROWS * (HD / 8); i += THREADS) {
        int row = i / (HD / 8), chunk = i % (HD / 8), r = p.row + row;
        const nb_bf16 *from = a.q + (p.query_begin + r / a.group) * a.q_stride +
                              (p.kv_head * a.group + r % a.group) * a.head_dim + chunk * 8;
        nb_copy_async_16(tile + nb_attention_at<HD>(row, chunk), from, row < p.rows && chunk * 8 < a.head_dim ? 16 : 0);
    }
}

/* The warps' results to one, in their order, and out. */
template <int HD, int WARPS>
NB_KERNEL_FUNCTION void combine_warps(
    const struct decode &d, const struct piece &p, const float *outputs, const float2 *stats)
{
    const struct nb_attention_view &a = d.view;
    for (int i = (int)threadIdx.x; i < p.rows * a.head_dim; i += WARPS * NB_WARP) {
        int row = i / a.head_dim, column = i % a.head_dim, r = p.row + row;
        float maximum = -INFINITY, sum = 0.0f, output = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            maximum = fmaxf(maximum, stats[w * ROWS + row].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float2 own = stats[w * ROWS + row];
            float factor = own.x == -INFINITY ? 0.0f : nb_exp2_fast(own.x - maximum);
            sum = fmaf(own.y, factor, sum), output = fmaf(outputs[(w * ROWS + row) * HD + column], factor, output);
        }
        int64_t at =
            ((int64_t)(p.query_begin + r / a.group) * a.heads + p.kv_head * a.group + r % a.group) * d.splits + p.split;
        d.output[at * a.head_dim + column] = output;
        if (column == 0) {
            float2 both;
            both.x = maximum, both.y = sum;
            d.stats[at] = both;
        }
    }
}

template <int HD, int WARPS>
__global__ void __launch_bounds__(WARPS *NB_WARP) nb_attention_decode_kernel(const struct decode d)
{
    typedef decode_shape<HD, WARPS> shape;
    enum { KEYS = shape::KEYS, THREADS = shape::THREADS, CT = HD / 8 };
    const struct nb_attention_view &a = d.view;
    unsigned char *q_tile = nb_shared_memory(), *k_tile = q_tile + shape::K_TILE, *v_tile = q_tile + shape::V_TILE;
    struct piece p;
    if (!find_piece(d, KEYS, &p))
        return;
    const nb_bf16 *k = a.k + p.key_begin * a.k_stride + p.kv_head * a.head_dim,
                  *v = a.v + p.key_begin * a.v_stride + p.kv_head * a.head_dim;
    int thread = (int)threadIdx.x, lane = thread % NB_WARP, warp = nb_attention_warp();
    copy_rows<HD, THREADS>(a, p, q_tile);
    nb_attention_copy<HD, KEYS, THREADS>(
        k_tile, k + p.begin * a.k_stride, a.k_stride, p.end - p.begin, a.head_dim, thread);
    nb_attention_copy<HD, KEYS, THREADS>(
        v_tile, v + p.begin * a.v_stride, a.v_stride, p.end - p.begin, a.head_dim, thread);
    nb_copy_async_commit();

    float output[1][CT][4], maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < CT * 4; i++)
        output[0][i / 4][i % 4] = 0.0f;
    int position[2];
    for (int half = 0; half < 2; half++)
        position[half] = p.keys - p.queries + (p.row + lane / 4 + half * 8) / a.group;
    struct nb_attention_lane<HD> q_left = nb_attention_left<HD>(q_tile, 0),
                                 k_right = nb_attention_right<HD>(k_tile, warp * 16),
                                 v_left = nb_attention_left<HD>(v_tile, warp * 16);
    int buffer = 0;
    for (int key = p.begin; key < p.end; key += KEYS, buffer = 1 - buffer) {
        q_left.half = v_left.half = q_left.half ^ a.zero;
        k_right.half ^= a.zero, thread ^= a.zero;
        int next = key + KEYS, other = (1 - buffer) * shape::BYTES;
        if (next < p.end) {
            nb_attention_copy<HD, KEYS, THREADS>(
                k_tile + other, k + next * a.k_stride, a.k_stride, p.end - next, a.head_dim, thread);
            nb_attention_copy<HD, KEYS, THREADS>(
                v_tile + other, v + next * a.v_stride, a.v_stride, p.end - next, a.head_dim, thread);
        }
        nb_copy_async_commit();
        nb_copy_async_wait<1>();
        nb_block_barrier(); /* this tile is there */
        float score[1][2][4];
        uint32_t weight[1][1][4];
        nb_attention_multiply<HD, 1, 2>(score, q_left, nb_attention_moved(k_right, buffer * shape::BYTES));
        nb_attention_rescore<1, 2>(a, score);
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                unsigned back = (unsigned)(position[e / 2] - (key + warp * 16 + n * 8 + lane % 4 * 2 + e % 2));
                score[0][n][e] = back < a.reach ? score[0][n][e] : -INFINITY;
            }
        nb_attention_exponentials<2, CT>(score[0], maximum, sum, output[0], a.exponent_scale);
        nb_attention_pack<2>(weight[0], score[0]);
        nb_attention_accumulate<HD, 1, 1, CT>(output, weight, nb_attention_moved(v_left, buffer * shape::BYTES), 0);
        nb_block_barrier(); /* and no longer read */
    }
    float *outputs = (float *)(void *)(q_tile + shape::OUTPUT);
    float2 *stats = (float2 *)(void *)(q_tile + shape::STATS);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp * ROWS + lane / 4 + half * 8;
        sum[half] += nb_shuffle_xor(sum[half], 1);
        sum[half] += nb_shuffle_xor(sum[half], 2);
        if (lane % 4 == 0) {
            float2 both;
            both.x = maximum[half] == -INFINITY ? -INFINITY : maximum[half] * a.exponent_scale, both.y = sum[half];
            stats[row] = both;
        }
#pragma unroll
        for (int c = 0; c < CT; c++) {
            float2 two;
            two.x = output[0][c][2 * half], two.y = output[0][c][2 * half + 1];
            *(float2 *)(void *)(outputs + row * HD + c * 8 + lane % 4 * 2) = two;
        }
    }
    nb_block_barrier();
    combine_warps<HD, WARPS>(d, p, outputs, stats);
}

/* The pieces of a row to one, in their order: a block a row of a head. Few bytes: 1 of 16 of what the first kernel
 * read. */
__global__ void __launch_bounds__(COMBINE_THREADS) nb_attention_combine_kernel(const struct decode d)
{
    const struct nb_attention_view &a = d.view;
    int head = (int)(blockIdx.x % (unsigned)a.heads), token = (int)(blockIdx.x / (unsigned)a.heads), sequence = 0;
    uint32_t sequences = a.slot->sequences;
    while (sequence < (int)sequences && a.query_starts[sequence + 1] <= token)
        sequence++;
    if (sequence == (int)sequences)
        return;
    int queries = a.query_starts[sequence + 1] - a.query_starts[sequence],
        keys = a.key_starts[sequence + 1] - a.key_starts[sequence];
    int position = keys - queries + token - a.query_starts[sequence];
    int begin = position >= 0 && (unsigned)position >= a.reach ? position - (int)a.reach + 1 : 0;
    int first = begin / d.split_keys,
        end = (position + d.split_keys) / d.split_keys; /* pieces that hold a key it sees */
    int64_t at = ((int64_t)token * a.heads + head) * d.splits;
    float maximum = -INFINITY, sum = 0.0f;
    for (int s = first; s < end; s++)
        maximum = fmaxf(maximum, d.stats[at + s].x);
    for (int s = first; s < end; s++) {
        float2 own = d.stats[at + s];
        sum = fmaf(own.y, own.x == -INFINITY ? 0.0f : nb_exp2_fast(own.x - maximum), sum);
    }
    float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int column = (int)threadIdx.x; column < a.head_dim; column += COMBINE_THREADS) {
        float output = 0.0f;
        for (int s = first; s < end; s++) {
            float own = d.stats[at + s].x;
            output = fmaf(d.output[(at + s) * a.head_dim + column],
                own == -INFINITY ? 0.0f : nb_exp2_fast(own - maximum), output);
        }
        a.o[token * a.o_stride + head * a.head_dim + column] = nb_bf16_round(output * inverse);
    }
    if (a.lse != NULL && threadIdx.x == 0)
        a.lse[(int64_t)head * a.tokens_max + token] = fmaf(maximum, NB_ATTENTION_LN_2, logf(sum));
}

template <int HD, int WARPS> static nb_status launch(const struct decode &d, unsigned blocks, cudaStream_t stream)
{
    struct nb_launch launch = {};
    launch.grid = dim3(blocks), launch.threads = WARPS * NB_WARP, launch.shared_bytes = decode_shape<HD, WARPS>::SHARED;
    return nb_cuda_launch("attention", nb_attention_decode_kernel<HD, WARPS>, launch, stream, d);
}

bool nb_attention_decode_serves(const struct nb_attention *a)
{
    return nb_cuda_attention_decodes(a) && a->scratch.bytes >= nb_cuda_attention_partials_of(a).bytes;
}

nb_status nb_attention_decode(const struct nb_attention_view &view, const struct nb_attention *a, cudaStream_t stream)
{
    struct nb_cuda_attention_partials partials = nb_cuda_attention_partials_of(a);
    struct decode d = {};
    d.view = view;
    d.stats = nb_pointer<float2>(nb_dptr_at(a->scratch.base, partials.stats));
    d.output = nb_pointer<float>(nb_dptr_at(a->scratch.base, partials.output));
    d.split_keys = partials.split_keys, d.splits = partials.splits;
    d.row_tiles = (a->tokens_max * view.group + ROWS - 1) / ROWS;
    unsigned blocks = (unsigned)((int64_t)a->sequences_max * view.kv_heads * d.splits * d.row_tiles);
    NB_TRY(a->head_dim <= 64    ? (launch<64, 4>(d, blocks, stream))
           : a->head_dim <= 80  ? (launch<80, 4>(d, blocks, stream))
           : a->head_dim <= 96  ? (launch<96, 4>(d, blocks, stream))
           : a->head_dim <= 128 ? (launch<128, 4>(d, blocks, stream))
                                : (launch<256, 2>(d, blocks, stream)));
    struct nb_launch combine = {};
    combine.grid = dim3((unsigned)(a->tokens_max * a->heads)), combine.threads = COMBINE_THREADS;
    return nb_cuda_launch("attention", nb_attention_combine_kernel, combine, stream, d);
}

nb_status nb_attention_decode_load(void)
{
    NB_TRY(nb_cuda_load("attention", nb_attention_decode_kernel<64, 4>, decode_shape<64, 4>::SHARED));
    NB_TRY(nb_cuda_load("attention", nb_attention_decode_kernel<80, 4>, decode_shape<80, 4>::SHARED));
    NB_TRY(nb_cuda_load("attention", nb_attention_decode_kernel<96, 4>, decode_shape<96, 4>::SHARED));
    NB_TRY(nb_cuda_load("attention", nb_attention_decode_kernel<128, 4>, decode_shape<128, 4>::SHARED));
    NB_TRY(nb_cuda_load("attention", nb_attention_decode_kernel<256, 2>, decode_shape<256, 2>::SHARED));
    return nb_cuda_load("attention", nb_attention_combine_kernel, 0);
}
