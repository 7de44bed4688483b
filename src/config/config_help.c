#include <stdlib.h>
#include <string.h>

#include "config/config.h"
#include "config/config_keys.h"

static const char from_adapter_words[] = ", or as the adapter in lora_model_dir has it";

static const char *type_words(const struct nb_key *key)
{
    switch (key->type) {
    case NB_KEY_STRING:
        return "text";
    case NB_KEY_BOOL:
        return "true or false";
    case NB_KEY_INTEGER:
        return nb_key_may_be_auto(key) ? "auto, or a whole number" : "whole number";
    case NB_KEY_FLOAT:
        return "number";
    case NB_KEY_SIZE:
        return "auto, or a size as 24GB or 24GiB";
    case NB_KEY_CHOICE:
        return "word";
    case NB_KEY_STRINGS:
    case NB_KEY_DATASETS:
        return "list";
    }
    return "";
}

static const char *default_words(const struct nb_key *key)
{
    return key->fallback_words ? key->fallback_words : key->fallback;
}

/* What values the key takes: its choices, its range, or the type alone. */
static void print_values(FILE *stream, const struct nb_key *key)
{
    if (key->choices) {
        for (size_t i = 0; key->choices[i]; i++)
            fprintf(stream, "%s%s", i ? ", " : "", key->choices[i]);
        return;
    }
    fputs(type_words(key), stream);
    if (key->type == NB_KEY_INTEGER || key->type == NB_KEY_FLOAT)
        fprintf(stream, key->above_minimum ? " above %.16g, at most %.16g" : " from %.16g to %.16g", key->minimum, key->maximum);
}

static void print_key(FILE *stream, const struct nb_key *key)
{
    fprintf(stream, "  %s%s\n      %s\n      Values: ", key->name, key->everywhere ? " *" : "", key->help);
    print_values(stream, key);
    fprintf(stream, ". Default: %s%s.\n", default_words(key), key->from_adapter ? from_adapter_words : "");
}

static void print_dataset_fields(FILE *stream)
{
    fputs("  Fields of an entry of datasets and test_datasets:\n", stream);
    for (size_t f = 0; f < nb_dataset_field_count; f++) {
        const struct nb_dataset_field *field = &nb_dataset_fields[f];
        fprintf(stream, "    %-22s  %s", field->name, field->help);
        for (size_t i = 0; field->choices && field->choices[i]; i++)
            fprintf(stream, "%s%s", i ? ", " : " One of: ", field->choices[i]);
        fputs(field->choices ? ".\n" : "\n", stream);
    }
    fputs("    message_property_mappings of role and content and path: json with data_files are understood too.\n", stream);
}

static const char introduction[] =
    "A config is a YAML file of key: value, with Axolotl's names. --set key=value gives or replaces one; the value is YAML too,\n"
    "so --set 'datasets=[{path: rows.jsonl, type: alpaca}]' works. A null or empty value is an unset key. Keys with * apply to\n"
    "every verb that opens a model, the others to train and plan.\n";

void nb_config_help_text(FILE *stream)
{
    fputs(introduction, stream);
    for (size_t i = 0; i < nb_key_count; i++) {
        if (i == 0 || nb_keys[i].group != nb_keys[i - 1].group)
            fprintf(stream, "\n%s\n", nb_key_group_titles[nb_keys[i].group]);
        print_key(stream, &nb_keys[i]);
        if (i + 1 == nb_key_count || nb_keys[i + 1].group != nb_keys[i].group)
            if (nb_keys[i].group == NB_GROUP_DATA)
                print_dataset_fields(stream);
    }
    fputs("\nAxolotl keys that mean nothing here (flash_attention, wandb_*, dataset_prepared_path, ...) are ignored, with a word\n"
          "about it; those that would change what is trained are refused. special_tokens must equal the tokenizer's.\n", stream);
}

nb_status nb_config_help_key(FILE *stream, const char *name)
{
    const struct nb_key *key = nb_key_find(name);
    if (!key) {
        const char *nearest = nb_key_nearest(name).best;
        return nb_fail(NB_USAGE, "no config key is called \"%.64s\"; the nearest is \"%s\"", name, nearest ? nearest : nb_keys[0].name);
    }
    print_key(stream, key);
    if (key->type == NB_KEY_DATASETS)
        print_dataset_fields(stream);
    return NB_OK;
}

/* Text in roff: a backslash, a hyphen and a dot or quote at a line's start have a meaning of their own there. */
static void print_roff(FILE *stream, const char *text)
{
    if (*text == '.' || *text == '\'')
        fputs("\\&", stream);
    for (; *text; text++) {
        if (*text == '\\')
            fputs("\\e", stream);
        else if (*text == '-')
            fputs("\\-", stream);
        else
            fputc(*text, stream);
    }
}

static void print_roff_item(FILE *stream, const char *name, bool everywhere)
{
    fputs(".TP\n.B ", stream);
    print_roff(stream, name);
    fputs(everywhere ? " *\n" : "\n", stream);
}

void nb_config_man(FILE *stream)
{
    fputs(".SH CONFIGURATION\n", stream);
    print_roff(stream, introduction);
    for (size_t i = 0; i < nb_key_count; i++) {
        const struct nb_key *key = &nb_keys[i];
        if (i == 0 || key->group != nb_keys[i - 1].group)
            fprintf(stream, ".SS %s\n", nb_key_group_titles[key->group]);
        print_roff_item(stream, key->name, key->everywhere);
        print_roff(stream, key->help);
        fputs("\nValues: ", stream);
        print_values(stream, key);
        fputs(". Default: ", stream);
        print_roff(stream, default_words(key));
        fprintf(stream, "%s.\n", key->from_adapter ? from_adapter_words : "");
    }
    fputs(".SS Fields of an entry of datasets and test_datasets\n", stream);
    for (size_t f = 0; f < nb_dataset_field_count; f++) {
        const struct nb_dataset_field *field = &nb_dataset_fields[f];
        print_roff_item(stream, field->name, false);
        print_roff(stream, field->help);
        for (size_t i = 0; field->choices && field->choices[i]; i++)
            fprintf(stream, "%s%s", i ? ", " : " One of: ", field->choices[i]);
        fputs(field->choices ? ".\n" : "\n", stream);
    }
}
