/* Gradients of swiglu. Bound by memory: 10 bytes an element (gate, up and dy read, d_gate and d_up written); 32
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

NB_KERNEL_FUNCTION struct gradients differentiated(const struct packs &p)
{
    float g[NB_PACK], u[NB_PACK], d[NB_PACK];
    nb_unpack8(p.gate, g);
    nb_unpack8(p.up, u);
    nb_unpack8(p.dy, d);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        struct nb_logistic l = nb_logistic_of(g[i]);
        float value = nb_bf16_rounded(g[i] * l.s), slope = l.s * (1.0f + g[i] * l.rest);
        g[i] = d[i] * u[i] * slope;
        u[i] = d[i] * value;
    }
    return {nb_pack8(g), nb_pack8(u)};
}

__global__ void __launch_bounds__(NB_FLAT_THREADS) swiglu_backward_kernel(struct nb_swiglu_backward a)
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

nb_status nb_cuda_swiglu_backward(
    struct nb_device *device, struct nb_stream *stream, const struct nb_swiglu_backward *a)
{
    (void)device;
    NB_TRY(nb_check_swiglu_backward(a));
    NB_TRY(nb_cuda_refuse_f32("swiglu_backward", a->activation));
    return nb_cuda_launch(
        "swiglu_backward", swiglu_backward_kernel, nb_launch_flat(a->tokens_max, a->width), stream->stream, *a);
}

nb_status nb_cuda_prepare_swiglu_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("swiglu_backward", swiglu_backward_kernel, 0);
}
