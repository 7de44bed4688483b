/* A model with all that a parity test runs it with: device, memory, adapter, pass. Failures end the test (cmocka's fail). */
#ifndef NB_TESTS_PARITY_RIG_H
#define NB_TESTS_PARITY_RIG_H

#include "adapter/adapter.h"
#include "checkpoint/checkpoint.h"
#include "model/generate.h"
#include "model/model.h"

struct rig_options {
    const char *model, *adapter; /* folders (or a GGUF); adapter may be NULL */
    const struct nb_adapter_options *fresh_adapter; /* instead of `adapter`: targets, rank, alpha, dropout of one with B = 0; or NULL */
    enum nb_weight_format format;
    bool nested;
    enum nb_dtype activation;
    enum nb_keep keep;
    int slots, batches;
    struct nb_batch_limits limits; /* all 0: no pass */
    int positions_max;
    int threads;
    bool deferred, dry;
    bool reference_scales; /* see rig.c; `model` is a bitsandbytes checkpoint, `format` BF16 */
    bool embedding_on_host;
    uint64_t embedding_piece_bytes; /* 0: the model's own */
    uint64_t seed, memory_bytes, host_bytes; /* memory: 0: a default; host: of each arena with embedding_on_host */
};

struct rig {
    struct rig_options options;
    struct nb_device *device;
    struct nb_stream *stream;
    struct nb_checkpoint *checkpoint;
    struct nb_model *model;
    struct nb_adapter *adapter;
    nb_dptr memory, step;
    struct nb_arena *arena;
    void *host[2]; /* with embedding_on_host */
    struct nb_arena *pinned, *pageable;
    struct nb_pass *pass;
    struct nb_step host_step;
};

/* Rows of tokens as a reference has them: labels not shifted yet, -100 where nothing trains. */
struct rig_rows {
    const int32_t *ids, *labels; /* [count][length] */
    int count, length;
};

void rig_open(struct rig *rig, const struct rig_options *options);
void rig_close(struct rig *rig);

/* Fails the test with the status's message unless it is NB_OK. */
void rig_check(nb_status status);

/* Starts a step: the struct in device memory, loss_sum 0. */
void rig_begin_step(struct rig *rig);

/* Packs rows [first, first + count) into a slot; token_offset as if all rows of the step were one buffer. */
void rig_set_rows(struct rig *rig, int slot, const struct rig_rows *rows, int first, int count);

/* Waits; loss_sum over the step so far, divided by the rows' trained tokens. */
double rig_loss(struct rig *rig, int trained_tokens);

/* Trained tokens of rows. */
int rig_trained_tokens(const struct rig_rows *rows, int first, int count);

/* Waits; the adapter's gradients, fp32 [nb_adapter_elements]. The caller frees. */
float *rig_gradients(struct rig *rig);
void rig_clear_gradients(struct rig *rig);

/* A forward and a backward pass over all layers of a slot. */
void rig_forward_backward(struct rig *rig, int slot);

/* The logits [vocab] of one token, as fp32, after a forward pass over the layers below the head. */
void rig_logits(struct rig *rig, int slot, int token, float *logits);

#endif
