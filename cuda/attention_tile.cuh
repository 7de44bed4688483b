/* What the attention kernels share: which rows a block owns, tiles in shared memory, products of tiles.
 *
 * A head size is served by the kernels of the next larger HD of 64, 80, 96, 128, 256: columns behind head_dim are zero
 * in shared memory and never stored. Tiles are counted from each sequence's beginning, so packing moves no tile and
 * changes no bit. */
#ifndef NB_CUDA_ATTENTION_TILE_CUH
#define NB_CUDA_ATTENTION_TILE_CUH

#include <math.h>

#include "cuda/device.cuh"

enum nb_attention_score { NB_ATTENTION_PLAIN, NB_ATTENTION_SCALED, NB_ATTENTION_CAPPED };

/* nb_attention or nb_attention_backward as the kernels see it. Strides in elements, 64 bits, so that row * stride is.
 */
struct nb_attention_view {
    const nb_bf16 *q, *k, *v, *d_o;
    nb_bf16 *o, *dq, *dk, *dv;
    float *lse;
    float2 *stats; /* backward: [heads, tokens_max] {lse * log2(e), delta} */
    const int32_t *query_starts, *key_starts;
    const struct nb_slot *slot;
    int64_t q_stride, k_stride, v_stride, o_stride, d_o_stride, dq_stride, dk_stride, dv_stride;
    int tokens_max, key_tokens_max, sequences_max, heads, kv_heads, group, head_dim;
    unsigned reach; /* a query sees keys less than this before it: the window, or no limit */
    enum nb_attention_score score;
    float scale;
    float exponent_scale; /* probability = 2^(exponent_scale * score - ...) */
    float prescale;       /* SCALED, CAPPED: what the raw product is multiplied by first */
    int zero;             /* 0, unknown to the compiler: see nb_attention_lane */
    float cap;            /* CAPPED: cap * log2(e), of the hyperbolic tangent */
};

#define NB_ATTENTION_LOG2_E 1.44269504088896341f
#define NB_ATTENTION_LN_2   0.693147180559945309f

/* The members that both structs of args have. */
template <typename A> static inline struct nb_attention_view nb_attention_view_of(const A *a)
{
    struct nb_attention_view v = {};
    v.q = nb_pointer<const nb_bf16>(a->q), v.k = nb_pointer<const nb_bf16>(a->k), v.v = nb_pointer<const nb_bf16>(a->v);
    v.o = nb_pointer<nb_bf16>(a->o), v.lse = nb_pointer<float>(a->lse);
    v.query_starts = nb_pointer<const int32_t>(a->query_starts),
    v.key_starts = nb_pointer<const int32_t>(a->key_starts);
    v.slot = nb_pointer<const struct nb_slot>(a->slot);
    v.q_stride = a->q_stride, v.k_stride = a->k_stride, v.v_stride = a->v_stride, v.o_stride = a->o_stride;
    v.tokens_max = a->tokens_max, v.key_tokens_max = a->key_tokens_max, v.sequences_max = a->sequences_max;
    v.heads = a->heads, v.kv_heads = a->kv_heads, v.group = a->heads / a->kv_heads, v.head_dim = a->head_dim;
    v.reach = a->window > 0 ? (unsigned)a->window : (unsigned)INT32_MAX;
    v.scale = a->scale;
    /* The running maximum is that of raw products, so their factor in the exponent has to be positive. */
    v.score = a->soft_cap > 0 ? NB_ATTENTION_CAPPED : a->scale > 0 ? NB_ATTENTION_PLAIN : NB_ATTENTION_SCALED;
    v.exponent_scale = v.score == NB_ATTENTION_PLAIN ? a->scale * NB_ATTENTION_LOG2_E : 1.0f;
    v.prescale = v.score == NB_ATTENTION_CAPPED ? a->scale / a->soft_cap : a->scale * NB_ATTENTION_LOG2_E;
    v.cap = a->soft_cap * NB_ATTENTION_LOG2_E;
    return v;
}

/* The number of the warp, in a form that the compiler knows to be the same for all its lanes: what depends on it
 * branches as one. */
NB_KERNEL_FUNCTION int nb_attention_warp(void)
{
    return (int)nb_shuffle_u32(threadIdx.x / NB_WARP, 0);
}

/* ---- which rows ---- */

