/* Unicode normalization form C, with the place in the original of every byte. */
#ifndef NB_TEXT_NORMALIZE_H
#define NB_TEXT_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Start with {0}; reused from call to call; free with nb_normalized_free. */
struct nb_normalized {
    const char *text; /* the original unless `changed`; then owned here */
    size_t bytes;
    bool changed;
    char *buffer;
    uint32_t *begin, *end; /* for byte i of `text`: the original bytes [begin[i], end[i]) it came from; only where changed */
    size_t capacity;
};

/* NFC of text[0, bytes), which is valid UTF-8. Source: Unicode Standard Annex 15; utf8proc does the work.
 * Errors: NB_UNSUPPORTED (thousands of combining marks in a row), NB_MEMORY. */
nb_status nb_normalize_nfc(const char *text, size_t bytes, struct nb_normalized *normalized);

void nb_normalized_free(struct nb_normalized *normalized);

#endif
