#include "config/config_value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a node looks like in a message: its text, shortened, or what kind of thing it is. */
struct shown {
    char text[80];
};

static struct shown show(const struct nb_yaml_node *node)
{
    struct shown shown;
    if (node->kind == NB_YAML_SCALAR)
        snprintf(shown.text, sizeof shown.text, "\"%.60s%s\"", node->text, strlen(node->text) > 60 ? "..." : "");
    else
        snprintf(shown.text, sizeof shown.text, "%s", node->kind == NB_YAML_SEQUENCE ? "a list" : "a mapping");
    return shown;
}

static nb_status wrong(const struct nb_yaml_source *source, const struct nb_yaml_node *node, const char *key, const char *expected)
{
    return nb_yaml_fail(source, node, NB_USAGE, "%s: %s is not %s", key, show(node).text, expected);
}

static nb_status out_of_memory(const struct nb_yaml_source *source)
{
    return nb_yaml_fail(source, NULL, NB_MEMORY, "no memory for the config");
}

/* Writes "nf4, fp4" into a buffer. */
static void list_choices(const char *const *choices, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; choices[i] && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", choices[i]);
}

static nb_status wrong_choice(const struct nb_yaml_source *source, const struct nb_yaml_node *node, const char *key,
    const char *const *choices)
{
    char list[512];
    list_choices(choices, list, sizeof list);
    return nb_yaml_fail(source, node, NB_USAGE, "%s: %s is none of: %s", key, show(node).text, list);
}

static nb_status copy_text(char **field, const char *text, const struct nb_yaml_source *source)
{
    char *copy = strdup(text);
    if (!copy)
        return out_of_memory(source);
    free(*field);
    *field = copy;
    return NB_OK;
}

static nb_status check_range(const struct nb_key *key, double value, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    bool low = key->above_minimum ? value <= key->minimum : value < key->minimum;
    if (low || value > key->maximum)
        return nb_yaml_fail(source, node, NB_USAGE, "%s: %s is out of range: it must be %s %.16g and at most %.16g", key->name,
            node->text, key->above_minimum ? "above" : "at least", key->minimum, key->maximum);
    if (key->whole_from_one && value >= 1 && value != floor(value))
        return nb_yaml_fail(source, node, NB_USAGE, "%s: %s: from 1 on it must be a whole number", key->name, node->text);
    return NB_OK;
}

static nb_status set_choice(unsigned *field, const struct nb_key *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    bool truth;
    int choice = nb_find_choice(key->choices, node->text);
    if (choice < 0 && nb_read_bool(node->text, &truth)) /* bf16: yes */
        choice = nb_find_choice(key->choices, truth ? "true" : "false");
    if (choice < 0)
        return wrong_choice(source, node, key->name, key->choices);
    *field = (unsigned)choice;
    return NB_OK;
}

static nb_status set_scalar(void *field, const struct nb_key *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    int64_t integer;
    double number;
    switch (key->type) {
    case NB_KEY_STRING:
        if (key->choices && nb_find_choice(key->choices, node->text) < 0)
            return wrong_choice(source, node, key->name, key->choices);
        return copy_text(field, node->text, source);
    case NB_KEY_BOOL:
        return nb_read_bool(node->text, field) ? NB_OK : wrong(source, node, key->name, "true or false");
    case NB_KEY_INTEGER:
        if (nb_key_may_be_auto(key) && strcmp(node->text, "auto") == 0) {
            *(int64_t *)field = -1;
            return NB_OK;
        }
        if (!nb_read_integer(node->text, &integer))
            return wrong(source, node, key->name, nb_key_may_be_auto(key) ? "a whole number, or auto" : "a whole number");
        NB_TRY(check_range(key, (double)integer, node, source));
        *(int64_t *)field = integer;
        return NB_OK;
    case NB_KEY_FLOAT:
        if (!nb_read_float(node->text, &number))
            return wrong(source, node, key->name, "a finite number");
        NB_TRY(check_range(key, number, node, source));
        *(double *)field = number;
        return NB_OK;
    case NB_KEY_SIZE:
        *(int64_t *)field = -1;
        if (strcmp(node->text, "auto") == 0)
            return NB_OK;
        if (!nb_read_size(node->text, field) || (double)*(int64_t *)field < key->minimum)
            return wrong(source, node, key->name, "a size as 24GB (10^9 bytes each) or 24GiB (2^30), or auto");
        return NB_OK;
    case NB_KEY_CHOICE:
        return set_choice(field, key, node, source);
    default:
        return wrong(source, node, key->name, "a list");
    }
}

