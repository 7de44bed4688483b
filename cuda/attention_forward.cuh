/* Attention's forward pass, FlashAttention-2 style (Dao 2023, arXiv 2307.08691): a block owns 16 MT WARPS queries of
 * one head, a warp 16 MT of them, and walks over the visible keys KEYS at a time with a running maximum and sum a
 * query.
 *
 * Bound by the tensor cores, with shared memory close behind. A warp's matrix instruction (2,048 multiply-adds) reads
 * 256 bytes of K or V from shared memory if it owns 16 rows, 128 if it owns 32: at 128 bytes a clock and SM that is 2
 * clocks or 1, where an H200's mma.sync takes about 1.6. So MT = 2 wherever the registers allow (head sizes up to 128):
 * at 128, with Q read again for each 48 keys, the average is 1.33 clocks. 32 x 128 sums and 32 x 48 scores are 176
 * registers, and 2 blocks of 4 warps an SM; 64 keys (1.25 clocks) spill on some architectures.
 * From global memory (L2 mostly) a block reads 4 HD bytes a key for 4 HD QUERIES operations: 128 operations a byte, 2.2
 * TB/s at 280 TFLOP/s.
 * K and V have one buffer each: V lands while the scores are computed, the next K while the probabilities multiply V.
 * The exponential of a score is one fmaf and one ex2. The sums are multiplied by 2^(old maximum - new) only if a row's
 * maximum grew by more than 8 (a factor of 256, harmless in fp32 and for bf16 probabilities, whose rounding is
 * relative); after the first tiles that is rare. */
#ifndef NB_CUDA_ATTENTION_FORWARD_CUH
#define NB_CUDA_ATTENTION_FORWARD_CUH

#include "cuda/attention_tile.cuh"

/* What each row of a warp carries from tile to tile: rows lane / 4 and lane / 4 + 8 of each 16. */
template <int MT> struct nb_attention_rows {
    float maximum[MT][2]; /* in units of raw scores; may lag behind the true one by 8 / exponent_scale */
    float sum[MT][2];     /* of this lane's columns alone */
};

/* The soft cap, or a scale that the maximum cannot bear. */
template <int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_rescore(const struct nb_attention_view &a, float score[MT][NT][4])
{
    if (a.score == NB_ATTENTION_PLAIN)
        return;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++)
        score[i / 4 / NT][i / 4 % NT][i % 4] *= a.prescale;
    if (a.score == NB_ATTENTION_SCALED)
        return;
#pragma unroll
    for (int i = 0; i < MT * NT * 4; i++)
        score[i / 4 / NT][i / 4 % NT][i % 4] = a.cap * nb_attention_tanh(score[i / 4 / NT][i / 4 % NT][i % 4]);
}

/* Scores of keys that are not seen become minus infinity. `distance`: of the lane's first query from its first key. */
template <int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_hide(float score[MT][NT][4], int distance, unsigned reach)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                /* Negative ones, keys to come, are the largest as unsigned numbers. */
                unsigned back = (unsigned)(distance + m * 16 + e / 2 * 8 - n * 8 - e % 2);
                score[m][n][e] = back < reach ? score[m][n][e] : -INFINITY;
            }
}

/* 16 rows of scores to probabilities, not yet divided by their sum; the rows' state and output follow. */
template <int NT, int CT>
NB_KERNEL_FUNCTION void nb_attention_exponentials(
    float score[NT][4], float row_maximum[2], float row_sum[2], float output[CT][4], float exponent_scale)
{
    float factor[2], base[2];
    bool grown = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = fmaxf(score[0][2 * half], score[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < NT; n++)
            largest = fmaxf(largest, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        largest = fmaxf(largest, nb_shuffle_xor(largest, 1));
        largest = fmaxf(largest, nb_shuffle_xor(largest, 2));
        float before = row_maximum[half];
        /* False where both are minus infinity. */
        bool grows = (largest - before) * exponent_scale > 8.0f;
        float maximum = grows ? largest : before;
        grown = grown || grows;
        row_maximum[half] = maximum;
        /* Nothing seen so far: no infinity minus infinity. */
        base[half] = maximum == -INFINITY ? 0.0f : maximum * exponent_scale;
        factor[half] = grows ? nb_exp2_fast(before * exponent_scale - base[half]) : 1.0f;
    }
    if (nb_warp_any(grown)) {
        row_sum[0] *= factor[0], row_sum[1] *= factor[1];
#pragma unroll
        for (int c = 0; c < CT; c++) {
            output[c][0] *= factor[0], output[c][1] *= factor[0];
            output[c][2] *= factor[1], output[c][3] *= factor[1];
        }
    }
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            score[n][e] = nb_exp2_fast(fmaf(score[n][e], exponent_scale, -base[e / 2]));
            row_sum[e / 2] += score[n][e];
        }
}

