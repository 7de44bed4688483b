/* Attention with heads of up to 64. Two blocks an SM, on any. */
#include "cuda/attention_forward.cuh"
#include "cuda/attention_gradient.cuh"
#include "cuda/attention_head.cuh"

static nb_status forward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    (void)shared_kib;
    return nb_attention_forward_launch<64, 2, 4, 64, 2>(view, stream);
}

static nb_status backward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    (void)shared_kib;
    NB_TRY((nb_attention_dkv_launch<64, 2, 4, 32, 1, 2>(view, stream)));
    return nb_attention_dq_launch<64, 2, 4, 32, 2>(view, stream);
}

static nb_status load_forward(void)
{
    return nb_attention_forward_load<64, 2, 4, 64, 2>();
}

static nb_status load_backward(void)
{
    NB_TRY((nb_attention_dkv_load<64, 2, 4, 32, 1, 2>()));
    return nb_attention_dq_load<64, 2, 4, 32, 2>();
}

const struct nb_attention_kernels nb_attention_kernels_64 = {64, forward, backward, load_forward, load_backward};
