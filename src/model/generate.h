/* Generation with a key-value cache, one sequence. */
#ifndef NB_MODEL_GENERATE_H
#define NB_MODEL_GENERATE_H

#include "model/model.h"

struct nb_sampling {
    float temperature, top_p; /* 0: greedy; 1: no cut */
    int top_k;                /* 0: all */
    uint64_t seed;
};

struct nb_generator;

/* A generator for up to context_max tokens, prompts taken in pieces of at most prompt_chunk tokens. Takes memory from the arena. */
nb_status nb_generator_create(struct nb_model *model, const struct nb_adapter *adapter, int context_max, int prompt_chunk,
                              const struct nb_sampling *sampling, struct nb_arena *arena, struct nb_stream *stream,
                              struct nb_generator **generator);
void nb_generator_destroy(struct nb_generator **generator);

/* Appends tokens to the sequence (a prompt, or a later turn). Errors: NB_USAGE when the context is full. */
nb_status nb_generator_append(struct nb_generator *generator, const int32_t *ids, int count);

/* The next token after what the cache holds; it is appended. */
nb_status nb_generator_next(struct nb_generator *generator, int32_t *id);

int nb_generator_tokens(const struct nb_generator *generator);

#endif
