#include "bench/steps.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/progress.h"
#include "base/random.h"
#include "train/device.h"
#include "train/fit.h"
#include "train/step.h"

enum { WARM_UP_STEPS = 2, TIMED_STEPS = 5, ROWS = 16 };

/* ---- a run on random tokens ---- */

/* FOLDER/rows.jsonl, rows of `length` ids below `vocabulary`. */
static nb_status write_rows(const char *path, int length, int vocabulary)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return nb_fail_errno("%s: cannot write it", path);
    for (int row = 0; row < ROWS; row++) {
        fputs("{\"input_ids\": [", file);
        for (int i = 0; i < length; i++)
            fprintf(file, "%s%u", i ? "," : "",
                nb_random_below(1, NB_RANDOM_SHUFFLE, (uint64_t)row, (uint64_t)i, (uint32_t)vocabulary));
        fputs("]}\n", file);
    }
    return fclose(file) == 0 ? NB_OK : nb_fail_errno("%s: cannot write it", path);
}

const char *nb_bench_device_name(enum nb_config_device device)
{
    return device == NB_CONFIG_DEVICE_CPU ? "cpu" : device == NB_CONFIG_DEVICE_CUDA ? "cuda" : "auto";
}

struct setup {
    struct nb_config config;
    struct nb_run *run;
    char *folder;
};

static void close_setup(struct setup *s)
{
    nb_run_destroy(&s->run);
    nb_config_destroy(&s->config);
    if (s->folder)
        nb_remove_folder(s->folder);
    free(s->folder);
    s->folder = NULL;
}

static nb_status make_folder(struct setup *s)
{
    const char *base = getenv("TMPDIR");
    s->folder = nb_format("%s/nibble-bench-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(s->folder) ? NB_OK : nb_fail_errno("%s: cannot make a folder for random rows", s->folder);
}

static nb_status vocabulary_of(const char *model, int *vocabulary)
{
    struct nb_checkpoint *checkpoint = NULL;
    NB_TRY(nb_checkpoint_open(model, &checkpoint));
    *vocabulary = nb_checkpoint_config(checkpoint)->vocab;
    nb_checkpoint_close(&checkpoint);
    return NB_OK;
}

static nb_status open_training(const struct nb_bench_options *o, int tokens, const char *settings, struct setup *s)
{
    int vocabulary = 0;
    *s = (struct setup){0};
    NB_TRY(vocabulary_of(o->model, &vocabulary));
    NB_TRY(make_folder(s));
    char *rows = nb_path_join(s->folder, "rows.jsonl");
    nb_status status = write_rows(rows, tokens, vocabulary);
    char *yaml = nb_format("base_model: %s\nadapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n"
                           "datasets:\n  - path: %s\n    type: tokens\nsequence_len: %d\nmicro_batch_size: %d\n"
                           "learning_rate: 1e-5\nlr_scheduler: constant\nwarmup_steps: 0\nmax_steps: 1000\ndevice: %s\n%s",
        o->model, rows, tokens, o->micro_batch ? o->micro_batch : 1, nb_bench_device_name(o->device), settings);
    if (status == NB_OK)
        status = nb_config_parse(yaml, strlen(yaml), "bench", NULL, 0, &s->config);
    free(yaml);
    free(rows);
    if (status == NB_OK)
        status = nb_config_validate_train(&s->config);
    if (status != NB_OK)
        return status;
    return nb_run_open(
        &(struct nb_run_args){.config = &s->config, .purpose = NB_PURPOSE_TRAIN, .random_weights = true}, &s->run);
}

/* ---- steps ---- */

static nb_status run_steps(const struct nb_bench_options *o, struct nb_session *session, struct nb_bench_steps *steps)
{
    struct nb_stepper_options options = nb_stepper_options_of(session->run);
    struct nb_stepper *stepper = NULL;
    int timed = o->steps ? o->steps : o->quick ? 1 : TIMED_STEPS;
    double tokens = 0, from = 0;
    nb_status status = nb_stepper_create(session, &options, &stepper);
    for (int i = 0; status == NB_OK && i < WARM_UP_STEPS + timed; i++) {
        struct nb_step_rows rows;
        struct nb_step_result result;
        int64_t per_epoch = session->run->length.steps_per_epoch;
        if (i == WARM_UP_STEPS)
            from = nb_clock_seconds();
        status = nb_batch_plan_step(session->run->batches, (uint64_t)(i / per_epoch), (uint32_t)(i % per_epoch), &rows);
        if (status == NB_OK)
            status = nb_stepper_run(stepper, session->run->data, &rows, i + 1, session->run->config->learning_rate, &result);
        if (status == NB_OK && i >= WARM_UP_STEPS)
            tokens += (double)result.tokens;
        steps->loss = status == NB_OK ? result.loss : 0;
    }
    steps->seconds = (nb_clock_seconds() - from) / timed;
    steps->tokens_a_step = tokens / timed;
    nb_stepper_destroy(&stepper);
    return status;
}

static nb_status available(struct nb_device *device, uint64_t *bytes)
{
    *bytes = 0;
    return device->memory_available ? device->memory_available(device, bytes) : NB_OK;
}

static nb_status measure_steps(const struct nb_bench_options *o, struct nb_run *run, struct nb_bench_steps *steps)
{
    struct nb_plan plan;
    struct nb_session *session = NULL;
    uint64_t before = 0, after = 0;
    nb_status status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = nb_run_open_device(run, plan.site, plan.sites);
    nb_plan_destroy(&plan);
    if (status == NB_OK)
        status = nb_fit_choose(run);
    NB_TRY(status);
    status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = available(run->device, &before);
    struct nb_session_args args = {
        .capacity = plan.peak_bytes, .pinned_capacity = plan.pinned_bytes, .host = &plan.host, .positions_max = run->sequence_len};
    if (status == NB_OK)
        status = nb_session_open(run, &args, &session);
    if (status == NB_OK)
        status = run_steps(o, session, steps);
    if (status == NB_OK)
        status = available(run->device, &after);
    if (status == NB_OK) {
        steps->planned_bytes = plan.peak_bytes;
        steps->pinned_bytes = nb_arena_high_water(session->pinned);
        steps->high_water_bytes = nb_arena_high_water(session->arena);
        steps->taken_bytes = before - after;
        steps->flops = plan.step_flops;
        steps->kept_everything = plan.kept_everything;
        steps->kept_attention = plan.kept_attention;
        steps->blocks = plan.blocks;
    }
    nb_session_close(&session);
    nb_plan_destroy(&plan);
    return status;
}

nb_status nb_bench_run_steps(
    const struct nb_bench_options *options, int tokens, const char *settings, struct nb_bench_steps *steps)
{
    struct setup setup;
    *steps = (struct nb_bench_steps){
        .tokens = tokens, .micro_batch = options->micro_batch ? options->micro_batch : 1};
    nb_status status = open_training(options, tokens, settings, &setup);
    if (status == NB_OK)
        status = measure_steps(options, setup.run, steps);
    close_setup(&setup);
    return status;
}
