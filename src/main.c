#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/threads.h"
#include "command/command.h"
#include "config/config.h"

static nb_status run_help(int argc, char **argv)
{
    if (argc == 0) {
        nb_help_commands(stdout);
        return NB_OK;
    }
    if (strcmp(argv[0], "config") == 0) {
        if (argc > 1)
            return nb_config_help_key(stdout, argv[1]);
        nb_config_help_text(stdout);
        return NB_OK;
    }
    if (strcmp(argv[0], "manual") == 0) {
        nb_help_manual(stdout);
        return NB_OK;
    }
    const struct nb_command *command = nb_command_find(argv[0]);
    if (!command)
        return nb_fail(NB_USAGE, "no help on \"%s\"; `nibble help` lists the verbs, `nibble help config` the keys", argv[0]);
    nb_help_command(command, stdout);
    return NB_OK;
}

static nb_status run_command(const struct nb_command *command, int argc, char **argv)
{
    struct nb_arguments arguments;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            nb_help_command(command, stdout);
            return NB_OK;
        }
    }
    NB_TRY(nb_arguments_parse(command, argc, argv, &arguments));
    return command->run(&arguments);
}

static nb_status run(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        nb_help_screen(stdout);
        return NB_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        nb_help_version(stdout);
        return NB_OK;
    }
    if (strcmp(argv[1], "help") == 0)
        return run_help(argc - 2, argv + 2);
    const struct nb_command *command = nb_command_find(argv[1]);
    if (!command) {
        const char *nearest = nb_command_nearest(argv[1]);
        if (nearest)
            return nb_fail(NB_USAGE, "unknown verb \"%s\"; did you mean %s?", argv[1], nearest);
        return nb_fail(NB_USAGE, "unknown verb \"%s\"; `nibble help` lists them", argv[1]);
    }
    return run_command(command, argc - 2, argv + 2);
}

int main(int argc, char **argv)
{
    nb_threads_let_waits_sleep(argv);
    /* A write past a file size limit, or into a closed pipe, shall fail like any other and be reported. */
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    nb_status status = run(argc, argv);
    /* What stdout buffered may not fit on the disk; a report cut short must not look complete. */
    if (status == NB_OK && (fflush(stdout) || ferror(stdout)))
        status = nb_fail_errno("cannot write to standard output");
    if (status != NB_OK && status != NB_INTERRUPTED)
        nb_log_error();
    return nb_exit_of(status);
}
