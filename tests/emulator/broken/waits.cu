/* Named barriers and mbarriers. */
#include "broken.h"

/* Two warps produce, two consume. */
template <bool BROKEN> static __global__ void producer_goes_on_writing(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    if (t < 64) {
        shared[t] = m.in[t];
        nb_named_arrive(1, 128);
        if (BROKEN)
            shared[t] = 0.0f;
        nb_named_barrier(2, 128);
        shared[t] = 1.0f;
    } else {
        nb_named_barrier(1, 128);
        m.out[128 * blockIdx.x + t] = shared[t - 64];
        nb_named_arrive(2, 128);
    }
}

template <bool BROKEN> static __global__ void arrives_before_it_has_read(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    if (t < 64) {
        shared[t] = m.in[t];
        nb_named_arrive(1, 128);
        nb_named_barrier(2, 128);
        shared[t] = 1.0f;
    } else {
        nb_named_barrier(1, 128);
        if (BROKEN)
            nb_named_arrive(2, 128);
        m.out[128 * blockIdx.x + t] = shared[t - 64];
        if (!BROKEN)
            nb_named_arrive(2, 128);
    }
}

/* Warps 0 and 1 are through barrier 1; warp 2 was not there. */
template <bool BROKEN> static __global__ void reads_without_the_named_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    if (t < (BROKEN ? 64 : 96))
        nb_named_barrier(1, BROKEN ? 64 : 96);
    if (t < 96)
        m.out[128 * blockIdx.x + t] = shared[(t + 32) % 96];
}

template <bool BROKEN> static __global__ void too_few_at_the_named_barrier(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    if (t < 64)
        nb_named_barrier(3, BROKEN ? 96 : 64);
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void a_barrier_that_does_not_exist(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    nb_named_barrier(BROKEN ? 16 : 15, 128);
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void mbarrier_that_never_completes(struct nb_broken_memory m)
{
    uint64_t *barrier = (uint64_t *)nb_shared_memory();
    int t = threadIdx.x;
    if (t == 0)
        nb_mbarrier_init(barrier, BROKEN ? 65 : 64);
    nb_block_barrier();
    if (t < 64)
        nb_mbarrier_arrive(barrier);
    else
        nb_mbarrier_wait(barrier, 0);
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void mbarrier_without_a_barrier_after_init(struct nb_broken_memory m)
{
    uint64_t *barrier = (uint64_t *)nb_shared_memory();
    int t = threadIdx.x;
    if (t == 0)
        nb_mbarrier_init(barrier, 128);
    if (!BROKEN)
        nb_block_barrier();
    nb_mbarrier_arrive(barrier);
    nb_mbarrier_wait(barrier, 0);
    m.out[128 * blockIdx.x + t] = m.in[t];
}

/* A ring of one stage that is filled twice. */
template <bool BROKEN> static __global__ void mbarrier_ring(struct nb_broken_memory m)
{
    uint64_t *full = (uint64_t *)nb_shared_memory(), *empty = full + 1;
    float *stage = (float *)(full + 2);
    int t = threadIdx.x;
    if (t == 0) {
        nb_mbarrier_init(full, 32);
        nb_mbarrier_init(empty, 96);
    }
    nb_block_barrier();
    float sum = 0.0f;
    for (int i = 0; i < 2; i++) {
        if (t < 32) {
            if (i > 0 && !BROKEN)
                nb_mbarrier_wait(empty, (i - 1) & 1);
            stage[t] = m.in[i * 32 + t];
            nb_mbarrier_arrive(full);
        } else {
            nb_mbarrier_wait(full, i & 1);
            sum += stage[t % 32];
            nb_mbarrier_arrive(empty);
        }
    }
    m.out[128 * blockIdx.x + t] = sum;
}

/* Filled by asynchronous copies, whose landing arrives. */
template <bool BROKEN> static __global__ void copies_arrive_at_an_mbarrier(struct nb_broken_memory m)
{
    uint64_t *full = (uint64_t *)nb_shared_memory();
    float *stage = (float *)(full + 2);
    int t = threadIdx.x;
    if (t == 0)
        nb_mbarrier_init(full, 32);
    nb_block_barrier();
    if (t < 32) {
        nb_copy_async_16(stage + 4 * t, m.in + 4 * t, 16);
        if (BROKEN)
            nb_mbarrier_arrive(full); /* says that it was done, not that it has landed */
        else
            nb_copy_async_arrive(full);
    }
    nb_mbarrier_wait(full, 0);
    m.out[128 * blockIdx.x + t] = stage[t];
    if (t < 32) {
        nb_copy_async_commit();
        nb_copy_async_wait<0>();
    }
}

#define CASE(name, kind) NB_BROKEN(name, kind, kind, 3, 128, 1024)
const struct nb_broken_case nb_broken_waits[] = {
    CASE(producer_goes_on_writing, RACE),
    CASE(arrives_before_it_has_read, RACE),
    NB_BROKEN(reads_without_the_named_barrier, RACE, UNINITIALIZED, 3, 128, 1024),
    CASE(too_few_at_the_named_barrier, DEADLOCK),
    CASE(a_barrier_that_does_not_exist, BAD_INSTRUCTION),
    CASE(mbarrier_that_never_completes, DEADLOCK),
    NB_BROKEN(mbarrier_without_a_barrier_after_init, RACE, BAD_INSTRUCTION, 3, 128, 1024),
    NB_BROKEN(mbarrier_ring, RACE, DEADLOCK, 3, 128, 1024),
    CASE(copies_arrive_at_an_mbarrier, UNINITIALIZED),
};
const int nb_broken_waits_count = sizeof nb_broken_waits / sizeof *nb_broken_waits;
