#include "train/plan.h"

#include "command/open.h"
#include "config/device_profile.h"

static const struct nb_option options[] = {
    NB_OPTION_SET,
    {.name = "device", .type = NB_OPTION_TEXT, .value = "NAME",
        .help = "plan for this GPU, which need not be here: a name of configs/devices (rtx-4090), or a file"},
    {.name = "json", .type = NB_OPTION_FLAG, .help = "one JSON object instead of a table"},
    {.name = "allocations", .type = NB_OPTION_FLAG, .help = "also every allocation that stands at the peak, largest first"},
    {0},
};

static nb_status print_plan(const struct nb_config *config, const char *device, bool json, bool allocations)
{
    struct nb_run *opened = NULL;
    struct nb_plan plan = {0};
    struct nb_device_profile profile;
    if (device)
        NB_TRY(nb_device_profile_read(device, &profile));
    NB_TRY(nb_run_open(
        &(struct nb_run_args){.config = config, .purpose = NB_PURPOSE_TRAIN, .profile = device ? &profile : NULL}, &opened));
    nb_status status = nb_plan_make(opened, &plan);
    if (status == NB_OK) {
        if (json)
            status = nb_plan_print_json(opened, &plan, stdout);
        else
            nb_plan_print(opened, &plan, stdout);
        if (allocations && !json)
            fputs(plan.allocations, stdout);
    }
    nb_plan_destroy(&plan);
    nb_run_destroy(&opened);
    return status;
}

static nb_status run(const struct nb_arguments *arguments)
{
    struct nb_config config;
    NB_TRY(nb_open_training_config(arguments, &config));
    nb_status status = print_plan(&config, arguments->text[nb_option_index(&nb_command_plan, "device")],
        arguments->given[nb_option_index(&nb_command_plan, "json")],
        arguments->given[nb_option_index(&nb_command_plan, "allocations")]);
    nb_config_destroy(&config);
    return status;
}

const struct nb_command nb_command_plan = {
    .name = "plan",
    .argument = "CONFIG",
    .summary = "what a training run needs, before it starts",
    .description = "Runs the real set-up and one real step on a device that only counts, and prints the peak memory by category, the\n"
                   "trainable and total parameters and the number of steps. The peak is what train takes, to the byte.",
    .example = "nibble plan configs/quickstart.yml --device rtx-4090 --set sequence_len=2048",
    .options = options,
    .run = run,
};