/* Completes the sums; the natural log-sum-exp goes out, and sum becomes what the output is multiplied by. A query that
 * sees nothing gets zeros and minus infinity; a NaN goes on. */
template <int MT>
NB_KERNEL_FUNCTION void nb_attention_finish(
    struct nb_attention_rows<MT> *state, float exponent_scale, float *lse, int first, int rows)
{
    int lane = (int)threadIdx.x % NB_WARP;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state->sum[m][half];
            sum += nb_shuffle_xor(sum, 1);
            sum += nb_shuffle_xor(sum, 2);
            int row = first + m * 16 + half * 8 + lane / 4;
            if (lse != NULL && lane % 4 == 0 && row < rows)
                lse[row] = fmaf(state->maximum[m][half] * exponent_scale, NB_ATTENTION_LN_2, logf(sum));
            state->sum[m][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
        }
}

template <int HD, int MT, int WARPS, int KEYS> struct nb_attention_forward_shape {
    enum {
        QUERIES = 16 * MT * WARPS,
        THREADS = WARPS * NB_WARP,
        PITCH = nb_attention_layout<HD>::PITCH,
        K_TILE = QUERIES * PITCH,
        V_TILE = K_TILE + KEYS * PITCH,
        SHARED = V_TILE + KEYS * PITCH
    };
};

