/* The adapter's thin products, beside the products with the weights (linear_product.cuh). */
#ifndef NB_CUDA_LORA_CUH
#define NB_CUDA_LORA_CUH

#include "cuda/device.cuh"

/* t of every part that has an adapter: t = round(dropout(x) A^T), the parts' A stacked so that x is read once; with
 * dropout each part masks x by its own numbers (device/dropout.h), in a kernel of its own. Must come before the product
 * that reads t. `partials`: args->scratch at nb_linear_scratch.partials. */
nb_status nb_lora_down(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *args, nb_dptr partials);

/* Of every part that has an adapter, one pass over dy for both: u = round(output_scale * scale * dy B) into u[part]
 * ([tokens_max, rank], rows beyond the valid ones up to the end of their tile of NB_TILE_TOKENS are zero or never
 * read), db += output_scale * scale * dy^T t; then da += u^T dropout(x) / (1 - dropout). Sums over tokens: a partial of
 * each absolute tile of NB_TILE_TOKENS, added in order. */
nb_status nb_lora_backward(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *args,
    const nb_dptr u[NB_LINEAR_PARTS], nb_dptr partials);

/* da alone, the last step of it (lora_backward_a.cu). */
nb_status nb_lora_backward_a(
    struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear_backward *args, const nb_dptr u[NB_LINEAR_PARTS]);

/* Loads the kernels of this header; those of each file. */
nb_status nb_lora_prepare(struct nb_cuda *cuda);
nb_status nb_lora_down_prepare(void);
nb_status nb_lora_backward_prepare(void);
nb_status nb_lora_backward_a_prepare(void);

/* All of y of a call that is few (nb_linear_is_few), adapter, bias, output scale and accumulation included; t must be
 * there. Weights are the bf16 values of training, bit for bit, on the 16 side of the tensor cores. A site of up to 4
 * tokens: one launch. From 5 to 64: K is cut by (out, in) alone, never by the number of tokens. `partials` as in
 * nb_lora_down. */
nb_status nb_linear_few(struct nb_cuda *cuda, cudaStream_t stream, const struct nb_linear *args, nb_dptr partials);
nb_status nb_linear_few_prepare(struct nb_cuda *cuda);

#endif