/* Rows [first, first + rows) of a sequence, queries or keys, and the sequence. */
struct nb_attention_piece {
    int query_begin, queries, key_begin, keys; /* of the sequence: rows of the buffers */
    int first, rows;
};

/* How many pieces of `rows_each` rows there are at most, however the rows are shared among sequences. */
static inline int64_t nb_attention_pieces(int rows_max, int sequences_max, int rows_each)
{
    return rows_max / rows_each + (int64_t)sequences_max;
}

/* Piece number `index` of those of ROWS queries (or keys) each, counted from the end if `reversed`; false if there is
 * none.
 *
 * Sequence i has the numbers from starts[i] / ROWS + i on: at least as many as it needs, at most one too many, and none
 * of them depends on a sum over other sequences' lengths. A warp looks at 32 starts at a time, so up to 32 sequences
 * take one read. */
template <int ROWS>
NB_KERNEL_FUNCTION bool nb_attention_find(const struct nb_attention_view &a, const int32_t *starts, int64_t index,
    bool reversed, struct nb_attention_piece *piece)
{
    uint32_t valid = a.slot->sequences;
    int sequences = valid < (uint32_t)a.sequences_max ? (int)valid : a.sequences_max, lane = (int)threadIdx.x % NB_WARP;
    int64_t all = (int64_t)starts[sequences] / ROWS + sequences;
    if (index >= all)
        return false;
    int64_t number = reversed ? all - 1 - index : index;
    int low = 0, high = sequences;
    while (high - low > 1) {
        int step = (high - low + NB_WARP - 1) / NB_WARP, i = low + lane * step;
        bool before = i < high && (int64_t)starts[i] / ROWS + i <= number;
        uint32_t ballot = nb_ballot(before);
        int count = 0;
        for (; ballot & 1u; ballot >>= 1)
            count++;
        low += (count - 1) * step;
        high = low + step < high ? low + step : high;
    }
    piece->query_begin = a.query_starts[low], piece->queries = a.query_starts[low + 1] - piece->query_begin;
    piece->key_begin = a.key_starts[low], piece->keys = a.key_starts[low + 1] - piece->key_begin;
    int length = starts[low + 1] - starts[low];
    int64_t first = (number - (starts[low] / ROWS + low)) * ROWS;
    piece->first = (int)first;
    piece->rows = length - first < ROWS ? (int)(length - first) : ROWS;
    return first < length;
}

/* What a piece of queries sees: keys of the sequence from `key` on, a multiple of the tile, up to its last query's own
 * position. */
struct nb_attention_seen {
    int position; /* of the first query */
    int key, left;
};

template <int KEYS>
NB_KERNEL_FUNCTION struct nb_attention_seen nb_attention_seen_of(
    const struct nb_attention_view &a, const struct nb_attention_piece &p)
{
    struct nb_attention_seen s;
    s.position = p.keys - p.queries + p.first;
    s.key = s.position >= 0 && (unsigned)s.position >= a.reach ? s.position - (int)a.reach + 1 : 0;
    s.key -= s.key % KEYS;
    s.left = s.position + p.rows - s.key;
    return s;
}

/* ---- tiles in shared memory: rows of HD bf16 in chunks of 16 bytes ---- */

/* ldmatrix reads one chunk of 8 consecutive rows at a time, and those 8 have to stand in 8 different groups of 4 banks.
 * Where a row is a power of two, chunk c of row r stands at c ^ (r % 8); otherwise a row has an odd pitch in chunks. */
template <int HD> struct nb_attention_layout {
    enum {
        CHUNKS = HD / 8,
        SWIZZLED = (CHUNKS & (CHUNKS - 1)) == 0,
        PITCH = (SWIZZLED ? CHUNKS : CHUNKS + 1) * 16 /* bytes */
    };
    static_assert(SWIZZLED || CHUNKS % 2 == 0, "an odd pitch");
};

template <int HD> NB_KERNEL_FUNCTION int nb_attention_at(int row, int chunk)
{
    typedef nb_attention_layout<HD> layout;
    return row * layout::PITCH + (layout::SWIZZLED ? chunk ^ (row & 7) : chunk) * 16;
}

/* Begins to copy `rows` rows of a head to a tile of ROWS: the rest of the tile, and columns behind head_dim, become
 * zero. */
