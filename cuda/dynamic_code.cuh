/* The nearest code of the dynamic 8-bit maps (quant/dynamic_map.h), for kernels: the same codes as
 * nb_dynamic_code's.
 *
 * The CPU looks the first guess up in 6 KB a map. Here it is arithmetic: a map cuts decade i of (0, 1] into 2^i
 * (unsigned: 2^(i+1)) equal pieces, so the number of pieces below a magnitude is linear in it within a decade, and,
 * as the slope falls from decade to decade, the least of seven lines. Between two decades the midpoint lies 0.2 of a
 * piece beyond the line's; a quarter subtracted makes the guess the code or the one below it, always, and one
 * comparison with the exact midpoint settles which. */
#ifndef NB_CUDA_DYNAMIC_CODE_CUH
#define NB_CUDA_DYNAMIC_CODE_CUH

#include <math.h>

#include "cuda/device.cuh"
#include "quant/dynamic_map.h"

enum { NB_DYNAMIC_CODES = 256, NB_DYNAMIC_ZERO = 127 /* the code of 0 in the signed map */ };

/* The midpoint of two neighbouring values, rounded down to fp32: x > midpoint holds for the fp32 numbers beyond the
 * exact one alone. */
NB_KERNEL_FUNCTION float nb_dynamic_midpoint(float low, float high)
{
    double exact = ((double)low + (double)high) / 2.0;
    float midpoint = (float)exact;
    if ((double)midpoint <= exact)
        return midpoint;
    uint32_t bits;
    memcpy(&bits, &midpoint, sizeof bits);
    bits += midpoint > 0 ? 0xffffffffu : 1u; /* the next number towards minus infinity; no midpoint is 0 */
    memcpy(&midpoint, &bits, sizeof bits);
    return midpoint;
}

/* A map and its midpoints into shared memory; the block's threads share the work, a barrier must follow. `source` is
 * any memory. */
NB_KERNEL_FUNCTION void nb_dynamic_stage(const float *source, float *map, float *midpoints)
{
    for (int i = (int)threadIdx.x; i < NB_DYNAMIC_CODES; i += (int)blockDim.x) {
        float value = source[i];
        map[i] = value;
        midpoints[i] = i == NB_DYNAMIC_CODES - 1 ? INFINITY : nb_dynamic_midpoint(value, source[i + 1]);
    }
}

/* Line of decade i for a map of `pieces` in the first: slope and offset, less a quarter. */
#define NB_DYNAMIC_LINE(x, pieces, i, power, zero) \
    fmaf(x, (float)((pieces) * (1 << (i)) * (power) / 0.9), (float)((pieces) * (1 << (i)) * 0.8 / 0.9 - (zero) - 0.25))
#define NB_DYNAMIC_LEAST(x, pieces, zero, last)                                                                 \
    fminf(fminf(fminf(NB_DYNAMIC_LINE(x, pieces, 0, 1e6, zero), NB_DYNAMIC_LINE(x, pieces, 1, 1e5, zero)),      \
              fminf(NB_DYNAMIC_LINE(x, pieces, 2, 1e4, zero), NB_DYNAMIC_LINE(x, pieces, 3, 1e3, zero))),       \
        fminf(fminf(NB_DYNAMIC_LINE(x, pieces, 4, 1e2, zero), NB_DYNAMIC_LINE(x, pieces, 5, 1e1, zero)),        \
            fminf(NB_DYNAMIC_LINE(x, pieces, 6, 1e0, zero), (last))))

/* How many of the signed map's positive midpoints lie below a magnitude, or one less. At most 127, also for a NaN. */
NB_KERNEL_FUNCTION int nb_dynamic_guess_signed(float magnitude)
{
    return (int)NB_DYNAMIC_LEAST(magnitude, 1, 0, 127.0f);
}

/* The same for the unsigned map; at most 254. x >= 0. */
NB_KERNEL_FUNCTION int nb_dynamic_guess_unsigned(float x)
{
    return (int)NB_DYNAMIC_LEAST(x, 2, 1, 254.0f);
}

/* The nearest code of x in [-1, 1] (what rounding adds to 1 does no harm). midpoints: the signed map's, as
 * nb_dynamic_stage leaves them. */
NB_KERNEL_FUNCTION int nb_dynamic_code_signed(const float *midpoints, float x)
{
    int guess = nb_dynamic_guess_signed(fabsf(x));
    int code = x < 0.0f ? NB_DYNAMIC_ZERO - 1 - guess : NB_DYNAMIC_ZERO + guess;
    code = code < 0 ? 0 : code;
    return code + (x > midpoints[code] ? 1 : 0);
}

/* Of x in [0, 1] in the unsigned map. */
NB_KERNEL_FUNCTION int nb_dynamic_code_unsigned(const float *midpoints, float x)
{
    int code = nb_dynamic_guess_unsigned(x);
    return code + (x > midpoints[code] ? 1 : 0);
}

/* A block's values to [-1, 1], in place: times 1 / absmax, `absmax` the same in all threads of the block of values.
 * Zeros stay. A subnormal absmax, whose reciprocal overflows, divides. */
template <int COUNT> NB_KERNEL_FUNCTION void nb_dynamic_scale(float x[COUNT], float absmax)
{
    float inverse = absmax == 0.0f ? 0.0f : 1.0f / absmax;
    if (inverse > 3.40282347e38f) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            x[i] = x[i] / absmax;
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        x[i] = x[i] * inverse;
}

#endif
