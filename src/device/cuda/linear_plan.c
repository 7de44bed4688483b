/* The scratch of linear and linear_backward, piece by piece, each from a multiple of NB_ALIGNMENT on. More tokens
 * never need less, so that what was planned for the most serves all. */
#include "device/cuda/plan.h"

/* The path that takes the most memory among those a site of up to this many tokens may take: only a measured table
 * goes back from scratch to fused with more tokens. */
static enum nb_product_path largest_path(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    enum nb_product_path largest = nb_product_path_of(profile, site);
    for (int i = 0; profile->products && i < profile->products->count; i++) {
        struct nb_product_site fewer = *site;
        fewer.tokens = profile->products->choice[i].tokens;
        if (fewer.tokens < 1 || fewer.tokens >= site->tokens)
            continue;
        enum nb_product_path path = nb_product_path_of(profile, &fewer);
        if (path > largest)
            largest = path;
    }
    return largest;
}

/* bf16 weights in scratch. */
static uint64_t chunk_bytes(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    enum nb_product_path path = largest_path(profile, site);
    if (site->format == NB_WEIGHT_BF16 || path == NB_PRODUCT_FUSED)
        return 0;
    uint64_t depth = (uint64_t)(site->backward ? site->out : site->in);
    uint64_t bytes = nb_aligned((uint64_t)nb_product_chunk(profile, site) * depth * 2);
    return path == NB_PRODUCT_OVERLAPPED ? 2 * bytes : bytes;
}

void nb_linear_scratch_of(const struct nb_device_profile *profile, const struct nb_linear *args, struct nb_linear_scratch *scratch)
{
    *scratch = (struct nb_linear_scratch){.weights = 0};
    for (int p = 0; p < args->parts && !nb_linear_is_few(args); p++) {
        struct nb_product_site site = nb_linear_site(args, p);
        uint64_t bytes = args->part[p].weight.format == NB_WEIGHT_BF16 ? 0 : chunk_bytes(profile, &site);
        if (bytes > scratch->weights_bytes)
            scratch->weights_bytes = bytes;
    }
    scratch->partials = scratch->weights_bytes;
    scratch->partials_bytes = nb_aligned(nb_cuda_lora_partial_bytes(profile, args));
    scratch->bytes = scratch->partials + scratch->partials_bytes;
}

void nb_linear_backward_scratch_of(
    const struct nb_device_profile *profile, const struct nb_linear_backward *args, struct nb_linear_scratch *scratch)
{
    struct nb_product_site site = nb_linear_backward_site(args);
    bool decodes = false;
    for (int p = 0; p < args->parts; p++)
        decodes = decodes || args->part[p].weight.format != NB_WEIGHT_BF16;
    *scratch = (struct nb_linear_scratch){
        .weights_bytes = nb_dptr_is_null(args->dx) || !decodes ? 0 : chunk_bytes(profile, &site)};
    uint64_t at = scratch->weights_bytes;
    uint64_t rows = ((uint64_t)args->tokens_max + NB_TILE_TOKENS - 1) / NB_TILE_TOKENS * NB_TILE_TOKENS;
    for (int p = 0; p < args->parts; p++) {
        scratch->u[p] = at;
        if (!nb_dptr_is_null(args->part[p].lora.a))
            at += nb_aligned(rows * (uint64_t)args->part[p].lora.rank * 2);
    }
    scratch->partials = at;
    scratch->partials_bytes = nb_aligned(nb_cuda_lora_backward_partial_bytes(profile, args));
    scratch->bytes = scratch->partials + scratch->partials_bytes;
}

uint64_t nb_cuda_linear_scratch_bytes(const struct nb_device_profile *profile, const struct nb_linear *args)
{
    struct nb_linear_scratch scratch;
    nb_linear_scratch_of(profile, args, &scratch);
    return scratch.bytes;
}

uint64_t nb_cuda_linear_backward_scratch_bytes(const struct nb_device_profile *profile, const struct nb_linear_backward *args)
{
    struct nb_linear_scratch scratch;
    nb_linear_backward_scratch_of(profile, args, &scratch);
    return scratch.bytes;
}
