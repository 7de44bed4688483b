/* One block adds a partial sum for every 256 elements of the gradient: 660 KB for the adapters of an 8B model, a few
 * microseconds once a step, bound by what one multiprocessor draws from the cache. A thread adds every 1,024th
 * partial, so the order is fixed whatever the GPU; in double, where another order than the CPU's shows in the 13th
 * digit. */
#include <math.h>

#include "cuda/double_sum.cuh"

enum { THREADS = 1024, WARPS = THREADS / NB_WARP, FLIGHT = 8 };

/* Of partial[thread], partial[thread + THREADS], ... */
NB_KERNEL_FUNCTION double sum_of_thread(const float *partial, int64_t count)
{
    double sum = 0;
    int64_t i = threadIdx.x;
    for (; i + (FLIGHT - 1) * THREADS < count; i += FLIGHT * THREADS) {
        float x[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            x[k] = partial[i + k * THREADS];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            sum += (double)x[k];
    }
    for (; i < count; i += THREADS)
        sum += (double)partial[i];
    return sum;
}

__global__ void __launch_bounds__(THREADS) clip_scale_kernel(const float *partial, struct nb_step *step, int64_t count)
{
    double sum = nb_block_sum_double(sum_of_thread(partial, count), (double *)nb_shared_memory());
    if (threadIdx.x != 0)
        return;
    float norm = (float)(sqrt(sum) * (double)step->inverse_count);
    float scale = step->max_grad_norm / (norm + 1e-6f);
    step->gradient_norm = norm;
    step->clip_scale = step->max_grad_norm > 0 && scale < 1.0f ? scale : 1.0f;
    /* x - x is 0 for finite x alone */
    step->finite = step->loss_sum - step->loss_sum == 0 && norm - norm == 0;
}

nb_status nb_cuda_clip_scale(struct nb_device *device, struct nb_stream *stream, const struct nb_clip_scale *args)
{
    (void)device;
    NB_TRY(nb_check_clip_scale(args));
    struct nb_launch launch = {dim3(1), THREADS, WARPS * (int)sizeof(double)};
    return nb_cuda_launch("clip_scale", clip_scale_kernel, launch, stream->stream,
        nb_pointer<const float>(args->partial), nb_pointer<struct nb_step>(args->step), (int64_t)args->count);
}

nb_status nb_cuda_prepare_clip_scale(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("clip_scale", clip_scale_kernel, WARPS * (int)sizeof(double));
}
