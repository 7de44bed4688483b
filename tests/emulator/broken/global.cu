/* Device memory: bounds, alignment, contents, blocks against each other. */
#include <string.h>

#include "broken.h"

NB_CONSTANT float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};

template <bool BROKEN> static __global__ void reads_one_past_the_end(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = m.in[NB_BROKEN_FLOATS - 127 + (BROKEN ? t : t - 1)] * table[t % 4];
}

template <bool BROKEN> static __global__ void writes_one_past_the_end(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[NB_BROKEN_FLOATS - 128 * (1 + blockIdx.x) + (BROKEN ? t + 1 : t)] = m.in[t];
}

/* A vector across the end. */
template <bool BROKEN> static __global__ void vector_across_the_end(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint16_t last[2];
    const unsigned char *end = (const unsigned char *)(m.in + NB_BROKEN_FLOATS) - (BROKEN ? 2 : 4);
    memcpy(last, end, sizeof last);
    m.out[128 * blockIdx.x + t] = (float)last[0];
}

template <bool BROKEN> static __global__ void far_out_of_bounds(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = m.in[BROKEN ? (int64_t)t << 40 | 1 << 30 : t];
}

template <bool BROKEN> static __global__ void before_the_beginning(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = m.in[BROKEN ? t - 1 : t];
}

template <bool BROKEN> static __global__ void memory_of_the_host(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = BROKEN ? m.host[0] : m.in[0];
}

/* Through a pointer to a thread's own variable, but of another thread. */
template <bool BROKEN> static __global__ void variable_of_another_thread(struct nb_broken_memory m)
{
    float **shared = (float **)nb_shared_memory();
    int t = threadIdx.x;
    float own = m.in[t];
    shared[t] = &own;
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = *shared[BROKEN ? t ^ 1 : t];
    nb_block_barrier();
}

template <bool BROKEN> static __global__ void misaligned_vector(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint4 v = *(const uint4 *)(m.in + 4 * t + (BROKEN ? 1 : 0));
    m.out[128 * blockIdx.x + t] = (float)v.y;
}

template <bool BROKEN> static __global__ void misaligned_pair_written(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    *(float2 *)(m.out + 256 * blockIdx.x + 2 * t + (BROKEN ? 1 : 0)) = make_float2(1.0f, (float)t);
}

template <bool BROKEN> static __global__ void misaligned_word(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = *(const float *)((const unsigned char *)m.in + 4 * t + (BROKEN ? 2 : 0));
}

template <bool BROKEN> static __global__ void misaligned_load_once(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint4 v = nb_load_once_16(m.in + 4 * t + (BROKEN ? 2 : 0));
    m.out[128 * blockIdx.x + t] = (float)v.x;
}

template <bool BROKEN> static __global__ void global_never_written(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = (BROKEN ? m.forgotten : m.in)[t];
}

template <bool BROKEN> static __global__ void own_output_never_written(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float *out = m.out + 128 * blockIdx.x;
    if (!BROKEN)
        out[t] = 0.0f;
    out[t] += m.in[t];
}

/* Through device memory within a block: a barrier is needed there, too. */
template <bool BROKEN> static __global__ void missing_barrier_for_global(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float *out = m.out + 128 * blockIdx.x;
    out[t] = m.in[t];
    nb_block_barrier();
    float x = out[127 - t];
    if (!BROKEN)
        nb_block_barrier();
    out[t] = x;
}

template <bool BROKEN> static __global__ void missing_warp_barrier_for_global(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint16_t *out = (uint16_t *)m.out + 128 * blockIdx.x, x = 0;
    out[t] = (uint16_t)t;
    if (!BROKEN)
        nb_warp_barrier();
    for (int i = 0; i < 2; i++)
        x = (uint16_t)(x + out[(t & ~1) + i]);
    if (!BROKEN)
        nb_warp_barrier();
    out[t] = x;
}

/* Every block writes the same words. */
template <bool BROKEN> static __global__ void blocks_write_the_same(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[t + (BROKEN ? 0 : 128 * blockIdx.x)] = m.in[t];
}

/* A block reads what its neighbour writes. */
template <bool BROKEN> static __global__ void reads_another_blocks_words(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float *words = (float *)m.counter;
    if (t == 0)
        words[blockIdx.x] = 1.0f;
    nb_block_barrier();
    m.out[128 * blockIdx.x + t] = words[BROKEN ? (blockIdx.x + 1) % 3 : blockIdx.x];
}

