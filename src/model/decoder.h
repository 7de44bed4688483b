/* A model from the inside. Private to src/model/. */
#ifndef NB_MODEL_DECODER_H
#define NB_MODEL_DECODER_H

#include "model/model.h"
#include "model/weight_store.h"

/* Tables of cosines and sines [positions_max, head_dim / 2], fp32. The families here need one. */
enum { NB_ROPE_TABLES = 1 };

struct nb_rope_table {
    nb_dptr cosine, sine;
};

struct nb_model {
    struct nb_device *device;               /* not owned */
    const struct nb_checkpoint *checkpoint; /* not owned */
    struct nb_model_config config;
    struct nb_model_options options;
    struct nb_layer_spec *layer; /* [config.layers] */
    struct nb_weight_store *store;
    struct nb_rope_table rope[NB_ROPE_TABLES];
    int positions_max; /* 0 before nb_model_allocate */
};

#endif
