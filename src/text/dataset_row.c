#include "text/dataset_row.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

enum { SHOWN_BYTES = 200 };

/* The prompts of tatsu-lab/stanford_alpaca, README.md. */
#define ALPACA_WITH_INPUT                                                                                 \
    "Below is an instruction that describes a task, paired with an input that provides further context. " \
    "Write a response that appropriately completes the request."
#define ALPACA_WITHOUT_INPUT \
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."

const char *nb_row_type_name(enum nb_row_type type)
{
    static const char *const names[NB_ROW_TYPE_COUNT] = {"chat_template", "alpaca", "completion", "tokens"};
    return names[type];
}

static const char *or_default(const char *name, const char *fallback)
{
    return name ? name : fallback;
}

static const json_t *messages_of(const struct nb_dataset_source *source, const json_t *row)
{
    const json_t *messages = json_object_get(row, or_default(source->field_messages, "messages"));
    return messages || source->field_messages ? messages : json_object_get(row, "conversations");
}

/* The row's field names, for a message; the caller frees it. */
static char *field_names(const json_t *row)
{
    char *names = nb_format("%s", "");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)row, key, value) {
        if (strlen(names) > SHOWN_BYTES)
            break;
        char *longer = nb_format("%s%s%.60s", names, *names ? ", " : "", key);
        free(names);
        names = longer;
    }
    return names;
}

static nb_status find_type(struct nb_row_reader *reader, const json_t *first_row)
{
    const struct nb_dataset_source *source = reader->source;
    if (json_object_get(first_row, "input_ids")) {
        reader->type = NB_ROW_TOKENS;
    } else if (json_is_array(messages_of(source, first_row))) {
        reader->type = NB_ROW_CHAT;
    } else if (json_object_get(first_row, or_default(source->field_instruction, "instruction")) &&
               json_object_get(first_row, or_default(source->field_output, "output"))) {
        reader->type = NB_ROW_ALPACA;
    } else if (json_object_get(first_row, or_default(source->field, "text"))) {
        reader->type = NB_ROW_COMPLETION;
    } else {
        char *names = field_names(first_row);
        nb_status status = nb_fail(NB_USAGE,
            "%s: cannot tell the type of its rows: the first has the fields (%s). Known are messages or "
            "conversations (type chat_template), instruction and output (alpaca), text (completion), input_ids "
            "(tokens); name others with field_messages, field_instruction, field_output or field",
            source->path, names);
        free(names);
        return status;
    }
    return NB_OK;
}

nb_status nb_row_reader_choose(struct nb_row_reader *reader, const json_t *first_row)
{
    const struct nb_dataset_source *source = reader->source;
    if (source->type) {
        int type = 0;
        while (type < NB_ROW_TYPE_COUNT && strcmp(source->type, nb_row_type_name(type)) != 0)
            type++;
        if (type == NB_ROW_TYPE_COUNT)
            return nb_fail(NB_USAGE,
                "%s: type \"%s\" is not known; choose chat_template, alpaca, completion or tokens, or leave "
                "it out to let the first row tell",
                source->path, source->type);
        reader->type = (enum nb_row_type)type;
    } else {
        NB_TRY(find_type(reader, first_row));
    }
    if (reader->type != NB_ROW_TOKENS && !reader->options->tokenizer)
        return nb_fail(NB_USAGE, "%s: its rows are text (%s), which needs a tokenizer", source->path,
                       nb_row_type_name(reader->type));
    if (reader->type == NB_ROW_CHAT && !reader->options->chat_template)
        return nb_fail(NB_USAGE, "%s: its rows are conversations, which need a chat template: %s", source->path,
            or_default(reader->options->chat_template_problem, "set chat_template to chatml, llama3 or smollm2"));
    if ((reader->type == NB_ROW_ALPACA || reader->type == NB_ROW_COMPLETION) &&
        nb_tokenizer_eos(reader->options->tokenizer) < 0)
        return nb_fail(NB_USAGE,
            "%s: its rows (%s) end with eos, but the tokenizer names none; give its tokenizer_config.json "
            "an eos_token",
            source->path, nb_row_type_name(reader->type));
    return NB_OK;
}

void nb_row_worker_free(struct nb_row_worker *worker)
{
    nb_token_list_free(&worker->list);
    nb_rendering_free(&worker->rendering);
    free(worker->messages);
    *worker = (struct nb_row_worker){0};
}

