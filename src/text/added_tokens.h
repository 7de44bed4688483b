/* Added tokens: found in the text as they stand, before anything else looks at it. */
#ifndef NB_TEXT_ADDED_TOKENS_H
#define NB_TEXT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_added_token {
    const char *text; /* not owned */
    uint32_t bytes;
    int32_t id;
    bool strip_left, strip_right; /* takes the white space beside it */
    bool single_word;             /* only between characters that are not letters, digits or underscores */
};

/* Start with {0}; free with nb_added_tokens_free. */
struct nb_added_tokens {
    struct nb_added_token *tokens;
    size_t count, capacity;
    uint32_t first[257]; /* tokens that begin with byte b: [first[b], first[b + 1]) */
};

/* Texts must outlive the set. Errors: NB_MEMORY. */
nb_status nb_added_tokens_add(struct nb_added_tokens *set, struct nb_added_token token);

/* Sorts; to be called once before finding. Of equal texts the first added stays. */
void nb_added_tokens_finish(struct nb_added_tokens *set);

struct nb_added_match {
    size_t begin, end;
    int32_t id;
};

/* The leftmost longest added token in text[from, end), valid UTF-8 where `from` is the text's start or the end of the
 * match before. False if there is none. */
bool nb_added_tokens_find(const struct nb_added_tokens *set, const char *text, size_t from, size_t end,
                          struct nb_added_match *match);

void nb_added_tokens_free(struct nb_added_tokens *set);

#endif
