/* Generation with a key-value cache, one sequence. */
#ifndef NB_MODEL_GENERATE_H
#define NB_MODEL_GENERATE_H

#include "model/model.h"

struct nb_sampling {
    float temperature, top_p; /* 0: greedy; 1: no cut */
    int top_k;                /* 0: all */
    uint64_t seed;
};

struct nb_generator_options {
    int context_max;  /* tokens of the sequence at most, prompts and answers together */
    int prompt_chunk; /* prompts are taken in pieces of at most so many tokens */
    struct nb_sampling sampling;
    struct nb_arena *pinned; /* as in nb_pass_options: NULL will do unless the embedding is on the host */
};

struct nb_generator;

/* Takes its memory from the arena, the cache of context_max tokens included. `adapter` may be NULL. Model, adapter, arena and stream
 * must outlive the generator. Errors: NB_USAGE for sizes below 1, NB_MEMORY. */
nb_status nb_generator_create(struct nb_model *model, const struct nb_adapter *adapter, const struct nb_generator_options *options,
                              struct nb_arena *arena, struct nb_stream *stream, struct nb_generator **generator);

/* Releases the generator's memory (LIFO with what was taken after it). Takes NULL; nulls the handle. */
void nb_generator_destroy(struct nb_generator **generator);

/* Appends tokens to the sequence (a prompt, or a later turn). Waits for the stream. Errors: NB_USAGE when the context is full, or for
 * an id outside the vocabulary. */
nb_status nb_generator_append(struct nb_generator *generator, const int32_t *ids, int count);

/* The next token, which is appended. Waits for the stream. Errors: NB_USAGE when the context is full or the sequence empty;
 * NB_NUMERIC when the logits are not finite. */
nb_status nb_generator_next(struct nb_generator *generator, int32_t *id);

/* Tokens of the sequence so far. */
int nb_generator_tokens(const struct nb_generator *generator);

#endif
