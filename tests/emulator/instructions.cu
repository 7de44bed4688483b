#include "emulator/instructions.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cuda/device.cuh"

enum { WORDS = 4096, THREADS = 128, WARPS = THREADS / 32, SHARED_BYTES = 16384 };

/* in: [WORDS] random bits, or what the test fills in; out: [WORDS], zero before. Both also as fp32. */
struct memory {
    const uint32_t *in;
    uint32_t *out;
    const float *in_float;
    float *out_float;
};

struct test {
    const char *name;
    void (*kernel)(struct memory);
    void (*fill)(uint32_t *in); /* NULL: random bits */
    void (*expect)(const uint32_t *in, uint32_t *out);
    int blocks;
    int ulps; /* 0: the same bits; else the results are fp32, and may be that far away */
};

static void fill_with_floats(uint32_t *in)
{
    for (int i = 0; i < WORDS; i++)
        in[i] = nb_float_bits((float)(int32_t)in[i] * 0x1p-24f);
}

/* ---- the block ---- */

static __global__ void block_barrier_kernel(struct memory m)
{
    uint32_t *shared = (uint32_t *)nb_shared_memory();
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++) {
        shared[t] = m.in[t + i];
        nb_block_barrier();
        m.out[i * THREADS + t] = shared[THREADS - 1 - t];
        nb_block_barrier();
    }
}

static void block_barrier_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 8; i++)
        for (int t = 0; t < THREADS; t++)
            out[i * THREADS + t] = in[THREADS - 1 - t + i];
}

static __global__ void block_any_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++)
        m.out[i * THREADS + t] = nb_block_any(t == 19 * i && i % 3 != 1);
}

static void block_any_expect(const uint32_t *in, uint32_t *out)
{
    (void)in;
    for (int i = 0; i < 8; i++)
        for (int t = 0; t < THREADS; t++)
            out[i * THREADS + t] = 19 * i < THREADS && i % 3 != 1;
}

/* Warp 0 fills a buffer that the others add up, round after round. */
static __global__ void named_barrier_kernel(struct memory m)
{
    uint32_t *shared = (uint32_t *)nb_shared_memory();
    int t = threadIdx.x;
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) {
        if (t < 32) {
            if (i > 0)
                nb_named_barrier(2, THREADS);
            shared[t] = m.in[32 * i + t];
            nb_named_arrive(1, THREADS);
        } else {
            nb_named_barrier(1, THREADS);
            sum += shared[(t + i) % 32];
            if (i < 15)
                nb_named_arrive(2, THREADS);
        }
    }
    m.out[t] = sum;
}

static void named_barrier_expect(const uint32_t *in, uint32_t *out)
{
    for (int t = 32; t < THREADS; t++)
        for (int i = 0; i < 16; i++)
            out[t] += in[32 * i + (t + i) % 32];
}

static __global__ void warp_barrier_kernel(struct memory m)
{
    uint32_t *shared = (uint32_t *)nb_shared_memory() + threadIdx.x / 32 * 32;
    int t = threadIdx.x, lane = t % 32;
    for (int i = 0; i < 8; i++) {
        shared[lane] = m.in[i * THREADS + t];
        nb_warp_barrier();
        m.out[i * THREADS + t] = shared[31 - lane];
        nb_warp_barrier();
    }
}

static void warp_barrier_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 8 * THREADS; i++)
        out[i] = in[i / 32 * 32 + 31 - i % 32];
}

/* ---- the warp ---- */

static __global__ void shuffle_kernel(struct memory m)
{
    int t = threadIdx.x;
    uint32_t x = m.in[t], *out = m.out + t;
    float f = m.in_float[t];
    for (int i = 0; i < 5; i++) {
        out[i * THREADS] = nb_shuffle_xor_u32(x, 1 << i);
        m.out_float[(5 + i) * THREADS + t] = nb_shuffle_xor(f, 31 - i);
        out[(10 + i) * THREADS] = nb_shuffle_u32(x, 7 * i);
        m.out_float[(15 + i) * THREADS + t] = nb_shuffle(f, (t + i) % 32);
        out[(20 + i) * THREADS] = nb_shuffle_up_u32(x, 1 << i);
        m.out_float[(25 + i) * THREADS + t] = nb_shuffle_up(f, 3 * i);
    }
}

