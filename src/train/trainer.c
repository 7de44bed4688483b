#include "train/trainer.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "train/checkpoint_state.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/fit_advice.h"
#include "train/metrics.h"
#include "train/plan.h"
#include "train/product_table.h"
#include "train/run_folder.h"
#include "train/schedule.h"
#include "train/step.h"

enum { ROWS_NAMED = 8, MESSAGE_BYTES = 512 };

struct trainer {
    const struct nb_config *config;
    const struct nb_train_options *options;
    struct nb_run *run;
    struct nb_run_folder *folder;
    struct nb_session *session;
    struct nb_stepper *stepper;
    struct nb_metrics *metrics;
    struct nb_schedule schedule;
    struct nb_trainer_state state;
    int64_t saved_step;   /* of the newest checkpoint that this process wrote or began from */
    double measured_from; /* seconds of the monotonic clock: tokens_per_second counts from here */
    uint64_t measured_tokens;
};

/* Of the session's arenas, in bytes. */
struct capacity {
    uint64_t device, pinned, pageable;
    struct nb_host_need host;
};

static bool is_stopped(const struct trainer *t)
{
    return t->options->stop && *t->options->stop;
}

static bool is_due(const struct trainer *t, int64_t every)
{
    int64_t interval = every > 0 ? every : t->run->length.steps_per_epoch;
    return t->state.step % interval == 0 || t->state.step >= t->run->length.steps;
}

static bool evaluation_is_due(const struct trainer *t)
{
    return t->run->eval_count > 0 && is_due(t, t->run->length.eval_every);
}

static bool is_stopped_early(const struct trainer *t)
{
    int64_t patience = t->config->early_stopping_patience;
    return patience > 0 && t->run->eval_count > 0 && t->state.evaluations_without_gain >= patience;
}

/* Time that goes by outside of steps does not count for tokens_per_second. */
static void restart_measuring(struct trainer *t)
{
    t->measured_from = nb_clock_seconds();
    t->measured_tokens = 0;
}

/* ---- saving ---- */

static nb_status save(struct trainer *t)
{
    if (t->state.step == 0 || (t->saved_step == t->state.step && !t->state.evaluation_due))
        return NB_OK;
    NB_TRY(nb_metrics_sync(t->metrics, &t->state.metrics_bytes));
    NB_TRY(nb_checkpoint_state_save(t->session, t->folder, &t->state));
    t->saved_step = t->state.step;
    int64_t best = t->config->load_best_model_at_end ? t->state.best_step : 0;
    nb_status status = nb_run_folder_prune(t->folder, t->config->save_total_limit, best);
    restart_measuring(t);
    return status;
}

static nb_status save_interrupted(struct trainer *t)
{
    const char *path = nb_run_folder_path(t->folder);
    NB_TRY(save(t));
    if (t->state.step == 0)
        return nb_fail(NB_INTERRUPTED, "interrupted before the first step was done; nothing was saved");
    return nb_fail(NB_INTERRUPTED,
        "interrupted after step %" PRId64 "; saved in %s/checkpoint-%" PRId64 ", go on with --resume", t->state.step,
        path, t->state.step);
}

/* ---- evaluating ---- */

/* The pass of training makes room for the evaluation's, so that the larger of the two is the peak, not their sum. */
static nb_status evaluate_rows(struct trainer *t, struct nb_evaluation *evaluation)
{
    struct nb_stepper_options options = nb_stepper_options_of(t->run);
    struct nb_progress progress;
    struct nb_evaluate_args args = {
        .session = t->session,
        .dataset = t->run->eval_data,
        .rows = t->run->eval_rows,
        .row_count = t->run->eval_count,
        .progress = &progress,
        .stop = t->options->stop,
    };
    nb_stepper_destroy(&t->stepper);
    nb_progress_start(&progress, "evaluating", "rows", t->run->eval_count);
    nb_status status = nb_evaluate(&args, evaluation);
    if (status == NB_OK)
        nb_progress_finish(&progress);
    else
        nb_progress_abandon(&progress);
    return status == NB_OK ? nb_stepper_create(t->session, &options, &t->stepper) : status;
}

