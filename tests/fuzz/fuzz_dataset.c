/* A data file from anywhere, read as each type; the first byte chooses the type, the template and the length of a row.
 * */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/chat_template.h"
#include "text/dataset.h"
#include "text/lint.h"
#include "text/pack.h"
#include "text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* All printable ASCII bytes, and the ends of turns that the templates write. */
static struct nb_tokenizer *make_tokenizer(void)
{
    char json[8192];
    struct nb_tokenizer *tokenizer;
    size_t at = (size_t)snprintf(json, sizeof json,
        "{\"added_tokens\":[{\"id\":200,\"content\":\"<|im_start|>\",\"special\":true},"
        "{\"id\":201,\"content\":\"<|im_end|>\",\"special\":true},{\"id\":202,\"content\":\"<|eot_id|>\","
        "\"special\":true}],\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
        "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"\xc4\xa0\":0,\"\xc4\x8a\":1");
    for (int c = 33; c < 127; c++)
        at += (size_t)snprintf(json + at, sizeof json - at, ",\"%s%c\":%d", c == '"' || c == '\\' ? "\\" : "", c, c);
    at += (size_t)snprintf(json + at, sizeof json - at, "}}}");
    static const char config[] = "{\"bos_token\":\"<|im_start|>\",\"eos_token\":\"<|im_end|>\",\"add_bos_token\":true}";
    if (nb_tokenizer_open_json(json, at, config, sizeof config - 1, "built in", &tokenizer) != NB_OK)
        abort();
    return tokenizer;
}

static void check_rows(const struct nb_dataset *dataset, const struct nb_dataset_options *options)
{
    uint64_t tokens = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < dataset->row_count; i++) {
        const struct nb_row *row = &dataset->rows[i];
        if (row->first != tokens || row->count > options->sequence_len ||
            (row->dropped != NB_ROW_KEPT) != (row->count == 0) || (row->count > 0 && row->trained_count == 0))
            abort();
        for (uint32_t t = 0; t < row->count; t++)
            if (nb_row_token_id(dataset->tokens[row->first + t]) >= options->vocabulary)
                abort();
        tokens += row->count;
        kept += row->count > 0;
    }
    if (tokens != dataset->token_count || kept != dataset->kept_count)
        abort();
}

static void check_plan(const struct nb_dataset *dataset, const struct nb_dataset_options *options)
{
    struct nb_row_list train, held;
    uint32_t rows = 0;
    struct nb_batch_plan *plan;
    if (nb_dataset_split(dataset, 0, 1, &train, &held) != NB_OK)
        return;
    struct nb_batch_plan_options how = {
        .seed = 1, .sequence_len = options->sequence_len, .bins_per_step = 2, .sample_packing = true, .shuffle = true};
    if (nb_batch_plan_open(dataset, train.rows, train.count, &how, &plan) != NB_OK)
        abort();
    for (uint32_t step = 0; step < nb_batch_plan_steps(plan); step++) {
        struct nb_step_rows s;
        if (nb_batch_plan_step(plan, 0, step, &s) != NB_OK)
            abort();
        rows += s.row_count;
    }
    if (rows != train.count)
        abort();
    nb_batch_plan_destroy(&plan);
    free(train.rows);
    free(held.rows);
}

static void check_words(const struct nb_dataset *dataset, const struct nb_dataset_options *options)
{
    const struct nb_dataset_file *file = &dataset->sources[0];
    char *text;
    for (uint32_t i = 0; i < dataset->row_count && i < 4; i++) {
        if (nb_dataset_show_row(dataset, options->tokenizer, i, 40, &text) != NB_OK)
            abort();
        free(text);
    }
    /* Where nothing is to be warned of: a warning goes to stderr, a million of them too. */
    int quiet = dataset->kept_count == 0 ||
                (dataset->kept_count == dataset->row_count && file->double_bos_count == 0 && file->trains_end);
    if (quiet)
        (void)nb_lint(dataset, options->tokenizer, options->chat_template);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char *const types[] = {NULL, "chat_template", "alpaca", "completion", "tokens"};
    static const char *const templates[] = {"chatml", "llama3", "smollm2"};
    static struct nb_tokenizer *tokenizer;
    static struct nb_chat_template *chat_templates[3];
    if (!tokenizer) {
        tokenizer = make_tokenizer();
        for (int i = 0; i < 3; i++)
            if (nb_chat_template_open(templates[i], NULL, "", &chat_templates[i]) != NB_OK)
                abort();
    }
    if (bytes == 0)
        return 0;
    struct nb_dataset_options options = {.tokenizer = tokenizer, .chat_template = chat_templates[data[0] % 3],
                                         .sequence_len = 2 + data[0] / 2, .vocabulary = 203, .threads = 1,
                                         .train_on_inputs = data[0] & 64};
    struct nb_dataset_source source = {.path = "input", .type = types[data[0] % 5]};
    struct nb_dataset *dataset;
    if (nb_dataset_read_bytes((const char *)data + 1, bytes - 1, &source, &options, &dataset) != NB_OK)
        return 0;
    check_rows(dataset, &options);
    check_plan(dataset, &options);
    check_words(dataset, &options);
    nb_dataset_destroy(&dataset);
    return 0;
}