template <int HD, int ROWS, int THREADS>
NB_KERNEL_FUNCTION void nb_attention_copy(
    unsigned char *tile, const nb_bf16 *from, int64_t stride, int rows, int head_dim, int thread)
{
    enum { CHUNKS = HD / 8, ALL = ROWS * CHUNKS };
    if (THREADS % CHUNKS == 0) {
        enum { STEP = THREADS / CHUNKS };
        int row = thread / CHUNKS, chunk = thread % CHUNKS, left = chunk * 8 < head_dim ? rows - row : 0;
        static_assert(THREADS % CHUNKS != 0 || ROWS % STEP == 0, "whole passes");
        /* STEP rows on, the swizzle is the same if STEP is a multiple of 8; the compiler sees that. */
        from += row * stride + chunk * 8;
#pragma unroll
        for (int n = 0; n < ROWS / STEP; n++) {
            nb_copy_async_16(tile + nb_attention_at<HD>(row + n * STEP, chunk), from, n * STEP < left ? 16 : 0);
            from += STEP * stride;
        }
    } else {
#pragma unroll
        for (int n = 0; n < (ALL + THREADS - 1) / THREADS; n++) {
            int i = n * THREADS + thread, row = i / CHUNKS, chunk = i % CHUNKS;
            if (ALL % THREADS == 0 || i < ALL)
                nb_copy_async_16(tile + nb_attention_at<HD>(row, chunk), from + row * stride + chunk * 8,
                    row < rows && chunk * 8 < head_dim ? 16 : 0);
        }
    }
}

/* Where a lane's ldmatrix addresses begin: those of row `row` (a multiple of 8) and of the pair of chunks `pair` on. */
/* The compiler would derive the address of each pair before a loop and keep all of them, 8 registers for one operand at
 * HD = 128, which the sums need. Hence loops carry `half` from round to round, xored with a zero that only the launcher
 * knows. */
template <int HD> struct nb_attention_lane {
    const unsigned char *base;
    int half; /* SWIZZLED: byte offset of its chunk in pair 0, to be xored with the pair's; otherwise part of base */
};

template <int HD>
NB_KERNEL_FUNCTION const unsigned char *nb_attention_address(
    const struct nb_attention_lane<HD> &lane, int row, int pair)
{
    typedef nb_attention_layout<HD> layout;
    return lane.base + row * layout::PITCH + (layout::SWIZZLED ? (pair * 32) ^ lane.half : pair * 32);
}

template <int HD>
NB_KERNEL_FUNCTION struct nb_attention_lane<HD> nb_attention_lane_of(const unsigned char *tile, int row, int half) {
    typedef nb_attention_layout<HD> layout;
    struct nb_attention_lane<HD> lane;
    lane.half = layout::SWIZZLED ? (half ^ (row & 7)) * 16 : 0;
    lane.base = tile + row * layout::PITCH + (layout::SWIZZLED ? 0 : half * 16);
    return lane;
}

/* The same place in a buffer `bytes` on. */
template <int HD>
NB_KERNEL_FUNCTION struct nb_attention_lane<HD> nb_attention_moved(struct nb_attention_lane<HD> lane, int bytes) {
    lane.base += bytes;
    return lane;
}

/* For the left factor (16 rows, 16 columns), and transposed for the right one (16 rows are the sum, 16 columns two
   n-tiles). */
template <int HD>
NB_KERNEL_FUNCTION struct nb_attention_lane<HD> nb_attention_left(const unsigned char *tile, int row) {
    int lane = (int)threadIdx.x % NB_WARP;
    return nb_attention_lane_of<HD>(tile, row + lane % 16, lane / 16);
}

/* For the right factor whose rows are the n-tiles: 16 rows are two of them, 16 columns the sum. */
template <int HD>
NB_KERNEL_FUNCTION struct nb_attention_lane<HD> nb_attention_right(const unsigned char *tile, int row) {
    int lane = (int)threadIdx.x % NB_WARP;
    return nb_attention_lane_of<HD>(tile, row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

/* ---- products, by a warp ---- */

template <int MT, int CT>
NB_KERNEL_FUNCTION void nb_attention_clear(float sum[MT][CT][4])
{
#pragma unroll
    for (int i = 0; i < MT * CT * 4; i++)
        sum[i / 4 / CT][i / 4 % CT][i % 4] = 0.0f;
}

/* sum = a b^T over HD: 16 MT rows of a, 8 NT rows of b. */
template <int HD, int MT, int NT>
NB_KERNEL_FUNCTION void nb_attention_multiply(
    float sum[MT][NT][4], const struct nb_attention_lane<HD> &a, const struct nb_attention_lane<HD> &b)
{
    static_assert(NT % 2 == 0, "two n-tiles a load");
    nb_attention_clear<MT, NT>(sum);
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint32_t left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            nb_ldmatrix_x4(left[m], nb_attention_address(a, m * 16, k));
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            uint32_t right[4];
            nb_ldmatrix_x4(right, nb_attention_address(b, n * 8, k));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                nb_mma_bf16(sum[m][n], left[m], right);
                nb_mma_bf16(sum[m][n + 1], left[m], right + 2);
            }
        }
    }
}

