/* The tables behind the configuration. Private to this room. */
#ifndef NB_CONFIG_CONFIG_KEYS_H
#define NB_CONFIG_CONFIG_KEYS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/nearest.h"
#include "config/config.h"

enum nb_key_type {
    NB_KEY_STRING,   /* char * */
    NB_KEY_BOOL,     /* bool */
    NB_KEY_INTEGER,  /* int64_t; -1 for "auto", where that is the fallback or or_auto says so */
    NB_KEY_FLOAT,    /* double */
    NB_KEY_SIZE,     /* int64_t, bytes: "24GB" (10^9), "512 MiB" (2^20), ...; -1 for "auto", where that is the fallback */
    NB_KEY_CHOICE,   /* an enum: the index into choices */
    NB_KEY_STRINGS,  /* struct nb_config_strings */
    NB_KEY_DATASETS, /* struct nb_config_datasets */
};

enum nb_key_group { NB_GROUP_MODEL, NB_GROUP_ADAPTER, NB_GROUP_DATA, NB_GROUP_TRAINING, NB_GROUP_RUN, NB_GROUP_MACHINE };

struct nb_key {
    const char *name;
    const char *help; /* one line, without the default */
    enum nb_key_type type;
    enum nb_key_group group;
    bool everywhere;            /* applies to verbs other than train and plan too */
    bool may_change;            /* from one start of a run to the next: it changes neither data nor arithmetic */
    bool from_adapter;          /* unset with lora_model_dir, it is what that adapter says, whatever the fallback */
    size_t offset;              /* of the field in struct nb_config */
    const char *fallback;       /* the default as YAML; NULL: the key is then unset */
    const char *fallback_words; /* the default for people, where `fallback` does not say it */
    double unset;               /* a number's value while it is unset and has no fallback */
    double minimum, maximum;    /* of a number, both included ... */
    bool above_minimum;         /* ... but the minimum itself, when true */
    bool whole_from_one;        /* a fraction below 1 or a whole number from 1 */
    bool or_auto;               /* an integer that may be "auto", -1, though that is not its fallback */
    const char *const *choices; /* NULL-terminated; of a choice by enum value, of a string those it may be, or NULL */
};

/* A choice is stored through an unsigned *, the type that the compilers give these enums. */
_Static_assert(sizeof(enum nb_config_optimizer) == sizeof(unsigned), "enums are unsigned ints");

extern const struct nb_key nb_keys[];
extern const size_t nb_key_count;
extern const char *const nb_key_group_titles[];

/* An accepted Axolotl key that this program has no use for. */
enum nb_foreign_rule {
    NB_FOREIGN_ANY,   /* changes nothing that is trained: listed as ignored */
    NB_FOREIGN_EMPTY, /* null, false, 0 or empty is listed as ignored; anything else would change the training and is refused */
    NB_FOREIGN_WORDS, /* one of `words`, or null */
};

struct nb_foreign_key {
    const char *name; /* "wandb_*" stands for all names with that beginning */
    enum nb_foreign_rule rule;
    const char *words;  /* NB_FOREIGN_WORDS: "steps|epoch" */
    const char *advice; /* what to do instead, or NULL */
};

extern const struct nb_foreign_key nb_foreign_keys[];
extern const size_t nb_foreign_key_count;

/* A field of an entry of `datasets`. */
struct nb_dataset_field {
    const char *name, *help;
    size_t offset;
    const char *const *choices;
};

extern const struct nb_dataset_field nb_dataset_fields[];
extern const size_t nb_dataset_field_count;
extern const struct nb_foreign_key nb_foreign_dataset_fields[];
extern const size_t nb_foreign_dataset_field_count;

/* "24GB" as 24 * 10^9, "512MiB" as 512 * 2^20, with or without a space before the unit, and fractions; a number alone is bytes. False for
 * anything else, for a part of a byte and for more than 2^62. */
bool nb_read_size(const char *text, int64_t *bytes);

/* Whether "auto" is a value of the number. */
bool nb_key_may_be_auto(const struct nb_key *key);

/* NULL when there is none of that name. */
const struct nb_key *nb_key_find(const char *name);

/* The search for the key whose name is nearest. Its `best` is NULL for a name that is too long to be a slip. */
struct nb_nearest nb_key_nearest(const char *name);

/* Where the key's value stands in a config. */
void *nb_key_field(struct nb_config *config, const struct nb_key *key);
const void *nb_key_field_const(const struct nb_config *config, const struct nb_key *key);

/* Frees what the key's value owns and gives it its default, unset. Errors: NB_MEMORY. */
nb_status nb_key_reset(struct nb_config *config, const struct nb_key *key);

/* Frees what the key's value owns. */
void nb_key_clear(struct nb_config *config, const struct nb_key *key);

/* Reads a number, a word or a truth value; each returns false when the text is none. Floats take 1e-4, 2E5, .5 and 3., never inf or
 * nan; integers are decimal, without underscores or leading zeros; truth is true, false, yes, no, on, off as YAML 1.1 spells them. */
bool nb_read_bool(const char *text, bool *value);
bool nb_read_integer(const char *text, int64_t *value);
bool nb_read_float(const char *text, double *value);

/* The index of `text` among choices, or -1. */
int nb_find_choice(const char *const *choices, const char *text);

/* Appends a copy. Errors: NB_MEMORY. */
nb_status nb_strings_add(struct nb_config_strings *strings, const char *text);
void nb_strings_free(struct nb_config_strings *strings);

#endif
