#include "command/inspect.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/open.h"

static const struct nb_option options[] = {
    {.name = "json", .type = NB_OPTION_FLAG, .help = "one JSON object"},
    {.name = "model", .type = NB_OPTION_TEXT, .value = "MODEL", .help = "for data: tokenize with it and mark what trains"},
    {.name = "rows", .type = NB_OPTION_INTEGER, .value = "N", .help = "for data with --model: rows to show (default 3)", .minimum = 0,
     .maximum = 1e6},
    NB_OPTION_SET,
    {0},
};

static bool ends_with(const char *text, const char *end)
{
    size_t text_length = strlen(text), end_length = strlen(end);
    return text_length >= end_length && strcmp(text + text_length - end_length, end) == 0;
}

static bool folder_has(const char *folder, const char *name)
{
    char *path = nb_path_join(folder, name);
    bool has = nb_path_exists(path);
    free(path);
    return has;
}

static bool is_data(const char *path)
{
    return ends_with(path, ".jsonl") || ends_with(path, ".json") || ends_with(path, ".gz") || ends_with(path, ".ndjson");
}

static nb_status collect(const struct nb_arguments *arguments, json_t **out)
{
    const char *path = arguments->positional;
    const char *model = arguments->text[nb_option_index(&nb_command_inspect, "model")];
    int rows = nb_option_index(&nb_command_inspect, "rows");
    if (!nb_path_exists(path))
        return nb_fail(NB_IO, "%s: no such file or folder", path);
    if (nb_path_is_folder(path)) {
        if (folder_has(path, "adapter_config.json"))
            return nb_inspect_adapter(path, out);
        if (folder_has(path, "config.json"))
            return nb_inspect_model(path, out);
        return nb_fail(NB_USAGE, "%s: neither a model (no config.json) nor an adapter (no adapter_config.json)", path);
    }
    if (ends_with(path, ".gguf") || (ends_with(path, "config.json") && !model))
        return nb_inspect_model(path, out);
    if (ends_with(path, ".safetensors"))
        return nb_inspect_safetensors(path, out);
    if (is_data(path))
        return nb_inspect_data(arguments, model, arguments->given[rows] ? (int)arguments->number[rows] : 3, out);
    return nb_fail(NB_USAGE, "%s: not a folder, .gguf, .safetensors, .jsonl, .json or .gz file", path);
}

static nb_status run(const struct nb_arguments *arguments)
{
    json_t *object = NULL;
    NB_TRY(nb_open_check_settings(arguments));
    NB_TRY(collect(arguments, &object));
    if (arguments->given[nb_option_index(&nb_command_inspect, "json")]) {
        json_dumpf(object, stdout, JSON_INDENT(1));
        putchar('\n');
    } else {
        nb_inspect_print(object, stdout);
    }
    json_decref(object);
    return NB_OK;
}

const struct nb_command nb_command_inspect = {
    .name = "inspect",
    .argument = "PATH",
    .summary = "what a model, adapter or data file holds",
    .description =
        "PATH is a model (a Hugging Face folder or a .gguf file), an adapter folder, a .safetensors file or a data file (.jsonl,\n"
        ".json, either gzipped). Prints shapes, types, bytes and parameters, the chat template, or the rows' statistics; for\n"
        "data with --model also the first rows, with what trains marked by brackets.",
    .example = "nibble inspect train.jsonl --model SmolLM2-135M-Instruct.Q4_1.gguf",
    .options = options,
    .run = run,
};
