/* Attention with heads of 129 to 256. One block an SM, of 8 warps where the sums leave the registers. */
#include "cuda/attention_forward.cuh"
#include "cuda/attention_gradient.cuh"
#include "cuda/attention_head.cuh"

static nb_status forward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    (void)shared_kib;
    return nb_attention_forward_launch<256, 1, 8, 32, 1>(view, stream);
}

static nb_status backward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    (void)shared_kib;
    NB_TRY((nb_attention_dkv_launch<256, 1, 8, 16, 2, 1>(view, stream)));
    return nb_attention_dq_launch<256, 1, 4, 16, 2>(view, stream);
}

static nb_status load_forward(void)
{
    return nb_attention_forward_load<256, 1, 8, 32, 1>();
}

static nb_status load_backward(void)
{
    NB_TRY((nb_attention_dkv_load<256, 1, 8, 16, 2, 1>()));
    return nb_attention_dq_load<256, 1, 4, 16, 2>();
}

const struct nb_attention_kernels nb_attention_kernels_256 = {256, forward, backward, load_forward, load_backward};
