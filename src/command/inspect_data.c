#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "command/inspect.h"
#include "command/open.h"
#include "text/dataset.h"

enum { SHOWN_BYTES = 4000 };
static const uint64_t file_limit = UINT64_C(64) << 30;

static json_t *field_names(const json_t *row)
{
    json_t *names = json_array();
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)row, key, value) json_array_append_new(names, json_string(key));
    return names;
}

/* Counts the rows of JSONL (lines that are not blank) or of a JSON array, and keeps the first. */
static nb_status count_rows(const char *path, const char *text, size_t bytes, size_t *rows, json_t **first)
{
    json_error_t error;
    size_t start = strspn(text, " \t\r\n");
    if (text[start] == '[') {
        json_t *array = json_loadb(text, bytes, 0, &error);
        if (!array)
            return nb_fail(NB_FORMAT, "%s:%d:%d: not JSON: %s", path, error.line, error.column, error.text);
        *rows = json_array_size(array);
        *first = json_incref(json_array_get(array, 0));
        json_decref(array);
        return NB_OK;
    }
    const char *end = text + bytes;
    for (const char *line = text; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const char *stop = newline ? newline : end;
        size_t blank = strspn(line, " \t\r");
        if (line + blank < stop) {
            if (*rows == 0 && !(*first = json_loadb(line, (size_t)(stop - line), JSON_ALLOW_NUL, &error)))
                return nb_fail(NB_FORMAT, "%s: the first row is not JSON: %s", path, error.text);
            (*rows)++;
        }
        line = stop + 1;
    }
    return NB_OK;
}

static nb_status inspect_alone(const char *path, json_t **out)
{
    char *text;
    size_t bytes, rows = 0;
    json_t *first = NULL;
    NB_TRY(nb_file_read(path, file_limit, true, &text, &bytes));
    nb_status status = count_rows(path, text, bytes, &rows, &first);
    free(text);
    if (status == NB_OK)
        *out = json_pack("{s:s, s:s, s:I, s:I, s:o, s:s}", "path", path, "kind", "data file", "bytes", (json_int_t)bytes, "rows",
                         (json_int_t)rows, "fields", field_names(first), "hint",
                         "--model MODEL shows what training on it would see");
    json_decref(first);
    return status;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Lengths of the kept rows: shortest, median, mean, longest. */
static json_t *length_statistics(const struct nb_dataset *data)
{
    uint32_t *lengths = calloc(data->row_count + 1, sizeof *lengths), kept = 0;
    uint64_t tokens = 0, trained = 0;
    for (uint32_t i = 0; lengths && i < data->row_count; i++) {
        if (data->rows[i].dropped)
            continue;
        lengths[kept++] = data->rows[i].count;
        tokens += data->rows[i].count;
        trained += data->rows[i].trained_count;
    }
    if (!kept) {
        free(lengths);
        return json_object();
    }
    qsort(lengths, kept, sizeof *lengths, by_value);
    json_t *object = json_pack("{s:I, s:I, s:i, s:i, s:f, s:i}", "tokens", (json_int_t)tokens, "trained_tokens", (json_int_t)trained,
                               "shortest_row", (int)lengths[0], "median_row", (int)lengths[kept / 2], "mean_row",
                               (double)tokens / kept, "longest_row", (int)lengths[kept - 1]);
    free(lengths);
    return object;
}

static json_t *dropped_rows(const struct nb_dataset_file *file)
{
    static const char *const reason[NB_ROW_DROPPED_COUNT] = {
        [NB_ROW_TOO_LONG] = "too_long",       [NB_ROW_NO_ANSWER] = "no_answer",   [NB_ROW_BAD_ID] = "bad_id",
        [NB_ROW_BAD_LABELS] = "bad_labels", [NB_ROW_BAD_FIELDS] = "bad_fields",
    };
    json_t *object = json_object();
    for (int i = NB_ROW_KEPT + 1; i < NB_ROW_DROPPED_COUNT; i++)
        if (file->dropped_count[i])
            json_object_set_new(object, reason[i],
                                json_pack("{s:I, s:I}", "rows", (json_int_t)file->dropped_count[i], "first_line",
                                          (json_int_t)file->first_line[i]));
    return object;
}

static nb_status show_rows(const struct nb_run *run, int shown_rows, json_t *object)
{
    json_t *shown = json_array();
    json_object_set_new(object, "shown", shown);
    for (uint32_t i = 0; i < run->data->row_count && (int)json_array_size(shown) < shown_rows; i++) {
        char *text = NULL;
        if (run->data->rows[i].dropped)
            continue;
        NB_TRY(nb_dataset_show_row(run->data, run->tokenizer, i, SHOWN_BYTES, &text));
        json_array_append_new(shown, json_string(text));
        free(text);
    }
    return NB_OK;
}

nb_status nb_inspect_data(const struct nb_arguments *arguments, const char *model, int shown_rows, json_t **out)
{
    if (!model)
        return inspect_alone(arguments->positional, out);
    struct nb_arguments with_model = *arguments;
    struct nb_opened opened;
    with_model.positional = model;
    NB_TRY(nb_open_run(&with_model, NB_PURPOSE_EVALUATE, NULL, arguments->positional, &opened));
    const struct nb_dataset *data = opened.run->data;
    json_t *object = json_pack("{s:s, s:s, s:s, s:I, s:I}", "path", arguments->positional, "kind", "data file", "type",
                               data->sources[0].type, "rows", (json_int_t)data->row_count, "kept", (json_int_t)data->kept_count);
    json_object_update_new(object, length_statistics(data));
    json_object_set_new(object, "dropped", dropped_rows(&data->sources[0]));
    nb_status status = show_rows(opened.run, shown_rows, object);
    nb_opened_close(&opened);
    if (status != NB_OK)
        json_decref(object);
    else
        *out = object;
    return status;
}
