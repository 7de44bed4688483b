/* exp and tanh that inline into loops and vectorize, the same bits at any vector width. */
#ifndef NB_DEVICE_CPU_MATH_H
#define NB_DEVICE_CPU_MATH_H

#include "base/bfloat.h"

/* e^x within 1 ulp (subnormal results within 1 ulp of theirs); infinite above 88.72, 0 below -103.97; a NaN stays one.
 * x = n ln 2 + r with |r| <= ln(2) / 2 (Cody and Waite 1980: ln 2 in two parts, the first short enough that n times it is exact),
 * e^r by a polynomial fitted at Chebyshev nodes, 2^n in two factors so that subnormal results round once. */
static inline float nb_expf(float x)
{
    const float magic = 0x1.8p23f; /* adding it rounds to an integer and leaves that in the low mantissa bits */
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float shifted = x * 0x1.715476p0f + magic;
    int n = (int)(nb_float_bits(shifted) - nb_float_bits(magic));
    float whole = shifted - magic;
    float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    float p = 0.000198910027f;
    p = p * r + 0.00139336602f;
    p = p * r + 0.00833331048f;
    p = p * r + 0.041666463f;
    p = p * r + 0.166666672f;
    p = p * r + 0.5f;
    float value = 1.0f + (r + r * r * p);
    int half = n >> 1;
    return value * nb_float_from_bits((uint32_t)(half + 127) << 23) * nb_float_from_bits((uint32_t)(n - half + 127) << 23);
}

/* tanh within 2 ulp: a polynomial below 5/8, (1 - e) / (1 + e) with e = exp(-2|x|) above. */
static inline float nb_tanhf(float x)
{
    float z = x * x;
    float p = 0.0022918093f;
    p = p * z + -0.00834311917f;
    p = p * z + 0.0217686668f;
    p = p * z + -0.0539592281f;
    p = p * z + 0.133333027f;
    p = p * z + -0.333333343f;
    float small = x + x * z * p;
    float magnitude = x < 0 ? -x : x;
    float e = nb_expf(-2.0f * magnitude);
    float large = (1.0f - e) / (1.0f + e);
    large = x < 0 ? -large : large;
    return magnitude < 0.625f ? small : large;
}

#endif
