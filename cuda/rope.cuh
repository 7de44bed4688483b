/* What the rotation and its gradient share: how heads lie on threads, and the rotation's operands. Private to cuda/.
 *
 * A thread has a piece of a head's lower half and the same piece of its upper half, so that a pair meets in one thread:
 * N elements each, 8 (16 bytes) where half of head_dim is a multiple of 8, else 4. `lanes` threads, a power of two,
 * make a head; the rest of a warp takes the next heads of the same token. A warp takes NB_ROPE_HEADS heads a thread of
 * one token and loads sines and cosines once for all of them; two heads' loads are under way at a time, 64 bytes a
 * thread. A block is four tokens; the grid's second dimension is chunks of heads. */
#ifndef NB_CUDA_ROPE_CUH
#define NB_CUDA_ROPE_CUH

#include "cuda/rows.cuh"

enum { NB_ROPE_HEADS = 4, NB_ROPE_STEP = 2, NB_ROPE_CHUNKS_MAX = 65535 };

/* Elements a piece. */
static inline int nb_rope_piece(int head_dim)
{
    return head_dim % 16 == 0 ? 8 : 4;
}

/* Threads a head: 1 to 32, head_dim being 256 at most (124 at most where pieces are of 4). */
static inline int nb_rope_lanes(int head_dim)
{
    int lanes = 1;
    while (lanes * nb_rope_piece(head_dim) < head_dim / 2)
        lanes *= 2;
    return lanes;
}

static inline struct nb_launch nb_launch_rope(int tokens_max, int heads, int lanes)
{
    unsigned chunks = nb_blocks_of(heads, NB_WARP / lanes * NB_ROPE_HEADS);
    chunks = chunks < (unsigned)NB_ROPE_CHUNKS_MAX ? chunks : (unsigned)NB_ROPE_CHUNKS_MAX;
    return (struct nb_launch){dim3(nb_blocks_of(tokens_max, NB_ROW_WARPS), chunks), NB_ROW_THREADS, 0};
}

/* ---- in kernels ---- */

/* Where a thread stands. */
struct nb_rope_place {
    int64_t token;
    int head, heads; /* its first of a warp's heads; as many heads a warp takes at a time */
    int at;          /* first element of its piece within half a head */
    bool active;     /* that piece exists */
};

template <int N> NB_KERNEL_FUNCTION struct nb_rope_place nb_rope_place_of_thread(int lanes, int head_dim)
{
    int lane = (int)(threadIdx.x % NB_WARP), at = (lane & (lanes - 1)) * N;
    return {(int64_t)blockIdx.x * NB_ROW_WARPS + threadIdx.x / NB_WARP, lane / lanes, NB_WARP / lanes, at,
        at < head_dim / 2};
}

/* N bf16 as they lie in memory. */
template <int N> struct nb_piece {
    uint32_t pair[N / 2];
};

template <int N> NB_KERNEL_FUNCTION struct nb_piece<N> nb_piece_load(const nb_bf16 *from) {
    struct nb_piece<N> p;
    if constexpr (N == 8) {
        uint4 v = *(const uint4 *)from;
        p.pair[0] = v.x, p.pair[1] = v.y, p.pair[2] = v.z, p.pair[3] = v.w;
    } else {
        uint2 v = *(const uint2 *)from;
        p.pair[0] = v.x, p.pair[1] = v.y;
    }
    return p;
}

template <int N>
NB_KERNEL_FUNCTION struct nb_piece<N> nb_piece_zero(void) {
    struct nb_piece<N> p;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        p.pair[i] = 0;
    return p;
}

template <int N>
NB_KERNEL_FUNCTION void nb_piece_unpack(const struct nb_piece<N> &p, float x[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        x[2 * i] = nb_bf16_low(p.pair[i]);
        x[2 * i + 1] = nb_bf16_high(p.pair[i]);
    }
}

template <int N> NB_KERNEL_FUNCTION void nb_piece_store(nb_bf16 *to, const float x[N])
{
    if constexpr (N == 8)
        *(uint4 *)to = nb_pack8(x);
    else
        *(uint2 *)to = make_uint2(nb_pack_bf16(x[0], x[1]), nb_pack_bf16(x[2], x[3]));
}

/* N values of a table's row. */
template <int N> NB_KERNEL_FUNCTION void nb_rope_angles(nb_dptr table, int64_t at, float angle[N])
{
    const float4 *from = (const float4 *)((const float *)(uintptr_t)table.address + at);
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        float4 v = from[i];
        angle[4 * i] = v.x, angle[4 * i + 1] = v.y, angle[4 * i + 2] = v.z, angle[4 * i + 3] = v.w;
    }
}

/* The sum over a head's threads, the same in each; all lanes of the warp take part. */
NB_KERNEL_FUNCTION float nb_rope_sum(float x, int lanes)
{
    for (int mask = lanes / 2; mask > 0; mask /= 2)
        x += nb_shuffle_xor(x, mask);
    return x;
}

#endif
