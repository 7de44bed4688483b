#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

#include "train/plan.h"

static const double mebibyte = 1024.0 * 1024.0;

/* 134515008 as "134,515,008". */
static const char *with_commas(uint64_t value, char text[32])
{
    char digits[24];
    int count = snprintf(digits, sizeof digits, "%" PRIu64, value), used = 0;
    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0)
            text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = 0;
    return text;
}

static const char *format_name(const struct nb_run *run)
{
    switch (run->model.linear_format) {
    case NB_WEIGHT_NF4:
        return run->model.nested ? "NF4, double-quantized" : "NF4";
    case NB_WEIGHT_FP4:
        return run->model.nested ? "FP4, double-quantized" : "FP4";
    case NB_WEIGHT_BF16:
        break;
    }
    return "bf16";
}

/* "forward  4096 x 14336 fused, 1024 x 4096 scratch". Backward, matrices that share their input are one, stacked. */
static bool print_direction(
    const struct nb_run *run, const struct nb_plan *plan, bool backward, const char *title, FILE *out)
{
    bool first = true;
    for (int i = 0; i < plan->sites; i++) {
        const struct nb_product_site *s = &plan->site[i];
        if (s->format == NB_WEIGHT_BF16 || s->backward != backward)
            continue;
        const char *path = nb_product_path_name(nb_product_path_of(&run->profile, s));
        if (first)
            fprintf(out, "%-11s%s ", title, backward ? "backward" : "forward ");
        fprintf(out, "%s%d x %d %s", first ? "" : ", ", s->out, s->in, path);
        first = false;
    }
    if (!first)
        fprintf(out, "\n");
    return !first;
}

static void print_device(const struct nb_run *run, const struct nb_plan *plan, FILE *out)
{
    const struct nb_device_profile *p = &run->profile;
    if (p->kind == NB_DEVICE_CPU)
        fprintf(out, "device     %s, %d thread%s\n", p->name, p->multiprocessors, p->multiprocessors == 1 ? "" : "s");
    else
        fprintf(out, "device     %s (compute capability %d.%d), %s\n", p->name, p->compute_capability / 10,
            p->compute_capability % 10,
            p->cublaslt_version ? "cuBLASLt for large products" : "products on nibble's own kernels, without cuBLASLt");
    bool titled = print_direction(run, plan, false, "products", out);
    print_direction(run, plan, true, titled ? "" : "products", out);
    int again = plan->blocks - plan->kept_everything - plan->kept_attention;
    if (again + plan->kept_attention == 0)
        return;
    fprintf(out, "recompute  %d of %d blocks", again + plan->kept_attention, plan->blocks);
    if (plan->kept_attention)
        fprintf(out, ", of which %d keep their attention's output", plan->kept_attention);
    fprintf(out, run->model.dequantize_once ? ", each matrix dequantized once for that and for its gradient\n" : "\n");
}

/* A share of the peak, in 40 columns. */
static void print_bar(double share, FILE *out)
{
    enum { COLUMNS = 40 };
    char bar[COLUMNS + 1];
    int filled = (int)(share * COLUMNS + 0.5);
    for (int i = 0; i < COLUMNS; i++)
        bar[i] = i < filled ? '#' : '.';
    bar[COLUMNS] = 0;
    fprintf(out, "%s  ", bar);
}

/* A row of the table; a bar beside it on a terminal. */
static void print_part(const struct nb_plan *plan, uint64_t bytes, const char *name, FILE *out)
{
    if (bytes == 0)
        return;
    fprintf(out, "  %10.1f MiB  ", (double)bytes / mebibyte);
    if (isatty(fileno(out)))
        print_bar((double)bytes / (double)(plan->peak_bytes + plan->driver_bytes), out);
    fprintf(out, "%s\n", name);
}