static nb_status evaluate(struct trainer *t)
{
    struct nb_evaluation evaluation = {0};
    nb_status status = evaluate_rows(t, &evaluation);
    if (status == NB_INTERRUPTED) {
        t->state.evaluation_due = true; /* the resumed run begins with it */
        return save_interrupted(t);
    }
    if (status != NB_OK)
        return status;
    double loss = evaluation.loss_sum / (double)evaluation.trained_tokens;
    status = nb_metrics_evaluation(t->metrics, t->state.step, t->state.epoch, loss, evaluation.trained_tokens);
    nb_evaluation_free(&evaluation);
    t->state.evaluation_due = false;
    t->state.evaluations_without_gain++;
    if (t->state.best_step == 0 || loss < t->state.best_loss) {
        t->state.best_loss = loss;
        t->state.best_step = t->state.step;
        t->state.evaluations_without_gain = 0;
    }
    restart_measuring(t);
    return status;
}

/* ---- steps ---- */

/* "a.jsonl:3, a.jsonl:17 and 2 more". */
static void name_rows(const struct nb_dataset *dataset, const struct nb_step_rows *rows, char text[MESSAGE_BYTES])
{
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < rows->row_count && i < ROWS_NAMED && used < MESSAGE_BYTES; i++) {
        const struct nb_row *row = &dataset->rows[rows->rows[rows->bin_first[0] + i]];
        used += (size_t)snprintf(text + used, MESSAGE_BYTES - used, "%s%s:%" PRIu64, i ? ", " : "",
            dataset->sources[row->source].path, row->line);
    }
    if (rows->row_count > ROWS_NAMED && used < MESSAGE_BYTES)
        snprintf(text + used, MESSAGE_BYTES - used, " and %u more", rows->row_count - ROWS_NAMED);
}

static nb_status fail_not_finite(
    const struct trainer *t, int64_t step, const struct nb_step_rows *rows, const struct nb_step_result *result)
{
    char names[MESSAGE_BYTES], kept[MESSAGE_BYTES] = "no checkpoint was saved yet";
    name_rows(t->run->data, rows, names);
    if (t->saved_step > 0)
        snprintf(kept, sizeof kept, "the last good checkpoint is %s/checkpoint-%" PRId64, nb_run_folder_path(t->folder),
            t->saved_step);
    return nb_fail(NB_NUMERIC,
        "step %" PRId64 ": the %s is not finite on rows %s; nothing was updated, %s. Lower learning_rate, set "
        "max_grad_norm, or look at these rows",
        step, isfinite(result->loss) ? "gradient" : "loss", names, kept);
}

static nb_status log_step(struct trainer *t, const struct nb_step_result *result, double learning_rate)
{
    double seconds = nb_clock_seconds() - t->measured_from;
    struct nb_metrics_step line = {
        .step = t->state.step,
        .steps = t->run->length.steps,
        .epoch = t->state.epoch,
        .loss = result->loss,
        .grad_norm = (double)result->grad_norm,
        .learning_rate = learning_rate,
        .tokens = result->tokens,
        .trained_tokens = result->trained_tokens,
        .tokens_per_second = seconds > 0 ? (double)t->measured_tokens / seconds : 0,
        .memory_bytes = nb_arena_high_water(t->session->arena),
    };
    if (t->state.step % t->config->logging_steps != 0 && t->state.step < t->run->length.steps) {
        nb_metrics_show(t->metrics, &line);
        return NB_OK;
    }
    restart_measuring(t);
    return nb_metrics_step(t->metrics, &line);
}

static nb_status run_step(struct trainer *t)
{
    int64_t step = t->state.step + 1, per_epoch = t->run->length.steps_per_epoch;
    double learning_rate = nb_schedule_rate(&t->schedule, step);
    struct nb_step_rows rows;
    struct nb_step_result result;
    NB_TRY(nb_batch_plan_step(
        t->run->batches, (uint64_t)((step - 1) / per_epoch), (uint32_t)((step - 1) % per_epoch), &rows));
    NB_TRY(nb_stepper_run(t->stepper, t->run->data, &rows, step, learning_rate, &result));
    if (!result.finite)
        return fail_not_finite(t, step, &rows, &result);
    t->state.step = step;
    t->state.epoch = (double)step / (double)per_epoch;
    t->state.tokens += result.tokens;
    t->state.trained_tokens += result.trained_tokens;
    t->measured_tokens += result.tokens;
    return log_step(t, &result, learning_rate);
}