/* BLOCKS: how many of them an SM has registers for. */
template <int HD, int MT, int WARPS, int KEYS, int BLOCKS>
__global__ void __launch_bounds__(WARPS *NB_WARP, BLOCKS) nb_attention_forward_kernel(const struct nb_attention_view a)
{
    typedef nb_attention_forward_shape<HD, MT, WARPS, KEYS> shape;
    enum { NT = KEYS / 8, CT = HD / 8, THREADS = shape::THREADS };
    unsigned char *q_tile = nb_shared_memory(), *k_tile = q_tile + shape::K_TILE, *v_tile = q_tile + shape::V_TILE;
    /* The last queries of a sequence see most: first. */
    struct nb_attention_piece p;
    if (!nb_attention_find<shape::QUERIES>(a, a.query_starts, blockIdx.x / (unsigned)a.heads, true, &p))
        return;
    int head = (int)(blockIdx.x % (unsigned)a.heads), column = head / a.group * a.head_dim; /* of the kv head */
    int query_row = p.query_begin + p.first, thread = (int)threadIdx.x, lane = thread % NB_WARP;
    const struct nb_attention_seen first = nb_attention_seen_of<KEYS>(a, p);
    int key_row = p.key_begin + first.key, left = first.left;

    nb_attention_copy<HD, shape::QUERIES, THREADS>(
        q_tile, a.q + query_row * a.q_stride + head * a.head_dim, a.q_stride, p.rows, a.head_dim, thread);
    nb_attention_copy<HD, KEYS, THREADS>(
        k_tile, a.k + key_row * a.k_stride + column, a.k_stride, left, a.head_dim, thread);
    nb_copy_async_commit();

    int own = nb_attention_warp() * 16 * MT;         /* first row of the warp */
    int distance = first.position + own - first.key; /* of its first query from the tile's first key */
    struct nb_attention_lane<HD> q_left = nb_attention_left<HD>(q_tile, own),
                                 k_right = nb_attention_right<HD>(k_tile, 0), v_left = nb_attention_left<HD>(v_tile, 0);
    struct nb_attention_rows<MT> rows;
    float output[MT][CT][4];
    nb_attention_clear<MT, CT>(output);
#pragma unroll
    for (int m = 0; m < MT; m++)
        rows.maximum[m][0] = rows.maximum[m][1] = -INFINITY, rows.sum[m][0] = rows.sum[m][1] = 0.0f;
    for (; left > 0; left -= KEYS, distance -= KEYS) {
        q_left.half = v_left.half = q_left.half ^ a.zero;
        k_right.half ^= a.zero, thread ^= a.zero;
        bool seen = distance + 16 * MT - 1 >= 0 && distance - (KEYS - 1) < (int)a.reach;
        bool whole = distance - (KEYS - 1) >= 0 && distance + 16 * MT - 1 < (int)a.reach;
        float score[MT][NT][4];
        nb_copy_async_wait<0>();
        nb_block_barrier(); /* K is there, V no longer read */
        nb_attention_copy<HD, KEYS, THREADS>(
            v_tile, a.v + key_row * a.v_stride + column, a.v_stride, left, a.head_dim, thread);
        nb_copy_async_commit();
        if (seen)
            nb_attention_multiply<HD, MT, NT>(score, q_left, k_right);
        nb_copy_async_wait<0>();
        nb_block_barrier(); /* V is there, K no longer read */
        key_row += KEYS;
        if (left > KEYS)
            nb_attention_copy<HD, KEYS, THREADS>(
                k_tile, a.k + key_row * a.k_stride + column, a.k_stride, left - KEYS, a.head_dim, thread);
        nb_copy_async_commit();
        if (seen) {
            uint32_t weight[MT][NT / 2][4];
            nb_attention_rescore<MT, NT>(a, score);
            if (!whole)
                nb_attention_hide<MT, NT>(score, distance + lane / 4 - lane % 4 * 2, a.reach);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                nb_attention_exponentials<NT, CT>(score[m], rows.maximum[m], rows.sum[m], output[m], a.exponent_scale);
                nb_attention_pack<NT>(weight[m], score[m]);
            }
            nb_attention_accumulate<HD, MT, NT / 2, CT>(output, weight, v_left, 0);
        }
    }
    /* Without a tile the queries may still be landing where the output goes. */
    nb_copy_async_wait<0>();
    nb_block_barrier();
    /* Derived again rather than kept through the loop. */
    head = (int)((blockIdx.x ^ (unsigned)a.zero) % (unsigned)a.heads);
    float *lse = a.lse == NULL ? NULL : a.lse + (int64_t)head * a.tokens_max + query_row;
    nb_attention_finish<MT>(&rows, a.exponent_scale, lse, own, p.rows);
    nb_attention_store<HD, MT, CT>(q_tile, own, 0, output, rows.sum,
        a.o + (query_row + own) * a.o_stride + head * a.head_dim, a.o_stride, p.rows - own, a.head_dim);
}

/* ---- what a head size's file defines ---- */

template <int HD, int MT, int WARPS, int KEYS, int BLOCKS>
static nb_status nb_attention_forward_launch(const struct nb_attention_view &view, cudaStream_t stream)
{
    typedef nb_attention_forward_shape<HD, MT, WARPS, KEYS> shape;
    int64_t blocks = nb_attention_pieces(view.tokens_max, view.sequences_max, shape::QUERIES) * view.heads;
    struct nb_launch launch = {};
    launch.grid = dim3((unsigned)blocks), launch.threads = shape::THREADS, launch.shared_bytes = shape::SHARED;
    return nb_cuda_launch("attention", nb_attention_forward_kernel<HD, MT, WARPS, KEYS, BLOCKS>, launch, stream, view);
}

template <int HD, int MT, int WARPS, int KEYS, int BLOCKS> static nb_status nb_attention_forward_load(void)
{
    typedef nb_attention_forward_shape<HD, MT, WARPS, KEYS> shape;
    return nb_cuda_load("attention", nb_attention_forward_kernel<HD, MT, WARPS, KEYS, BLOCKS>, shape::SHARED);
}

#endif
