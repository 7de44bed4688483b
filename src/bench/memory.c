/* What each megabyte costs in time: real steps under a ladder of settings and row lengths. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/shipped.h"
#include "bench/steps.h"

enum { RUNS_MAX = 64 };

static const double mebibyte = 1024.0 * 1024.0;

/* All of it, though there is room. */
#define PAGED "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 0\n"

/* From most memory to least. */
static const struct rung {
    const char *name, *settings;
} ladder[] = {
    {"resident", "optimizer: adamw_8bit\ngradient_checkpointing: false\n"},
    {"attention kept", "optimizer: adamw_8bit\ngradient_checkpointing: attention\n"},
    {"recomputed", "optimizer: adamw_8bit\ngradient_checkpointing: true\n"},
    {"+ paged", PAGED "gradient_checkpointing: true\n"},
    {"+ offloaded", PAGED "gradient_checkpointing: true\nactivation_offloading: true\n"},
    {"+ streamed", PAGED "gradient_checkpointing: true\nactivation_offloading: true\nresident_layers: 0\n"},
};

enum { RUNGS = sizeof ladder / sizeof *ladder };

struct run {
    int rung;
    struct nb_bench_steps steps;
};

struct memory {
    struct run run[RUNS_MAX];
    int runs;
};

/* ---- what is printed and written ---- */

static void print_run(FILE *out, const struct run *r)
{
    const struct nb_bench_steps *s = &r->steps;
    fprintf(out, "%8d  %-15s %10.1f %10.1f %10.1f %10.1f  %9.1f\n", s->tokens, ladder[r->rung].name,
        (double)s->planned_bytes / mebibyte, (double)s->high_water_bytes / mebibyte, (double)s->taken_bytes / mebibyte,
        (double)s->pinned_bytes / mebibyte, s->tokens_a_step / s->seconds);
    fflush(out);
}

static json_t *run_json(const struct run *r)
{
    const struct nb_bench_steps *s = &r->steps;
    return json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:f, s:f}", "tokens", s->tokens, "settings", ladder[r->rung].name, "planned_bytes",
        (json_int_t)s->planned_bytes, "peak_bytes", (json_int_t)s->high_water_bytes, "driver_bytes", (json_int_t)s->taken_bytes,
        "pinned_bytes", (json_int_t)s->pinned_bytes, "tokens_per_second", s->tokens_a_step / s->seconds, "loss", s->loss);
}

static nb_status write_csv(const struct memory *m, const char *path)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nb_fail_errno("%s", path);
    fputs("tokens,settings,planned_bytes,peak_bytes,driver_bytes,pinned_bytes,tokens_per_second\n", out);
    for (int i = 0; i < m->runs; i++) {
        const struct nb_bench_steps *s = &m->run[i].steps;
        fprintf(out, "%d,%s,%llu,%llu,%llu,%llu,%.1f\n", s->tokens, ladder[m->run[i].rung].name, (unsigned long long)s->planned_bytes,
            (unsigned long long)s->high_water_bytes, (unsigned long long)s->taken_bytes, (unsigned long long)s->pinned_bytes,
            s->tokens_a_step / s->seconds);
    }
    nb_status status = fclose(out) == 0 ? nb_file_write(path, text, bytes) : nb_fail_errno("%s", path);
    free(text);
    return status;
}

/* ---- the picture: memory against context, a line a setting ---- */

enum { WIDTH = 760, HEIGHT = 460, LEFT = 80, RIGHT = 170, TOP = 30, BOTTOM = 50 };

static double scaled(double value, double limit, int length)
{
    return limit > 0 ? value / limit * length : 0;
}

static void draw_line(FILE *out, const struct memory *m, int rung, double most_tokens, double most_bytes)
{
    static const char *const colors[] = {"#222222", "#1b6ca8", "#2e8b57", "#c77d0a", "#b03060", "#6a4ca3"};
    const char *color = colors[rung % (int)(sizeof colors / sizeof *colors)];
    double x = 0, y = 0;
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", color);
    for (int i = 0; i < m->runs; i++) {
        if (m->run[i].rung != rung)
            continue;
        x = LEFT + scaled(m->run[i].steps.tokens, most_tokens, WIDTH - LEFT - RIGHT);
        y = HEIGHT - BOTTOM - scaled((double)m->run[i].steps.high_water_bytes, most_bytes, HEIGHT - TOP - BOTTOM);
        fprintf(out, "%.1f,%.1f ", x, y);
    }
    fprintf(out, "\"/>\n<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x, y, color);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s</text>\n", x + 8, y + 4, color, ladder[rung].name);
}

