/* At loading alone, once a matrix; 2 bytes read and half a byte written a weight, about 35 instructions each, so a
 * GPU's memory and its arithmetic take about as long: some 20 ms for 8B. The bits are the CPU's, so sums are in its
 * order.
 *   blocks    eight lanes take a block of 64, eight weights each: absmax by butterflies, codes by counting
 *             thresholds
 *   sums      (nested) a thread adds 256 scales in order, in double
 *   finish    one block: writes codebook and map, adds the sums in order to the offset, and looks for a scale that
 *             is not finite; the first such block's first bad weight goes into the device's fault word, which the
 *             wait for the stream turns into an error
 *   scales    (nested) a warp quantizes 256 scales to the nearest dynamic code
 * Tables that the host computes (thresholds, codebook, map) travel as kernel arguments: an op has no other way to
 * upload. */
#include <math.h>

#include "cuda/dynamic_code.cuh"
#include "device/cuda/loss_scratch.h"
#include "quant/codec.h"

enum { THREADS = 256, WARPS = THREADS / NB_WARP, EACH = 8, LANES = NB_QUANT_BLOCK / EACH };

/* The code of a scaled weight x: first, plus the rise of each threshold below x. */
struct staircase {
    float thresholds[NB_QUANT_CODES - 1];
    int32_t first, rises[NB_QUANT_CODES - 1];
};

struct quantize_tables {
    float codebook[NB_QUANT_CODES], map[NB_DYNAMIC_CODES];
};

/* Where the parts are; nested ones NULL if plain. */
struct quantize_operands {
    const nb_bf16 *w;
    int64_t count, blocks, superblocks;
    uint32_t columns;
    uint8_t *packed, *absmax_codes;
    float *absmax, *nested_absmax, *nested_map, *nested_offset, *codebook;
    double *sums; /* [superblocks] */
    struct nb_cuda_fault *fault;
};

/* ---- blocks ---- */

/* Eight weights as bf16 bits, zeros after the matrix's end. */
NB_KERNEL_FUNCTION uint4 load_eight(const nb_bf16 *w, int64_t begin, int64_t count)
{
    if (begin + EACH <= count)
        return nb_load_once_16(w + begin);
    uint32_t pair[EACH / 2];
#pragma unroll
    for (int i = 0; i < EACH / 2; i++) {
        int64_t at = begin + 2 * i;
        pair[i] = (at < count ? w[at] : 0u) | (at + 1 < count ? (uint32_t)w[at + 1] << 16 : 0u);
    }
    uint4 eight = {pair[0], pair[1], pair[2], pair[3]};
    return eight;
}

/* The largest magnitude of the block as bits of bf16, the same in its eight lanes. As integers, so that a NaN is the
 * largest. */
NB_KERNEL_FUNCTION uint32_t largest_bits(uint4 eight)
{
    const uint32_t pair[EACH / 2] = {eight.x, eight.y, eight.z, eight.w};
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < EACH / 2; i++) {
        uint32_t low = pair[i] & 0x7fffu, high = pair[i] >> 16 & 0x7fffu, larger = low > high ? low : high;
        largest = larger > largest ? larger : largest;
    }
    for (int mask = 1; mask < LANES; mask *= 2) {
        uint32_t other = nb_shuffle_xor_u32(largest, mask);
        largest = other > largest ? other : largest;
    }
    return largest;
}

/* Eight codes, packed: the earlier of two in a byte's high half. */
NB_KERNEL_FUNCTION uint32_t pack_eight(const struct staircase &s, const float x[EACH])
{
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int code = s.first;
#pragma unroll
        for (int k = 0; k < NB_QUANT_CODES - 1; k++)
            code += x[i] > s.thresholds[k] ? s.rises[k] : 0;
        packed |= (uint32_t)code << (8 * (i / 2) + (i % 2 ? 0 : 4));
    }
    return packed;
}

__global__ void __launch_bounds__(THREADS)
    quantize_blocks_kernel(struct quantize_operands o, struct staircase staircase)
{
    int64_t begin = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    uint4 eight = load_eight(o.w, begin, o.count);
    float absmax = nb_bf16_low(largest_bits(eight)), x[EACH];
    nb_unpack8(eight, x);
    nb_dynamic_scale<EACH>(x, absmax);
    uint32_t packed = pack_eight(staircase, x);
    if (begin % NB_QUANT_BLOCK == 0 && begin < o.count)
        o.absmax[begin / NB_QUANT_BLOCK] = absmax;
    if (begin + EACH <= o.count)
        *(uint32_t *)(o.packed + begin / 2) = packed;
    else
        for (int64_t at = begin; at < o.count; at += 2, packed >>= 8)
            o.packed[at / 2] = (uint8_t)packed;
}

/* ---- sums ---- */

enum { SUM_THREADS = NB_WARP }; /* few to a block, for some thousand threads are all there are */

