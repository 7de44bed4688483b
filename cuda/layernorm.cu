/* LayerNorm of rows. Bound by memory: 4 bytes an element (2 read, 2 written), besides 8 bytes a row and w and b, which
 * stay in the caches.
 *
 * Rows laid out as in rmsnorm.cu; the deviations are taken from the registers, so the second sum reads nothing. Wider
 * rows are read three times (the second and third from the second-level cache). */
#include "cuda/rows.cuh"

enum { PACKS = 4, THREADS_MAX = 512 };

NB_KERNEL_FUNCTION float plain_sum(uint4 pack)
{
    float x[NB_PACK], sum = 0;
    nb_unpack8(pack, x);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        sum += x[i];
    return sum;
}

NB_KERNEL_FUNCTION float deviation_sum(uint4 pack, float mean)
{
    float x[NB_PACK], sum = 0;
    nb_unpack8(pack, x);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++) {
        float deviation = x[i] - mean;
        sum = fmaf(deviation, deviation, sum);
    }
    return sum;
}

/* A row's mean, and 1/sqrt(variance + epsilon). */
struct moments {
    float mean, scale;
};

NB_KERNEL_FUNCTION uint4 normalized(uint4 pack, uint4 weight, uint4 bias, struct moments m)
{
    float x[NB_PACK], w[NB_PACK], b[NB_PACK];
    nb_unpack8(pack, x);
    nb_unpack8(weight, w);
    nb_unpack8(bias, b);
#pragma unroll
    for (int i = 0; i < NB_PACK; i++)
        x[i] = w[i] * ((x[i] - m.mean) * m.scale) + b[i];
    return nb_pack8(x);
}

/* Of the two sums, kept for the backward pass. */
NB_KERNEL_FUNCTION struct moments moments_of_row(
    const struct nb_layernorm &a, const struct nb_row_place &place, float mean, float deviations)
{
    struct moments m = {mean, 1.0f / sqrtf(deviations / (float)a.width + a.epsilon)};
    if (place.lane == 0)
        ((float2 *)(uintptr_t)a.moments.address)[place.row] = make_float2(m.mean, m.scale);
    return m;
}

NB_KERNEL_FUNCTION uint4 pack_or_zero(const uint4 *packs, int i)
{
    return packs ? packs[i] : make_uint4(0, 0, 0, 0);
}

template <bool WARP>
__global__ void __launch_bounds__(WARP ? NB_ROW_THREADS : THREADS_MAX)
    layernorm_kernel(struct nb_layernorm a)
{
    struct nb_row_place place = nb_row_place_of_thread<WARP>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *w = nb_row_packs(a.w, 0, packs),
                *b = nb_row_packs(a.b, 0, packs);
    uint4 *y = nb_row_packs(a.y, place.row, packs);
    float *sums = (float *)nb_shared_memory();
    uint4 row[PACKS];
    float sum = 0, deviations = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        row[k] = i < packs ? x[i] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++)
        sum += plain_sum(row[k]);
    float mean = nb_row_sum<WARP>(sum, sums) / (float)a.width;
#pragma unroll
    for (int k = 0; k < PACKS; k++)
        if (place.lane + k * place.threads < packs)
            deviations += deviation_sum(row[k], mean);
    struct moments m = moments_of_row(a, place, mean, nb_row_sum<WARP>(deviations, sums + NB_WARP));
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        int i = place.lane + k * place.threads;
        if (i < packs)
            y[i] = normalized(row[k], w[i], pack_or_zero(b, i), m);
    }
}

/* Rows that the registers of a block do not hold. */
__global__ void __launch_bounds__(THREADS_MAX) layernorm_wide_kernel(struct nb_layernorm a)
{
    struct nb_row_place place = nb_row_place_of_thread<false>();
    if (place.row >= nb_valid_rows(nb_slot_at(a.slot), a.rows_from, a.row_begin, a.tokens_max))
        return;
    int packs = a.width / NB_PACK;
    const uint4 *x = nb_row_packs(a.x, place.row, packs), *w = nb_row_packs(a.w, 0, packs),
                *b = nb_row_packs(a.b, 0, packs);
    uint4 *y = nb_row_packs(a.y, place.row, packs);
    float *sums = (float *)nb_shared_memory(), sum = 0, deviations = 0;
    for (int i = place.lane; i < packs; i += place.threads)
        sum += plain_sum(x[i]);
    float mean = nb_row_sum<false>(sum, sums) / (float)a.width;
    for (int i = place.lane; i < packs; i += place.threads)
        deviations += deviation_sum(x[i], mean);
    struct moments m = moments_of_row(a, place, mean, nb_row_sum<false>(deviations, sums + NB_WARP));
    for (int i = place.lane; i < packs; i += place.threads)
        y[i] = normalized(x[i], w[i], pack_or_zero(b, i), m);
}

static nb_status launch(struct nb_stream *stream, const struct nb_layernorm *a)
{
    int threads = nb_row_threads(a->width, PACKS);
    if (threads == NB_WARP)
        return nb_cuda_launch(
            "layernorm", layernorm_kernel<true>, nb_launch_warp_rows(a->tokens_max), stream->stream, *a);
    if (threads <= THREADS_MAX)
        return nb_cuda_launch(
            "layernorm", layernorm_kernel<false>, nb_launch_block_rows(a->tokens_max, threads), stream->stream, *a);
    return nb_cuda_launch("layernorm", layernorm_wide_kernel, nb_launch_block_rows(a->tokens_max, THREADS_MAX),
        stream->stream, *a);
}

nb_status nb_cuda_layernorm(struct nb_device *device, struct nb_stream *stream, const struct nb_layernorm *a)
{
    (void)device;
    NB_TRY(nb_check_layernorm(a));
    NB_TRY(nb_cuda_refuse_f32("layernorm", a->activation));
    return launch(stream, a);
}

nb_status nb_cuda_prepare_layernorm(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("layernorm", layernorm_kernel<true>, 0));
    NB_TRY(nb_cuda_load("layernorm", layernorm_kernel<false>, 0));
    return nb_cuda_load("layernorm", layernorm_wide_kernel, 0);
}
