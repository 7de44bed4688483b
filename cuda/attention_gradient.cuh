/* Attention's backward pass: two kernels, after delta = rowsum(d_o * o) (Dao et al. 2022, arXiv 2205.14135, appendix
 * B). With p = 2^(s - lse), dp = d_o v^T, ds = p * (dp - delta):
 *   dk, dv: a block owns a tile of keys of one kv head and walks over the queries that see them, head by head of the
 *           group: four products
 *   dq:     a block owns a tile of queries of one head and walks over the keys they see: three products
 * Every sum has one owner and a fixed order, so nothing is added atomically and nothing waits for another block. The
 * price is s and dp computed twice: 7 products where one pass, which would add dq in an order of its own through fp32
 * scratch, has 5. Counted as 5, a rate of 160 TFLOP/s on an H200 is 224 TFLOP/s of products done.
 *
 * Bound by shared memory, then the tensor cores. Clocks an SM and matrix instruction (2,048 multiply-adds; an H200's
 * mma.sync takes about 1.6) at head size 128, from the fragments read at 128 bytes a clock:
 *   dk, dv, a warp owning 16 keys and walking 48 queries at a time: s^T and dp^T 2.7 (K or V 512 bytes, Q or d_o 1,536
 *           for 6 instructions), dv and dk 2; on average 2.33: 406 TFLOP/s of products at the most
 *   dq, a warp owning 32 queries and walking 32 keys at a time: s and dp 2, dq 1; on average 1.67: 570 at the most
 * Half of each would give 5 / (4 / 203 + 3 / 285) = 165 TFLOP/s as counted. p and ds never leave the registers: the
 * scores are computed transposed where dk and dv are summed, and the layout of a product's result is that of the next
 * one's left factor.
 *
 * Both kernels walk alike over two tiles, of which the first (Q or K) has two buffers and the second (d_o or V) one: it
 * is free as soon as dv or dp is done, and lands during the last product and the next scores. */
#ifndef NB_CUDA_ATTENTION_GRADIENT_CUH
#define NB_CUDA_ATTENTION_GRADIENT_CUH

#include "cuda/attention_tile.cuh"

/* The soft cap, and its derivative 1 - tanh^2 into what follows. */
template <int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_cap(
    const struct nb_attention_view &a, float score[MT][NT][4], float d_score[MT][NT][4])
{
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++) {
        float t = nb_attention_tanh(score[i / 4 / NT][i / 4 % NT][i % 4] * a.prescale);
        score[i / 4 / NT][i / 4 % NT][i % 4] = a.cap * t;
        d_score[i / 4 / NT][i / 4 % NT][i % 4] *= 1.0f - t * t;
    }
}

/* p and ds are zero where nothing is seen. Keys lie along the rows if `transposed`. `distance`: of the lane's first
 * query from its first key. */
template <int MT, int NT, bool TRANSPOSED>
NB_KERNEL_FUNCTION void nb_attention_hide_both(float p[MT][NT][4], float ds[MT][NT][4], int distance, unsigned reach)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int down = m * 16 + e / 2 * 8, across = n * 8 + e % 2;
                bool seen = (unsigned)(distance + (TRANSPOSED ? across - down : down - across)) < reach;
                p[m][n][e] = seen ? p[m][n][e] : 0.0f;
                ds[m][n][e] = seen ? ds[m][n][e] : 0.0f;
            }
}

/* ---- dk and dv ---- */

/* A warp owns 16 MT keys and HD / SPLIT columns of their sums: where dk and dv of a key are too many registers, SPLIT
 * warps compute the same p and ds. */
template <int HD, int MT, int WARPS, int QUERIES, int SPLIT> struct nb_attention_dkv_shape {
    enum {
        KEYS = 16 * MT * WARPS / SPLIT,
        THREADS = WARPS * NB_WARP,
        PITCH = nb_attention_layout<HD>::PITCH,
        V_TILE = KEYS * PITCH,
        Q_TILE = 2 * KEYS * PITCH, /* two */
        Q_BYTES = QUERIES * PITCH,
        D_O_TILE = Q_TILE + 2 * Q_BYTES,
        STATS = D_O_TILE + Q_BYTES, /* two */
        STATS_BYTES = QUERIES * 8,
        SHARED = STATS + 2 * STATS_BYTES
    };
    static_assert(QUERIES <= THREADS, "a thread copies the stats of one query");
};

