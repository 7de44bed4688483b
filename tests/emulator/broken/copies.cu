/* Asynchronous copies. 128 threads copy 16 bytes each. */
#include "broken.h"

static inline __device__ void copy_own(float *shared, const float *from, int t)
{
    nb_copy_async_16(shared + 4 * t, from + 4 * t, 16);
    nb_copy_async_commit();
}

template <bool BROKEN> static __global__ void missing_wait(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    if (!BROKEN)
        nb_copy_async_wait<0>();
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[t];
    nb_copy_async_wait<0>();
}

template <bool BROKEN> static __global__ void waits_for_one_group_too_few(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    copy_own(shared + 512, m.in + 512, t);
    nb_copy_async_wait<BROKEN ? 1 : 0>();
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[t] + shared[512 + t];
    nb_copy_async_wait<0>();
}

/* A wait is for groups: what was not committed it does not wait for. */
template <bool BROKEN> static __global__ void missing_commit(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    nb_copy_async_16(shared + 4 * t, m.in + 4 * t, 16);
    if (!BROKEN)
        nb_copy_async_commit();
    nb_copy_async_wait<0>();
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[t];
}

template <bool BROKEN> static __global__ void missing_barrier_after_the_wait(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    nb_copy_async_wait<0>();
    if (!BROKEN)
        nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[127 - t];
}

/* The barrier comes before the wait: the own copies have landed, the others' may not have. */
template <bool BROKEN> static __global__ void barrier_before_the_wait(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    if (BROKEN) {
        nb_block_barrier();
        nb_copy_async_wait<0>();
    } else {
        nb_copy_async_wait<0>();
        nb_block_barrier();
    }
    m.out[128 * blockIdx.x + t] = shared[127 - t];
}

template <bool BROKEN> static __global__ void buffer_reused_too_early(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int i = 0; i < 2; i++) {
        copy_own(shared, m.in + i * 512, t);
        nb_copy_async_wait<0>();
        nb_block_barrier();
        sum += shared[(t * 5 + 64) % 512];
        if (!BROKEN)
            nb_block_barrier();
    }
    m.out[128 * blockIdx.x + t] = sum;
}

template <bool BROKEN> static __global__ void writes_under_a_copy(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    if (BROKEN)
        shared[4 * t] = 0.0f;
    nb_copy_async_wait<0>();
    m.out[128 * blockIdx.x + t] = shared[4 * t];
}

template <bool BROKEN> static __global__ void exits_with_copies_under_way(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, m.in, t);
    m.out[128 * blockIdx.x + t] = m.in[t];
    if (!BROKEN)
        nb_copy_async_wait<0>();
}

template <bool BROKEN> static __global__ void uninitialized_through_a_copy(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    copy_own(shared, BROKEN ? m.forgotten : m.in, t);
    nb_copy_async_wait<0>();
    m.out[128 * blockIdx.x + t] = shared[4 * t];
}

/* Without a valid byte, the source is not read, wherever it points; the destination is zero. */
template <bool BROKEN> static __global__ void copy_from_outside(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    bool inside = t < 100;
    nb_copy_async_16(
        shared + 4 * t, inside ? m.in + 4 * t : m.in + NB_BROKEN_FLOATS + 4 * (t - 100), inside || BROKEN ? 16 : 0);
    nb_copy_async_commit();
    nb_copy_async_wait<0>();
    m.out[128 * blockIdx.x + t] = shared[4 * t + 3];
}

template <bool BROKEN> static __global__ void misaligned_copy(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    if (BROKEN)
        nb_copy_async_16(shared + 4 * t, m.in + 4 * t + 1, 16);
    else
        nb_copy_async_4(shared + 4 * t, m.in + 4 * t + 1, 4);
    nb_copy_async_commit();
    nb_copy_async_wait<0>();
    m.out[128 * blockIdx.x + t] = shared[4 * t];
}

#define CASE(name, kind) NB_BROKEN(name, kind, kind, 3, 128, 4096)
const struct nb_broken_case nb_broken_copies[] = {
    CASE(missing_wait, UNINITIALIZED),
    CASE(waits_for_one_group_too_few, UNINITIALIZED),
    CASE(missing_commit, UNINITIALIZED),
    NB_BROKEN(missing_barrier_after_the_wait, RACE, UNINITIALIZED, 3, 128, 4096),
    NB_BROKEN(barrier_before_the_wait, RACE, UNINITIALIZED, 3, 128, 4096),
    NB_BROKEN(buffer_reused_too_early, RACE, UNINITIALIZED, 3, 128, 4096),
    CASE(writes_under_a_copy, RACE),
    CASE(exits_with_copies_under_way, BAD_INSTRUCTION),
    CASE(uninitialized_through_a_copy, UNINITIALIZED),
    CASE(copy_from_outside, OUT_OF_BOUNDS),
    CASE(misaligned_copy, MISALIGNED),
};
const int nb_broken_copies_count = sizeof nb_broken_copies / sizeof *nb_broken_copies;
