/* y = a + b. Bound by memory: 6 bytes an element (a and b read, y written). The layout is rows.cuh's flat one: 64 bytes
 * a thread under way. */
#include "cuda/rows.cuh"

NB_KERNEL_FUNCTION uint4 sum_of(uint4 a, uint4 b)
{
    float x[NB_PACK], y[NB_PACK];
    nb_unpack8(a, x);
    nb_unpack8(b, y);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        x[i] += y[i];
    return nb_pack8(x);
}

__global__ void __launch_bounds__(NB_FLAT_THREADS) add_kernel(struct nb_add args)
{
    int packs = args.width / NB_PACK;
    int64_t valid = (int64_t)nb_valid_token_rows(nb_slot_at(args.slot), args.row_begin, args.tokens_max) * packs;
    const uint4 *a = nb_row_packs(args.a, 0, packs), *b = nb_row_packs(args.b, 0, packs);
    uint4 *y = nb_row_packs(args.y, 0, packs);
    uint4 left[NB_FLAT_PACKS], right[NB_FLAT_PACKS];
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid) {
            left[k] = a[nb_flat_pack(k)];
            right[k] = b[nb_flat_pack(k)];
        }
#pragma unroll
    for (int k = 0; k < NB_FLAT_PACKS; k++)
        if (nb_flat_pack(k) < valid)
            y[nb_flat_pack(k)] = sum_of(left[k], right[k]);
}

nb_status nb_cuda_add(struct nb_device *device, struct nb_stream *stream, const struct nb_add *a)
{
    (void)device;
    NB_TRY(nb_check_add(a));
    NB_TRY(nb_cuda_refuse_f32("add", a->activation));
    return nb_cuda_launch("add", add_kernel, nb_launch_flat(a->tokens_max, a->width), stream->stream, *a);
}

nb_status nb_cuda_prepare_add(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("add", add_kernel, 0);
}
