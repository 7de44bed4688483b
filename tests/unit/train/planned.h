/* A training run on a model of configs/models and a device of configs/devices, with everything chosen; nothing is
 * computed. A failure ends the test. */
#ifndef NB_TESTS_UNIT_TRAIN_PLANNED_H
#define NB_TESTS_UNIT_TRAIN_PLANNED_H

#include "train/fit.h"

struct planned {
    struct nb_config config;
    struct nb_run *run;
    struct nb_measure measured;
};

/* One row of `tokens` tokens, rank 16 on every linear, `more` lines of the config. `folder` is the test's own; `device`
 * NULL: this machine's. */
struct planned *planned_open(const char *folder, const char *model, const char *device, int tokens, const char *more);

/* The same with a setting as after --set, or NULL. */
struct planned *planned_open_changed(
    const char *folder, const char *model, const char *device, int tokens, const char *more, const char *change);

void planned_close(struct planned *p);

/* Chooses and measures once more: after a change to the run. */
void planned_again(struct planned *p);

bool planned_fits(const struct planned *p);

#endif
