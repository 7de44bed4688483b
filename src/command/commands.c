#include "command/command.h"

const struct nb_command *const nb_commands[] = {
    &nb_command_train,    &nb_command_plan, &nb_command_quantize, &nb_command_evaluate, &nb_command_generate,
    &nb_command_chat,     &nb_command_tokenize, &nb_command_inspect,  &nb_command_bench, NULL,
};
