/* The verbs: one table names each with its arguments and options; the parser, `nibble help`, each verb's --help and the manual page
 * come from it. A verb's function parses nothing: it opens, calls and prints. */
#ifndef NB_COMMAND_COMMAND_H
#define NB_COMMAND_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

/* Exit codes of the program. */
enum nb_exit { NB_EXIT_DONE = 0, NB_EXIT_FAILED = 1, NB_EXIT_USAGE = 2, NB_EXIT_INTERRUPTED = 130 };

enum nb_option_type { NB_OPTION_FLAG, NB_OPTION_TEXT, NB_OPTION_INTEGER, NB_OPTION_NUMBER, NB_OPTION_SETTINGS };

/* An option --name. TEXT, INTEGER and NUMBER take a value; an optional value may be missing (`--resume`). SETTINGS is --set, which
 * may be given any number of times. */
struct nb_option {
    const char *name;  /* without the dashes */
    enum nb_option_type type;
    const char *value; /* what the help calls the value, "FILE"; NULL for a flag */
    bool optional_value;
    const char *help;
    double minimum, maximum; /* of INTEGER and NUMBER; both 0: any */
};

enum { NB_OPTIONS_MAX = 16, NB_SETTINGS_MAX = 256 };

/* What the command line said. Strings belong to argv. */
struct nb_arguments {
    const char *positional, *second;  /* the verb's argument or two; NULL if not given */
    bool given[NB_OPTIONS_MAX];       /* by the option's place in the verb's list */
    const char *text[NB_OPTIONS_MAX]; /* NULL where not given or without a value */
    double number[NB_OPTIONS_MAX];
    const char *settings[NB_SETTINGS_MAX]; /* "key=value" */
    size_t setting_count;
};

struct nb_command {
    const char *name;
    const char *argument;    /* "CONFIG", "MODEL", ...; NULL for none */
    bool argument_optional;
    const char *second;      /* one more, always optional; NULL for none */
    const char *summary;     /* one line */
    const char *description; /* paragraphs for --help and the manual page */
    const char *example;     /* a command line that works */
    const struct nb_option *options; /* up to a NULL name */
    nb_status (*run)(const struct nb_arguments *arguments);
};

extern const struct nb_command nb_command_train, nb_command_plan, nb_command_quantize, nb_command_evaluate, nb_command_generate,
    nb_command_chat, nb_command_tokenize, nb_command_inspect, nb_command_bench;

/* The table, in the order of the help, ended by NULL. */
extern const struct nb_command *const nb_commands[];

/* The command of that name, or NULL. */
const struct nb_command *nb_command_find(const char *name);

/* The name nearest to a mistyped one by edit distance, NULL when none is near. */
const char *nb_command_nearest(const char *name);

/* Reads a verb's arguments. Errors: NB_USAGE, naming the option and the nearest known one. */
nb_status nb_arguments_parse(const struct nb_command *command, int argc, char **argv, struct nb_arguments *arguments);

/* Place of an option in the verb's list; the name must be in it. */
int nb_option_index(const struct nb_command *command, const char *name);

/* `nibble` alone: one screen. `nibble help`: the verbs. `nibble help VERB`, `nibble help config`. */
void nb_help_screen(FILE *out);
void nb_help_commands(FILE *out);
void nb_help_command(const struct nb_command *command, FILE *out);

/* nibble(1) in roff. */
void nb_help_manual(FILE *out);

/* What `--version` prints: version, the CPU's matrix products, instruction set, build options, and the GPU with its library. */
void nb_help_version(FILE *out);

/* The exit code of a status. */
enum nb_exit nb_exit_of(nb_status status);

#endif
