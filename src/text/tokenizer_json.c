/* A tokenizer out of a Hugging Face folder. Source of the fields: the serialization of huggingface/tokenizers 0.22. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/gguf.h"
#include "text/tokenizer_internal.h"

enum { FILE_BYTES_MAX = 1 << 30, NESTING_MAX = 8 };

static bool is_true(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* Errors: NB_FORMAT naming line and column; the caller adds the file. */
static nb_status parse(const char *json, size_t bytes, size_t flags, json_t **root)
{
    json_error_t error;
    *root = json_loadb(json, bytes, JSON_ALLOW_NUL | flags, &error);
    if (!*root)
        return nb_fail(NB_FORMAT, "line %d, column %d: %s", error.line, error.column, error.text);
    if (json_is_object(*root))
        return NB_OK;
    json_decref(*root);
    *root = NULL;
    return nb_fail(NB_FORMAT, "not a JSON object");
}

static nb_status read_model_kind(const json_t *model)
{
    const char *type = text_of(model, "type");
    const json_t *unk = json_object_get(model, "unk_token");
    if (!json_is_object(model))
        return nb_fail(NB_FORMAT, "no \"model\"");
    if (*type && strcmp(type, "BPE") != 0)
        return nb_fail(NB_UNSUPPORTED, "a %s model%s; only byte-level BPE is supported", type,
                       strcmp(type, "Unigram") == 0 ? " (SentencePiece)" : "");
    if (is_true(model, "byte_fallback"))
        return nb_fail(
            NB_UNSUPPORTED, "a SentencePiece model (BPE with byte_fallback); only byte-level BPE is supported");
    if (*text_of(model, "continuing_subword_prefix") || *text_of(model, "end_of_word_suffix"))
        return nb_fail(
            NB_UNSUPPORTED, "a BPE model with a subword prefix or word suffix; only byte-level BPE is supported");
    if (json_number_value(json_object_get(model, "dropout")) != 0)
        return nb_fail(NB_UNSUPPORTED, "a BPE model with dropout");
    if (json_is_string(unk) && is_true(model, "fuse_unk"))
        return nb_fail(NB_UNSUPPORTED, "a BPE model with fuse_unk");
    return NB_OK;
}

static nb_status read_merge(struct nb_vocabulary *vocabulary, const json_t *merge, size_t index)
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge), *space = memchr(text, ' ', json_string_length(merge));
        if (space)
            return nb_vocabulary_merge(vocabulary, text, (size_t)(space - text), space + 1,
                                       json_string_length(merge) - (size_t)(space - text) - 1);
    } else if (json_array_size(merge) == 2) {
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        if (json_is_string(left) && json_is_string(right))
            return nb_vocabulary_merge(vocabulary, json_string_value(left), json_string_length(left),
                json_string_value(right), json_string_length(right));
    }
    return nb_fail(NB_FORMAT, "merge %zu is neither \"left right\" nor [\"left\", \"right\"]", index);
}

static nb_status read_model(struct nb_tokenizer *t, json_t *model, size_t added_count)
{
    NB_TRY(read_model_kind(model));
    json_t *vocabulary = json_object_get(model, "vocab"), *id, *merges = json_object_get(model, "merges"), *merge;
    const char *text;
    size_t index, bytes;
    void *position;
    if (!json_is_object(vocabulary) || !json_is_array(merges))
        return nb_fail(NB_FORMAT, "the model has no \"vocab\" and \"merges\"");
    NB_TRY(nb_vocabulary_start(&t->vocabulary, json_object_size(vocabulary) + added_count, json_array_size(merges)));
    for (position = json_object_iter(vocabulary); position; position = json_object_iter_next(vocabulary, position)) {
        text = json_object_iter_key(position);
        bytes = json_object_iter_key_len(position);
        id = json_object_iter_value(position);
        if (!json_is_integer(id))
            return nb_fail(NB_FORMAT, "the id of token \"%.80s\" is not a whole number", text);
        NB_TRY(nb_vocabulary_set(&t->vocabulary, json_integer_value(id), text, bytes, false, 0));
    }
    json_array_foreach(merges, index, merge)
        NB_TRY(read_merge(&t->vocabulary, merge, index));
    const json_t *unk = json_object_get(model, "unk_token");
    if (json_is_string(unk))
        t->model_unk = nb_vocabulary_find(&t->vocabulary, json_string_value(unk), json_string_length(unk));
    t->whole_words = is_true(model, "ignore_merges");
    return NB_OK;
}

