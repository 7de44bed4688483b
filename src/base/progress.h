/* Progress of long work (loading, quantizing, evaluating): a line redrawn on a terminal, a plain line every 10 % elsewhere. */
#ifndef NB_BASE_PROGRESS_H
#define NB_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* The fields belong to progress.c. One thread at a time may call; owns nothing, so there is nothing to destroy. */
struct nb_progress {
    const char *label; /* "quantizing"; does not own, must outlive the work */
    const char *unit;  /* "rows", or NULL for bytes, which are shown as MiB */
    uint64_t done, total;
    double started, shown; /* seconds of the monotonic clock; shown is when the last line was drawn */
    int tenths;            /* how many tenths of the work have been reported in plain lines */
    bool terminal;
    FILE *stream;
};

/* Starts the clock on stderr. `total` may be 0 when it is not known; then no percentage and no time left are shown. */
void nb_progress_start(struct nb_progress *progress, const char *label, const char *unit, uint64_t total);

/* The same on another stream, for tests and for callers that have decided about redrawing. */
void nb_progress_start_on(struct nb_progress *progress, const char *label, const char *unit, uint64_t total, FILE *stream, bool terminal);

/* Says that `done` units of the total are finished (not how many more). Draws at most ten times a second on a terminal. */
void nb_progress_update(struct nb_progress *progress, uint64_t done);

/* The last line: what was done, how long it took, at what rate. Work under half a second leaves no line outside a terminal. */
void nb_progress_finish(struct nb_progress *progress);

/* Clears the redrawn line without a closing one, for work that failed. */
void nb_progress_abandon(struct nb_progress *progress);

/* Writes "1 h 02 min", "3 min 07 s" or "12.3 s" into text. */
void nb_format_seconds(double seconds, char text[32]);

/* Seconds of the monotonic clock. */
double nb_clock_seconds(void);

#endif
