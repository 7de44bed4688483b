#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/simd.h"
#include "quant/dynamic_map.h"
#include "quant/matrix.h"

enum { INFINITY_BITS = 0x7f800000 };

/* The code of a scaled weight x: first, plus the rise of each threshold below x. Sums vectorize where a table would not. */
struct staircase {
    float thresholds[NB_QUANT_CODES - 1];
    int32_t first, rises[NB_QUANT_CODES - 1];
};

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

/* What quantizing a matrix reads: w is bf16 or fp32, the other is NULL. */
struct source {
    const nb_bf16 *narrow;
    const float *wide;
    uint64_t count;
    struct staircase staircase;
};

/* Weights of one block, zeros after its end. */
static void load_block(const struct source *source, uint64_t block, float x[NB_QUANT_BLOCK])
{
    uint64_t begin = block * NB_QUANT_BLOCK, left = source->count - begin;
    int count = left < NB_QUANT_BLOCK ? (int)left : NB_QUANT_BLOCK;
    if (source->wide)
        memcpy(x, source->wide + begin, (size_t)count * sizeof *x);
    else
        for (int i = 0; i < count; i++)
            x[i] = nb_bf16_to_float(source->narrow[begin + (uint64_t)i]);
    for (int i = count; i < NB_QUANT_BLOCK; i++)
        x[i] = 0.0f;
}

/* Packs one block, scaling x to [-1, 1] in place, and returns its absmax. One that is not finite is returned before x or packed is
 * written. */
NB_CLONES
static float quantize_block(const struct staircase *staircase, float *restrict x, uint8_t *restrict packed)
{
    int32_t maximum = 0, codes[NB_QUANT_BLOCK];
    for (int i = 0; i < NB_QUANT_BLOCK; i++) { /* as integers, which vectorizes where a maximum of floats does not */
        int32_t magnitude = (int32_t)(nb_float_bits(x[i]) & 0x7fffffffu);
        maximum = magnitude > maximum ? magnitude : maximum;
    }
    float absmax = nb_float_from_bits((uint32_t)maximum), inverse = 1.0f / absmax;
    if (maximum >= INFINITY_BITS)
        return absmax;
    if (maximum != 0 && isinf(inverse)) /* a subnormal absmax: its reciprocal overflows, the quotient does not */
        for (int i = 0; i < NB_QUANT_BLOCK; i++)
            x[i] = x[i] / absmax;
    else if (maximum != 0)
        for (int i = 0; i < NB_QUANT_BLOCK; i++)
            x[i] = x[i] * inverse;
    for (int i = 0; i < NB_QUANT_BLOCK; i++)
        codes[i] = staircase->first;
    for (int k = 0; k < NB_QUANT_CODES - 1; k++) {
        float threshold = staircase->thresholds[k];
        int32_t rise = staircase->rises[k];
        for (int i = 0; i < NB_QUANT_BLOCK; i++)
            codes[i] += x[i] > threshold ? rise : 0;
    }
    for (int i = 0; i < NB_QUANT_BLOCK / 2; i++)
        packed[i] = (uint8_t)(codes[2 * i] << 4 | codes[2 * i + 1]);
    return absmax;
}

/* The index of the block's first weight that is not finite. */
static uint64_t first_bad(const float x[NB_QUANT_BLOCK], uint64_t block)
{
    int i = 0;
    while (i < NB_QUANT_BLOCK - 1 && isfinite(x[i]))
        i++;
    return block * NB_QUANT_BLOCK + (uint64_t)i;
}

/* Packs and scales one superblock's range of blocks; returns the index of its first bad weight, or UINT64_MAX. */
static uint64_t quantize_range(
    const struct source *source, uint64_t begin, uint64_t end, uint8_t *packed, float *absmax)
{
    for (uint64_t block = begin; block < end; block++) {
        float x[NB_QUANT_BLOCK];
        uint8_t bytes[NB_QUANT_BLOCK / 2];
        uint64_t left = nb_quant_packed_bytes(source->count - block * NB_QUANT_BLOCK);
        load_block(source, block, x);
        absmax[block] = quantize_block(&source->staircase, x, bytes);
        if (!isfinite(absmax[block]))
            return first_bad(x, block);
        memcpy(packed + block * sizeof bytes, bytes, left < sizeof bytes ? left : sizeof bytes);
    }
    return UINT64_MAX;
}

