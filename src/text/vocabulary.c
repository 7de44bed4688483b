#include "text/vocabulary.h"

#include <stdlib.h>
#include <string.h>

#include "text/utf8.h"

/* The least power of two that leaves a table of `count` entries at most half full. */
static uint32_t table_size(size_t count)
{
    uint32_t size = 16;
    while (size < 2 * count)
        size *= 2;
    return size;
}

nb_status nb_vocabulary_start(struct nb_vocabulary *vocabulary, size_t tokens, size_t merges)
{
    *vocabulary = (struct nb_vocabulary){0};
    if (tokens > NB_VOCABULARY_MAX || merges > NB_VOCABULARY_MAX)
        return nb_fail(NB_UNSUPPORTED, "a vocabulary of %zu tokens and %zu merges: more than the %d that are supported",
            tokens, merges, NB_VOCABULARY_MAX);
    vocabulary->capacity = (int32_t)tokens + NB_VOCABULARY_GAP_MAX;
    vocabulary->slot_count = table_size(tokens);
    vocabulary->merge_slots = table_size(merges);
    vocabulary->tokens = calloc((size_t)vocabulary->capacity, sizeof *vocabulary->tokens);
    vocabulary->slots = malloc(vocabulary->slot_count * sizeof *vocabulary->slots);
    vocabulary->merges = malloc(vocabulary->merge_slots * sizeof *vocabulary->merges);
    if (!vocabulary->tokens || !vocabulary->slots || !vocabulary->merges)
        return nb_fail(NB_MEMORY, "no memory for a vocabulary of %zu tokens", tokens);
    memset(vocabulary->slots, 0xff, vocabulary->slot_count * sizeof *vocabulary->slots);
    memset(vocabulary->merges, 0xff, vocabulary->merge_slots * sizeof *vocabulary->merges);
    memset(vocabulary->byte_id, 0xff, sizeof vocabulary->byte_id);
    return NB_OK;
}

void nb_vocabulary_free(struct nb_vocabulary *vocabulary)
{
    free(vocabulary->pool);
    free(vocabulary->tokens);
    free(vocabulary->slots);
    free(vocabulary->merges);
    *vocabulary = (struct nb_vocabulary){0};
}

/* The byte that a character of GPT-2's alphabet stands for, or -1. Printable Latin-1 characters stand for themselves;
 * the 68 other bytes, in ascending order, for U+0100 onwards. Source: openai/gpt-2, src/encoder.py, bytes_to_unicode. */
static int byte_of_character(uint32_t c)
{
    if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255))
        return (int)c;
    if (c < 256 || c >= 256 + 68)
        return -1;
    uint32_t n = c - 256;
    return (int)(n < 33 ? n : n < 67 ? 127 + n - 33 : 173);
}

/* Writes the bytes that a text in the byte alphabet stands for to out (never longer than the text) and returns their
 * number, or SIZE_MAX if a character is not in the alphabet or the text is not UTF-8. */
static size_t bytes_of_text(const char *text, size_t bytes, char *out)
{
    size_t written = 0;
    if (nb_utf8_valid_prefix(text, bytes) < bytes)
        return SIZE_MAX;
    for (size_t i = 0; i < bytes;) {
        size_t length;
        int byte = byte_of_character(nb_utf8_decode(text + i, &length));
        if (byte < 0)
            return SIZE_MAX;
        out[written++] = (char)byte;
        i += length;
    }
    return written;
}

static bool token_is(const struct nb_vocabulary *vocabulary, int32_t id, const char *text, size_t bytes)
{
    const struct nb_vocabulary_token *token = &vocabulary->tokens[id];
    return token->bytes == bytes && memcmp(vocabulary->pool + token->offset, text, bytes) == 0;
}

/* The slot of these bytes: theirs, or the free one where they would go. */
static uint32_t find_slot(const struct nb_vocabulary *vocabulary, const char *text, size_t bytes)
{
    uint32_t mask = vocabulary->slot_count - 1, slot = (uint32_t)nb_bytes_hash(text, bytes) & mask;
    while (vocabulary->slots[slot] >= 0 && !token_is(vocabulary, vocabulary->slots[slot], text, bytes))
        slot = (slot + 1) & mask;
    return slot;
}

static nb_status reserve(struct nb_vocabulary *vocabulary, size_t bytes)
{
    size_t need = vocabulary->pool_bytes + bytes;
    if (need > UINT32_MAX)
        return nb_fail(NB_FORMAT, "the vocabulary's texts are longer than 4 GiB together");
    if (need <= vocabulary->pool_capacity)
        return NB_OK;
    size_t capacity = need + need / 2 + 4096;
    char *pool = realloc(vocabulary->pool, capacity);
    if (!pool)
        return nb_fail(NB_MEMORY, "no memory for a vocabulary's texts");
    vocabulary->pool = pool;
    vocabulary->pool_capacity = capacity;
    return NB_OK;
}

