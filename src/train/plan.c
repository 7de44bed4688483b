#include "train/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/evaluate.h"
#include "train/pager.h"
#include "train/step.h"

void nb_plan_note(struct nb_plan *plan, char *text)
{
    if (plan->notes < NB_PLAN_NOTES_MAX)
        plan->note[plan->notes++] = text;
    else
        free(text);
}

static void note_host(const struct nb_run *run, struct nb_plan *plan)
{
    char *pageable = nb_host_slab_note(run, plan->pinned_bytes);
    if (pageable)
        nb_plan_note(plan, pageable);
}

static void collect_notes(const struct nb_run *run, struct nb_plan *plan)
{
    const struct nb_config *config = run->config;
    const char *precision = nb_run_precision_note(run);
    if (run->device_note)
        nb_plan_note(plan, nb_format("device: auto is the CPU here: %s", run->device_note));
    if (precision)
        nb_plan_note(plan, nb_format("%s", precision));
    if (!run->random_rows && run->length.warmup_steps >= run->length.steps && config->lr_scheduler != NB_CONFIG_SCHEDULER_CONSTANT)
        nb_plan_note(plan, nb_format("warm-up takes all %lld steps: the learning rate never reaches its peak",
                       (long long)run->length.steps));
    if (nb_run_slots(run) > 1)
        nb_plan_note(plan,
            nb_format("accumulation_order: layer_major: the %d micro-batches of a step go through a layer together; "
                      "what blocks keep is kept for all of them",
                nb_run_slots(run)));
    if (!nb_checkpoint_has_weights(run->checkpoint))
        nb_plan_note(plan, nb_format("%s holds no weights: this model can be planned, not trained",
                       nb_checkpoint_path(run->checkpoint)));
    note_host(run, plan);
}

/* Both directions of the link at once: what comes back takes no time of its own. */
static void note_paging(const struct nb_session *session, const struct nb_stepper *stepper, struct nb_plan *plan)
{
    const struct nb_pager *pager = nb_stepper_pager(stepper);
    const double mebibyte = 1024.0 * 1024.0, rate = (double)session->device->profile.link_gb_per_s * 1e9;
    if (!pager)
        return;
    const struct nb_pager_layout *layout = nb_pager_layout_of(pager);
    double bytes = (double)nb_adapter_paged_bytes(session->adapter);
    char *time = rate > 0 ? nb_format("; %.1f ms a step at %.3g GB/s", 1e3 * bytes / rate, rate / 1e9) : nb_format("%s", "");
    nb_plan_note(plan,
        nb_format("optimizer: %s: %.1f MiB of masters and moments stand in host memory, and pass through the device in %d chunks, "
                  "%d of up to %.1f MiB at once%s",
            nb_config_choice_name(session->run->config, "optimizer"), bytes / mebibyte, layout->chunks, layout->buffers,
            (double)layout->buffer_bytes / mebibyte, time));
    free(time);
}

/* Downwards in the forward passes, upwards in the backward passes: one direction at a time. */
static void note_offloading(const struct nb_session *session, struct nb_plan *plan)
{
    const struct nb_device_profile *profile = &session->run->profile;
    const double rate = (double)profile->link_gb_per_s * 1e9;
    uint64_t kept = nb_arena_high_water_of(session->pinned, NB_CATEGORY_BLOCK_INPUTS);
    double bytes = 2 * (double)kept * (double)session->run->micro_batches / nb_run_slots(session->run);
    if (plan->offloaded == 0)
        return;
    char *time = rate > 0 ? nb_format(": %.3g s at %.3g GB/s", bytes / rate, rate / 1e9) : nb_format("%s", "");
    nb_plan_note(plan, nb_format("activation_offloading: the inputs of %d of %d blocks stand in pinned host memory; at most "
                         "%.1f MiB a step pass over the link%s",
                   plan->offloaded, plan->blocks, bytes / (1024.0 * 1024.0), time ? time : ""));
    free(time);
}

/* Beside the offloaded inputs where both are on; the link's time is the step's where it is the longer. */
static void note_streaming(const struct nb_session *session, struct nb_plan *plan)
{
    const struct nb_device_profile *profile = &session->run->profile;
    const double rate = (double)profile->link_gb_per_s * 1e9;
    if (plan->streamed == 0)
        return;
    char *time = rate > 0 ? nb_format(": %.3g s at %.3g GB/s", (double)plan->streamed_bytes / rate, rate / 1e9)
                          : nb_format("%s", "");
    const char *where = session->run->model.streams_from_file ? "are read from their file at each use"
                                                              : "stand in pinned host memory";
    nb_plan_note(plan, nb_format("resident_layers: the weights of %d of %d blocks %s; %.1f MiB of them a step pass over the "
                         "link%s",
                   plan->streamed, plan->blocks, where, (double)plan->streamed_bytes / (1024.0 * 1024.0),
                   time ? time : ""));
    free(time);
}

