/* Rows of a stored matrix to bf16, on all cores. */
#ifndef NB_CHECKPOINT_TENSOR_READ_H
#define NB_CHECKPOINT_TENSOR_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bfloat.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "quant/matrix.h"

/* Each writes out [rows, columns] and returns the flattened index of the first value that is not finite (after rounding), or -1. */

/* `dtype` is NB_SAFETENSORS_F32, F16 or BF16. */
int64_t nb_tensor_read_plain(
    enum nb_safetensors_dtype dtype, const unsigned char *data, int64_t rows, int64_t columns, nb_bf16 *out);

/* With permuted_heads > 0, each head's rows are taken from the order that llama.cpp's converter gave them: row b*2 + a of a head
 * becomes row a * head_dim/2 + b, a in {0, 1}. rows is then a multiple of 2 * permuted_heads. */
int64_t nb_tensor_read_gguf(
    const struct nb_gguf_tensor *tensor, int64_t rows, int64_t columns, int64_t permuted_heads, nb_bf16 *out);

int64_t nb_tensor_read_quantized(const struct nb_quant_matrix *matrix, nb_bf16 *out);

/* The index of the first of `count` values that is infinite or NaN, or -1. */
int64_t nb_tensor_first_not_finite(const nb_bf16 *values, int64_t count);

#endif
