/* How attention's kernels split a long cache among blocks when there are few queries: what their scratch and their
 * launches share. */
#ifndef NB_DEVICE_CUDA_ATTENTION_PLAN_H
#define NB_DEVICE_CUDA_ATTENTION_PLAN_H

#include "device/device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    NB_CUDA_DECODE_TOKENS = 16, /* up to so many queries are bound by the reading of the cache */
    NB_CUDA_DECODE_SPLITS = 64, /* blocks that share a cache, at most */
    NB_CUDA_DECODE_KEYS_MIN = 128
};

/* Keys that one block reads: a multiple of 64, and by longest_max alone, so that neither the cache's fill nor the
 * number of queries moves a bound. */
int nb_cuda_attention_split_keys(int longest_max);

/* Whether these bounds are those of a few queries against a cache. Not the scratch: nb_attention says the rest. */
bool nb_cuda_attention_decodes(const struct nb_attention *args);

/* Where the partial results begin in scratch, in bytes: stats float2 [tokens][heads][splits] {maximum, sum}, output
 * float [tokens][heads][splits][head_dim]. */
struct nb_cuda_attention_partials {
    int split_keys, splits;
    uint64_t stats, output, bytes;
};
struct nb_cuda_attention_partials nb_cuda_attention_partials_of(const struct nb_attention *args);

#ifdef __cplusplus
}
#endif

#endif
