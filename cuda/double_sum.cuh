/* Sums in double precision over a warp and a block, in a fixed order, for the few results that stand for a whole
 * step. */
#ifndef NB_CUDA_DOUBLE_SUM_CUH
#define NB_CUDA_DOUBLE_SUM_CUH

#include "cuda/device.cuh"

NB_KERNEL_FUNCTION double nb_shuffle_xor_double(double value, int mask)
{
    uint32_t half[2];
    memcpy(half, &value, sizeof half);
    half[0] = nb_shuffle_xor_u32(half[0], mask);
    half[1] = nb_shuffle_xor_u32(half[1], mask);
    memcpy(&value, half, sizeof value);
    return value;
}

/* The sum over the warp, the same in every lane: a butterfly. */
NB_KERNEL_FUNCTION double nb_warp_sum_double(double x)
{
    for (int mask = 16; mask > 0; mask /= 2)
        x += nb_shuffle_xor_double(x, mask);
    return x;
}

/* The sum over the block of up to 1,024 threads, the same in each. `slots`: 32 doubles of shared memory; the call
 * begins and ends with a barrier, so they may be used again. Two butterflies, not one thread's loop: GeForce cards
 * make two additions a clock. */
NB_KERNEL_FUNCTION double nb_block_sum_double(double x, double *slots)
{
    int lane = (int)threadIdx.x % NB_WARP, warp = (int)threadIdx.x / NB_WARP, warps = (int)blockDim.x / NB_WARP;
    x = nb_warp_sum_double(x);
    nb_block_barrier();
    if (lane == 0)
        slots[warp] = x;
    nb_block_barrier();
    if (warp == 0)
        x = nb_warp_sum_double(lane < warps ? slots[lane] : 0.0);
    if (threadIdx.x == 0)
        slots[0] = x;
    nb_block_barrier();
    double sum = slots[0];
    nb_block_barrier();
    return sum;
}

#endif
