/* Two tiny models of seven layers, all different, with a head of its own and with the embedding as head; a few steps of
 * training with them; and the same models written again with other outer matrices. Failures end the test. */
#ifndef NB_TESTS_PARITY_OUTER_H
#define NB_TESTS_PARITY_OUTER_H

#include "checkpoint/safetensors.h"
#include "quant/codec.h"
#include "training.h"

enum { LAYERS = 7, STEPS = 3, LONGEST = 30 };

enum { OWN, TIED, SHAPES };

struct models {
    char *folder, *path[SHAPES]; /* a folder with rows.jsonl and both models */
};

/* Set-up and tear-down: *state is a struct models. */
int outer_open_models(void **state);
int outer_close_models(void **state);

/* A config of QLoRA and three micro-batches a step, which `more` adds to. The caller frees. */
char *outer_yaml(const struct models *models, const char *base, const char *more);

/* Losses, norms and masters of a few steps, and what the run took; the caller frees the masters. */
struct trained {
    struct nb_step_result step[STEPS];
    float *masters;
    uint64_t bytes;
    uint64_t device_bytes, pinned_bytes, pageable_bytes, row_bytes; /* row_bytes: of a micro-batch's embedded tokens */
};

/* What is planned is what is taken, in all three arenas. */
struct trained outer_train(const char *yaml, training_change *change, uint64_t number);

void outer_assert_same(const struct trained *want, const struct trained *got, const char *what);

/* A training_change: the CPU's deferred mode, or its own with seed 0. */
void outer_defer(struct nb_run *run, uint64_t seed);

/* How a model is written again. */
struct rewriting {
    bool head; /* an lm_head.weight of its own, bf16: the values that its head's matrix has in 4 bits, quantized so: */
    enum nb_quant_type type;
    bool nested;
    enum nb_safetensors_dtype embedding; /* BF16, F16 or F32 */
};

/* The bf16 model `from`, written again to a new folder. */
void outer_write_again(const char *from, const char *folder, const struct rewriting *how);

#endif
