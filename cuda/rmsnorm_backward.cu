/* Gradient of the RMS norm of rows. Bound by memory: 6 bytes an element (x and dy read, dx written), 8 when it
 * accumulates (dx read too).
 *
 * A warp a row up to width 512, a block a row up to 16,384: each thread keeps up to 2 packs of x, dy and w, and of dx
 * where that is added to, all loaded before the sum: 64 or 96 bytes from device memory a thread under way. Wider rows
 * are read a second time (from the second-level cache). */
#include "cuda/rows.cuh"

enum { PACKS = 2, THREADS_MAX = 1024 };

/* n = x * rms and d = w * dy of a pack. */
struct terms {
    float n[NB_PACK], d[NB_PACK];
};

NB_KERNEL_FUNCTION struct terms terms_of(uint4 x, uint4 dy, uint4 w, float rms)
{
    struct terms t;
    float weight[NB_PACK];
    nb_unpack8(x, t.n);
    nb_unpack8(dy, t.d);
    nb_unpack8(w, weight);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        t.n[i] *= rms;
        t.d[i] *= weight[i];
    }
    return t;
}

NB_KERNEL_FUNCTION float product_sum(const struct terms &t)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        sum = fmaf(t.d[i], t.n[i], sum);
    return sum;
}

NB_KERNEL_FUNCTION uint4 gradient(const struct terms &t, uint4 before, float rms, float mean)
{
    float dx[NB_PACK];
    nb_unpack8(before, dx);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        dx[i] += rms * (t.d[i] - t.n[i] * mean);
    return nb_pack8(dx);
}

template <bool WARP>
__global__ void __launch_bounds__(WARP ? NB_ROW_THREADS : THREADS_MAX)
    rmsnorm_backward_kernel(struct nb_rmsnorm_backward a)
{
    struct nb_row_place place = nb_row_place_of_thread<WARP>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *dy = nb_row_packs(a.dy, place.row, packs);
    const uint4 *w = nb_row_packs(a.w, 0, packs);
    uint4 *dx = nb_row_packs(a.dx, place.row, packs);
    uint4 row[PACKS], from[PACKS], weight[PACKS], before[PACKS];
    float rms = ((const float *)(uintptr_t)a.rms.address)[place.row], sum = 0;
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
#pragma unroll
    for (int k = 0; k < PACKS; k++)
        sum += product_sum(terms_of(row[k], from[k], weight[k], rms));
    float mean = nb_row_sum<WARP>(sum, (float *)nb_shared_memory()) / (float)a.width;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        if (i < packs)
            dx[i] = gradient(terms_of(row[k], from[k], weight[k], rms), before[k], rms, mean);
    }
}

/* Rows that the registers of a block do not hold. */
__global__ void __launch_bounds__(THREADS_MAX) rmsnorm_backward_wide_kernel(struct nb_rmsnorm_backward a)
{
    struct nb_row_place place = nb_row_place_of_thread<false>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *dy = nb_row_packs(a.dy, place.row, packs);
    const uint4 *w = nb_row_packs(a.w, 0, packs);
    uint4 *dx = nb_row_packs(a.dx, place.row, packs);
    float rms = ((const float *)(uintptr_t)a.rms.address)[place.row], sum = 0;
    for (int i = place.lane; i < packs; i += place.threads)
        sum += product_sum(terms_of(x[i], dy[i], w[i], rms));
    float mean = nb_row_sum<false>(sum, (float *)nb_shared_memory()) / (float)a.width;
    for (int i = place.lane; i < packs; i += place.threads) {
        uint4 before = a.accumulate ? dx[i] : make_uint4(0, 0, 0, 0);
        dx[i] = gradient(terms_of(x[i], dy[i], w[i], rms), before, rms, mean);
    }
}

static nb_status launch(struct nb_stream *stream, const struct nb_rmsnorm_backward *a)
{
    const char *name = "rmsnorm_backward";
    int threads = nb_row_threads(a->width, PACKS);
    if (threads == NB_WARP)
        return nb_cuda_launch(
            name, rmsnorm_backward_kernel<true>, nb_launch_warp_rows(a->tokens_max), stream->stream, *a);
    if (threads <= THREADS_MAX)
        return nb_cuda_launch(
            name, rmsnorm_backward_kernel<false>, nb_launch_block_rows(a->tokens_max, threads), stream->stream, *a);
    return nb_cuda_launch(name, rmsnorm_backward_wide_kernel, nb_launch_block_rows(a->tokens_max, THREADS_MAX),
        stream->stream, *a);
}

nb_status nb_cuda_rmsnorm_backward(
    struct nb_device *device, struct nb_stream *stream, const struct nb_rmsnorm_backward *a)
{
    (void)device;
    NB_TRY(nb_check_rmsnorm_backward(a));
    NB_TRY(nb_cuda_refuse_f32("rmsnorm_backward", a->activation));
    return launch(stream, a);
}

nb_status nb_cuda_prepare_rmsnorm_backward(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("rmsnorm_backward", rmsnorm_backward_kernel<true>, 0));
    NB_TRY(nb_cuda_load("rmsnorm_backward", rmsnorm_backward_kernel<false>, 0));
    return nb_cuda_load("rmsnorm_backward", rmsnorm_backward_wide_kernel, 0);
}