static void shuffle_expect(const uint32_t *in, uint32_t *out)
{
    for (int t = 0; t < THREADS; t++) {
        const uint32_t *warp = in + t / 32 * 32;
        int lane = t % 32;
        for (int i = 0; i < 5; i++) {
            out[i * THREADS + t] = warp[lane ^ 1 << i];
            out[(5 + i) * THREADS + t] = warp[lane ^ (31 - i)];
            out[(10 + i) * THREADS + t] = warp[7 * i];
            out[(15 + i) * THREADS + t] = warp[(lane + i) % 32];
            out[(20 + i) * THREADS + t] = warp[lane < 1 << i ? lane : lane - (1 << i)];
            out[(25 + i) * THREADS + t] = warp[lane < 3 * i ? lane : lane - 3 * i];
        }
    }
}

/* in: words that are now all odd, now all even, now mixed in a warp. */
static void vote_fill(uint32_t *in)
{
    for (int i = 0; i < WORDS; i++)
        in[i] = i / 32 % 3 == 0 ? in[i] : (uint32_t)(i / 32 % 3 - 1);
}

static __global__ void vote_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 6; i++) {
        bool odd = m.in[i * THREADS + t] & 1;
        m.out[i * THREADS + t] = nb_ballot(odd);
        m.out[(6 + i) * THREADS + t] = nb_warp_any(odd);
        m.out[(12 + i) * THREADS + t] = nb_warp_all(odd);
    }
}

static void vote_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 6 * THREADS; i++) {
        uint32_t votes = 0;
        for (int l = 0; l < 32; l++)
            votes |= (in[i / 32 * 32 + l] & 1) << l;
        out[i] = votes;
        out[6 * THREADS + i] = votes != 0;
        out[12 * THREADS + i] = votes == UINT32_MAX;
    }
}

/* ---- copies ---- */

/* 17 lengths of 16 bytes, 9 of 8, 5 of 4, in groups; read by another thread than copied them. The source of
 * nothing is null. */
static __global__ void copy_async_kernel(struct memory m)
{
    unsigned char *shared = nb_shared_memory();
    const unsigned char *in = (const unsigned char *)m.in;
    int t = threadIdx.x;
    if (t < 17)
        nb_copy_async_16(shared + 16 * t, t ? in + 16 * t : NULL, t);
    nb_copy_async_commit();
    if (t < 9)
        nb_copy_async_8(shared + 512 + 8 * t, t ? in + 512 + 8 * t : NULL, t);
    nb_copy_async_commit();
    if (t < 5)
        nb_copy_async_4(shared + 1024 + 4 * t, t ? in + 1024 + 4 * t : NULL, t);
    nb_copy_async_commit();
    nb_copy_async_wait<2>();
    nb_block_barrier();
    if (t < 68)
        m.out[t] = ((const uint32_t *)shared)[67 - t];
    nb_copy_async_wait<1>();
    nb_block_barrier();
    if (t < 18)
        m.out[128 + t] = ((const uint32_t *)(shared + 512))[17 - t];
    nb_copy_async_wait<0>();
    nb_block_barrier();
    if (t < 5)
        m.out[256 + t] = ((const uint32_t *)(shared + 1024))[4 - t];
}

/* Words of pieces of `bytes`, piece i with i valid bytes, from `in`, backward. */
static void expect_pieces(const uint32_t *in, uint32_t *out, int pieces, int bytes)
{
    int words = pieces * bytes / 4;
    for (int w = 0; w < words; w++) {
        int piece = 4 * w / bytes, valid = piece - 4 * w % bytes;
        uint32_t mask = valid >= 4 ? UINT32_MAX : valid <= 0 ? 0 : (1u << 8 * valid) - 1;
        out[words - 1 - w] = in[w] & mask;
    }
}

