#include "train/batch.h"

#include <stdlib.h>
#include <string.h>

struct nb_batch {
    struct nb_batch_limits limits;
    struct nb_micro_batch view;
    int32_t *ids, *positions, *starts, *trained_row, *label;
    int32_t *row_labels; /* [longest] of the row being added */
};

nb_status nb_batch_create(const struct nb_batch_limits *limits, struct nb_batch **batch)
{
    struct nb_batch *b = calloc(1, sizeof *b);
    *batch = b;
    if (!b)
        return nb_fail(NB_MEMORY, "no memory for a micro-batch");
    b->limits = *limits;
    b->ids = malloc((size_t)limits->tokens * sizeof *b->ids);
    b->positions = malloc((size_t)limits->tokens * sizeof *b->positions);
    b->starts = malloc(((size_t)limits->sequences + 1) * sizeof *b->starts);
    b->trained_row = malloc((size_t)limits->trained_rows * sizeof *b->trained_row);
    b->label = malloc((size_t)limits->trained_rows * sizeof *b->label);
    b->row_labels = malloc((size_t)limits->longest * sizeof *b->row_labels);
    if (!b->ids || !b->positions || !b->starts || !b->trained_row || !b->label || !b->row_labels) {
        nb_batch_destroy(batch);
        return nb_fail(NB_MEMORY, "no memory for a micro-batch of %d tokens", limits->tokens);
    }
    b->view = (struct nb_micro_batch){.ids = b->ids,
        .positions = b->positions,
        .starts = b->starts,
        .trained_row = b->trained_row,
        .label = b->label};
    nb_batch_clear(b, 0);
    return NB_OK;
}

void nb_batch_destroy(struct nb_batch **batch)
{
    struct nb_batch *b = *batch;
    if (!b)
        return;
    free(b->ids);
    free(b->positions);
    free(b->starts);
    free(b->trained_row);
    free(b->label);
    free(b->row_labels);
    free(b);
    *batch = NULL;
}

void nb_batch_clear(struct nb_batch *batch, uint32_t token_offset)
{
    batch->view.counts = (struct nb_slot){.token_offset = token_offset};
    batch->starts[0] = 0;
}

bool nb_batch_fits(const struct nb_batch *batch, const struct nb_dataset *dataset, uint32_t row)
{
    const struct nb_row *r = &dataset->rows[row];
    const struct nb_slot *counts = &batch->view.counts;
    return r->count <= (uint32_t)batch->limits.longest && counts->tokens + r->count <= (uint32_t)batch->limits.tokens &&
           counts->sequences + 1 <= (uint32_t)batch->limits.sequences &&
           counts->trained_rows + r->trained_count <= (uint32_t)batch->limits.trained_rows;
}

nb_status nb_batch_add(struct nb_batch *batch, const struct nb_dataset *dataset, uint32_t row)
{
    const struct nb_row *r = &dataset->rows[row];
    struct nb_slot *counts = &batch->view.counts;
    if (!nb_batch_fits(batch, dataset, row))
        return nb_fail(NB_USAGE,
            "%s: row at line %llu: its %u tokens do not fit a micro-batch of %d tokens that holds %u",
            dataset->sources[r->source].path, (unsigned long long)r->line, r->count, batch->limits.tokens,
            counts->tokens);
    uint32_t base = counts->tokens;
    nb_dataset_copy_row(dataset, row, batch->ids + base, batch->row_labels);
    for (uint32_t i = 0; i < r->count; i++) {
        batch->positions[base + i] = (int32_t)i;
        if (i + 1 < r->count && batch->row_labels[i + 1] != NB_LABEL_IGNORED) {
            batch->trained_row[counts->trained_rows] = (int32_t)(base + i);
            batch->label[counts->trained_rows++] = batch->row_labels[i + 1];
        }
    }
    counts->tokens += r->count;
    counts->key_tokens = counts->tokens;
    batch->starts[++counts->sequences] = (int32_t)counts->tokens;
    return NB_OK;
}

const struct nb_micro_batch *nb_batch_view(const struct nb_batch *batch)
{
    return &batch->view;
}
