#include "config/config_yaml.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

nb_status nb_yaml_fail(const struct nb_yaml_source *source, const struct nb_yaml_node *node, nb_status code,
    const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (source->is_override) { /* most messages begin with the key, which stands before the colon already */
        size_t name_bytes = strlen(source->name);
        bool repeats = strncmp(text, source->name, name_bytes) == 0 && strncmp(text + name_bytes, ": ", 2) == 0;
        return nb_fail(code, "--set %s: %s", source->name, repeats ? text + name_bytes + 2 : text);
    }
    if (node)
        return nb_fail(code, "%s:%zu:%zu: %s", source->name, node->line, node->column, text);
    return nb_fail(code, "%s: %s", source->name, text);
}

bool nb_yaml_is_null(const struct nb_yaml_node *node)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (!node)
        return true;
    if (node->kind != NB_YAML_SCALAR || !node->plain)
        return false;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(node->text, words[i]) == 0)
            return true;
    return false;
}

/* Recursion is bounded by NB_YAML_DEPTH_MAX. */
void nb_yaml_destroy(struct nb_yaml_node **node)
{
    struct nb_yaml_node *n = *node;
    *node = NULL;
    while (n) {
        struct nb_yaml_node *next = n->next;
        nb_yaml_destroy(&n->key);
        nb_yaml_destroy(&n->first);
        free(n->text);
        free(n);
        n = next;
    }
}

/* The tree while it is being built: the open collections, and in each the mapping key that waits for its value. */
struct builder {
    const struct nb_yaml_source *source;
    struct nb_yaml_node *root;
    struct level {
        struct nb_yaml_node *collection, *last, *key;
    } levels[NB_YAML_DEPTH_MAX];
    size_t depth, node_count;
};

static void builder_abandon(struct builder *builder)
{
    for (size_t i = 0; i < builder->depth; i++)
        nb_yaml_destroy(&builder->levels[i].key);
    nb_yaml_destroy(&builder->root);
}

static nb_status check_key(const struct builder *builder, const struct level *level, const struct nb_yaml_node *key)
{
    if (key->kind != NB_YAML_SCALAR)
        return nb_yaml_fail(builder->source, key, NB_USAGE, "a list or a mapping cannot be a key");
    for (const struct nb_yaml_node *child = level->collection->first; child; child = child->next)
        if (strcmp(child->key->text, key->text) == 0)
            return nb_yaml_fail(builder->source, key, NB_USAGE, "duplicate key \"%s\": it stands in line %zu already", key->text,
                child->key->line);
    return NB_OK;
}

/* Puts a node into the innermost open collection, or at the root. On an error it is destroyed. */
static nb_status attach(struct builder *builder, struct nb_yaml_node *node)
{
    if (builder->depth == 0) {
        builder->root = node;
        return NB_OK;
    }
    struct level *level = &builder->levels[builder->depth - 1];
    struct nb_yaml_node *collection = level->collection;
    if (collection->kind == NB_YAML_MAPPING && !level->key) {
        nb_status status = check_key(builder, level, node);
        if (status != NB_OK)
            nb_yaml_destroy(&node);
        else
            level->key = node;
        return status;
    }
    node->key = level->key;
    level->key = NULL;
    if (level->last)
        level->last->next = node;
    else
        collection->first = node;
    level->last = node;
    collection->count++;
    return NB_OK;
}

/* Only YAML's own types: another tag asks for an object that cannot be made here. */
static bool tag_is_known(const yaml_char_t *tag)
{
    static const char prefix[] = "tag:yaml.org,2002:";
    static const char *const names[] = {"str", "int", "float", "bool", "null", "seq", "map"};
    const char *text = (const char *)tag;
    if (!text || strcmp(text, "!") == 0)
        return true;
    if (strncmp(text, prefix, sizeof prefix - 1) != 0)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text + sizeof prefix - 1, names[i]) == 0)
            return true;
    return false;
}

