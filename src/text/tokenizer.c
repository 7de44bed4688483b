#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "text/bpe.h"
#include "text/normalize.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

/* Words are few and come again: their tokens are kept in a table of 64-byte entries, one place for each hash. A few
 * words alone do not pay for the table. */
enum { CACHED_WORDS = 16384, CACHED_BYTES = 22, CACHED_TOKENS = 8, UNCACHED_WORDS = 64 };

struct cached_word {
    uint8_t bytes, count;
    char text[CACHED_BYTES];
    uint8_t end[CACHED_TOKENS];
    int32_t id[CACHED_TOKENS];
};

struct nb_encode_work {
    const struct nb_tokenizer *tokenizer;
    struct nb_split_work split;
    struct nb_bpe_work bpe;
    struct nb_normalized normalized;
    struct cached_word *cache; /* NULL at first */
    uint32_t words;            /* encoded without it */
};

nb_status nb_tokenizer_create(struct nb_tokenizer **tokenizer)
{
    struct nb_tokenizer *created = calloc(1, sizeof *created);
    *tokenizer = created;
    if (!created)
        return nb_fail(NB_MEMORY, "no memory for a tokenizer");
    created->model_unk = created->bos = created->eos = created->pad = created->unk = -1;
    return NB_OK;
}

void nb_tokenizer_destroy(struct nb_tokenizer **tokenizer)
{
    struct nb_tokenizer *t = *tokenizer;
    if (!t)
        return;
    nb_vocabulary_free(&t->vocabulary);
    nb_pretokenizer_free(&t->pretokenizer);
    nb_added_tokens_free(&t->added);
    nb_added_tokens_free(&t->added_normalized);
    free(t->chat_template);
    free(t);
    *tokenizer = NULL;
}

nb_status nb_tokenizer_add_token(
    struct nb_tokenizer *tokenizer, int32_t id, const struct nb_added_token *how, bool normalized)
{
    struct nb_added_token token = *how;
    token.id = id;
    tokenizer->vocabulary.tokens[id].flags |= NB_TOKEN_ADDED;
    return nb_added_tokens_add(normalized ? &tokenizer->added_normalized : &tokenizer->added, token);
}

static void point_at_texts(const struct nb_vocabulary *vocabulary, struct nb_added_tokens *set)
{
    for (size_t i = 0; i < set->count; i++) {
        const struct nb_vocabulary_token *token = &vocabulary->tokens[set->tokens[i].id];
        set->tokens[i].text = vocabulary->pool + token->offset;
        set->tokens[i].bytes = token->bytes;
    }
    nb_added_tokens_finish(set);
}

void nb_tokenizer_finish(struct nb_tokenizer *tokenizer)
{
    nb_vocabulary_finish(&tokenizer->vocabulary);
    point_at_texts(&tokenizer->vocabulary, &tokenizer->added);
    point_at_texts(&tokenizer->vocabulary, &tokenizer->added_normalized);
    nb_tokenizer_mark_stop(tokenizer, tokenizer->eos);
}

void nb_tokenizer_mark_stop(struct nb_tokenizer *tokenizer, int64_t id)
{
    if (id >= 0 && id < tokenizer->vocabulary.count)
        tokenizer->vocabulary.tokens[id].flags |= NB_TOKEN_STOP;
}

void nb_token_list_free(struct nb_token_list *list)
{
    if (list->work) {
        nb_split_work_free(&list->work->split);
        nb_bpe_work_free(&list->work->bpe);
        nb_normalized_free(&list->work->normalized);
        free(list->work->cache);
        free(list->work);
    }
    free(list->tokens);
    *list = (struct nb_token_list){0};
}

uint64_t nb_token_list_operations(const struct nb_token_list *list)
{
    return list->work ? list->work->bpe.operations : 0;
}

/* Keeps the tokens from `first` on as those of the word, if they fit and cover it without a gap. */
static void remember(struct cached_word *entry, const struct nb_token_list *list, size_t first, const char *text,
    size_t begin, size_t end)
{
    size_t count = list->count - first, at = begin;
    if (count == 0 || count > CACHED_TOKENS)
        return;
    for (size_t i = first; i < list->count; at = list->tokens[i++].end)
        if (list->tokens[i].begin != at)
            return;
    if (at != end)
        return;
    entry->bytes = (uint8_t)(end - begin);
    entry->count = (uint8_t)count;
    memcpy(entry->text, text + begin, end - begin);
    for (size_t i = 0; i < count; i++) {
        entry->id[i] = list->tokens[first + i].id;
        entry->end[i] = (uint8_t)(list->tokens[first + i].end - begin);
    }
}

