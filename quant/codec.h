/* The 4-bit codes: codebooks, thresholds and the sizes that follow from the block lengths.
 * Source: bitsandbytes csrc/gemm_4bit_common.cuh (NF4: Dettmers et al. 2023, arXiv 2305.14314) and csrc/kernels.cu (FP4). */
#ifndef NB_QUANT_CODEC_H
#define NB_QUANT_CODEC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum nb_quant_type {
    NB_QUANT_NF4,
    NB_QUANT_FP4,
};

enum {
    NB_QUANT_BLOCK = 64,       /* weights that share one first-level scale */
    NB_QUANT_SUPERBLOCK = 256, /* first-level scales that share one second-level scale */
    NB_QUANT_CODES = 16,
};

/* "nf4" or "fp4": bitsandbytes' names. Static. */
const char *nb_quant_type_name(enum nb_quant_type type);

/* The value of each code, fp32 [16]. Static, never freed. FP4's code 8 is +0, as its code 0. */
const float *nb_quant_codebook(enum nb_quant_type type);

/* How a scaled weight x in [-1, 1] gets its code: codes[number of thresholds below x]. `thresholds` are the fp32 midpoints of
 * neighbouring values, rising; `codes` lists the codes by rising value, equal ones by rising code. */
void nb_quant_thresholds(enum nb_quant_type type, float thresholds[NB_QUANT_CODES - 1], uint8_t codes[NB_QUANT_CODES]);

/* Bytes of `count` packed weights: two a byte, the earlier one in the high nibble, an odd last one padded with the code of 0. */
static inline uint64_t nb_quant_packed_bytes(uint64_t count)
{
    return count / 2 + count % 2;
}

/* Blocks of 64 flattened weights; the last may be partial. */
static inline uint64_t nb_quant_blocks(uint64_t count)
{
    return count / NB_QUANT_BLOCK + (count % NB_QUANT_BLOCK != 0);
}

/* Second-level blocks of 256 scales; the last may be partial. */
static inline uint64_t nb_quant_superblocks(uint64_t blocks)
{
    return blocks / NB_QUANT_SUPERBLOCK + (blocks % NB_QUANT_SUPERBLOCK != 0);
}

#ifdef __cplusplus
}
#endif

#endif
