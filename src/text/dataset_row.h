/* One JSON row of a data file to tokens. */
#ifndef NB_TEXT_DATASET_ROW_H
#define NB_TEXT_DATASET_ROW_H

#include <jansson.h>

#include "text/chat_template.h"
#include "text/dataset.h"
#include "text/tokenizer.h"

enum nb_row_type { NB_ROW_CHAT, NB_ROW_ALPACA, NB_ROW_COMPLETION, NB_ROW_TOKENS, NB_ROW_TYPE_COUNT };

/* "chat_template" and so on; points at a constant. */
const char *nb_row_type_name(enum nb_row_type type);

/* How the rows of one source are read. Does not own what it points at. */
struct nb_row_reader {
    const struct nb_dataset_options *options;
    const struct nb_dataset_source *source;
    enum nb_row_type type;
};

/* The type that the config names, or that the first row's fields show, and whether the options can read it.
 * Errors: NB_USAGE. */
nb_status nb_row_reader_choose(struct nb_row_reader *reader, const json_t *first_row);

/* What a thread needs, and what came of its last row. Start with {0}; free with nb_row_worker_free. */
struct nb_row_worker {
    struct nb_token_list list;
    struct nb_rendering rendering;
    struct nb_chat_message *messages;
    size_t message_capacity;
};

void nb_row_worker_free(struct nb_row_worker *worker);

/* A row's tokens; `tokens` and `problem` are the caller's to free. */
struct nb_row_result {
    nb_row_token *tokens;
    size_t count;
    enum nb_row_dropped dropped;
    size_t length;     /* tokens it had, where they could be counted */
    bool double_bos;
    bool trains_end;   /* eos or the template's end of turn is among the trained tokens */
    char *problem;     /* of a dropped row: what is wrong, and how the row begins */
};

/* Errors: NB_MEMORY only: a bad row is marked, not refused. */
nb_status nb_row_read(const struct nb_row_reader *reader, struct nb_row_worker *worker, const json_t *row,
                      struct nb_row_result *result);

#endif
