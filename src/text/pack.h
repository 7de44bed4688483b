/* Which rows a step trains on: a pure function of (data set, options, epoch, step). */
#ifndef NB_TEXT_PACK_H
#define NB_TEXT_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_dataset;

/* Indices of rows, ascending. */
struct nb_row_list {
    uint32_t *rows;
    uint32_t count;
};

/* Divides the kept rows of a set in two. `size` is the config's val_set_size: below 1 a fraction (rounded to nearest,
 * at least one row), from 1 up a number of rows, 0 none. Chosen by (seed, NB_RANDOM_SPLIT); both lists are in file
 * order. The caller frees both lists' rows (NULL where empty).
 * Errors: NB_USAGE (nothing would be left to train on; size negative or not a number), NB_MEMORY. */
nb_status nb_dataset_split(const struct nb_dataset *dataset, double size, uint64_t seed, struct nb_row_list *train,
    struct nb_row_list *validation);

struct nb_batch_plan_options {
    uint64_t seed;
    uint32_t sequence_len;  /* tokens in a bin; with sample_packing only */
    uint32_t bins_per_step; /* micro_batch_size * gradient_accumulation_steps */
    bool sample_packing;    /* false: every bin is one row */
    bool shuffle;           /* false: file order, and bins are filled in it */
};

/* Bins of one step: bin b (0 <= b < bin_count) holds the rows rows[bin_first[b]] .. rows[bin_first[b + 1] - 1]. Views
 * into the plan: `rows` is the whole epoch's order, so bin_first[0] is 0 in the first step only. */
struct nb_step_rows {
    const uint32_t *rows;
    const uint32_t *bin_first; /* bin_count + 1 entries */
    uint32_t bin_count;        /* bins_per_step, fewer in an epoch's last step */
    uint32_t row_count;        /* bin_first[bin_count] - bin_first[0] */
};

struct nb_batch_plan;

/* Plans over `rows` (indices of kept rows; copied). Every bin's tokens sum to at most sequence_len (rows are no
 * longer: the reader saw to it). Packing is first-fit decreasing, O(n log n); rows of one length, and the bins, are in
 * the epoch's shuffled order, so that every epoch has the same number of bins and of steps.
 * Errors: NB_USAGE (no rows, a row longer than sequence_len), NB_MEMORY. */
nb_status nb_batch_plan_open(const struct nb_dataset *dataset, const uint32_t *rows, uint32_t count,
                             const struct nb_batch_plan_options *options, struct nb_batch_plan **plan);

/* Takes NULL; nulls the handle. */
void nb_batch_plan_destroy(struct nb_batch_plan **plan);

/* Bins and steps of an epoch: the same in all of them. */
uint32_t nb_batch_plan_bins(const struct nb_batch_plan *plan);
uint32_t nb_batch_plan_steps(const struct nb_batch_plan *plan);

/* The most rows, and the most tokens, in one bin of any epoch: sizes for buffers. */
uint32_t nb_batch_plan_bin_rows_max(const struct nb_batch_plan *plan);
uint32_t nb_batch_plan_bin_tokens_max(const struct nb_batch_plan *plan);

/* The rows of step `step` (from 0) of epoch `epoch` (from 0). Lays out the epoch when it is not the one of the call
 * before; the views hold until the next call or destroy. Errors: NB_USAGE (no such step), NB_MEMORY. */
nb_status nb_batch_plan_step(struct nb_batch_plan *plan, uint64_t epoch, uint32_t step, struct nb_step_rows *rows);

#endif
