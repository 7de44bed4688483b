/* Attention, forward: which kernel serves a call. The kernels stand in attention_forward.cuh and, for a few queries
 * against a long cache, attention_decode.cu. */
#include "cuda/attention_decode.cuh"
#include "cuda/attention_head.cuh"

nb_status nb_cuda_attention(struct nb_device *device, struct nb_stream *stream, const struct nb_attention *a)
{
    NB_TRY(nb_check_attention(a));
    NB_TRY(nb_cuda_refuse_f32("attention", a->activation));
    struct nb_attention_view view = nb_attention_view_of(a);
    if (nb_attention_decode_serves(a))
        return nb_attention_decode(view, a, stream->stream);
    return nb_attention_kernels_of(a->head_dim)->forward(view, nb_attention_shared_kib(device), stream->stream);
}

nb_status nb_cuda_prepare_attention(struct nb_cuda *cuda)
{
    (void)cuda;
    for (int i = 0; i < NB_ATTENTION_HEADS; i++)
        NB_TRY(nb_attention_heads[i]->load_forward());
    return nb_attention_decode_load();
}
