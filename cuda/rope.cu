/* Rotation of q or k heads, with the RMS norm of each head before it where the model has one. Bound by memory: 4 bytes
 * an element (2 read, 2 written), besides a token's sines and cosines, which a warp reads once for up to NB_ROPE_HEADS
 * heads a thread. Laid out as rope.cuh says. */
#include "cuda/rope.cuh"

/* Both halves of a thread's pairs. */
template <int N> struct pairs {
    struct nb_piece<N> low, high;
};

template <int N> NB_KERNEL_FUNCTION struct pairs<N> pairs_zero(void)
{
    return {nb_piece_zero<N>(), nb_piece_zero<N>()};
}

/* A head's norm: each value rounded as nb_rmsnorm does, and the product again where it would be stored. */
template <int N> NB_KERNEL_FUNCTION void normalize(float x[N], const struct nb_piece<N> &weight, float scale)
{
    float w[N];
    nb_piece_unpack<N>(weight, w);
#pragma unroll
    for (int i = 0; i < N; i++)
        x[i] = nb_bf16_rounded(w[i] * nb_bf16_rounded(x[i] * scale));
}

template <int N> NB_KERNEL_FUNCTION float square_sum(const struct pairs<N> &p)
{
    float low[N], high[N], sum = 0;
    nb_piece_unpack<N>(p.low, low);
    nb_piece_unpack<N>(p.high, high);
#pragma unroll
    for (int i = 0; i < N; i++)
        sum = fmaf(high[i], high[i], fmaf(low[i], low[i], sum));
    return sum;
}

template <int N, bool NORM>
__global__ void __launch_bounds__(NB_ROW_THREADS) rope_kernel(struct nb_rope a, int lanes)
{
    struct nb_rope_place place = nb_rope_place_of_thread<N>(lanes, a.head_dim);
    if (place.token >= nb_valid_tokens(nb_slot_at(a.slot), a.tokens_max))
        return;
    int half = a.head_dim / 2, chunk = place.heads * NB_ROPE_HEADS;
    int64_t angles = (int64_t)((const int32_t *)(uintptr_t)a.positions.address)[place.token] * half + place.at;
    const nb_bf16 *x = (const nb_bf16 *)(uintptr_t)a.x.address + place.token * a.x_stride + place.at;
    nb_bf16 *y = (nb_bf16 *)(uintptr_t)a.y.address + place.token * a.y_stride + place.at;
    const nb_bf16 *w = (const nb_bf16 *)(uintptr_t)a.w.address + place.at;
    float cosine[N], sine[N];
    struct pairs<N> weight = pairs_zero<N>();
    if (place.active) {
        nb_rope_angles<N>(a.cosine, angles, cosine);
        nb_rope_angles<N>(a.sine, angles, sine);
        if (NORM)
            weight = {nb_piece_load<N>(w), nb_piece_load<N>(w + half)};
    }
    for (int64_t begin = (int64_t)blockIdx.y * chunk; begin < a.heads; begin += (int64_t)gridDim.y * chunk)
        for (int first = 0; first < NB_ROPE_HEADS && begin + first * place.heads < a.heads; first += NB_ROPE_STEP) {
            struct pairs<N> p[NB_ROPE_STEP];
#pragma unroll
            for (int k = 0; k < NB_ROPE_STEP; k++) {
                int64_t head = begin + (first + k) * place.heads + place.head;
                p[k] = pairs_zero<N>();
                if (place.active && head < a.heads)
                    p[k] = {nb_piece_load<N>(x + head * a.head_dim), nb_piece_load<N>(x + head * a.head_dim + half)};
            }
#pragma unroll
            for (int k = 0; k < NB_ROPE_STEP; k++) {
                int64_t head = begin + (first + k) * place.heads + place.head;
                float low[N], high[N], scale = 0;
                if (NORM)
                    scale = 1.0f / sqrtf(nb_rope_sum(square_sum<N>(p[k]), lanes) / (float)a.head_dim + a.epsilon);
                if (!place.active || head >= a.heads)
                    continue;
                nb_piece_unpack<N>(p[k].low, low);
                nb_piece_unpack<N>(p[k].high, high);
                if (NORM) {
                    if (place.at == 0)
                        ((float *)(uintptr_t)a.rms.address)[place.token * a.heads + head] = scale;
                    normalize<N>(low, weight.low, scale);
                    normalize<N>(high, weight.high, scale);
                }
#pragma unroll
                for (int i = 0; i < N; i++) {
                    float xi = low[i], xj = high[i];
                    low[i] = xi * cosine[i] - xj * sine[i];
                    high[i] = xj * cosine[i] + xi * sine[i];
                }
                nb_piece_store<N>(y + head * a.head_dim, low);
                nb_piece_store<N>(y + head * a.head_dim + half, high);
            }
        }
}

template <int N> static nb_status launch(struct nb_stream *stream, const struct nb_rope *a)
{
    int lanes = nb_rope_lanes(a->head_dim);
    struct nb_launch grid = nb_launch_rope(a->tokens_max, a->heads, lanes);
    if (nb_dptr_is_null(a->w))
        return nb_cuda_launch("rope", rope_kernel<N, false>, grid, stream->stream, *a, lanes);
    return nb_cuda_launch("rope", rope_kernel<N, true>, grid, stream->stream, *a, lanes);
}

nb_status nb_cuda_rope(struct nb_device *device, struct nb_stream *stream, const struct nb_rope *a)
{
    (void)device;
    NB_TRY(nb_check_rope(a));
    NB_TRY(nb_cuda_refuse_f32("rope", a->activation));
    return nb_rope_piece(a->head_dim) == 8 ? launch<8>(stream, a) : launch<4>(stream, a);
}

nb_status nb_cuda_prepare_rope(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("rope", rope_kernel<8, false>, 0));
    NB_TRY(nb_cuda_load("rope", rope_kernel<8, true>, 0));
    NB_TRY(nb_cuda_load("rope", rope_kernel<4, false>, 0));
    return nb_cuda_load("rope", rope_kernel<4, true>, 0);
}
