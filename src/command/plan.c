#include <jansson.h>

#include "train/fit_advice.h"
#include "train/plan_limits.h"
#include "train/plan_table.h"

#include "command/open.h"
#include "config/device_profile.h"

static const struct nb_option options[] = {
    NB_OPTION_SET,
    {.name = "device", .type = NB_OPTION_TEXT, .value = "NAME",
        .help = "plan for this GPU, which need not be here: a name of configs/devices (rtx-4090), or a file"},
    {.name = "without-data", .type = NB_OPTION_FLAG,
        .help = "the memory alone: the data sets need not be there (with sample_packing it is then off by some KiB)"},
    {.name = "longest-context", .type = NB_OPTION_FLAG, .help = "the longest rows that fit, in place of the plan"},
    {.name = "largest-batch", .type = NB_OPTION_FLAG, .help = "the most rows at a time that fit, in place of the plan"},
    {.name = "table", .type = NB_OPTION_FLAG,
        .help = "without CONFIG: the longest rows that fit, models by cards; with --device or --model, of that one alone"},
    {.name = "model", .type = NB_OPTION_TEXT, .value = "MODEL", .help = "of --table: a name of configs/models, or a checkpoint"},
    {.name = "json", .type = NB_OPTION_FLAG, .help = "one JSON object instead of a table"},
    {.name = "allocations", .type = NB_OPTION_FLAG, .help = "also every allocation that stands at the peak, largest first"},
    {0},
};

/* What the command line asks for. */
struct wanted {
    const char *device; /* NULL: this machine's */
    bool without_data, json, allocations, longest_context, largest_batch;
};

static void print_limit(const struct nb_run *run, const struct nb_plan_limit_found *found)
{
    static const double mebibyte = 1024.0 * 1024.0;
    printf("sequence_len: %d with micro_batch_size: %d: %.1f MiB of %.0f MiB on %s", found->sequence_len, found->micro_batch_size,
        (double)found->peak_bytes / mebibyte, (double)(run->available_bytes + run->driver_bytes) / mebibyte, run->profile.name);
    if (found->pinned_bytes)
        printf(", %.1f MiB of pinned host memory", (double)found->pinned_bytes / mebibyte);
    if (found->pageable_bytes)
        printf(", %.1f MiB of pageable", (double)found->pageable_bytes / mebibyte);
    printf("; %d of %d blocks computed again", found->blocks - found->kept_everything, found->blocks);
    if (found->step_seconds > 0)
        printf("; a step takes no less than %.3g s", found->step_seconds);
    printf("\n");
}

static json_t *limit_json(const struct nb_plan_limit_found *found)
{
    return json_pack("{s:i, s:i, s:I, s:I, s:I, s:i, s:f}", "sequence_len", found->sequence_len, "micro_batch_size",
        found->micro_batch_size, "peak_bytes", (json_int_t)found->peak_bytes, "pinned_bytes", (json_int_t)found->pinned_bytes,
        "pageable_bytes", (json_int_t)found->pageable_bytes, "blocks_recomputed", found->blocks - found->kept_everything, "step_seconds",
        found->step_seconds);
}

/* One line each, or {"longest_context": {...}, "largest_batch": {...}}. */
static nb_status print_limits(struct nb_run *run, const struct wanted *wanted)
{
    const struct {
        bool wanted;
        enum nb_plan_limit limit;
        const char *name;
    } limits[] = {{wanted->longest_context, NB_PLAN_LONGEST_CONTEXT, "longest_context"},
        {wanted->largest_batch, NB_PLAN_LARGEST_BATCH, "largest_batch"}};
    int micro_batch_size = run->micro_batch_size;
    json_t *root = json_object();
    nb_status status = NB_OK;
    for (int i = 0; i < 2; i++) {
        struct nb_plan_limit_found found;
        if (status != NB_OK || !limits[i].wanted)
            continue;
        nb_run_resize(run, (int)run->config->sequence_len, micro_batch_size, run->micro_batches);
        status = nb_plan_find_limit(run, limits[i].limit, &found);
        if (status == NB_OK && wanted->json)
            json_object_set_new(root, limits[i].name, limit_json(&found));
        else if (status == NB_OK)
            print_limit(run, &found);
    }
    if (status == NB_OK && wanted->json)
        status = json_dumpf(root, stdout, JSON_INDENT(2)) == 0 && puts("") >= 0 ? NB_OK : nb_fail_errno("cannot print what fits");
    json_decref(root);
    return status;
}

