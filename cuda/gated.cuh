/* What SwiGLU and GeGLU share: the logistic function and its complement, and the kernels, which differ in the function
 * of the gate alone: a struct with `static struct nb_gate of(float g)`. Private to cuda/. */
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

/* A function of the gate and its derivative, both fp32. */
struct nb_gate {
    float value, slope;
};

/* y = round(f(gate)) * up. */
template <typename F> NB_KERNEL_FUNCTION uint4 nb_gated(uint4 gate, uint4 up)
{
    float g[NB_PACK], u[NB_PACK];
    nb_unpack8(gate, g);
    nb_unpack8(up, u);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        g[i] = nb_bf16_rounded(F::of(g[i]).value) * u[i];
    return nb_pack8(g);
}

template <typename F, typename A> static __global__ void __launch_bounds__(NB_FLAT_THREADS) nb_gated_kernel(A a)
{
    int packs = a.width / NB_PACK;
    int64_t valid = (int64_t)nb_valid_token_rows(nb_slot_at(a.slot), a.row_begin, a.tokens_max) * packs;
    const uint4 *gate = nb_row_packs(a.gate, 0, packs), *up = nb_row_packs(a.up, 0, packs);
    uint4 *y = nb_row_packs(a.y, 0, packs);
    uint4 g[NB_FLAT_PACKS], u[NB_FLAT_PACKS];
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid) {
            g[k] = gate[nb_flat_pack(k)];
            u[k] = up[nb_flat_pack(k)];
        }
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid)
            y[nb_flat_pack(k)] = nb_gated<F>(g[k], u[k]);
}

/* A pack of gate, up and dy, and of what becomes of the first two. */
struct nb_gated_packs {
    uint4 gate, up, dy;
};

struct nb_gated_gradients {
    uint4 gate, up;
};

template <typename F> NB_KERNEL_FUNCTION struct nb_gated_gradients nb_gated_backward(const struct nb_gated_packs &p)
{
    float g[NB_PACK], u[NB_PACK], d[NB_PACK];
    nb_unpack8(p.gate, g);
    nb_unpack8(p.up, u);
    nb_unpack8(p.dy, d);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        struct nb_gate f = F::of(g[i]);
        g[i] = d[i] * u[i] * f.slope;
        u[i] = d[i] * nb_bf16_rounded(f.value);
    }
    return {nb_pack8(g), nb_pack8(u)};
}

template <typename F, typename A> static __global__ void __launch_bounds__(NB_FLAT_THREADS) nb_gated_backward_kernel(A a)
{
    int packs = a.width / NB_PACK;
    int64_t valid = (int64_t)nb_valid_token_rows(nb_slot_at(a.slot), a.row_begin, a.tokens_max) * packs;
    const uint4 *gate = nb_row_packs(a.gate, 0, packs), *up = nb_row_packs(a.up, 0, packs),
                *dy = nb_row_packs(a.dy, 0, packs);
    uint4 *d_gate = nb_row_packs(a.d_gate, 0, packs), *d_up = nb_row_packs(a.d_up, 0, packs);
    struct nb_gated_packs p[NB_FLAT_PACKS];
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid)
            p[k] = {gate[nb_flat_pack(k)], up[nb_flat_pack(k)], dy[nb_flat_pack(k)]};
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid) {
            struct nb_gated_gradients gradient = nb_gated_backward<F>(p[k]);
            d_gate[nb_flat_pack(k)] = gradient.gate;
            d_up[nb_flat_pack(k)] = gradient.up;
        }
}

struct nb_silu {
    NB_KERNEL_FUNCTION struct nb_gate of(float g)
    {
        struct nb_logistic l = nb_logistic_of(g);
        return {g * l.s, l.s * (1.0f + g * l.rest)};
    }
};

/* From |g| = 16 on s is 0 or 1 and the slope with it: g is cut there for the slope, so that its powers stay finite. */
struct nb_gelu {
    NB_KERNEL_FUNCTION struct nb_gate of(float g)
    {
        float cut = g > 16.0f ? 16.0f : g < -16.0f ? -16.0f : g;
        float rise = cut * (1.5957691216f * (1.0f + 0.134145f * cut * cut));
        struct nb_logistic l = nb_logistic_of(nb_gelu_exponent(cut));
        return {g * l.s, l.s * (1.0f + l.rest * rise)};
    }
};

#endif