/* The place of a word in the table, or NULL: it is too long, or there is no table. */
static struct cached_word *find_cached(struct nb_encode_work *work, const char *word, size_t bytes)
{
    if (!work->cache) {
        /* Without memory for it, every word is merged anew. */
        if (work->words++ == UNCACHED_WORDS)
            work->cache = calloc(CACHED_WORDS, sizeof *work->cache);
        if (!work->cache)
            return NULL;
    }
    return bytes <= CACHED_BYTES ? &work->cache[nb_bytes_hash(word, bytes) % CACHED_WORDS] : NULL;
}

static nb_status encode_word(void *user, const char *text, size_t begin, size_t end)
{
    struct nb_token_list *list = user;
    struct nb_encode_work *work = list->work;
    const struct nb_tokenizer *t = work->tokenizer;
    struct cached_word *entry = find_cached(work, text + begin, end - begin);
    if (entry && entry->bytes == end - begin && memcmp(entry->text, text + begin, end - begin) == 0) {
        size_t from = begin;
        for (int i = 0; i < entry->count; i++) {
            NB_TRY(nb_token_list_add(list, entry->id[i], from, begin + entry->end[i]));
            from = begin + entry->end[i];
        }
        return NB_OK;
    }
    struct nb_bpe_rules rules = {&t->vocabulary, t->whole_words, t->model_unk};
    size_t first = list->count;
    NB_TRY(nb_bpe_word(&rules, &work->bpe, text, begin, end, list));
    if (entry)
        remember(entry, list, first, text, begin, end);
    return NB_OK;
}

/* Added tokens of the normalized kind, and the words between them. */
static nb_status encode_normalized(const char *text, size_t begin, size_t end, struct nb_token_list *list)
{
    const struct nb_tokenizer *t = list->work->tokenizer;
    const struct nb_piece_sink sink = {encode_word, list};
    struct nb_added_match match;
    while (nb_added_tokens_find(&t->added_normalized, text, begin, end, &match)) {
        NB_TRY(nb_pretokenizer_split(&t->pretokenizer, &list->work->split, text, begin, match.begin, &sink));
        NB_TRY(nb_token_list_add(list, match.id, match.begin, match.end));
        begin = match.end;
    }
    return nb_pretokenizer_split(&t->pretokenizer, &list->work->split, text, begin, end, &sink);
}

/* The text between two added tokens. */
static nb_status encode_stretch(const char *text, size_t begin, size_t end, struct nb_token_list *list)
{
    if (begin == end)
        return NB_OK;
    if (!list->work->tokenizer->nfc)
        return encode_normalized(text, begin, end, list);
    struct nb_normalized *normalized = &list->work->normalized;
    NB_TRY(nb_normalize_nfc(text + begin, end - begin, normalized));
    if (!normalized->changed)
        return encode_normalized(text, begin, end, list);
    if (normalized->bytes > UINT32_MAX)
        return nb_fail(NB_USAGE, "a text of 4 GiB or more");
    size_t first = list->count;
    NB_TRY(encode_normalized(normalized->text, 0, normalized->bytes, list));
    for (size_t i = first; i < list->count; i++) {
        struct nb_token *token = &list->tokens[i];
        uint32_t last = token->end > token->begin ? token->end - 1 : token->begin;
        token->begin = (uint32_t)begin + normalized->begin[token->begin];
        token->end = (uint32_t)begin + normalized->end[last];
    }
    return NB_OK;
}

static nb_status prepare(const struct nb_tokenizer *tokenizer, struct nb_token_list *list)
{
    if (!list->work) {
        list->work = calloc(1, sizeof *list->work);
        if (!list->work)
            return nb_fail(NB_MEMORY, "no memory for tokenizing");
    }
    if (list->work->tokenizer != tokenizer) {
        list->work->tokenizer = tokenizer;
        free(list->work->cache);
        list->work->cache = NULL;
        list->work->words = 0;
    }
    list->count = 0;
    return NB_OK;
}

