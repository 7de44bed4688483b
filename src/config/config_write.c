#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "config/config.h"
#include "config/config_keys.h"

/* An emitter that remembers that something failed: a failed event frees itself, and those after it are skipped. */
struct writer {
    yaml_emitter_t emitter;
    bool failed;
};

static void emit(struct writer *writer, yaml_event_t *event, int initialized)
{
    if (!initialized)
        writer->failed = true;
    else if (writer->failed)
        yaml_event_delete(event);
    else if (!yaml_emitter_emit(&writer->emitter, event))
        writer->failed = true;
}

static void emit_scalar(struct writer *writer, const char *text, yaml_scalar_style_t style)
{
    yaml_event_t event;
    int bytes = (int)strlen(text);
    int initialized = yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, bytes, 1, 1, style);
    emit(writer, &event, initialized);
}

static void emit_word(struct writer *writer, const char *text)
{
    emit_scalar(writer, text, YAML_PLAIN_SCALAR_STYLE);
}

/* Quoted always, so that a folder called "null" or "1e5" stays a text. */
static void emit_text(struct writer *writer, const char *text)
{
    emit_scalar(writer, text, YAML_DOUBLE_QUOTED_SCALAR_STYLE);
}

static void emit_begin(struct writer *writer, bool mapping)
{
    yaml_event_t event;
    int initialized = mapping ? yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE)
                              : yaml_sequence_start_event_initialize(&event, NULL, NULL, 1, YAML_BLOCK_SEQUENCE_STYLE);
    emit(writer, &event, initialized);
}

static void emit_end(struct writer *writer, bool mapping)
{
    yaml_event_t event;
    int initialized = mapping ? yaml_mapping_end_event_initialize(&event) : yaml_sequence_end_event_initialize(&event);
    emit(writer, &event, initialized);
}

static void emit_strings(struct writer *writer, const struct nb_config_strings *strings)
{
    emit_begin(writer, false);
    for (size_t i = 0; i < strings->count; i++)
        emit_text(writer, strings->items[i]);
    emit_end(writer, false);
}

static const char *dataset_text(const struct nb_config_dataset *dataset, size_t field)
{
    return *(char *const *)((const char *)dataset + nb_dataset_fields[field].offset);
}

static void emit_datasets(struct writer *writer, const struct nb_config_datasets *datasets)
{
    emit_begin(writer, false);
    for (size_t i = 0; i < datasets->count; i++) {
        emit_begin(writer, true);
        for (size_t f = 0; f < nb_dataset_field_count; f++) {
            const char *text = dataset_text(&datasets->items[i], f);
            if (text) {
                emit_word(writer, nb_dataset_fields[f].name);
                emit_text(writer, text);
            }
        }
        emit_end(writer, true);
    }
    emit_end(writer, false);
}

/* The shortest decimal that reads back as the same double. */
static void format_float(double value, char text[32])
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
}

static void emit_value(struct writer *writer, const struct nb_config *config, const struct nb_key *key)
{
    const void *field = nb_key_field_const(config, key);
    char text[32];
    switch (key->type) {
    case NB_KEY_STRING:
        emit_text(writer, *(char *const *)field);
        break;
    case NB_KEY_BOOL:
        emit_word(writer, *(const bool *)field ? "true" : "false");
        break;
    case NB_KEY_INTEGER:
        snprintf(text, sizeof text, "%lld", (long long)*(const int64_t *)field);
        emit_word(writer, nb_key_may_be_auto(key) && *(const int64_t *)field < 0 ? "auto" : text);
        break;
    case NB_KEY_FLOAT:
        format_float(*(const double *)field, text);
        emit_word(writer, text);
        break;
    case NB_KEY_SIZE:
        snprintf(text, sizeof text, "%lld", (long long)*(const int64_t *)field);
        emit_word(writer, *(const int64_t *)field < 0 ? "auto" : text);
        break;
    case NB_KEY_CHOICE:
        emit_word(writer, key->choices[*(const unsigned *)field]);
        break;
    case NB_KEY_STRINGS:
        emit_strings(writer, field);
        break;
    case NB_KEY_DATASETS:
        emit_datasets(writer, field);
        break;
    }
}

static void emit_special_tokens(struct writer *writer, const struct nb_config_special_tokens *tokens)
{
    const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    const char *const texts[] = {tokens->bos_token, tokens->eos_token, tokens->unk_token, tokens->pad_token};
    if (!texts[0] && !texts[1] && !texts[2] && !texts[3] && !tokens->additional.count)
        return;
    emit_word(writer, "special_tokens");
    emit_begin(writer, true);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (texts[i]) {
            emit_word(writer, names[i]);
            emit_text(writer, texts[i]);
        }
    if (tokens->additional.count) {
        emit_word(writer, "additional_special_tokens");
        emit_strings(writer, &tokens->additional);
    }
    emit_end(writer, true);
}

