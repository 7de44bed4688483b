/* How many blocks keep their weights on the device (resident_layers); the others' stream in from pinned host memory.
 *
 * With `auto` all of them do where that fits. Where it does not, everything cheaper has given way before: with
 * gradient_checkpointing: auto all blocks compute everything again, with activation_offloading: auto their inputs have
 * left. Then as few blocks are streamed as must be, and what room is left of a block's weights serves those two
 * again. A CPU without a memory_budget streams nothing by itself: its device memory is the host's. */
#ifndef NB_TRAIN_RESIDENCY_H
#define NB_TRAIN_RESIDENCY_H

#include "train/setup.h"

/* Sets run->model.streamed_blocks as the config says, 0 for `auto`. So few that the buffers would take as much as
 * they save stay. */
void nb_residency_begin(struct nb_run *run);

/* For a training run: that, nb_recompute_choose, and with `auto` the search among dry runs. Where not even
 * streaming all blocks is enough, it stays at that, and the plan says that it does not fit. Errors: those of
 * nb_plan_make. */
nb_status nb_residency_choose(struct nb_run *run);

/* The device memory that a run takes with run->model.streamed_blocks as it is. */
typedef nb_status nb_residency_measure(struct nb_run *run, void *context, uint64_t *bytes);

/* With `auto`, raises run->model.streamed_blocks to the least number with which the run fits run->available_bytes,
 * or to all. *changed says whether it rose. Errors: those of `measure`. */
nb_status nb_residency_search(struct nb_run *run, nb_residency_measure *measure, void *context, bool *changed);

#endif
