#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "config/config.h"
#include "config/config_value.h"

nb_status nb_config_defaults(struct nb_config *config)
{
    *config = (struct nb_config){0};
    for (size_t i = 0; i < nb_key_count; i++) {
        nb_status status = nb_key_reset(config, &nb_keys[i]);
        if (status != NB_OK) {
            nb_config_destroy(config);
            return status;
        }
    }
    return NB_OK;
}

void nb_config_destroy(struct nb_config *config)
{
    for (size_t i = 0; i < nb_key_count; i++)
        nb_key_clear(config, &nb_keys[i]);
    nb_special_tokens_free(&config->special_tokens);
    nb_strings_free(&config->ignored);
    free(config->source);
    *config = (struct nb_config){0};
}

bool nb_config_was_set(const struct nb_config *config, const char *key)
{
    const struct nb_key *found = nb_key_find(key);
    return found && config->set[found - nb_keys];
}

static nb_status unknown_key(const struct nb_yaml_node *node, const struct nb_yaml_source *source)
{
    const char *name = node->key->text;
    struct nb_nearest nearest = nb_key_nearest(name);
    if (nb_nearest_found(&nearest))
        return nb_yaml_fail(source, node->key, NB_USAGE, "unknown key \"%.64s\"; did you mean \"%s\"?", name, nearest.best);
    if (nearest.best)
        return nb_yaml_fail(source, node->key, NB_USAGE, "unknown key \"%.64s\"; the nearest is \"%s\", and `nibble help config` lists "
            "all", name, nearest.best);
    return nb_yaml_fail(source, node->key, NB_USAGE, "unknown key \"%.64s...\"; `nibble help config` lists all", name);
}

static nb_status ignore_key(struct nb_config *config, const char *name)
{
    for (size_t i = 0; i < config->ignored.count; i++)
        if (strcmp(config->ignored.items[i], name) == 0)
            return NB_OK;
    return nb_strings_add(&config->ignored, name);
}

/* One key and its value, whose node carries the key's. */
static nb_status apply(struct nb_config *config, const struct nb_yaml_node *node, const struct nb_yaml_source *source)
{
    const char *name = node->key->text;
    const struct nb_key *key = nb_key_find(name);
    if (key)
        return nb_value_set(config, key, node, source);
    if (strcmp(name, "special_tokens") == 0)
        return nb_value_set_special_tokens(config, node, source);
    bool known;
    NB_TRY(nb_value_check_foreign(nb_foreign_keys, nb_foreign_key_count, node, source, &known));
    if (!known)
        return unknown_key(node, source);
    /* An Axolotl file lists many keys without a value; only those that say something are worth a mention. */
    return nb_yaml_is_null(node) ? NB_OK : ignore_key(config, name);
}

static nb_status apply_override(struct nb_config *config, const char *override, bool outside_train)
{
    const char *equals = strchr(override, '=');
    if (!equals || equals == override)
        return nb_fail(NB_USAGE, "--set %s: key=value is expected", override);
    char *name = strndup(override, (size_t)(equals - override));
    if (!name)
        return nb_fail(NB_MEMORY, "no memory for the config");
    struct nb_yaml_source source = {.name = name, .is_override = true};
    struct nb_yaml_node key = {.kind = NB_YAML_SCALAR, .text = name, .line = 1, .column = 1};
    struct nb_yaml_node nothing = {.kind = NB_YAML_SCALAR, .text = name + strlen(name), .plain = true, .line = 1, .column = 1};
    struct nb_yaml_node *value = NULL;
    const struct nb_key *found = nb_key_find(name);
    nb_status status = nb_yaml_parse(&source, equals + 1, strlen(equals + 1), &value);
    if (status == NB_OK && found && outside_train && !found->everywhere) {
        status = nb_yaml_fail(&source, NULL, NB_USAGE, "the key applies to train and plan only");
    } else if (status == NB_OK) {
        struct nb_yaml_node *node = value ? value : &nothing;
        node->key = &key;
        status = apply(config, node, &source);
        node->key = NULL;
    }
    nb_yaml_destroy(&value);
    free(name);
    return status;
}

static nb_status apply_overrides(struct nb_config *config, const char *const *overrides, size_t count, bool outside_train)
{
    for (size_t i = 0; i < count; i++)
        NB_TRY(apply_override(config, overrides[i], outside_train));
    return NB_OK;
}

static nb_status apply_text(struct nb_config *config, const char *text, size_t bytes, const char *name)
{
    struct nb_yaml_source source = {.name = name};
    struct nb_yaml_node *root;
    NB_TRY(nb_yaml_parse(&source, text, bytes, &root));
    nb_status status = NB_OK;
    if (root && root->kind == NB_YAML_MAPPING) {
        for (const struct nb_yaml_node *child = root->first; child && status == NB_OK; child = child->next)
            status = apply(config, child, &source);
    } else if (!nb_yaml_is_null(root)) {
        status = nb_yaml_fail(&source, root, NB_USAGE, "a config is a mapping of keys to values, such as \"lora_r: 16\"");
    }
    nb_yaml_destroy(&root);
    return status;
}

nb_status nb_config_parse(const char *text, size_t bytes, const char *name, const char *const *overrides, size_t override_count,
    struct nb_config *config)
{
    NB_TRY(nb_config_defaults(config));
    config->source = strdup(name);
    nb_status status = config->source ? NB_OK : nb_fail(NB_MEMORY, "no memory for the config");
    if (status == NB_OK)
        status = apply_text(config, text, bytes, name);
    if (status == NB_OK)
        status = apply_overrides(config, overrides, override_count, false);
    if (status != NB_OK)
        nb_config_destroy(config);
    return status;
}

nb_status nb_config_read(const char *path, const char *const *overrides, size_t override_count, struct nb_config *config)
{
    char *text;
    size_t bytes;
    *config = (struct nb_config){0};
    NB_TRY(nb_file_read(path, NB_YAML_BYTES_MAX, false, &text, &bytes));
    nb_status status = nb_config_parse(text, bytes, path, overrides, override_count, config);
    free(text);
    return status;
}

nb_status nb_config_from_overrides(const char *const *overrides, size_t override_count, struct nb_config *config)
{
    NB_TRY(nb_config_defaults(config));
    nb_status status = apply_overrides(config, overrides, override_count, true);
    if (status != NB_OK)
        nb_config_destroy(config);
    return status;
}
