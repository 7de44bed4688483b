/* The most that fits: how long rows may be, or how many at a time, found by planning ever larger runs. */
#ifndef NB_TRAIN_PLAN_LIMITS_H
#define NB_TRAIN_PLAN_LIMITS_H

#include "train/plan.h"

enum nb_plan_limit {
    NB_PLAN_LONGEST_CONTEXT, /* sequence_len, in steps of NB_TILE_TOKENS, with the config's micro_batch_size; at most what the key takes */
    NB_PLAN_LARGEST_BATCH    /* micro_batch_size, with the config's sequence_len */
};

struct nb_plan_limit_found {
    int sequence_len, micro_batch_size;
    uint64_t peak_bytes, pinned_bytes, pageable_bytes; /* with them: of the device, of the host */
    double step_seconds;               /* at least; 0: unknown */
    int kept_everything, kept_attention, blocks;
};

/* Starts from the config's own sizes, and goes below them where they do not fit, but not below the data's longest row. The run is left
 * resized to what was found. Errors: NB_MEMORY when nothing fits, saying by how much; those of nb_plan_make. */
nb_status nb_plan_find_limit(struct nb_run *run, enum nb_plan_limit limit, struct nb_plan_limit_found *found);

#endif
