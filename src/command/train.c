#include "train/trainer.h"

#include <signal.h>

#include "command/open.h"

static const struct nb_option options[] = {
    NB_OPTION_SET,
    {.name = "resume", .type = NB_OPTION_TEXT, .value = "DIR", .optional_value = true,
     .help = "go on from a checkpoint, or a run's newest good one; without DIR from output_dir"},
    {0},
};

/* What a signal handler may touch has to be at file scope. */
static volatile sig_atomic_t stop_requested;

/* The first Ctrl-C asks the trainer to finish its step and save; the default action is put back for the second. */
static void request_stop(int signal_number)
{
    stop_requested = 1;
    signal(signal_number, SIG_DFL);
}

static nb_status run(const struct nb_arguments *arguments)
{
    int resume = nb_option_index(&nb_command_train, "resume");
    struct nb_config config;
    NB_TRY(nb_open_training_config(arguments, &config));
    struct sigaction action = {.sa_handler = request_stop};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct nb_train_options train = {
        .resume = arguments->given[resume], .resume_from = arguments->text[resume], .stop = &stop_requested};
    nb_status status = nb_train(&config, &train);
    nb_config_destroy(&config);
    return status;
}

const struct nb_command nb_command_train = {
    .name = "train",
    .argument = "CONFIG",
    .summary = "train an adapter as a YAML file says",
    .description =
        "Trains a LoRA adapter on a 4-bit (or bf16) base model. Prints the plan first, then a line a step: loss, gradient norm,\n"
        "learning rate, tokens/s, memory, time left. Writes the adapter, checkpoints and metrics.jsonl to output_dir.\n"
        "Ctrl-C finishes the step, saves and exits with status 130; --resume goes on with the same bytes.",
    .example = "nibble train configs/quickstart.yml --set learning_rate=1e-4",
    .options = options,
    .run = run,
};
