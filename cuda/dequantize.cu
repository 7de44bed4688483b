/* Bound by bytes: 0.516 read and 2 written a weight. A warp takes 2,048 weights, 32 blocks of 64: each lane fetches one block's scale and
 * hands it round by shuffles; then in eight steps each lane decodes the eight weights of one packed word, so that a step reads 128
 * neighbouring bytes and writes 512. Eight weights cost some 60 instructions (the scaled codes are made anew for each word): 7.5 a weight,
 * where an H200's multiprocessor issues 17 while its memory moves that weight's bytes. All reads of a warp are under way before the first
 * is used. Results are written through to the second-level cache, where a product that follows finds them. */
#include "cuda/dequantize_block.cuh"
#include "quant/codec.h"

enum { THREADS = 256, WARPS = THREADS / NB_WARP, EACH = 8, STEPS = 8, STEP = NB_WARP * EACH, SHARE = STEPS * STEP, MAP = 256 };

/* Shared memory: the codebook, 16-byte aligned, which the matrix's own need not be, and the map of nested scales. */
struct dequantize_tables {
    float codebook[NB_QUANT_CODES], map[MAP];
};

NB_KERNEL_FUNCTION void stage(const struct nb_packed_weight &weight, struct dequantize_tables *tables)
{
    int thread = (int)threadIdx.x;
    if (thread < NB_QUANT_CODES)
        tables->codebook[thread] = weight.codebook[thread];
    if (weight.nested_map && thread < MAP)
        tables->map[thread] = weight.nested_map[thread];
    nb_block_barrier();
}

/* The matrix's last weights, fewer than eight, by one thread. */
NB_KERNEL_FUNCTION void store_tail(const struct nb_packed_weight &weight, const struct dequantize_tables *tables, nb_bf16 *w, int64_t count)
{
    int64_t begin = count / EACH * EACH;
    float scale = nb_block_scale(weight, tables->map, begin / NB_QUANT_BLOCK);
    for (int64_t i = begin; i < count; i++) {
        int code = weight.data[i / 2] >> (i % 2 ? 0 : 4) & 15;
        w[i] = nb_bf16_round(tables->codebook[code] * scale);
    }
}

__global__ void __launch_bounds__(THREADS) dequantize_kernel(struct nb_packed_weight weight, nb_bf16 *w, int64_t count)
{
    struct dequantize_tables *tables = (struct dequantize_tables *)nb_shared_memory();
    stage(weight, tables);
    int lane = (int)threadIdx.x % NB_WARP;
    int64_t share = ((int64_t)blockIdx.x * WARPS + threadIdx.x / NB_WARP) * SHARE, begin = share + lane * EACH;
    uint32_t packed[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int64_t at = begin + step * STEP;
        packed[step] = at + EACH <= count ? *(const uint32_t *)(weight.data + at / 2) : 0;
    }
    int64_t block = share / NB_QUANT_BLOCK + lane;
    float scale_of_lane = block * NB_QUANT_BLOCK < count ? nb_block_scale(weight, tables->map, block) : 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        int64_t at = begin + step * STEP;
        float scale = nb_shuffle(scale_of_lane, step * (STEP / NB_QUANT_BLOCK) + lane / (NB_QUANT_BLOCK / EACH));
        if (at + EACH <= count)
            *(uint4 *)(w + at) = nb_decode_8(nb_scale_codes(tables->codebook, scale), packed[step]);
    }
    if (count % EACH != 0 && blockIdx.x == 0 && threadIdx.x == 0)
        store_tail(weight, tables, w, count);
}

nb_status nb_cuda_dequantize(struct nb_device *device, struct nb_stream *stream, const struct nb_dequantize *args)
{
    (void)device;
    NB_TRY(nb_check_dequantize(args));
    int64_t count = (int64_t)args->from.rows * args->from.columns;
    struct nb_launch launch = {dim3(nb_blocks_of(count, WARPS * SHARE)), THREADS, (int)sizeof(struct dequantize_tables)};
    return nb_cuda_launch("dequantize", dequantize_kernel, launch, stream->stream, nb_packed_weight_of(&args->from),
        nb_pointer<nb_bf16>(args->w), count);
}

nb_status nb_cuda_prepare_dequantize(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("dequantize", dequantize_kernel, (int)sizeof(struct dequantize_tables));
}
