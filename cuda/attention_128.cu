/* Attention with heads of 97 to 128. Each kernel has two shapes: for multiprocessors with the shared memory for two
 * blocks of the first, and for those with 100 KiB. */
#include "cuda/attention_forward.cuh"
#include "cuda/attention_gradient.cuh"
#include "cuda/attention_head.cuh"

static nb_status forward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    if (shared_kib >= 164) /* 56 KiB a block */
        return nb_attention_forward_launch<128, 2, 4, 48, 2>(view, stream);
    return nb_attention_forward_launch<128, 2, 4, 32, 2>(view, stream);
}

static nb_status backward(const struct nb_attention_view &view, int shared_kib, cudaStream_t stream)
{
    if (shared_kib >= 164) /* 69 KiB a block */
        NB_TRY((nb_attention_dkv_launch<128, 1, 4, 48, 1, 2>(view, stream)));
    else
        NB_TRY((nb_attention_dkv_launch<128, 1, 8, 32, 1, 1>(view, stream)));
    if (shared_kib >= 228) /* 89 KiB a block */
        return nb_attention_dq_launch<128, 2, 4, 32, 2>(view, stream);
    return nb_attention_dq_launch<128, 1, 8, 32, 1>(view, stream);
}

static nb_status load_forward(void)
{
    NB_TRY((nb_attention_forward_load<128, 2, 4, 48, 2>()));
    return nb_attention_forward_load<128, 2, 4, 32, 2>();
}

static nb_status load_backward(void)
{
    NB_TRY((nb_attention_dkv_load<128, 1, 4, 48, 1, 2>()));
    NB_TRY((nb_attention_dkv_load<128, 1, 8, 32, 1, 1>()));
    NB_TRY((nb_attention_dq_load<128, 2, 4, 32, 2>()));
    return nb_attention_dq_load<128, 1, 8, 32, 1>();
}

const struct nb_attention_kernels nb_attention_kernels_128 = {128, forward, backward, load_forward, load_backward};
