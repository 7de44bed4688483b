#include "train/plan_table.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/shipped.h"
#include "config/device_profile.h"
#include "train/plan_limits.h"

/* What is in the table. A card of each size: of those that nibble knows, the one with the least memory. */
static const struct card {
    const char *size, *device;
} cards[] = {
    {"8 GB", "rtx-4060"},
    {"12 GB", "rtx-4070"},
    {"16 GB", "rtx-5080"},
    {"24 GB", "rtx-4090"},
    {"32 GB", "rtx-5090"},
    {"48 GB", "l40s"},
    {"80 GB", "h100-80gb"},
};
static const char *const models[] = {"smollm2-135m", "llama-2-7b", "mistral-7b", "llama-3-8b", "qwen3-8b", "llama-2-13b", "qwen3-32b",
    "llama-2-70b", "llama-3-70b"};
enum { CARDS = sizeof cards / sizeof *cards, MODELS = sizeof models / sizeof *models };

/* What a cell is planned with, from the shortest row on. The host's memory bounds what leaves the card. */
static const char *const assumed[][2] = {
    {"adapter", "qlora"},
    {"lora_r", "16"},
    {"lora_target_linear", "true"},
    {"optimizer", "paged_adamw_8bit"},
    {"learning_rate", "2e-4"},
    {"sequence_len", "256"},
    {"micro_batch_size", "1"},
    {"host_memory_budget", "128GB"},
};
enum { ASSUMED = sizeof assumed / sizeof *assumed, WIDTH = 16, WIDTH_MAX = 64 };

struct column {
    const char *title;
    int width;
    struct nb_device_profile profile;
};

struct cell {
    bool fits;
    struct nb_plan_limit_found found;
    uint64_t available_bytes;
    int context, offloaded, streamed, mlp_chunk_tokens;
    bool paged, embedding_on_host, from_file;
};

static bool is_overridden(const struct nb_plan_table_options *options, const char *key)
{
    size_t length = strlen(key);
    for (size_t i = 0; i < options->setting_count; i++)
        if (strncmp(options->settings[i], key, length) == 0 && options->settings[i][length] == '=')
            return true;
    return false;
}

/* ---- one cell ---- */

static char *config_text(const char *model)
{
    char *text = nb_format("base_model: %s\ndatasets: [{path: none, type: tokens}]\n", model);
    for (int i = 0; i < ASSUMED; i++) {
        char *longer = nb_format("%s%s: %s\n", text, assumed[i][0], assumed[i][1]);
        free(text);
        text = longer;
    }
    return text;
}

static nb_status search(struct nb_run *run, struct cell *cell)
{
    cell->context = nb_checkpoint_config(run->checkpoint)->max_positions;
    cell->available_bytes = run->available_bytes;
    nb_status status = nb_plan_find_limit(run, NB_PLAN_LONGEST_CONTEXT, &cell->found);
    if (status == NB_MEMORY) /* the answer, not a failure */
        return NB_OK;
    cell->fits = status == NB_OK;
    cell->paged = run->adapter.paging.on && run->adapter.paging.resident_bytes < run->paged_bytes;
    cell->offloaded = run->offloaded;
    cell->streamed = run->model.streamed_blocks;
    cell->mlp_chunk_tokens = run->mlp_chunk_tokens;
    cell->embedding_on_host = run->model.embedding_on_host;
    cell->from_file = run->model.streams_from_file;
    return status;
}

static nb_status plan_cell(
    const struct nb_plan_table_options *options, const char *model, const struct nb_device_profile *profile, struct cell *cell)
{
    struct nb_config config;
    struct nb_run *run = NULL;
    char *path;
    *cell = (struct cell){0};
    NB_TRY(nb_shipped_file("models", model, ".json", &path));
    char *text = config_text(path);
    free(path);
    nb_status status = nb_config_parse(text, strlen(text), "plan --table", options->settings, options->setting_count, &config);
    free(text);
    NB_TRY(status);
    status = nb_config_validate_train(&config);
    if (status == NB_OK)
        status = nb_run_open(
            &(struct nb_run_args){.config = &config, .purpose = NB_PURPOSE_TRAIN, .profile = profile, .random_rows = 1, .random_tokens = 2},
            &run);
    if (status == NB_OK)
        status = search(run, cell);
    nb_run_destroy(&run);
    nb_config_destroy(&config);
    return status;
}