static nb_status read_added_tokens(struct nb_tokenizer *t, const json_t *list)
{
    size_t index;
    json_t *entry;
    json_array_foreach(list, index, entry) {
        const json_t *id = json_object_get(entry, "id"), *content = json_object_get(entry, "content");
        if (!json_is_integer(id) || !json_is_string(content))
            return nb_fail(NB_FORMAT, "added token %zu has no id or no content", index);
        uint32_t flags = NB_TOKEN_ADDED | (is_true(entry, "special") ? NB_TOKEN_SPECIAL : 0);
        NB_TRY(nb_vocabulary_set(&t->vocabulary, json_integer_value(id), json_string_value(content),
                                 json_string_length(content), true, flags));
        struct nb_added_token how = {.strip_left = is_true(entry, "lstrip"), .strip_right = is_true(entry, "rstrip"),
                                     .single_word = is_true(entry, "single_word")};
        NB_TRY(nb_tokenizer_add_token(t, (int32_t)json_integer_value(id), &how, is_true(entry, "normalized")));
    }
    return NB_OK;
}

static nb_status read_normalizer(struct nb_tokenizer *t, const json_t *normalizer, int depth)
{
    if (!normalizer || json_is_null(normalizer))
        return NB_OK;
    const char *type = text_of(normalizer, "type");
    if (strcmp(type, "NFC") == 0) {
        t->nfc = true;
        return NB_OK;
    }
    if (strcmp(type, "Sequence") == 0 && depth < NESTING_MAX) {
        size_t index;
        json_t *part;
        json_array_foreach(json_object_get(normalizer, "normalizers"), index, part)
            NB_TRY(read_normalizer(t, part, depth + 1));
        return NB_OK;
    }
    return nb_fail(NB_UNSUPPORTED, "normalizer %.80s%s; supported are NFC and none", type,
                   strcmp(type, "Prepend") == 0 || strcmp(type, "Replace") == 0 ? " (a SentencePiece model's)" : "");
}

static nb_status read_split(struct nb_tokenizer *t, const json_t *split)
{
    const char *behavior = text_of(split, "behavior");
    const json_t *pattern = json_object_get(split, "pattern"), *text = json_object_get(pattern, "Regex");
    bool invert = is_true(split, "invert"), literal = !text;
    enum nb_split_kind kind = strcmp(behavior, "Removed") == 0 ? NB_SPLIT_KEEP : NB_SPLIT_ISOLATE;
    if (literal)
        text = json_object_get(pattern, "String");
    if (!json_is_string(text))
        return nb_fail(NB_FORMAT, "a Split pre-tokenizer without a pattern");
    if (strcmp(behavior, "Isolated") != 0 && !(kind == NB_SPLIT_KEEP && invert))
        return nb_fail(NB_UNSUPPORTED,
            "a Split pre-tokenizer with behavior %.80s%s; supported are Isolated, and Removed inverted", behavior,
            invert ? ", inverted" : "");
    return nb_pretokenizer_add(&t->pretokenizer, kind, json_string_value(text), json_string_length(text), literal);
}

static nb_status read_pretokenizer(struct nb_tokenizer *t, const json_t *step, int depth, bool *byte_level)
{
    const char *type = text_of(step, "type");
    if (*byte_level)
        return nb_fail(NB_UNSUPPORTED, "pre-tokenizer %.80s after ByteLevel", type);
    if (strcmp(type, "Sequence") == 0 && depth < NESTING_MAX) {
        size_t index;
        json_t *part;
        json_array_foreach(json_object_get(step, "pretokenizers"), index, part)
            NB_TRY(read_pretokenizer(t, part, depth + 1, byte_level));
        return NB_OK;
    }
    if (strcmp(type, "Split") == 0)
        return read_split(t, step);
    if (strcmp(type, "Digits") == 0) {
        if (is_true(step, "individual_digits"))
            return nb_pretokenizer_add(&t->pretokenizer, NB_SPLIT_DIGITS, NULL, 0, false);
        return nb_pretokenizer_add(&t->pretokenizer, NB_SPLIT_ISOLATE, "\\p{N}+", strlen("\\p{N}+"), false);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        *byte_level = true;
        if (is_true(step, "add_prefix_space"))
            return nb_fail(NB_UNSUPPORTED, "a ByteLevel pre-tokenizer with add_prefix_space");
        if (json_is_false(json_object_get(step, "use_regex")))
            return NB_OK;
        return nb_pretokenizer_add(
            &t->pretokenizer, NB_SPLIT_ISOLATE, NB_EXPRESSION_GPT2, strlen(NB_EXPRESSION_GPT2), false);
    }
    return nb_fail(NB_UNSUPPORTED,
        "pre-tokenizer %.80s%s; supported are ByteLevel, Split, Digits and sequences of them", *type ? type : "none",
        strcmp(type, "Metaspace") == 0 || !*type ? " (a SentencePiece model's)" : "");
}

