/* RMS norm of rows. Bound by memory: 4 bytes an element (2 read, 2 written), besides 4 bytes a row and w, which stays
 * in the caches.
 *
 * A warp a row up to width 1,024, a block a row up to 16,384: each thread keeps up to 4 packs, so 64 bytes a thread are
 * under way and 64 KB a multiprocessor at half of its threads. w is loaded beside x, before the sum. Wider rows are
 * read a second time (from the second-level cache, which holds the rows at work). */
#include "cuda/rows.cuh"

enum { PACKS = 4, THREADS_MAX = 512 };

NB_KERNEL_FUNCTION float square_sum(uint4 pack)
{
    float x[NB_PACK], sum = 0;
    nb_unpack8(pack, x);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        sum = fmaf(x[i], x[i], sum);
    return sum;
}

NB_KERNEL_FUNCTION uint4 scaled(uint4 pack, uint4 weight, float scale)
{
    float x[NB_PACK], w[NB_PACK];
    nb_unpack8(pack, x);
    nb_unpack8(weight, w);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        x[i] = w[i] * nb_bf16_rounded(x[i] * scale);
    return nb_pack8(x);
}

/* 1/rms of the row, kept for the backward pass. */
NB_KERNEL_FUNCTION float scale_of_row(const struct nb_rmsnorm &a, const struct nb_row_place &place, float sum)
{
    float scale = 1.0f / sqrtf(sum / (float)a.width + a.epsilon);
    if (place.lane == 0)
        ((float *)(uintptr_t)a.rms.address)[place.row] = scale;
    return scale;
}

template <bool WARP>
__global__ void __launch_bounds__(WARP ? NB_ROW_THREADS : THREADS_MAX) rmsnorm_kernel(struct nb_rmsnorm a)
{
    struct nb_row_place place = nb_row_place_of_thread<WARP>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *w = nb_row_packs(a.w, 0, packs);
    uint4 *y = nb_row_packs(a.y, place.row, packs);
    uint4 row[PACKS], weight[PACKS];
    float sum = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        row[k] = weight[k] = make_uint4(0, 0, 0, 0);
        if (i < packs) {
            row[k] = x[i];
            weight[k] = w[i];
        }
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++)
        sum += square_sum(row[k]);
    sum = nb_row_sum<WARP>(sum, (float *)nb_shared_memory());
    float scale = scale_of_row(a, place, sum);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        if (i < packs)
            y[i] = scaled(row[k], weight[k], scale);
    }
}

/* Rows that the registers of a block do not hold. */
__global__ void __launch_bounds__(THREADS_MAX) rmsnorm_wide_kernel(struct nb_rmsnorm a)
{
    struct nb_row_place place = nb_row_place_of_thread<false>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *w = nb_row_packs(a.w, 0, packs);
    uint4 *y = nb_row_packs(a.y, place.row, packs);
    float sum = 0;
    for (int i = place.lane; i < packs; i += place.threads)
        sum += square_sum(x[i]);
    sum = nb_row_sum<false>(sum, (float *)nb_shared_memory());
    float scale = scale_of_row(a, place, sum);
    for (int i = place.lane; i < packs; i += place.threads)
        y[i] = scaled(x[i], w[i], scale);
}

static nb_status launch(struct nb_stream *stream, const struct nb_rmsnorm *a)
{
    int threads = nb_row_threads(a->width, PACKS);
    if (threads == NB_WARP)
        return nb_cuda_launch("rmsnorm", rmsnorm_kernel<true>, nb_launch_warp_rows(a->tokens_max), stream->stream, *a);
    if (threads <= THREADS_MAX)
        return nb_cuda_launch(
            "rmsnorm", rmsnorm_kernel<false>, nb_launch_block_rows(a->tokens_max, threads), stream->stream, *a);
    return nb_cuda_launch(
        "rmsnorm", rmsnorm_wide_kernel, nb_launch_block_rows(a->tokens_max, THREADS_MAX), stream->stream, *a);
}

nb_status nb_cuda_rmsnorm(struct nb_device *device, struct nb_stream *stream, const struct nb_rmsnorm *a)
{
    (void)device;
    NB_TRY(nb_check_rmsnorm(a));
    NB_TRY(nb_cuda_refuse_f32("rmsnorm", a->activation));
    return launch(stream, a);
}

nb_status nb_cuda_prepare_rmsnorm(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("rmsnorm", rmsnorm_kernel<true>, 0));
    NB_TRY(nb_cuda_load("rmsnorm", rmsnorm_kernel<false>, 0));
    return nb_cuda_load("rmsnorm", rmsnorm_wide_kernel, 0);
}