/* ---- for people ---- */

/* "153k+ rpi s40": the longest rows in thousands of tokens, what they take, how many layers stream in. */
static void print_cell(const struct cell *cell, int width, FILE *out)
{
    char text[64];
    if (!cell->fits) {
        fprintf(out, " %-*s |", width, "-");
        return;
    }
    int length = cell->found.sequence_len, used;
    if (length < 1000)
        used = snprintf(text, sizeof text, "%d", length);
    else
        used = snprintf(text, sizeof text, "%dk", length / 1000);
    const struct {
        bool on;
        char letter;
    } marks[] = {
        {length > cell->context, '+'},
        {true, ' '},
        {cell->found.kept_everything < cell->found.blocks, 'r'},
        {cell->paged, 'p'},
        {cell->offloaded > 0, 'i'},
        {cell->embedding_on_host, 'e'},
        {cell->mlp_chunk_tokens > 0, 'c'},
        {cell->from_file, 'f'},
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        if (marks[i].on)
            text[used++] = marks[i].letter;
    if (cell->streamed)
        used += snprintf(text + used, sizeof text - (size_t)used, "s%d", cell->streamed);
    while (used > 0 && text[used - 1] == ' ')
        used--;
    fprintf(out, " %-*.*s |", width, used, text);
}

static const char dashes[] = "------------------------------------------------------------------";
_Static_assert(sizeof dashes > WIDTH_MAX + 2, "a rule under the widest column");

static void print_head(const struct column *column, int columns, FILE *out)
{
    fprintf(out, "| %-12s | %-8s |", "model", "made for");
    for (int c = 0; c < columns; c++)
        fprintf(out, " %-*.*s |", column[c].width, column[c].width, column[c].title);
    fprintf(out, "\n|%.14s|%.10s|", dashes, dashes);
    for (int c = 0; c < columns; c++)
        fprintf(out, "%.*s|", column[c].width + 2, dashes);
    fputc('\n', out);
}

static void print_foot(const struct nb_plan_table_options *options, const struct column *column, int columns, FILE *out)
{
    const char *between = " ";
    fputs("\nThe longest rows that fit, in thousands of tokens, with", out);
    for (int i = 0; i < ASSUMED; i++)
        if (strcmp(assumed[i][0], "sequence_len") != 0 && !is_overridden(options, assumed[i][0])) {
            fprintf(out, "%s%s=%s", between, assumed[i][0], assumed[i][1]);
            between = ", ";
        }
    for (size_t i = 0; i < options->setting_count; i++, between = ", ")
        fprintf(out, "%s%s", between, options->settings[i]);
    fputs(".\n+ beyond what the model was made for; - not even 256 tokens.\n"
          "r: blocks computed again; in host memory, p: masters and moments, i: block inputs, e: the embedding; c: the MLP in chunks of\n"
          "tokens; sN: the weights of N layers streamed in, f: from the checkpoint's file.\n",
        out);
    for (int c = 0; c < columns; c++)
        fprintf(out, "%s%s: %s, %llu MiB", c ? "; " : "", column[c].title, column[c].profile.name,
            (unsigned long long)(column[c].profile.memory_bytes >> 20));
    fputs(".\n", out);
}

static void print_row(const char *model, const struct cell *cell, const struct column *column, int columns, FILE *out)
{
    fprintf(out, "| %-12s | %6dk  |", model, cell->context / 1000);
    for (int c = 0; c < columns; c++)
        print_cell(&cell[c], column[c].width, out);
    fputc('\n', out);
    fflush(out);
}

/* ---- for programs ---- */

static json_t *cell_json(const struct cell *cell)
{
    const struct nb_plan_limit_found *f = &cell->found;
    if (!cell->fits)
        return json_null();
    return json_pack("{s:i, s:I, s:I, s:I, s:f, s:i, s:b, s:i, s:i, s:b, s:i, s:b}", "sequence_len", f->sequence_len, "peak_bytes",
        (json_int_t)f->peak_bytes, "pinned_bytes", (json_int_t)f->pinned_bytes, "pageable_bytes", (json_int_t)f->pageable_bytes,
        "step_seconds", f->step_seconds, "blocks_recomputed", f->blocks - f->kept_everything,
        "optimizer_paged", (int)cell->paged, "blocks_offloaded", cell->offloaded, "blocks_streamed", cell->streamed,
        "embedding_on_host", (int)cell->embedding_on_host, "mlp_chunk_tokens", cell->mlp_chunk_tokens, "from_file",
        (int)cell->from_file);
}

static json_t *row_json(const char *model, const struct cell *cell, int columns)
{
    json_t *cells = json_array();
    for (int c = 0; c < columns; c++)
        json_array_append_new(cells, cell_json(&cell[c]));
    return json_pack("{s:s, s:i, s:o}", "model", model, "context", cell->context, "cells", cells);
}

static json_t *settings_json(const struct nb_plan_table_options *options)
{
    json_t *list = json_array();
    for (int i = 0; i < ASSUMED; i++)
        if (!is_overridden(options, assumed[i][0]))
            json_array_append_new(list, json_sprintf("%s=%s", assumed[i][0], assumed[i][1]));
    for (size_t i = 0; i < options->setting_count; i++)
        json_array_append_new(list, json_string(options->settings[i]));
    return list;
}

static nb_status print_json(
    const struct nb_plan_table_options *options, const struct column *column, int columns, json_t *rows, FILE *out)
{
    json_t *root = json_object(), *list = json_array();
    for (int c = 0; c < columns; c++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:I}", "card", column[c].title, "device", column[c].profile.name,
                                        "memory_bytes", (json_int_t)column[c].profile.memory_bytes));
    json_object_set_new(root, "settings", settings_json(options));
    json_object_set_new(root, "cards", list);
    json_object_set(root, "models", rows);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (!text)
        return nb_fail(NB_MEMORY, "no memory to print the table");
    int written = fprintf(out, "%s\n", text);
    free(text);
    return written < 0 || fflush(out) != 0 ? nb_fail_errno("cannot print the table") : NB_OK;
}

