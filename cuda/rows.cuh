/* What the ops on rows share. They move 16 bytes a thread and access: a "pack" of eight bf16; a row is width / 8 packs.
 * Private to cuda/. Three layouts:
 *
 *   reduced rows  A warp a row, four warps a block, where 32 threads hold the row; else a block a row. The row stays in
 *                 registers between its sum and its result, so device memory is read once. How many threads depends on
 *                 the width alone, so a row's bits do too.
 *   flat          [rows, width] without gaps is one array of packs. A thread takes NB_FLAT_PACKS of them, a block's
 *                 width apart, and loads all of them before it computes: 2 packs of each of two inputs are 64 bytes a
 *                 thread under way, 64 to 128 KB a multiprocessor. An H200 needs about 30 KB (4.8 TB/s, 132
 *                 multiprocessors, 0.8 microseconds).
 *   copied rows   A power of two of threads a row, each NB_COPY_PACKS packs at a time; narrow rows share a block. */
#ifndef NB_CUDA_ROWS_CUH
#define NB_CUDA_ROWS_CUH

#include "cuda/device.cuh"

enum { NB_PACK = 8, NB_FLAT_THREADS = 256, NB_FLAT_PACKS = 2, NB_COPY_THREADS = 256, NB_COPY_PACKS = 4 };
enum { NB_ROW_WARPS = 4, NB_ROW_THREADS = NB_ROW_WARPS * NB_WARP };

/* ---- launching ---- */

/* Threads for a row of which each keeps `each` packs: whole warps. */
static inline int nb_row_threads(int width, int each)
{
    int packs = width / NB_PACK, warps = (packs + each * NB_WARP - 1) / (each * NB_WARP);
    return warps * NB_WARP;
}

/* A warp a row. */
static inline struct nb_launch nb_launch_warp_rows(int rows_max)
{
    return (struct nb_launch){dim3(nb_blocks_of(rows_max, NB_ROW_WARPS)), NB_ROW_THREADS, 0};
}

/* A block of `threads` a row, with shared memory for nb_row_sum twice, or nb_row_sum_pair. */
static inline struct nb_launch nb_launch_block_rows(int rows_max, int threads)
{
    return (struct nb_launch){dim3((unsigned)rows_max), threads, 2 * NB_WARP * (int)sizeof(float)};
}

/* [rows_max, width] as packs. */
static inline struct nb_launch nb_launch_flat(int rows_max, int width)
{
    int64_t packs = (int64_t)rows_max * (width / NB_PACK);
    return (struct nb_launch){dim3(nb_blocks_of(packs, NB_FLAT_THREADS * NB_FLAT_PACKS)), NB_FLAT_THREADS, 0};
}

/* Threads a row, as their logarithm: as many as have NB_COPY_PACKS packs to copy, within a block. */
static inline int nb_copy_shift(int width)
{
    int shift = 0;
    while (1 << shift < NB_COPY_THREADS && NB_COPY_PACKS << shift < width / NB_PACK)
        shift++;
    return shift;
}

/* Copied rows; `times` the same grid, along y. */
static inline struct nb_launch nb_launch_copy(int rows_max, int shift, int times)
{
    unsigned blocks = nb_blocks_of(rows_max, NB_COPY_THREADS >> shift);
    return (struct nb_launch){dim3(blocks, (unsigned)times), NB_COPY_THREADS, 0};
}

/* ---- in kernels ---- */

/* Row `row` of [rows, packs] packs. */
NB_KERNEL_FUNCTION uint4 *nb_row_packs(nb_dptr base, int64_t row, int packs)
{
    return (uint4 *)(uintptr_t)base.address + row * packs;
}

NB_KERNEL_FUNCTION const struct nb_slot *nb_slot_at(nb_dptr slot)
{
    return (const struct nb_slot *)(uintptr_t)slot.address;
}

/* Where a thread stands in its row. */
struct nb_row_place {
    int64_t row;
    int lane, threads; /* takes packs lane, lane + threads, ... */
};

template <bool WARP> NB_KERNEL_FUNCTION struct nb_row_place nb_row_place_of_thread(void)
{
    if (WARP)
        return {(int64_t)blockIdx.x * NB_ROW_WARPS + threadIdx.x / NB_WARP, (int)(threadIdx.x % NB_WARP), NB_WARP};
    return {(int64_t)blockIdx.x, (int)threadIdx.x, (int)blockDim.x};
}

/* Sums over the row's threads, the same in each: a butterfly in each warp, then one over the warps' sums. `sums`
 * [NB_WARP] (of a pair [2 * NB_WARP]) in shared memory is written here and may not be used again. */
template <bool WARP> NB_KERNEL_FUNCTION float nb_row_sum(float x, float *sums)
{
    x = nb_warp_sum(x);
    if (WARP)
        return x;
    int lane = (int)(threadIdx.x % NB_WARP), warps = (int)(blockDim.x / NB_WARP);
    if (lane == 0)
        sums[threadIdx.x / NB_WARP] = x;
    nb_block_barrier();
    return nb_warp_sum(lane < warps ? sums[lane] : 0.0f);
}

template <bool WARP> NB_KERNEL_FUNCTION float2 nb_row_sum_pair(float2 x, float *sums)
{
    x = make_float2(nb_warp_sum(x.x), nb_warp_sum(x.y));
    if (WARP)
        return x;
    int lane = (int)(threadIdx.x % NB_WARP), warps = (int)(blockDim.x / NB_WARP);
    if (lane == 0) {
        sums[threadIdx.x / NB_WARP] = x.x;
        sums[NB_WARP + threadIdx.x / NB_WARP] = x.y;
    }
    nb_block_barrier();
    return make_float2(
        nb_warp_sum(lane < warps ? sums[lane] : 0.0f), nb_warp_sum(lane < warps ? sums[NB_WARP + lane] : 0.0f));
}

/* Of copied rows. */
NB_KERNEL_FUNCTION struct nb_row_place nb_copy_place_of_thread(int shift)
{
    int thread = (int)threadIdx.x, threads = 1 << shift;
    return {(int64_t)blockIdx.x * (NB_COPY_THREADS >> shift) + (thread >> shift), thread & (threads - 1), threads};
}

/* One row of packs; the buffers are apart. */
NB_KERNEL_FUNCTION void nb_copy_row(const uint4 *from, uint4 *to, int packs, const struct nb_row_place &place)
{
    for (int first = place.lane; first < packs; first += NB_COPY_PACKS * place.threads) {
        uint4 pack[NB_COPY_PACKS];
#pragma unroll
        for (int k = 0; k < NB_COPY_PACKS; k++)
            if (first + k * place.threads < packs)
                pack[k] = from[first + k * place.threads];
#pragma unroll
        for (int k = 0; k < NB_COPY_PACKS; k++)
            if (first + k * place.threads < packs)
                to[first + k * place.threads] = pack[k];
    }
}

/* Pack k of this thread within the flat array. */
NB_KERNEL_FUNCTION int64_t nb_flat_pack(int k)
{
    return (int64_t)blockIdx.x * (NB_FLAT_THREADS * NB_FLAT_PACKS) + k * NB_FLAT_THREADS + (int)threadIdx.x;
}

#endif
