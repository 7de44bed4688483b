#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 2048 };

/* The one piece of state at file scope: like errno, a failure's text belongs to the thread that failed, and passing a buffer
 * through every reader and op would put it into each of their signatures. */
static _Thread_local char last_message[MESSAGE_BYTES];

nb_status nb_fail(nb_status code, const char *format, ...)
{
    va_list arguments;
    char text[MESSAGE_BYTES]; /* the arguments may point into last_message */
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(last_message, text, sizeof text);
    return code;
}

nb_status nb_fail_errno(const char *format, ...)
{
    int code = errno;
    va_list arguments;
    char text[MESSAGE_BYTES];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return nb_fail(NB_IO, "%s: %s", text, strerror(code));
}

nb_status nb_fail_within(nb_status code, const char *format, ...)
{
    va_list arguments;
    char prefix[MESSAGE_BYTES];
    va_start(arguments, format);
    vsnprintf(prefix, sizeof prefix, format, arguments);
    va_end(arguments);
    return nb_fail(code, "%s: %s", prefix, last_message);
}

const char *nb_status_message(void)
{
    return last_message;
}
