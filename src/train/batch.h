/* Rows of a data set as one micro-batch: unpadded ids, positions, sequence starts, and the shifted labels of the trained positions. */
#ifndef NB_TRAIN_BATCH_H
#define NB_TRAIN_BATCH_H

#include "model/model.h"
#include "text/dataset.h"

struct nb_batch;

/* Host memory for micro-batches within the limits. Destroy with nb_batch_destroy. */
nb_status nb_batch_create(const struct nb_batch_limits *limits, struct nb_batch **batch);
void nb_batch_destroy(struct nb_batch **batch);

/* Empties it; its first token will be token `token_offset` of the step. */
void nb_batch_clear(struct nb_batch *batch, uint32_t token_offset);

/* Whether a row fits what is left. */
bool nb_batch_fits(const struct nb_batch *batch, const struct nb_dataset *dataset, uint32_t row);

/* Appends a row as a sequence of its own: positions from 0, label i + 1 belongs to position i, the first token is never predicted.
 * Errors: NB_USAGE when it does not fit. */
nb_status nb_batch_add(struct nb_batch *batch, const struct nb_dataset *dataset, uint32_t row);

/* A view, valid until the next change. */
const struct nb_micro_batch *nb_batch_view(const struct nb_batch *batch);

#endif