/* Bytes of a word by different blocks, at odd borders: no race, but at one byte. */
template <bool BROKEN> static __global__ void blocks_share_a_byte(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    unsigned char *bytes = (unsigned char *)m.out + 63 * blockIdx.x;
    if (t < (BROKEN ? 64 : 63))
        bytes[t] = (unsigned char)t;
}

/* The last block adds what all wrote: their fence must stand between the words and the count. */
template <bool BROKEN> static __global__ void last_block_without_a_fence(struct nb_broken_memory m)
{
    float *shared = (float *)nb_shared_memory();
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = m.in[t];
    if (!BROKEN)
        nb_device_fence();
    nb_block_barrier();
    if (t == 0)
        shared[0] = nb_atomic_add(m.counter, 1) == gridDim.x - 1 ? 1.0f : 0.0f;
    nb_block_barrier();
    if (shared[0] == 0.0f)
        return;
    nb_device_fence();
    float sum = 0.0f;
    for (unsigned b = 0; b < gridDim.x; b++)
        sum += m.out[128 * b + t];
    m.out[512 + t] = sum;
    if (t == 0)
        *m.counter = 0;
}

/* The first block to count, not the last, reads the others' words. */
template <bool BROKEN> static __global__ void reads_before_the_others_count(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    m.out[128 * blockIdx.x + t] = m.in[t];
    nb_device_fence();
    nb_block_barrier();
    bool last = false;
    if (t == 0)
        last = nb_atomic_add(m.counter, 1) == (BROKEN ? 0 : gridDim.x - 1);
    if (nb_block_any(last))
        for (unsigned b = 0; b < gridDim.x; b++)
            m.out[512 + t] = m.out[128 * b + t];
}

template <bool BROKEN> static __global__ void plain_read_of_a_counter(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    uint32_t seen = 0;
    if (t == 0)
        seen = BROKEN && blockIdx.x == 0 ? *m.counter : nb_atomic_max(m.counter, blockIdx.x);
    m.out[128 * blockIdx.x + t] = (float)(seen > 7);
}

template <bool BROKEN> static __global__ void writes_what_it_reads_once(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float *out = m.out + 128 * blockIdx.x;
    uint4 v = nb_load_once_16(m.in + 4 * t);
    out[t] = (float)v.x;
    nb_block_barrier();
    if (BROKEN)
        v = nb_load_once_16(out + 4 * (t % 32));
    out[t] = (float)v.y;
}

template <bool BROKEN> static __global__ void writes_a_constant(struct nb_broken_memory m)
{
    int t = threadIdx.x;
    float *target = BROKEN ? (float *)(uintptr_t)table : m.out + 128 * blockIdx.x;
    target[t % 4 + (BROKEN ? 0 : t / 4 * 4)] = 1.0f;
}

#define CASE(name, kind) NB_BROKEN(name, kind, kind, 3, 128, 1024)
const struct nb_broken_case nb_broken_global[] = {
    CASE(reads_one_past_the_end, OUT_OF_BOUNDS),
    CASE(writes_one_past_the_end, OUT_OF_BOUNDS),
    CASE(vector_across_the_end, OUT_OF_BOUNDS),
    CASE(far_out_of_bounds, OUT_OF_BOUNDS),
    CASE(before_the_beginning, OUT_OF_BOUNDS),
    CASE(memory_of_the_host, OUT_OF_BOUNDS),
    CASE(variable_of_another_thread, OUT_OF_BOUNDS),
    CASE(misaligned_vector, MISALIGNED),
    CASE(misaligned_pair_written, MISALIGNED),
    CASE(misaligned_word, MISALIGNED),
    CASE(misaligned_load_once, MISALIGNED),
    CASE(global_never_written, UNINITIALIZED),
    CASE(own_output_never_written, UNINITIALIZED),
    CASE(missing_barrier_for_global, RACE),
    NB_BROKEN(missing_warp_barrier_for_global, RACE, UNINITIALIZED, 3, 128, 1024),
    CASE(blocks_write_the_same, RACE),
    CASE(reads_another_blocks_words, RACE),
    CASE(blocks_share_a_byte, RACE),
    CASE(last_block_without_a_fence, RACE),
    NB_BROKEN(reads_before_the_others_count, RACE, UNINITIALIZED, 3, 128, 1024),
    CASE(plain_read_of_a_counter, RACE),
    CASE(writes_what_it_reads_once, RACE),
    CASE(writes_a_constant, OUT_OF_BOUNDS),
};
const int nb_broken_global_count = sizeof nb_broken_global / sizeof *nb_broken_global;
