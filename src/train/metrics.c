#include "train/metrics.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/progress.h"

struct nb_metrics {
    FILE *file;
    char *path;
    double started, drawn; /* seconds of the monotonic clock; drawn: the terminal's line */
    int64_t first_step;
    bool terminal;
};

nb_status nb_metrics_open(const char *path, uint64_t keep_bytes, int64_t first_step, struct nb_metrics **metrics)
{
    struct nb_metrics *m = calloc(1, sizeof *m);
    struct stat status;
    *metrics = NULL;
    if (!m)
        return nb_fail(NB_MEMORY, "%s: no memory to write it", path);
    m->path = nb_format("%s", path);
    m->started = nb_clock_seconds();
    m->first_step = first_step;
    m->terminal = nb_log_is_terminal();
    if (!(m->file = fopen(path, "ae")) || fstat(fileno(m->file), &status) != 0 ||
        ((uint64_t)status.st_size > keep_bytes && ftruncate(fileno(m->file), (off_t)keep_bytes) != 0)) {
        nb_fail_errno("%s: cannot write", path);
        nb_metrics_close(&m);
        return NB_IO;
    }
    if ((uint64_t)status.st_size < keep_bytes)
        nb_warn("%s: %" PRIu64 " bytes are missing that the checkpoint counts on; going on at its end", path,
            keep_bytes - (uint64_t)status.st_size);
    *metrics = m;
    return NB_OK;
}

void nb_metrics_close(struct nb_metrics **metrics)
{
    struct nb_metrics *m = *metrics;
    if (!m)
        return;
    if (m->drawn > 0)
        fputc('\n', stderr);
    if (m->file)
        fclose(m->file);
    free(m->path);
    free(m);
    *metrics = NULL;
}

/* A whole line at once, so that a process that is killed leaves whole lines. */
static nb_status append(struct nb_metrics *m, json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    if (!text)
        return nb_fail(NB_MEMORY, "%s: no memory for a line", m->path);
    int written = fprintf(m->file, "%s\n", text);
    free(text);
    return written < 0 || fflush(m->file) != 0 ? nb_fail_errno("%s: cannot write", m->path) : NB_OK;
}

static void format_step(const struct nb_metrics *m, const struct nb_metrics_step *s, char *text, size_t bytes)
{
    char left[32];
    double seconds = nb_clock_seconds() - m->started;
    int64_t done = s->step - m->first_step;
    nb_format_seconds(done > 0 ? seconds / (double)done * (double)(s->steps - s->step) : 0, left);
    snprintf(text, bytes,
        "step %" PRId64 "/%" PRId64 "  loss %.4f  norm %.3f  lr %.2e  %.0f tokens/s  %.0f MiB  %s left", s->step,
        s->steps, s->loss, s->grad_norm, s->learning_rate, s->tokens_per_second,
        (double)s->memory_bytes / (1024.0 * 1024.0), left);
}

void nb_metrics_show(struct nb_metrics *metrics, const struct nb_metrics_step *step)
{
    char text[256];
    double now = nb_clock_seconds();
    if (!metrics->terminal || (now - metrics->drawn < 0.1 && step->step < step->steps))
        return;
    format_step(metrics, step, text, sizeof text);
    fprintf(stderr, "\r\033[K%s", text);
    fflush(stderr);
    metrics->drawn = now;
}

nb_status nb_metrics_step(struct nb_metrics *metrics, const struct nb_metrics_step *step)
{
    char text[256];
    if (metrics->terminal) {
        nb_metrics_show(metrics, step);
    } else {
        format_step(metrics, step, text, sizeof text);
        nb_log("%s", text);
    }
    return append(
        metrics, json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:I}", "step", (json_int_t)step->step,
                     "epoch", step->epoch, "loss", step->loss, "grad_norm", step->grad_norm, "learning_rate",
                     step->learning_rate, "tokens", (json_int_t)step->tokens, "trained_tokens",
                     (json_int_t)step->trained_tokens, "tokens_per_second", step->tokens_per_second, "seconds",
                     nb_clock_seconds() - metrics->started, "memory_bytes", (json_int_t)step->memory_bytes));
}

nb_status nb_metrics_evaluation(
    struct nb_metrics *metrics, int64_t step, double epoch, double loss, uint64_t trained_tokens)
{
    nb_log("step %" PRId64 "  eval loss %.4f  perplexity %.3f", step, loss, exp(loss));
    metrics->drawn = 0; /* the line above ended the redrawn one */
    return append(
        metrics, json_pack("{s:I, s:f, s:f, s:I, s:f}", "step", (json_int_t)step, "epoch", epoch, "eval_loss", loss,
                     "eval_tokens", (json_int_t)trained_tokens, "seconds", nb_clock_seconds() - metrics->started));
}

nb_status nb_metrics_sync(struct nb_metrics *metrics, uint64_t *bytes)
{
    struct stat status;
    if (fflush(metrics->file) != 0 || fsync(fileno(metrics->file)) != 0 || fstat(fileno(metrics->file), &status) != 0)
        return nb_fail_errno("%s: cannot write", metrics->path);
    *bytes = (uint64_t)status.st_size;
    return NB_OK;
}
