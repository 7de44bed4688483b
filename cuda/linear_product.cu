/* Picks and launches the product kernels of linear_kernel.cuh. */
#include "cuda/linear_product.cuh"

/* The kernel for this GPU. All of them multiply by mma.sync today; one for the warpgroups of sm_90a (wgmma, fed by TMA) stands here once it
 * is there, for compute_capability 90 and the tiles of 256 rows, its sums over ascending k like these. */
static struct nb_product_kernel_choice kernel_of(int compute_capability, enum nb_product_tile tile, bool backward, bool packed)
{
    (void)compute_capability;
    return backward ? nb_product_backward_kernel(tile, packed) : nb_product_forward_kernel(tile, packed);
}

static bool is_packed(const struct nb_product *product)
{
    for (int o = 0; o < product->outputs; o++)
        for (int s = product->output[o].segment_begin; s < product->output[o].segment_end; s++)
            if (!product->segment[s].right)
                return true;
    return false;
}

nb_status nb_product_launch(struct nb_cuda *cuda, cudaStream_t stream, struct nb_product product)
{
    const struct nb_device_profile *profile = &cuda->base.profile;
    int64_t width = 0;
    for (int o = 0; o < product.outputs; o++)
        width += product.output[o].width;
    if (width == 0)
        return NB_OK;
    enum nb_product_tile tile = nb_product_tile_of(profile, product.rows_max, width);
    if (product.masked_count > 0 && tile == NB_PRODUCT_TILE_256)
        tile = NB_PRODUCT_TILE_128; /* the largest that draws dropout's numbers */
    struct nb_product_kernel_choice choice = kernel_of(profile->compute_capability, tile, product.backward, is_packed(&product));
    product.row_tiles = (int)nb_blocks_of(product.rows_max, choice.rows);
    product.column_tiles_all = 0;
    for (int o = 0; o < product.outputs; o++) {
        product.column_tiles[o] = (int)nb_blocks_of(product.output[o].width, choice.columns);
        product.column_tiles_all += product.column_tiles[o];
    }
    int64_t blocks = (int64_t)product.row_tiles * product.column_tiles_all;
    if (blocks > INT32_MAX)
        return nb_fail(NB_UNSUPPORTED, "%s: %d tokens by %lld outputs are more tiles than one launch takes: cut the tokens into chunks",
            choice.name, product.rows_max, (long long)width);
    struct nb_launch launch = {dim3((unsigned)blocks), choice.threads, choice.shared_bytes};
    return nb_cuda_launch(choice.name, choice.kernel, launch, stream, product);
}

nb_status nb_product_prepare(struct nb_cuda *cuda)
{
    static const enum nb_product_tile tiles[] = {NB_PRODUCT_TILE_64, NB_PRODUCT_TILE_128, NB_PRODUCT_TILE_256};
    for (int i = 0; i < 12; i++) {
        struct nb_product_kernel_choice choice =
            kernel_of(cuda->base.profile.compute_capability, tiles[i / 4], i / 2 % 2 == 1, i % 2 == 1);
        NB_TRY(nb_cuda_load(choice.name, choice.kernel, choice.shared_bytes));
    }
    return nb_weight_chunk_prepare();
}

/* ---- chunks ---- */

/* Events between the two streams: join[b] when buffer b holds its weights, fork when the products enqueued so far are done (so that a
 * buffer may be overwritten). Both are recorded anew for each chunk; a wait refers to the last record before it. */
static nb_status fill(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_chunk_loop *loop, int chunk)
{
    nb_dptr scratch = nb_dptr_at(loop->scratch, (uint64_t)(chunk % 2) * loop->scratch_bytes);
    NB_TRY(nb_cuda_status(cudaEventRecord(cuda->fork, stream), "recording an event"));
    NB_TRY(nb_cuda_status(cudaStreamWaitEvent(cuda->side, cuda->fork, 0), "making a stream wait"));
    NB_TRY(loop->dequantize(cuda, cuda->side, loop->context, chunk, scratch));
    return nb_cuda_status(cudaEventRecord(cuda->join[chunk % 2], cuda->side), "recording an event");
}

nb_status nb_chunk_loop_run(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_chunk_loop *loop)
{
    for (int chunk = 0; chunk < loop->chunks && !loop->overlapped; chunk++) {
        NB_TRY(loop->dequantize(cuda, stream, loop->context, chunk, loop->scratch));
        NB_TRY(loop->multiply(cuda, stream, loop->context, chunk, loop->scratch));
    }
    if (!loop->overlapped)
        return NB_OK;
    for (int chunk = 0; chunk < 2 && chunk < loop->chunks; chunk++)
        NB_TRY(fill(cuda, stream, loop, chunk));
    for (int chunk = 0; chunk < loop->chunks; chunk++) {
        nb_dptr scratch = nb_dptr_at(loop->scratch, (uint64_t)(chunk % 2) * loop->scratch_bytes);
        NB_TRY(nb_cuda_status(cudaStreamWaitEvent(stream, cuda->join[chunk % 2], 0), "making a stream wait"));
        NB_TRY(loop->multiply(cuda, stream, loop->context, chunk, scratch));
        if (chunk + 2 < loop->chunks)
            NB_TRY(fill(cuda, stream, loop, chunk + 2));
    }
    return NB_OK;
}