/* The queries that see a key of a piece: [begin, end), `begin` a multiple of the tile. */
struct nb_attention_seers {
    int offset; /* position of query 0 */
    int begin, end, steps;
};

template <int QUERIES>
NB_KERNEL_FUNCTION struct nb_attention_seers nb_attention_seers_of(
    const struct nb_attention_view &a, const struct nb_attention_piece &p)
{
    struct nb_attention_seers s;
    s.offset = p.keys - p.queries;
    s.begin = p.first > s.offset ? p.first - s.offset : 0;
    s.begin -= s.begin % QUERIES;
    int64_t out_of_reach = (int64_t)p.first + p.rows - 1 + a.reach - s.offset;
    s.end = out_of_reach < p.queries ? (int)out_of_reach : p.queries;
    s.steps = s.end > s.begin ? (s.end - s.begin + QUERIES - 1) / QUERIES * a.group : 0;
    return s;
}

/* Where a walk stands: a tile of queries of one head. */
struct nb_attention_step {
    int head, query, buffer;
};

template <int HD, int QUERIES, int THREADS>
NB_KERNEL_FUNCTION void nb_attention_copy_q(const struct nb_attention_view &a, const struct nb_attention_piece &p,
    const struct nb_attention_step &s, unsigned char *tile, unsigned char *stats, int thread)
{
    int64_t row = p.query_begin + s.query;
    int rows = p.queries - s.query;
    nb_attention_copy<HD, QUERIES, THREADS>(
        tile, a.q + row * a.q_stride + s.head * a.head_dim, a.q_stride, rows, a.head_dim, thread);
    if (thread < QUERIES)
        nb_copy_async_8(
            stats + thread * 8, a.stats + (int64_t)s.head * a.tokens_max + row + thread, thread < rows ? 8 : 0);
}

template <int HD, int QUERIES, int THREADS>
NB_KERNEL_FUNCTION void nb_attention_copy_d_o(const struct nb_attention_view &a, const struct nb_attention_piece &p,
    const struct nb_attention_step &s, unsigned char *tile, int thread)
{
    const nb_bf16 *from = a.d_o + (p.query_begin + s.query) * a.d_o_stride + s.head * a.head_dim;
    nb_attention_copy<HD, QUERIES, THREADS>(tile, from, a.d_o_stride, p.queries - s.query, a.head_dim, thread);
}

/* Transposed raw products and dp to p and ds. stats: of the lane's first query, in shared memory. */
template <int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_differentiate_columns(
    const struct nb_attention_view &a, float score[MT][NT][4], float d_score[MT][NT][4], const unsigned char *stats)
{
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float4 two = *(const float4 *)(const void *)(stats + n * 64); /* {lse, delta} of two queries */
#pragma unroll
        for (int m = 0; m < MT; m++) {
            d_score[m][n][0] -= two.y, d_score[m][n][1] -= two.w;
            d_score[m][n][2] -= two.y, d_score[m][n][3] -= two.w;
        }
    }
    if (a.score == NB_ATTENTION_CAPPED)
        nb_attention_cap<MT, NT>(a, score, d_score);
    float scale = a.score == NB_ATTENTION_CAPPED ? 1.0f : a.scale * NB_ATTENTION_LOG2_E;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float4 two = *(const float4 *)(const void *)(stats + n * 64);
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                score[m][n][e] = nb_exp2_fast(fmaf(score[m][n][e], scale, e % 2 ? -two.z : -two.x));
                d_score[m][n][e] *= score[m][n][e];
            }
    }
}