static void note_outer_weights(const struct nb_session *session, struct nb_plan *plan)
{
    const struct nb_run *run = session->run;
    const struct nb_model_config *model = nb_checkpoint_config(run->checkpoint);
    const double mebibyte = 1024.0 * 1024.0;
    double rows = (double)run->limits.tokens * model->hidden * (double)nb_dtype_bytes(run->model.activation);
    if (run->model.embedding_on_host)
        nb_plan_note(plan, nb_format("embedding_device: the embedding's %.1f MiB stand in host memory; rows of up to %.1f MiB a "
                             "micro-batch are gathered there and pass over the link",
                       (double)plan->pageable_bytes / mebibyte, rows / mebibyte));
    if (run->model.head_format != NB_WEIGHT_BF16)
        nb_plan_note(plan, nb_format("head_4bit: the output head is in 4 bits%s, which changes the loss and what is learned: "
                             "others compute with it in 16 bits",
                       model->tied ? ", quantized from the embedding, which stays in 16" : ""));
}

/* What the device counts in a step. */
enum count { FLOPS, SECONDS, BUSY, UPLOADED = BUSY + NB_DRY_ENGINES, DOWNLOADED, FETCHED, COUNTS };

static void read_counts(const struct nb_session *session, double count[COUNTS])
{
    const struct nb_dry_counts *c = nb_dry_device_counts(session->device);
    count[FLOPS] = c->flops;
    count[SECONDS] = c->seconds;
    for (int i = 0; i < NB_DRY_ENGINES; i++)
        count[BUSY + i] = c->busy[i];
    count[FETCHED] = (double)nb_model_fetched_bytes(session->model);
    count[UPLOADED] = (double)c->uploaded_bytes - count[FETCHED];
    count[DOWNLOADED] = (double)c->downloaded_bytes;
}

/* A step of so many bins. */
static nb_status count_step(struct nb_session *session, struct nb_stepper *stepper, const struct nb_step_rows *rows,
    uint32_t bins, double count[COUNTS])
{
    struct nb_step_rows some = *rows;
    struct nb_step_result result;
    double before[COUNTS];
    some.bin_count = bins;
    read_counts(session, before);
    NB_TRY(nb_stepper_run(stepper, session->run->data, &some, 1, session->run->config->learning_rate, &result));
    read_counts(session, count);
    for (int i = 0; i < COUNTS; i++)
        count[i] -= before[i];
    return NB_OK;
}

/* A row, as often as there are bins in so many micro-batches: what it holds does not matter here. */
static nb_status repeat_row(const struct nb_run *run, int micro_batches, uint32_t **memory, struct nb_step_rows *rows)
{
    uint32_t bins = (uint32_t)(micro_batches * run->micro_batch_size), row = 0;
    while (row + 1 < run->train_count && run->data->rows[run->train_rows[row]].trained_count == 0)
        row++;
    if (!(*memory = malloc((2 * (size_t)bins + 1) * sizeof **memory)))
        return nb_fail(NB_MEMORY, "no memory for the rows of a planned step");
    for (uint32_t i = 0; i < bins; i++)
        (*memory)[i] = run->train_rows[row];
    for (uint32_t i = 0; i <= bins; i++)
        (*memory)[bins + i] = i;
    *rows = (struct nb_step_rows){.rows = *memory, .bin_first = *memory + bins, .bin_count = bins, .row_count = bins};
    return NB_OK;
}

/* Micro-batches are alike: a step of one and a step of two of them tell what all take. Weights are fetched for each of
 * them, but for what the one before left in its buffers: the first finds nothing there. */
static nb_status count_micro_batches(
    struct nb_session *session, struct nb_stepper *stepper, const struct nb_step_rows *rows, double count[COUNTS])
{
    double two[COUNTS];
    int others = session->run->micro_batches - 1;
    NB_TRY(count_step(session, stepper, rows, (uint32_t)session->run->micro_batch_size, count));
    if (others == 0)
        return NB_OK;
    NB_TRY(count_step(session, stepper, rows, rows->bin_count, two));
    for (int i = 0; i < COUNTS; i++)
        count[i] += i == FETCHED ? others * two[i] / 2 : others * (two[i] - count[i]);
    return NB_OK;
}

