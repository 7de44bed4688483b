/* Training steps and generated tokens through the trainer's own set-up, on random tokens. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/progress.h"
#include "base/random.h"
#include "bench/rig.h"
#include "model/generate.h"
#include "train/device.h"
#include "train/plan.h"
#include "train/recompute.h"
#include "train/step.h"

enum { WARM_UP_STEPS = 2, TIMED_STEPS = 5, ROWS = 16, CONTEXT = 512, PROMPT = 64, TIMED_TOKENS = 64 };

static const double mebibyte = 1024.0 * 1024.0;

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

static const char *device_name(enum nb_config_device device)
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

/* Rank 16 on every linear, 8-bit moments: what performance.md's tables and most users take. */
static nb_status open_training(
    const struct nb_bench_options *o, int tokens, const char *recompute, struct setup *s)
{
    int vocabulary = 0;
    *s = (struct setup){0};
    NB_TRY(vocabulary_of(o->model, &vocabulary));
    NB_TRY(make_folder(s));
    char *rows = nb_path_join(s->folder, "rows.jsonl");
    nb_status status = write_rows(rows, tokens, vocabulary);
    char *yaml = nb_format("base_model: %s\nadapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\n"
                           "datasets:\n  - path: %s\n    type: tokens\nsequence_len: %d\nmicro_batch_size: %d\n"
                           "optimizer: adamw_8bit\nlearning_rate: 1e-5\nlr_scheduler: constant\nwarmup_steps: 0\nmax_steps: 1000\n"
                           "gradient_checkpointing: %s\ndevice: %s\n",
        o->model, rows, tokens, o->micro_batch ? o->micro_batch : 1, recompute, device_name(o->device));
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

struct steps {
    int tokens, micro_batch;
    const char *recompute;
    double seconds, flops, tokens_a_step;
    uint64_t planned_bytes, high_water_bytes, taken_bytes; /* plan; arena; less free memory of the device */
    int kept_everything, kept_attention, blocks;
    double loss;
};

static nb_status run_steps(const struct nb_bench_options *o, struct nb_session *session, struct steps *steps)
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

static nb_status measure_steps(const struct nb_bench_options *o, struct nb_run *run, struct steps *steps)
{
    struct nb_plan plan;
    struct nb_session *session = NULL;
    uint64_t before = 0, after = 0;
    nb_status status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = nb_run_open_device(run, plan.site, plan.sites);
    nb_plan_destroy(&plan);
    if (status == NB_OK)
        status = nb_recompute_choose(run);
    NB_TRY(status);
    status = nb_plan_make(run, &plan);
    if (status == NB_OK)
        status = available(run->device, &before);
    struct nb_session_args args = {.capacity = plan.peak_bytes, .pinned_capacity = plan.pinned_bytes, .positions_max = run->sequence_len};
    if (status == NB_OK)
        status = nb_session_open(run, &args, &session);
    if (status == NB_OK)
        status = run_steps(o, session, steps);
    if (status == NB_OK)
        status = available(run->device, &after);
    if (status == NB_OK) {
        steps->planned_bytes = plan.peak_bytes;
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

static void print_steps(FILE *out, const struct steps *s, double product_rate)
{
    fprintf(out, "%6d x %-3d %-9s %9.1f tokens/s  %7.3f s a step  %6.4g TFLOP/s %4.0f%%  %8.1f MiB planned, %.1f at the peak",
        s->tokens, s->micro_batch, s->recompute, s->tokens_a_step / s->seconds, s->seconds, s->flops / s->seconds / 1e12,
        100 * s->flops / s->seconds / product_rate, (double)s->planned_bytes / mebibyte,
        (double)s->high_water_bytes / mebibyte);
    if (s->taken_bytes)
        fprintf(out, ", %.1f by the driver", (double)s->taken_bytes / mebibyte);
    fprintf(out, "\n");
    fflush(out);
}

static json_t *steps_json(const struct steps *s, double product_rate)
{
    return json_pack("{s:i, s:i, s:s, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:i, s:i, s:i, s:f}", "tokens", s->tokens, "micro_batch",
        s->micro_batch, "gradient_checkpointing", s->recompute, "tokens_per_second", s->tokens_a_step / s->seconds,
        "seconds_per_step", s->seconds, "tflops", s->flops / s->seconds / 1e12, "share_of_product_rate",
        s->flops / s->seconds / product_rate, "planned_bytes", (json_int_t)s->planned_bytes, "peak_bytes",
        (json_int_t)s->high_water_bytes, "driver_bytes", (json_int_t)s->taken_bytes, "blocks", s->blocks,
        "blocks_keeping_everything", s->kept_everything, "blocks_keeping_attention", s->kept_attention, "loss", s->loss);
}

nb_status nb_bench_step(const struct nb_bench_options *options)
{
    static const char *const all[] = {"true", "attention", "false", "auto"};
    struct nb_bench bench;
    json_t *results = json_array();
    if (!options->model)
        return json_decref(results), nb_fail(NB_USAGE, "nibble bench step needs --model, a checkpoint or a config.json");
    nb_status status = nb_bench_open(options, &bench); /* for the rates alone: the run opens the device anew */
    int count = options->recompute ? 1 : 4;
    for (int i = 0; status == NB_OK && i < count; i++) {
        struct steps steps = {.tokens = options->tokens ? options->tokens : options->quick ? 64 : bench.cuda ? 2048 : 256,
            .micro_batch = options->micro_batch ? options->micro_batch : 1,
            .recompute = options->recompute ? options->recompute : all[i]};
        struct setup setup;
        status = open_training(options, steps.tokens, steps.recompute, &setup);
        if (status == NB_OK)
            status = measure_steps(options, setup.run, &steps);
        close_setup(&setup);
        if (status == NB_MEMORY && count > 1) {
            fprintf(stderr, "gradient_checkpointing: %s: %s\n", steps.recompute, nb_status_message());
            status = NB_OK;
            continue;
        }
        if (status == NB_OK && !options->json && json_array_size(results) == 0)
            nb_bench_print_head(&bench, "training steps, rank 16 on every linear");
        if (status == NB_OK && !options->json)
            print_steps(options->out, &steps, bench.product_flops_per_second);
        if (status == NB_OK)
            json_array_append_new(results, steps_json(&steps, bench.product_flops_per_second));
    }
    if (status == NB_OK)
        status = nb_bench_report(&bench, "step", json_incref(results));
    json_decref(results);
    nb_bench_close(&bench);
    return status;
}

/* ---- generation ---- */

struct generation {
    int prompt, timed;
    double seconds, prompt_seconds;
    double weight_bytes; /* read for one token: matrices and head, not the embedding's other rows */
};

static nb_status generate(struct nb_session *session, void *context)
{
    struct generation *g = context;
    struct nb_generator *generator = NULL;
    struct nb_generator_options options = {.context_max = g->prompt + g->timed + 8, .prompt_chunk = g->prompt, .sampling = {.top_p = 1}};
    int vocabulary = nb_model_config_of(session->model)->vocab;
    int32_t *ids = calloc((size_t)g->prompt, sizeof *ids), id;
    if (!ids)
        return nb_fail(NB_MEMORY, "no memory for a prompt");
    for (int i = 0; i < g->prompt; i++)
        ids[i] = (int32_t)nb_random_below(1, NB_RANDOM_SHUFFLE, 0, (uint64_t)i, (uint32_t)vocabulary);
    nb_status status = nb_generator_create(session->model, session->adapter, &options, session->arena, session->stream, &generator);
    double from = nb_clock_seconds();
    if (status == NB_OK)
        status = nb_generator_append(generator, ids, g->prompt);
    g->prompt_seconds = nb_clock_seconds() - from;
    for (int i = 0; status == NB_OK && i < 4 + g->timed; i++) {
        if (i == 4) /* the first ones record the work */
            from = nb_clock_seconds();
        status = nb_generator_next(generator, &id);
    }
    g->seconds = (nb_clock_seconds() - from) / g->timed;
    nb_generator_destroy(&generator);
    free(ids);
    return status;
}

/* Of all matrices as they lie in memory; an untied embedding is only looked up. */
static double weight_bytes_of(const struct nb_run *run)
{
    const struct nb_model_config *c = nb_checkpoint_config(run->checkpoint);
    double head = 2.0 * c->vocab * c->hidden;
    double query = (double)c->heads * c->head_dim, key = (double)c->kv_heads * c->head_dim;
    double block = c->hidden * (2 * query + 2 * key + 3.0 * c->intermediate);
    double bits = run->model.linear_format == NB_WEIGHT_BF16 ? 16 : run->model.nested ? 4 + 8.0 / 64 + 32.0 / (64 * 256) : 4.5;
    return head + c->layers * block * bits / 8;
}

nb_status nb_bench_generate(const struct nb_bench_options *options)
{
    struct nb_bench bench;
    struct setup s = {0};
    if (!options->model)
        return nb_fail(NB_USAGE, "nibble bench generate needs --model, a checkpoint or a config.json");
    nb_status status = nb_bench_open(options, &bench);
    struct generation g = {.prompt = options->tokens ? options->tokens : options->quick ? 8 : PROMPT,
        .timed = options->steps ? options->steps : options->quick ? 4 : TIMED_TOKENS};
    char *set = nb_format("device=%s", device_name(options->device));
    const char *overrides[] = {set};
    if (status == NB_OK)
        status = nb_config_from_overrides(overrides, 1, &s.config);
    struct nb_run_args args = {
        .config = &s.config, .purpose = NB_PURPOSE_GENERATE, .model = options->model, .random_weights = true};
    if (status == NB_OK)
        status = nb_run_open(&args, &s.run);
    if (status == NB_OK)
        status = nb_session_run(s.run, g.prompt + g.timed + 8, generate, &g, NULL);
    if (status == NB_OK)
        g.weight_bytes = weight_bytes_of(s.run);
    close_setup(&s);
    free(set);
    double limit = bench.copy_bytes_per_second / (g.weight_bytes > 0 ? g.weight_bytes : 1);
    if (status == NB_OK && !options->json) {
        nb_bench_print_head(&bench, "generation, one sequence");
        fprintf(options->out, "%.1f tokens/s after %d tokens; %.1f would read all weights at the rate of a copy: %.0f%%\n", 1 / g.seconds,
            g.prompt, limit, 100 / g.seconds / limit);
    }
    if (status == NB_OK)
        status = nb_bench_report(&bench, "generate",
            json_pack("[{s:i, s:f, s:f, s:f, s:f}]", "prompt_tokens", g.prompt, "prompt_seconds", g.prompt_seconds,
                "tokens_per_second", 1 / g.seconds, "limit_tokens_per_second", limit, "share_of_limit", 1 / g.seconds / limit));
    nb_bench_close(&bench);
    return status;
}
