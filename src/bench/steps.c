#include "bench/steps.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/progress.h"
#include "train/device.h"
#include "train/fit.h"
#include "train/step.h"

enum { WARM_UP_STEPS = 2, TIMED_STEPS = 5, ROWS = 16 };

/* ---- a run on random tokens ---- */

const char *nb_bench_device_name(enum nb_config_device device)
{
    return device == NB_CONFIG_DEVICE_CPU ? "cpu" : device == NB_CONFIG_DEVICE_CUDA ? "cuda" : "auto";
}

struct setup {
    struct nb_config config;
    struct nb_run *run;
};

static void close_setup(struct setup *s)
{
    nb_run_destroy(&s->run);
    nb_config_destroy(&s->config);
}

/* What a config cannot decide here, or what there is to say without one; the caller frees each. */
static int list_settings(const struct nb_bench_options *o, int tokens, char *settings[])
{
    int count = 0;
    settings[count++] = nb_format("datasets=[{path: random rows, type: tokens}]");
    settings[count++] = nb_format("sequence_len=%d", tokens);
    settings[count++] = nb_format("device=%s", nb_bench_device_name(o->device));
    settings[count++] = nb_format("max_steps=1000");
    if (o->model)
        settings[count++] = nb_format("base_model=\"%s\"", o->model);
    if (o->micro_batch)
        settings[count++] = nb_format("micro_batch_size=%d", o->micro_batch);
    if (o->config) {
        settings[count++] = nb_format("test_datasets=[]");
        settings[count++] = nb_format("val_set_size=0");
    }
    return count;
}

static nb_status read_config(const struct nb_bench_options *o, const struct nb_bench_steps_args *args, struct nb_config *config)
{
    static const char usual[] = "adapter: qlora\nlora_r: 16\nlora_alpha: 32\nlora_target_linear: true\nmicro_batch_size: 1\n"
                                "learning_rate: 1e-5\nlr_scheduler: constant\nwarmup_steps: 0\n";
    enum { OWN = 8 };
    char *own[OWN];
    const char *all[OWN + NB_BENCH_SETTINGS_MAX];
    size_t count = 0;
    int owned = list_settings(o, args->tokens, own);
    for (int i = 0; i < owned; i++)
        all[count++] = own[i];
    for (int i = 0; i < args->setting_count; i++)
        all[count++] = args->settings[i];
    nb_status status = o->config ? nb_config_read(o->config, all, count, config)
                                 : nb_config_parse(usual, sizeof usual - 1, "bench", all, count, config);
    for (int i = 0; i < owned; i++)
        free(own[i]);
    return status == NB_OK ? nb_config_validate_train(config) : status;
}

static nb_status open_training(const struct nb_bench_options *o, const struct nb_bench_steps_args *args, struct setup *s)
{
    *s = (struct setup){0};
    NB_TRY(read_config(o, args, &s->config));
    int64_t step = (s->config.micro_batch_size < 0 ? 1 : s->config.micro_batch_size) * s->config.gradient_accumulation_steps;
    struct nb_run_args run = {.config = &s->config,
        .purpose = NB_PURPOSE_TRAIN,
        .random_rows = step > ROWS ? (int)step : ROWS,
        .random_tokens = args->tokens,
        .random_weights = true};
    return nb_run_open(&run, &s->run);
}

/* ---- what lies in host memory ---- */

/* False where the kernel keeps no mark that can be set back. */
static bool forget_host_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file)
        return false;
    bool written = fputs("5", file) >= 0;
    return fclose(file) == 0 && written;
}

static uint64_t host_peak(void)
{
    char line[128];
    unsigned long long kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file) && sscanf(line, "VmHWM: %llu kB", &kilobytes) != 1) {
    }
    if (file)
        fclose(file);
    return kilobytes << 10;
}

/* ---- steps ---- */

static int by_size(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return left < right ? -1 : left > right;
}

/* The median of the timed steps, from the end of one to the end of the next: what else the machine does tells in some of them. */
static nb_status run_steps(const struct nb_bench_options *o, struct nb_session *session, struct nb_bench_steps *steps)
{
    struct nb_stepper_options options = nb_stepper_options_of(session->run);
    struct nb_stepper *stepper = NULL;
    int timed = o->steps ? o->steps : o->quick ? 1 : TIMED_STEPS;
    double tokens = 0, from = 0, *seconds = calloc((size_t)timed, sizeof *seconds);
    nb_status status =
        seconds ? nb_stepper_create(session, &options, &stepper) : nb_fail(NB_MEMORY, "no memory for a benchmark's times");
    for (int i = 0; status == NB_OK && i < WARM_UP_STEPS + timed; i++) {
        struct nb_step_rows rows;
        struct nb_step_result result;
        int64_t per_epoch = session->run->length.steps_per_epoch;
        status = nb_batch_plan_step(session->run->batches, (uint64_t)(i / per_epoch), (uint32_t)(i % per_epoch), &rows);
        if (status == NB_OK)
            status = nb_stepper_run(stepper, session->run->data, &rows, i + 1, session->run->config->learning_rate, &result);
        double now = nb_clock_seconds();
        if (status == NB_OK && i >= WARM_UP_STEPS) {
            tokens += (double)result.tokens;
            seconds[i - WARM_UP_STEPS] = now - from;
        }
        from = now;
        steps->loss = status == NB_OK ? result.loss : 0;
    }
    if (status == NB_OK) {
        qsort(seconds, (size_t)timed, sizeof *seconds, by_size);
        steps->seconds = seconds[timed / 2];
        steps->tokens_a_step = tokens / timed;
    }
    free(seconds);
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
        .capacity = plan.peak_bytes, .pinned_capacity = plan.pinned_bytes, .pageable_capacity = plan.pageable_bytes,
        .host = &plan.host, .positions_max = run->sequence_len};
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
    const struct nb_bench_options *options, const struct nb_bench_steps_args *args, struct nb_bench_steps *steps)
{
    struct setup setup;
    bool knows_peak = forget_host_peak();
    *steps = (struct nb_bench_steps){.tokens = args->tokens};
    nb_status status = open_training(options, args, &setup);
    if (status == NB_OK)
        status = measure_steps(options, setup.run, steps);
    if (status == NB_OK) {
        steps->micro_batch = setup.run->micro_batch_size;
        steps->host_peak_bytes = knows_peak ? host_peak() : 0;
    }
    close_setup(&setup);
    return status;
}