static void copy_async_expect(const uint32_t *in, uint32_t *out)
{
    expect_pieces(in, out, 17, 16);
    expect_pieces(in + 128, out + 128, 9, 8);
    expect_pieces(in + 256, out + 256, 5, 4);
}

static __global__ void once_kernel(struct memory m)
{
    int t = threadIdx.x;
    uint4 v = nb_load_once_16(m.in + 4 * t);
    nb_store_once_16(m.out + 4 * t, make_uint4(v.w, v.z, v.y, v.x));
}

static void once_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 4 * THREADS; i++)
        out[i] = in[i ^ 3];
}

/* Two stages; warp 0 fills them, by copies that arrive when they land, or by hand; the others add up. */
static __global__ void mbarrier_kernel(struct memory m)
{
    uint64_t *full = (uint64_t *)nb_shared_memory(), *empty = full + 2;
    uint32_t *stages = (uint32_t *)(full + 4);
    int t = threadIdx.x;
    if (t < 2) {
        nb_mbarrier_init(full + t, 32);
        nb_mbarrier_init(empty + t, THREADS - 32);
    }
    nb_block_barrier();
    uint32_t sum = 0;
    for (int i = 0; i < 10; i++) {
        int stage = i % 2, round = i / 2;
        uint32_t *words = stages + 128 * stage;
        if (t >= 32) {
            nb_mbarrier_wait(full + stage, round & 1);
            sum += words[(t + i) % 128];
            nb_mbarrier_arrive(empty + stage);
            continue;
        }
        if (round > 0)
            nb_mbarrier_wait(empty + stage, (round - 1) & 1);
        if (i % 3 == 2) {
            for (int j = 0; j < 4; j++)
                words[4 * t + j] = m.in[128 * i + 4 * t + j];
            nb_mbarrier_arrive(full + stage);
        } else {
            nb_copy_async_16(words + 4 * t, m.in + 128 * i + 4 * t, 16);
            nb_copy_async_arrive(full + stage);
        }
    }
    nb_copy_async_commit();
    nb_copy_async_wait<0>();
    m.out[t] = sum;
}

static void mbarrier_expect(const uint32_t *in, uint32_t *out)
{
    for (int t = 32; t < THREADS; t++)
        for (int i = 0; i < 10; i++)
            out[t] += in[128 * i + (t + i) % 128];
}

/* ---- matrices ---- */

/* Every lane of every warp points at a row of its own, none in order. */
NB_KERNEL_FUNCTION const void *scattered_row(const uint32_t *words, int t)
{
    return words + 4 * ((t * 37 + 11) % THREADS);
}

template <int MATRICES, bool TRANSPOSED> static __global__ void ldmatrix_kernel(struct memory m)
{
    uint32_t *words = (uint32_t *)nb_shared_memory();
    int t = threadIdx.x;
    for (int i = 0; i < 4; i++)
        words[i * THREADS + t] = m.in[i * THREADS + t];
    nb_block_barrier();
    const void *row = scattered_row(words, t);
    uint32_t r[4] = {0, 0, 0, 0};
    if (MATRICES == 4 && TRANSPOSED)
        nb_ldmatrix_x4_trans(r, row);
    else if (MATRICES == 4)
        nb_ldmatrix_x4(r, row);
    else if (TRANSPOSED)
        nb_ldmatrix_x2_trans(r, row);
    else
        nb_ldmatrix_x2(r, row);
    for (int i = 0; i < 4; i++)
        m.out[i * THREADS + t] = r[i];
}

template <int MATRICES, bool TRANSPOSED> static void ldmatrix_expect(const uint32_t *in, uint32_t *out)
{
    const uint16_t *elements = (const uint16_t *)in;
    for (int t = 0; t < THREADS; t++) {
        int lane = t % 32;
        for (int i = 0; i < MATRICES; i++) {
            uint32_t pair[2];
            for (int j = 0; j < 2; j++) {
                int row = TRANSPOSED ? 2 * (lane % 4) + j : lane / 4,
                    column = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + j;
                int source = t / 32 * 32 + 8 * i + row;
                pair[j] = elements[8 * ((source * 37 + 11) % THREADS) + column];
            }
            out[i * THREADS + t] = pair[0] | pair[1] << 16;
        }
    }
}

