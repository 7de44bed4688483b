/* Bound by bytes: 0.516 read and 2 written a weight. A warp takes 2,048 weights, 32 blocks of 64: each lane fetches
 * one block's scale and hands it round by shuffles; then in eight steps each lane decodes the eight weights of one
 * packed word, so that a step reads 128 neighbouring bytes and writes 512. Eight weights cost some 65 instructions
 * (the scaled codes are made anew for each word): 8 a weight, where an H200's multiprocessor issues 17 while its
 * memory moves that weight's bytes. All reads of a warp are under way before the first is used. Results are stored
 * as what is not read again soon: a matrix is larger than the second-level cache. */
#include "cuda/dequantize_block.cuh"
#include "quant/codec.h"

enum {
    THREADS = 256,
    WARPS = THREADS / NB_WARP,
    EACH = 8,
    STEPS = 8,
    STEP = NB_WARP * EACH,
    SHARE = STEPS * STEP,
    MAP = 256
};

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
NB_KERNEL_FUNCTION void store_tail(
    const struct nb_packed_weight &weight, const struct dequantize_tables *tables, nb_bf16 *w, int64_t count)
{
    int64_t begin = count / EACH * EACH;
    float scale = nb_block_scale(weight, tables->map, begin / NB_QUANT_BLOCK);
    for (int64_t i = begin; i < count; i++) {
        int code = weight.data[i / 2] >> (i % 2 ? 0 : 4) & 15;
        w[i] = nb_bf16_round(tables->codebook[code] * scale);
    }
}

/* Weights share to share + SHARE - 1, by a warp. */
NB_KERNEL_FUNCTION void dequantize_share(
    const struct nb_packed_weight &weight, const struct dequantize_tables *tables, nb_bf16 *w, int64_t share)
{
    int lane = (int)threadIdx.x % NB_WARP;
    const uint32_t *from = (const uint32_t *)(weight.data + share / 2) + lane;
    uint4 *to = (uint4 *)(w + share) + lane;
    uint32_t packed[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        packed[step] = from[step * NB_WARP];
    float scale_of_lane = nb_block_scale(weight, tables->map, share / NB_QUANT_BLOCK + lane);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        float scale = nb_shuffle(scale_of_lane, step * (STEP / NB_QUANT_BLOCK) + lane / (NB_QUANT_BLOCK / EACH));
        nb_store_once_16(to + step * NB_WARP, nb_decode_8(nb_scale_codes(tables->codebook, scale), packed[step]));
    }
}

/* The matrix's last share, cut short by its end: whole groups of eight. */
NB_KERNEL_FUNCTION void dequantize_last(const struct nb_packed_weight &weight, const struct dequantize_tables *tables,
    nb_bf16 *w, int64_t count, int64_t share)
{
    int lane = (int)threadIdx.x % NB_WARP;
#pragma unroll 1
    for (int64_t at = share + lane * EACH; at + EACH <= count; at += STEP) {
        float scale = nb_block_scale(weight, tables->map, at / NB_QUANT_BLOCK);
        uint32_t packed = *(const uint32_t *)(weight.data + at / 2);
        nb_store_once_16(w + at, nb_decode_8(nb_scale_codes(tables->codebook, scale), packed));
    }
}

__global__ void __launch_bounds__(THREADS, 4)
    dequantize_kernel(struct nb_packed_weight weight, nb_bf16 *w, int64_t count)
{
    struct dequantize_tables *tables = (struct dequantize_tables *)nb_shared_memory();
    stage(weight, tables);
    int64_t share = ((int64_t)blockIdx.x * WARPS + threadIdx.x / NB_WARP) * SHARE;
    if (share + SHARE <= count)
        dequantize_share(weight, tables, w, share);
    else
        dequantize_last(weight, tables, w, count, share);
    if (count % EACH != 0 && blockIdx.x == 0 && threadIdx.x == 0)
        store_tail(weight, tables, w, count);
}

nb_status nb_cuda_dequantize(struct nb_device *device, struct nb_stream *stream, const struct nb_dequantize *args)
{
    (void)device;
    NB_TRY(nb_check_dequantize(args));
    int64_t count = (int64_t)args->from.rows * args->from.columns;
    struct nb_launch launch = {
        dim3(nb_blocks_of(count, WARPS * SHARE)), THREADS, (int)sizeof(struct dequantize_tables)};
    return nb_cuda_launch("dequantize", dequantize_kernel, launch, stream->stream, nb_packed_weight_of(&args->from),
        nb_pointer<nb_bf16>(args->w), count);
}

nb_status nb_cuda_prepare_dequantize(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("dequantize", dequantize_kernel, (int)sizeof(struct dequantize_tables));
}