/* sum += w b: w 16 MT rows by 16 KT, b 16 KT rows, of which the columns of the pairs of chunks from `pair` on, 8 CT of
 * them. */
template <int HD, int MT, int KT, int CT>
NB_KERNEL_FUNCTION void nb_attention_accumulate(
    float sum[MT][CT][4], const uint32_t w[MT][KT][4], const struct nb_attention_lane<HD> &b, int pair)
{
    static_assert(CT % 2 == 0, "two n-tiles a load");
#pragma unroll
    for (int k = 0; k < KT; k++)
#pragma unroll
        for (int c = 0; c < CT; c += 2) {
            uint32_t right[4];
            nb_ldmatrix_x4_trans(right, nb_attention_address(b, k * 16, pair + c / 2));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                nb_mma_bf16(sum[m][c], w[m][k], right);
                nb_mma_bf16(sum[m][c + 1], w[m][k], right + 2);
            }
        }
}

/* 16 rows of a product's result as the next one's left factor, rounded to bf16: the two layouts agree register by
 * register. */
template <int NT> NB_KERNEL_FUNCTION void nb_attention_pack(uint32_t w[NT / 2][4], const float sum[NT][4])
{
#pragma unroll
    for (int k = 0; k < NT / 2; k++) {
        w[k][0] = nb_pack_bf16(sum[2 * k][0], sum[2 * k][1]);
        w[k][1] = nb_pack_bf16(sum[2 * k][2], sum[2 * k][3]);
        w[k][2] = nb_pack_bf16(sum[2 * k + 1][0], sum[2 * k + 1][1]);
        w[k][3] = nb_pack_bf16(sum[2 * k + 1][2], sum[2 * k + 1][3]);
    }
}

/* Stores sum * factor as bf16 rows: 16 MT rows of a head, 8 CT columns from `column` on, through the warp's own part of
 * a tile, whose first row is `tile_row`, so that whole rows go out 16 bytes at a time. Rows from `rows` on and columns
 * from head_dim on stay untouched. */
template <int HD, int MT, int CT>
NB_KERNEL_FUNCTION void nb_attention_store(unsigned char *tile, int tile_row, int column, const float sum[MT][CT][4],
    const float factor[MT][2], nb_bf16 *to, int64_t stride, int rows, int head_dim)
{
    int lane = (int)threadIdx.x % NB_WARP, row = tile_row + lane / 4;
    nb_warp_barrier();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int c = 0; c < CT; c++) {
            int at = nb_attention_at<HD>(row + m * 16, column / 8 + c) + lane % 4 * 4;
            *(uint32_t *)(void *)(tile + at) = nb_pack_bf16(sum[m][c][0] * factor[m][0], sum[m][c][1] * factor[m][0]);
            at = nb_attention_at<HD>(row + m * 16 + 8, column / 8 + c) + lane % 4 * 4;
            *(uint32_t *)(void *)(tile + at) = nb_pack_bf16(sum[m][c][2] * factor[m][1], sum[m][c][3] * factor[m][1]);
        }
    nb_warp_barrier();
    for (int i = lane; i < 16 * MT * CT; i += NB_WARP) {
        int r = i / CT, chunk = column / 8 + i % CT;
        if (r < rows && chunk * 8 < head_dim)
            *(uint4 *)(void *)(to + r * stride + chunk * 8) =
                *(const uint4 *)(const void *)(tile + nb_attention_at<HD>(tile_row + r, chunk));
    }
}

/* ---- scores ---- */

/* Within 2^-22, absolute, which is what an exponent needs. */
NB_KERNEL_FUNCTION float nb_attention_tanh(float x)
{
    return 1.0f - 2.0f * nb_reciprocal_fast(nb_exp2_fast(x * (2.0f * NB_ATTENTION_LOG2_E)) + 1.0f);
}

#endif
