/* Status codes and the message that goes with the last failure of a thread. */
#ifndef NB_BASE_STATUS_H
#define NB_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* What a function that can fail returns. Everything but NB_OK leaves a message in nb_status_message. */
typedef enum nb_status {
    NB_OK = 0,
    NB_IO,          /* the operating system refused: open, read, write, rename, full disk */
    NB_FORMAT,      /* a file's contents are damaged, truncated or hostile */
    NB_USAGE,       /* the user's words are wrong: an unknown key, a value out of range, files that do not fit together */
    NB_UNSUPPORTED, /* well formed, but outside what this build, device or model can do */
    NB_MEMORY,      /* memory could not be had, or an arena's plan was exceeded */
    NB_NUMERIC,     /* a loss or gradient that is not finite */
    NB_INTERRUPTED, /* the user's Ctrl-C, after saving */
} nb_status;

/* Records a message (what happened, where, what to do; one line, no newline at the end) for this thread and returns `code`.
 * Replaces the thread's earlier message. At most 2,047 bytes are kept. */
nb_status nb_fail(nb_status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As nb_fail, with ": " and strerror(errno) appended. */
nb_status nb_fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Puts "prefix: " before this thread's message and returns `code`, so that a caller can name the file around a line's error. */
nb_status nb_fail_within(nb_status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The message of this thread's last failure. Valid until the thread's next failure. Never NULL. */
const char *nb_status_message(void);

/* Returns from the calling function when `call` fails. For functions that own nothing yet; others use one `goto`. */
#define NB_TRY(call)                         \
    do {                                     \
        nb_status nb_try_status_ = (call);   \
        if (nb_try_status_ != NB_OK)         \
            return nb_try_status_;           \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
