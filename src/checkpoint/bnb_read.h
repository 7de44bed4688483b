/* bitsandbytes' 4-bit matrices in safetensors files. */
#ifndef NB_CHECKPOINT_BNB_READ_H
#define NB_CHECKPOINT_BNB_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "checkpoint/safetensors.h"
#include "quant/matrix.h"

/* The tensors of one matrix. Those that it lacks are NULL. */
struct nb_bnb_parts {
    const struct nb_safetensors_tensor *packed, *absmax, *quant_map, *nested_absmax, *nested_quant_map, *state;
    enum nb_quant_type type;
};

/* False when `name` has no quant_state beside it: it is not a 4-bit matrix. */
bool nb_bnb_find(const struct nb_safetensors *file, const char *name, struct nb_bnb_parts *parts);

/* A float tensor's values at a multiple of 4 bytes: those in the file, or a copy that lives as long. NULL: no memory. */
typedef const float *nb_bnb_aligned(void *context, const struct nb_safetensors_tensor *tensor);

/* Fills the view from the parts. Errors as nb_checkpoint_matrix_quantized. */
nb_status nb_bnb_view(const struct nb_bnb_parts *parts, int64_t rows, int64_t columns, nb_bnb_aligned *aligned, void *context,
    struct nb_quant_matrix *view);

#endif
