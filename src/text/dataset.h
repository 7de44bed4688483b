/* Data files to rows of tokens: JSONL or a JSON array, either gzipped; conversations, alpaca, plain text, or tokens.
 *
 * Every row of a file keeps its place: one that cannot be used has 0 tokens and a reason, so that row i of a report is
 * row i of the file. (Plain text is the exception: a long text becomes several rows, each with its line.) */
#ifndef NB_TEXT_DATASET_H
#define NB_TEXT_DATASET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_tokenizer;
struct nb_chat_template;

/* Not trained, in a row of labels: the value that PyTorch's cross-entropy and the field's data files use. */
#define NB_LABEL_IGNORED (-100)

/* One entry of the config's `datasets` or `test_datasets`. A NULL string means its default. Does not own its strings. */
struct nb_dataset_source {
    const char *path;
    const char *type; /* "chat_template", "alpaca", "completion", "tokens"; NULL: told by the first row's fields */

    /* chat_template: the list of messages ("messages"; else "conversations" where the first row has that), and in each message who
     * speaks ("role", else "from") and what ("content", else "value"). Roles human, gpt and the like of sharegpt are understood. */
    const char *field_messages;
    const char *message_field_role;
    const char *message_field_content;

    /* alpaca: "instruction", "input", "output", "system". */
    const char *field_instruction, *field_input, *field_output, *field_system;

    /* completion: "text". */
    const char *field;
};

struct nb_dataset_options {
    const struct nb_tokenizer *tokenizer;          /* NULL: only rows of tokens can be read */
    const struct nb_chat_template *chat_template;  /* NULL: conversations cannot be read */
    const char *chat_template_problem; /* with a NULL template: why there is none, for the message; may be NULL */
    uint32_t sequence_len;                         /* the longest row, in tokens; at least 2 */
    int32_t vocabulary;                            /* rows of the model's embedding: ids must lie in [0, vocabulary) */
    bool train_on_inputs;                          /* every token trains; rows of tokens keep their own labels */
    int threads;                                   /* for tokenizing; the result does not depend on it. 0: all */
};

enum nb_row_dropped {
    NB_ROW_KEPT = 0,
    NB_ROW_TOO_LONG,    /* more than sequence_len tokens */
    NB_ROW_NO_ANSWER,   /* no token trains */
    NB_ROW_BAD_ID,      /* an id outside the vocabulary */
    NB_ROW_BAD_LABELS,  /* another number of labels than ids, or a label that is neither its id nor NB_LABEL_IGNORED */
    NB_ROW_BAD_FIELDS,  /* a field that is missing or of the wrong type, an unknown role */
    NB_ROW_DROPPED_COUNT
};

/* A token of a row: its id, and the top bit set where it does not train. 4 bytes a token instead of 8. */
typedef uint32_t nb_row_token;

static inline int32_t nb_row_token_id(nb_row_token token)
{
    return (int32_t)(token & 0x7fffffffu);
}

static inline bool nb_row_token_trained(nb_row_token token)
{
    return !(token >> 31);
}

struct nb_row {
    uint64_t first;         /* index of its first token in nb_dataset.tokens */
    uint64_t line;          /* JSONL: line from 1; JSON array: element from 1 */
    uint32_t count;         /* tokens; 0 when dropped */
    uint32_t trained_count; /* trained tokens, the first token (which nothing predicts) not counted */
    uint32_t length;        /* tokens it had, dropped or not (0 where it could not be read) */
    uint16_t source;        /* index into nb_dataset.sources */
    uint8_t dropped;        /* enum nb_row_dropped */
};

/* What one file turned out to be. */
struct nb_dataset_file {
    char *path;
    const char *type; /* "chat_template", "alpaca", "completion", "tokens" */
    uint64_t dropped_count[NB_ROW_DROPPED_COUNT];
    uint64_t first_line[NB_ROW_DROPPED_COUNT];   /* of the first row dropped for each reason */
    char *first_problem[NB_ROW_DROPPED_COUNT];   /* that row in words, or NULL: what is wrong and the text around it */
    uint64_t rows, double_bos_count, double_bos_line;
    bool trains_end; /* in some row eos, or the template's end of turn, is trained */
};

struct nb_dataset {
    nb_row_token *tokens;
    uint64_t token_count;
    struct nb_row *rows;
    uint32_t row_count, kept_count;
    struct nb_dataset_file *sources;
    size_t source_count;
};

/* Reads the sources one after the other into one set. It only marks; nb_lint decides what is an error.
 * Errors: NB_IO, NB_FORMAT (not JSON: file and line), NB_USAGE (unknown type; a type that cannot be told, listing the
 * fields found; conversations without a template, text without a tokenizer), NB_MEMORY. On an error *dataset is NULL. */
nb_status nb_dataset_read(const struct nb_dataset_source *sources, size_t count,
    const struct nb_dataset_options *options, struct nb_dataset **dataset);

/* The same for one source whose contents, not gzipped, are in memory; source->path names it in messages. */
nb_status nb_dataset_read_bytes(const char *data, size_t bytes, const struct nb_dataset_source *source,
                                const struct nb_dataset_options *options, struct nb_dataset **dataset);

/* Takes NULL; nulls the handle. */
void nb_dataset_destroy(struct nb_dataset **dataset);

/* Writes a row's ids and labels (row->count of each; labels may be NULL). The first label is NB_LABEL_IGNORED or the
 * first id as the file says; a loss that shifts never looks at it. */
void nb_dataset_copy_row(const struct nb_dataset *dataset, uint32_t row, int32_t *ids, int32_t *labels);

/* A row as a person reads it: its text with trained stretches between 【 and 】, at most `limit` bytes of it. The caller
 * frees *text. Without a tokenizer: the ids. Errors: NB_MEMORY. */
nb_status nb_dataset_show_row(
    const struct nb_dataset *dataset, const struct nb_tokenizer *tokenizer, uint32_t row, size_t limit, char **text);

#endif
