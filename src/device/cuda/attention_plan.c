/* Scratch of attention on a CUDA device. */
#include "device/cuda/attention_plan.h"

#include "device/cuda/plan.h"

int nb_cuda_attention_split_keys(int longest_max)
{
    int64_t step = 64, each = ((int64_t)longest_max + NB_CUDA_DECODE_SPLITS - 1) / NB_CUDA_DECODE_SPLITS;
    each = (each + step - 1) / step * step;
    return each < NB_CUDA_DECODE_KEYS_MIN ? NB_CUDA_DECODE_KEYS_MIN : (int)each;
}

bool nb_cuda_attention_decodes(const struct nb_attention *args)
{
    return args->tokens_max <= NB_CUDA_DECODE_TOKENS && args->key_tokens_max > args->tokens_max &&
           args->longest_max > NB_CUDA_DECODE_KEYS_MIN;
}

struct nb_cuda_attention_partials nb_cuda_attention_partials_of(const struct nb_attention *args)
{
    struct nb_cuda_attention_partials partials = {.split_keys = nb_cuda_attention_split_keys(args->longest_max)};
    partials.splits = (int)(((int64_t)args->longest_max + partials.split_keys - 1) / partials.split_keys);
    int tokens = args->tokens_max < NB_CUDA_DECODE_TOKENS ? args->tokens_max : NB_CUDA_DECODE_TOKENS;
    uint64_t rows = (uint64_t)tokens * (uint64_t)args->heads * (uint64_t)partials.splits;
    partials.output = nb_aligned(rows * 2 * sizeof(float));
    partials.bytes = partials.output + rows * (uint64_t)args->head_dim * sizeof(float);
    return partials;
}

/* A caller asks once for all its numbers of tokens, with the largest: so the partial results of a few are counted
 * whenever there is a cache, though this call's own may be too many for them. */
uint64_t nb_cuda_attention_scratch_bytes(const struct nb_device_profile *profile, const struct nb_attention *args)
{
    (void)profile;
    struct nb_attention few = *args;
    few.tokens_max = args->tokens_max < NB_CUDA_DECODE_TOKENS ? args->tokens_max : NB_CUDA_DECODE_TOKENS;
    bool cache = args->key_tokens_max > args->tokens_max;
    return cache && nb_cuda_attention_decodes(&few) ? nb_cuda_attention_partials_of(&few).bytes : 0;
}

uint64_t nb_cuda_attention_backward_scratch_bytes(
    const struct nb_device_profile *profile, const struct nb_attention_backward *args)
{
    (void)profile;
    return (uint64_t)args->heads * (uint64_t)args->tokens_max * 2 * sizeof(float);
}