static nb_status set_strings(struct nb_config_strings *strings, const char *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    if (node->kind == NB_YAML_MAPPING)
        return wrong(source, node, key, "a list of names");
    if (node->kind == NB_YAML_SCALAR)
        return nb_strings_add(strings, node->text) == NB_OK ? NB_OK : out_of_memory(source);
    for (const struct nb_yaml_node *item = node->first; item; item = item->next) {
        if (item->kind != NB_YAML_SCALAR || nb_yaml_is_null(item) || !item->text[0])
            return wrong(source, item, key, "a name");
        if (nb_strings_add(strings, item->text) != NB_OK)
            return out_of_memory(source);
    }
    return NB_OK;
}

static bool is_empty(const struct nb_yaml_node *node)
{
    bool truth;
    double number;
    if (nb_yaml_is_null(node))
        return true;
    if (node->kind != NB_YAML_SCALAR)
        return node->count == 0;
    return !node->text[0] || (nb_read_bool(node->text, &truth) && !truth) || (nb_read_float(node->text, &number) && number == 0);
}

/* Whether text is one of the words between the bars. A truth value matches however it is spelled. */
static bool is_among(const char *words, const char *text)
{
    bool truth;
    if (nb_read_bool(text, &truth))
        text = truth ? "true" : "false";
    size_t bytes = strlen(text);
    for (const char *word = words; word; word = strchr(word, '|') ? strchr(word, '|') + 1 : NULL)
        if (strncmp(word, text, bytes) == 0 && (word[bytes] == 0 || word[bytes] == '|') && bytes)
            return true;
    return false;
}

static bool words_accept(const char *words, const struct nb_yaml_node *node)
{
    if (nb_yaml_is_null(node))
        return true;
    if (node->kind == NB_YAML_SCALAR)
        return is_among(words, node->text);
    for (const struct nb_yaml_node *item = node->first; item; item = item->next)
        if (node->kind != NB_YAML_SEQUENCE || item->kind != NB_YAML_SCALAR || !is_among(words, item->text))
            return false;
    return true;
}

static bool name_matches(const char *pattern, const char *name)
{
    size_t bytes = strlen(pattern);
    if (pattern[bytes - 1] == '*')
        return strncmp(pattern, name, bytes - 1) == 0;
    return strcmp(pattern, name) == 0;
}

nb_status nb_value_check_foreign(const struct nb_foreign_key *keys, size_t count, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source, bool *known)
{
    const char *name = node->key->text;
    for (size_t i = 0; i < count; i++) {
        if (!name_matches(keys[i].name, name))
            continue;
        *known = true;
        if (keys[i].rule == NB_FOREIGN_ANY || (keys[i].rule == NB_FOREIGN_EMPTY && is_empty(node)) ||
            (keys[i].rule == NB_FOREIGN_WORDS && words_accept(keys[i].words, node)))
            return NB_OK;
        const char *advice = keys[i].advice;
        return nb_yaml_fail(source, node->key, NB_USAGE, "%s: %s is not supported: %s", name, show(node).text,
            advice ? advice : "it would change what is trained, so it is not passed over");
    }
    *known = false;
    return NB_OK;
}

static char **dataset_text(struct nb_config_dataset *dataset, size_t field)
{
    return (char **)((char *)dataset + nb_dataset_fields[field].offset);
}