static int write_part(void *stream, unsigned char *buffer, size_t bytes)
{
    return fwrite(buffer, 1, bytes, stream) == bytes;
}

static nb_status write_config(const struct nb_config *config, FILE *stream)
{
    struct writer writer = {.failed = false};
    yaml_event_t event;
    if (!yaml_emitter_initialize(&writer.emitter))
        return nb_fail(NB_MEMORY, "no memory for the config");
    yaml_emitter_set_output(&writer.emitter, write_part, stream);
    yaml_emitter_set_unicode(&writer.emitter, 1);
    yaml_emitter_set_width(&writer.emitter, -1);
    emit(&writer, &event, yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING));
    emit(&writer, &event, yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1));
    emit_begin(&writer, true);
    for (size_t i = 0; i < nb_key_count; i++) {
        bool given_elsewhere = nb_keys[i].from_adapter && config->lora_model_dir;
        if (!config->set[i] && (!nb_keys[i].fallback || given_elsewhere))
            continue;
        emit_word(&writer, nb_keys[i].name);
        emit_value(&writer, config, &nb_keys[i]);
    }
    emit_special_tokens(&writer, &config->special_tokens);
    emit_end(&writer, true);
    emit(&writer, &event, yaml_document_end_event_initialize(&event, 1));
    emit(&writer, &event, yaml_stream_end_event_initialize(&event));
    if (!writer.failed && !yaml_emitter_flush(&writer.emitter))
        writer.failed = true;
    yaml_emitter_delete(&writer.emitter);
    if (writer.failed || ferror(stream))
        return nb_fail(NB_IO, "the resolved config cannot be written");
    return NB_OK;
}

nb_status nb_config_format(const struct nb_config *config, char **text, size_t *bytes)
{
    *text = NULL;
    *bytes = 0;
    FILE *stream = open_memstream(text, bytes);
    if (!stream)
        return nb_fail(NB_MEMORY, "no memory for the config");
    nb_status status = write_config(config, stream);
    if (fclose(stream) != 0 && status == NB_OK)
        status = nb_fail(NB_MEMORY, "no memory for the config");
    if (status != NB_OK) {
        free(*text);
        *text = NULL;
        *bytes = 0;
    }
    return status;
}

const char *nb_config_choice_name(const struct nb_config *config, const char *name)
{
    const struct nb_key *key = nb_key_find(name);
    if (!key || key->type != NB_KEY_CHOICE)
        return NULL;
    return key->choices[*(const unsigned *)nb_key_field_const(config, key)];
}

static bool same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool same_strings(const struct nb_config_strings *a, const struct nb_config_strings *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (strcmp(a->items[i], b->items[i]) != 0)
            return false;
    return true;
}

static bool same_datasets(const struct nb_config_datasets *a, const struct nb_config_datasets *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        for (size_t f = 0; f < nb_dataset_field_count; f++)
            if (!same_text(dataset_text(&a->items[i], f), dataset_text(&b->items[i], f)))
                return false;
    return true;
}

static bool same_value(const struct nb_key *key, const void *a, const void *b)
{
    switch (key->type) {
    case NB_KEY_STRING:
        return same_text(*(char *const *)a, *(char *const *)b);
    case NB_KEY_BOOL:
        return *(const bool *)a == *(const bool *)b;
    case NB_KEY_INTEGER:
    case NB_KEY_SIZE:
        return *(const int64_t *)a == *(const int64_t *)b;
    case NB_KEY_FLOAT:
        return *(const double *)a == *(const double *)b;
    case NB_KEY_CHOICE:
        return *(const unsigned *)a == *(const unsigned *)b;
    case NB_KEY_STRINGS:
        return same_strings(a, b);
    case NB_KEY_DATASETS:
        return same_datasets(a, b);
    }
    return false;
}

static const char *first_difference(const struct nb_config *a, const struct nb_config *b, bool of_a_run)
{
    for (size_t i = 0; i < nb_key_count; i++)
        if (!(of_a_run && nb_keys[i].may_change) &&
            !same_value(&nb_keys[i], nb_key_field_const(a, &nb_keys[i]), nb_key_field_const(b, &nb_keys[i])))
            return nb_keys[i].name;
    const struct nb_config_special_tokens *s = &a->special_tokens, *t = &b->special_tokens;
    if (!same_text(s->bos_token, t->bos_token) || !same_text(s->eos_token, t->eos_token) ||
        !same_text(s->unk_token, t->unk_token) || !same_text(s->pad_token, t->pad_token) ||
        !same_strings(&s->additional, &t->additional))
        return "special_tokens";
    return NULL;
}

const char *nb_config_first_difference(const struct nb_config *a, const struct nb_config *b)
{
    return first_difference(a, b, false);
}

const char *nb_config_first_lasting_difference(const struct nb_config *a, const struct nb_config *b)
{
    return first_difference(a, b, true);
}
