/* What each block keeps from its forward pass, and what it computes again (gradient_checkpointing). */
#ifndef NB_TRAIN_RECOMPUTE_H
#define NB_TRAIN_RECOMPUTE_H

#include "train/setup.h"

/* Sets run->keep as the config says; with `auto`, the choice that saves most arithmetic of those that fit
 * run->available_bytes, found with a few dry runs: a block that keeps everything, attention's output or its input
 * alone differs from the next by a fixed number of bytes and of operations. Later blocks keep more. If not even the
 * least fits, everything is recomputed and the plan says that it does not fit. Also sets run->model.dequantize_once:
 * on a GPU where every product with 4-bit weights goes by way of bf16 scratch, so that no bit changes, and where it
 * fits with what is kept. Also sets run->offloaded, around that: see offload.h. Errors: those of nb_plan_make. */
nb_status nb_recompute_choose(struct nb_run *run);

#endif
