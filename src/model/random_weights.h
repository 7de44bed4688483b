/* Weights for benchmarks of a shape that has none. Private to src/model/. */
#ifndef NB_MODEL_RANDOM_WEIGHTS_H
#define NB_MODEL_RANDOM_WEIGHTS_H

#include <stdint.h>

#include "base/bfloat.h"

/* Values of deviation 0.02 or so, the same in every run; shorter fills are the beginnings of longer ones. */
void nb_fill_random_weights(nb_bf16 *values, uint64_t count);

#endif
