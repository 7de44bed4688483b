/* Attention of a few queries against a long cache: attention_decode.cu. */
#ifndef NB_CUDA_ATTENTION_DECODE_CUH
#define NB_CUDA_ATTENTION_DECODE_CUH

#include "cuda/attention_tile.cuh"

/* Whether it serves this call: by the bounds, and by the scratch that the caller planned (none where no cache was in
 * sight). */
bool nb_attention_decode_serves(const struct nb_attention *a);

nb_status nb_attention_decode(const struct nb_attention_view &view, const struct nb_attention *a, cudaStream_t stream);
nb_status nb_attention_decode_load(void);

#endif
