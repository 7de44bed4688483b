/* The dynamic 8-bit data type and blockwise quantization with it.
 * Source: bitsandbytes functional.py, create_dynamic_map; Dettmers et al. 2022, arXiv 2110.02861. */
#ifndef NB_QUANT_DYNAMIC_MAP_H
#define NB_QUANT_DYNAMIC_MAP_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    NB_DYNAMIC_BLOCK = 256,  /* values that share one fp32 scale */
    NB_DYNAMIC_BUCKETS = 3072, /* 24 binades below 1 and, cut by their top 7 mantissa bits, 128 buckets in each */
};

/* The 256 values, rising. Signed: zero at 127, no -1.0. Unsigned: zero at 0. Both end at 1.0. Decades are
 * linspaces computed with FMA as torch does, so the values are the ones published checkpoints hold. */
void nb_dynamic_map(bool is_signed, float map[256]);

/* A map and what finding the nearest code takes. Plain data, 8.2 KiB, read only once made. */
struct nb_dynamic_coder {
    float map[256];
    float midpoints[256];                       /* of codes i and i + 1, rounded down to fp32; the last is infinite */
    uint8_t first[2][NB_DYNAMIC_BUCKETS + 1];   /* [sign][bucket]: code of the bucket's least value */
};

void nb_dynamic_coder_init(bool is_signed, struct nb_dynamic_coder *coder);

/* The nearest code of x in [-1, 1]: the number of (exact) midpoints below x. Values beyond get the outermost codes. Not for NaN. */
uint8_t nb_dynamic_code(const struct nb_dynamic_coder *coder, float x);

/* One block of count <= 256 finite values: *absmax = max |x|, codes of x * (1 / *absmax); all zero gives the code of 0. */
void nb_dynamic_quantize_block(const struct nb_dynamic_coder *coder, const float *x, int count, uint8_t *codes, float *absmax);

/* x[i] = map[codes[i]] * absmax, count <= 256. */
void nb_dynamic_dequantize_block(const float map[256], const uint8_t *codes, int count, float absmax, float *x);

#ifdef __cplusplus
}
#endif

#endif