template <int HD, int MT, int WARPS, int QUERIES, int SPLIT, int BLOCKS>
__global__ void __launch_bounds__(WARPS *NB_WARP, BLOCKS) nb_attention_dkv_kernel(const struct nb_attention_view a)
{
    typedef nb_attention_dkv_shape<HD, MT, WARPS, QUERIES, SPLIT> shape;
    enum { NT = QUERIES / 8, CT = HD / SPLIT / 8, THREADS = shape::THREADS };
    unsigned char *k_tile = nb_shared_memory(), *v_tile = k_tile + shape::V_TILE, *q_tile = k_tile + shape::Q_TILE,
                  *d_o_tile = k_tile + shape::D_O_TILE, *stats = k_tile + shape::STATS;
    /* The first keys of a sequence are seen by most: first. */
    struct nb_attention_piece p;
    if (!nb_attention_find<shape::KEYS>(a, a.key_starts, blockIdx.x / (unsigned)a.kv_heads, false, &p))
        return;
    int kv_head = (int)(blockIdx.x % (unsigned)a.kv_heads), thread = (int)threadIdx.x;
    int key_row = p.key_begin + p.first;
    const struct nb_attention_seers walk = nb_attention_seers_of<QUERIES>(a, p);
    int left = walk.steps;

    struct nb_attention_step next = {kv_head * a.group, walk.begin, 0};
    nb_attention_copy<HD, shape::KEYS, THREADS>(
        k_tile, a.k + key_row * a.k_stride + kv_head * a.head_dim, a.k_stride, p.rows, a.head_dim, thread);
    if (left > 0)
        nb_attention_copy_q<HD, QUERIES, THREADS>(a, p, next, q_tile, stats, thread);
    nb_copy_async_commit();
    nb_attention_copy<HD, shape::KEYS, THREADS>(
        v_tile, a.v + key_row * a.v_stride + kv_head * a.head_dim, a.v_stride, p.rows, a.head_dim, thread);
    if (left > 0)
        nb_attention_copy_d_o<HD, QUERIES, THREADS>(a, p, next, d_o_tile, thread);
    nb_copy_async_commit();

    int warp = nb_attention_warp(), own = warp / SPLIT * 16 * MT, column = warp % SPLIT * (HD / SPLIT);
    struct nb_attention_lane<HD> k_left = nb_attention_left<HD>(k_tile, own),
                                 v_left = nb_attention_left<HD>(v_tile, own), q_left = nb_attention_left<HD>(q_tile, 0),
                                 q_right = nb_attention_right<HD>(q_tile, 0),
                                 d_o_left = nb_attention_left<HD>(d_o_tile, 0),
                                 d_o_right = nb_attention_right<HD>(d_o_tile, 0);
    float dk[MT][CT][4], dv[MT][CT][4];
    nb_attention_clear<MT, CT>(dk);
    nb_attention_clear<MT, CT>(dv);
    for (; left > 0; left--) {
        struct nb_attention_step now = next;
        next.query += QUERIES;
        if (next.query >= walk.end)
            next.query = walk.begin, next.head++;
        next.buffer = 1 - now.buffer;
        k_left.half = v_left.half = q_left.half = d_o_left.half = k_left.half ^ a.zero;
        q_right.half = d_o_right.half = q_right.half ^ a.zero;
        thread ^= a.zero;
        int lane = thread % NB_WARP;
        /* Distance of the tile's first query from the warp's first key. */
        int distance = walk.offset + now.query - p.first - own;
        bool seen = distance + QUERIES - 1 >= 0 && distance - (16 * MT - 1) < (int)a.reach;
        bool whole = distance - (16 * MT - 1) >= 0 && distance + QUERIES - 1 < (int)a.reach;
        float score[MT][NT][4], d_score[MT][NT][4];
        uint32_t weight[MT][NT / 2][4];

        nb_copy_async_wait<1>();
        nb_block_barrier(); /* Q is there, the other one no longer read */
        if (left > 1)
            nb_attention_copy_q<HD, QUERIES, THREADS>(
                a, p, next, q_tile + next.buffer * shape::Q_BYTES, stats + next.buffer * shape::STATS_BYTES, thread);
        nb_copy_async_commit();
        if (seen)
            nb_attention_multiply<HD, MT, NT>(score, k_left, nb_attention_moved(q_right, now.buffer * shape::Q_BYTES));
        nb_copy_async_wait<1>();
        nb_block_barrier(); /* d_o is there */
        if (seen) {
            nb_attention_multiply<HD, MT, NT>(d_score, v_left, d_o_right);
            nb_attention_differentiate_columns<MT, NT>(
                a, score, d_score, stats + now.buffer * shape::STATS_BYTES + lane % 4 * 16);
            if (!whole)
                nb_attention_hide_both<MT, NT, true>(score, d_score, distance + lane % 4 * 2 - lane / 4, a.reach);
#pragma unroll
            for (int m = 0; m < MT; m++)
                nb_attention_pack<NT>(weight[m], score[m]);
            nb_attention_accumulate<HD, MT, NT / 2, CT>(dv, weight, d_o_left, column / 16);
        }
        nb_block_barrier(); /* d_o no longer read */
        if (left > 1)
            nb_attention_copy_d_o<HD, QUERIES, THREADS>(a, p, next, d_o_tile, thread);
        nb_copy_async_commit();
        if (seen) {
#pragma unroll
            for (int m = 0; m < MT; m++)
                nb_attention_pack<NT>(weight[m], d_score[m]);
            nb_attention_accumulate<HD, MT, NT / 2, CT>(
                dk, weight, nb_attention_moved(q_left, now.buffer * shape::Q_BYTES), column / 16);
        }
    }
    /* Without a step K and V may still be landing where the sums go; with SPLIT another warp may still read them. */
    nb_copy_async_wait<0>();
    nb_block_barrier();
    float factor[MT][2], one[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
        factor[m][0] = factor[m][1] = a.scale, one[m][0] = one[m][1] = 1.0f;
    int row = key_row + own;
    /* Derived again rather than kept through the loop. */
    kv_head = (int)((blockIdx.x ^ (unsigned)a.zero) % (unsigned)a.kv_heads);
    nb_attention_store<HD, MT, CT>(k_tile, own, column, dk, factor, a.dk + row * a.dk_stride + kv_head * a.head_dim,
        a.dk_stride, p.rows - own, a.head_dim);
    nb_attention_store<HD, MT, CT>(v_tile, own, column, dv, one, a.dv + row * a.dv_stride + kv_head * a.head_dim,
        a.dv_stride, p.rows - own, a.head_dim);
}

/* ---- dq ---- */

template <int HD, int MT, int WARPS, int KEYS> struct nb_attention_dq_shape {
    enum {
        QUERIES = 16 * MT * WARPS,
        THREADS = WARPS * NB_WARP,
        PITCH = nb_attention_layout<HD>::PITCH,
        D_O_TILE = QUERIES * PITCH,
        K_TILE = 2 * QUERIES * PITCH, /* two */
        K_BYTES = KEYS * PITCH,
        V_TILE = K_TILE + 2 * K_BYTES,
        STATS = V_TILE + K_BYTES,
        SHARED = STATS + QUERIES * 8
    };
    static_assert(QUERIES <= THREADS, "a thread copies the stats of one query");
};

/* Raw products and dp to p and ds. stats: of the lane's first query, in shared memory. */
template <int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_differentiate_rows(
    const struct nb_attention_view &a, float score[MT][NT][4], float d_score[MT][NT][4], const unsigned char *stats)
{
    float2 row[MT][2]; /* {lse, delta} */
#pragma unroll
    for (int i = 0; i < MT * 2; i++)
        row[i / 2][i % 2] = *(const float2 *)(const void *)(stats + i * 64);
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++)
        d_score[i / 4 / NT][i / 4 % NT][i % 4] -= row[i / 4 / NT][i % 4 / 2].y;
    if (a.score == NB_ATTENTION_CAPPED)
        nb_attention_cap<MT, NT>(a, score, d_score);
    float scale = a.score == NB_ATTENTION_CAPPED ? 1.0f : a.scale * NB_ATTENTION_LOG2_E;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                score[m][n][e] = nb_exp2_fast(fmaf(score[m][n][e], scale, -row[m][e / 2].x));
                d_score[m][n][e] *= score[m][n][e];
            }
}

