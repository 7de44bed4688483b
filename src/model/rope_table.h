/* The angles of rotary position embeddings. Private to src/model/. */
#ifndef NB_MODEL_ROPE_TABLE_H
#define NB_MODEL_ROPE_TABLE_H

#include "checkpoint/model_config.h"

/* inverse_frequency[i] = theta^(-2i / head_dim), i < head_dim / 2, in fp32 as transformers computes it; NB_ROPE_LLAMA3: scaled as in
 * transformers' _compute_llama3_parameters (wave lengths beyond the original context are stretched by `factor`, those well inside it
 * are left, between the two it is blended). */
void nb_rope_inverse_frequencies(const struct nb_rope_spec *spec, int head_dim, float *inverse_frequency);

/* cosine, sine [count, half]: of position * inverse_frequency, for the positions begin .. begin + count. */
void nb_rope_angles(const float *inverse_frequency, int half, int begin, int count, float *cosine, float *sine);

#endif