/* Each warp: a at in[0], 16 x 16, b at in[128], 16 x 8, by column; d at in[192], 16 x 8 fp32. Small integers: sums
 * are exact in any order. */
enum { MMA_WORDS = 320 };

static void mma_fill(uint32_t *in)
{
    for (int w = 0; w < WARPS; w++, in += MMA_WORDS) {
        for (int i = 0; i < 192; i++)
            in[i] = nb_bf16_from_float((float)(in[i] % 61) - 30.0f) |
                    (uint32_t)nb_bf16_from_float((float)(in[i] / 64 % 63) - 31.0f) << 16;
        for (int i = 192; i < MMA_WORDS; i++)
            in[i] = nb_float_bits((float)(in[i] % 8191) - 4000.0f);
    }
}

static __global__ void mma_kernel(struct memory m)
{
    int t = threadIdx.x, lane = t % 32, g = lane / 4, q = lane % 4;
    const uint32_t *in = m.in + t / 32 * MMA_WORDS;
    const float *d_in = m.in_float + t / 32 * MMA_WORDS + 192;
    uint32_t a[4], b[2];
    float d[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = in[(g + i % 2 * 8) * 8 + q + i / 2 * 4];
        d[i] = d_in[(g + i / 2 * 8) * 8 + 2 * q + i % 2];
    }
    b[0] = in[128 + g * 8 + q];
    b[1] = in[128 + g * 8 + q + 4];
    nb_mma_bf16(d, a, b);
#pragma unroll
    for (int i = 0; i < 4; i++)
        m.out_float[t / 32 * 128 + (g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

static void mma_expect(const uint32_t *in, uint32_t *out)
{
    for (int w = 0; w < WARPS; w++, in += MMA_WORDS, out += 128) {
        const uint16_t *a = (const uint16_t *)in, *b = (const uint16_t *)(in + 128);
        for (int row = 0; row < 16; row++) {
            for (int column = 0; column < 8; column++) {
                float sum = nb_float_from_bits(in[192 + row * 8 + column]);
                for (int k = 0; k < 16; k++)
                    sum += nb_bf16_to_float(a[row * 16 + k]) * nb_bf16_to_float(b[column * 16 + k]);
                out[row * 8 + column] = nb_float_bits(sum);
            }
        }
    }
}

/* ---- arithmetic ---- */

static __global__ void permute_bytes_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++)
        m.out[i * THREADS + t] = nb_permute_bytes(m.in[t], m.in[THREADS + t], m.in[(2 + i) * THREADS + t] & 0x7777);
}

static void permute_bytes_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 8 * THREADS; i++) {
        uint32_t selector = in[2 * THREADS + i] & 0x7777;
        for (int j = 0; j < 4; j++) {
            uint32_t byte = selector >> 4 * j & 7, word = in[i % THREADS + (byte / 4) * THREADS];
            out[i] |= (word >> byte % 4 * 8 & 0xff) << 8 * j;
        }
    }
}

/* Random bits with ties, both ways to go, infinities, the largest number, subnormals and NaNs among them. */
static void pack_bf16_fill(uint32_t *in)
{
    static const uint32_t special[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f800000, 0xff800000,
        0x7f7fffff, 0x7f7f8000, 0x7f7f7fff, 0x00000001, 0x00008000, 0x00018000, 0x807fffff, 0x80000000, 0x7fc00000,
        0x7f800001, 0xffffffff, 0xff812345};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        in[7 * i] = special[i];
}

static __global__ void pack_bf16_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++)
        m.out[i * THREADS + t] = nb_pack_bf16(m.in_float[2 * (i * THREADS + t)], m.in_float[2 * (i * THREADS + t) + 1]);
}

/* As the CPU rounds, but any NaN is 0x7fff. */
static uint32_t rounded(double value)
{
    nb_bf16 nearest = nb_bf16_from_float((float)value);
    return value != value ? 0x7fffu : nearest;
}