nb_status nb_vocabulary_set(struct nb_vocabulary *vocabulary, int64_t id, const char *text, size_t bytes, bool raw,
                            uint32_t flags)
{
    if (id < 0 || id >= vocabulary->capacity)
        return nb_fail(NB_FORMAT, "the id %lld of token \"%.*s\" is out of range", (long long)id,
            (int)(bytes < 80 ? bytes : 80), text);
    if (bytes == 0)
        return nb_fail(NB_FORMAT, "the token of id %lld is empty", (long long)id);
    /* Added tokens are found byte by byte in a valid text, whose parts between them are taken for valid too. */
    if (raw && nb_utf8_valid_prefix(text, bytes) < bytes)
        return nb_fail(NB_FORMAT, "added token %lld is not UTF-8", (long long)id);
    NB_TRY(reserve(vocabulary, bytes));
    char *place = vocabulary->pool + vocabulary->pool_bytes;
    size_t length = raw ? SIZE_MAX : bytes_of_text(text, bytes, place);
    bool in_alphabet = length != SIZE_MAX;
    if (!in_alphabet) {
        memcpy(place, text, bytes);
        length = bytes;
    }
    struct nb_vocabulary_token *token = &vocabulary->tokens[id];
    if (token->flags & NB_TOKEN_PRESENT && (!raw || token_is(vocabulary, (int32_t)id, place, length))) {
        if (!token_is(vocabulary, (int32_t)id, place, length))
            return nb_fail(NB_FORMAT, "id %lld has two texts: \"%.*s\" and \"%.*s\"", (long long)id,
                           (int)(token->bytes < 80 ? token->bytes : 80), vocabulary->pool + token->offset,
                           (int)(bytes < 80 ? bytes : 80), text);
        token->flags |= flags;
        return NB_OK;
    }
    uint32_t slot = find_slot(vocabulary, place, length);
    if (vocabulary->slots[slot] < 0) {
        if (vocabulary->slots_used + 1 >= vocabulary->slot_count)
            return nb_fail(NB_FORMAT, "more tokens than the vocabulary says");
        vocabulary->slots[slot] = (int32_t)id;
        vocabulary->slots_used++;
    } else if (in_alphabet && (vocabulary->tokens[vocabulary->slots[slot]].flags & NB_TOKEN_LITERAL)) {
        vocabulary->slots[slot] = (int32_t)id; /* these bytes are the word that merges can reach; the literal is not */
    } else if (in_alphabet && !(flags & NB_TOKEN_ADDED)) {
        return nb_fail(NB_FORMAT, "token \"%.*s\" has two ids: %d and %lld", (int)(bytes < 80 ? bytes : 80), text,
                       vocabulary->slots[slot], (long long)id);
    }
    flags |= token->flags | NB_TOKEN_PRESENT | (in_alphabet ? 0 : NB_TOKEN_LITERAL);
    *token = (struct nb_vocabulary_token){(uint32_t)vocabulary->pool_bytes, (uint32_t)length, flags};
    vocabulary->pool_bytes += length;
    if (id >= vocabulary->count)
        vocabulary->count = (int32_t)id + 1;
    return NB_OK;
}

int32_t nb_vocabulary_find(const struct nb_vocabulary *vocabulary, const char *text, size_t bytes)
{
    return vocabulary->slots[find_slot(vocabulary, text, bytes)];
}

nb_status nb_vocabulary_merge(struct nb_vocabulary *vocabulary, const char *left, size_t left_bytes, const char *right,
                              size_t right_bytes)
{
    NB_TRY(reserve(vocabulary, left_bytes + right_bytes));
    char *place = vocabulary->pool + vocabulary->pool_bytes; /* used as scratch: nothing is kept */
    size_t first = bytes_of_text(left, left_bytes, place);
    size_t second = first == SIZE_MAX ? SIZE_MAX : bytes_of_text(right, right_bytes, place + first);
    int32_t left_id = -1, right_id = -1, id = -1;
    if (second != SIZE_MAX && first > 0 && second > 0) {
        left_id = nb_vocabulary_find(vocabulary, place, first);
        right_id = nb_vocabulary_find(vocabulary, place + first, second);
        id = nb_vocabulary_find(vocabulary, place, first + second);
    }
    if (left_id < 0 || right_id < 0 || id < 0)
        return nb_fail(NB_FORMAT, "merge %u (\"%.*s\" with \"%.*s\") names a token that the vocabulary lacks",
                       vocabulary->merge_count, (int)(left_bytes < 80 ? left_bytes : 80), left,
                       (int)(right_bytes < 80 ? right_bytes : 80), right);
    uint64_t pair = (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id;
    uint32_t mask = vocabulary->merge_slots - 1, slot = (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32) & mask;
    while (vocabulary->merges[slot].id >= 0 && vocabulary->merges[slot].pair != pair)
        slot = (slot + 1) & mask;
    if (vocabulary->merge_count + 1 >= vocabulary->merge_slots)
        return nb_fail(NB_FORMAT, "more merges than the file says");
    /* A pair that is listed twice keeps its last rank, as in a map that is filled in order. */
    vocabulary->merges[slot] = (struct nb_merge){pair, vocabulary->merge_count++, id};
    return NB_OK;
}

void nb_vocabulary_finish(struct nb_vocabulary *vocabulary)
{
    for (int byte = 0; byte < 256; byte++) {
        char text = (char)byte;
        vocabulary->byte_id[byte] = nb_vocabulary_find(vocabulary, &text, 1);
    }
}
