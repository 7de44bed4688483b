/* Running sums and minima over a block, in a fixed order. Every thread of the block calls. */
#ifndef NB_CUDA_BLOCK_SCAN_CUH
#define NB_CUDA_BLOCK_SCAN_CUH

#include "cuda/device.cuh"

/* The sum of x over this thread and all before it. `slots`: a T for each thread, in shared memory; the call begins
 * and ends with a barrier. */
template <typename T> NB_KERNEL_FUNCTION T nb_block_scan(T x, T *slots)
{
    int thread = (int)threadIdx.x, threads = (int)blockDim.x;
    nb_block_barrier();
    slots[thread] = x;
    nb_block_barrier();
    for (int distance = 1; distance < threads; distance *= 2) {
        T before = thread >= distance ? slots[thread - distance] : (T)0;
        nb_block_barrier();
        x += before;
        slots[thread] = x;
        nb_block_barrier();
    }
    return x;
}

/* The least x, the same in every thread. `slots`: 32 words of shared memory; the call begins and ends with a
 * barrier. */
NB_KERNEL_FUNCTION uint32_t nb_block_min(uint32_t x, uint32_t *slots)
{
    int lane = (int)threadIdx.x % NB_WARP, warps = (int)blockDim.x / NB_WARP;
    for (int mask = 16; mask > 0; mask /= 2) {
        uint32_t other = nb_shuffle_xor_u32(x, mask);
        x = other < x ? other : x;
    }
    nb_block_barrier();
    if (lane == 0)
        slots[threadIdx.x / NB_WARP] = x;
    nb_block_barrier();
    for (int warp = 0; warp < warps; warp++)
        x = slots[warp] < x ? slots[warp] : x;
    nb_block_barrier();
    return x;
}

#endif
