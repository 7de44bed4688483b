/* The ways to decode whole blocks, one of which the processor's abilities choose. All give the same bits. For dequantize.c, the
 * test that compares them, and the benchmark. */
#ifndef NB_QUANT_DEQUANTIZE_PATHS_H
#define NB_QUANT_DEQUANTIZE_PATHS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bfloat.h"

enum nb_dequantize_path {
    NB_DEQUANTIZE_PLAIN,
    NB_DEQUANTIZE_AVX2,
    NB_DEQUANTIZE_AVX512,
    NB_DEQUANTIZE_PATHS,
};

/* `blocks` whole blocks of 64 weights: packed [32 * blocks], codebook [16], absmax [blocks], out [64 * blocks], any alignment
 * that suits the element. */
struct nb_dequantize_functions {
    void (*bf16)(const uint8_t *packed, const float *codebook, const float *absmax, int64_t blocks, nb_bf16 *out);
};

/* False where this processor or compiler lacks the path; `functions` is then left alone. */
bool nb_dequantize_path(enum nb_dequantize_path path, struct nb_dequantize_functions *functions);

#endif
