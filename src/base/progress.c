#include "base/progress.h"

#include <inttypes.h>
#include <math.h>
#include <time.h>

#include "base/log.h"

double nb_clock_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void nb_format_seconds(double seconds, char text[32])
{
    if (!(seconds > 0))
        seconds = 0;
    if (seconds < 59.95) {
        snprintf(text, 32, "%.1f s", seconds);
        return;
    }
    double whole = floor(fmin(seconds, 3.6e9) + 0.5);
    int hours = (int)(whole / 3600);
    int minutes = (int)fmod(whole / 60, 60);
    if (hours)
        snprintf(text, 32, "%d h %02d min", hours, minutes);
    else
        snprintf(text, 32, "%d min %02d s", minutes, (int)fmod(whole, 60));
}

void nb_progress_start(struct nb_progress *progress, const char *label, const char *unit, uint64_t total)
{
    nb_progress_start_on(progress, label, unit, total, stderr, nb_log_is_terminal());
}

void nb_progress_start_on(
    struct nb_progress *progress, const char *label, const char *unit, uint64_t total, FILE *stream, bool terminal)
{
    double now = nb_clock_seconds();
    *progress = (struct nb_progress){.label = label,
        .unit = unit,
        .total = total,
        .started = now,
        .shown = now,
        .terminal = terminal,
        .stream = stream};
}

/* "120/400 rows" or "12.5/92.0 MiB"; without a total only the first number. */
static void format_amount(const struct nb_progress *progress, char *text, size_t bytes)
{
    const double mebibyte = 1024.0 * 1024.0;
    double done = (double)progress->done / mebibyte, total = (double)progress->total / mebibyte;
    if (progress->unit && progress->total)
        snprintf(text, bytes, "%" PRIu64 "/%" PRIu64 " %s", progress->done, progress->total, progress->unit);
    else if (progress->unit)
        snprintf(text, bytes, "%" PRIu64 " %s", progress->done, progress->unit);
    else if (progress->total)
        snprintf(text, bytes, "%.1f/%.1f MiB", done, total);
    else
        snprintf(text, bytes, "%.1f MiB", done);
}

static void format_rate(const struct nb_progress *progress, double seconds, char *text, size_t bytes)
{
    double rate = seconds > 0 ? (double)progress->done / seconds : 0;
    if (progress->unit)
        snprintf(text, bytes, rate < 10 ? "%.2f %s/s" : "%.0f %s/s", rate, progress->unit);
    else
        snprintf(text, bytes, "%.1f MiB/s", rate / (1024.0 * 1024.0));
}

static void print_line(const struct nb_progress *progress, double seconds)
{
    char amount[96], rate[96], left[32] = "";
    format_amount(progress, amount, sizeof amount);
    format_rate(progress, seconds, rate, sizeof rate);
    fprintf(progress->stream, "%s%s: %s", progress->terminal ? "\r\033[K" : "", progress->label, amount);
    if (progress->total)
        fprintf(progress->stream, " (%.0f %%)", 100.0 * (double)progress->done / (double)progress->total);
    fprintf(progress->stream, ", %s", rate);
    if (progress->total && progress->done) {
        nb_format_seconds(seconds * ((double)progress->total / (double)progress->done - 1.0), left);
        fprintf(progress->stream, ", %s left", left);
    }
    fputs(progress->terminal ? "" : "\n", progress->stream);
    fflush(progress->stream);
}

void nb_progress_update(struct nb_progress *progress, uint64_t done)
{
    const double redraw_seconds = 0.1, plain_seconds = 10;
    double now = nb_clock_seconds();
    progress->done = progress->total && done > progress->total ? progress->total : done;
    if (progress->total && progress->done == progress->total)
        return; /* nb_progress_finish draws the end */
    double since = now - progress->shown;
    if (progress->terminal) {
        if (since < redraw_seconds)
            return;
    } else if (progress->total) {
        int tenths = (int)(10.0 * (double)progress->done / (double)progress->total);
        /* Work that is over within a second needs no lines of its way there. */
        if (tenths <= progress->tenths || now - progress->started < 1)
            return;
        progress->tenths = tenths;
    } else if (since < plain_seconds) {
        return;
    }
    progress->shown = now;
    print_line(progress, now - progress->started);
}

void nb_progress_finish(struct nb_progress *progress)
{
    char amount[96], rate[96], took[32];
    double seconds = nb_clock_seconds() - progress->started;
    if (progress->total)
        progress->done = progress->total;
    if (!progress->terminal && seconds < 0.5)
        return;
    uint64_t total = progress->total;
    progress->total = 0; /* the closing line says what was done, not "400/400" */
    format_amount(progress, amount, sizeof amount);
    progress->total = total;
    format_rate(progress, seconds, rate, sizeof rate);
    nb_format_seconds(seconds, took);
    fprintf(progress->stream, "%s%s: %s in %s, %s\n", progress->terminal ? "\r\033[K" : "", progress->label, amount,
        took, rate);
    fflush(progress->stream);
}

void nb_progress_abandon(struct nb_progress *progress)
{
    if (progress->terminal) {
        fputs("\r\033[K", progress->stream);
        fflush(progress->stream);
    }
}
