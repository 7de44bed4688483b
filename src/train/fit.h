/* What a run keeps where, and in what pieces: one choice for everything that a config may leave to nibble.
 *
 * Each choice is a knob (fit_knobs.h) with notches from the fastest to the one that takes the least of the device's
 * memory. A key that the config gives is never touched. The others are chosen so that the run fits
 * run->available_bytes:
 *
 *   1. Everything at its fastest, if that fits.
 *   2. Everything at its most frugal. If not even that fits, it stays there, and the plan says so.
 *   3. Else knob by knob to the fastest notch with which the run still fits, the others as they are: first the knob
 *      that costs the most time, so that it is used the least, last the one that costs the least.
 *
 * The order of 3 is that of the table. Streaming comes first: a layer that is not there costs its bytes over the link
 * in every pass, which is the slowest way of all and the only one that slows a forward pass alone. Inputs that leave
 * cross the same link with a hundredth of the bytes. To compute again costs up to a third more arithmetic, and takes
 * neither the link nor host memory. A paged optimizer costs something once a step, whatever its micro-batches.
 *
 * A knob's notches take less and less memory while the others stay, so that a bisection finds the fastest that fits. Two
 * exceptions do no harm. Computing one block again may take more than computing none, for its activations are there
 * twice: then none was not enough either, or nothing would have been searched. And what fits with all frugal fits at the
 * end, as each step of 3 leaves the run fitting.
 *
 * On a CPU without a memory_budget nothing leaves the device by itself: its memory is the host's. */
#ifndef NB_TRAIN_FIT_H
#define NB_TRAIN_FIT_H

#include "train/plan.h"

/* What the config gives, and all else at its fastest. */
void nb_fit_begin(struct nb_run *run);

/* Chooses for a training run. Errors: those of nb_plan_measure. */
nb_status nb_fit_choose(struct nb_run *run);

/* The same for any run and what it takes with its choices as they are. Errors: those of `measure`. */
typedef nb_status nb_fit_measure(struct nb_run *run, void *context, struct nb_measure *measured);
nb_status nb_fit_search(struct nb_run *run, nb_fit_measure *measure, void *context);

#endif
