/* 4-bit weights to bf16 in registers, bit for bit as quant/matrix.h says: bf16(codebook[code] * absmax), the product in fp32.
 *
 * A thread multiplies the 16 codes by its block's scale once, rounds them to bf16 and keeps them as two byte planes: 8 registers, of which
 * prmt picks bytes by the nibbles of a packed word. No table in memory, no bank conflicts, one rounding. Scaling costs 16 FMUL, 8 F2FP
 * and 8 PRMT, eight weights 21 instructions, of them 16 PRMT: 3.1 a weight where a thread owns whole blocks of 64, 3.6 with halves. */
#ifndef NB_CUDA_DEQUANTIZE_BLOCK_CUH
#define NB_CUDA_DEQUANTIZE_BLOCK_CUH

#include "cuda/device.cuh"

/* A 4-bit matrix as kernels take it, by value. All in device memory; pointers as in struct nb_weight. */
struct nb_packed_weight {
    const uint8_t *data;
    const void *absmax;         /* nested: uint8_t codes; plain: float */
    const float *nested_absmax; /* NULL: plain */
    const float *nested_map;    /* [256] */
    const float *nested_offset; /* [1] */
    const float *codebook;      /* [16] */
};

static inline struct nb_packed_weight nb_packed_weight_of(const struct nb_weight *weight)
{
    struct nb_packed_weight packed = {nb_pointer<const uint8_t>(weight->data), nb_pointer<const void>(weight->absmax), NULL, NULL, NULL,
        nb_pointer<const float>(weight->codebook)};
    if (weight->nested) {
        packed.nested_absmax = nb_pointer<const float>(weight->nested_absmax);
        packed.nested_map = nb_pointer<const float>(weight->nested_map);
        packed.nested_offset = nb_pointer<const float>(weight->nested_offset);
    }
    return packed;
}

/* The scale of block `block` = flat index / 64. `map`: weight.nested_map, or a copy of it in shared memory. Product and sum are rounded
 * separately: the build says -fmad=false. */
NB_KERNEL_FUNCTION float nb_block_scale(const struct nb_packed_weight &weight, const float *map, int64_t block)
{
    if (!weight.nested_absmax)
        return ((const float *)weight.absmax)[block];
    float scaled = map[((const uint8_t *)weight.absmax)[block]] * weight.nested_absmax[block / 256];
    return scaled + weight.nested_offset[0];
}

/* The 16 codes times a scale, in bf16: byte c % 4 of low[c / 4] and of high[c / 4] are the halves of code c. */
struct nb_scaled_codes {
    uint32_t low[4], high[4];
};

/* codebook: [16], aligned to 16 bytes, in any memory. */
NB_KERNEL_FUNCTION struct nb_scaled_codes nb_scale_codes(const float *codebook, float scale)
{
    struct nb_scaled_codes codes;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float4 c = ((const float4 *)codebook)[i];
        uint32_t first = nb_pack_bf16(c.x * scale, c.y * scale), second = nb_pack_bf16(c.z * scale, c.w * scale);
        codes.low[i] = nb_permute_bytes(first, second, 0x6420);
        codes.high[i] = nb_permute_bytes(first, second, 0x7531);
    }
    return codes;
}

/* Four nibbles' bytes of one plane: `index` holds their low three bits, `half` chooses codes 0 to 7 or 8 to 15 for each. */
NB_KERNEL_FUNCTION uint32_t nb_pick_bytes(const uint32_t plane[4], uint32_t index, uint32_t half)
{
    return nb_permute_bytes(nb_permute_bytes(plane[0], plane[1], index), nb_permute_bytes(plane[2], plane[3], index), half);
}

/* Eight weights of one block, in order, from their four packed bytes (as loaded, little-endian; the high nibble of a byte comes first). */
NB_KERNEL_FUNCTION uint4 nb_decode_8(const struct nb_scaled_codes &codes, uint32_t packed)
{
    uint32_t index = packed & 0x77777777u, half = 0x32103210u | (packed & 0x88888888u) >> 1;
    uint4 weights;
    uint32_t low = nb_pick_bytes(codes.low, index, half);
    uint32_t high = nb_pick_bytes(codes.high, index, half);
    weights.x = nb_permute_bytes(low, high, 0x4051);
    weights.y = nb_permute_bytes(low, high, 0x6273);
    low = nb_pick_bytes(codes.low, index >> 16, half >> 16);
    high = nb_pick_bytes(codes.high, index >> 16, half >> 16);
    weights.z = nb_permute_bytes(low, high, 0x4051);
    weights.w = nb_permute_bytes(low, high, 0x6273);
    return weights;
}

#endif
