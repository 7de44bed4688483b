/* bfloat16 and binary16, as bits, to and from fp32. Inline, so that loops over them vectorize. */
#ifndef NB_BASE_BFLOAT_H
#define NB_BASE_BFLOAT_H

#include <stdint.h>
#include <string.h>

typedef uint16_t nb_bf16;

static inline uint32_t nb_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float nb_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float nb_bf16_to_float(nb_bf16 value)
{
    return nb_float_from_bits((uint32_t)value << 16);
}

/* Rounds to nearest, ties to even. A NaN stays a NaN (quiet). Subnormals are kept. */
static inline nb_bf16 nb_bf16_from_float(float value)
{
    uint32_t bits = nb_float_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return (nb_bf16)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/* IEEE 754 binary16 to fp32, exact, subnormals and infinities included; a NaN keeps its bits. The exponent is rebased by a product,
 * which also normalizes subnormals. */
static inline float nb_half_to_float(uint16_t half)
{
    uint32_t magnitude = half & 0x7fffu;
    uint32_t bits = nb_float_bits(nb_float_from_bits(magnitude << 13) * 0x1p112f);
    bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0;
    return nb_float_from_bits(bits | (uint32_t)(half & 0x8000u) << 16);
}

#endif
