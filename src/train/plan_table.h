/* The longest rows that fit: the models of configs/models on cards of each usual size. */
#ifndef NB_TRAIN_PLAN_TABLE_H
#define NB_TRAIN_PLAN_TABLE_H

#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"

struct nb_plan_table_options {
    const char *device;          /* a card of configs/devices, or a file, in place of the usual ones; NULL: those. */
    const char *model;           /* one of configs/models, a config.json or a checkpoint, in place of all; NULL: all */
    const char *const *settings; /* "key=value", over what the table assumes */
    size_t setting_count;
    bool json;
};

/* Plans each model on each card, with every choice that a config may leave open left open, and prints a table in Markdown, line by line as
 * it is found, or one JSON object: "settings" [text], "cards" [{"card", "device", "memory_bytes"}], "models" [{"model", "context",
 * "cells" [null where not even the shortest row fits, or {"sequence_len", "peak_bytes", "pinned_bytes", "pageable_bytes",
 * "step_seconds" (at least), "blocks_recomputed", "optimizer_paged", "blocks_offloaded", "blocks_streamed", "embedding_on_host",
 * "mlp_chunk_tokens", "from_file"}]}]. Errors: those of a configuration, a device's file or a plan. */
nb_status nb_plan_table_print(const struct nb_plan_table_options *options, FILE *out);

#endif
