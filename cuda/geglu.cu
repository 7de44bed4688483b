/* y = gelu(gate) * up. Bound by memory: 6 bytes an element (gate and up read, y written); 27 instructions an
 * element, where an H200 has room for 37 in the time that the bytes take. The layout is rows.cuh's flat one. */
#include "cuda/gated.cuh"

nb_status nb_cuda_geglu(struct nb_device *device, struct nb_stream *stream, const struct nb_geglu *a)
{
    (void)device;
    NB_TRY(nb_check_geglu(a));
    NB_TRY(nb_cuda_refuse_f32("geglu", a->activation));
    return nb_cuda_launch("geglu", nb_gated_kernel<nb_gelu, struct nb_geglu>, nb_launch_flat(a->tokens_max, a->width),
        stream->stream, *a);
}

nb_status nb_cuda_prepare_geglu(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("geglu", nb_gated_kernel<nb_gelu, struct nb_geglu>, 0);
}
