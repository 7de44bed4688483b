#include "config/config_keys.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct nb_key *nb_key_find(const char *name)
{
    for (size_t i = 0; i < nb_key_count; i++)
        if (strcmp(nb_keys[i].name, name) == 0)
            return &nb_keys[i];
    return NULL;
}

bool nb_key_may_be_auto(const struct nb_key *key)
{
    return key->type == NB_KEY_INTEGER && (key->or_auto || (key->fallback && strcmp(key->fallback, "auto") == 0));
}

struct nb_nearest nb_key_nearest(const char *name)
{
    struct nb_nearest nearest = nb_nearest_start(name);
    for (size_t i = 0; i < nb_key_count; i++)
        nb_nearest_offer(&nearest, nb_keys[i].name);
    return nearest;
}

void *nb_key_field(struct nb_config *config, const struct nb_key *key)
{
    return (char *)config + key->offset;
}

const void *nb_key_field_const(const struct nb_config *config, const struct nb_key *key)
{
    return (const char *)config + key->offset;
}

int nb_find_choice(const char *const *choices, const char *text)
{
    for (int i = 0; choices[i]; i++)
        if (strcmp(choices[i], text) == 0)
            return i;
    return -1;
}

bool nb_read_bool(const char *text, bool *value)
{
    static const char *const words[] = {"true", "yes", "on", "false", "no", "off"};
    enum { TRUE_WORDS = 3 };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t bytes = strlen(words[i]);
        if (strlen(text) != bytes)
            continue;
        bool lower = true, rest_lower = text[0] == toupper(words[i][0]), upper = true;
        for (size_t j = 0; j < bytes; j++) {
            lower = lower && text[j] == words[i][j];
            rest_lower = rest_lower && (j == 0 || text[j] == words[i][j]);
            upper = upper && text[j] == toupper(words[i][j]);
        }
        if (lower || rest_lower || upper) {
            *value = i < TRUE_WORDS;
            return true;
        }
    }
    return false;
}

bool nb_read_integer(const char *text, int64_t *value)
{
    const char *digits = text + (*text == '-' || *text == '+');
    size_t count = strspn(digits, "0123456789");
    if (count == 0 || digits[count] || (digits[0] == '0' && count > 1))
        return false;
    errno = 0;
    *value = strtoll(text, NULL, 10);
    return errno == 0;
}

bool nb_read_float(const char *text, double *value)
{
    const char *p = text + (*text == '-' || *text == '+');
    size_t whole = strspn(p, "0123456789"), fraction = 0;
    p += whole;
    if (*p == '.') {
        fraction = strspn(p + 1, "0123456789");
        p += 1 + fraction;
    }
    if (whole + fraction == 0)
        return false;
    if (*p == 'e' || *p == 'E') {
        p += 1 + (p[1] == '-' || p[1] == '+');
        size_t exponent = strspn(p, "0123456789");
        if (exponent == 0)
            return false;
        p += exponent;
    }
    if (*p)
        return false;
    *value = strtod(text, NULL);
    return isfinite(*value);
}

nb_status nb_strings_add(struct nb_config_strings *strings, const char *text)
{
    char **items = realloc(strings->items, (strings->count + 1) * sizeof *items);
    if (!items)
        return nb_fail(NB_MEMORY, "no memory for the config");
    strings->items = items;
    items[strings->count] = strdup(text);
    if (!items[strings->count])
        return nb_fail(NB_MEMORY, "no memory for the config");
    strings->count++;
    return NB_OK;
}

void nb_strings_free(struct nb_config_strings *strings)
{
    for (size_t i = 0; i < strings->count; i++)
        free(strings->items[i]);
    free(strings->items);
    *strings = (struct nb_config_strings){0};
}

static void free_datasets(struct nb_config_datasets *datasets)
{
    for (size_t i = 0; i < datasets->count; i++)
        for (size_t f = 0; f < nb_dataset_field_count; f++)
            free(*(char **)((char *)&datasets->items[i] + nb_dataset_fields[f].offset));
    free(datasets->items);
    *datasets = (struct nb_config_datasets){0};
}

void nb_key_clear(struct nb_config *config, const struct nb_key *key)
{
    void *field = nb_key_field(config, key);
    if (key->type == NB_KEY_STRING) {
        free(*(char **)field);
        *(char **)field = NULL;
    } else if (key->type == NB_KEY_STRINGS) {
        nb_strings_free(field);
    } else if (key->type == NB_KEY_DATASETS) {
        free_datasets(field);
    }
}

bool nb_read_size(const char *text, int64_t *bytes)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1}, {"B", 1}, {"kB", 1e3}, {"KB", 1e3}, {"KiB", 0x1p10}, {"MB", 1e6}, {"MiB", 0x1p20}, {"GB", 1e9},
        {"GiB", 0x1p30}, {"TB", 1e12}, {"TiB", 0x1p40}};
    char *end;
    if (text[0] < '0' || text[0] > '9' || (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')))
        return false;
    double number = strtod(text, &end);
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double size = number * units[i].bytes;
        if (strcmp(end, units[i].name) == 0 && (size >= 1 || number == 0) && size <= 0x1p62) {
            *bytes = (int64_t)size;
            return true;
        }
    }
    return false;
}

/* A fallback is a literal of the table, so a text that does not fit its key's type is a mistake there; a unit test reads them all. */
nb_status nb_key_reset(struct nb_config *config, const struct nb_key *key)
{
    void *field = nb_key_field(config, key);
    nb_key_clear(config, key);
    config->set[key - nb_keys] = 0;
    switch (key->type) {
    case NB_KEY_STRING:
        if (key->fallback && !(*(char **)field = strdup(key->fallback)))
            return nb_fail(NB_MEMORY, "no memory for the config");
        break;
    case NB_KEY_BOOL:
        *(bool *)field = key->fallback && strcmp(key->fallback, "true") == 0;
        break;
    case NB_KEY_INTEGER:
        *(int64_t *)field = nb_key_may_be_auto(key) ? -1 : (int64_t)key->unset;
        if (key->fallback)
            nb_read_integer(key->fallback, field); /* which leaves it at "auto" */
        break;
    case NB_KEY_FLOAT:
        *(double *)field = key->unset;
        if (key->fallback)
            nb_read_float(key->fallback, field);
        break;
    case NB_KEY_SIZE:
        *(int64_t *)field = -1;
        break;
    case NB_KEY_CHOICE:
        *(unsigned *)field = key->fallback ? (unsigned)nb_find_choice(key->choices, key->fallback) : 0;
        break;
    case NB_KEY_STRINGS:
    case NB_KEY_DATASETS:
        break;
    }
    return NB_OK;
}
