/* One optimizer step: rows to micro-batches, forward and backward through ranges of layers, the gradients' norm, AdamW, paged
 * where the config asks for that, and one wait. */
#ifndef NB_TRAIN_STEP_H
#define NB_TRAIN_STEP_H

#include "train/session.h"

struct nb_stepper_options {
    int micro_batch_size; /* bins in a micro-batch */
    int micro_batches;    /* in a step, at most */
    double beta1, beta2, epsilon, weight_decay;
    float max_grad_norm;  /* 0: no clipping */
    uint64_t seed;        /* of dropout */
};

/* As the run's config says. */
struct nb_stepper_options nb_stepper_options_of(const struct nb_run *run);

struct nb_stepper;

/* Takes the step's buffers and a pass from the session's arena. The session outlives it. */
nb_status nb_stepper_create(struct nb_session *session, const struct nb_stepper_options *options, struct nb_stepper **stepper);

/* Releases them (LIFO). Takes NULL; nulls the handle. */
void nb_stepper_destroy(struct nb_stepper **stepper);

/* What pages its masters and moments; NULL where they stay on the device. */
struct nb_pager;
const struct nb_pager *nb_stepper_pager(const struct nb_stepper *stepper);

struct nb_step_result {
    double loss;       /* mean over the step's trained tokens */
    float grad_norm;   /* before clipping */
    bool finite;       /* else nothing was updated */
    uint64_t tokens, trained_tokens;
};

/* Trains on the rows of one step. `step` counts from 1. Loss and gradients are sums over the step's trained tokens divided by their
 * count, however the step is cut. On a dry device the result holds the counts alone.
 * Errors: those of the ops at the wait; NB_USAGE for a micro-batch that exceeds the limits. */
nb_status nb_stepper_run(struct nb_stepper *stepper, const struct nb_dataset *dataset, const struct nb_step_rows *rows, int64_t step,
                         double learning_rate, struct nb_step_result *result);

#endif
