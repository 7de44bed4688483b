/* What holds for every model config, wherever it was read from. */
#ifndef NB_CHECKPOINT_MODEL_CONFIG_CHECK_H
#define NB_CHECKPOINT_MODEL_CONFIG_CHECK_H

#include "checkpoint/model_config.h"

enum { NB_MODEL_EXTENT_MAX = 1 << 30 };

/* The sizes fit together and their products stay far from overflow. Errors: NB_FORMAT, NB_UNSUPPORTED, naming `path`. */
nb_status nb_model_config_check(const struct nb_model_config *config, const char *path);

#endif