/* Whether texts begin with a special token: the template in the post-processor says so. */
static void read_post_processor(struct nb_tokenizer *t, const json_t *processor, int depth)
{
    const char *type = text_of(processor, "type");
    size_t index;
    json_t *part;
    if (strcmp(type, "Sequence") == 0 && depth < NESTING_MAX)
        json_array_foreach(json_object_get(processor, "processors"), index, part)
            read_post_processor(t, part, depth + 1);
    if (strcmp(type, "TemplateProcessing") != 0)
        return;
    const json_t *first = json_array_get(json_object_get(processor, "single"), 0);
    const json_t *id = json_object_get(json_object_get(first, "SpecialToken"), "id");
    if (!json_is_string(id))
        return;
    t->bos = nb_vocabulary_find(&t->vocabulary, json_string_value(id), json_string_length(id));
    t->adds_bos = t->bos >= 0;
}

/* The id of a special token that a config names, as a text or as an object with its content; -1 if it names none. */
static int32_t find_special(const struct nb_tokenizer *t, const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value))
        value = json_object_get(value, "content");
    return json_is_string(value)
               ? nb_vocabulary_find(&t->vocabulary, json_string_value(value), json_string_length(value))
               : -1;
}

static void read_special(struct nb_tokenizer *t, const json_t *config)
{
    const struct {
        const char *key;
        int32_t *id;
    } names[] = {{"bos_token", &t->bos}, {"eos_token", &t->eos}, {"pad_token", &t->pad}, {"unk_token", &t->unk}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (*names[i].id < 0 || names[i].id == &t->bos) {
            int32_t id = find_special(t, config, names[i].key);
            if (id >= 0)
                *names[i].id = id;
        }
}

static nb_status keep_chat_template(struct nb_tokenizer *t, const char *text)
{
    free(t->chat_template);
    t->chat_template = text ? strdup(text) : NULL;
    return text && !t->chat_template ? nb_fail(NB_MEMORY, "no memory for the chat template") : NB_OK;
}

static nb_status read_config(struct nb_tokenizer *t, const json_t *config)
{
    read_special(t, config);
    const json_t *adds_bos = json_object_get(config, "add_bos_token"),
                 *chosen = json_object_get(config, "chat_template");
    if (json_is_boolean(adds_bos))
        t->adds_bos = json_is_true(adds_bos);
    if (json_is_array(chosen)) { /* several, each with a name */
        const json_t *list = chosen;
        size_t index;
        json_t *entry;
        chosen = json_object_get(json_array_get(list, 0), "template");
        json_array_foreach(list, index, entry)
            if (strcmp(text_of(entry, "name"), "default") == 0)
                chosen = json_object_get(entry, "template");
    }
    return json_is_string(chosen) ? keep_chat_template(t, json_string_value(chosen)) : NB_OK;
}

static void read_generation_config(struct nb_tokenizer *t, const json_t *config)
{
    json_t *eos = json_object_get(config, "eos_token_id"), *entry;
    size_t index;
    if (json_is_integer(eos))
        nb_tokenizer_mark_stop(t, json_integer_value(eos));
    json_array_foreach(eos, index, entry)
        if (json_is_integer(entry))
            nb_tokenizer_mark_stop(t, json_integer_value(entry));
    const json_t *first = json_is_array(eos) ? json_array_get(eos, 0) : eos;
    json_int_t id = json_is_integer(first) ? json_integer_value(first) : -1;
    if (t->eos < 0 && id >= 0 && id < t->vocabulary.count)
        t->eos = (int32_t)id;
}

static nb_status read_root(struct nb_tokenizer *t, const json_t *root)
{
    bool byte_level = false;
    const json_t *added = json_object_get(root, "added_tokens");
    NB_TRY(read_model(t, json_object_get(root, "model"), json_array_size(added)));
    NB_TRY(read_added_tokens(t, added));
    NB_TRY(read_normalizer(t, json_object_get(root, "normalizer"), 0));
    NB_TRY(read_pretokenizer(t, json_object_get(root, "pre_tokenizer"), 0, &byte_level));
    if (!byte_level)
        return nb_fail(NB_UNSUPPORTED, "no ByteLevel pre-tokenizer; only byte-level BPE is supported");
    read_post_processor(t, json_object_get(root, "post_processor"), 0);
    return NB_OK;
}

nb_status nb_tokenizer_open_json(const char *json, size_t bytes, const char *config, size_t config_bytes,
    const char *path, struct nb_tokenizer **tokenizer)
{
    json_t *root = NULL, *config_root = NULL;
    NB_TRY(nb_tokenizer_create(tokenizer));
    nb_status status = parse(json, bytes, 0, &root);
    if (status == NB_OK)
        status = read_root(*tokenizer, root);
    if (status != NB_OK) {
        status = nb_fail_within(status, "%s: tokenizer.json", path);
    } else if (config) {
        /* No integer of it is read, and where a model sets no length, model_max_length is int(1e30): more than 64 bits hold. */
        status = parse(config, config_bytes, JSON_DECODE_INT_AS_REAL, &config_root);
        if (status == NB_OK)
            status = read_config(*tokenizer, config_root);
        if (status != NB_OK)
            status = nb_fail_within(status, "%s: tokenizer_config.json", path);
    }
    json_decref(root);
    json_decref(config_root);
    if (status != NB_OK)
        nb_tokenizer_destroy(tokenizer);
    else
        nb_tokenizer_finish(*tokenizer);
    return status;
}

/* Reads folder/name; *data is NULL when it is not there and that is allowed. The caller frees it. */
static nb_status read_file(const char *folder, const char *name, bool required, char **data, size_t *bytes)
{
    char *path = nb_path_join(folder, name);
    *data = NULL;
    *bytes = 0;
    nb_status status =
        required || nb_path_exists(path) ? nb_file_read(path, FILE_BYTES_MAX, false, data, bytes) : NB_OK;
    free(path);
    return status;
}

static nb_status read_side_file(struct nb_tokenizer *t, const char *folder, const char *name,
                                void (*read)(struct nb_tokenizer *, const json_t *))
{
    char *data;
    size_t bytes;
    json_t *root = NULL;
    NB_TRY(read_file(folder, name, false, &data, &bytes));
    if (!data)
        return NB_OK;
    nb_status status = parse(data, bytes, 0, &root);
    if (status == NB_OK)
        read(t, root);
    else
        status = nb_fail_within(status, "%s/%s", folder, name);
    json_decref(root);
    free(data);
    return status;
}

/* What stands beside tokenizer.json and tokenizer_config.json. */
static nb_status read_side_files(struct nb_tokenizer *t, const char *folder)
{
    char *text = NULL;
    size_t bytes;
    NB_TRY(read_side_file(t, folder, "special_tokens_map.json", read_special));
    NB_TRY(read_side_file(t, folder, "generation_config.json", read_generation_config));
    nb_tokenizer_mark_stop(t, t->eos);
    NB_TRY(read_file(folder, "chat_template.jinja", false, &text, &bytes));
    nb_status status = text ? keep_chat_template(t, text) : NB_OK;
    free(text);
    return status;
}

static nb_status open_folder(const char *folder, struct nb_tokenizer **tokenizer)
{
    char *json = NULL, *config = NULL;
    size_t bytes = 0, config_bytes = 0;
    nb_status status = read_file(folder, "tokenizer.json", false, &json, &bytes);
    if (status == NB_OK && !json) {
        char *sentence_piece = nb_path_join(folder, "tokenizer.model");
        bool has_one = nb_path_exists(sentence_piece);
        free(sentence_piece);
        return has_one ? nb_fail(NB_UNSUPPORTED,
                             "%s: its tokenizer is a SentencePiece model (tokenizer.model without a "
                             "tokenizer.json); only byte-level BPE is supported",
                             folder)
                       : nb_fail(NB_IO,
                             "%s: no tokenizer.json. Text needs a tokenizer; copy the model's tokenizer.json and "
                             "tokenizer_config.json there, or use rows of token ids",
                             folder);
    }
    if (status == NB_OK)
        status = read_file(folder, "tokenizer_config.json", false, &config, &config_bytes);
    if (status == NB_OK)
        status = nb_tokenizer_open_json(json, bytes, config, config_bytes, folder, tokenizer);
    if (status == NB_OK) {
        status = read_side_files(*tokenizer, folder);
        if (status != NB_OK)
            nb_tokenizer_destroy(tokenizer);
    }
    free(json);
    free(config);
    return status;
}

nb_status nb_tokenizer_open(const char *model_path, struct nb_tokenizer **tokenizer)
{
    static const char name[] = "tokenizer.json";
    size_t length = strlen(model_path);
    *tokenizer = NULL;
    if (nb_path_is_folder(model_path))
        return open_folder(model_path, tokenizer);
    if (length >= sizeof name - 1 && strcmp(model_path + length - (sizeof name - 1), name) == 0) {
        char *folder = nb_format("%.*s.", (int)(length - (sizeof name - 1)), model_path);
        nb_status status = nb_path_is_folder(folder) ? open_folder(folder, tokenizer)
                                                     : nb_fail(NB_IO, "%s: no such file", model_path);
        free(folder);
        return status;
    }
    struct nb_gguf *gguf = NULL;
    NB_TRY(nb_gguf_open(model_path, &gguf));
    nb_status status = nb_tokenizer_open_gguf(gguf, model_path, tokenizer);
    nb_gguf_close(&gguf);
    return status;
}
