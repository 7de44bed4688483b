/* What SwiGLU and GeGLU share: the logistic function and its complement. Private to cuda/. */
#ifndef NB_CUDA_GATED_CUH
#define NB_CUDA_GATED_CUH

#include "cuda/rows.cuh"

/* s = 1 / (1 + exp(-x)) and 1 - s, both to 3 ulp, also where they are tiny: with z = exp(-|x|) they are 1 / (1 + z) and
 * z / (1 + z), so nothing cancels or overflows. The quotient's divisor is 1 to 2, where the machine's reciprocal is as
 * good as a division. */
struct nb_logistic {
    float s, rest;
};

NB_KERNEL_FUNCTION struct nb_logistic nb_logistic_of(float x)
{
    float z = expf(-fabsf(x)), large = nb_reciprocal_fast(1.0f + z), small = z * large;
    return x < 0 ? nb_logistic{small, large} : nb_logistic{large, small};
}

/* x such that gelu(g) = g * logistic(x): 2 sqrt(2/pi) (g + 0.044715 g^3), since (1 + tanh(u)) / 2 = logistic(2u). */
NB_KERNEL_FUNCTION float nb_gelu_exponent(float g)
{
    return 1.5957691216f * (g + 0.044715f * g * g * g);
}

#endif