/* ---- the whole ---- */

static nb_status open_columns(const char *device, struct column *column, int *columns)
{
    *columns = device ? 1 : CARDS;
    for (int c = 0; c < *columns; c++) {
        NB_TRY(nb_device_profile_read(device ? device : cards[c].device, &column[c].profile));
        column[c].title = device ? device : cards[c].size;
        size_t length = strlen(column[c].title);
        column[c].width = length < WIDTH ? WIDTH : length > WIDTH_MAX ? WIDTH_MAX : (int)length;
    }
    return NB_OK;
}

nb_status nb_plan_table_print(const struct nb_plan_table_options *options, FILE *out)
{
    struct column column[CARDS];
    struct cell cell[CARDS];
    const char *const *names = options->model ? &options->model : models;
    int columns, rows_wanted = options->model ? 1 : MODELS;
    NB_TRY(open_columns(options->device, column, &columns));
    json_t *rows = json_array();
    nb_status status = NB_OK;
    for (int m = 0; status == NB_OK && m < rows_wanted; m++) {
        for (int c = 0; status == NB_OK && c < columns; c++)
            status = plan_cell(options, names[m], &column[c].profile, &cell[c]);
        if (status == NB_OK && m == 0 && !options->json)
            print_head(column, columns, out);
        if (status == NB_OK && options->json)
            json_array_append_new(rows, row_json(names[m], cell, columns));
        else if (status == NB_OK)
            print_row(names[m], cell, column, columns, out);
    }
    if (status == NB_OK && options->json)
        status = print_json(options, column, columns, rows, out);
    else if (status == NB_OK)
        print_foot(options, column, columns, out);
    json_decref(rows);
    return status;
}
