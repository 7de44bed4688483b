/* How many blocks have their inputs in pinned host memory between forward and backward pass (activation_offloading). */
#ifndef NB_TRAIN_OFFLOAD_H
#define NB_TRAIN_OFFLOAD_H

#include "train/setup.h"

/* Order of choice. An explicit activation_offloading comes first, and gradient_checkpointing: auto keeps what fits
 * then. With `auto` nothing is offloaded while gradient_checkpointing is chosen: computing again takes neither host
 * memory nor the link. If that does not make it fit, as few blocks as make it fit give up their inputs, the first ones.
 *
 * On the CPU `auto` offloads under a memory_budget alone: else device and host memory are the same. */

/* Before what blocks keep is chosen: run->offloaded as the config says; with `auto` 0. */
void nb_offload_begin(struct nb_run *run);

/* After: with `auto`, 0 where the run fits run->available_bytes, else the smallest number with which it does, found by
 * dry runs. If it fits with none, as few as save as much as can be saved, and the plan says that it does not fit.
 * Errors: those of nb_plan_make. */
nb_status nb_offload_choose(struct nb_run *run);

#endif