/* Layer by layer they are not: the first pay for the weights of all. */
static nb_status measure_rows(struct nb_session *session, struct nb_stepper *stepper, const struct nb_step_rows *rows,
    struct nb_measure *measured)
{
    double one[COUNTS];
    NB_TRY(session->run->layer_major ? count_step(session, stepper, rows, rows->bin_count, one)
                                     : count_micro_batches(session, stepper, rows, one));
    measured->flops = one[FLOPS];
    measured->seconds = one[SECONDS];
    for (int i = 0; i < NB_DRY_ENGINES; i++) {
        measured->busy[i] = one[BUSY + i];
        /* Copies that one step leaves to the next make their difference a little short. */
        if (measured->seconds < measured->busy[i])
            measured->seconds = measured->busy[i];
    }
    measured->uploaded_bytes = (uint64_t)(one[UPLOADED] + one[FETCHED]);
    measured->downloaded_bytes = (uint64_t)one[DOWNLOADED];
    measured->streamed_bytes = (uint64_t)one[FETCHED];
    return NB_OK;
}

static nb_status measure_step(struct nb_session *session, struct nb_stepper *stepper, struct nb_measure *measured)
{
    struct nb_step_rows rows;
    uint32_t *memory = NULL;
    const struct nb_run *run = session->run;
    int micro_batches = run->layer_major || run->micro_batches < 2 ? run->micro_batches : 2;
    nb_status status = repeat_row(run, micro_batches, &memory, &rows);
    if (status == NB_OK)
        status = measure_rows(session, stepper, &rows, measured);
    free(memory);
    return status;
}

static nb_status rehearse_evaluation(struct nb_session *session)
{
    const struct nb_run *run = session->run;
    struct nb_evaluation evaluation;
    struct nb_evaluate_args args = {
        .session = session, .dataset = run->eval_data, .rows = run->eval_rows, .row_count = run->eval_count};
    if (run->eval_count == 0)
        return NB_OK;
    NB_TRY(nb_evaluate(&args, &evaluation));
    nb_evaluation_free(&evaluation);
    return NB_OK;
}

/* A step, one evaluation, and what saving takes, in the order of the trainer. `plan` is noted in if there is one. */
static nb_status rehearse(struct nb_session *session, struct nb_measure *measured, struct nb_plan *plan)
{
    struct nb_stepper_options options = nb_stepper_options_of(session->run);
    struct nb_stepper *stepper = NULL;
    NB_TRY(nb_stepper_create(session, &options, &stepper));
    nb_status status = measure_step(session, stepper, measured);
    if (status == NB_OK && plan)
        note_paging(session, stepper, plan);
    nb_stepper_destroy(&stepper);
    if (status == NB_OK)
        status = rehearse_evaluation(session);
    if (status == NB_OK)
        nb_measure_session(session, measured);
    return status;
}

/* A block's: the head's matrix is not one that a backward pass uses twice. */
static bool is_fused(const struct nb_run *run, const struct nb_product_site *site)
{
    const struct nb_model_config *model = nb_checkpoint_config(run->checkpoint);
    bool head = site->out == model->vocab && site->in == model->hidden;
    return !head && site->format != NB_WEIGHT_BF16 && nb_product_path_of(&run->profile, site) == NB_PRODUCT_FUSED;
}

void nb_measure_session(const struct nb_session *session, struct nb_measure *measured)
{
    int sites;
    const struct nb_product_site *site = nb_dry_device_sites(session->device, &sites);
    measured->peak_bytes = nb_arena_high_water(session->arena);
    measured->pinned_bytes = nb_arena_high_water(session->pinned);
    measured->pageable_bytes = nb_arena_high_water(session->pageable);
    nb_host_need_of(session->pinned, session->pageable, session->device, &measured->host);
    measured->fuses = false;
    for (int i = 0; i < sites; i++)
        measured->fuses = measured->fuses || is_fused(session->run, &site[i]);
}

nb_status nb_plan_measure(const struct nb_run *run, struct nb_measure *measured)
{
    struct nb_session_args args = {.dry = true, .positions_max = run->sequence_len};
    struct nb_session *session = NULL;
    *measured = (struct nb_measure){0};
    NB_TRY(nb_session_open(run, &args, &session));
    nb_status status = rehearse(session, measured, NULL);
    nb_session_close(&session);
    return status;
}

