/* Scratch of the ops of loss, optimizer, quantization and sampling on a CUDA device. */
#include "device/cuda/loss_scratch.h"

#include "quant/codec.h"

NB_CUDA_NO_SCRATCH(cross_entropy)
NB_CUDA_NO_SCRATCH(loss_sum)
NB_CUDA_NO_SCRATCH(square_sum)
NB_CUDA_NO_SCRATCH(clip_scale)
NB_CUDA_NO_SCRATCH(adamw)
NB_CUDA_NO_SCRATCH(dequantize)

/* Appends a piece and returns its place. */
static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = *end;
    *end += nb_aligned(bytes);
    return at;
}

void nb_cuda_quantize_scratch_of(const struct nb_weight *to, struct nb_cuda_quantize_scratch *scratch)
{
    uint64_t blocks = nb_quant_blocks((uint64_t)to->rows * (uint64_t)to->columns);
    *scratch = (struct nb_cuda_quantize_scratch){0};
    if (!to->nested)
        return;
    scratch->absmax = place(&scratch->bytes, blocks * sizeof(float));
    scratch->sums = place(&scratch->bytes, nb_quant_superblocks(blocks) * sizeof(double));
}

uint64_t nb_cuda_quantize_scratch_bytes(const struct nb_device_profile *profile, const struct nb_quantize *args)
{
    (void)profile;
    struct nb_cuda_quantize_scratch scratch;
    nb_cuda_quantize_scratch_of(&args->to, &scratch);
    return scratch.bytes;
}

void nb_cuda_sample_scratch_of(const struct nb_sample *args, struct nb_cuda_sample_scratch *scratch)
{
    bool cuts = args->temperature > 0 && (args->top_k > 0 || args->top_p < 1.0f);
    uint64_t tiles = ((uint64_t)args->vocabulary + NB_CUDA_SAMPLE_TILE - 1) / NB_CUDA_SAMPLE_TILE;
    *scratch = (struct nb_cuda_sample_scratch){.tiles = tiles};
    scratch->choice = place(&scratch->bytes, NB_ALIGNMENT);
    scratch->tile_best = place(&scratch->bytes, tiles * sizeof(uint32_t));
    scratch->tile_sum = place(&scratch->bytes, tiles * sizeof(double));
    scratch->tile_ties = place(&scratch->bytes, tiles * sizeof(uint32_t));
    scratch->counts_bytes = cuts ? NB_CUDA_SAMPLE_VALUES * sizeof(uint32_t) : 0;
    scratch->counts = place(&scratch->bytes, scratch->counts_bytes);
}

uint64_t nb_cuda_sample_scratch_bytes(const struct nb_device_profile *profile, const struct nb_sample *args)
{
    (void)profile;
    struct nb_cuda_sample_scratch scratch;
    nb_cuda_sample_scratch_of(args, &scratch);
    return scratch.bytes;
}