static nb_status add_node(struct builder *builder, const yaml_event_t *event, enum nb_yaml_kind kind, const yaml_char_t *tag)
{
    struct nb_yaml_node place = {.line = event->start_mark.line + 1, .column = event->start_mark.column + 1};
    const struct nb_yaml_source *source = builder->source;
    if (!tag_is_known(tag))
        return nb_yaml_fail(source, &place, NB_USAGE, "the tag %s is not supported", (const char *)tag);
    if (++builder->node_count > NB_YAML_NODES_MAX)
        return nb_yaml_fail(source, &place, NB_USAGE, "more than %d values: this is no config", NB_YAML_NODES_MAX);
    if (kind != NB_YAML_SCALAR && builder->depth == NB_YAML_DEPTH_MAX)
        return nb_yaml_fail(source, &place, NB_USAGE, "nested deeper than %d levels: this is no config", NB_YAML_DEPTH_MAX);
    struct nb_yaml_node *node = malloc(sizeof *node);
    if (!node)
        return nb_yaml_fail(source, &place, NB_MEMORY, "no memory for the config");
    *node = place;
    node->kind = kind;
    if (kind == NB_YAML_SCALAR) {
        const char *value = (const char *)event->data.scalar.value;
        size_t length = event->data.scalar.length;
        bool is_text = tag && strcmp((const char *)tag, "tag:yaml.org,2002:str") == 0;
        node->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !is_text;
        node->text = strndup(value, length);
        if (!node->text || strlen(node->text) != length) {
            nb_status status = node->text ? nb_yaml_fail(source, &place, NB_USAGE, "a text holds a zero byte")
                                          : nb_yaml_fail(source, &place, NB_MEMORY, "no memory for the config");
            nb_yaml_destroy(&node);
            return status;
        }
    }
    NB_TRY(attach(builder, node));
    if (kind != NB_YAML_SCALAR)
        builder->levels[builder->depth++] = (struct level){.collection = node};
    return NB_OK;
}

static nb_status take_event(struct builder *builder, const yaml_event_t *event)
{
    struct nb_yaml_node place = {.line = event->start_mark.line + 1, .column = event->start_mark.column + 1};
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return add_node(builder, event, NB_YAML_SCALAR, event->data.scalar.tag);
    case YAML_SEQUENCE_START_EVENT:
        return add_node(builder, event, NB_YAML_SEQUENCE, event->data.sequence_start.tag);
    case YAML_MAPPING_START_EVENT:
        return add_node(builder, event, NB_YAML_MAPPING, event->data.mapping_start.tag);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        builder->depth--;
        return NB_OK;
    case YAML_ALIAS_EVENT:
        return nb_yaml_fail(builder->source, &place, NB_USAGE, "the alias *%s is not supported: write the value out",
            (const char *)event->data.alias.anchor);
    case YAML_DOCUMENT_START_EVENT:
        if (builder->root)
            return nb_yaml_fail(builder->source, &place, NB_USAGE, "a second document begins: a config is one document");
        return NB_OK;
    default:
        return NB_OK;
    }
}

static nb_status parser_failure(const yaml_parser_t *parser, const struct nb_yaml_source *source, const char *text, size_t bytes)
{
    struct nb_yaml_node place = {.line = parser->problem_mark.line + 1, .column = parser->problem_mark.column + 1};
    const char *problem = parser->problem ? parser->problem : "cannot be read";
    if (parser->error == YAML_MEMORY_ERROR)
        return nb_yaml_fail(source, NULL, NB_MEMORY, "no memory for the config");
    if (parser->error == YAML_READER_ERROR) { /* it gives a byte offset, and no mark */
        size_t end = parser->problem_offset < bytes ? parser->problem_offset : bytes, line_start = 0;
        place.line = 1;
        for (size_t i = 0; i < end; i++)
            if (text[i] == '\n') {
                place.line++;
                line_start = i + 1;
            }
        place.column = end - line_start + 1;
        return nb_yaml_fail(source, &place, NB_USAGE, "%s", problem);
    }
    return nb_yaml_fail(source, &place, NB_USAGE, "not YAML: %s%s%s", parser->context ? parser->context : "",
        parser->context ? ", " : "", problem);
}

nb_status nb_yaml_parse(const struct nb_yaml_source *source, const char *text, size_t bytes, struct nb_yaml_node **root)
{
    *root = NULL;
    if (bytes > NB_YAML_BYTES_MAX)
        return nb_yaml_fail(source, NULL, NB_USAGE, "longer than %d bytes: this is no config", NB_YAML_BYTES_MAX);
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return nb_yaml_fail(source, NULL, NB_MEMORY, "no memory for the config");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    struct builder builder = {.source = source};
    nb_status status = NB_OK;
    for (bool ended = false; !ended && status == NB_OK;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            status = parser_failure(&parser, source, text, bytes);
            break;
        }
        ended = event.type == YAML_STREAM_END_EVENT;
        status = take_event(&builder, &event);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    if (status != NB_OK)
        builder_abandon(&builder);
    *root = builder.root;
    return status;
}
