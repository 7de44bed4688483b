/* x[t] = table[ids[t]] * scale. Bound by memory: 4 bytes an element (a row of the table read, one of x written),
 * besides 4 bytes a token. Laid out as rows.cuh's copied rows: up to 64 bytes a thread under way. */
#include "cuda/rows.cuh"

NB_KERNEL_FUNCTION uint4 scaled(uint4 pack, float scale)
{
    float x[NB_PACK];
    nb_unpack8(pack, x);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        x[i] *= scale;
    return nb_pack8(x);
}

__global__ void __launch_bounds__(NB_COPY_THREADS) embedding_kernel(struct nb_embedding a, int shift)
{
    struct nb_row_place place = nb_copy_place_of_thread(shift);
    if (place.row >= nb_valid_tokens(nb_slot_at(a.slot), a.tokens_max))
        return;
    int packs = a.width / NB_PACK, id = ((const int32_t *)(uintptr_t)a.ids.address)[place.row];
    const uint4 *from = nb_row_packs(a.table, id, packs);
    uint4 *to = nb_row_packs(a.x, place.row, packs);
    for (int first = place.lane; first < packs; first += NB_COPY_PACKS * place.threads) {
        uint4 pack[NB_COPY_PACKS];
#pragma unroll
        for (int k = 0; k < NB_COPY_PACKS; k++)
            if (first + k * place.threads < packs)
                pack[k] = from[first + k * place.threads];
#pragma unroll
        for (int k = 0; k < NB_COPY_PACKS; k++)
            if (first + k * place.threads < packs)
                to[first + k * place.threads] = scaled(pack[k], a.scale);
    }
}

nb_status nb_cuda_embedding(struct nb_device *device, struct nb_stream *stream, const struct nb_embedding *a)
{
    (void)device;
    NB_TRY(nb_check_embedding(a));
    NB_TRY(nb_cuda_refuse_f32("embedding", a->activation));
    int shift = nb_copy_shift(a->width);
    return nb_cuda_launch(
        "embedding", embedding_kernel, nb_launch_copy(a->tokens_max, shift, 1), stream->stream, *a, shift);
}

nb_status nb_cuda_prepare_embedding(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("embedding", embedding_kernel, 0);
}
