/* A tokenizer out of a GGUF's metadata. Source of the keys: ggml-org/ggml docs/gguf.md; of the pre-tokenizers' names:
 * the converter in llama.cpp, which files each model's pre-tokenizer under a name. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint/gguf.h"
#include "text/tokenizer_internal.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define AFTER_NUMBERS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The expression in Meta-Llama-3's tokenizer.json: numbers in groups of up to three. */
#define EXPRESSION_LLAMA3 CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" AFTER_NUMBERS

/* The expression in Qwen2's tokenizer.json: numbers digit by digit. */
#define EXPRESSION_QWEN2 CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" AFTER_NUMBERS

static const struct known {
    const char *name, *expression;
    bool digits, nfc, whole_words, adds_bos;
} known[] = {
    {"gpt-2", NB_EXPRESSION_GPT2, false, false, false, false},
    {"gpt2", NB_EXPRESSION_GPT2, false, false, false, false},
    {"smollm", NB_EXPRESSION_GPT2, true, false, false, false},
    {"llama-bpe", EXPRESSION_LLAMA3, false, false, true, true},
    {"llama3", EXPRESSION_LLAMA3, false, false, true, true},
    {"llama-v3", EXPRESSION_LLAMA3, false, false, true, true},
    {"qwen2", EXPRESSION_QWEN2, false, true, false, false},
};

/* tokenizer.ggml.token_type */
enum { TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };

/* Bytes of a text from the file that a message shows. */
enum { SHOWN_BYTES = 80 };

static int shown_bytes(const struct nb_gguf_text *text)
{
    return (int)(text->bytes < SHOWN_BYTES ? text->bytes : SHOWN_BYTES);
}

static const struct known *find_known(const char *name, size_t bytes)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == bytes && memcmp(known[i].name, name, bytes) == 0)
            return &known[i];
    return NULL;
}

static nb_status read_kind(const struct nb_gguf *gguf, const struct known **kind)
{
    struct nb_gguf_text model, pre;
    if (!nb_gguf_string(gguf, "tokenizer.ggml.model", &model))
        return nb_fail(NB_UNSUPPORTED, "the file holds no tokenizer (no tokenizer.ggml.model)");
    if (!nb_gguf_string_is(gguf, "tokenizer.ggml.model", "gpt2"))
        return nb_fail(NB_UNSUPPORTED,
            "tokenizer.ggml.model is \"%.*s\"%s; only byte-level BPE (\"gpt2\") is supported",
            shown_bytes(&model), model.text,
            nb_gguf_string_is(gguf, "tokenizer.ggml.model", "llama") ? ", a SentencePiece model" : "");
    if (!nb_gguf_string(gguf, "tokenizer.ggml.pre", &pre))
        return nb_fail(NB_UNSUPPORTED,
            "tokenizer.ggml.pre is missing: the file does not say how to cut text into words; convert "
            "the model again with a current llama.cpp");
    *kind = find_known(pre.text, pre.bytes);
    if (!*kind)
        return nb_fail(NB_UNSUPPORTED,
            "tokenizer.ggml.pre is \"%.*s\"; supported are gpt-2, smollm, llama-bpe and qwen2",
            shown_bytes(&pre), pre.text);
    return NB_OK;
}

