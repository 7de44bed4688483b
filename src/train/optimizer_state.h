/* optimizer.safetensors: masters and moments; the layout is in checkpoint_state.h. */
#ifndef NB_TRAIN_OPTIMIZER_STATE_H
#define NB_TRAIN_OPTIMIZER_STATE_H

#include "train/session.h"

nb_status nb_optimizer_state_save(struct nb_session *session, const char *path);

/* Loads masters, moments and compute copies into an allocated, initialized adapter. Errors: NB_USAGE for tensors that are not this
 * run's (another rank, targets or optimizer), NB_FORMAT, NB_IO. */
nb_status nb_optimizer_state_load(struct nb_session *session, const char *path);

#endif
