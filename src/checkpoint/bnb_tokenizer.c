/* A tokenizer.json, as Hugging Face's tokenizers library reads it, from a GGUF's byte-level BPE. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "checkpoint/bnb_folder.h"
#include "checkpoint/gguf.h"

/* tokenizer.ggml.token_type */
enum { TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4 };

#define BYTE_LEVEL(use_regex) \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": " use_regex "}"
#define DIGITS(then) \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, " then "]}"
#define SPLIT(numbers)                                                                               \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" numbers                  \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"           \
    "\"}, \"behavior\": \"Isolated\", \"invert\": false}, " BYTE_LEVEL("false") "]}"

/* How each pre-tokenizer that llama.cpp names stands in its models' own tokenizer.json. */
static const struct pretokenizer {
    const char *name, *json, *normalizer;
    bool ignore_merges, adds_bos;
} pretokenizers[] = {
    {"gpt-2", BYTE_LEVEL("true"), "null", false, false},
    {"gpt2", BYTE_LEVEL("true"), "null", false, false},
    {"smollm", DIGITS(BYTE_LEVEL("true")), "null", false, false},
    {"llama-bpe", SPLIT("\\\\p{N}{1,3}"), "null", true, true},
    {"llama3", SPLIT("\\\\p{N}{1,3}"), "null", true, true},
    {"llama-v3", SPLIT("\\\\p{N}{1,3}"), "null", true, true},
    {"qwen2", SPLIT("\\\\p{N}"), "{\"type\": \"NFC\"}", false, false},
};

struct source {
    const struct nb_gguf *gguf;
    const char *path;
    const struct pretokenizer *pretokenizer;
    const struct nb_gguf_text *tokens;
    size_t count;
    bool adds_bos;
};

static const struct pretokenizer *find_pretokenizer(const struct nb_gguf *gguf)
{
    for (size_t i = 0; i < sizeof pretokenizers / sizeof pretokenizers[0]; i++)
        if (nb_gguf_string_is(gguf, "tokenizer.ggml.pre", pretokenizers[i].name))
            return &pretokenizers[i];
    return NULL;
}

/* The token of an id that a key names, or NULL. */
static const struct nb_gguf_text *token_of(const struct source *s, const char *key, int64_t *id)
{
    return nb_gguf_integer(s->gguf, key, id) && *id >= 0 && (uint64_t)*id < s->count ? &s->tokens[*id] : NULL;
}

static nb_status add_vocab(const struct source *s, json_t *model)
{
    json_t *vocab = json_object();
    json_object_set_new(model, "vocab", vocab);
    for (size_t i = 0; i < s->count; i++)
        if (json_object_setn_new(vocab, s->tokens[i].text, s->tokens[i].bytes, json_integer((json_int_t)i)) != 0)
            return nb_fail(NB_FORMAT, "%s: tokenizer.ggml.tokens: token %zu is not UTF-8", s->path, i);
    return NB_OK;
}

static nb_status add_merges(const struct source *s, json_t *model)
{
    const struct nb_gguf_text *merges;
    size_t count;
    json_t *list = json_array();
    json_object_set_new(model, "merges", list);
    if (!nb_gguf_strings(s->gguf, "tokenizer.ggml.merges", &merges, &count))
        return nb_fail(NB_FORMAT, "%s: tokenizer.ggml.merges is missing or not a list of texts", s->path);
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(list, json_stringn(merges[i].text, merges[i].bytes)) != 0)
            return nb_fail(NB_FORMAT, "%s: tokenizer.ggml.merges: merge %zu is not UTF-8", s->path, i);
    return NB_OK;
}

static nb_status add_model(const struct source *s, json_t *root)
{
    json_t *model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b}", "type", "BPE", "dropout", "unk_token",
        "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges",
        (int)s->pretokenizer->ignore_merges);
    json_object_set_new(root, "model", model);
    NB_TRY(add_vocab(s, model));
    return add_merges(s, model);
}

static void add_added_tokens(const struct source *s, json_t *root)
{
    json_t *list = json_array();
    json_object_set_new(root, "added_tokens", list);
    for (size_t i = 0; i < s->count; i++) {
        int64_t type = 0;
        nb_gguf_array_integer(s->gguf, "tokenizer.ggml.token_type", i, &type);
        if (type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED)
            continue;
        json_t *entry = json_pack("{s:I, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i, "content",
            json_stringn(s->tokens[i].text, s->tokens[i].bytes), "single_word", 0, "lstrip", 0, "rstrip", 0,
            "normalized", 0, "special", type == TOKEN_CONTROL);
        json_array_append_new(list, entry);
    }
}

