/* The training loop. */
#ifndef NB_TRAIN_TRAINER_H
#define NB_TRAIN_TRAINER_H

#include <signal.h>
#include <stdbool.h>

#include "base/status.h"
#include "config/config.h"

struct nb_train_options {
    bool resume;
    const char *resume_from; /* with resume: a checkpoint, or a run's folder; NULL: the newest good one of output_dir */
    /* Set to nonzero by the caller's signal handler: the step at work is finished, a checkpoint saved, NB_INTERRUPTED returned.
     * May be NULL. (A second signal is the handler's business: it ends the process.) */
    const volatile sig_atomic_t *stop;
};

/* Trains as a validated config says (nb_config_validate_train): opens everything, prints the plan, takes the memory once, runs the
 * steps, evaluates, saves, and leaves the adapter in output_dir. `config` is only read.
 * Errors: all of set-up; NB_NUMERIC for a loss that is not finite (naming step and rows; the last good checkpoint stays);
 * NB_INTERRUPTED after saving. */
nb_status nb_train(const struct nb_config *config, const struct nb_train_options *options);

#endif
