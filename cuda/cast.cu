/* y[i] = x[i] in another dtype. Bound by memory: 6 bytes an element (8 from F32 to F32). A thread takes quads of four
 * elements, a block's width apart, so that a warp reads and writes whole lines of either dtype; four of them keep 32
 * (bf16) or 64 bytes a thread under way. */
#include "cuda/rows.cuh"

enum { THREADS = 256, QUADS = 4 };

NB_KERNEL_FUNCTION float4 load_quad(const float *x, int64_t quad)
{
    return ((const float4 *)x)[quad];
}

NB_KERNEL_FUNCTION float4 load_quad(const nb_bf16 *x, int64_t quad)
{
    uint2 v = ((const uint2 *)x)[quad];
    return make_float4(nb_bf16_low(v.x), nb_bf16_high(v.x), nb_bf16_low(v.y), nb_bf16_high(v.y));
}

NB_KERNEL_FUNCTION void store_quad(float *y, int64_t quad, float4 v)
{
    ((float4 *)y)[quad] = v;
}

NB_KERNEL_FUNCTION void store_quad(nb_bf16 *y, int64_t quad, float4 v)
{
    ((uint2 *)y)[quad] = make_uint2(nb_pack_bf16(v.x, v.y), nb_pack_bf16(v.z, v.w));
}

NB_KERNEL_FUNCTION void convert(float x, float *y)
{
    *y = x;
}

NB_KERNEL_FUNCTION void convert(float x, nb_bf16 *y)
{
    *y = nb_bf16_round(x);
}

NB_KERNEL_FUNCTION void convert(nb_bf16 x, float *y)
{
    *y = nb_bf16_value(x);
}

template <typename FROM, typename TO>
__global__ void __launch_bounds__(THREADS) cast_kernel(const FROM *x, TO *y, uint64_t count)
{
    int64_t quads = (int64_t)(count / 4), first = (int64_t)blockIdx.x * (THREADS * QUADS) + (int)threadIdx.x;
    float4 quad[QUADS];
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        if (first + k * THREADS < quads)
            quad[k] = load_quad(x, first + k * THREADS);
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        if (first + k * THREADS < quads)
            store_quad(y, first + k * THREADS, quad[k]);
    /* What is left of the last quad: fewer than four elements, by the first threads of the grid. */
    int64_t rest = quads * 4 + (int)threadIdx.x;
    if (blockIdx.x == 0 && rest < (int64_t)count)
        convert(x[rest], y + rest);
}

template <typename FROM, typename TO> static nb_status launch(struct nb_stream *stream, const struct nb_cast *a)
{
    struct nb_launch grid = {dim3(nb_blocks_of((int64_t)a->count, 4 * THREADS * QUADS)), THREADS, 0};
    return nb_cuda_launch("cast", cast_kernel<FROM, TO>, grid, stream->stream, nb_pointer<const FROM>(a->x),
        nb_pointer<TO>(a->y), a->count);
}

nb_status nb_cuda_cast(struct nb_device *device, struct nb_stream *stream, const struct nb_cast *a)
{
    (void)device;
    NB_TRY(nb_check_cast(a));
    if (a->from == NB_DTYPE_BF16)
        return launch<nb_bf16, float>(stream, a);
    return a->to == NB_DTYPE_BF16 ? launch<float, nb_bf16>(stream, a) : launch<float, float>(stream, a);
}

nb_status nb_cuda_prepare_cast(struct nb_cuda *cuda)
{
    (void)cuda;
    NB_TRY(nb_cuda_load("cast", cast_kernel<nb_bf16, float>, 0));
    NB_TRY(nb_cuda_load("cast", cast_kernel<float, nb_bf16>, 0));
    return nb_cuda_load("cast", cast_kernel<float, float>, 0);
}