static void count_data(const struct nb_run *run, struct nb_plan *plan)
{
    plan->rows_per_step = run->micro_batch_size * run->micro_batches;
    if (run->random_rows) /* nothing is known of the data */
        return;
    plan->rows = run->train_count;
    plan->eval_rows = run->eval_count;
    plan->epoch_trained_tokens =
        nb_run_trained_tokens(run->data, run->train_rows, run->train_count, &plan->epoch_tokens);
    plan->steps_per_epoch = run->length.steps_per_epoch;
    plan->steps = run->length.steps;
    plan->warmup_steps = run->length.warmup_steps;
}

static nb_status copy_sites(const struct nb_device *device, struct nb_plan *plan)
{
    const struct nb_product_site *site = nb_dry_device_sites(device, &plan->sites);
    if (plan->sites == 0)
        return NB_OK;
    if (!(plan->site = malloc((size_t)plan->sites * sizeof *site)))
        return nb_fail(NB_MEMORY, "no memory for the plan's list of products");
    memcpy(plan->site, site, (size_t)plan->sites * sizeof *site);
    return NB_OK;
}

static void count_blocks(const struct nb_run *run, struct nb_plan *plan)
{
    plan->blocks = nb_checkpoint_config(run->checkpoint)->layers;
    plan->offloaded = run->offloaded;
    for (int i = 0; i < plan->blocks; i++) {
        plan->kept_everything += run->keep[i] == NB_KEEP_EVERYTHING;
        plan->kept_attention += run->keep[i] == NB_KEEP_ATTENTION;
    }
}

static nb_status list_allocations(const struct nb_arena *arena, struct nb_plan *plan)
{
    size_t bytes;
    FILE *out = open_memstream(&plan->allocations, &bytes);
    if (!out)
        return nb_fail_errno("the plan's list of allocations");
    nb_arena_print(arena, out);
    return fclose(out) == 0 ? NB_OK : nb_fail_errno("the plan's list of allocations");
}

static void take_measure(const struct nb_measure *measured, struct nb_plan *plan)
{
    plan->peak_bytes = measured->peak_bytes;
    plan->pinned_bytes = measured->pinned_bytes;
    plan->pageable_bytes = measured->pageable_bytes;
    plan->host = measured->host;
    plan->step_flops = measured->flops;
    plan->step_seconds = measured->seconds;
    memcpy(plan->busy, measured->busy, sizeof plan->busy);
    plan->uploaded_bytes = measured->uploaded_bytes;
    plan->downloaded_bytes = measured->downloaded_bytes;
    plan->streamed_bytes = measured->streamed_bytes;
}

nb_status nb_plan_make(const struct nb_run *run, struct nb_plan *plan)
{
    struct nb_session_args args = {.dry = true, .positions_max = run->sequence_len};
    struct nb_session *session = NULL;
    struct nb_measure measured = {0};
    *plan = (struct nb_plan){0};
    NB_TRY(nb_session_open(run, &args, &session));
    nb_status status = rehearse(session, &measured, plan);
    if (status == NB_OK) {
        take_measure(&measured, plan);
        plan->streamed = run->model.streamed_blocks;
        for (int c = 0; c < NB_CATEGORY_COUNT; c++)
            plan->category_bytes[c] = nb_arena_high_water_of(session->arena, (enum nb_category)c);
        plan->available_bytes = run->available_bytes;
        plan->driver_bytes = run->driver_bytes;
        plan->trainable_parameters = nb_adapter_parameters(session->adapter);
        plan->parameters = (uint64_t)nb_model_config_parameters(nb_model_config_of(session->model));
        count_data(run, plan);
        count_blocks(run, plan);
        note_offloading(session, plan);
        note_streaming(session, plan);
        note_outer_weights(session, plan);
        collect_notes(run, plan);
        status = copy_sites(session->device, plan);
    }
    if (status == NB_OK) {
        status = list_allocations(session->arena, plan);
    }
    nb_session_close(&session);
    return status;
}

void nb_plan_destroy(struct nb_plan *plan)
{
    for (int i = 0; i < plan->notes; i++)
        free(plan->note[i]);
    for (int i = 0; i < plan->choices; i++)
        free(plan->choice[i]);
    for (int i = 0; i < plan->nexts; i++)
        free(plan->next[i]);
    free(plan->allocations);
    free(plan->site);
    *plan = (struct nb_plan){0};
}
