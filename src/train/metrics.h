/* metrics.jsonl, and the lines a user sees while training. */
#ifndef NB_TRAIN_METRICS_H
#define NB_TRAIN_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* One training step. */
struct nb_metrics_step {
    int64_t step, steps;
    double epoch, loss, grad_norm, learning_rate;
    uint64_t tokens, trained_tokens; /* of this step */
    double tokens_per_second;        /* since the line before */
    uint64_t memory_bytes;           /* high-water mark of the arena */
};

struct nb_metrics;

/* Opens PATH for appending after its first `keep_bytes` bytes, what follows is cut off; creates it. `first_step` is the number of
 * steps done before, for the time left. Errors: NB_IO. A file shorter than keep_bytes is a warning. */
nb_status nb_metrics_open(const char *path, uint64_t keep_bytes, int64_t first_step, struct nb_metrics **metrics);

/* Takes NULL; nulls the handle. */
void nb_metrics_close(struct nb_metrics **metrics);

/* Appends {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "tokens_per_second", "seconds",
 * "memory_bytes"} and shows the step. */
nb_status nb_metrics_step(struct nb_metrics *metrics, const struct nb_metrics_step *step);

/* Redraws the terminal's line for a step that is not logged; nothing elsewhere. */
void nb_metrics_show(struct nb_metrics *metrics, const struct nb_metrics_step *step);

/* Appends {"step", "epoch", "eval_loss", "eval_tokens", "seconds"} and shows it. */
nb_status nb_metrics_evaluation(struct nb_metrics *metrics, int64_t step, double epoch, double loss, uint64_t trained_tokens);

/* Syncs the file and gives its length: for a checkpoint. */
nb_status nb_metrics_sync(struct nb_metrics *metrics, uint64_t *bytes);

#endif