template <int HD, int MT, int WARPS, int KEYS, int BLOCKS>
__global__ void __launch_bounds__(WARPS *NB_WARP, BLOCKS) nb_attention_dq_kernel(const struct nb_attention_view a)
{
    typedef nb_attention_dq_shape<HD, MT, WARPS, KEYS> shape;
    enum { NT = KEYS / 8, CT = HD / 8, THREADS = shape::THREADS };
    unsigned char *q_tile = nb_shared_memory(), *d_o_tile = q_tile + shape::D_O_TILE, *k_tile = q_tile + shape::K_TILE,
                  *v_tile = q_tile + shape::V_TILE, *stats = q_tile + shape::STATS;
    /* The last queries of a sequence see most: first. */
    struct nb_attention_piece p;
    if (!nb_attention_find<shape::QUERIES>(a, a.query_starts, blockIdx.x / (unsigned)a.heads, true, &p))
        return;
    int head = (int)(blockIdx.x % (unsigned)a.heads), column = head / a.group * a.head_dim; /* of the kv head */
    int query_row = p.query_begin + p.first, thread = (int)threadIdx.x;
    const struct nb_attention_seen first = nb_attention_seen_of<KEYS>(a, p);
    int key_row = p.key_begin + first.key, left = first.left;

    nb_attention_copy<HD, shape::QUERIES, THREADS>(
        q_tile, a.q + query_row * a.q_stride + head * a.head_dim, a.q_stride, p.rows, a.head_dim, thread);
    nb_attention_copy<HD, KEYS, THREADS>(
        k_tile, a.k + key_row * a.k_stride + column, a.k_stride, left, a.head_dim, thread);
    nb_copy_async_commit();
    nb_attention_copy<HD, shape::QUERIES, THREADS>(
        d_o_tile, a.d_o + query_row * a.d_o_stride + head * a.head_dim, a.d_o_stride, p.rows, a.head_dim, thread);
    nb_attention_copy<HD, KEYS, THREADS>(
        v_tile, a.v + key_row * a.v_stride + column, a.v_stride, left, a.head_dim, thread);
    if (thread < shape::QUERIES)
        nb_copy_async_8(
            stats + thread * 8, a.stats + (int64_t)head * a.tokens_max + query_row + thread, thread < p.rows ? 8 : 0);
    nb_copy_async_commit();

    int own = nb_attention_warp() * 16 * MT, buffer = 0; /* the latter in bytes */
    int distance = first.position + own - first.key;     /* of the warp's first query from the tile's first key */
    struct nb_attention_lane<HD> q_left = nb_attention_left<HD>(q_tile, own),
                                 d_o_left = nb_attention_left<HD>(d_o_tile, own),
                                 k_left = nb_attention_left<HD>(k_tile, 0), k_right = nb_attention_right<HD>(k_tile, 0),
                                 v_right = nb_attention_right<HD>(v_tile, 0);
    float dq[MT][CT][4];
    nb_attention_clear<MT, CT>(dq);
    for (; left > 0; left -= KEYS, distance -= KEYS, buffer = shape::K_BYTES - buffer) {
        q_left.half = d_o_left.half = k_left.half = q_left.half ^ a.zero;
        k_right.half = v_right.half = k_right.half ^ a.zero;
        thread ^= a.zero;
        int lane = thread % NB_WARP;
        bool seen = distance + 16 * MT - 1 >= 0 && distance - (KEYS - 1) < (int)a.reach;
        bool whole = distance - (KEYS - 1) >= 0 && distance + 16 * MT - 1 < (int)a.reach;
        float score[MT][NT][4], d_score[MT][NT][4];
        uint32_t weight[MT][NT / 2][4];

        nb_copy_async_wait<1>();
        nb_block_barrier(); /* K is there, the other one no longer read */
        key_row += KEYS;
        if (left > KEYS)
            nb_attention_copy<HD, KEYS, THREADS>(k_tile + shape::K_BYTES - buffer, a.k + key_row * a.k_stride + column,
                a.k_stride, left - KEYS, a.head_dim, thread);
        nb_copy_async_commit();
        if (seen)
            nb_attention_multiply<HD, MT, NT>(score, q_left, nb_attention_moved(k_right, buffer));
        nb_copy_async_wait<1>();
        nb_block_barrier(); /* V is there */
        if (seen) {
            nb_attention_multiply<HD, MT, NT>(d_score, d_o_left, v_right);
            nb_attention_differentiate_rows<MT, NT>(a, score, d_score, stats + (own + lane / 4) * 8);
            if (!whole)
                nb_attention_hide_both<MT, NT, false>(score, d_score, distance + lane / 4 - lane % 4 * 2, a.reach);
        }
        nb_block_barrier(); /* V no longer read */
        if (left > KEYS)
            nb_attention_copy<HD, KEYS, THREADS>(
                v_tile, a.v + key_row * a.v_stride + column, a.v_stride, left - KEYS, a.head_dim, thread);
        nb_copy_async_commit();
        if (seen) {
#pragma unroll
            for (int m = 0; m < MT; m++)
                nb_attention_pack<NT>(weight[m], d_score[m]);
            nb_attention_accumulate<HD, MT, NT / 2, CT>(dq, weight, nb_attention_moved(k_left, buffer), 0);
        }
    }
    /* Without a tile the queries may still be landing where the sums go. */
    nb_copy_async_wait<0>();
    nb_block_barrier();
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
        factor[m][0] = factor[m][1] = a.scale;
    /* Derived again rather than kept through the loop. */
    head = (int)((blockIdx.x ^ (unsigned)a.zero) % (unsigned)a.heads);
    nb_attention_store<HD, MT, CT>(q_tile, own, 0, dq, factor,
        a.dq + (query_row + own) * a.dq_stride + head * a.head_dim, a.dq_stride, p.rows - own, a.head_dim);
}

