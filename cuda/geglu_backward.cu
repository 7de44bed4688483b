/* Gradients of geglu. Bound by memory: 10 bytes an element (gate, up and dy read, d_gate and d_up written); 45
 * instructions an element, where an H200 has room for 61 in the time that the bytes take. The layout is rows.cuh's flat
 * one: 96 bytes a thread under way. */
#include "cuda/gated.cuh"

/* A pack of gate, up and dy, and of what becomes of the first two. */
struct packs {
    uint4 gate, up, dy;
};

struct gradients {
    uint4 gate, up;
};

/* From |g| = 16 on s is 0 or 1 and the slope with it: g is cut there, so that its powers stay finite. */
NB_KERNEL_FUNCTION float cut_of(float g)
{
    return g > 16.0f ? 16.0f : g < -16.0f ? -16.0f : g;
}

NB_KERNEL_FUNCTION struct gradients differentiated(const struct packs &p)
{
    float g[NB_PACK], u[NB_PACK], d[NB_PACK];
    nb_unpack8(p.gate, g);
    nb_unpack8(p.up, u);
    nb_unpack8(p.dy, d);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        float cut = cut_of(g[i]), rise = cut * (1.5957691216f * (1.0f + 0.134145f * cut * cut));
        struct nb_logistic l = nb_logistic_of(nb_gelu_exponent(cut));
        float value = nb_bf16_rounded(g[i] * l.s), slope = l.s * (1.0f + l.rest * rise);
        g[i] = d[i] * u[i] * slope;
        u[i] = d[i] * value;
    }
    return {nb_pack8(g), nb_pack8(u)};
}

__global__ void __launch_bounds__(NB_FLAT_THREADS) geglu_backward_kernel(struct nb_geglu_backward a)
{
    int packs = a.width / NB_PACK;
    int64_t valid = (int64_t)nb_valid_tokens(nb_slot_at(a.slot), a.tokens_max) * packs;
    const uint4 *gate = nb_row_packs(a.gate, 0, packs), *up = nb_row_packs(a.up, 0, packs),
                *dy = nb_row_packs(a.dy, 0, packs);
    uint4 *d_gate = nb_row_packs(a.d_gate, 0, packs), *d_up = nb_row_packs(a.d_up, 0, packs);
    struct packs p[NB_FLAT_PACKS];
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid)
            p[k] = {gate[nb_flat_pack(k)], up[nb_flat_pack(k)], dy[nb_flat_pack(k)]};
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid) {
            struct gradients gradient = differentiated(p[k]);
            d_gate[nb_flat_pack(k)] = gradient.gate;
            d_up[nb_flat_pack(k)] = gradient.up;
        }
}

nb_status nb_cuda_geglu_backward(struct nb_device *device, struct nb_stream *stream, const struct nb_geglu_backward *a)
{
    (void)device;
    NB_TRY(nb_check_geglu_backward(a));
    NB_TRY(nb_cuda_refuse_f32("geglu_backward", a->activation));
    return nb_cuda_launch(
        "geglu_backward", geglu_backward_kernel, nb_launch_flat(a->tokens_max, a->width), stream->stream, *a);
}

nb_status nb_cuda_prepare_geglu_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("geglu_backward", geglu_backward_kernel, 0);
}
