/* Writing a model in bitsandbytes' 4-bit layout, as transformers' save_pretrained does, and the layout's names.
 * Source: bitsandbytes QuantState.as_dict and Linear4bit._save_to_state_dict. */
#ifndef NB_CHECKPOINT_BNB_H
#define NB_CHECKPOINT_BNB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "quant/matrix.h"

struct nb_checkpoint;

struct nb_bnb_write {
    const struct nb_checkpoint *source;
    const char *folder; /* must not exist, or be empty */
    enum nb_quant_type type;
    bool nested;
    uint64_t shard_bytes; /* files are cut before this; 0: 5 GB, as transformers does */
    /* May be NULL. Called after each tensor with the source's bytes done and in all. */
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *context;
};

/* Writes config.json (with quantization_config), generation_config.json, the tokenizer's files (copied from a folder, made from a
 * GGUF's metadata) and the tensors: every linear of the layers quantized, the rest bf16, in the order of the weight store's units,
 * with an index when there are several files. A source that is already in 4 bits is refused. Holds one matrix in bf16 and its
 * quantized form in memory. The folder is written under a temporary name beside its place and renamed; after an error nothing is
 * left. Errors: NB_USAGE (the folder exists, the source is quantized), NB_IO, NB_FORMAT, NB_MEMORY. */
nb_status nb_bnb_write(const struct nb_bnb_write *args);

#endif