/* The second level's offset: the mean absmax, in partial sums of 256 consecutive values in double precision, added in order. */
static float offset_of(const float *absmax, uint64_t blocks)
{
    double total = 0.0;
    for (uint64_t begin = 0; begin < blocks; begin += NB_QUANT_SUPERBLOCK) {
        uint64_t end = blocks - begin < NB_QUANT_SUPERBLOCK ? blocks : begin + NB_QUANT_SUPERBLOCK;
        double partial = 0.0;
        for (uint64_t i = begin; i < end; i++)
            partial += (double)absmax[i];
        total += partial;
    }
    return (float)(total / (double)blocks);
}

void nb_quantize_scales(const float *absmax, uint64_t blocks, float offset, uint8_t *codes, float *nested_absmax)
{
    struct nb_dynamic_coder coder;
    nb_dynamic_coder_init(true, &coder);
    int64_t superblocks = (int64_t)nb_quant_superblocks(blocks);
#pragma omp parallel for schedule(static)
    for (int64_t s = 0; s < superblocks; s++) {
        uint64_t begin = (uint64_t)s * NB_QUANT_SUPERBLOCK, left = blocks - begin;
        int count = left < NB_QUANT_SUPERBLOCK ? (int)left : NB_QUANT_SUPERBLOCK;
        float centred[NB_QUANT_SUPERBLOCK];
        for (int i = 0; i < count; i++)
            centred[i] = absmax[begin + (uint64_t)i] - offset;
        nb_dynamic_quantize_block(&coder, centred, count, codes + begin, nested_absmax + s);
    }
}

static nb_status quantize(enum nb_quant_type type, bool nested, struct source *source, uint64_t rows, uint64_t columns,
    struct nb_quant_parts *parts)
{
    struct nb_quant_layout layout; /* checks the shape */
    NB_TRY(nb_quant_matrix_layout(type, nested, rows, columns, &layout));
    source->count = rows * columns;
    source->staircase = staircase_of(type);
    memcpy(parts->codebook, nb_quant_codebook(type), NB_QUANT_CODES * sizeof *parts->codebook);
    uint64_t blocks = nb_quant_blocks(source->count), bad = UINT64_MAX;
    int64_t ranges = (int64_t)nb_quant_superblocks(blocks);
#pragma omp parallel for schedule(static) reduction(min : bad)
    for (int64_t r = 0; r < ranges; r++) {
        uint64_t begin = (uint64_t)r * NB_QUANT_SUPERBLOCK, left = blocks - begin;
        uint64_t end = left < NB_QUANT_SUPERBLOCK ? blocks : begin + NB_QUANT_SUPERBLOCK;
        uint64_t found = quantize_range(source, begin, end, parts->packed, parts->absmax);
        bad = found < bad ? found : bad;
    }
    if (bad != UINT64_MAX)
        return nb_fail(NB_FORMAT,
            "the weight in row %" PRIu64 ", column %" PRIu64 " (element %" PRIu64 ") is not a finite number; "
            "the checkpoint is damaged or its training diverged",
            bad / columns, bad % columns, bad);
    parts->nested_offset = 0.0f;
    if (nested) {
        nb_dynamic_map(true, parts->nested_map);
        parts->nested_offset = offset_of(parts->absmax, blocks);
        nb_quantize_scales(parts->absmax, blocks, parts->nested_offset, parts->absmax_codes, parts->nested_absmax);
    }
    return NB_OK;
}

nb_status nb_quantize(enum nb_quant_type type, bool nested, const nb_bf16 *w, uint64_t rows, uint64_t columns,
    struct nb_quant_parts *parts)
{
    struct source source = {.narrow = w};
    return quantize(type, nested, &source, rows, columns, parts);
}

nb_status nb_quantize_f32(
    enum nb_quant_type type, bool nested, const float *w, uint64_t rows, uint64_t columns, struct nb_quant_parts *parts)
{
    struct source source = {.wide = w};
    return quantize(type, nested, &source, rows, columns, parts);
}
