/* Gradient of the LayerNorm of rows. Bound by memory: 6 bytes an element (x and dy read, dx written), 8 when it
 * accumulates (dx read too). Rows laid out as in rmsnorm_backward.cu; the two sums cross the block together. */
#include "cuda/rows.cuh"

enum { PACKS = 2, THREADS_MAX = 1024 };

/* What of a row stays the same along it. */
struct moments {
    float mean, scale;
};

struct means {
    float of_d, of_products;
};

/* n = (x - mean) * scale and d = w * dy of a pack. */
struct terms {
    float n[NB_PACK], d[NB_PACK];
};

NB_KERNEL_FUNCTION struct terms terms_of(uint4 x, uint4 dy, uint4 w, struct moments m)
{
    struct terms t;
    float weight[NB_PACK];
    nb_unpack8(x, t.n);
    nb_unpack8(dy, t.d);
    nb_unpack8(w, weight);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        t.n[i] = (t.n[i] - m.mean) * m.scale;
        t.d[i] *= weight[i];
    }
    return t;
}

NB_KERNEL_FUNCTION void add_terms(struct means &sum, const struct terms &t)
{
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        sum.of_d += t.d[i];
        sum.of_products = fmaf(t.d[i], t.n[i], sum.of_products);
    }
}

template <bool WARP> NB_KERNEL_FUNCTION struct means means_of_row(struct means sum, int width)
{
    float2 whole = nb_row_sum_pair<WARP>(make_float2(sum.of_d, sum.of_products), (float *)nb_shared_memory());
    return {whole.x / (float)width, whole.y / (float)width};
}

NB_KERNEL_FUNCTION uint4 gradient(const struct terms &t, uint4 before, float scale, struct means mean)
{
    float dx[NB_PACK];
    nb_unpack8(before, dx);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        dx[i] += scale * (t.d[i] - mean.of_d - t.n[i] * mean.of_products);
    return nb_pack8(dx);
}

NB_KERNEL_FUNCTION struct moments moments_of_row(nb_dptr moments, int64_t row)
{
    float2 pair = ((const float2 *)(uintptr_t)moments.address)[row];
    return {pair.x, pair.y};
}

template <bool WARP>
__global__ void __launch_bounds__(WARP ? NB_ROW_THREADS : THREADS_MAX)
    layernorm_backward_kernel(struct nb_layernorm_backward a)
{
    struct nb_row_place place = nb_row_place_of_thread<WARP>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *dy = nb_row_packs(a.dy, place.row, packs);
    const uint4 *w = nb_row_packs(a.w, 0, packs);
    uint4 *dx = nb_row_packs(a.dx, place.row, packs);
    uint4 row[PACKS], from[PACKS], weight[PACKS], before[PACKS];
    struct moments m = moments_of_row(a.moments, place.row);
    struct means sum = {0, 0};
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        row[k] = from[k] = weight[k] = before[k] = make_uint4(0, 0, 0, 0);
        if (i < packs) {
            row[k] = x[i];
            from[k] = dy[i];
            weight[k] = w[i];
            if (a.accumulate)
                before[k] = dx[i];
        }
    }
    /* Beyond the row d is 0, and so is what it adds. */
#pragma unroll
    for (int k = 0; k < PACKS; k++)
        add_terms(sum, terms_of(row[k], from[k], weight[k], m));
    struct means mean = means_of_row<WARP>(sum, a.width);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        if (i < packs)
            dx[i] = gradient(terms_of(row[k], from[k], weight[k], m), before[k], m.scale, mean);
    }
}

/* Rows that the registers of a block do not hold. */
__global__ void __launch_bounds__(THREADS_MAX) layernorm_backward_wide_kernel(struct nb_layernorm_backward a)
{
    struct nb_row_place place = nb_row_place_of_thread<false>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *dy = nb_row_packs(a.dy, place.row, packs);
    const uint4 *w = nb_row_packs(a.w, 0, packs);
    uint4 *dx = nb_row_packs(a.dx, place.row, packs);
    struct moments m = moments_of_row(a.moments, place.row);
    struct means sum = {0, 0};
    for (int i = place.lane; i < packs; i += place.threads)
        add_terms(sum, terms_of(x[i], dy[i], w[i], m));
    struct means mean = means_of_row<false>(sum, a.width);
    for (int i = place.lane; i < packs; i += place.threads) {
        uint4 before = a.accumulate ? dx[i] : make_uint4(0, 0, 0, 0);
        dx[i] = gradient(terms_of(x[i], dy[i], w[i], m), before, m.scale, mean);
    }
}

static nb_status launch(struct nb_stream *stream, const struct nb_layernorm_backward *a)
{
    const char *name = "layernorm_backward";
    int threads = nb_row_threads(a->width, PACKS);
    if (threads == NB_WARP)
        return nb_cuda_launch(
            name, layernorm_backward_kernel<true>, nb_launch_warp_rows(a->tokens_max), stream->stream, *a);
    if (threads <= THREADS_MAX)
        return nb_cuda_launch(
            name, layernorm_backward_kernel<false>, nb_launch_block_rows(a->tokens_max, threads), stream->stream, *a);
    return nb_cuda_launch(name, layernorm_backward_wide_kernel, nb_launch_block_rows(a->tokens_max, THREADS_MAX),
        stream->stream, *a);
}

nb_status nb_cuda_layernorm_backward(
    struct nb_device *device, struct nb_stream *stream, const struct nb_layernorm_backward *a)
{
    (void)device;
    NB_TRY(nb_check_layernorm_backward(a));
    NB_TRY(nb_cuda_refuse_f32("layernorm_backward", a->activation));
    return launch(stream, a);
}

nb_status nb_cuda_prepare_layernorm_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("layernorm_backward", layernorm_backward_kernel<true>, 0));
    NB_TRY(nb_cuda_load("layernorm_backward", layernorm_backward_kernel<false>, 0));
    return nb_cuda_load("layernorm_backward", layernorm_backward_wide_kernel, 0);
}