static void print_run(const struct nb_run *run, const struct nb_plan *plan, FILE *out)
{
    const struct nb_config *config = run->config;
    const struct nb_model_config *model = nb_checkpoint_config(run->checkpoint);
    char a[32], b[32];
    fprintf(out, "model      %s: %s, %d layers, %s parameters, weights %s, arithmetic %s\n",
        nb_checkpoint_path(run->checkpoint), model->family->name, model->layers, with_commas(plan->parameters, a),
        format_name(run), run->model.activation == NB_DTYPE_BF16 ? "bf16" : "fp32");
    fprintf(out, "adapter    rank %d, %s trainable parameters (%.3f %%), %s\n", run->adapter.rank,
        with_commas(plan->trainable_parameters, a),
        100.0 * (double)plan->trainable_parameters / (double)plan->parameters,
        nb_config_choice_name(config, "optimizer"));
    if (run->random_rows) {
        fprintf(out, "data       not read\n");
        return;
    }
    fprintf(out, "data       %s rows, %s tokens", with_commas(plan->rows, a), with_commas(plan->epoch_tokens, b));
    fprintf(out, ", %s of them trained", with_commas(plan->epoch_trained_tokens, a));
    if (plan->eval_rows)
        fprintf(out, "; %s rows for evaluation", with_commas(plan->eval_rows, a));
    fprintf(out, "\nsteps      %" PRId64 " of %d %s (%" PRId64 " an epoch), warm-up %" PRId64 ", learning rate %g %s\n",
        plan->steps, plan->rows_per_step, config->sample_packing ? "packed bins" : "rows", plan->steps_per_epoch,
        plan->warmup_steps, config->learning_rate, nb_config_choice_name(config, "lr_scheduler"));
}

/* A list below its title. */
static void print_lines(const char *title, char *const *line, int count, FILE *out)
{
    for (int i = 0; i < count; i++)
        fprintf(out, "%-11s%s\n", i ? "" : title, line[i]);
}

/* A few bytes take no time that anyone asks for. */
static double told(double seconds)
{
    return seconds < 1e-5 ? 0 : seconds;
}

/* Of the engines the one that works the longest; the rest of the step it is waited for. */
static void print_time(const struct nb_plan *plan, FILE *out)
{
    static const char *const names[NB_DRY_ENGINES] = {
        "the arithmetic", "the link to the device", "the link from the device"};
    const double *busy = plan->busy;
    int most = 0;
    for (int i = 1; i < NB_DRY_ENGINES; i++)
        most = busy[i] > busy[most] ? i : most;
    if (plan->step_seconds > 0)
        fprintf(out,
            "time       %.3g s a step or more: arithmetic %.3g, to the device %.3g (%.1f MiB), from it %.3g (%.1f MiB); "
            "bound by %s\n",
            plan->step_seconds, told(busy[NB_DRY_COMPUTE]), told(busy[NB_DRY_UPLOAD]),
            (double)plan->uploaded_bytes / mebibyte, told(busy[NB_DRY_DOWNLOAD]),
            (double)plan->downloaded_bytes / mebibyte, names[most]);
}

static void print_choices(const struct nb_plan *plan, FILE *out)
{
    print_lines("chosen", plan->choice, plan->choices, out);
    print_time(plan, out);
    print_lines("next", plan->next, plan->nexts, out);
}

void nb_plan_print(const struct nb_run *run, const struct nb_plan *plan, FILE *out)
{
    print_run(run, plan, out);
    print_device(run, plan, out);
    fprintf(out, "memory     %.1f MiB at the peak, of %.0f MiB%s\n", (double)plan->peak_bytes / mebibyte,
        (double)(plan->available_bytes + plan->driver_bytes) / mebibyte,
        run->config->memory_budget >= 0 ? " within memory_budget" : "");
    for (int c = 0; c < NB_CATEGORY_COUNT; c++)
        print_part(plan, plan->category_bytes[c], nb_category_name((enum nb_category)c), out);
    print_part(plan, plan->driver_bytes, "the driver's own share, beside them", out);
    if (plan->pinned_bytes)
        fprintf(out, "  %10.1f MiB  of pinned host memory beside it\n", (double)plan->pinned_bytes / mebibyte);
    if (plan->pageable_bytes)
        fprintf(out, "  %10.1f MiB  of pageable host memory\n", (double)plan->pageable_bytes / mebibyte);
    fprintf(out, "  %10.1f MiB  on the host beside it, for copies\n", (double)plan->host.staging_bytes / mebibyte);
    print_choices(plan, out);
    for (int i = 0; i < plan->notes; i++)
        fprintf(out, "note: %s\n", plan->note[i]);
}

static json_t *products_json(const struct nb_run *run, const struct nb_plan *plan)
{
    json_t *list = json_array();
    for (int i = 0; i < plan->sites; i++) {
        const struct nb_product_site *s = &plan->site[i];
        const char *path =
            s->format == NB_WEIGHT_BF16 ? "bf16" : nb_product_path_name(nb_product_path_of(&run->profile, s));
        json_array_append_new(list, json_pack("{s:i, s:i, s:i, s:b, s:s}", "out", s->out, "in", s->in, "tokens",
                                        s->tokens, "backward", (int)s->backward, "path", path));
    }
    return list;
}