static nb_status print_plan(const struct nb_config *config, const struct wanted *wanted)
{
    struct nb_run *opened = NULL;
    struct nb_plan plan = {0};
    struct nb_device_profile profile;
    if (wanted->device)
        NB_TRY(nb_device_profile_read(wanted->device, &profile));
    struct nb_run_args args = {.config = config, .purpose = NB_PURPOSE_TRAIN, .profile = wanted->device ? &profile : NULL};
    if (wanted->without_data) {
        args.random_rows = 1;
        args.random_tokens = 2;
    }
    NB_TRY(nb_run_open(&args, &opened));
    nb_status status = NB_OK;
    bool whole = !wanted->longest_context && !wanted->largest_batch;
    if (!whole)
        status = print_limits(opened, wanted);
    if (status == NB_OK && whole)
        status = nb_plan_make(opened, &plan);
    if (status == NB_OK && whole)
        status = nb_plan_advise(opened, &plan);
    if (status == NB_OK && whole) {
        if (wanted->json)
            status = nb_plan_print_json(opened, &plan, stdout);
        else
            nb_plan_print(opened, &plan, stdout);
        if (wanted->allocations && !wanted->json)
            fputs(plan.allocations, stdout);
    }
    nb_plan_destroy(&plan);
    nb_run_destroy(&opened);
    return status;
}

static bool is_given(const struct nb_arguments *arguments, const char *name)
{
    return arguments->given[nb_option_index(&nb_command_plan, name)];
}

static nb_status print_table(const struct nb_arguments *arguments)
{
    static const char *const others[] = {"longest-context", "largest-batch", "allocations"};
    if (arguments->positional)
        return nb_fail(NB_USAGE, "nibble plan --table plans models of its own: leave out %s, or leave out --table", arguments->positional);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (is_given(arguments, others[i]))
            return nb_fail(NB_USAGE, "nibble plan --table: leave out --%s: it asks about one CONFIG", others[i]);
    const struct nb_plan_table_options table = {
        .device = arguments->text[nb_option_index(&nb_command_plan, "device")],
        .model = arguments->text[nb_option_index(&nb_command_plan, "model")],
        .settings = arguments->settings,
        .setting_count = arguments->setting_count,
        .json = is_given(arguments, "json"),
    };
    return nb_plan_table_print(&table, stdout);
}

static nb_status run(const struct nb_arguments *arguments)
{
    struct nb_config config;
    if (is_given(arguments, "table"))
        return print_table(arguments);
    if (is_given(arguments, "model"))
        return nb_fail(NB_USAGE, "nibble plan: --model is --table's; a CONFIG names its own (--set base_model=MODEL)");
    if (!arguments->positional || !*arguments->positional)
        return nb_fail(NB_USAGE, "nibble plan needs CONFIG, or --table; for example: %s", nb_command_plan.example);
    NB_TRY(nb_open_training_config(arguments, &config));
    const struct wanted wanted = {
        .device = arguments->text[nb_option_index(&nb_command_plan, "device")],
        .without_data = is_given(arguments, "without-data"),
        .json = is_given(arguments, "json"),
        .allocations = is_given(arguments, "allocations"),
        .longest_context = is_given(arguments, "longest-context"),
        .largest_batch = is_given(arguments, "largest-batch"),
    };
    nb_status status = print_plan(&config, &wanted);
    nb_config_destroy(&config);
    return status;
}

const struct nb_command nb_command_plan = {
    .name = "plan",
    .argument = "CONFIG",
    .argument_optional = true,
    .summary = "what a training run needs, before it starts",
    .description = "Runs the real set-up and one real step on a device that only counts, and prints the peak memory by category, the\n"
                   "trainable and total parameters and the number of steps. The peak is what train takes, to the byte.\n"
                   "Neither the card nor the model's weights nor the data need be here: --device, configs/models, --without-data.",
    .example = "nibble plan configs/quickstart.yml --device rtx-4090 --set sequence_len=2048",
    .options = options,
    .run = run,
};
