/* A matrix quantized to 4 bits, in bitsandbytes' layout: the same bytes in memory as in a checkpoint.
 *
 * The matrix [rows = outputs, columns = inputs] is flattened row-major; blocks of 64 weights share one absmax and straddle rows
 * where columns % 64 != 0. Plain: absmax is fp32, one a block. Nested (double quantization): absmax is an 8-bit code, and
 *   absmax[b] = nested_map[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset, product and sum rounded separately.
 * A weight is bf16(codebook[code] * absmax), the product in fp32. Source: bitsandbytes functional.py, quantize_4bit. */
#ifndef NB_QUANT_MATRIX_H
#define NB_QUANT_MATRIX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bfloat.h"
#include "base/status.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A view: owns nothing. The bytes are read only and must outlive it. Counts: n = rows * columns, b = nb_quant_blocks(n). */
struct nb_quant_matrix {
    enum nb_quant_type type;
    bool nested;
    uint64_t rows, columns;
    const uint8_t *packed;       /* [nb_quant_packed_bytes(n)], any alignment */
    const uint8_t *absmax_codes; /* [b] if nested, else NULL */
    const float *absmax;         /* [b] if plain, else NULL */
    const float *nested_absmax;  /* [nb_quant_superblocks(b)] if nested, else NULL */
    const float *nested_map;     /* [256] if nested, else NULL: the file's own, two are in circulation */
    const float *codebook;       /* [16] */
    float nested_offset;         /* 0 if plain */
};

/* Where each part lies in one contiguous slab, in bytes from its start, each a multiple of 16. Parts that a plain matrix lacks
 * have 0 bytes. `bytes` is the whole slab, a multiple of 16. The 4-byte offset is not in the slab. */
struct nb_quant_layout {
    enum nb_quant_type type;
    bool nested;
    uint64_t rows, columns;
    uint64_t packed, packed_bytes;
    uint64_t absmax, absmax_bytes; /* uint8 codes if nested, fp32 if plain */
    uint64_t nested_absmax, nested_absmax_bytes;
    uint64_t nested_map, nested_map_bytes;
    uint64_t codebook, codebook_bytes;
    uint64_t bytes;
};

/* Errors: NB_UNSUPPORTED for no rows, no columns, or more than 2^48 weights. */
nb_status nb_quant_matrix_layout(enum nb_quant_type type, bool nested, uint64_t rows, uint64_t columns,
                                 struct nb_quant_layout *layout);

/* The view of a slab laid out so. `base` is aligned to 16 bytes (nothing is read here, so a device address serves too). */
struct nb_quant_matrix nb_quant_matrix_view(const struct nb_quant_layout *layout, const void *base, float nested_offset);

/* Where nb_quantize writes. The caller owns all of it; no two parts overlap. */
struct nb_quant_parts {
    uint8_t *packed;      /* [nb_quant_packed_bytes(n)] */
    float *absmax;        /* [b]: the result if plain; if nested, the caller's scratch, which then holds the unquantized scales */
    uint8_t *absmax_codes; /* [b] if nested, else unused */
    float *nested_absmax; /* [nb_quant_superblocks(b)] if nested, else unused */
    float *nested_map;    /* [256] if nested, else unused */
    float *codebook;      /* [16] */
    float nested_offset;  /* set by nb_quantize: the mean absmax (summed in double, rounded once) if nested, else 0 */
};

/* The parts of a slab, for writing. `scratch` becomes parts.absmax of a nested matrix (fp32 [b]); a plain one ignores it. */
struct nb_quant_parts nb_quant_matrix_parts(const struct nb_quant_layout *layout, void *base, float *scratch);

/* Quantizes w [rows, columns], contiguous. The same bytes at any number of threads (OpenMP inside).
 * Errors: NB_FORMAT when a weight is infinite or NaN, naming the first one's row and column; what was written is then undefined. */
nb_status nb_quantize(enum nb_quant_type type, bool nested, const nb_bf16 *w, uint64_t rows, uint64_t columns,
                      struct nb_quant_parts *parts);

/* The same from fp32, without rounding to bf16 first (models are always quantized from bf16). */
nb_status nb_quantize_f32(enum nb_quant_type type, bool nested, const float *w, uint64_t rows, uint64_t columns,
                          struct nb_quant_parts *parts);

/* The second level alone: codes of absmax [blocks] - offset in the signed dynamic map, in blocks of 256: codes [blocks],
 * nested_absmax [superblocks]. */
void nb_quantize_scales(const float *absmax, uint64_t blocks, float offset, uint8_t *codes, float *nested_absmax);

/* Weights [begin, begin + count) of the flattened matrix, as bf16. Any begin and count with begin + count <= rows * columns;
 * `out` [count], at its natural alignment. One thread: callers cut the range. The same bits for any cut and on any processor.
 * Results below 2^-126 are kept. */
void nb_dequantize_bf16(const struct nb_quant_matrix *matrix, uint64_t begin, uint64_t count, nb_bf16 *out);

/* The scales of blocks [begin, begin + count), fp32, nested or plain. */
void nb_dequantize_absmax(const struct nb_quant_matrix *matrix, uint64_t begin, uint64_t count, float *absmax);

#ifdef __cplusplus
}
#endif

#endif
