#include "bench/memory_picture.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

/* In pixels: a panel, the axes' place in it, and what a label takes. */
enum { WIDTH = 900, TITLE = 40, PANEL = 400, LEFT = 70, RIGHT = 360, TOP = 34, BOTTOM = 52, LABEL = 18, LINES_MAX = 16 };

/* Told apart with any kind of colour vision: Okabe and Ito's, and greys. */
static const char *const colours[] = {"#000000", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#7f7f7f", "#806000",
    "#004d40", "#b0a000", "#5d3a9b"};
enum { COLOURS = sizeof colours / sizeof *colours };

struct panel {
    const struct nb_picture_point *point;
    int count;
    double most_tokens, most_bytes, unit; /* of the axes; bytes of a unit of the upright one */
    const char *unit_name;
    int top; /* in the picture */
};

static void write_text(FILE *out, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '&': fputs("&amp;", out); break;
        default: fputc(*text, out);
        }
}

/* 1, 2 or 5 times a power of ten (of two for `binary`), so that `most` is four to ten of it. */
static double step_of(double most, bool binary)
{
    if (binary)
        return exp2(floor(log2(most / 4)));
    double ten = pow(10, floor(log10(most / 4))), left = most / 4 / ten;
    return ten * (left >= 5 ? 5 : left >= 2 ? 2 : 1);
}

static double x_of(const struct panel *p, double tokens)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * tokens / p->most_tokens;
}

static double y_of(const struct panel *p, double bytes)
{
    return p->top + PANEL - BOTTOM - (PANEL - TOP - BOTTOM) * bytes / p->most_bytes;
}

static void measure(struct panel *p)
{
    double tokens = 1, bytes = 1;
    for (int i = 0; i < p->count; i++) {
        tokens = fmax(tokens, p->point[i].tokens);
        bytes = fmax(bytes, p->point[i].bytes);
    }
    bool large = bytes >= 8.0 * (1 << 30);
    p->unit = large ? 1 << 30 : 1 << 20;
    p->unit_name = large ? "GiB" : "MiB";
    double step = step_of(bytes / p->unit, false);
    p->most_tokens = tokens;
    p->most_bytes = ceil(bytes / p->unit / step) * step * p->unit;
}

static void draw_axes(const struct panel *p, FILE *out)
{
    double step = step_of(p->most_bytes / p->unit, false), bottom = y_of(p, 0);
    for (double at = 0; at <= p->most_bytes / p->unit * 1.0001; at += step) {
        double y = y_of(p, at * p->unit);
        fprintf(out, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#dddddd\"/>\n", LEFT, y, WIDTH - RIGHT, y);
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", LEFT - 8, y + 4, at);
    }
    for (double at = 0, tokens = step_of(p->most_tokens, true); at <= p->most_tokens; at += tokens) {
        fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#888888\"/>\n", x_of(p, at), bottom, x_of(p, at),
            bottom + 5);
        fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n", x_of(p, at), bottom + 20, at);
    }
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">tokens of a row</text>\n", (LEFT + WIDTH - RIGHT) / 2, bottom + 40);
    fprintf(out, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">", LEFT, p->top + TOP - 14);
    write_text(out, p->point[0].model);
    fprintf(out, "</text>\n<text x=\"%d\" y=\"%d\" text-anchor=\"end\">device memory, %s</text>\n", WIDTH - RIGHT, p->top + TOP - 14,
        p->unit_name);
}

/* A line's last point, and where its label goes. */
struct label {
    const struct nb_picture_point *last;
    double y;
};

static int by_height(const void *a, const void *b)
{
    double left = ((const struct label *)a)->y, right = ((const struct label *)b)->y;
    return left < right ? -1 : left > right;
}

/* Apart from one another, from the top down, and within the panel. */
static void spread(const struct panel *p, struct label *label, int count)
{
    double least = p->top + TOP;
    qsort(label, (size_t)count, sizeof *label, by_height);
    for (int i = 0; i < count; i++) {
        label[i].y = fmax(label[i].y, least);
        least = label[i].y + LABEL;
    }
    double most = p->top + PANEL - BOTTOM;
    for (int i = count - 1; i >= 0; i--) {
        label[i].y = fmin(label[i].y, most);
        most = label[i].y - LABEL;
    }
}

static void draw_label(const struct panel *p, const struct label *label, FILE *out)
{
    const struct nb_picture_point *last = label->last;
    const char *colour = colours[last->line % COLOURS];
    double x = x_of(p, last->tokens);
    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-opacity=\"0.4\" points=\"%.1f,%.1f %d,%.1f %d,%.1f\"/>\n", colour, x + 5,
        y_of(p, last->bytes), WIDTH - RIGHT + 24, label->y, WIDTH - RIGHT + 32, label->y);
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" fill=\"%s\">", WIDTH - RIGHT + 36, label->y + 4, colour);
    write_text(out, last->setting);
    fprintf(out, "</text>\n<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.*f %s</text>\n", WIDTH - 118, label->y + 4,
        p->unit > 1 << 20 ? 2 : 0, last->bytes / p->unit, p->unit_name);
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g tokens/s</text>\n", WIDTH - 10, label->y + 4,
        last->tokens_per_second);
}

/* The dearest settings last, so that lines that fall together show the cheapest on top. */
static void draw_panel(const struct panel *p, FILE *out)
{
    struct label label[LINES_MAX];
    int labels = 0;
    draw_axes(p, out);
    for (int line = 0; line < LINES_MAX && labels < LINES_MAX; line++) {
        const struct nb_picture_point *last = NULL;
        for (int i = 0; i < p->count; i++) {
            const struct nb_picture_point *point = &p->point[i];
            if (point->line != line)
                continue;
            const char *colour = colours[line % COLOURS];
            if (last)
                fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2\"/>\n",
                    x_of(p, last->tokens), y_of(p, last->bytes), x_of(p, point->tokens), y_of(p, point->bytes), colour);
            fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", x_of(p, point->tokens), y_of(p, point->bytes),
                colour);
            last = point;
        }
        if (last)
            label[labels++] = (struct label){.last = last, .y = y_of(p, last->bytes)};
    }
    spread(p, label, labels);
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">with rows of %d tokens</text>\n", WIDTH - 10, p->top + TOP - 14,
        (int)p->most_tokens);
    for (int i = 0; i < labels; i++)
        draw_label(p, &label[i], out);
}

static int points_of_model(const struct nb_picture_point *points, int count)
{
    int same = 0;
    while (same < count && strcmp(points[same].model, points[0].model) == 0)
        same++;
    return same;
}

nb_status nb_picture_write(const char *title, const struct nb_picture_point *points, int count, const char *path)
{
    char *text = NULL;
    size_t bytes;
    int panels = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return nb_fail_errno("%s", path);
    for (int at = 0; at < count; at += points_of_model(points + at, count - at))
        panels++;
    int height = TITLE + panels * PANEL;
    fprintf(out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
        "font-size=\"13\">\n<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n<text x=\"%d\" y=\"26\" font-size=\"16\">",
        WIDTH, height, WIDTH, height, WIDTH, height, LEFT);
    write_text(out, title);
    fputs("</text>\n", out);
    struct panel panel = {.top = TITLE};
    for (int at = 0; at < count; at += panel.count, panel.top += PANEL) {
        panel.point = points + at;
        panel.count = points_of_model(points + at, count - at);
        measure(&panel);
        draw_panel(&panel, out);
    }
    fputs("</svg>\n", out);
    nb_status status = fclose(out) == 0 ? nb_file_write(path, text, bytes) : nb_fail_errno("%s", path);
    free(text);
    return status;
}
