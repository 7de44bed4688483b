#include "text/added_tokens.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

nb_status nb_added_tokens_add(struct nb_added_tokens *set, struct nb_added_token token)
{
    if (set->count == set->capacity) {
        size_t capacity = set->capacity ? set->capacity * 2 : 64;
        struct nb_added_token *tokens = realloc(set->tokens, capacity * sizeof *tokens);
        if (!tokens)
            return nb_fail(NB_MEMORY, "no memory for %zu added tokens", capacity);
        set->tokens = tokens;
        set->capacity = capacity;
    }
    set->tokens[set->count++] = token;
    return NB_OK;
}

void nb_added_tokens_free(struct nb_added_tokens *set)
{
    free(set->tokens);
    *set = (struct nb_added_tokens){0};
}

static int compare_texts(const void *left, const void *right)
{
    const struct nb_added_token *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->bytes < b->bytes ? a->bytes : b->bytes);
    if (order == 0)
        order = (a->bytes > b->bytes) - (a->bytes < b->bytes);
    /* Ids ascend in the files, so that of equal texts the first comes first. */
    return order != 0 ? order : (a->id > b->id) - (a->id < b->id);
}

void nb_added_tokens_finish(struct nb_added_tokens *set)
{
    if (set->count > 0)
        qsort(set->tokens, set->count, sizeof *set->tokens, compare_texts);
    size_t kept = 0;
    for (size_t i = 0; i < set->count; i++) {
        const struct nb_added_token *last = kept > 0 ? &set->tokens[kept - 1] : NULL;
        if (!last || last->bytes != set->tokens[i].bytes || memcmp(last->text, set->tokens[i].text, last->bytes) != 0)
            set->tokens[kept++] = set->tokens[i];
    }
    set->count = kept;
    size_t at = 0;
    for (unsigned byte = 0; byte < 257; byte++) {
        while (at < kept && (unsigned char)set->tokens[at].text[0] < byte)
            at++;
        set->first[byte] = (uint32_t)at;
    }
}

/* The first of the tokens [low, high), all alike up to `place` and longer than it, whose byte there is not below
 * `byte`. */
static uint32_t lower_bound(
    const struct nb_added_tokens *set, uint32_t low, uint32_t high, uint32_t place, unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((unsigned char)set->tokens[middle].text[place] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token that text[at, end) begins with, or NULL: the range of candidates narrows byte by byte. */
static const struct nb_added_token *longest_at(
    const struct nb_added_tokens *set, const char *text, size_t at, size_t end)
{
    unsigned char lead = (unsigned char)text[at];
    uint32_t low = set->first[lead], high = set->first[lead + 1];
    const struct nb_added_token *longest = NULL;
    for (uint32_t place = 1; low < high; place++) {
        if (set->tokens[low].bytes == place)
            longest = &set->tokens[low++];
        if (at + place >= end)
            break;
        unsigned byte = (unsigned char)text[at + place];
        low = lower_bound(set, low, high, place, byte);
        high = lower_bound(set, low, high, place, byte + 1);
    }
    return longest;
}

/* The code point that ends at `at`. */
static uint32_t character_before(const char *text, size_t at, size_t *bytes)
{
    size_t start = at - 1;
    while (((unsigned char)text[start] & 0xc0) == 0x80)
        start--;
    return nb_utf8_decode(text + start, bytes);
}

/* What \w matches: letters, marks, digits, connectors. */
static bool is_word_character(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

bool nb_added_tokens_find(const struct nb_added_tokens *set, const char *text, size_t from, size_t end,
                          struct nb_added_match *match)
{
    if (set->count == 0)
        return false;
    for (size_t at = from; at < end; at++) {
        unsigned char lead = (unsigned char)text[at];
        if (set->first[lead] == set->first[lead + 1])
            continue;
        const struct nb_added_token *token = longest_at(set, text, at, end);
        if (!token)
            continue;
        size_t begin = at, stop = at + token->bytes, length;
        if (token->single_word && ((begin > from && is_word_character(character_before(text, begin, &length))) ||
                                   (stop < end && is_word_character(nb_utf8_decode(text + stop, &length))))) {
            at = stop - 1;
            continue;
        }
        while (token->strip_left && begin > from && nb_utf8_is_space(character_before(text, begin, &length)))
            begin -= length;
        while (token->strip_right && stop < end && nb_utf8_is_space(nb_utf8_decode(text + stop, &length)))
            stop += length;
        *match = (struct nb_added_match){begin, stop, token->id};
        return true;
    }
    return false;
}
