/* The output folder of a run: who may write there, what is left over in it, its checkpoints.
 *
 *   OUTPUT/config.yml                   the resolved configuration
 *   OUTPUT/metrics.jsonl                see metrics.h
 *   OUTPUT/checkpoint-N/                see checkpoint_state.h; written as checkpoint-N.tmp, synced, renamed
 *   OUTPUT/adapter_config.json, adapter_model.safetensors   when the run is done */
#ifndef NB_TRAIN_RUN_FOLDER_H
#define NB_TRAIN_RUN_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct nb_run_folder;

/* Makes the folder if need be and locks it against a second run; with `resume`, removes what an interrupted run left half-written.
 * A folder without a run is a note with `resume`, not an error: a script may always say it.
 * Errors: NB_USAGE when it holds a run and `resume` is false, or when another process trains in it; NB_IO (no permission). */
nb_status nb_run_folder_open(const char *path, bool resume, struct nb_run_folder **folder);

/* Unlocks. Takes NULL; nulls the handle. */
void nb_run_folder_close(struct nb_run_folder **folder);

const char *nb_run_folder_path(const struct nb_run_folder *folder);

/* Steps of the complete checkpoints, ascending; the caller frees *steps. */
nb_status nb_run_folder_checkpoints(const struct nb_run_folder *folder, int64_t **steps, int *count);

/* OUTPUT/checkpoint-STEP, and its name while it is written; the caller frees them. */
char *nb_run_folder_checkpoint(const struct nb_run_folder *folder, int64_t step);
char *nb_run_folder_unfinished(const struct nb_run_folder *folder, int64_t step);

/* The same of a run's folder that is not opened, by its path. */
nb_status nb_run_checkpoints_in(const char *path, int64_t **steps, int *count);
char *nb_run_checkpoint_in(const char *path, int64_t step);

/* Gives an unfinished checkpoint folder, whose files are synced, its name; an older one of that name goes first. */
nb_status nb_run_folder_publish(const struct nb_run_folder *folder, int64_t step);

/* Keeps the `keep` newest checkpoints, and the one of `best_step` whatever its age (0: none). keep 0: all. */
nb_status nb_run_folder_prune(const struct nb_run_folder *folder, int64_t keep, int64_t best_step);

#endif