/* What follows a step: evaluation, then a checkpoint that knows of it. */
static nb_status after_step(struct trainer *t)
{
    bool is_best = false;
    if (evaluation_is_due(t) && is_stopped(t))
        t->state.evaluation_due = true;
    if (is_stopped(t))
        return save_interrupted(t);
    if (evaluation_is_due(t)) {
        NB_TRY(evaluate(t));
        is_best = t->config->load_best_model_at_end && t->state.best_step == t->state.step;
    }
    return is_best || is_stopped_early(t) || is_due(t, t->run->length.save_every) ? save(t) : NB_OK;
}

static nb_status run_steps(struct trainer *t)
{
    restart_measuring(t);
    if (t->state.evaluation_due) {
        NB_TRY(evaluate(t));
        t->saved_step = 0; /* the checkpoint on the disk does not know of the evaluation */
        NB_TRY(save(t));
    }
    while (t->state.step < t->run->length.steps && !is_stopped_early(t)) {
        if (is_stopped(t))
            return save_interrupted(t);
        NB_TRY(run_step(t));
        NB_TRY(after_step(t));
    }
    if (is_stopped_early(t) && t->state.step < t->run->length.steps)
        nb_log("stopped early: no better evaluation since step %" PRId64 " (loss %.4f)", t->state.best_step,
            t->state.best_loss);
    return NB_OK;
}

/* ---- beginning and end ---- */

/* Brings back the best checkpoint's weights. One that was lost is no reason to lose the last one's too. */
static nb_status load_best(struct trainer *t)
{
    struct nb_trainer_state state;
    if (!t->config->load_best_model_at_end || t->state.best_step == 0 || t->state.best_step == t->state.step)
        return NB_OK;
    char *path = nb_run_folder_checkpoint(t->folder, t->state.best_step);
    nb_status status = nb_checkpoint_state_read(path, &state);
    if (status != NB_OK) {
        nb_warn("%s; the adapter of the last step is kept instead of the best one", nb_status_message());
        status = NB_OK;
    } else {
        nb_log("loading the best checkpoint, step %" PRId64 " (evaluation loss %.4f)", t->state.best_step,
            t->state.best_loss);
        status = nb_checkpoint_state_load(t->session, path);
    }
    free(path);
    return status;
}

static nb_status finish(struct trainer *t)
{
    const char *path = nb_run_folder_path(t->folder), *base = t->config->base_model_name;
    NB_TRY(load_best(t));
    NB_TRY(nb_peft_save(
        t->session->adapter, t->session->stream, t->session->staging, path, base ? base : t->config->base_model));
    nb_log("done: %" PRId64 " steps, %" PRIu64 " tokens (%" PRIu64 " trained); the adapter is in %s", t->state.step,
        t->state.tokens, t->state.trained_tokens, path);
    return NB_OK;
}

static nb_status write_config(const struct trainer *t)
{
    char *text = NULL, *path = nb_path_join(nb_run_folder_path(t->folder), "config.yml");
    size_t bytes;
    nb_status status = nb_config_format(t->config, &text, &bytes);
    if (status == NB_OK)
        status = nb_file_write(path, text, bytes);
    free(text);
    free(path);
    return status;
}

static nb_status open_metrics(struct trainer *t)
{
    char *path = nb_path_join(nb_run_folder_path(t->folder), "metrics.jsonl");
    nb_status status = nb_metrics_open(path, t->state.metrics_bytes, t->state.step, &t->metrics);
    free(path);
    return status;
}

static nb_status open_session(struct trainer *t, const struct capacity *capacity)
{
    struct nb_session_args args = {
        .capacity = capacity->device,
        .pinned_capacity = capacity->pinned,
        .pageable_capacity = capacity->pageable,
        .host = &capacity->host,
        .positions_max = t->run->sequence_len,
        .shows_progress = true,
    };
    struct nb_stepper_options options = nb_stepper_options_of(t->run);
    NB_TRY(nb_session_open(t->run, &args, &t->session));
    return nb_stepper_create(t->session, &options, &t->stepper);
}

