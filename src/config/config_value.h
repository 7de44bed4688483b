/* From a YAML node to a key's value. Private to this room. */
#ifndef NB_CONFIG_CONFIG_VALUE_H
#define NB_CONFIG_CONFIG_VALUE_H

#include "config/config_keys.h"
#include "config/config_yaml.h"

/* Gives the key the node's value and marks it as set; null and an empty text make it unset. What it had is freed.
 * Errors: NB_USAGE naming key, place and what was expected; NB_MEMORY. */
nb_status nb_value_set(struct nb_config *config, const struct nb_key *key, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source);

/* The mapping under special_tokens. */
nb_status nb_value_set_special_tokens(struct nb_config *config, const struct nb_yaml_node *node, const struct nb_yaml_source *source);
void nb_special_tokens_free(struct nb_config_special_tokens *tokens);

/* Checks a key that is not in the table: *known says whether `keys` accepts its name. Errors: NB_USAGE for a value that would change
 * what is trained. */
nb_status nb_value_check_foreign(const struct nb_foreign_key *keys, size_t count, const struct nb_yaml_node *node,
    const struct nb_yaml_source *source, bool *known);

#endif
