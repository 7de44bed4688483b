/* y = gelu(gate) * up. Bound by memory: 6 bytes an element (gate and up read, y written); 27 instructions an
 * element, where an H200 has room for 37 in the time that the bytes take. The layout is rows.cuh's flat one. */
#include "cuda/gated.cuh"

NB_KERNEL_FUNCTION uint4 gated(uint4 gate, uint4 up)
{
    float g[NB_PACK], u[NB_PACK];
    nb_unpack8(gate, g);
    nb_unpack8(up, u);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        g[i] = nb_bf16_rounded(g[i] * nb_logistic_of(nb_gelu_exponent(g[i])).s) * u[i];
    return nb_pack8(g);
}

__global__ void __launch_bounds__(NB_FLAT_THREADS) geglu_kernel(struct nb_geglu a)
{
    int packs = a.width / NB_PACK;
    int64_t valid = (int64_t)nb_valid_tokens(nb_slot_at(a.slot), a.tokens_max) * packs;
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
            y[nb_flat_pack(k)] = gated(g[k], u[k]);
}

nb_status nb_cuda_geglu(struct nb_device *device, struct nb_stream *stream, const struct nb_geglu *a)
{
    (void)device;
    NB_TRY(nb_check_geglu(a));
    NB_TRY(nb_cuda_refuse_f32("geglu", a->activation));
    return nb_cuda_launch("geglu", geglu_kernel, nb_launch_flat(a->tokens_max, a->width), stream->stream, *a);
}

nb_status nb_cuda_prepare_geglu(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("geglu", geglu_kernel, 0);
}
