/* A pass from the inside. Private to src/model/. */
#ifndef NB_MODEL_PASS_H
#define NB_MODEL_PASS_H

#include "model/block.h"
#include "model/decoder.h"
#include "model/host_embedding.h"
#include "model/work.h"

/* A micro-batch's arrays as they lie in device memory and, the same, in pinned memory: offsets in bytes, multiples of 256. */
struct nb_batch_layout {
    uint64_t slot, ids, positions, starts, key_starts, trained_row, label, bytes;
};

struct nb_pass_slot {
    nb_dptr batch;      /* laid out as above */
    nb_dptr losses;     /* fp32 [trained rows] */
    nb_dptr gradient;   /* [tokens, hidden]: of the residual stream, on its way down */
    nb_dptr *input;     /* [layers + 1]: of block i; the last is the head's. All the same buffer where nothing is kept,
                           some the same, or other slots', where some leave the device (inputs.h) */
    nb_dptr *down_t;    /* [layers] */
    struct nb_block_kept *kept; /* [layers]; what a block does not keep is null */
    const int32_t *ids; /* of the last nb_pass_set_batch, in the pass's pinned memory */
    int tokens_max;     /* of the micro-batch at work, in whole tiles; 1 while one token is generated */
    uint32_t trained_rows, tokens;
};

/* Work on a slot that repeats, recorded. */
struct nb_pass_recording {
    int slot, tokens_max;
    bool has_run; /* once without recording: what a library loads at first use must not come up while recording */
    bool refused; /* the driver had no memory for it */
    struct nb_graph *graph;
};

/* Where block inputs lie, leave the device from and come back to: inputs.h. */
struct nb_inputs {
    struct nb_inputs_ring *ring; /* [rings] */
    int rings;                   /* one a slot, or one for all */
    int active;                  /* slots with a micro-batch, the first ones: all but in a short step, layer by layer */
    struct nb_stream *stream;    /* of the copies; NULL, like all that follows, where nothing leaves */
    struct nb_event *computed;   /* what copies wait for */
    struct nb_inputs_slot *slot; /* [slots] */
    uint64_t frame;              /* of the pinned arena, before the pass */
};

/* Lengths beyond so many are not recorded: each recording takes some of the driver's memory. */
enum { NB_PASS_RECORDINGS_MAX = 16 };

struct nb_pass {
    const struct nb_model *model;
    const struct nb_adapter *adapter;
    struct nb_pass_options options;
    struct nb_work work;
    uint64_t frame; /* of the arena, before the pass */
    struct nb_batch_layout layout;
    char *staging; /* [batches] of layout.bytes, pinned */
    int next_batch;
    int lowest;    /* the first block with an adapter; the number of blocks if none has */
    struct nb_pass_slot *slot;
    struct nb_inputs inputs;
    struct nb_host_embedding host_embedding;
    nb_dptr *cache; /* [layers][2]: keys, values; NULL without */
    nb_dptr logits; /* one row; null where gradients are kept */
    struct nb_weight_access *schedule;
    struct nb_pass_recording recording[NB_PASS_RECORDINGS_MAX];
    int recordings;
};

/* For micro-batches up to the limits. */
void nb_batch_lay_out(const struct nb_batch_limits *limits, struct nb_batch_layout *layout);

/* What block `index` keeps. */
enum nb_keep nb_pass_keep_of(const struct nb_pass *pass, int index);

static inline bool nb_pass_trains(const struct nb_pass *pass)
{
    return pass->options.keep != NB_KEEP_NOTHING;
}

/* Block `index` at work on a slot. `weights` may be NULL where only memory is taken. */
void nb_pass_set_block(
    const struct nb_pass *pass, int slot, int index, const struct nb_unit_view *weights, struct nb_block *block);

/* Enqueues `enqueue(context)`, work on the slot that is the same at every call with the slot's tokens_max: at the
 * second call it is recorded as well, and later ones launch the recording. Directly where the device has no graphs, the
 * weights do not stay, or block inputs leave the device (another stream joins in). A pass has one such piece of work. It
 * begins with layer nb_pass_repeats_from: what comes before that, of which each upload is from another address, is
 * enqueued here. */
int nb_pass_repeats_from(const struct nb_pass *pass);
nb_status nb_pass_repeat(struct nb_pass *pass, int slot, nb_status (*enqueue)(void *context), void *context);

/* The slot's struct nb_slot on the device. */
static inline nb_dptr nb_pass_slot_address(const struct nb_pass *pass, int slot)
{
    return nb_dptr_at(pass->slot[slot].batch, pass->layout.slot);
}

#endif
