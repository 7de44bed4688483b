#include "text/tokenizer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "command/open.h"

static const struct nb_option options[] = {
    {.name = "decode", .type = NB_OPTION_FLAG, .help = "{\"ids\": [...]} in, {\"text\": ...} out"},
    NB_OPTION_SET,
    {0},
};

/* {"text": ...} -> {"ids": [...]} */
static nb_status encode_line(const struct nb_tokenizer *tokenizer, json_t *line, struct nb_token_list *list)
{
    json_t *text = json_object_get(line, "text");
    if (!json_is_string(text))
        return nb_fail(NB_FORMAT, "no \"text\" with a string");
    NB_TRY(nb_tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), list));
    fputs("{\"ids\": [", stdout);
    for (size_t i = 0; i < list->count; i++)
        printf("%s%d", i ? ", " : "", list->tokens[i].id);
    puts("]}");
    return NB_OK;
}

static nb_status read_ids(json_t *line, int32_t **ids, size_t *count)
{
    json_t *array = json_object_get(line, "ids");
    if (!json_is_array(array))
        return nb_fail(NB_FORMAT, "no \"ids\" with an array of integers");
    *count = json_array_size(array);
    *ids = calloc(*count + 1, sizeof **ids);
    if (!*ids)
        return nb_fail(NB_MEMORY, "no memory for %zu ids", *count);
    for (size_t i = 0; i < *count; i++) {
        json_t *id = json_array_get(array, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > INT32_MAX)
            return nb_fail(NB_FORMAT, "\"ids\"[%zu] is not a token id", i);
        (*ids)[i] = (int32_t)value;
    }
    return NB_OK;
}

/* {"ids": [...]} -> {"text": ...} */
static nb_status decode_line(const struct nb_tokenizer *tokenizer, json_t *line)
{
    int32_t *ids = NULL;
    size_t count = 0, bytes;
    char *text = NULL;
    json_t *out = NULL;
    nb_status status = read_ids(line, &ids, &count);
    if (status != NB_OK)
        goto done;
    status = nb_tokenizer_decode(tokenizer, ids, count, false, &text, &bytes);
    if (status != NB_OK)
        goto done;
    out = json_pack("{s:s%}", "text", text, bytes);
    if (!out || json_dumpf(out, stdout, JSON_ENCODE_ANY) != 0)
        status = nb_fail(NB_IO, "cannot write to standard output");
    putchar('\n');
done:
    json_decref(out);
    free(text);
    free(ids);
    return status;
}

static nb_status run(const struct nb_arguments *arguments)
{
    bool decode = arguments->given[nb_option_index(&nb_command_tokenize, "decode")];
    struct nb_tokenizer *tokenizer = NULL;
    struct nb_token_list list = {0};
    char *line = NULL;
    size_t capacity = 0;
    NB_TRY(nb_open_check_settings(arguments));
    NB_TRY(nb_tokenizer_open(arguments->positional, &tokenizer));
    nb_status status = NB_OK;
    ssize_t length;
    for (long number = 1; status == NB_OK && (length = getline(&line, &capacity, stdin)) >= 0; number++) {
        if (strspn(line, " \t\r\n") == (size_t)length)
            continue;
        json_error_t error;
        json_t *parsed = json_loadb(line, (size_t)length, JSON_ALLOW_NUL, &error);
        if (!parsed)
            status = nb_fail(NB_FORMAT, "standard input, line %ld: not JSON: %s", number, error.text);
        else if ((status = decode ? decode_line(tokenizer, parsed) : encode_line(tokenizer, parsed, &list)) != NB_OK)
            nb_fail_within(status, "standard input, line %ld", number);
        json_decref(parsed);
    }
    free(line);
    nb_token_list_free(&list);
    nb_tokenizer_destroy(&tokenizer);
    return status;
}

const struct nb_command nb_command_tokenize = {
    .name = "tokenize",
    .argument = "MODEL",
    .summary = "text to token ids and back, as JSON lines",
    .description = "Reads {\"text\": ...} lines from standard input and writes {\"ids\": [...]} lines; no special tokens are added, those\n"
                   "written out in the text are recognized. With --decode the other way round.",
    .example = "echo '{\"text\": \"Hello\"}' | nibble tokenize SmolLM2-135M-Instruct.Q4_1.gguf",
    .options = options,
    .run = run,
};
