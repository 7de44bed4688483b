#include "checkpoint/bnb.h"

#include <string.h>

#include "base/log.h"
#include "base/progress.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "command/open.h"

static const struct nb_option options[] = {
    {.name = "output", .type = NB_OPTION_TEXT, .value = "DIR", .help = "the folder to write; new or empty"},
    {.name = "type", .type = NB_OPTION_TEXT, .value = "nf4|fp4", .help = "the 4-bit code (default nf4)"},
    {.name = "single", .type = NB_OPTION_FLAG, .help = "keep the scales in fp32: 4.5 bits a weight instead of 4.13"},
    NB_OPTION_SET,
    {0},
};

static void show(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    struct nb_progress *progress = context;
    progress->total = total_bytes;
    nb_progress_update(progress, done_bytes);
}

/* What the options do not say, the keys of --set do. */
static nb_status read_settings(const struct nb_arguments *arguments, struct nb_bnb_write *write)
{
    struct nb_config config;
    NB_TRY(nb_config_from_overrides(arguments->settings, arguments->setting_count, &config));
    bool in_4bit = nb_config_opens_in_4bit(&config, false);
    write->type = config.bnb_4bit_quant_type == NB_CONFIG_QUANT_FP4 ? NB_QUANT_FP4 : NB_QUANT_NF4;
    write->nested = config.bnb_4bit_use_double_quant;
    nb_threads_set_default((int)config.threads);
    nb_config_destroy(&config);
    return in_4bit ? NB_OK : nb_fail(NB_USAGE, "--set load_in_4bit: what quantize writes is in 4 bits; leave the key out");
}

static nb_status run(const struct nb_arguments *arguments)
{
    const char *output = arguments->text[nb_option_index(&nb_command_quantize, "output")];
    const char *type = arguments->text[nb_option_index(&nb_command_quantize, "type")];
    bool fp4 = type && strcmp(type, "fp4") == 0;
    if (!output)
        return nb_fail(NB_USAGE, "nibble quantize needs --output DIR; for example: %s", nb_command_quantize.example);
    if (type && !fp4 && strcmp(type, "nf4") != 0)
        return nb_fail(NB_USAGE, "nibble quantize: --type %s: not nf4 or fp4", type);

    struct nb_bnb_write write = {.folder = output, .progress = show};
    NB_TRY(read_settings(arguments, &write));
    if (type)
        write.type = fp4 ? NB_QUANT_FP4 : NB_QUANT_NF4;
    if (arguments->given[nb_option_index(&nb_command_quantize, "single")])
        write.nested = false;

    struct nb_checkpoint *source = NULL;
    NB_TRY(nb_checkpoint_open(arguments->positional, &source));
    struct nb_progress progress;
    nb_progress_start(&progress, "quantizing", NULL, 0);
    write.source = source;
    write.context = &progress;
    nb_status status = nb_bnb_write(&write);
    if (status == NB_OK) {
        nb_progress_finish(&progress);
        nb_log("wrote %s: load it here, or in transformers with bitsandbytes", output);
    } else {
        nb_progress_abandon(&progress);
    }
    nb_checkpoint_close(&source);
    return status;
}

const struct nb_command nb_command_quantize = {
    .name = "quantize",
    .argument = "MODEL",
    .summary = "write a 4-bit checkpoint in bitsandbytes' format",
    .description = "Quantizes every linear of the blocks to 4 bits, with double-quantized scales, and writes a folder that transformers\n"
                   "loads with bitsandbytes and nibble loads without quantizing again. MODEL is a Hugging Face folder or a .gguf file.",
    .example = "nibble quantize SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2-nf4",
    .options = options,
    .run = run,
};
