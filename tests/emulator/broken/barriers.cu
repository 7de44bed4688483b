/* Missing, early and divergent barriers. */
#include "broken.h"

template <bool BROKEN> static __global__ void missing_block_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    if (!BROKEN)
        nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[(t + 32) % 128];
}

template <bool BROKEN> static __global__ void missing_warp_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    if (!BROKEN)
        nb_warp_barrier();
    m.out[128 * blockIdx.x + t] = shared[t ^ 1];
}

/* A shuffle brings lanes together; it orders no memory. */
template <bool BROKEN> static __global__ void shuffle_for_a_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    float other = nb_shuffle_xor(m.in[t], 1);
    if (!BROKEN)
        nb_warp_barrier();
    m.out[128 * blockIdx.x + t] = shared[t ^ 1] + other;
}

/* A warp's barrier is none for its neighbours. */
template <bool BROKEN> static __global__ void warp_barrier_for_a_block_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    if (BROKEN)
        nb_warp_barrier();
    else
        nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[127 - t];
}

template <bool BROKEN> static __global__ void written_while_others_read(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    nb_block_barrier();
    float x = shared[(t + 64) % 128];
    if (!BROKEN)
        nb_block_barrier();
    shared[t] = x + 1.0f;
    m.out[128 * blockIdx.x + t] = shared[t];
}

/* All lanes write the same value: still two writers. */
template <bool BROKEN> static __global__ void several_writers(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    if (BROKEN || t == 0)
        shared[0] = 1.0f;
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[0];
}

template <bool BROKEN> static __global__ void half_a_warp_at_the_barrier(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    if (!BROKEN || t % 32 < 16)
        nb_block_barrier();
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void a_warp_leaves_before_the_barrier(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    if (BROKEN && t < 32)
        return;
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void divergent_shuffle(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float x = m.in[t];
    if (!BROKEN || t % 32 < 16)
        x += nb_shuffle_xor(x, 1);
    m.out[128 * blockIdx.x + t] = x;
}

template <bool BROKEN> static __global__ void lanes_at_different_operations(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint32_t x = 0;
    if (BROKEN && t % 2)
        x = nb_ballot(true);
    else
        x = nb_shuffle_xor_u32((uint32_t)t, 1);
    m.out[128 * blockIdx.x + t] = (float)x;
}

template <bool BROKEN> static __global__ void a_lane_waits_for_its_warp_elsewhere(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    if (BROKEN && t % 32 == 5)
        nb_block_barrier();
    else
        nb_warp_barrier();
    if (!BROKEN || t % 32 != 5)
        nb_block_barrier();
    else
        nb_warp_barrier();
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void different_block_barriers(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    if (BROKEN && t >= 32)
        nb_block_any(false);
    else
        nb_block_barrier();
    m.out[128 * blockIdx.x + t] = m.in[t];
}

#define CASE(name, kind) NB_BROKEN(name, kind, kind, 3, 128, 1024)
const struct nb_broken_case nb_broken_barriers[] = {
    NB_BROKEN(missing_block_barrier, RACE, UNINITIALIZED, 3, 128, 1024),
    NB_BROKEN(missing_warp_barrier, RACE, UNINITIALIZED, 3, 128, 1024),
    CASE(shuffle_for_a_barrier, RACE),
    NB_BROKEN(warp_barrier_for_a_block_barrier, RACE, UNINITIALIZED, 3, 128, 1024),
    CASE(written_while_others_read, RACE),
    CASE(several_writers, RACE),
    CASE(half_a_warp_at_the_barrier, DIVERGENT_BARRIER),
    CASE(a_warp_leaves_before_the_barrier, DIVERGENT_BARRIER),
    CASE(divergent_shuffle, DIVERGENT_BARRIER),
    CASE(lanes_at_different_operations, DIVERGENT_BARRIER),
    CASE(a_lane_waits_for_its_warp_elsewhere, DIVERGENT_BARRIER),
    CASE(different_block_barriers, DIVERGENT_BARRIER),
};
const int nb_broken_barriers_count = sizeof nb_broken_barriers / sizeof *nb_broken_barriers;