__global__ void __launch_bounds__(SUM_THREADS) sum_scales_kernel(struct quantize_operands o)
{
    int64_t superblock = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x, begin = superblock * NB_QUANT_SUPERBLOCK;
    if (superblock >= o.superblocks)
        return;
    int count = o.blocks - begin < NB_QUANT_SUPERBLOCK ? (int)(o.blocks - begin) : NB_QUANT_SUPERBLOCK, i = 0;
    double sum = 0.0;
    for (; i + 8 <= count; i += 8) {
        float4 first = *(const float4 *)(o.absmax + begin + i), second = *(const float4 *)(o.absmax + begin + i + 4);
        sum += (double)first.x, sum += (double)first.y, sum += (double)first.z, sum += (double)first.w;
        sum += (double)second.x, sum += (double)second.y, sum += (double)second.z, sum += (double)second.w;
    }
    for (; i < count; i++)
        sum += (double)o.absmax[begin + i];
    o.sums[superblock] = sum;
}

/* ---- finish ---- */

enum { FINISH_THREADS = 1024, FLIGHT = 8, FINISH_SHARED_BYTES = FINISH_THREADS * 8 };

NB_KERNEL_FUNCTION bool is_bad(float absmax)
{
    return !(absmax <= 3.40282347e38f);
}

/* The thread's first block, of thread, thread + FINISH_THREADS, ..., whose absmax is not finite; `blocks` if there
 * is none. */
NB_KERNEL_FUNCTION int64_t first_bad_of_thread(const float *absmax, int64_t blocks)
{
    int64_t i = threadIdx.x;
    for (; i + (FLIGHT - 1) * FINISH_THREADS < blocks; i += FLIGHT * FINISH_THREADS) {
        bool bad = false;
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            bad |= is_bad(absmax[i + k * FINISH_THREADS]);
        if (bad)
            break;
    }
    while (i < blocks && !is_bad(absmax[i]))
        i += FINISH_THREADS;
    return i < blocks ? i : blocks;
}

/* By one thread: the first bad weight of the block. Of several matrices the first one's stays. */
NB_KERNEL_FUNCTION void report(const struct quantize_operands &o, int64_t block)
{
    int64_t index = block * NB_QUANT_BLOCK;
    while ((o.w[index] & 0x7fffu) < 0x7f80u)
        index++;
    if (o.fault->code != NB_CUDA_FAULT_NONE)
        return;
    o.fault->columns = o.columns;
    o.fault->index = (uint64_t)index;
    nb_device_fence();
    o.fault->code = NB_CUDA_FAULT_NOT_FINITE;
}

NB_KERNEL_FUNCTION void look_for_bad(const struct quantize_operands &o)
{
    int64_t *found = (int64_t *)nb_shared_memory(), mine = first_bad_of_thread(o.absmax, o.blocks);
    if (!nb_block_any(mine < o.blocks))
        return;
    found[threadIdx.x] = mine;
    nb_block_barrier();
    if (threadIdx.x != 0)
        return;
    for (int i = 1; i < FINISH_THREADS; i++)
        mine = found[i] < mine ? found[i] : mine;
    report(o, mine);
}

/* The mean scale: the sums of 256, added in order by one thread while the others fetch. */
NB_KERNEL_FUNCTION void set_offset(const struct quantize_operands &o)
{
    double *stage = (double *)nb_shared_memory(), total = 0.0;
    for (int64_t begin = 0; begin < o.superblocks; begin += FINISH_THREADS) {
        int count = o.superblocks - begin < FINISH_THREADS ? (int)(o.superblocks - begin) : FINISH_THREADS;
        if ((int)threadIdx.x < count)
            stage[threadIdx.x] = o.sums[begin + threadIdx.x];
        nb_block_barrier();
        for (int i = 0; i < count && threadIdx.x == 0; i++)
            total += stage[i];
        nb_block_barrier();
    }
    if (threadIdx.x == 0)
        *o.nested_offset = (float)(total / (double)o.blocks);
}

__global__ void __launch_bounds__(FINISH_THREADS)
    quantize_finish_kernel(struct quantize_operands o, struct quantize_tables tables)
{
    int thread = (int)threadIdx.x;
    if (thread < NB_QUANT_CODES)
        o.codebook[thread] = tables.codebook[thread];
    if (o.nested_map) {
        if (thread < NB_DYNAMIC_CODES)
            o.nested_map[thread] = tables.map[thread];
        set_offset(o);
        nb_block_barrier();
    }
    look_for_bad(o);
}

/* ---- scales ---- */

enum { SCALES_EACH = NB_QUANT_SUPERBLOCK / NB_WARP, SCALES_SHARED_BYTES = 2 * NB_DYNAMIC_CODES * (int)sizeof(float) };

