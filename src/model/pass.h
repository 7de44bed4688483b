/* A pass from the inside. Private to src/model/. */
#ifndef NB_MODEL_PASS_H
#define NB_MODEL_PASS_H

#include "model/block.h"
#include "model/decoder.h"
#include "model/work.h"

/* A micro-batch's arrays as they lie in device memory and, the same, in pinned memory: offsets in bytes, multiples of 256. */
struct nb_batch_layout {
    uint64_t slot, ids, positions, starts, key_starts, trained_row, label, bytes;
};

struct nb_pass_slot {
    nb_dptr batch;      /* laid out as above */
    nb_dptr losses;     /* fp32 [trained rows] */
    nb_dptr gradient;   /* [tokens, hidden]: of the residual stream, on its way down */
    nb_dptr *input;     /* [layers + 1]: of block i; the last is the head's. All the same buffer where nothing is kept */
    nb_dptr *down_t;    /* [layers] */
    struct nb_block_kept *kept; /* [layers], with NB_KEEP_EVERYTHING, else NULL */
    int tokens_max;     /* 1 while one token is generated, else the limit */
    uint32_t trained_rows, tokens;
};

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
    nb_dptr *cache; /* [layers][2]: keys, values; NULL without */
    nb_dptr logits; /* one row; null where gradients are kept */
    struct nb_weight_access *schedule;
};

/* For micro-batches up to the limits. */
void nb_batch_lay_out(const struct nb_batch_limits *limits, struct nb_batch_layout *layout);

/* The slot's struct nb_slot on the device. */
static inline nb_dptr nb_pass_slot_address(const struct nb_pass *pass, int slot)
{
    return nb_dptr_at(pass->slot[slot].batch, pass->layout.slot);
}

#endif
