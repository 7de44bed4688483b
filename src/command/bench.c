#include "bench/bench.h"

#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"
#include "command/command.h"

static const struct nb_option options[] = {
    {.name = "device", .type = NB_OPTION_TEXT, .value = "DEVICE", .help = "auto, cpu or cuda"},
    {.name = "model", .type = NB_OPTION_TEXT, .value = "MODEL",
        .help = "step, generate, memory: a checkpoint, or a config.json alone, whose weights are then random"},
    {.name = "tokens", .type = NB_OPTION_TEXT, .value = "N", .help = "tokens of a row, in place of the usual ones; memory: also N,N,..."},
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

/* "2048" or "2048,4096,8192". */
static nb_status read_lengths(const char *text, int lengths[NB_BENCH_LENGTHS_MAX])
{
    enum { LENGTH_MAX = 1 << 20 };
    for (int i = 0; text; i++) {
        char *end;
        long long length = strtoll(text, &end, 10);
        if (end == text || (*end && *end != ',') || length < 2 || length > LENGTH_MAX || i == NB_BENCH_LENGTHS_MAX - 1)
            return nb_fail(NB_USAGE, "nibble bench: --tokens: \"%.60s\": up to %d numbers from 2 to %d are expected, with commas between",
                text, NB_BENCH_LENGTHS_MAX - 1, LENGTH_MAX);
        lengths[i] = (int)length;
        text = *end ? end + 1 : NULL;
    }
    return NB_OK;
}

static nb_status check_one_run(const struct nb_bench_options *o, const char *benchmark)
{
    if (strcmp(benchmark, "memory") == 0)
        return NB_OK;
    if (o->config)
        return nb_fail(NB_USAGE, "nibble bench %s takes no CONFIG; --model names its model", benchmark);
    return o->tokens[0] && o->tokens[1] ? nb_fail(NB_USAGE, "nibble bench %s: --tokens: one number is expected", benchmark) : NB_OK;
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
        .config = arguments->second,
        .micro_batch = (int)arguments->number[option("micro-batch")],
        .recompute = arguments->text[option("recompute")],
        .steps = (int)arguments->number[option("steps")],
        .out = stdout,
    };
    NB_TRY(read_lengths(arguments->text[option("tokens")], o.tokens));
    NB_TRY(choose_device(arguments->text[option("device")], &o.device));
    struct nb_nearest nearest = nb_nearest_start(arguments->positional);
    for (size_t i = 0; i < sizeof benchmarks / sizeof *benchmarks; i++) {
        if (strcmp(arguments->positional, benchmarks[i].name) == 0) {
            NB_TRY(check_one_run(&o, benchmarks[i].name));
            return benchmarks[i].run(&o);
        }
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
    .second = "CONFIG",
    .summary = "measure this machine: matmul, attention, step, generate, memory",
    .description =
        "Measures what this machine's GPU, or CPU, reaches, and prints it beside the limits measured in the same run: the\n"
        "rate of a large copy and of a large bf16 product.\n\n"
        "matmul: products with 4-bit weights in the shapes of Llama 3 8B and 70B, each way to compute them beside bf16\n"
        "weights. With --write later runs on this GPU take the fastest.\n"
        "attention: one long causal sequence, forward and backward.\n"
        "step: training steps of --model on random tokens, with the planned and the real peak of memory.\n"
        "generate: tokens a second of --model, one sequence.\n"
        "memory: what each megabyte costs in time: steps under settings that each save more, at several lengths of rows; of\n"
        "CONFIG, on random rows, of --model, or of the shapes of Llama 3 8B and 70B (on a CPU, of SmolLM2).",
    .example = "nibble bench step --model configs/models/llama-3-8b.json --tokens 2048",
    .options = options,
    .run = run,
};