nb_status nb_tokenizer_encode(
    const struct nb_tokenizer *tokenizer, const char *text, size_t bytes, struct nb_token_list *list)
{
    NB_TRY(prepare(tokenizer, list));
    if (bytes >= UINT32_MAX)
        return nb_fail(NB_USAGE, "a text of 4 GiB or more cannot be tokenized in one piece");
    size_t valid = nb_utf8_valid_prefix(text, bytes);
    if (valid < bytes)
        return nb_fail(NB_FORMAT,
            "the text is not UTF-8: byte 0x%02x at offset %zu; convert it, with iconv for example",
            (unsigned char)text[valid], valid);
    size_t begin = 0;
    struct nb_added_match match;
    while (nb_added_tokens_find(&tokenizer->added, text, begin, bytes, &match)) {
        NB_TRY(encode_stretch(text, begin, match.begin, list));
        NB_TRY(nb_token_list_add(list, match.id, match.begin, match.end));
        begin = match.end;
    }
    return encode_stretch(text, begin, bytes, list);
}

static uint32_t flags_of(const struct nb_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->vocabulary.count ? tokenizer->vocabulary.tokens[id].flags : 0;
}

const char *nb_tokenizer_decode_token(const struct nb_tokenizer *tokenizer, int32_t id, size_t *bytes)
{
    *bytes = 0;
    if (!(flags_of(tokenizer, id) & NB_TOKEN_PRESENT))
        return NULL;
    *bytes = tokenizer->vocabulary.tokens[id].bytes;
    return tokenizer->vocabulary.pool + tokenizer->vocabulary.tokens[id].offset;
}

nb_status nb_tokenizer_decode(const struct nb_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                              char **text, size_t *bytes)
{
    struct nb_stream_decoder decoder = {0};
    size_t written = 0, capacity = NB_STREAM_DECODER_BYTES(4 * count);
    char *out = malloc(capacity + 1);
    nb_status status = out ? NB_OK : nb_fail(NB_MEMORY, "no memory to decode %zu tokens", count);
    for (size_t i = 0; status == NB_OK && i < count; i++) {
        size_t length;
        const char *data = nb_tokenizer_decode_token(tokenizer, ids[i], &length);
        if (!data) {
            status = nb_fail(NB_USAGE, "token id %d (number %zu of the list) is not in the vocabulary of %d tokens",
                ids[i], i, tokenizer->vocabulary.count);
            break;
        }
        if (skip_special && nb_tokenizer_is_special(tokenizer, ids[i]))
            continue;
        size_t need = written + NB_STREAM_DECODER_BYTES(length) + NB_STREAM_DECODER_BYTES(0);
        if (need > capacity) {
            char *larger = realloc(out, need * 2 + 1);
            if (!larger) {
                status = nb_fail(NB_MEMORY, "no memory to decode %zu tokens", count);
                break;
            }
            out = larger;
            capacity = need * 2;
        }
        written += nb_stream_decoder_put(&decoder, data, length, out + written);
    }
    if (status != NB_OK) {
        free(out);
        return status;
    }
    written += nb_stream_decoder_finish(&decoder, out + written);
    out[written] = 0;
    *text = out;
    *bytes = written;
    return NB_OK;
}

int32_t nb_tokenizer_find(const struct nb_tokenizer *tokenizer, const char *text, size_t bytes)
{
    return nb_vocabulary_find(&tokenizer->vocabulary, text, bytes);
}

int32_t nb_tokenizer_vocabulary(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->vocabulary.count;
}

int32_t nb_tokenizer_bos(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t nb_tokenizer_eos(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

int32_t nb_tokenizer_pad(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->pad;
}

int32_t nb_tokenizer_unk(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->unk;
}

bool nb_tokenizer_adds_bos(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->adds_bos && tokenizer->bos >= 0;
}

bool nb_tokenizer_is_special(const struct nb_tokenizer *tokenizer, int32_t id)
{
    return flags_of(tokenizer, id) & NB_TOKEN_SPECIAL;
}

bool nb_tokenizer_is_stop(const struct nb_tokenizer *tokenizer, int32_t id)
{
    return flags_of(tokenizer, id) & NB_TOKEN_STOP;
}

const char *nb_tokenizer_chat_template(const struct nb_tokenizer *tokenizer)
{
    return tokenizer->chat_template;
}
