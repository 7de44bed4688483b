/* The learning rate of each step, as transformers' schedulers give it. Source: transformers optimization.py. */
#ifndef NB_TRAIN_SCHEDULE_H
#define NB_TRAIN_SCHEDULE_H

#include <stdint.h>

#include "config/config.h"

struct nb_schedule {
    enum nb_config_scheduler kind;
    double learning_rate; /* the peak */
    int64_t warmup_steps, steps;
};

/* The learning rate that optimizer step number `step` (from 1) uses. With w = warmup_steps, n = steps, i = step - 1:
 *   i < w (not constant):  rate * i / max(1, w), so the first warm step has 0
 *   linear:                rate * max(0, (n - i) / max(1, n - w))
 *   cosine:                rate * max(0, (1 + cos(pi * (i - w) / max(1, n - w))) / 2) */
double nb_schedule_rate(const struct nb_schedule *schedule, int64_t step);

#endif
