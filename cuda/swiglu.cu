/* y = silu(gate) * up. Bound by memory: 6 bytes an element (gate and up read, y written); 22 instructions an
 * element, where an H200 has room for 37 in the time that the bytes take. The layout is rows.cuh's flat one. */
#include "cuda/gated.cuh"

nb_status nb_cuda_swiglu(struct nb_device *device, struct nb_stream *stream, const struct nb_swiglu *a)
{
    (void)device;
    NB_TRY(nb_check_swiglu(a));
    NB_TRY(nb_cuda_refuse_f32("swiglu", a->activation));
    return nb_cuda_launch("swiglu", nb_gated_kernel<nb_silu, struct nb_swiglu>, nb_launch_flat(a->tokens_max, a->width),
        stream->stream, *a);
}

nb_status nb_cuda_prepare_swiglu(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("swiglu", nb_gated_kernel<nb_silu, struct nb_swiglu>, 0);
}