static void draw_axes(FILE *out, double most_tokens, double most_bytes)
{
    for (int i = 0; i <= 4; i++) {
        double x = LEFT + (WIDTH - LEFT - RIGHT) * i / 4.0, y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * i / 4.0;
        fprintf(out, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#dddddd\"/>\n", LEFT, y, WIDTH - RIGHT, y);
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.0f</text>\n", LEFT - 8, y + 4, most_bytes / mebibyte * i / 4);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.0f</text>\n", x, HEIGHT - BOTTOM + 18, most_tokens * i / 4);
    }
    fprintf(out, "<text x=\"%d\" y=\"18\">device memory, MiB</text>\n", LEFT);
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">tokens of a row</text>\n", (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - 10);
}

static nb_status write_svg(const struct memory *m, const char *path)
{
    char *text = NULL;
    size_t bytes;
    double most_tokens = 0, most_bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nb_fail_errno("%s", path);
    for (int i = 0; i < m->runs; i++) {
        const struct nb_bench_steps *s = &m->run[i].steps;
        most_tokens = s->tokens > most_tokens ? s->tokens : most_tokens;
        most_bytes = (double)s->high_water_bytes > most_bytes ? (double)s->high_water_bytes : most_bytes;
    }
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n",
        WIDTH, HEIGHT);
    draw_axes(out, most_tokens, most_bytes);
    for (int rung = 0; rung < RUNGS; rung++)
        draw_line(out, m, rung, most_tokens, most_bytes);
    fputs("</svg>\n", out);
    nb_status status = fclose(out) == 0 ? nb_file_write(path, text, bytes) : nb_fail_errno("%s", path);
    free(text);
    return status;
}

/* ---- the runs ---- */

/* Settings that save memory alone change no bit: what they would change is a defect, and the benchmark says so. */
static nb_status check_loss(const struct memory *m)
{
    const struct run *last = &m->run[m->runs - 1];
    for (int i = 0; i < m->runs; i++) {
        const struct run *r = &m->run[i];
        if (r->steps.tokens == last->steps.tokens && memcmp(&r->steps.loss, &last->steps.loss, sizeof r->steps.loss) != 0)
            return nb_fail(NB_NUMERIC, "%d tokens: the loss with \"%s\" is %.9g, with \"%s\" %.9g: this is a defect of nibble",
                r->steps.tokens, ladder[last->rung].name, last->steps.loss, ladder[r->rung].name, r->steps.loss);
    }
    return NB_OK;
}

static nb_status climb(const struct nb_bench_options *o, int tokens, struct memory *m, json_t *results)
{
    for (int rung = 0; rung < RUNGS && m->runs < RUNS_MAX; rung++) {
        struct run *run = &m->run[m->runs];
        run->rung = rung;
        nb_status status = nb_bench_run_steps(o, tokens, ladder[rung].settings, &run->steps);
        if (status == NB_MEMORY) {
            fprintf(stderr, "%d tokens, %s: %s\n", tokens, ladder[rung].name, nb_status_message());
            continue;
        }
        NB_TRY(status);
        m->runs++;
        if (!o->json)
            print_run(o->out, run);
        json_array_append_new(results, run_json(run));
        NB_TRY(check_loss(m));
    }
    return NB_OK;
}

static nb_status run_ladder(const struct nb_bench *bench, const struct nb_bench_options *o, struct memory *m, json_t *results)
{
    static const int gpu[] = {2048, 4096, 8192}, cpu[] = {128, 256, 512}, quick[] = {32, 64};
    const int *tokens = o->tokens ? &o->tokens : o->quick ? quick : bench->cuda ? gpu : cpu;
    int count = o->tokens ? 1 : o->quick ? 2 : 3;
    if (!o->json) {
        nb_bench_print_head(bench, "memory and time of training steps, rank 16 on every linear");
        fprintf(o->out, "%8s  %-15s %10s %10s %10s %10s  %9s\n", "tokens", "settings", "planned", "peak", "driver", "pinned", "tokens/s");
    }
    for (int i = 0; i < count; i++)
        NB_TRY(climb(o, tokens[i], m, results));
    NB_TRY(nb_bench_report(bench, "memory", json_incref(results)));
    if (o->csv)
        NB_TRY(write_csv(m, o->csv));
    return o->svg ? write_svg(m, o->svg) : NB_OK;
}

nb_status nb_bench_memory(const struct nb_bench_options *options)
{
    struct nb_bench bench;
    struct nb_bench_options o = *options;
    struct memory *m = calloc(1, sizeof *m);
    char *shape = NULL;
    if (!m)
        return nb_fail(NB_MEMORY, "no memory for a benchmark");
    json_t *results = json_array();
    nb_status status = nb_bench_open(options, &bench);
    if (status == NB_OK && !o.model)
        status = nb_shipped_file("models", bench.cuda ? "llama-3-8b" : "smollm2-135m", ".json", &shape);
    if (!o.model)
        o.model = shape;
    if (status == NB_OK)
        status = run_ladder(&bench, &o, m, results);
    json_decref(results);
    free(shape);
    free(m);
    nb_bench_close(&bench);
    return status;
}