static nb_status set_dataset_text(struct nb_config_dataset *dataset, const char *name, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source, bool *known)
{
    for (size_t f = 0; f < nb_dataset_field_count; f++) {
        const struct nb_dataset_field *field = &nb_dataset_fields[f];
        if (strcmp(field->name, name) != 0)
            continue;
        *known = true;
        if (nb_yaml_is_null(node))
            return NB_OK;
        if (node->kind != NB_YAML_SCALAR)
            return wrong(source, node, name, "a text");
        if (!node->text[0])
            return NB_OK;
        if (field->choices && nb_find_choice(field->choices, node->text) < 0)
            return wrong_choice(source, node, name, field->choices);
        return copy_text(dataset_text(dataset, f), node->text, source);
    }
    *known = false;
    return NB_OK;
}

/* {role: from, content: value}: which property of a message stands for the template's. */
static nb_status set_property_mappings(struct nb_config_dataset *dataset, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    if (nb_yaml_is_null(node))
        return NB_OK;
    if (node->kind != NB_YAML_MAPPING)
        return wrong(source, node, "message_property_mappings", "a mapping of role and content");
    for (const struct nb_yaml_node *child = node->first; child; child = child->next) {
        bool known;
        const char *name = child->key->text;
        const char *field = strcmp(name, "role") == 0 ? "message_field_role" : "message_field_content";
        if (strcmp(name, "role") != 0 && strcmp(name, "content") != 0)
            return nb_yaml_fail(source, child->key, NB_USAGE, "message_property_mappings: \"%s\" is not supported, only role and content",
                name);
        NB_TRY(set_dataset_text(dataset, field, child, source, &known));
    }
    return NB_OK;
}

/* `path: json` with data_files names the format where a path would stand. One file an entry. */
static nb_status set_data_files(struct nb_config_dataset *dataset, const struct nb_yaml_node *node, const struct nb_yaml_source *source)
{
    if (nb_yaml_is_null(node))
        return NB_OK;
    const struct nb_yaml_node *file = node->kind == NB_YAML_SEQUENCE && node->count == 1 ? node->first : node;
    if (file->kind != NB_YAML_SCALAR || !dataset->path || strcmp(dataset->path, "json") != 0)
        return nb_yaml_fail(source, node, NB_USAGE, "data_files: goes with path: json and names one file; give each file an entry of "
            "its own, with its name as path");
    return copy_text(&dataset->path, file->text, source);
}

static nb_status unknown_field(const char *key, const struct nb_yaml_node *name, const struct nb_yaml_source *source)
{
    struct nb_nearest nearest = nb_nearest_start(name->text);
    for (size_t f = 0; f < nb_dataset_field_count; f++)
        nb_nearest_offer(&nearest, nb_dataset_fields[f].name);
    const char *found = nb_nearest_found(&nearest);
    if (found)
        return nb_yaml_fail(source, name, NB_USAGE, "%s: unknown field \"%.64s\"; did you mean \"%s\"?", key, name->text, found);
    return nb_yaml_fail(source, name, NB_USAGE, "%s: unknown field \"%.64s\"; `nibble help config` lists the fields", key, name->text);
}

static nb_status set_dataset(struct nb_config_dataset *dataset, const char *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    const struct nb_yaml_node *data_files = NULL;
    if (node->kind != NB_YAML_MAPPING)
        return nb_yaml_fail(source, node, NB_USAGE, "%s: an entry is a mapping such as {path: rows.jsonl, type: alpaca}", key);
    for (const struct nb_yaml_node *child = node->first; child; child = child->next) {
        bool known = true;
        const char *name = child->key->text;
        if (strcmp(name, "message_property_mappings") == 0)
            NB_TRY(set_property_mappings(dataset, child, source));
        else if (strcmp(name, "data_files") == 0)
            data_files = child;
        else
            NB_TRY(set_dataset_text(dataset, name, child, source, &known));
        if (!known)
            NB_TRY(nb_value_check_foreign(nb_foreign_dataset_fields, nb_foreign_dataset_field_count, child, source, &known));
        if (!known)
            return unknown_field(key, child->key, source);
    }
    if (data_files)
        NB_TRY(set_data_files(dataset, data_files, source));
    if (!dataset->path)
        return nb_yaml_fail(source, node, NB_USAGE, "%s: an entry without path", key);
    return NB_OK;
}

