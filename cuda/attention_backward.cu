/* Attention, backward: delta, then the two kernels of attention_gradient.cuh. Scratch: [heads, tokens_max] {lse *
 * log2(e), delta}. */
#include "cuda/attention_head.cuh"

enum { THREADS = 256 };

/* delta = sum(d_o * o) of each row of each head, beside lse in the unit of ex2. Bound by memory: reads o and d_o once.
 * `lanes`, a power of two, share a row of a head, 16 bytes each; heads of one token follow each other, so that a warp
 * reads whole rows. */
__global__ void __launch_bounds__(THREADS) nb_attention_delta_kernel(const struct nb_attention_view a, int lanes)
{
    int64_t item = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / lanes;
    int64_t row = item / a.heads;
    int head = (int)(item % a.heads), column = (int)threadIdx.x % lanes * 8;
    bool valid = row < nb_valid_tokens(a.slot, a.tokens_max);
    float sum = 0.0f;
    if (valid && column < a.head_dim) {
        float o[8], d_o[8];
        int64_t at = head * a.head_dim + column;
        nb_unpack8(nb_load_once_16(a.o + row * a.o_stride + at), o);
        nb_unpack8(nb_load_once_16(a.d_o + row * a.d_o_stride + at), d_o);
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum = fmaf(o[i], d_o[i], sum);
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2)
        sum += nb_shuffle_xor(sum, mask);
    if (valid && column == 0) {
        int64_t at = head * (int64_t)a.tokens_max + row;
        float2 stats;
        stats.x = a.lse[at] * NB_ATTENTION_LOG2_E, stats.y = sum;
        a.stats[at] = stats;
    }
}

static nb_status compute_delta(const struct nb_attention_view &view, cudaStream_t stream)
{
    int lanes = 8;
    while (lanes * 8 < view.head_dim)
        lanes *= 2;
    struct nb_launch launch = {};
    launch.grid = dim3(nb_blocks_of((int64_t)view.tokens_max * view.heads, THREADS / lanes)), launch.threads = THREADS;
    return nb_cuda_launch("attention_backward", nb_attention_delta_kernel, launch, stream, view, lanes);
}

nb_status nb_cuda_attention_backward(
    struct nb_device *device, struct nb_stream *stream, const struct nb_attention_backward *a)
{
    NB_TRY(nb_check_attention_backward(a));
    NB_TRY(nb_cuda_refuse_f32("attention_backward", a->activation));
    uint64_t needed = nb_cuda_attention_backward_scratch_bytes(&device->profile, a);
    NB_TRY(nb_cuda_require_scratch("attention_backward", &a->scratch, needed));
    struct nb_attention_view view = nb_attention_view_of(a);
    view.d_o = nb_pointer<const nb_bf16>(a->d_o), view.d_o_stride = a->d_o_stride;
    view.dq = nb_pointer<nb_bf16>(a->dq), view.dk = nb_pointer<nb_bf16>(a->dk), view.dv = nb_pointer<nb_bf16>(a->dv);
    view.dq_stride = a->dq_stride, view.dk_stride = a->dk_stride, view.dv_stride = a->dv_stride;
    view.stats = nb_pointer<float2>(a->scratch.base);
    NB_TRY(compute_delta(view, stream->stream));
    return nb_attention_kernels_of(a->head_dim)->backward(view, nb_attention_shared_kib(device), stream->stream);
}

nb_status nb_cuda_prepare_attention_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("attention_backward", nb_attention_delta_kernel, 0));
    for (int i = 0; i < NB_ATTENTION_HEADS; i++)
        NB_TRY(nb_attention_heads[i]->load_backward());
    return NB_OK;
}