static void pack_bf16_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 8 * THREADS; i++)
        out[i] = rounded(nb_float_from_bits(in[2 * i])) | rounded(nb_float_from_bits(in[2 * i + 1])) << 16;
}

/* Factors of few bits and near one, so that the exact sum fits into a double, rounded here in two steps that
 * cannot disagree with one but at ties, which the third column makes: 1 * x + half a unit, and a little beside it. */
static void fma_bf16x2_fill(uint32_t *in)
{
    for (int i = 0; i < WORDS; i++) {
        uint32_t low = 0x3f00 + (in[i] & 0x80ff), high = 0x3e80 + (in[i] >> 16 & 0x81ff);
        in[i] = low | high << 16;
    }
    for (int i = 0; i < 16; i++) {
        in[3 * i] = 0x3f80 | 0xbf80u << 16; /* 1, -1 */
        in[3 * i + 1] = (0x3f80u + (uint32_t)i) | (0x3f80u + (uint32_t)i) << 16;
        in[3 * i + 2] = 0x3b80u | (i % 2 ? 0x3b81u : 0x3b7fu) << 16; /* 2^-8, half of the last place, and beside it */
    }
}

static __global__ void fma_bf16x2_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++) {
        const uint32_t *in = m.in + 3 * (i * THREADS + t);
        m.out[i * THREADS + t] = nb_fma_bf16x2(in[0], in[1], in[2]);
    }
}

static uint32_t fma_rounded(uint32_t a, uint32_t b, uint32_t c)
{
    double sum = (double)nb_bf16_to_float((nb_bf16)a) * (double)nb_bf16_to_float((nb_bf16)b) +
                 (double)nb_bf16_to_float((nb_bf16)c);
    /* Of these operands every sum is exact in fp32's 24 bits, or so near that bf16 does not see it: no second
     * rounding. */
    return rounded(sum);
}

static void fma_bf16x2_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 8 * THREADS; i++, in += 3)
        out[i] = fma_rounded(in[0] & 0xffff, in[1] & 0xffff, in[2] & 0xffff) |
                 fma_rounded(in[0] >> 16, in[1] >> 16, in[2] >> 16) << 16;
}

/* From far below the smallest normal result to beyond the largest. */
static void exp2_fill(uint32_t *in)
{
    for (int i = 0; i < WORDS; i++)
        in[i] = nb_float_bits((float)(int32_t)in[i] * (i % 2 ? 0x1p-24f : 0x1p-31f));
    in[0] = 0xff800000, in[1] = 0, in[2] = 0x80000000, in[3] = nb_float_bits(-127.0f), in[4] = nb_float_bits(-126.0f);
}

static __global__ void exp2_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 16; i++)
        m.out_float[i * THREADS + t] = nb_exp2_fast(m.in_float[i * THREADS + t]);
}

static void exp2_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 16 * THREADS; i++) {
        float y = (float)exp2((double)nb_float_from_bits(in[i]));
        out[i] = nb_float_bits(y < 0x1p-126f ? 0.0f : y);
    }
}

static void reciprocal_fill(uint32_t *in)
{
    for (int i = 0; i < WORDS; i++)
        in[i] = nb_float_bits((float)(int32_t)(in[i] | 1) * (i % 2 ? 0x1p-40f : 0x1p+40f));
    in[0] = 0, in[1] = 0x80000000, in[2] = 0x7f800000, in[3] = 0xff800000, in[4] = 0x3f800000;
}

static __global__ void reciprocal_kernel(struct memory m)
{
    int t = threadIdx.x;
    for (int i = 0; i < 16; i++)
        m.out_float[i * THREADS + t] = nb_reciprocal_fast(m.in_float[i * THREADS + t]);
}

static void reciprocal_expect(const uint32_t *in, uint32_t *out)
{
    for (int i = 0; i < 16 * THREADS; i++)
        out[i] = nb_float_bits((float)(1.0 / (double)nb_float_from_bits(in[i])));
}

