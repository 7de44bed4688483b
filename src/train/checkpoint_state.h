/* checkpoint-N: everything a run needs to go on with the same bytes.
 *
 *   adapter_config.json, adapter_model.safetensors   as PEFT writes them
 *   optimizer.safetensors   masters and moments of every trainable in registry order: "NAME" F32, "NAME.m" and "NAME.v" F32 or U8
 *                           codes, "NAME.m_absmax" and "NAME.v_absmax" F32
 *   config.yml              the resolved configuration
 *   products.json           which way each matrix product took on a GPU (product_table.h); no lines on a CPU
 *   trainer_state.json      struct nb_trainer_state, sizes and crc32 of the other files, and its own crc32 */
#ifndef NB_TRAIN_CHECKPOINT_STATE_H
#define NB_TRAIN_CHECKPOINT_STATE_H

#include "train/run_folder.h"
#include "train/session.h"

/* Data order and dropout are functions of seed, epoch and step, so this is the random state and the data position as
 * well. */
struct nb_trainer_state {
    int64_t step;            /* optimizer steps done */
    double epoch;
    uint64_t seed;
    uint64_t tokens, trained_tokens; /* in all steps so far */
    uint64_t metrics_bytes;  /* length of metrics.jsonl */
    double best_loss;        /* of the evaluations so far; meaningful if best_step > 0 */
    int64_t best_step;
    int64_t evaluations_without_gain;
    int micro_batch_size;    /* of the run: with micro_batch_size: auto the last bits follow from what was chosen */
    bool evaluation_due;     /* the evaluation of this step was interrupted */
};

/* Writes OUTPUT/checkpoint-STEP. Waits for the stream. */
nb_status nb_checkpoint_state_save(struct nb_session *session, const struct nb_run_folder *folder, const struct nb_trainer_state *state);

/* Checks sizes and checksums and reads the state; nothing of the device. Errors: NB_FORMAT, NB_IO naming the file. */
nb_status nb_checkpoint_state_read(const char *checkpoint_folder, struct nb_trainer_state *state);

/* Loads masters, moments and compute copies. Errors: NB_USAGE for a registry that differs, NB_FORMAT. */
nb_status nb_checkpoint_state_load(struct nb_session *session, const char *checkpoint_folder);

/* The configs of the checkpoint and of this run must agree, but for keys that change neither data nor arithmetic
 * (nb_config_first_lasting_difference); the optimizer where its moments stay in as many bits; and num_epochs and
 * max_steps where the schedule does not depend on the run's length. Errors: NB_USAGE naming the key. */
nb_status nb_checkpoint_state_check_config(const char *checkpoint_folder, const struct nb_config *config);

/* The checkpoint to resume from: `named` (a checkpoint, which must be good, or a run's folder with some), else the
 * newest good one of the folder, with a warning for each damaged one on the way. *checkpoint_folder (the caller
 * frees it) is NULL and *state zero where there is none yet and none was named. Errors: NB_FORMAT when there are
 * some and all are damaged; NB_IO where `named` holds none. */
nb_status nb_checkpoint_state_find(const struct nb_run_folder *folder, const char *named, char **checkpoint_folder,
                                   struct nb_trainer_state *state);

#endif
