/* Bound by the 4 bytes an element that it reads. Four lanes take a tile of 256 elements: lane q reads 16 bytes of
 * every 64, so it owns four of the CPU's 16 lanes and adds them in the CPU's order; a warp's load fills whole
 * sectors, several are in flight. The same bits as the CPU's. */
#include "cuda/device.cuh"

enum { THREADS = 256, QUAD = 4, TILES = THREADS / QUAD, STEPS = NB_TILE_ELEMENTS / 16 };

NB_KERNEL_FUNCTION float4 add4(float4 a, float4 b)
{
    float4 sum = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
    return sum;
}

/* Lane by lane of the 16, from the lane `mask` away. */
NB_KERNEL_FUNCTION float4 exchange4(float4 a, int mask)
{
    float4 other = {
        nb_shuffle_xor(a.x, mask), nb_shuffle_xor(a.y, mask), nb_shuffle_xor(a.z, mask), nb_shuffle_xor(a.w, mask)};
    return other;
}

__global__ void __launch_bounds__(THREADS) square_sum_kernel(const float *gradient, float *partial, int64_t tiles)
{
    int64_t tile = (int64_t)blockIdx.x * TILES + threadIdx.x / QUAD;
    int quarter = (int)threadIdx.x % QUAD;
    float4 lanes = {0, 0, 0, 0};
    if (tile < tiles) {
        const float4 *g = (const float4 *)(gradient + tile * NB_TILE_ELEMENTS) + quarter;
        float4 x[STEPS];
#pragma unroll
        for (int i = 0; i < STEPS; i++)
            x[i] = g[i * QUAD];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            float4 square = {x[i].x * x[i].x, x[i].y * x[i].y, x[i].z * x[i].z, x[i].w * x[i].w};
            lanes = add4(lanes, square);
        }
    }
    /* Lanes l and l + 8, then l and l + 4, then crosswise: the order of the CPU's nb_sum16. Sums of two commute bit
     * by bit. */
    lanes = add4(lanes, exchange4(lanes, 2));
    lanes = add4(lanes, exchange4(lanes, 1));
    if (tile < tiles && quarter == 0)
        partial[tile] = (lanes.x + lanes.z) + (lanes.y + lanes.w);
}

nb_status nb_cuda_square_sum(struct nb_device *device, struct nb_stream *stream, const struct nb_square_sum *args)
{
    (void)device;
    NB_TRY(nb_check_square_sum(args));
    int64_t tiles = (int64_t)(args->count / NB_TILE_ELEMENTS);
    struct nb_launch launch = {dim3(nb_blocks_of(tiles, TILES)), THREADS, 0};
    return nb_cuda_launch("square_sum", square_sum_kernel, launch, stream->stream,
        nb_pointer<const float>(args->gradient), nb_pointer<float>(args->partial), tiles);
}

nb_status nb_cuda_prepare_square_sum(struct nb_cuda *cuda)
{
    (void)cuda;
    return nb_cuda_load("square_sum", square_sum_kernel, 0);
}
