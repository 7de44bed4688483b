#include "train/evaluate.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"
#include "command/open.h"

static const struct nb_option options[] = {
    {.name = "data", .type = NB_OPTION_TEXT, .value = "FILE", .help = "JSONL or a JSON array, may be gzipped"},
    {.name = "adapter", .type = NB_OPTION_TEXT, .value = "DIR", .help = "a PEFT adapter to put on top"},
    {.name = "report", .type = NB_OPTION_TEXT, .value = "FILE", .help = "write the losses, a row each, as JSON"},
    NB_OPTION_SET,
    {0},
};

static nb_status evaluate(struct nb_session *session, void *context)
{
    struct nb_evaluation *evaluation = context;
    struct nb_progress progress;
    struct nb_evaluate_args args = {.session = session, .dataset = session->run->data};
    if (session->dry) {
        struct nb_evaluation counted = {0};
        nb_status status = nb_evaluate(&args, &counted);
        nb_evaluation_free(&counted);
        return status;
    }
    nb_progress_start(&progress, "evaluating", "rows", session->run->data->row_count);
    args.progress = &progress;
    nb_status status = nb_evaluate(&args, evaluation);
    if (status == NB_OK)
        nb_progress_finish(&progress);
    else
        nb_progress_abandon(&progress);
    return status;
}

/* Whether row i is a later piece of the text that row i - 1 comes from. */
static bool goes_on(const struct nb_dataset *data, uint32_t i)
{
    return i > 0 && data->rows[i].source == data->rows[i - 1].source && data->rows[i].line == data->rows[i - 1].line;
}

/* One entry a row of the file: the pieces of a long text are added up. */
static json_t *report_rows(const struct nb_dataset *data, const struct nb_evaluation *evaluation)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; i < evaluation->rows;) {
        double loss_sum = 0;
        json_int_t tokens = 0;
        do {
            loss_sum += evaluation->row_loss_sum[i];
            tokens += evaluation->row_tokens[i];
        } while (++i < evaluation->rows && goes_on(data, i));
        json_array_append_new(rows, json_pack("{s:f, s:I}", "loss_sum", loss_sum, "tokens", tokens));
    }
    return rows;
}

static nb_status write_report(const char *path, const struct nb_dataset *data, const struct nb_evaluation *evaluation, double loss)
{
    json_t *report = json_pack("{s:f, s:f, s:I, s:o}", "loss", loss, "perplexity", exp(loss), "tokens",
                               (json_int_t)evaluation->trained_tokens, "rows", report_rows(data, evaluation));
    char *text = report ? json_dumps(report, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(report);
    if (!text)
        return nb_fail(NB_MEMORY, "%s: no memory for the report of %u rows", path, evaluation->rows);
    char *lines = nb_format("%s\n", text);
    nb_status status = nb_file_write(path, lines, strlen(lines));
    free(lines);
    free(text);
    return status;
}

static nb_status print_evaluation(const struct nb_dataset *data, const struct nb_evaluation *evaluation, const char *report)
{
    if (evaluation->trained_tokens == 0)
        return nb_fail(NB_FORMAT, "no row has a token to evaluate");
    double loss = evaluation->loss_sum / (double)evaluation->trained_tokens;
    if (report)
        NB_TRY(write_report(report, data, evaluation, loss));
    printf("loss %.6f  perplexity %.4f  tokens %llu\n", loss, exp(loss), (unsigned long long)evaluation->trained_tokens);
    return NB_OK;
}

static nb_status run(const struct nb_arguments *arguments)
{
    const char *data = arguments->text[nb_option_index(&nb_command_evaluate, "data")];
    const char *adapter = arguments->text[nb_option_index(&nb_command_evaluate, "adapter")];
    const char *report = arguments->text[nb_option_index(&nb_command_evaluate, "report")];
    if (!data)
        return nb_fail(NB_USAGE, "nibble evaluate needs --data FILE; for example: %s", nb_command_evaluate.example);
    struct nb_opened opened;
    struct nb_evaluation evaluation = {0};
    NB_TRY(nb_open_run(arguments, NB_PURPOSE_EVALUATE, adapter, data, &opened));
    nb_status status = nb_session_run(opened.run, opened.run->limits.longest, evaluate, &evaluation, NULL);
    if (status == NB_OK)
        status = print_evaluation(opened.run->data, &evaluation, report);
    nb_evaluation_free(&evaluation);
    nb_opened_close(&opened);
    return status;
}

const struct nb_command nb_command_evaluate = {
    .name = "evaluate",
    .argument = "MODEL",
    .summary = "loss and perplexity on a data file",
    .description =
        "Prints the mean loss over the answers' tokens, its exponential and their number. The report has \"loss\", \"perplexity\",\n"
        "\"tokens\" and \"rows\", one {\"loss_sum\", \"tokens\"} a row in the file's order; a skipped row has 0 tokens. The base is\n"
        "opened in NF4 unless --set load_in_4bit=false.",
    .example = "nibble evaluate SmolLM2-135M-Instruct.Q4_1.gguf --data held_out.jsonl --adapter out",
    .options = options,
    .run = run,
};
