/* What there is to say about a choice: what was chosen, what a little more or less memory would do, and what would make
 * a run fit that does not. Dry runs of a copy of the run. */
#ifndef NB_TRAIN_FIT_ADVICE_H
#define NB_TRAIN_FIT_ADVICE_H

#include "train/fit.h"

/* Into plan->choice, for each knob that is not at its fastest; plan->next, the next faster choice with the memory that
 * it lacks, the next more frugal one with the time that it costs, and what would save nothing; and where the run does
 * not fit, nb_fit_explain's sentence as a note. Errors: those of nb_plan_measure. */
nb_status nb_plan_advise(const struct nb_run *run, struct nb_plan *plan);

/* For a run that takes more than there is: how much is missing in which memory, and the smallest change to the config
 * that would make it fit: of the keys that it gives one alone, which change no result; then a paged optimizer, fewer
 * rows at a time, shorter rows, a lower rank. The caller frees *text. `measure` is NULL for a training run. Errors:
 * those of the measure. */
nb_status nb_fit_explain(const struct nb_run *run, const struct nb_measure *measured, nb_fit_measure *measure,
    void *context, char **text);

/* The same as the error: NB_MEMORY where it does not fit. */
nb_status nb_fit_check(
    const struct nb_run *run, const struct nb_measure *measured, nb_fit_measure *measure, void *context);

#endif
