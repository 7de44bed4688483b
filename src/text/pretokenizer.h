/* Cutting a text into words, inside which merges happen: the steps of a tokenizer's pre_tokenizer. */
#ifndef NB_TEXT_PRETOKENIZER_H
#define NB_TEXT_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { NB_PRETOKENIZER_STEPS_MAX = 8 };

enum nb_split_kind {
    NB_SPLIT_ISOLATE, /* matches are pieces, and so is what lies between them */
    NB_SPLIT_KEEP,    /* matches are pieces, the rest is dropped (Removed with invert) */
    NB_SPLIT_DIGITS,  /* every numeric character is a piece, and so is what lies between them */
};

struct nb_split_step {
    enum nb_split_kind kind;
    void *expression; /* a compiled PCRE2 expression; NULL for NB_SPLIT_DIGITS */
};

struct nb_pretokenizer {
    struct nb_split_step steps[NB_PRETOKENIZER_STEPS_MAX];
    int count;
};

/* What matching needs, one a thread. Start with {0}. */
struct nb_split_work {
    void *match_data, *match_context, *stack;
};

/* Called for each piece, in order; begin and end are offsets in the text. */
struct nb_piece_sink {
    nb_status (*piece)(void *user, const char *text, size_t begin, size_t end);
    void *user;
};

/* Adds a step. `expression` is a regular expression, or `literal` text; ignored for NB_SPLIT_DIGITS.
 * \s and \S mean Unicode's White_Space, as in the expressions' home. Errors: NB_FORMAT (PCRE2's words for what is
 * wrong), NB_MEMORY. */
nb_status nb_pretokenizer_add(
    struct nb_pretokenizer *pretokenizer, enum nb_split_kind kind, const char *expression, size_t bytes, bool literal);
void nb_pretokenizer_free(struct nb_pretokenizer *pretokenizer);

/* Cuts [begin, end) of a valid UTF-8 text. Errors: what the sink returns; NB_UNSUPPORTED when an expression hits
 * PCRE2's limits. */
nb_status nb_pretokenizer_split(const struct nb_pretokenizer *pretokenizer, struct nb_split_work *work,
    const char *text, size_t begin, size_t end, const struct nb_piece_sink *sink);

void nb_split_work_free(struct nb_split_work *work);

#endif