/* Marks a row as dropped, with the reason in words and the beginning of its JSON text. */
static nb_status drop(struct nb_row_result *result, const json_t *row, enum nb_row_dropped why, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static nb_status drop(struct nb_row_result *result, const json_t *row, enum nb_row_dropped why, const char *format, ...)
{
    char reason[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    char *json = json_dumps(row, JSON_COMPACT | JSON_ENCODE_ANY);
    size_t shown = json ? strlen(json) : 0;
    bool cut = shown > SHOWN_BYTES;
    for (shown = cut ? SHOWN_BYTES : shown; cut && shown > 0 && ((unsigned char)json[shown] & 0xc0) == 0x80;)
        shown--;
    free(result->problem);
    result->problem = nb_format("%s: %.*s%s", reason, (int)shown, json ? json : "", cut ? "..." : "");
    result->dropped = why;
    result->count = 0;
    free(json);
    return NB_OK;
}

/* Something went wrong with this row's text: out of memory is the program's problem, all else the row's. */
static nb_status drop_for_status(struct nb_row_result *result, const json_t *row, nb_status status)
{
    return status == NB_MEMORY ? status : drop(result, row, NB_ROW_BAD_FIELDS, "%s", nb_status_message());
}

static nb_status reserve(struct nb_row_result *result, size_t count)
{
    nb_row_token *tokens = realloc(result->tokens, (count + 1) * sizeof *tokens);
    if (!tokens)
        return nb_fail(NB_MEMORY, "no memory for a row of %zu tokens", count);
    result->tokens = tokens;
    return NB_OK;
}

static nb_row_token row_token(int32_t id, bool trained)
{
    return (uint32_t)id | (trained ? 0 : 0x80000000u);
}

/* What every row has to pass: ids in the vocabulary, not too long (plain text is cut later), something to learn. */
static nb_status check(const struct nb_row_reader *reader, struct nb_row_result *result, const json_t *row)
{
    const struct nb_dataset_options *options = reader->options;
    int32_t bos = options->tokenizer ? nb_tokenizer_bos(options->tokenizer) : -1;
    int32_t eos = options->tokenizer ? nb_tokenizer_eos(options->tokenizer) : -1, end_of_turn = -1;
    if (reader->type == NB_ROW_CHAT) {
        const char *text = nb_chat_template_end_of_turn(options->chat_template);
        end_of_turn = nb_tokenizer_find(options->tokenizer, text, strlen(text));
    }
    size_t trained = 0;
    result->length = result->count;
    for (size_t i = 0; i < result->count; i++) {
        int32_t id = nb_row_token_id(result->tokens[i]);
        if (id >= options->vocabulary)
            return drop(result, row, NB_ROW_BAD_ID, "token %zu has id %d, but the model's vocabulary has %d", i, id,
                        options->vocabulary);
        if (i > 0 && nb_row_token_trained(result->tokens[i])) {
            trained++;
            result->trains_end = result->trains_end || (id >= 0 && (id == eos || id == end_of_turn));
        }
    }
    result->double_bos = bos >= 0 && result->count > 1 && nb_row_token_id(result->tokens[0]) == bos &&
                         nb_row_token_id(result->tokens[1]) == bos;
    if (result->count > options->sequence_len && reader->type != NB_ROW_COMPLETION)
        return drop(
            result, row, NB_ROW_TOO_LONG, "%zu tokens, but sequence_len is %u", result->count, options->sequence_len);
    if (trained == 0)
        return drop(result, row, NB_ROW_NO_ANSWER, "no token of it would be trained");
    return NB_OK;
}

/* Tokens of the list, with [bos] before and [eos] after; those whose first byte lies in a span train. */
static nb_status take_list(const struct nb_row_reader *reader, struct nb_row_worker *worker,
    const struct nb_span *spans, size_t span_count, bool with_ends, struct nb_row_result *result)
{
    const struct nb_tokenizer *tokenizer = reader->options->tokenizer;
    const struct nb_token_list *list = &worker->list;
    int32_t bos = nb_tokenizer_bos(tokenizer), eos = nb_tokenizer_eos(tokenizer);
    bool all = reader->options->train_on_inputs;
    size_t span = 0;
    NB_TRY(reserve(result, list->count + 2));
    if (with_ends && nb_tokenizer_adds_bos(tokenizer) && (list->count == 0 || list->tokens[0].id != bos))
        result->tokens[result->count++] = row_token(bos, all);
    for (size_t i = 0; i < list->count; i++) {
        while (span < span_count && list->tokens[i].begin >= spans[span].end)
            span++;
        bool inside = span < span_count && list->tokens[i].begin >= spans[span].begin;
        result->tokens[result->count++] = row_token(list->tokens[i].id, all || inside);
    }
    bool ended = result->count > 0 && result->tokens[result->count - 1] == row_token(eos, true);
    if (with_ends && !ended)
        result->tokens[result->count++] = row_token(eos, true);
    return NB_OK;
}

/* The roles that ShareGPT files use, as the others call them. */
static const char *usual_role(const char *role)
{
    return strcmp(role, "human") == 0 ? "user" : strcmp(role, "gpt") == 0 ? "assistant" : role;
}

static const json_t *message_field(const json_t *message, const char *given, const char *usual, const char *sharegpt)
{
    const json_t *value = json_object_get(message, or_default(given, usual));
    return value || given ? value : json_object_get(message, sharegpt);
}

static nb_status take_messages(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *messages,
                               const json_t *row, struct nb_row_result *result)
{
    size_t index, count = json_array_size(messages);
    bool answered = false;
    json_t *message;
    if (count > worker->message_capacity) {
        struct nb_chat_message *larger = realloc(worker->messages, count * sizeof *larger);
        if (!larger)
            return nb_fail(NB_MEMORY, "no memory for a conversation of %zu messages", count);
        worker->messages = larger;
        worker->message_capacity = count;
    }
    json_array_foreach(messages, index, message) {
        const json_t *role = message_field(message, reader->source->message_field_role, "role", "from");
        const json_t *content = message_field(message, reader->source->message_field_content, "content", "value");
        if (!json_is_string(role) || !json_is_string(content))
            return drop(result, row, NB_ROW_BAD_FIELDS, "message %zu lacks a %s that is text", index + 1,
                        json_is_string(role) ? "content" : "role");
        if (json_array_size(json_object_get(message, "tool_calls")) > 0)
            return drop(result, row, NB_ROW_BAD_FIELDS,
                "message %zu has tool_calls, which the known templates cannot write", index + 1);
        worker->messages[index] = (struct nb_chat_message){
            usual_role(json_string_value(role)), json_string_value(content), json_string_length(content)};
        answered =
            answered || (strcmp(worker->messages[index].role, "assistant") == 0 && json_string_length(content) > 0);
    }
    nb_status status = nb_chat_template_render(reader->options->chat_template, worker->messages, count, false,
                                               &worker->rendering);
    if (status != NB_OK)
        return drop_for_status(result, row, status);
    if (!answered && !reader->options->train_on_inputs)
        return drop(result, row, NB_ROW_NO_ANSWER, "no message from the assistant says anything");
    return NB_OK;
}

static nb_status read_chat(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *row,
                           struct nb_row_result *result)
{
    const json_t *messages = messages_of(reader->source, row);
    if (!json_is_array(messages))
        return drop(result, row, NB_ROW_BAD_FIELDS, "no list of messages in the field %s",
                    or_default(reader->source->field_messages, "messages"));
    NB_TRY(take_messages(reader, worker, messages, row, result));
    if (result->dropped)
        return NB_OK;
    const struct nb_rendering *rendering = &worker->rendering;
    nb_status status =
        nb_tokenizer_encode(reader->options->tokenizer, rendering->text, rendering->bytes, &worker->list);
    if (status != NB_OK)
        return drop_for_status(result, row, status);
    return take_list(reader, worker, rendering->spans, rendering->span_count, false, result);
}

static nb_status read_alpaca(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *row,
                             struct nb_row_result *result)
{
    const struct nb_dataset_source *source = reader->source;
    const json_t *instruction = json_object_get(row, or_default(source->field_instruction, "instruction"));
    const json_t *output = json_object_get(row, or_default(source->field_output, "output"));
    const json_t *input = json_object_get(row, or_default(source->field_input, "input"));
    const json_t *system = json_object_get(row, or_default(source->field_system, "system"));
    if (!json_is_string(instruction) || !json_is_string(output) ||
        (input && !json_is_string(input) && !json_is_null(input)) ||
        (system && !json_is_string(system) && !json_is_null(system)))
        return drop(result, row, NB_ROW_BAD_FIELDS,
            "instruction and output must be text, and input and system where they are there");
    size_t output_bytes = json_string_length(output), input_bytes = json_string_length(input);
    if (output_bytes == 0 && !reader->options->train_on_inputs)
        return drop(result, row, NB_ROW_NO_ANSWER, "the output is empty");
    const char *preamble = json_string_length(system) > 0 ? json_string_value(system)
                           : input_bytes > 0              ? ALPACA_WITH_INPUT
                                                          : ALPACA_WITHOUT_INPUT;
    const struct {
        const char *text;
        size_t bytes;
    } parts[] = {
        {preamble, json_string_length(system) > 0 ? json_string_length(system) : strlen(preamble)},
        {"\n\n### Instruction:\n", strlen("\n\n### Instruction:\n")},
        {json_string_value(instruction), json_string_length(instruction)},
        {"\n\n### Input:\n", input_bytes > 0 ? strlen("\n\n### Input:\n") : 0},
        {input_bytes > 0 ? json_string_value(input) : "", input_bytes},
        {"\n\n### Response:\n", strlen("\n\n### Response:\n")},
        {json_string_value(output), output_bytes},
    };
    size_t count = sizeof parts / sizeof *parts, bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += parts[i].bytes;
    char *text = malloc(bytes + 1);
    if (!text)
        return nb_fail(NB_MEMORY, "no memory for a row of %zu bytes", bytes);
    char *at = text;
    for (size_t i = 0; i < count; at += parts[i++].bytes)
        memcpy(at, parts[i].text, parts[i].bytes);
    nb_status status = nb_tokenizer_encode(reader->options->tokenizer, text, bytes, &worker->list);
    free(text);
    if (status != NB_OK)
        return drop_for_status(result, row, status);
    return take_list(reader, worker, &(struct nb_span){bytes - output_bytes, bytes}, 1, true, result);
}

static nb_status read_completion(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *row,
                                 struct nb_row_result *result)
{
    const char *name = or_default(reader->source->field, "text");
    const json_t *text = json_object_get(row, name);
    if (!json_is_string(text))
        return drop(result, row, NB_ROW_BAD_FIELDS, "the field %s is missing or not text", name);
    size_t bytes = json_string_length(text);
    if (bytes == 0)
        return drop(result, row, NB_ROW_NO_ANSWER, "the text is empty");
    nb_status status = nb_tokenizer_encode(reader->options->tokenizer, json_string_value(text), bytes, &worker->list);
    if (status != NB_OK)
        return drop_for_status(result, row, status);
    return take_list(reader, worker, &(struct nb_span){0, bytes}, 1, true, result);
}

static nb_status read_tokens(const struct nb_row_reader *reader, const json_t *row, struct nb_row_result *result)
{
    const json_t *ids = json_object_get(row, "input_ids"), *labels = json_object_get(row, "labels");
    const json_t *mask = json_object_get(row, "attention_mask");
    size_t count = json_array_size(ids);
    if (!json_is_array(ids))
        return drop(result, row, NB_ROW_BAD_FIELDS, "input_ids is missing or not a list");
    if ((labels && json_array_size(labels) != count) || (mask && json_array_size(mask) != count))
        return drop(result, row, NB_ROW_BAD_LABELS, "%zu input_ids, but %zu %s", count,
                    json_array_size(labels && json_array_size(labels) != count ? labels : mask),
                    labels && json_array_size(labels) != count ? "labels" : "values in attention_mask");
    NB_TRY(reserve(result, count));
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i), *label = labels ? json_array_get(labels, i) : id;
        if (mask && json_integer_value(json_array_get(mask, i)) == 0) /* padding */
            continue;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= reader->options->vocabulary) {
            result->length = count;
            return drop(result, row, NB_ROW_BAD_ID, "input_ids[%zu] is not a token id from 0 to %d", i,
                        reader->options->vocabulary - 1);
        }
        json_int_t value = json_is_integer(label) ? json_integer_value(label) : -1;
        if (value != NB_LABEL_IGNORED && value != json_integer_value(id)) {
            result->length = count;
            return drop(result, row, NB_ROW_BAD_LABELS,
                "labels[%zu] is neither %d nor input_ids[%zu], which is %lld (labels are not shifted)",
                i, NB_LABEL_IGNORED, i, (long long)json_integer_value(id));
        }
        result->tokens[result->count++] = row_token((int32_t)json_integer_value(id), value != NB_LABEL_IGNORED);
    }
    return NB_OK;
}

nb_status nb_row_read(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *row,
                      struct nb_row_result *result)
{
    *result = (struct nb_row_result){0};
    nb_status status = NB_OK;
    if (!json_is_object(row))
        return drop(result, row, NB_ROW_BAD_FIELDS, "not a JSON object");
    switch (reader->type) {
    case NB_ROW_CHAT: status = read_chat(reader, worker, row, result); break;
    case NB_ROW_ALPACA: status = read_alpaca(reader, worker, row, result); break;
    case NB_ROW_COMPLETION: status = read_completion(reader, worker, row, result); break;
    default: status = read_tokens(reader, row, result); break;
    }
    return status == NB_OK && !result->dropped ? check(reader, result, row) : status;
}
