#include "command/open.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/log.h"

static void note_ignored(const struct nb_config *config)
{
    char *names = NULL;
    for (size_t i = 0; i < config->ignored.count; i++) {
        char *longer = nb_format("%s%s%s", names ? names : "", names ? ", " : "", config->ignored.items[i]);
        free(names);
        names = longer;
    }
    if (names)
        nb_log("note: %s: ignored, for they mean nothing here: %s", config->source, names);
    free(names);
}

nb_status nb_open_training_config(const struct nb_arguments *arguments, struct nb_config *config)
{
    NB_TRY(nb_config_read(arguments->positional, arguments->settings, arguments->setting_count, config));
    nb_status status = nb_config_validate_train(config);
    if (status != NB_OK)
        nb_config_destroy(config);
    else
        note_ignored(config);
    return status;
}

nb_status nb_open_check_settings(const struct nb_arguments *arguments)
{
    struct nb_config config;
    NB_TRY(nb_config_from_overrides(arguments->settings, arguments->setting_count, &config));
    nb_config_destroy(&config);
    return NB_OK;
}

nb_status nb_open_run(const struct nb_arguments *arguments, enum nb_purpose purpose, const char *adapter, const char *data,
                      struct nb_opened *opened)
{
    *opened = (struct nb_opened){0};
    NB_TRY(nb_config_from_overrides(arguments->settings, arguments->setting_count, &opened->config));
    struct nb_run_args args = {
        .config = &opened->config, .purpose = purpose, .model = arguments->positional, .adapter = adapter, .data = data};
    nb_status status = nb_run_open(&args, &opened->run);
    if (status != NB_OK)
        nb_opened_close(opened);
    return status;
}

void nb_opened_close(struct nb_opened *opened)
{
    nb_run_destroy(&opened->run);
    nb_config_destroy(&opened->config);
}
