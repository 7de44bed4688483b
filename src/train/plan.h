/* What a training run will take, measured by running its set-up, one step, one evaluation and one save on the dry device. */
#ifndef NB_TRAIN_PLAN_H
#define NB_TRAIN_PLAN_H

#include <stdio.h>

#include "base/arena.h"
#include "device/cuda/plan.h"
#include "train/session.h"

enum { NB_PLAN_NOTES_MAX = 12, NB_PLAN_NEXT_MAX = 3 };

/* The numbers that a choice goes by. Of a step with every buffer full, and of time no less than the target takes: 0 where
 * its rates are unknown, as a CPU's are (src/device/dry/dry.c). */
struct nb_measure {
    uint64_t peak_bytes, pinned_bytes, pageable_bytes; /* as in struct nb_plan */
    struct nb_host_need host;                          /* the same */
    double flops, seconds;
    double busy[NB_DRY_ENGINES];                       /* seconds of it that an engine works */
    uint64_t uploaded_bytes, downloaded_bytes;         /* over the link */
    uint64_t streamed_bytes;                           /* weights among them; a first step's */
    bool fuses; /* some product of a block with 4-bit weights dequantizes inside its kernel */
};

struct nb_plan {
    uint64_t peak_bytes;                     /* high-water mark of the arena: what the run takes, to the byte */
    uint64_t category_bytes[NB_CATEGORY_COUNT]; /* at the peak; they add up to it */
    uint64_t pinned_bytes;                   /* high-water mark of the pinned host arena: what is kept off the device */
    uint64_t pageable_bytes;                 /* the same of the pageable one: an embedding that stays on the host */
    struct nb_host_need host;                /* what is kept there, by category, and staging and batches beside it */
    uint64_t available_bytes;                /* of the device, for the arena */
    uint64_t driver_bytes;                   /* beside it: the driver's own share; with it, the memory_budget or the card */
    uint64_t trainable_parameters, parameters; /* of the adapter; of the base model */
    uint64_t rows, eval_rows;                /* these and what follows from them: 0 where the data were not read */
    uint64_t epoch_tokens, epoch_trained_tokens; /* one epoch's */
    int64_t steps_per_epoch, steps, warmup_steps;
    int rows_per_step;                       /* bins with sample_packing */
    double step_flops;                       /* at most: of a step with every buffer full */
    double step_seconds, busy[NB_DRY_ENGINES]; /* as in struct nb_measure */
    uint64_t uploaded_bytes, downloaded_bytes; /* over the link in such a step */
    char *allocations;                       /* the table of nb_arena_print: what stood at the peak; owned */
    char *note[NB_PLAN_NOTES_MAX];           /* sentences; owned */
    int notes;
    char *choice[NB_KNOBS + 2];              /* with the two below, what nb_plan_advise (fit_advice.h) finds: "KEY: VALUE"; owned */
    char *next[NB_PLAN_NEXT_MAX];            /* sentences; owned */
    int choices, nexts;
    struct nb_product_site *site;            /* the matrix products of the run, on a GPU; owned */
    int sites;
    int streamed;                                /* blocks whose weights stream in from pinned host memory */
    uint64_t streamed_bytes;                     /* what comes in of them in the first step; later ones find two blocks there */
    int kept_everything, kept_attention, blocks; /* blocks that compute nothing again, all but attention; all there are */
    int offloaded;                           /* blocks whose inputs stand in pinned host memory */
};

/* The same run as nb_plan_make's, without what is told of it alone. */
nb_status nb_plan_measure(const struct nb_run *run, struct nb_measure *measured);

/* What a dry session took and counted so far. */
void nb_measure_session(const struct nb_session *session, struct nb_measure *measured);

/* Measures. Errors: those of a step that cannot be run on this device; NB_MEMORY. Destroy with nb_plan_destroy. */
nb_status nb_plan_make(const struct nb_run *run, struct nb_plan *plan);

/* Adds a note, which the plan then owns. */
void nb_plan_note(struct nb_plan *plan, char *text);

/* Frees what the plan owns. Takes a zeroed one. */
void nb_plan_destroy(struct nb_plan *plan);

/* A table for people. */
void nb_plan_print(const struct nb_run *run, const struct nb_plan *plan, FILE *out);

/* One JSON object and a newline: "peak_bytes", "categories" {name: bytes}, "pinned_bytes", "pinned_categories" {name: bytes},
 * "pageable_bytes", "host_bytes", "available_bytes", "driver_bytes", "trainable_parameters",
 * "parameters", "rows", "eval_rows", "epoch_tokens", "epoch_trained_tokens", "steps_per_epoch", "steps", "warmup_steps",
 * "rows_per_step", "step_flops", "seconds" {"step", "compute", "to_device", "from_device", "bytes_to_device", "bytes_from_device"}: at
 * least; 0: unknown, "choices" [text], "next" [text], "fits", "device", "blocks", "blocks_keeping_everything", "blocks_keeping_attention",
 * "blocks_offloaded", "blocks_streamed", "streamed_bytes", "products" [{"out", "in", "tokens", "backward", "path"}], "notes" [text]. */
nb_status nb_plan_print_json(const struct nb_run *run, const struct nb_plan *plan, FILE *out);

#endif
