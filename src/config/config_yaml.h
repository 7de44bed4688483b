/* YAML text to a small tree whose nodes know their line and column. Private to this room. */
#ifndef NB_CONFIG_CONFIG_YAML_H
#define NB_CONFIG_CONFIG_YAML_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* Bounds on hostile input; a real config stays far below them. */
enum { NB_YAML_BYTES_MAX = 1 << 20, NB_YAML_DEPTH_MAX = 16, NB_YAML_NODES_MAX = 4096 };

enum nb_yaml_kind { NB_YAML_SCALAR, NB_YAML_SEQUENCE, NB_YAML_MAPPING };

struct nb_yaml_node {
    enum nb_yaml_kind kind;
    size_t line, column; /* from 1 */
    char *text;          /* a scalar's, zero-terminated, without zero bytes inside */
    bool plain;          /* an unquoted scalar, which may mean null or a truth value */
    struct nb_yaml_node *key;         /* in a mapping: the scalar before the colon; owned */
    struct nb_yaml_node *first, *next; /* children of a collection, in the order of the text; owned */
    size_t count;                      /* of children */
};

/* What a text is called in messages. */
struct nb_yaml_source {
    const char *name; /* the file, or what follows --set up to the "=" */
    bool is_override;
};

/* Records "NAME:LINE:COLUMN: message", or "--set NAME: message", and returns `code`. `node` may be NULL: no line. */
nb_status nb_yaml_fail(const struct nb_yaml_source *source, const struct nb_yaml_node *node, nb_status code,
    const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Parses one document. *root is NULL for an empty one. Aliases, tags of other types than YAML's own, duplicate keys, keys that are
 * no scalars, and what exceeds the bounds are refused. The caller destroys *root. Errors: NB_USAGE with line and column, NB_MEMORY. */
nb_status nb_yaml_parse(const struct nb_yaml_source *source, const char *text, size_t bytes, struct nb_yaml_node **root);

/* Takes NULL; nulls the handle. */
void nb_yaml_destroy(struct nb_yaml_node **node);

/* Whether the node is null: nothing at all, "~", or an unquoted null. */
bool nb_yaml_is_null(const struct nb_yaml_node *node);

#endif
