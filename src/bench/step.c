#include <stdlib.h>

#include "base/file.h"
#include "bench/steps.h"

static const double mebibyte = 1024.0 * 1024.0;

static void print_steps(FILE *out, const struct nb_bench_steps *s, const char *recompute, double product_rate)
{
    fprintf(out, "%6d x %-3d %-9s %9.1f tokens/s  %7.3f s a step  %6.4g TFLOP/s %4.0f%%  %8.1f MiB planned, %.1f at the peak",
        s->tokens, s->micro_batch, recompute, s->tokens_a_step / s->seconds, s->seconds, s->flops / s->seconds / 1e12,
        100 * s->flops / s->seconds / product_rate, (double)s->planned_bytes / mebibyte,
        (double)s->high_water_bytes / mebibyte);
    if (s->taken_bytes)
        fprintf(out, ", %.1f by the driver", (double)s->taken_bytes / mebibyte);
    fprintf(out, "\n");
    fflush(out);
}

static json_t *steps_json(const struct nb_bench_steps *s, const char *recompute, double product_rate)
{
    return json_pack("{s:i, s:i, s:s, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:i, s:i, s:i, s:f}", "tokens", s->tokens, "micro_batch",
        s->micro_batch, "gradient_checkpointing", recompute, "tokens_per_second", s->tokens_a_step / s->seconds,
        "seconds_per_step", s->seconds, "tflops", s->flops / s->seconds / 1e12, "share_of_product_rate",
        s->flops / s->seconds / product_rate, "planned_bytes", (json_int_t)s->planned_bytes, "peak_bytes",
        (json_int_t)s->high_water_bytes, "driver_bytes", (json_int_t)s->taken_bytes, "blocks", s->blocks,
        "blocks_keeping_everything", s->kept_everything, "blocks_keeping_attention", s->kept_attention, "loss", s->loss);
}

nb_status nb_bench_step(const struct nb_bench_options *options)
{
    static const char *const all[] = {"true", "attention", "false", "auto"};
    struct nb_bench bench;
    if (!options->model)
        return nb_fail(NB_USAGE, "nibble bench step needs --model, a checkpoint or a config.json");
    json_t *results = json_array();
    nb_status status = nb_bench_open(options, &bench); /* for the rates alone: the run opens the device anew */
    int count = options->recompute ? 1 : 4;
    for (int i = 0; status == NB_OK && i < count; i++) {
        const char *recompute = options->recompute ? options->recompute : all[i];
        char *recomputed = nb_format("gradient_checkpointing=%s", recompute);
        const char *const settings[] = {"optimizer=adamw_8bit", recomputed};
        struct nb_bench_steps steps;
        struct nb_bench_steps_args args = {
            .tokens = options->tokens[0] ? options->tokens[0] : options->quick ? 64 : bench.cuda ? 2048 : 256,
            .settings = settings,
            .setting_count = 2};
        status = nb_bench_run_steps(options, &args, &steps);
        free(recomputed);
        if (status == NB_MEMORY && count > 1) {
            fprintf(stderr, "gradient_checkpointing: %s: %s\n", recompute, nb_status_message());
            status = NB_OK;
            continue;
        }
        if (status == NB_OK && !options->json && json_array_size(results) == 0)
            nb_bench_print_head(&bench, "training steps, rank 16 on every linear");
        if (status == NB_OK && !options->json)
            print_steps(options->out, &steps, recompute, bench.product_flops_per_second);
        if (status == NB_OK)
            json_array_append_new(results, steps_json(&steps, recompute, bench.product_flops_per_second));
    }
    if (status == NB_OK)
        status = nb_bench_report(&bench, "step", json_incref(results));
    json_decref(results);
    nb_bench_close(&bench);
    return status;
}
