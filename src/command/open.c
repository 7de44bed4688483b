#include "command/open.h"

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
