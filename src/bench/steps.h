/* Timed training steps through the trainer's own set-up, on random tokens: rank 16 on every linear, or as a config says. */
#ifndef NB_BENCH_STEPS_H
#define NB_BENCH_STEPS_H

#include <stdint.h>

#include "bench/rig.h"

struct nb_bench_steps_args {
    int tokens;                  /* of a row */
    const char *const *settings; /* "key=value", over options->config or the usual settings */
    int setting_count;           /* at most NB_BENCH_SETTINGS_MAX */
};

enum { NB_BENCH_SETTINGS_MAX = 48 };

struct nb_bench_steps {
    int tokens, micro_batch; /* of a row; rows */
    double seconds, flops, tokens_a_step; /* of a step; seconds: the median of the timed ones */
    uint64_t planned_bytes, high_water_bytes; /* of the device: the plan, the arena */
    uint64_t pinned_bytes;                    /* of pinned host memory */
    uint64_t taken_bytes;                     /* by how much the device's free memory fell; 0 where it does not say */
    uint64_t host_peak_bytes;                 /* the most of this process that lay in host memory, on a CPU with the arena; 0: not known */
    int kept_everything, kept_attention, blocks;
    double loss; /* of the last step: the same bits whatever the settings of one device, as long as they save memory alone */
};

/* Trains a few steps of options->model on rows of args->tokens tokens. Errors: those of a run; NB_MEMORY where it does not fit. */
nb_status nb_bench_run_steps(
    const struct nb_bench_options *options, const struct nb_bench_steps_args *args, struct nb_bench_steps *steps);

/* "auto", "cpu", "cuda": as a config says it. */
const char *nb_bench_device_name(enum nb_config_device device);

#endif
