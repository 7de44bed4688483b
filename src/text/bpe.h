/* Merging the bytes of one word. */
#ifndef NB_TEXT_BPE_H
#define NB_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

struct nb_bpe_symbol {
    int32_t id;
    uint32_t begin, end;
    uint32_t previous, next; /* indices; UINT32_MAX at the ends */
    uint32_t rank;           /* of the merge with the next symbol, or NB_NO_RANK */
};

/* Start with {0}; free with nb_bpe_work_free. */
struct nb_bpe_work {
    struct nb_bpe_symbol *symbols;
    size_t capacity;
    uint64_t *queue; /* binary heap of rank << 32 | symbol */
    size_t queue_count, queue_capacity;
    uint64_t operations;
};

/* How words become tokens. */
struct nb_bpe_rules {
    const struct nb_vocabulary *vocabulary;
    bool whole_words; /* a word that is a token is that token, whatever the merges say */
    int32_t unk;      /* for a byte without a token; -1: such bytes are left out */
};

/* Appends the tokens of the word text[begin, end) to `list`: its bytes, then always the pair of lowest rank merged
 * first, the leftmost of equals (Sennrich et al. 2016, arXiv 1508.07909, as GPT-2 runs it). O(n log n) in the word's
 * bytes. Errors: NB_MEMORY. */
nb_status nb_bpe_word(const struct nb_bpe_rules *rules, struct nb_bpe_work *work, const char *text, size_t begin,
    size_t end, struct nb_token_list *list);

void nb_bpe_work_free(struct nb_bpe_work *work);

/* Appends one token. Errors: NB_MEMORY. */
nb_status nb_token_list_add(struct nb_token_list *list, int32_t id, size_t begin, size_t end);

#endif