/* ---- what a head size's file defines ---- */

template <int HD, int MT, int WARPS, int QUERIES, int SPLIT, int BLOCKS>
static nb_status nb_attention_dkv_launch(const struct nb_attention_view &view, cudaStream_t stream)
{
    typedef nb_attention_dkv_shape<HD, MT, WARPS, QUERIES, SPLIT> shape;
    struct nb_launch launch = {};
    launch.grid =
        dim3((unsigned)(nb_attention_pieces(view.key_tokens_max, view.sequences_max, shape::KEYS) * view.kv_heads));
    launch.threads = shape::THREADS, launch.shared_bytes = shape::SHARED;
    return nb_cuda_launch(
        "attention_backward", nb_attention_dkv_kernel<HD, MT, WARPS, QUERIES, SPLIT, BLOCKS>, launch, stream, view);
}

template <int HD, int MT, int WARPS, int QUERIES, int SPLIT, int BLOCKS> static nb_status nb_attention_dkv_load(void)
{
    return nb_cuda_load("attention_backward", nb_attention_dkv_kernel<HD, MT, WARPS, QUERIES, SPLIT, BLOCKS>,
        nb_attention_dkv_shape<HD, MT, WARPS, QUERIES, SPLIT>::SHARED);
}

template <int HD, int MT, int WARPS, int KEYS, int BLOCKS>
static nb_status nb_attention_dq_launch(const struct nb_attention_view &view, cudaStream_t stream)
{
    typedef nb_attention_dq_shape<HD, MT, WARPS, KEYS> shape;
    struct nb_launch launch = {};
    launch.grid =
        dim3((unsigned)(nb_attention_pieces(view.tokens_max, view.sequences_max, shape::QUERIES) * view.heads));
    launch.threads = shape::THREADS, launch.shared_bytes = shape::SHARED;
    return nb_cuda_launch(
        "attention_backward", nb_attention_dq_kernel<HD, MT, WARPS, KEYS, BLOCKS>, launch, stream, view);
}

template <int HD, int MT, int WARPS, int KEYS, int BLOCKS> static nb_status nb_attention_dq_load(void)
{
    return nb_cuda_load("attention_backward", nb_attention_dq_kernel<HD, MT, WARPS, KEYS, BLOCKS>,
        nb_attention_dq_shape<HD, MT, WARPS, KEYS>::SHARED);
}

#endif
