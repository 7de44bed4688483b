#include "text/lint.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "text/dataset.h"
#include "text/tokenizer.h"
#include "text/chat_template.h"

enum { FEW_ROWS = 20, TOLERATED_FRACTION = 10, SHOWN_BYTES = 240 };

static const struct {
    const char *what, *remedy;
} reasons[NB_ROW_DROPPED_COUNT] = {
    [NB_ROW_TOO_LONG] = {"longer than sequence_len", "raise sequence_len or cut the rows"},
    [NB_ROW_NO_ANSWER] = {"without an answer to learn", "give each row one, or take these rows out"},
    [NB_ROW_BAD_ID] = {"with token ids outside the vocabulary", "the rows were made with another model's tokenizer"},
    [NB_ROW_BAD_LABELS] = {"whose labels do not fit",
        "labels are a copy of input_ids, with -100 where nothing is learnt"},
    [NB_ROW_BAD_FIELDS] = {"with fields that do not fit", "mend the rows, or name the fields in the config"},
};

static nb_status check_dropped(const struct nb_dataset_file *file, int reason)
{
    uint64_t count = file->dropped_count[reason];
    if (count == 0)
        return NB_OK;
    const char *problem = file->first_problem[reason] ? file->first_problem[reason] : "";
    bool tolerated = reason == NB_ROW_TOO_LONG ||
                     (reason != NB_ROW_NO_ANSWER && file->rows >= FEW_ROWS && count <= file->rows / TOLERATED_FRACTION);
    if (!tolerated)
        return nb_fail(NB_FORMAT, "%s:%llu: %s (%llu of %llu rows are %s; %s)", file->path,
                       (unsigned long long)file->first_line[reason], problem, (unsigned long long)count,
                       (unsigned long long)file->rows, reasons[reason].what, reasons[reason].remedy);
    nb_warn("%s: dropped %llu of %llu rows %s; the first, line %llu: %s", file->path, (unsigned long long)count,
        (unsigned long long)file->rows, reasons[reason].what, (unsigned long long)file->first_line[reason], problem);
    return NB_OK;
}

/* All rows dropped: the most frequent reason is the one to hear of. */
static nb_status refuse_all(const struct nb_dataset_file *file)
{
    int most = NB_ROW_TOO_LONG;
    for (int reason = NB_ROW_TOO_LONG; reason < NB_ROW_DROPPED_COUNT; reason++)
        if (file->dropped_count[reason] > file->dropped_count[most])
            most = reason;
    return nb_fail(NB_FORMAT, "%s: no row of %llu can be used; most are %s, the first at line %llu: %s (%s)",
        file->path, (unsigned long long)file->rows, reasons[most].what, (unsigned long long)file->first_line[most],
        file->first_problem[most] ? file->first_problem[most] : "", reasons[most].remedy);
}

/* The text of the kept row at a line; the caller frees it. NULL if there is none. */
static char *show_line(
    const struct nb_dataset *dataset, const struct nb_tokenizer *tokenizer, size_t source, uint64_t line)
{
    char *text = NULL;
    for (uint32_t i = 0; i < dataset->row_count; i++) {
        const struct nb_row *row = &dataset->rows[i];
        if (row->source == source && row->line >= line && row->count > 0)
            return nb_dataset_show_row(dataset, tokenizer, i, SHOWN_BYTES, &text) == NB_OK ? text : NULL;
    }
    return NULL;
}

static nb_status check_ends(const struct nb_dataset *dataset, size_t source, const struct nb_tokenizer *tokenizer,
                            const struct nb_chat_template *chat_template)
{
    const struct nb_dataset_file *file = &dataset->sources[source];
    bool tokens = strcmp(file->type, "tokens") == 0, chat = strcmp(file->type, "chat_template") == 0;
    if (file->trains_end || !tokenizer || (tokens && nb_tokenizer_eos(tokenizer) < 0))
        return NB_OK;
    char *text = show_line(dataset, tokenizer, source, 0);
    nb_status status = NB_OK;
    if (chat)
        status = nb_fail(NB_FORMAT,
            "%s: the model would never learn to stop: the tokenizer has no token %s, with which chat_template "
            "%s ends a turn; choose the chat_template that fits the model. The first row: %s",
            file->path, nb_chat_template_end_of_turn(chat_template), nb_chat_template_name(chat_template),
            text ? text : "");
    else if (!tokens)
        status = nb_fail(NB_FORMAT,
            "%s: the model would never learn to stop: no row trains the eos token. The first row: %s", file->path,
            text ? text : "");
    else
        nb_warn("%s: no row trains the eos token, so the model may not learn to stop; the first row: %s", file->path,
                text ? text : "");
    free(text);
    return status;
}

static nb_status check_bos(const struct nb_dataset *dataset, size_t source, const struct nb_tokenizer *tokenizer)
{
    const struct nb_dataset_file *file = &dataset->sources[source];
    if (file->double_bos_count == 0)
        return NB_OK;
    char *text = show_line(dataset, tokenizer, source, file->double_bos_line);
    nb_status status = NB_OK;
    if (strcmp(file->type, "tokens") == 0)
        nb_warn("%s: %llu of %llu rows begin with two bos tokens; the first, line %llu: %s", file->path,
                (unsigned long long)file->double_bos_count, (unsigned long long)file->rows,
                (unsigned long long)file->double_bos_line, text ? text : "");
    else
        status = nb_fail(NB_FORMAT,
            "%s:%llu: begins with two bos tokens (so do %llu of %llu rows): take the bos text out of the "
            "rows, it is added for them. The row: %s",
            file->path, (unsigned long long)file->double_bos_line, (unsigned long long)file->double_bos_count,
            (unsigned long long)file->rows, text ? text : "");
    free(text);
    return status;
}

nb_status nb_lint(const struct nb_dataset *dataset, const struct nb_tokenizer *tokenizer,
                  const struct nb_chat_template *chat_template)
{
    if (dataset->row_count == 0)
        return nb_fail(NB_FORMAT, "the data set is empty");
    for (size_t source = 0; source < dataset->source_count; source++) {
        const struct nb_dataset_file *file = &dataset->sources[source];
        uint64_t dropped = 0;
        for (int reason = NB_ROW_KEPT + 1; reason < NB_ROW_DROPPED_COUNT; reason++)
            dropped += file->dropped_count[reason];
        if (dropped == file->rows)
            return refuse_all(file);
        for (int reason = NB_ROW_KEPT + 1; reason < NB_ROW_DROPPED_COUNT; reason++)
            NB_TRY(check_dropped(file, reason));
        NB_TRY(check_ends(dataset, source, tokenizer, chat_template));
        NB_TRY(check_bos(dataset, source, tokenizer));
    }
    return NB_OK;
}
