/* Shared memory: bounds, alignment, contents, bytes of a word, matrices. */
#include "broken.h"

template <bool BROKEN> static __global__ void shared_out_of_bounds(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[BROKEN ? t + 1 : t] = m.in[t];
    m.out[128 * blockIdx.x + t] = m.in[t];
}

template <bool BROKEN> static __global__ void shared_far_out_of_bounds(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    m.out[128 * blockIdx.x + t] = shared[BROKEN ? t - 4000 : t];
}

template <bool BROKEN> static __global__ void shared_never_written(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    if (!BROKEN || t != 77)
        shared[t] = m.in[t];
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = shared[t];
}

/* One byte of the word is missing. */
template <bool BROKEN> static __global__ void byte_never_written(struct nb_broken_memory m)
{
    unsigned char *shared = nb_shared_memory();
    int t = threadIdx.x;
    for (int i = 0; i < (BROKEN ? 3 : 4); i++)
        shared[4 * t + i] = (unsigned char)(t + i);
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = (float)((uint32_t *)shared)[127 - t];
}

template <bool BROKEN> static __global__ void misaligned_in_shared(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = m.in[t];
    nb_block_barrier();
    float4 v = *(const float4 *)(shared + (BROKEN ? 4 * (t % 28) + 2 : 4 * (t % 28)));
    m.out[128 * blockIdx.x + t] = v.x + v.w;
}

/* Four threads write a word's bytes: no race, until one of them takes its neighbour's. */
template <bool BROKEN> static __global__ void race_on_a_byte(struct nb_broken_memory m)
{
    unsigned char *shared = nb_shared_memory();
    int t = threadIdx.x;
    shared[BROKEN && t == 66 ? 3 : t] = (unsigned char)t;
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = (float)(BROKEN ? shared[t % 64] : shared[127 - t]);
}

/* Two halves of a word: each thread reads its own while the other is written. */
template <bool BROKEN> static __global__ void race_on_a_half(struct nb_broken_memory m)
{
    uint16_t *shared = (uint16_t *)nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = (uint16_t)t;
    uint32_t x = shared[t];
    x += shared[BROKEN ? t ^ 1 : t];
    shared[t] = (uint16_t)x;
    nb_warp_barrier();
    m.out[128 * blockIdx.x + t] = (float)((const uint32_t *)shared)[t / 2];
}

template <bool BROKEN> static __global__ void word_over_others_bytes(struct nb_broken_memory m)
{
    unsigned char *shared = nb_shared_memory();
    int t = threadIdx.x;
    shared[t] = (unsigned char)t;
    if (!BROKEN)
        nb_block_barrier();
    if (t < 32)
        ((uint32_t *)shared)[t] = (uint32_t)t;
    m.out[128 * blockIdx.x + t] = 0.0f;
}

static inline __device__ void fill_rows(float *shared, const float *in, int t)
{
    shared[t] = in[t];
    shared[t + 128] = in[t + 128];
    nb_block_barrier();
}

template <bool BROKEN> static __global__ void misaligned_matrix(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    uint32_t r[4];
    fill_rows(shared, m.in, t);
    nb_ldmatrix_x4(r, shared + 4 * (t % 32) + (BROKEN && t == 100 ? 1 : 0));
    m.out[128 * blockIdx.x + t] = (float)r[0];
}

/* The lane that gives a row's address wrote it; others receive it. */
template <bool BROKEN> static __global__ void matrix_without_a_warp_barrier(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    uint32_t r[4];
    *(float4 *)(shared + 4 * t) = make_float4(1.0f, 2.0f, 3.0f, (float)t);
    if (!BROKEN)
        nb_warp_barrier();
    nb_ldmatrix_x4(r, shared + 4 * t);
    m.out[128 * blockIdx.x + t] = (float)r[3];
}

template <bool BROKEN> static __global__ void matrix_never_written(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    uint32_t r[2];
    fill_rows(shared, m.in, t);
    nb_ldmatrix_x2_trans(r, shared + (BROKEN ? 256 : 0) + 4 * (t % 32));
    m.out[128 * blockIdx.x + t] = (float)r[0];
}

template <bool BROKEN> static __global__ void matrix_in_global_memory(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    uint32_t r[4];
    fill_rows(shared, m.in, t);
    nb_ldmatrix_x4(r, (BROKEN ? m.in : shared) + 4 * (t % 32));
    m.out[128 * blockIdx.x + t] = (float)r[0];
}

#define CASE(name, kind, bytes) NB_BROKEN(name, kind, kind, 3, 128, bytes)
const struct nb_broken_case nb_broken_shared[] = {
    CASE(shared_out_of_bounds, OUT_OF_BOUNDS, 512),
    CASE(shared_far_out_of_bounds, OUT_OF_BOUNDS, 512),
    CASE(shared_never_written, UNINITIALIZED, 512),
    CASE(byte_never_written, UNINITIALIZED, 512),
    CASE(misaligned_in_shared, MISALIGNED, 512),
    CASE(race_on_a_byte, RACE, 128),
    NB_BROKEN(race_on_a_half, RACE, UNINITIALIZED, 3, 128, 256),
    CASE(word_over_others_bytes, RACE, 128),
    CASE(misaligned_matrix, MISALIGNED, 2048),
    CASE(matrix_without_a_warp_barrier, RACE, 2048),
    CASE(matrix_never_written, UNINITIALIZED, 2048),
    CASE(matrix_in_global_memory, OUT_OF_BOUNDS, 2048),
};
const int nb_broken_shared_count = sizeof nb_broken_shared / sizeof *nb_broken_shared;
