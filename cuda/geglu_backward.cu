/* Gradients of geglu. Bound by memory: 10 bytes an element (gate, up and dy read, d_gate and d_up written); 45
 * instructions an element, where an H200 has room for 61 in the time that the bytes take. The layout is rows.cuh's flat
 * one: 96 bytes a thread under way. */
#include "cuda/gated.cuh"

nb_status nb_cuda_geglu_backward(struct nb_device *device, struct nb_stream *stream, const struct nb_geglu_backward *a)
{
    (void)device;
    NB_TRY(nb_check_geglu_backward(a));
    NB_TRY(nb_cuda_refuse_f32("geglu_backward", a->activation));
    return nb_cuda_launch("geglu_backward", nb_gated_backward_kernel<nb_gelu, struct nb_geglu_backward>,
                          nb_launch_flat(a->tokens_max, a->width),
        stream->stream, *a);
}

nb_status nb_cuda_prepare_geglu_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("geglu_backward", nb_gated_backward_kernel<nb_gelu, struct nb_geglu_backward>, 0);
}