/* ---- between blocks ---- */

enum { ATOMIC_BLOCKS = 16 };

/* Every thread counts and raises; the last block, known by its count, copies what all wrote before a fence. */
static __global__ void atomic_kernel(struct memory m)
{
    uint32_t *mine = m.out + blockIdx.x * THREADS, *counter = m.out + 2048, t = threadIdx.x;
    mine[t] = m.in[blockIdx.x * THREADS + t];
    nb_atomic_add(counter + 1, t);
    nb_atomic_max(counter + 2, m.in[blockIdx.x * THREADS + t]);
    nb_device_fence();
    nb_block_barrier();
    bool last = false;
    if (t == 0)
        last = nb_atomic_add(counter, 1) == gridDim.x - 1;
    if (!nb_block_any(last))
        return;
    nb_device_fence();
    uint32_t sum = 0;
    for (unsigned b = 0; b < gridDim.x; b++)
        sum += m.out[b * THREADS + (t + b) % THREADS];
    m.out[2176 + t] = sum;
}

static void atomic_expect(const uint32_t *in, uint32_t *out)
{
    memcpy(out, in, ATOMIC_BLOCKS * THREADS * sizeof *out);
    out[2048] = ATOMIC_BLOCKS;
    for (int i = 0; i < ATOMIC_BLOCKS * THREADS; i++) {
        out[2049] += (uint32_t)(i % THREADS);
        out[2050] = in[i] > out[2050] ? in[i] : out[2050];
    }
    for (int t = 0; t < THREADS; t++)
        for (int b = 0; b < ATOMIC_BLOCKS; b++)
            out[2176 + t] += in[b * THREADS + (t + b) % THREADS];
}

/* ---- all of them ---- */

static const struct test tests[] = {
    {"nb_shared_memory, nb_block_barrier", block_barrier_kernel, NULL, block_barrier_expect, 1, 0},
    {"nb_block_any", block_any_kernel, NULL, block_any_expect, 1, 0},
    {"nb_named_barrier, nb_named_arrive", named_barrier_kernel, NULL, named_barrier_expect, 1, 0},
    {"nb_warp_barrier", warp_barrier_kernel, NULL, warp_barrier_expect, 1, 0},
    {"nb_shuffle_xor, nb_shuffle, nb_shuffle_up", shuffle_kernel, fill_with_floats, shuffle_expect, 1, 0},
    {"nb_ballot, nb_warp_any, nb_warp_all", vote_kernel, vote_fill, vote_expect, 1, 0},
    {"nb_copy_async_16, _8, _4, _commit, _wait", copy_async_kernel, NULL, copy_async_expect, 1, 0},
    {"nb_load_once_16, nb_store_once_16", once_kernel, NULL, once_expect, 1, 0},
    {"nb_mbarrier_init, _arrive, _wait, nb_copy_async_arrive", mbarrier_kernel, NULL, mbarrier_expect, 1, 0},
    {"nb_ldmatrix_x4", ldmatrix_kernel<4, false>, NULL, ldmatrix_expect<4, false>, 1, 0},
    {"nb_ldmatrix_x4_trans", ldmatrix_kernel<4, true>, NULL, ldmatrix_expect<4, true>, 1, 0},
    {"nb_ldmatrix_x2", ldmatrix_kernel<2, false>, NULL, ldmatrix_expect<2, false>, 1, 0},
    {"nb_ldmatrix_x2_trans", ldmatrix_kernel<2, true>, NULL, ldmatrix_expect<2, true>, 1, 0},
    {"nb_mma_bf16", mma_kernel, mma_fill, mma_expect, 1, 0},
    {"nb_permute_bytes", permute_bytes_kernel, NULL, permute_bytes_expect, 1, 0},
    {"nb_pack_bf16", pack_bf16_kernel, pack_bf16_fill, pack_bf16_expect, 1, 0},
    {"nb_fma_bf16x2", fma_bf16x2_kernel, fma_bf16x2_fill, fma_bf16x2_expect, 1, 0},
    {"nb_exp2_fast", exp2_kernel, exp2_fill, exp2_expect, 1, 2},
    {"nb_reciprocal_fast", reciprocal_kernel, reciprocal_fill, reciprocal_expect, 1, 1},
    {"nb_atomic_add, nb_atomic_max, nb_device_fence", atomic_kernel, NULL, atomic_expect, ATOMIC_BLOCKS, 0},
};

