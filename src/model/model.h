/* A decoder on a device: its description layer by layer, its weights in units, and the two directions through ranges
 * of layers.
 *
 * Layers are counted with embedding and head: 0 is the embedding, 1 .. L the blocks, L + 1 the final norm, head and
 * loss. */
#ifndef NB_MODEL_MODEL_H
#define NB_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/arena.h"
#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"

struct nb_progress;

/* What may differ from layer to layer. */
struct nb_layer_spec {
    enum nb_residual { NB_RESIDUAL_SERIAL } residual; /* norm, attention, add, norm, MLP, add */
    enum nb_mlp { NB_MLP_SWIGLU } mlp;
    int rope_table; /* which of the model's tables turns q and k */
    int window;     /* 0: none */
    bool head_norms, attention_bias;
};

enum { NB_UNIT_BUFFERS = 2 };

struct nb_model_options {
    enum nb_weight_format linear_format; /* of the blocks' linears: BF16, NF4, FP4 */
    bool nested;
    enum nb_dtype activation;
    bool random_weights;  /* for benchmarks of a shape: nothing is read; matrices are random, norms 1, biases 0 */
    bool dequantize_once; /* a block's backward pass dequantizes each matrix that it uses twice (to compute again, and for dX) once, into
                             the live set; layer_major, each of a block's matrices once for all micro-batches in either
                             direction. Takes memory, saves time, changes no bit */
    int streamed_blocks;  /* of the blocks, how many lie in pinned host memory and are fetched for each use; 0 to all. They share
                             NB_UNIT_BUFFERS buffers on the device, so that as many or fewer save nothing */
    enum nb_weight_format head_format; /* of the head's matrix: BF16, or as linear_format */
    bool embedding_on_host;  /* the embedding's table lies in host memory; what a micro-batch needs of it is gathered there. Not where the
                                head is that table in bf16 */
    uint64_t embedding_piece_bytes; /* of the two buffers that gathered rows pass through, at most, if a row fits; 0: 16 MiB */
    bool streams_from_file;  /* streamed blocks come from their file at each use, through two buffers of pinned host memory */
    const char *cache_folder; /* of the model's units as they lie in memory, made at the first load; NULL: none. Must outlive the model */
};

struct nb_model;

/* Describes the model and lays out its units; takes no device memory. `checkpoint` must outlive the model until
 * nb_model_load is done. A checkpoint that is quantized already must be opened with its own type, or in bf16: its
 * matrices dequantized, to the same bits as when they are used in 4 bits. Errors: NB_UNSUPPORTED, NB_USAGE. */
nb_status nb_model_create(struct nb_device *device, const struct nb_checkpoint *checkpoint, const struct nb_model_options *options,
                          struct nb_model **model);

/* Takes NULL; nulls the handle. Device memory stays its arena's. */
void nb_model_destroy(struct nb_model **model);

const struct nb_model_config *nb_model_config_of(const struct nb_model *model);
struct nb_device *nb_model_device(const struct nb_model *model);

/* Where a model takes its memory. The last two may be NULL where nothing lies there. Does not own. */
struct nb_model_memory {
    struct nb_arena *device;
    struct nb_arena *pinned;   /* host memory that copies reach: streamed blocks */
    struct nb_arena *pageable; /* other host memory: an embedding on the host */
};

/* Takes the units' memory and the rope tables (positions_max rows), once. Errors: NB_MEMORY. */
nb_status nb_model_allocate(struct nb_model *model, const struct nb_model_memory *memory, int positions_max);

/* Bytes of streamed blocks' weights that were fetched to the device so far. */
uint64_t nb_model_fetched_bytes(const struct nb_model *model);

/* Reads every weight from the checkpoint into its unit: bf16 sources are quantized on the device (the head's on
 * the host, to the same bytes), 4-bit ones copied as they are (their own maps). A unit that is to lie in host memory is
 * put together there, or, where it is to be quantized, written in a buffer on the device and brought to the host from
 * there. With a cache_folder the units are kept in a file, from which the next load reads them instead; that the file
 * is damaged, or cannot be written, is a warning. Units that stream from a file are not loaded, only found in it.
 * `arena` gives the transient scratch. On a dry device only the memory is counted. Never more than two tensors of host
 * memory besides. `progress` (may be NULL) is started, kept up and finished here. Waits for the stream. Errors:
 * NB_FORMAT for a tensor that is missing, of another shape or not finite, NB_UNSUPPORTED where weights that are to
 * stream from a file are in none, NB_IO, NB_MEMORY. */
nb_status nb_model_load(struct nb_model *model, struct nb_stream *stream, struct nb_arena *arena, struct nb_progress *progress);

/* ---- micro-batches ---- */

/* Upper bounds that every buffer of a pass is sized for. */
struct nb_batch_limits {
    int tokens, sequences, longest, trained_rows;
    int loss_rows; /* rows of logits at a time, a multiple of NB_TILE_TOKENS */
    int mlp_chunk_tokens; /* tokens of a block's MLP at a time, a multiple of NB_TILE_TOKENS; 0: all */
};

/* A micro-batch on the host: sequences one after the other, unpadded. Labels are already shifted: trained row i says
 * that position row[i] (ascending, an index into the tokens) shall predict label[i]. Does not own. */
struct nb_micro_batch {
    struct nb_slot counts;
    const int32_t *ids, *positions; /* [tokens] */
    const int32_t *starts;          /* [sequences + 1] */
    const int32_t *trained_row, *label; /* [trained_rows] */
};

