/* One block: some thousand losses. A warp takes a tile of NB_TILE_TOKENS rows, eight to a lane; the tiles of a round
 * are then added in order. Bound by latency, some microseconds; nothing else runs less often but once a micro-batch. */
#include "cuda/double_sum.cuh"

enum { THREADS = 1024, WARPS = THREADS / NB_WARP };

__global__ void __launch_bounds__(THREADS)
    loss_sum_kernel(const float *loss, struct nb_step *step, const struct nb_slot *slot, int rows_max)
{
    double *tile_sum = (double *)nb_shared_memory();
    int rows = nb_valid_trained_rows(slot, 0, rows_max);
    int lane = (int)threadIdx.x % NB_WARP, warp = (int)threadIdx.x / NB_WARP;
    double total = 0;
    for (int64_t round = 0; round < rows; round += WARPS * NB_TILE_TOKENS) {
        int64_t begin = round + warp * NB_TILE_TOKENS;
        double partial = 0;
#pragma unroll
        for (int i = 0; i < NB_TILE_TOKENS; i += NB_WARP)
            if (begin + i + lane < rows)
                partial += (double)loss[begin + i + lane];
        partial = nb_warp_sum_double(partial);
        if (lane == 0)
            tile_sum[warp] = partial;
        nb_block_barrier();
        for (int w = 0; w < WARPS && threadIdx.x == 0; w++)
            total += tile_sum[w];
        nb_block_barrier();
    }
    if (threadIdx.x == 0)
        step->loss_sum += total;
}

nb_status nb_cuda_loss_sum(struct nb_device *device, struct nb_stream *stream, const struct nb_loss_sum *args)
{
    (void)device;
    NB_TRY(nb_check_loss_sum(args));
    struct nb_launch launch = {dim3(1), THREADS, WARPS * (int)sizeof(double)};
    return nb_cuda_launch("loss_sum", loss_sum_kernel, launch, stream->stream, nb_pointer<const float>(args->loss),
        nb_pointer<struct nb_step>(args->step), nb_pointer<const struct nb_slot>(args->slot), args->rows_max);
}

nb_status nb_cuda_prepare_loss_sum(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("loss_sum", loss_sum_kernel, WARPS * (int)sizeof(double));
}