/* The beginning-of-text token, where the model wants one, is put there by a template. */
static json_t *post_processor(const struct source *s)
{
    json_t *bytes = json_pack(
        "{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 0, "use_regex", 1);
    int64_t id;
    const struct nb_gguf_text *bos = token_of(s, "tokenizer.ggml.bos_token_id", &id);
    if (!s->adds_bos || !bos)
        return bytes;
    json_t *name = json_stringn(bos->text, bos->bytes), *special = json_object();
    json_object_setn_new(special, bos->text, bos->bytes,
        json_pack("{s:O, s:[I], s:[O]}", "id", name, "ids", (json_int_t)id, "tokens", name));
    json_t *template = json_pack("{s:s, s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}], s:[{s:{s:O, s:i}}, {s:{s:s, s:i}}, "
                                 "{s:{s:O, s:i}}, {s:{s:s, s:i}}], s:o}",
        "type", "TemplateProcessing", "single", "SpecialToken", "id", name, "type_id", 0, "Sequence", "id", "A",
        "type_id", 0, "pair", "SpecialToken", "id", name, "type_id", 0, "Sequence", "id", "A", "type_id", 0,
        "SpecialToken", "id", name, "type_id", 1, "Sequence", "id", "B", "type_id", 1, "special_tokens", special);
    json_decref(name);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "processors", bytes, template);
}

static nb_status write_json(
    const struct source *s, const json_t *root, const char *folder, const char *name, size_t flags)
{
    char *text = json_dumps(root, flags), *path = nb_path_join(folder, name);
    nb_status status =
        text ? nb_file_write(path, text, strlen(text)) : nb_fail(NB_MEMORY, "%s: no memory to write %s", s->path, name);
    free(text);
    free(path);
    return status;
}

static nb_status write_tokenizer(const struct source *s, const char *folder)
{
    json_t *root = json_pack("{s:s, s:n, s:n}", "version", "1.0", "truncation", "padding");
    add_added_tokens(s, root);
    json_object_set_new(root, "normalizer", json_loads(s->pretokenizer->normalizer, JSON_DECODE_ANY, NULL));
    json_object_set_new(root, "pre_tokenizer", json_loads(s->pretokenizer->json, 0, NULL));
    json_object_set_new(root, "post_processor", post_processor(s));
    json_object_set_new(root, "decoder",
        json_pack(
            "{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1));
    nb_status status = add_model(s, root);
    if (status == NB_OK)
        status = write_json(s, root, folder, "tokenizer.json", JSON_INDENT(1));
    json_decref(root);
    return status;
}

static nb_status write_tokenizer_config(const struct source *s, const char *folder)
{
    static const char *const names[][2] = {
        {"bos_token", "tokenizer.ggml.bos_token_id"},
        {"eos_token", "tokenizer.ggml.eos_token_id"},
        {"pad_token", "tokenizer.ggml.padding_token_id"},
        {"unk_token", "tokenizer.ggml.unknown_token_id"},
    };
    struct nb_gguf_text template;
    int64_t id;
    json_t *root = json_pack("{s:b, s:b, s:s}", "add_bos_token", (int)s->adds_bos, "clean_up_tokenization_spaces", 0,
        "tokenizer_class", "PreTrainedTokenizerFast");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct nb_gguf_text *token = token_of(s, names[i][1], &id);
        if (token)
            json_object_set_new(root, names[i][0], json_stringn(token->text, token->bytes));
    }
    nb_status status = NB_OK;
    if (nb_gguf_string(s->gguf, "tokenizer.chat_template", &template) &&
        json_object_set_new(root, "chat_template", json_stringn(template.text, template.bytes)) != 0)
        status = nb_fail(NB_FORMAT, "%s: tokenizer.chat_template is not UTF-8", s->path);
    if (status == NB_OK)
        status = write_json(s, root, folder, "tokenizer_config.json", JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(root);
    return status;
}

nb_status nb_bnb_write_tokenizer(const struct nb_gguf *gguf, const char *folder)
{
    struct source s = {.gguf = gguf, .path = nb_gguf_path(gguf), .pretokenizer = find_pretokenizer(gguf)};
    bool tokens = nb_gguf_strings(gguf, "tokenizer.ggml.tokens", &s.tokens, &s.count);
    if (!tokens || !s.pretokenizer || !nb_gguf_string_is(gguf, "tokenizer.ggml.model", "gpt2")) {
        nb_warn("%s: its tokenizer is not one of the byte-level BPE kinds known here, so no tokenizer.json is written. "
                "Copy the original model's tokenizer files beside the quantized weights.",
            s.path);
        return NB_OK;
    }
    s.adds_bos = s.pretokenizer->adds_bos;
    nb_gguf_boolean(gguf, "tokenizer.ggml.add_bos_token", &s.adds_bos);
    NB_TRY(write_tokenizer(&s, folder));
    return write_tokenizer_config(&s, folder);
}