/* Which activations a block keeps from its forward pass. What it does not keep is computed again, to the same bits. */
enum nb_keep {
    NB_KEEP_INPUT,      /* gradient_checkpointing: true: the block's input */
    NB_KEEP_ATTENTION,  /* attention: also the attention's output and log-sum-exp */
    NB_KEEP_EVERYTHING, /* false */
    NB_KEEP_NOTHING,    /* evaluation, generation: forward only */
};

/* The activations of up to `slots` micro-batches in flight through a model with an adapter (or NULL). */
struct nb_pass;

struct nb_pass_options {
    struct nb_batch_limits limits;
    enum nb_keep keep;
    const enum nb_keep *layer_keep; /* [blocks], of the blocks one by one, none NB_KEEP_NOTHING; NULL: all as `keep`. Must outlive the
                                       pass */
    int slots;
    bool layer_major; /* the slots go through each layer together, by nb_pass_train_layer_major alone. Changes no bit */
    int batches;      /* how often nb_pass_set_batch may be called between two waits for the stream, at least slots (0: slots): each
                         call has pinned memory of its own until the wait. The trainer waits once a step */
    int cache_tokens; /* > 0: a key-value cache of so many tokens, one sequence; keep is NB_KEEP_NOTHING */
    nb_dptr step;     /* struct nb_step */
    int offloaded;    /* so many blocks, the first ones, have their input (and what NB_KEEP_ATTENTION keeps) in pinned
                         host memory between forward and backward pass; at most nb_pass_offloaded_max. 0: none. Each
                         slot then has buffers on the device for as many as stay; layer_major, all slots together at
                         least two more than slots. Changes no bit */
    struct nb_arena *pinned; /* the host memory for that, and for the rows of an embedding on the host on their way to the device. Must
                                outlive the pass; NULL where there is neither */
};

/* All blocks but those whose inputs the fewest buffers hold, the head's among them: two more than `slots` that go layer
 * by layer, three where a slot goes alone (`slots` is 1). */
int nb_pass_offloaded_max(int blocks, int slots);

/* Takes everything the pass will use from the arena, which it keeps for its frames: forward and backward take and
 * release their live sets there, and never more than at planning. Model, adapter, arena and stream must outlive the
 * pass. Errors: NB_USAGE for options that do not fit together, NB_MEMORY. */
nb_status nb_pass_create(struct nb_model *model, const struct nb_adapter *adapter, const struct nb_pass_options *options,
                         struct nb_arena *arena, struct nb_stream *stream, struct nb_pass **pass);

/* Releases the pass's memory (LIFO with what was taken after it), in both arenas. Takes NULL; nulls the handle. */
void nb_pass_destroy(struct nb_pass **pass);

/* Enqueues the upload of a micro-batch into a slot; its arrays are copied to the pass's pinned memory before return.
 * With an embedding on the host, layer 0 reads the ids there: it runs before `batches` more calls are made. Errors:
 * NB_USAGE when it exceeds the limits. */
nb_status nb_pass_set_batch(struct nb_pass *pass, int slot, const struct nb_micro_batch *batch);

/* Enqueue layers first .. last (inclusive) for a slot. The head's forward computes the loss of every trained row,
 * adds their sum to step->loss_sum and, unless NB_KEEP_NOTHING, leaves dX of its input; backward ranges then run
 * from the head's successor down: nb_pass_backward(pass, slot, L, 0) with first >= last. Block 1 computes no dX
 * unless something below it trains. Layer 0 of an embedding on the host gathers its rows at the call, and so may wait
 * for the device to have taken those of the layer 0 before the last. Errors: NB_USAGE for a slot or a range that the pass does not have. */
nb_status nb_pass_forward(struct nb_pass *pass, int slot, int first, int last);
nb_status nb_pass_backward(struct nb_pass *pass, int slot, int first, int last);

/* Enqueues a whole micro-batch: layers 0 .. L + 1 forward, L .. 0 backward. On a device that has graphs, and with
 * weights that stay where they are, the work (but an embedding's on the host) is recorded once for each length that
 * comes up (in tiles of NB_TILE_TOKENS) and launched from then on. */
nb_status nb_pass_train(struct nb_pass *pass, int slot);

/* Enqueues the micro-batches of slots 0 .. slots - 1 on a pass with layer_major, all through a layer before the next.
 * Each layer's weights are acquired, and with dequantize_once dequantized, once in either direction. What is summed up
 * over micro-batches is so in the order of slots, as by nb_pass_train one after the other: the same bits. Nothing is
 * recorded. Errors: NB_USAGE for a number of slots that the pass does not have. */
nb_status nb_pass_train_layer_major(struct nb_pass *pass, int slots);

/* Enqueues the download of the slot's losses, fp32 [trained rows], in the order of trained_row. `losses` is host
 * memory that copies can reach (host_take's), valid once the stream has been waited for. */
nb_status nb_pass_download_losses(struct nb_pass *pass, int slot, float *losses);

/* Enqueues the logits of one token row of the slot (after a forward of layers 0 .. L) into the pass's logits row,
 * [vocab] in the activation dtype; and their address, which holds until the next call. For generation and tests.
 * Errors: NB_USAGE with a pass that trains, or for a token that the slot does not have. */
nb_status nb_pass_logits(struct nb_pass *pass, int slot, int token, nb_dptr *logits);

#endif
