#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"
#include "command/command.h"

enum nb_exit nb_exit_of(nb_status status)
{
    switch (status) {
    case NB_OK:
        return NB_EXIT_DONE;
    case NB_USAGE:
        return NB_EXIT_USAGE;
    case NB_INTERRUPTED:
        return NB_EXIT_INTERRUPTED;
    default:
        return NB_EXIT_FAILED;
    }
}

const struct nb_command *nb_command_find(const char *name)
{
    for (size_t i = 0; nb_commands[i]; i++)
        if (strcmp(nb_commands[i]->name, name) == 0)
            return nb_commands[i];
    return NULL;
}

const char *nb_command_nearest(const char *name)
{
    struct nb_nearest nearest = nb_nearest_start(name);
    for (size_t i = 0; nb_commands[i]; i++)
        nb_nearest_offer(&nearest, nb_commands[i]->name);
    return nb_nearest_found(&nearest);
}

int nb_option_index(const struct nb_command *command, const char *name)
{
    for (int i = 0; command->options && command->options[i].name; i++)
        if (strcmp(command->options[i].name, name) == 0)
            return i;
    return -1;
}

static nb_status unknown_option(const struct nb_command *command, const char *word)
{
    struct nb_nearest nearest = nb_nearest_start(word + 2);
    for (int i = 0; command->options && command->options[i].name; i++)
        nb_nearest_offer(&nearest, command->options[i].name);
    const char *found = nb_nearest_found(&nearest);
    if (found)
        return nb_fail(NB_USAGE, "nibble %s: unknown option %s; did you mean --%s?", command->name, word, found);
    return nb_fail(NB_USAGE, "nibble %s: unknown option %s; `nibble help %s` lists its options", command->name, word, command->name);
}

static nb_status parse_number(const struct nb_command *command, const struct nb_option *option, const char *value, double *number)
{
    char *end;
    errno = 0;
    if (option->type == NB_OPTION_INTEGER)
        *number = (double)strtoll(value, &end, 10);
    else
        *number = strtod(value, &end);
    bool ranged = option->minimum != option->maximum;
    if (end == value || *end || errno || *number != *number)
        return nb_fail(NB_USAGE, "nibble %s: --%s %s: not %s", command->name, option->name, value,
                       option->type == NB_OPTION_INTEGER ? "a whole number" : "a number");
    if (ranged && (*number < option->minimum || *number > option->maximum))
        return nb_fail(NB_USAGE, "nibble %s: --%s %s: outside %.17g to %.17g", command->name, option->name, value, option->minimum,
                       option->maximum);
    return NB_OK;
}

/* One option word, "--name", "--name value" or "--name=value". Moves *at past what it used. */
static nb_status parse_option(const struct nb_command *command, int argc, char **argv, int *at, struct nb_arguments *arguments)
{
    const char *word = argv[(*at)++];
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word);
    int index = -1;
    for (int i = 0; command->options && command->options[i].name; i++)
        if (strlen(command->options[i].name) == length - 2 && strncmp(command->options[i].name, word + 2, length - 2) == 0)
            index = i;
    if (index < 0)
        return unknown_option(command, word);
    const struct nb_option *option = &command->options[index];
    const char *value = equals ? equals + 1 : NULL;
    if (option->type == NB_OPTION_FLAG) {
        if (value)
            return nb_fail(NB_USAGE, "nibble %s: --%s takes no value", command->name, option->name);
    } else if (!value && *at < argc && !(option->optional_value && strncmp(argv[*at], "--", 2) == 0)) {
        value = argv[(*at)++];
    }
    if (!value && option->type != NB_OPTION_FLAG && !option->optional_value)
        return nb_fail(NB_USAGE, "nibble %s: --%s needs %s", command->name, option->name, option->value);
    if (option->type == NB_OPTION_SETTINGS) {
        if (!strchr(value, '='))
            return nb_fail(NB_USAGE, "nibble %s: --set %s: not key=value", command->name, value);
        if (arguments->setting_count == NB_SETTINGS_MAX)
            return nb_fail(NB_USAGE, "nibble %s: more than %d times --set; use a configuration file", command->name, NB_SETTINGS_MAX);
        arguments->settings[arguments->setting_count++] = value;
        return NB_OK;
    }
    if (arguments->given[index])
        return nb_fail(NB_USAGE, "nibble %s: --%s is given twice", command->name, option->name);
    arguments->given[index] = true;
    arguments->text[index] = value;
    if (option->type == NB_OPTION_INTEGER || option->type == NB_OPTION_NUMBER)
        return parse_number(command, option, value, &arguments->number[index]);
    return NB_OK;
}

nb_status nb_arguments_parse(const struct nb_command *command, int argc, char **argv, struct nb_arguments *arguments)
{
    *arguments = (struct nb_arguments){0};
    bool options_ended = false;
    for (int at = 0; at < argc;) {
        const char *word = argv[at];
        if (!options_ended && strcmp(word, "--") == 0) {
            options_ended = true;
            at++;
        } else if (!options_ended && strncmp(word, "--", 2) == 0) {
            NB_TRY(parse_option(command, argc, argv, &at, arguments));
        } else if (!command->argument) {
            return nb_fail(NB_USAGE, "nibble %s takes no argument, but got \"%s\"", command->name, word);
        } else if (arguments->positional && command->second && !arguments->second) {
            arguments->second = word;
            at++;
        } else if (arguments->positional) {
            return nb_fail(NB_USAGE, "nibble %s takes one %s, but got \"%s\" and \"%s\"", command->name, command->argument,
                           arguments->positional, word);
        } else {
            arguments->positional = word;
            at++;
        }
    }
    if (command->argument && !command->argument_optional && (!arguments->positional || !*arguments->positional))
        return nb_fail(NB_USAGE, "nibble %s needs %s; for example: %s", command->name, command->argument, command->example);
    return NB_OK;
}
