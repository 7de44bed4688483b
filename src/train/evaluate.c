#include "train/evaluate.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/progress.h"
#include "train/batch.h"

/* Rows are taken in order into groups that fill the limits: an unpadded batch gains nothing from sorting by length. */
struct evaluator {
    const struct nb_evaluate_args *args;
    struct nb_evaluation *out;
    struct nb_pass *pass;
    struct nb_batch *batch;
    float *losses; /* host memory that copies reach, [trained_rows] */
    uint32_t count;
};

static uint32_t row_at(const struct evaluator *e, uint32_t i)
{
    return e->args->rows ? e->args->rows[i] : i;
}

/* Adds up a group's losses, [first, last) of the list, row by row. */
static nb_status add_losses(struct evaluator *e, uint32_t first, uint32_t last)
{
    const struct nb_dataset *dataset = e->args->dataset;
    uint32_t taken = 0;
    for (uint32_t i = first; i < last; i++) {
        const struct nb_row *row = &dataset->rows[row_at(e, i)];
        uint32_t trained = row->count ? row->trained_count : 0;
        double sum = 0;
        for (uint32_t k = 0; k < trained; k++)
            sum += e->losses[taken + k];
        taken += trained;
        if (!isfinite(sum))
            return nb_fail(NB_NUMERIC, "%s: the loss of the row at line %" PRIu64 " is not finite",
                dataset->sources[row->source].path, row->line);
        e->out->row_loss_sum[i] = sum;
        e->out->row_tokens[i] = trained;
        e->out->loss_sum += sum;
        e->out->trained_tokens += trained;
        e->out->tokens += row->count;
    }
    return NB_OK;
}

static nb_status run_group(struct evaluator *e)
{
    struct nb_session *session = e->args->session;
    NB_TRY(nb_pass_set_batch(e->pass, 0, nb_batch_view(e->batch)));
    NB_TRY(nb_pass_forward(e->pass, 0, 0, nb_model_config_of(session->model)->layers + 1));
    NB_TRY(nb_pass_download_losses(e->pass, 0, e->losses));
    return session->device->stream_wait(session->device, session->stream);
}

/* Groups rows from `first` on; *last is the first that did not fit. Rows that train nothing take no part. */
static nb_status fill_group(struct evaluator *e, uint32_t first, uint32_t *last)
{
    const struct nb_dataset *dataset = e->args->dataset;
    nb_batch_clear(e->batch, 0);
    uint32_t i = first;
    for (; i < e->count; i++) {
        uint32_t row = row_at(e, i);
        if (dataset->rows[row].count == 0 || dataset->rows[row].trained_count == 0)
            continue;
        if (nb_batch_view(e->batch)->counts.tokens > 0 && !nb_batch_fits(e->batch, dataset, row))
            break;
        NB_TRY(nb_batch_add(e->batch, dataset, row));
    }
    *last = i;
    return NB_OK;
}

static nb_status run(struct evaluator *e)
{
    struct nb_session *session = e->args->session;
    struct nb_device *device = session->device;
    void *losses = NULL;
    struct nb_pass_options options = {
        .limits = session->run->eval_limits, .keep = NB_KEEP_NOTHING, .slots = 1, .batches = 1, .step = session->step,
        .pinned = session->pinned};
    NB_TRY(nb_pass_create(session->model, session->adapter, &options, session->arena, session->stream, &e->pass));
    NB_TRY(nb_batch_create(&options.limits, &e->batch));
    NB_TRY(device->host_take(device, (uint64_t)options.limits.trained_rows * sizeof(float), &losses));
    e->losses = losses;
    for (uint32_t first = 0, last = 0; first < e->count; first = last) {
        if (e->args->stop && *e->args->stop)
            return nb_fail(NB_INTERRUPTED, "interrupted while evaluating");
        NB_TRY(fill_group(e, first, &last));
        if (nb_batch_view(e->batch)->counts.tokens > 0)
            NB_TRY(run_group(e));
        if (session->dry)
            return NB_OK;
        NB_TRY(add_losses(e, first, last));
        if (e->args->progress)
            nb_progress_update(e->args->progress, last);
    }
    return NB_OK;
}

nb_status nb_evaluate(const struct nb_evaluate_args *args, struct nb_evaluation *evaluation)
{
    struct nb_device *device = args->session->device;
    uint64_t frame = nb_arena_frame(args->session->arena);
    struct evaluator e = {
        .args = args, .out = evaluation, .count = args->rows ? args->row_count : args->dataset->row_count};
    *evaluation = (struct nb_evaluation){.rows = e.count};
    evaluation->row_loss_sum = calloc((size_t)e.count + 1, sizeof *evaluation->row_loss_sum);
    evaluation->row_tokens = calloc((size_t)e.count + 1, sizeof *evaluation->row_tokens);
    nb_status status = NB_OK;
    if (!evaluation->row_loss_sum || !evaluation->row_tokens)
        status = nb_fail(NB_MEMORY, "no memory for the losses of %" PRIu32 " rows", e.count);
    if (status == NB_OK)
        status = run(&e);
    /* After an error there may be work left that reads what goes away here; the first error stays the one to report. */
    if (status != NB_OK)
        device->stream_wait(device, args->session->stream);
    if (e.losses)
        device->host_give_back(device, e.losses);
    nb_batch_destroy(&e.batch);
    nb_pass_destroy(&e.pass);
    nb_arena_release_to(args->session->arena, frame);
    if (status != NB_OK)
        nb_evaluation_free(evaluation);
    return status;
}

void nb_evaluation_free(struct nb_evaluation *evaluation)
{
    free(evaluation->row_loss_sum);
    free(evaluation->row_tokens);
    *evaluation = (struct nb_evaluation){0};
}