static nb_status read_tokens(const struct nb_gguf *gguf, struct nb_tokenizer *t)
{
    const struct nb_gguf_text *tokens, *merges;
    size_t count, merge_count = 0, type_count = 0;
    if (!nb_gguf_strings(gguf, "tokenizer.ggml.tokens", &tokens, &count) || count == 0)
        return nb_fail(NB_FORMAT, "tokenizer.ggml.tokens is missing or not a list of texts");
    if (!nb_gguf_strings(gguf, "tokenizer.ggml.merges", &merges, &merge_count))
        return nb_fail(NB_FORMAT, "tokenizer.ggml.merges is missing or not a list of texts");
    bool typed = nb_gguf_array_length(gguf, "tokenizer.ggml.token_type", &type_count);
    if (typed && type_count != count)
        return nb_fail(NB_FORMAT, "%zu token types for %zu tokens", type_count, count);
    NB_TRY(nb_vocabulary_start(&t->vocabulary, count, merge_count));
    for (size_t i = 0; i < count; i++) {
        int64_t type = 1;
        if (typed)
            (void)nb_gguf_array_integer(gguf, "tokenizer.ggml.token_type", i, &type);
        bool added = type == TYPE_CONTROL || type == TYPE_USER_DEFINED;
        uint32_t flags = (added ? NB_TOKEN_ADDED : 0) | (type == TYPE_CONTROL ? NB_TOKEN_SPECIAL : 0);
        NB_TRY(nb_vocabulary_set(&t->vocabulary, (int64_t)i, tokens[i].text, tokens[i].bytes, added, flags));
        if (added)
            NB_TRY(nb_tokenizer_add_token(t, (int32_t)i, &(struct nb_added_token){0}, false));
    }
    for (size_t i = 0; i < merge_count; i++) {
        const char *space = memchr(merges[i].text, ' ', merges[i].bytes);
        if (!space)
            return nb_fail(NB_FORMAT, "merge %zu (\"%.*s\") is not two tokens with a space between them", i,
                           shown_bytes(&merges[i]), merges[i].text);
        size_t left = (size_t)(space - merges[i].text);
        NB_TRY(nb_vocabulary_merge(&t->vocabulary, merges[i].text, left, space + 1, merges[i].bytes - left - 1));
    }
    return NB_OK;
}

static int32_t read_id(const struct nb_gguf *gguf, const struct nb_tokenizer *t, const char *key)
{
    int64_t id = -1;
    return nb_gguf_integer(gguf, key, &id) && id >= 0 && id < t->vocabulary.count ? (int32_t)id : -1;
}

static nb_status read_rest(const struct nb_gguf *gguf, const struct known *kind, struct nb_tokenizer *t)
{
    if (kind->digits)
        NB_TRY(nb_pretokenizer_add(&t->pretokenizer, NB_SPLIT_DIGITS, NULL, 0, false));
    NB_TRY(nb_pretokenizer_add(&t->pretokenizer, NB_SPLIT_ISOLATE, kind->expression, strlen(kind->expression), false));
    t->nfc = kind->nfc;
    t->whole_words = kind->whole_words;
    t->adds_bos = kind->adds_bos;
    (void)nb_gguf_boolean(gguf, "tokenizer.ggml.add_bos_token", &t->adds_bos);
    t->bos = read_id(gguf, t, "tokenizer.ggml.bos_token_id");
    t->eos = read_id(gguf, t, "tokenizer.ggml.eos_token_id");
    t->unk = read_id(gguf, t, "tokenizer.ggml.unknown_token_id");
    t->pad = read_id(gguf, t, "tokenizer.ggml.padding_token_id");
    nb_tokenizer_mark_stop(t, read_id(gguf, t, "tokenizer.ggml.eot_token_id"));
    nb_tokenizer_mark_stop(t, read_id(gguf, t, "tokenizer.ggml.eom_token_id"));
    struct nb_gguf_text text;
    if (nb_gguf_string(gguf, "tokenizer.chat_template", &text) && text.bytes > 0) {
        t->chat_template = strndup(text.text, text.bytes);
        if (!t->chat_template)
            return nb_fail(NB_MEMORY, "no memory for the chat template");
    }
    return NB_OK;
}

nb_status nb_tokenizer_open_gguf(const struct nb_gguf *gguf, const char *path, struct nb_tokenizer **tokenizer)
{
    const struct known *kind = NULL;
    NB_TRY(nb_tokenizer_create(tokenizer));
    nb_status status = read_kind(gguf, &kind);
    if (status == NB_OK)
        status = read_tokens(gguf, *tokenizer);
    if (status == NB_OK)
        status = read_rest(gguf, kind, *tokenizer);
    if (status != NB_OK) {
        nb_tokenizer_destroy(tokenizer);
        return nb_fail_within(status, "%s: tokenizer", path);
    }
    nb_tokenizer_finish(*tokenizer);
    return NB_OK;
}
