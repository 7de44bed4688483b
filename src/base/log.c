#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/status.h"

static void print_line(const char *prefix, const char *format, va_list arguments)
{
    char text[4096];
    vsnprintf(text, sizeof text, format, arguments);
    /* "\r\033[K" clears what a progress line left on a terminal. */
    fprintf(stderr, "%s%s%s\n", nb_log_is_terminal() ? "\r\033[K" : "", prefix, text);
}

void nb_log(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_line("", format, arguments);
    va_end(arguments);
}

void nb_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_line("warning: ", format, arguments);
    va_end(arguments);
}

void nb_log_error(void)
{
    fprintf(stderr, "%serror: %s\n", nb_log_is_terminal() ? "\r\033[K" : "", nb_status_message());
}

int nb_log_is_terminal(void)
{
    return isatty(STDERR_FILENO);
}
