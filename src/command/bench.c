#include "bench/bench.h"

#include <string.h>

#include "base/nearest.h"
#include "command/command.h"

static const struct nb_option options[] = {
    {.name = "device", .type = NB_OPTION_TEXT, .value = "DEVICE", .help = "auto, cpu or cuda"},
    {.name = "model", .type = NB_OPTION_TEXT, .value = "MODEL",
        .help = "step, generate, memory: a checkpoint, or a config.json alone, whose weights are then random"},
    {.name = "tokens", .type = NB_OPTION_INTEGER, .value = "N", .help = "tokens of a row, in place of the usual ones", .minimum = 2,
        .maximum = 1 << 20},
    {.name = "micro-batch", .type = NB_OPTION_INTEGER, .value = "N", .help = "step: rows at a time", .minimum = 1, .maximum = 65536},
    {.name = "recompute", .type = NB_OPTION_TEXT, .value = "HOW",
        .help = "step: true, attention, false or auto, as gradient_checkpointing; otherwise all four in turn"},
    {.name = "steps", .type = NB_OPTION_INTEGER, .value = "N", .help = "step, generate: timed steps or tokens", .minimum = 1,
        .maximum = 1 << 20},
    {.name = "write", .type = NB_OPTION_FLAG, .help = "matmul: use the fastest ways on this GPU from now on"},
    {.name = "quick", .type = NB_OPTION_FLAG, .help = "small sizes, few repetitions"},
    {.name = "csv", .type = NB_OPTION_TEXT, .value = "FILE", .help = "memory: write the numbers there"},
    {.name = "svg", .type = NB_OPTION_TEXT, .value = "FILE", .help = "memory: draw memory against context there"},
    {.name = "save", .type = NB_OPTION_TEXT, .value = "FILE", .help = "write the JSON object there, beside the table"},
    {.name = "json", .type = NB_OPTION_FLAG, .help = "print one JSON object"},
    {0},
};

struct benchmark {
    const char *name;
    nb_status (*run)(const struct nb_bench_options *options);
};

static const struct benchmark benchmarks[] = {
    {"matmul", nb_bench_matmul},
    {"attention", nb_bench_attention},
    {"step", nb_bench_step},
    {"generate", nb_bench_generate},
    {"memory", nb_bench_memory},
};

static int option(const char *name)
{
    return nb_option_index(&nb_command_bench, name);
}

static nb_status choose_device(const char *name, enum nb_config_device *device)
{
    static const char *const names[] = {"auto", "cpu", "cuda"};
    *device = NB_CONFIG_DEVICE_AUTO;
    for (int i = 0; name && i < 3; i++)
        if (strcmp(name, names[i]) == 0) {
            *device = (enum nb_config_device)i;
            return NB_OK;
        }
    return name ? nb_fail(NB_USAGE, "nibble bench: --device %s: choose auto, cpu or cuda", name) : NB_OK;
}

static nb_status run(const struct nb_arguments *arguments)
{
    struct nb_bench_options o = {
        .csv = arguments->text[option("csv")],
        .svg = arguments->text[option("svg")],
        .save = arguments->text[option("save")],
        .json = arguments->given[option("json")],
        .quick = arguments->given[option("quick")],
        .write = arguments->given[option("write")],
        .model = arguments->text[option("model")],
        .tokens = (int)arguments->number[option("tokens")],
        .micro_batch = (int)arguments->number[option("micro-batch")],
        .recompute = arguments->text[option("recompute")],
        .steps = (int)arguments->number[option("steps")],
        .out = stdout,
    };
    NB_TRY(choose_device(arguments->text[option("device")], &o.device));
    struct nb_nearest nearest = nb_nearest_start(arguments->positional);
    for (size_t i = 0; i < sizeof benchmarks / sizeof *benchmarks; i++) {
        if (strcmp(arguments->positional, benchmarks[i].name) == 0)
            return benchmarks[i].run(&o);
        nb_nearest_offer(&nearest, benchmarks[i].name);
    }
    const char *found = nb_nearest_found(&nearest);
    if (found)
        return nb_fail(
            NB_USAGE, "nibble bench %s: there is no such benchmark; did you mean %s?", arguments->positional, found);
    return nb_fail(NB_USAGE, "nibble bench %s: there is no such benchmark; choose matmul, attention, step, generate or memory",
        arguments->positional);
}

const struct nb_command nb_command_bench = {
    .name = "bench",
    .argument = "WHAT",
    .summary = "measure this machine: matmul, attention, step, generate, memory",
    .description =
        "Measures what this machine's GPU, or CPU, reaches, and prints it beside the limits measured in the same run: the\n"
        "rate of a large copy and of a large bf16 product.\n\n"
        "matmul: products with 4-bit weights in the shapes of Llama 3 8B and 70B, each way to compute them beside bf16\n"
        "weights. With --write later runs on this GPU take the fastest.\n"
        "attention: one long causal sequence, forward and backward.\n"
        "step: training steps of --model on random tokens, with the planned and the real peak of memory.\n"
        "generate: tokens a second of --model, one sequence.\n"
        "memory: what each megabyte costs in time: steps under settings that each save more, at several lengths of rows.",
    .example = "nibble bench step --model configs/models/llama-3-8b.json --tokens 2048",
    .options = options,
    .run = run,
};