static bool near_enough(uint32_t a, uint32_t b, int ulps)
{
    int64_t distance = (int64_t)(a & 0x7fffffff) - (int64_t)(b & 0x7fffffff);
    return a == b || (a >> 31 == b >> 31 && distance <= ulps && distance >= -ulps);
}

/* Device memory and what the host holds beside it. */
struct bench {
    struct nb_device *device;
    struct nb_stream *stream;
    nb_dptr in, out;
    uint32_t *host_in, *host_out; /* pinned, [WORDS] */
};

static nb_status run_test(struct bench *bench, const struct test *test, bool *good)
{
    static uint32_t expected[WORDS];
    struct nb_device *device = bench->device;
    uint64_t state = 88172645463325252u;
    for (int i = 0; i < WORDS; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* Marsaglia, Xorshift RNGs, 2003 */
        bench->host_in[i] = (uint32_t)(state >> 16);
    }
    if (test->fill)
        test->fill(bench->host_in);
    memset(expected, 0, sizeof expected);
    test->expect(bench->host_in, expected);
    NB_TRY(device->upload(device, bench->stream, bench->in, bench->host_in, sizeof expected));
    NB_TRY(device->fill_zero(device, bench->stream, bench->out, sizeof expected));
    struct memory memory = {nb_pointer<const uint32_t>(bench->in), nb_pointer<uint32_t>(bench->out),
        nb_pointer<const float>(bench->in), nb_pointer<float>(bench->out)};
    struct nb_launch launch = {dim3((unsigned)test->blocks), THREADS, SHARED_BYTES};
    NB_TRY(nb_cuda_launch(test->name, test->kernel, launch, bench->stream->stream, memory));
    NB_TRY(device->download(device, bench->stream, bench->host_out, bench->out, sizeof expected));
    NB_TRY(device->stream_wait(device, bench->stream));
    for (int i = 0; i < WORDS && *good; i++) {
        *good = near_enough(bench->host_out[i], expected[i], test->ulps);
        if (!*good)
            printf(
                "%s: word %d is %08x, not %08x\n", test->name, i, (unsigned)bench->host_out[i], (unsigned)expected[i]);
    }
    return NB_OK;
}

static nb_status run_tests(struct bench *bench, int *failures)
{
    struct nb_device *device = bench->device;
    const uint64_t bytes = WORDS * sizeof(uint32_t);
    NB_TRY(device->stream_create(device, &bench->stream));
    NB_TRY(device->memory_take(device, bytes, &bench->in));
    NB_TRY(device->memory_take(device, bytes, &bench->out));
    NB_TRY(device->host_take(device, bytes, (void **)&bench->host_in));
    NB_TRY(device->host_take(device, bytes, (void **)&bench->host_out));
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        bool good = true;
        NB_TRY(run_test(bench, &tests[i], &good));
        *failures += !good;
    }
    return NB_OK;
}

int nb_instruction_tests(struct nb_device *device)
{
    struct bench bench = {};
    int failures = 0;
    bench.device = device;
    nb_status status = run_tests(&bench, &failures);
    if (bench.stream)
        device->stream_destroy(device, &bench.stream);
    if (!nb_dptr_is_null(bench.in))
        device->memory_give_back(device, bench.in);
    if (!nb_dptr_is_null(bench.out))
        device->memory_give_back(device, bench.out);
    if (bench.host_in)
        device->host_give_back(device, bench.host_in);
    if (bench.host_out)
        device->host_give_back(device, bench.host_out);
    if (status != NB_OK)
        return -1;
    printf("instructions: %d of %d right\n", (int)(sizeof tests / sizeof *tests) - failures,
        (int)(sizeof tests / sizeof *tests));
    return failures;
}