static nb_status set_datasets(struct nb_config_datasets *datasets, const char *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    if (node->kind != NB_YAML_SEQUENCE)
        return nb_yaml_fail(source, node, NB_USAGE, "%s: a list is expected, such as [{path: rows.jsonl, type: alpaca}]", key);
    if (node->count == 0)
        return NB_OK;
    datasets->items = calloc(node->count, sizeof *datasets->items);
    if (!datasets->items)
        return out_of_memory(source);
    datasets->count = node->count;
    size_t i = 0;
    for (const struct nb_yaml_node *item = node->first; item; item = item->next)
        NB_TRY(set_dataset(&datasets->items[i++], key, item, source));
    return NB_OK;
}

nb_status nb_value_set(struct nb_config *config, const struct nb_key *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source)
{
    NB_TRY(nb_key_reset(config, key));
    bool is_list = key->type == NB_KEY_STRINGS || key->type == NB_KEY_DATASETS;
    bool empty_text = node && node->kind == NB_YAML_SCALAR && !node->text[0];
    if (nb_yaml_is_null(node) || empty_text || (is_list && node->kind == NB_YAML_SEQUENCE && node->count == 0))
        return NB_OK;
    void *field = nb_key_field(config, key);
    if (key->type == NB_KEY_STRINGS)
        NB_TRY(set_strings(field, key->name, node, source));
    else if (key->type == NB_KEY_DATASETS)
        NB_TRY(set_datasets(field, key->name, node, source));
    else if (node->kind != NB_YAML_SCALAR)
        return wrong(source, node, key->name, "a single value");
    else
        NB_TRY(set_scalar(field, key, node, source));
    config->set[key - nb_keys] = 1;
    return NB_OK;
}

void nb_special_tokens_free(struct nb_config_special_tokens *tokens)
{
    free(tokens->bos_token);
    free(tokens->eos_token);
    free(tokens->unk_token);
    free(tokens->pad_token);
    nb_strings_free(&tokens->additional);
    *tokens = (struct nb_config_special_tokens){0};
}

nb_status nb_value_set_special_tokens(struct nb_config *config, const struct nb_yaml_node *node, const struct nb_yaml_source *source)
{
    struct nb_config_special_tokens *tokens = &config->special_tokens;
    const struct {
        const char *name;
        char **field;
    } fields[] = {{"bos_token", &tokens->bos_token}, {"eos_token", &tokens->eos_token}, {"unk_token", &tokens->unk_token},
        {"pad_token", &tokens->pad_token}};
    nb_special_tokens_free(tokens);
    if (nb_yaml_is_null(node))
        return NB_OK;
    if (node->kind != NB_YAML_MAPPING)
        return wrong(source, node, "special_tokens", "a mapping such as {pad_token: \"<|endoftext|>\"}");
    for (const struct nb_yaml_node *child = node->first; child; child = child->next) {
        const char *name = child->key->text;
        if (nb_yaml_is_null(child))
            continue;
        if (strcmp(name, "additional_special_tokens") == 0) {
            NB_TRY(set_strings(&tokens->additional, name, child, source));
            continue;
        }
        size_t i = 0;
        while (i < sizeof fields / sizeof *fields && strcmp(fields[i].name, name) != 0)
            i++;
        if (i == sizeof fields / sizeof *fields)
            return nb_yaml_fail(source, child->key, NB_USAGE, "special_tokens: unknown token \"%s\"", name);
        if (child->kind != NB_YAML_SCALAR)
            return wrong(source, child, name, "a text");
        NB_TRY(copy_text(fields[i].field, child->text, source));
    }
    return NB_OK;
}