static bool fits(const struct nb_run *run, const struct nb_plan *plan)
{
    return plan->peak_bytes <= plan->available_bytes &&
           nb_host_need_fits(run, &plan->host, plan->peak_bytes);
}

static json_t *lines_json(char *const *line, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, json_string(line[i]));
    return list;
}

nb_status nb_plan_print_json(const struct nb_run *run, const struct nb_plan *plan, FILE *out)
{
    json_t *root = json_object(), *categories = json_object(), *pinned = json_object(), *notes = json_array();
    json_object_set_new(root, "device", json_string(run->profile.name));
    json_object_set_new(root, "blocks", json_integer(plan->blocks));
    json_object_set_new(root, "blocks_keeping_everything", json_integer(plan->kept_everything));
    json_object_set_new(root, "blocks_keeping_attention", json_integer(plan->kept_attention));
    json_object_set_new(root, "blocks_offloaded", json_integer(plan->offloaded));
    json_object_set_new(root, "blocks_streamed", json_integer(plan->streamed));
    json_object_set_new(root, "streamed_bytes", json_integer((json_int_t)plan->streamed_bytes));
    json_object_set_new(root, "products", products_json(run, plan));
    for (int c = 0; c < NB_CATEGORY_COUNT; c++) {
        const char *name = nb_category_name((enum nb_category)c);
        json_object_set_new(categories, name, json_integer((json_int_t)plan->category_bytes[c]));
        json_object_set_new(pinned, name, json_integer((json_int_t)plan->host.kept_bytes[c]));
    }
    for (int i = 0; i < plan->notes; i++)
        json_array_append_new(notes, json_string(plan->note[i]));
    json_object_set_new(root, "peak_bytes", json_integer((json_int_t)plan->peak_bytes));
    json_object_set_new(root, "categories", categories);
    json_object_set_new(root, "pinned_bytes", json_integer((json_int_t)plan->pinned_bytes));
    json_object_set_new(root, "pinned_categories", pinned);
    json_object_set_new(root, "pageable_bytes", json_integer((json_int_t)plan->pageable_bytes));
    json_object_set_new(root, "host_bytes", json_integer((json_int_t)plan->host.staging_bytes));
    json_object_set_new(root, "available_bytes", json_integer((json_int_t)plan->available_bytes));
    json_object_set_new(root, "driver_bytes", json_integer((json_int_t)plan->driver_bytes));
    json_object_set_new(root, "fits", json_boolean(fits(run, plan)));
    json_object_set_new(root, "trainable_parameters", json_integer((json_int_t)plan->trainable_parameters));
    json_object_set_new(root, "parameters", json_integer((json_int_t)plan->parameters));
    json_object_set_new(root, "rows", json_integer((json_int_t)plan->rows));
    json_object_set_new(root, "eval_rows", json_integer((json_int_t)plan->eval_rows));
    json_object_set_new(root, "epoch_tokens", json_integer((json_int_t)plan->epoch_tokens));
    json_object_set_new(root, "epoch_trained_tokens", json_integer((json_int_t)plan->epoch_trained_tokens));
    json_object_set_new(root, "steps_per_epoch", json_integer(plan->steps_per_epoch));
    json_object_set_new(root, "steps", json_integer(plan->steps));
    json_object_set_new(root, "warmup_steps", json_integer(plan->warmup_steps));
    json_object_set_new(root, "rows_per_step", json_integer(plan->rows_per_step));
    json_object_set_new(root, "step_flops", json_real(plan->step_flops));
    json_object_set_new(root, "choices", lines_json(plan->choice, plan->choices));
    json_object_set_new(root, "next", lines_json(plan->next, plan->nexts));
    json_object_set_new(root, "seconds",
        json_pack("{s:f, s:f, s:f, s:f, s:I, s:I}", "step", plan->step_seconds, "compute", plan->busy[NB_DRY_COMPUTE],
            "to_device", plan->busy[NB_DRY_UPLOAD], "from_device", plan->busy[NB_DRY_DOWNLOAD], "bytes_to_device",
            (json_int_t)plan->uploaded_bytes, "bytes_from_device", (json_int_t)plan->downloaded_bytes));
    json_object_set_new(root, "notes", notes);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text)
        return nb_fail(NB_MEMORY, "no memory to print the plan, or a path is not UTF-8");
    int written = fprintf(out, "%s\n", text);
    free(text);
    return written < 0 || fflush(out) != 0 ? nb_fail_errno("cannot print the plan") : NB_OK;
}
