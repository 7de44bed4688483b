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

struct nb_work;

/* Fills the tables of the model's rotations, and waits for it. Errors: NB_MEMORY. */
nb_status nb_model_load_ropes(const struct nb_model *model, const struct nb_work *work);

#endif
