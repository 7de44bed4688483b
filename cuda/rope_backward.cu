/* Gradient of the rotation, and of the head norm before it. Bound by memory: 4 bytes an element (dy read, dx written),
 * 6 with the norm (x read too), besides a token's sines and cosines. Laid out as rope.cuh says. */
#include "cuda/rope.cuh"

/* Both halves of a thread's pairs, of dy and, with the norm, of x. */
template <int N> struct pairs {
    struct nb_piece<N> low, high;
};

template <int N> NB_KERNEL_FUNCTION struct pairs<N> pairs_zero(void)
{
    return {nb_piece_zero<N>(), nb_piece_zero<N>()};
}

/* The rotation by the negative angle. */
template <int N>
NB_KERNEL_FUNCTION void rotate_back(
    const struct pairs<N> &dy, const float cosine[N], const float sine[N], float low[N], float high[N])
{
    nb_piece_unpack<N>(dy.low, low);
    nb_piece_unpack<N>(dy.high, high);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float di = low[i], dj = high[i];
        low[i] = di * cosine[i] + dj * sine[i];
        high[i] = dj * cosine[i] - di * sine[i];
    }
}

template <int N> NB_KERNEL_FUNCTION void multiply(float d[N], const struct nb_piece<N> &weight)
{
    float w[N];
    nb_piece_unpack<N>(weight, w);
#pragma unroll
    for (int i = 0; i < N; i++)
        d[i] *= w[i];
}

/* n = x * rms */
template <int N> NB_KERNEL_FUNCTION void normalized(const struct nb_piece<N> &x, float rms, float n[N])
{
    nb_piece_unpack<N>(x, n);
#pragma unroll
    for (int i = 0; i < N; i++)
        n[i] *= rms;
}

template <int N> NB_KERNEL_FUNCTION void norm_back(float d[N], const float n[N], float rms, float mean)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        d[i] = rms * (d[i] - n[i] * mean);
}

template <int N, bool NORM>
__global__ void __launch_bounds__(NB_ROW_THREADS) rope_backward_kernel(struct nb_rope_backward a, int lanes)
{
    struct nb_rope_place place = nb_rope_place_of_thread<N>(lanes, a.head_dim);
    if (place.token >= nb_valid_tokens(nb_slot_at(a.slot), a.tokens_max))
        return;
    int half = a.head_dim / 2, chunk = place.heads * NB_ROPE_HEADS;
    int64_t angles = (int64_t)((const int32_t *)(uintptr_t)a.positions.address)[place.token] * half + place.at;
    const nb_bf16 *dy = (const nb_bf16 *)(uintptr_t)a.dy.address + place.token * a.dy_stride + place.at;
    const nb_bf16 *x = (const nb_bf16 *)(uintptr_t)a.x.address + place.token * a.x_stride + place.at;
    const nb_bf16 *w = (const nb_bf16 *)(uintptr_t)a.w.address + place.at;
    nb_bf16 *dx = (nb_bf16 *)(uintptr_t)a.dx.address + place.token * a.dx_stride + place.at;
    float cosine[N], sine[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        cosine[i] = sine[i] = 0; /* threads without a piece add 0 to a head's sum */
    struct pairs<N> weight = pairs_zero<N>();
    if (place.active) {
        nb_rope_angles<N>(a.cosine, angles, cosine);
        nb_rope_angles<N>(a.sine, angles, sine);
        if (NORM)
            weight = {nb_piece_load<N>(w), nb_piece_load<N>(w + half)};
    }
    for (int64_t begin = (int64_t)blockIdx.y * chunk; begin < a.heads; begin += (int64_t)gridDim.y * chunk)
        for (int first = 0; first < NB_ROPE_HEADS && begin + first * place.heads < a.heads; first += NB_ROPE_STEP) {
            struct pairs<N> p[NB_ROPE_STEP], row[NB_ROPE_STEP];
            float rms[NB_ROPE_STEP];
#pragma unroll
            for (int k = 0; k < NB_ROPE_STEP; k++) {
                int64_t head = begin + (first + k) * place.heads + place.head;
                p[k] = row[k] = pairs_zero<N>();
                rms[k] = 0;
                if (!place.active || head >= a.heads)
                    continue;
                p[k] = {nb_piece_load<N>(dy + head * a.head_dim), nb_piece_load<N>(dy + head * a.head_dim + half)};
                if (NORM) {
                    row[k] = {nb_piece_load<N>(x + head * a.head_dim), nb_piece_load<N>(x + head * a.head_dim + half)};
                    rms[k] = ((const float *)(uintptr_t)a.rms.address)[place.token * a.heads + head];
                }
            }
#pragma unroll
            for (int k = 0; k < NB_ROPE_STEP; k++) {
                int64_t head = begin + (first + k) * place.heads + place.head;
                float low[N], high[N];
                rotate_back<N>(p[k], cosine, sine, low, high);
                if (NORM) {
                    float n_low[N], n_high[N], sum = 0;
                    multiply<N>(low, weight.low);
                    multiply<N>(high, weight.high);
                    normalized<N>(row[k].low, rms[k], n_low);
                    normalized<N>(row[k].high, rms[k], n_high);
#pragma unroll
                    for (int i = 0; i < N; i++)
                        sum = fmaf(high[i], n_high[i], fmaf(low[i], n_low[i], sum));
                    float mean = nb_rope_sum(sum, lanes) / (float)a.head_dim;
                    norm_back<N>(low, n_low, rms[k], mean);
                    norm_back<N>(high, n_high, rms[k], mean);
                }
                if (place.active && head < a.heads) {
                    nb_piece_store<N>(dx + head * a.head_dim, low);
                    nb_piece_store<N>(dx + head * a.head_dim + half, high);
                }
            }
        }
}

template <int N> static nb_status launch(struct nb_stream *stream, const struct nb_rope_backward *a)
{
    int lanes = nb_rope_lanes(a->head_dim);
    struct nb_launch grid = nb_launch_rope(a->tokens_max, a->heads, lanes);
    if (nb_dptr_is_null(a->w))
        return nb_cuda_launch("rope_backward", rope_backward_kernel<N, false>, grid, stream->stream, *a, lanes);
    return nb_cuda_launch("rope_backward", rope_backward_kernel<N, true>, grid, stream->stream, *a, lanes);
}

nb_status nb_cuda_rope_backward(struct nb_device *device, struct nb_stream *stream, const struct nb_rope_backward *a)
{
    (void)device;
    NB_TRY(nb_check_rope_backward(a));
    NB_TRY(nb_cuda_refuse_f32("rope_backward", a->activation));
    return nb_rope_piece(a->head_dim) == 8 ? launch<8>(stream, a) : launch<4>(stream, a);
}

nb_status nb_cuda_prepare_rope_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("rope_backward", rope_backward_kernel<8, false>, 0));
    NB_TRY(nb_cuda_load("rope_backward", rope_backward_kernel<8, true>, 0));
    NB_TRY(nb_cuda_load("rope_backward", rope_backward_kernel<4, false>, 0));
    return nb_cuda_load("rope_backward", rope_backward_kernel<4, true>, 0);
}