static nb_status take_products(struct trainer *t, const char *checkpoint)
{
    char *path = nb_path_join(checkpoint, "products.json");
    nb_status status = nb_run_take_products(t->run, path);
    free(path);
    return status;
}

/* The device is opened for the products of a first plan; what memory it then has left decides what each block keeps
 * and which are streamed. */
static nb_status plan_memory(struct trainer *t, struct capacity *capacity)
{
    struct nb_plan plan;
    nb_status status = nb_plan_make(t->run, &plan);
    if (status == NB_OK)
        status = nb_run_open_device(t->run, plan.site, plan.sites);
    nb_plan_destroy(&plan);
    if (status == NB_OK)
        status = nb_fit_choose(t->run);
    if (status == NB_OK)
        status = nb_plan_make(t->run, &plan);
    if (status == NB_OK)
        status = nb_plan_advise(t->run, &plan);
    if (status == NB_OK) {
        nb_plan_print(t->run, &plan, stderr);
        const struct nb_measure measured = {.peak_bytes = plan.peak_bytes, .host = plan.host};
        status = nb_fit_check(t->run, &measured, NULL, NULL);
    }
    if (status == NB_OK) {
        *capacity = (struct capacity){plan.peak_bytes, plan.pinned_bytes, plan.pageable_bytes, plan.host};
        status = nb_product_table_record(&t->run->profile, plan.site, plan.sites, &t->run->recorded);
    }
    nb_plan_destroy(&plan);
    return status;
}

/* Set-up, plan and memory; `checkpoint` is where to go on from, or NULL. */
static nb_status begin(struct trainer *t, const char *checkpoint)
{
    struct nb_run_args args = {.config = t->config, .purpose = NB_PURPOSE_TRAIN, .micro_batch_size = t->state.micro_batch_size};
    NB_TRY(nb_run_open(&args, &t->run));
    if (!nb_checkpoint_has_weights(t->run->checkpoint))
        return nb_fail(NB_USAGE, "base_model: %s holds no weights; it can be planned, not trained",
            nb_checkpoint_path(t->run->checkpoint));
    if (checkpoint)
        NB_TRY(take_products(t, checkpoint));
    struct capacity capacity = {0};
    NB_TRY(plan_memory(t, &capacity));
    t->state.micro_batch_size = t->run->micro_batch_size;
    t->schedule = (struct nb_schedule){
        .kind = t->config->lr_scheduler,
        .learning_rate = t->config->learning_rate,
        .warmup_steps = t->run->length.warmup_steps,
        .steps = t->run->length.steps,
    };
    NB_TRY(open_session(t, &capacity));
    if (checkpoint) {
        NB_TRY(nb_checkpoint_state_load(t->session, checkpoint));
        nb_log("resuming from %s, step %" PRId64 " of %" PRId64, checkpoint, t->state.step, t->run->length.steps);
    }
    t->saved_step = t->state.step;
    NB_TRY(write_config(t));
    return open_metrics(t);
}

static nb_status train(struct trainer *t)
{
    char *checkpoint = NULL;
    NB_TRY(nb_run_folder_open(t->config->output_dir, t->options->resume, &t->folder));
    nb_status status = NB_OK;
    if (t->options->resume)
        status = nb_checkpoint_state_find(t->folder, t->options->resume_from, &checkpoint, &t->state);
    if (status == NB_OK && checkpoint)
        status = nb_checkpoint_state_check_config(checkpoint, t->config);
    if (status == NB_OK)
        status = begin(t, checkpoint);
    free(checkpoint);
    if (status == NB_OK)
        status = run_steps(t);
    return status == NB_OK ? finish(t) : status;
}

nb_status nb_train(const struct nb_config *config, const struct nb_train_options *options)
{
    struct trainer t = {.config = config, .options = options};
    nb_status status = train(&t);
    nb_metrics_close(&t.metrics);
    nb_stepper_destroy(&t.stepper);
    nb_session_close(&t.session);
    nb_run_destroy(&t.run);
    nb_run_folder_close(&t.folder);
    return status;
}
