/* What SwiGLU and GeGLU share on the CPU: y = f(gate) * up row by row, f rounded to the activation dtype before the product. `f` is a
 * function known where this is inlined, so that the loops vectorize over it. Private to src/device/cpu/. */
#ifndef NB_DEVICE_CPU_GATED_H
#define NB_DEVICE_CPU_GATED_H

#include "device/cpu/element.h"

#define NB_GATED static inline __attribute__((always_inline))

NB_GATED void nb_gated_row_f32(float (*f)(float), const float *gate, const float *up, float *y, int width)
{
#pragma GCC ivdep /* y may be gate or up */
    for (int i = 0; i < width; i++)
        y[i] = f(gate[i]) * up[i];
}

/* In pieces that pass through the first-level cache as fp32: a loop that widens, computes and rounds at once runs out of vector
 * registers and takes a third longer. */
NB_GATED void nb_gated_row_bf16(float (*f)(float), const nb_bf16 *gate, const nb_bf16 *up, nb_bf16 *y, int width)
{
    enum { PIECE = 512 };
    float s[PIECE];
    for (int begin = 0; begin < width; begin += PIECE) {
        int count = width - begin < PIECE ? width - begin : PIECE;
        for (int i = 0; i < count; i++)
            s[i] = nb_bf16_to_float(gate[begin + i]);
        for (int i = 0; i < count; i++)
            s[i] = f(s[i]);
#pragma GCC ivdep
        for (int i = 0; i < count; i++)
            y[begin + i] = nb_bf16_from_float(nb_cpu_round(NB_DTYPE_BF16, s[i]) * nb_bf16_to_float(up[begin + i]));
    }
}

#endif
