#include "quant/dynamic_map.h"

#include <math.h>
#include <string.h>

#include "base/bfloat.h"
#include "base/simd.h"

enum {
    DECADES = 7,
    BUCKET_SHIFT = 16,              /* keeps sign, exponent and the top 7 bits of the mantissa */
    BUCKET_BASE = (127 - 24) << 23, /* 2^-24, below every midpoint but those around zero */
    INFINITY_BITS = 0x7f800000,
};

/* Element j of torch's linspace(0.1, 1, count): from the nearer end, with FMA. */
static float linspace_at(int j, int count)
{
    float start = 0.1f, end = 1.0f, step = (end - start) / (float)(count - 1);
    return j < count / 2 ? fmaf(step, (float)j, start) : fmaf(-step, (float)(count - 1 - j), end);
}

void nb_dynamic_map(bool is_signed, float map[256])
{
    static const float scales[DECADES] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int zero = is_signed ? 127 : 0;
    float *positive = map + zero + 1;
    map[zero] = 0.0f;
    for (int decade = 0; decade < DECADES; decade++) {
        int means = is_signed ? 1 << decade : 2 << decade;
        for (int j = 0; j < means; j++)
            *positive++ = (linspace_at(j, means + 1) + linspace_at(j + 1, means + 1)) / 2.0f * scales[decade];
    }
    *positive = 1.0f;
    for (int i = 1; i <= zero; i++)
        map[zero - i] = -map[zero + i];
}

/* The bucket of a magnitude given as bits; the last holds 1.0 and all above, the first all below 2^-24 too. */
static inline int32_t bucket_of(int32_t magnitude)
{
    int32_t above = magnitude - BUCKET_BASE;
    int32_t bucket = (above < 0 ? 0 : above) >> BUCKET_SHIFT;
    return bucket > NB_DYNAMIC_BUCKETS ? NB_DYNAMIC_BUCKETS : bucket;
}

/* A bucket is narrower than the distance of two midpoints, so one comparison settles which side of the one inside x lies on. */
static inline uint8_t code_of(const struct nb_dynamic_coder *coder, float x)
{
    uint32_t bits = nb_float_bits(x);
    uint8_t code = coder->first[bits >> 31][bucket_of((int32_t)(bits & 0x7fffffffu))];
    return (uint8_t)(code + (x > coder->midpoints[code]));
}

uint8_t nb_dynamic_code(const struct nb_dynamic_coder *coder, float x)
{
    return code_of(coder, x);
}

/* The number of midpoints below x, counted. */
static uint8_t count_below(const struct nb_dynamic_coder *coder, float x)
{
    int code = 0;
    while (code < 255 && x > coder->midpoints[code])
        code++;
    return (uint8_t)code;
}

void nb_dynamic_coder_init(bool is_signed, struct nb_dynamic_coder *coder)
{
    nb_dynamic_map(is_signed, coder->map);
    for (int i = 0; i < 255; i++) {
        double exact = ((double)coder->map[i] + (double)coder->map[i + 1]) / 2.0;
        float midpoint = (float)exact;
        coder->midpoints[i] = (double)midpoint > exact ? nextafterf(midpoint, -INFINITY) : midpoint;
    }
    coder->midpoints[255] = INFINITY;
    for (uint32_t bucket = 0; bucket <= NB_DYNAMIC_BUCKETS; bucket++) {
        uint32_t low = BUCKET_BASE + (bucket << BUCKET_SHIFT), high = low + (1u << BUCKET_SHIFT) - 1;
        if (bucket == 0)
            low = 0;
        if (bucket == NB_DYNAMIC_BUCKETS)
            high = INFINITY_BITS;
        coder->first[0][bucket] = count_below(coder, nb_float_from_bits(low));
        coder->first[1][bucket] = count_below(coder, -nb_float_from_bits(high));
    }
}

/* Magnitudes compare as integers, which vectorizes where a maximum of floats does not. */
NB_CLONES
static float absolute_maximum(const float *x, int count)
{
    int32_t maximum = 0;
    for (int i = 0; i < count; i++) {
        int32_t magnitude = (int32_t)(nb_float_bits(x[i]) & 0x7fffffffu);
        maximum = magnitude > maximum ? magnitude : maximum;
    }
    return nb_float_from_bits((uint32_t)maximum);
}

void nb_dynamic_quantize_block(
    const struct nb_dynamic_coder *coder, const float *x, int count, uint8_t *codes, float *absmax)
{
    float maximum = absolute_maximum(x, count);
    float inverse = 1.0f / maximum;
    *absmax = maximum;
    if (maximum == 0.0f)
        memset(codes, code_of(coder, 0.0f), (size_t)count);
    else if (isinf(inverse)) /* a subnormal scale: its reciprocal overflows, the quotient does not */
        for (int i = 0; i < count; i++)
            codes[i] = code_of(coder, x[i] / maximum);
    else
        for (int i = 0; i < count; i++)
            codes[i] = code_of(coder, x[i] * inverse);
}

void nb_dynamic_dequantize_block(const float map[256], const uint8_t *codes, int count, float absmax, float *x)
{
    for (int i = 0; i < count; i++)
        x[i] = map[codes[i]] * absmax;
}