__global__ void __launch_bounds__(THREADS) quantize_scales_kernel(struct quantize_operands o)
{
    float *map = (float *)nb_shared_memory(), *midpoints = map + NB_DYNAMIC_CODES;
    nb_dynamic_stage(o.nested_map, map, midpoints);
    nb_block_barrier();
    int64_t superblock = (int64_t)blockIdx.x * WARPS + threadIdx.x / NB_WARP;
    int64_t begin = superblock * NB_QUANT_SUPERBLOCK + threadIdx.x % NB_WARP;
    if (superblock >= o.superblocks)
        return;
    float centred[SCALES_EACH], offset = *o.nested_offset, largest = 0.0f;
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++) {
        int64_t block = begin + i * NB_WARP;
        centred[i] = block < o.blocks ? o.absmax[block] - offset : 0.0f;
        largest = fmaxf(largest, fabsf(centred[i]));
    }
    largest = nb_warp_max(largest);
    nb_dynamic_scale<SCALES_EACH>(centred, largest);
#pragma unroll
    for (int i = 0; i < SCALES_EACH; i++)
        if (begin + i * NB_WARP < o.blocks)
            o.absmax_codes[begin + i * NB_WARP] = (uint8_t)nb_dynamic_code_signed(midpoints, centred[i]);
    if (threadIdx.x % NB_WARP == 0)
        o.nested_absmax[superblock] = largest;
}

/* ---- the op ---- */

static struct staircase staircase_of(enum nb_quant_type type)
{
    struct staircase staircase;
    uint8_t codes[NB_QUANT_CODES];
    nb_quant_thresholds(type, staircase.thresholds, codes);
    staircase.first = codes[0];
    for (int k = 0; k < NB_QUANT_CODES - 1; k++)
        staircase.rises[k] = codes[k + 1] - codes[k];
    return staircase;
}

static struct quantize_operands operands_of(struct nb_cuda *cuda, const struct nb_quantize *args)
{
    const struct nb_weight *to = &args->to;
    int64_t count = (int64_t)to->rows * to->columns, blocks = (int64_t)nb_quant_blocks((uint64_t)count);
    struct quantize_operands o = {};
    o.w = nb_pointer<const nb_bf16>(args->w);
    o.count = count;
    o.blocks = blocks;
    o.superblocks = (int64_t)nb_quant_superblocks((uint64_t)blocks);
    o.columns = (uint32_t)to->columns;
    o.packed = nb_pointer<uint8_t>(to->data);
    o.absmax = nb_pointer<float>(to->absmax);
    o.codebook = nb_pointer<float>(to->codebook);
    o.fault = cuda->fault_device;
    if (to->nested) {
        struct nb_cuda_quantize_scratch scratch;
        nb_cuda_quantize_scratch_of(to, &scratch);
        o.absmax = nb_pointer<float>(nb_dptr_at(args->scratch.base, scratch.absmax));
        o.absmax_codes = nb_pointer<uint8_t>(to->absmax);
        o.nested_absmax = nb_pointer<float>(to->nested_absmax);
        o.nested_map = nb_pointer<float>(to->nested_map);
        o.nested_offset = nb_pointer<float>(to->nested_offset);
        o.sums = nb_pointer<double>(nb_dptr_at(args->scratch.base, scratch.sums));
    }
    return o;
}

nb_status nb_cuda_quantize(struct nb_device *device, struct nb_stream *stream, const struct nb_quantize *args)
{
    NB_TRY(nb_check_quantize(args));
    NB_TRY(nb_cuda_require_scratch("quantize", &args->scratch, nb_cuda_quantize_scratch_bytes(&device->profile, args)));
    struct quantize_operands o = operands_of(nb_cuda_of(device), args);
    enum nb_quant_type type = args->to.format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    struct quantize_tables tables;
    memcpy(tables.codebook, nb_quant_codebook(type), sizeof tables.codebook);
    nb_dynamic_map(true, tables.map);
    struct nb_launch blocks = {dim3(nb_blocks_of(o.count, THREADS * EACH)), THREADS, 0};
    struct nb_launch sums = {dim3(nb_blocks_of(o.superblocks, SUM_THREADS)), SUM_THREADS, 0};
    struct nb_launch finish = {dim3(1), FINISH_THREADS, FINISH_SHARED_BYTES};
    struct nb_launch scales = {dim3(nb_blocks_of(o.superblocks, WARPS)), THREADS, SCALES_SHARED_BYTES};
    NB_TRY(nb_cuda_launch("quantize, blocks", quantize_blocks_kernel, blocks, stream->stream, o, staircase_of(type)));
    if (args->to.nested)
        NB_TRY(nb_cuda_launch("quantize, sums", sum_scales_kernel, sums, stream->stream, o));
    NB_TRY(nb_cuda_launch("quantize, finish", quantize_finish_kernel, finish, stream->stream, o, tables));
    if (args->to.nested)
        NB_TRY(nb_cuda_launch("quantize, scales", quantize_scales_kernel, scales, stream->stream, o));
    return NB_OK;
}

nb_status nb_cuda_prepare_quantize(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("quantize, blocks", quantize_blocks_kernel, 0));
    NB_TRY(nb_cuda_load("quantize, sums", sum_scales_kernel, 0));
    NB_TRY(nb_cuda_load("quantize, finish", quantize_finish_kernel, FINISH_SHARED_BYTES));
    return nb_cuda_load("quantize, scales", quantize_scales_kernel, SCALES_SHARED_BYTES);
}
