/* What a run keeps where, and in what pieces: one choice for everything that a config may leave to nibble.
 *
 * Each choice is a knob (fit_knobs.h) with notches from the fastest to the one that takes the least of the device's
 * memory. A key that the config gives is never touched. The others are chosen so that the run fits
 * run->available_bytes and what leaves the device run->host_available_bytes:
 *
 *   1. Everything at its fastest, if that fits.
 *   2. Everything at its most frugal. If not even that fits, it stays there, and the plan says so.
 *   3. Else knob by knob to the fastest notch with which the run still fits, the others as they are: first the knob
 *      that costs the most time, so that it is used the least, last the one that costs the least.
 *
 * The order of 3 is the table's, and where the device's rates are unknown that is all. Where they are known, what
 * costs most depends on the rows: weights that stream in are hidden behind the arithmetic of many tokens, and bare
 * behind that of few. So 3 is done in a few orders, and of their outcomes the one with the fewest seconds a step is
 * taken (an earlier order's where another saves no five in a thousand). In the same way the order of accumulation and
 * the size of a micro-batch are chosen, where they may be: each is planned, and the fastest taken.
 *
 * A knob's notches take less and less memory while the others stay, so that a bisection finds the fastest that fits.
 * Two exceptions do no harm. Computing one block again may take more than computing none, for its activations are there
 * twice: then none was not enough either, or nothing would have been searched. And what fits with all frugal fits at
 * the end, as each step of 3 leaves the run fitting.
 *
 * The device's memory decides in 3, for what leaves the one arrives in the other. If then the host has too little, the
 * weights come from their file where they can, and in the last order those knobs are relaxed first that fill the
 * host's memory.
 *
 * On a CPU without a memory_budget nothing leaves the device by itself: its memory is the host's. */
#ifndef NB_TRAIN_FIT_H
#define NB_TRAIN_FIT_H

#include "train/plan.h"

/* What the config gives, and all else at its fastest. */
void nb_fit_begin(struct nb_run *run);

/* Chooses for a training run. Errors: those of nb_plan_measure. */
nb_status nb_fit_choose(struct nb_run *run);

/* Whether nb_fit_choose would find a choice that fits, mostly with a single measure. The choices are left undefined. */
nb_status nb_fit_can(struct nb_run *run, bool *can);

/* Chooses for any run, from what it takes with its choices as they are; but no order of accumulation or size of a
 * micro-batch. Errors: those of `measure`. */
typedef nb_status nb_fit_measure(struct nb_run *run, void *context, struct nb_measure *measured);
nb_fit_measure nb_fit_measure_training; /* nb_plan_measure's; no context */
nb_status nb_fit_search(struct nb_run *run, nb_fit_measure *measure, void *context);

/* Whether a run that takes this much has room for it, on the device and on the host. */
bool nb_fit_holds(const struct nb_run *run, const struct nb_measure *measured);

#endif
