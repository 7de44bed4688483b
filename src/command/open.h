/* What the verbs that open a model share. */
#ifndef NB_COMMAND_OPEN_H
#define NB_COMMAND_OPEN_H

#include "command/command.h"
#include "config/config.h"
#include "train/setup.h"

/* The --set option, alike in every verb. */
#define NB_OPTION_SET                                                                                                       \
    {                                                                                                                       \
        .name = "set", .type = NB_OPTION_SETTINGS, .value = "KEY=VALUE",                                                    \
        .help = "a key of the configuration, any number of times (nibble help config)"                                      \
    }

/* Reads CONFIG with the --set overrides and checks it for training; says once which of its keys mean nothing here. On an error
 * *config is zeroed. */
nb_status nb_open_training_config(const struct nb_arguments *arguments, struct nb_config *config);

/* A configuration made of --set alone, and the run it opens. Destroy with nb_opened_close. */
struct nb_opened {
    struct nb_config config;
    struct nb_run *run;
};

/* For a verb that needs none of the keys' values: a wrong key or value is an error all the same. */
nb_status nb_open_check_settings(const struct nb_arguments *arguments);

/* `adapter` and `data` may be NULL. On an error nothing is left open. */
nb_status nb_open_run(const struct nb_arguments *arguments, enum nb_purpose purpose, const char *adapter, const char *data,
                      struct nb_opened *opened);
void nb_opened_close(struct nb_opened *opened);

#endif
