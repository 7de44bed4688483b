#include "train/schedule.h"

#include <math.h>

static double at_least_one(int64_t count)
{
    return count > 1 ? (double)count : 1.0;
}

double nb_schedule_rate(const struct nb_schedule *schedule, int64_t step)
{
    const double pi = 3.14159265358979323846;
    int64_t i = step - 1, w = schedule->warmup_steps, n = schedule->steps;
    if (schedule->kind == NB_CONFIG_SCHEDULER_CONSTANT)
        return schedule->learning_rate;
    if (i < w)
        return schedule->learning_rate * ((double)i / at_least_one(w));
    switch (schedule->kind) {
    case NB_CONFIG_SCHEDULER_LINEAR:
        return schedule->learning_rate * fmax(0.0, (double)(n - i) / at_least_one(n - w));
    case NB_CONFIG_SCHEDULER_COSINE:
        return schedule->learning_rate * fmax(0.0, 0.5 * (1.0 + cos(pi * ((double)(i - w) / at_least_one(n - w)))));
    default:
        return schedule->learning_rate;
    }
}
