/* Words for the user. All of it goes to stderr: stdout carries data only. */
#ifndef NB_BASE_LOG_H
#define NB_BASE_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

/* A line of information; a newline is added. Erases a redrawn progress line first. */
void nb_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same, beginning with "warning: ". For what the run goes on after, but the user should know. */
void nb_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "error: " and nb_status_message(). Only main calls it. */
void nb_log_error(void);

/* Whether stderr is a terminal, where lines may be redrawn. */
int nb_log_is_terminal(void);

#ifdef __cplusplus
}
#endif

#endif
