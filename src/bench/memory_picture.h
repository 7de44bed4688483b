/* The picture of `bench memory`: memory against context, a line a setting. */
#ifndef NB_BENCH_MEMORY_PICTURE_H
#define NB_BENCH_MEMORY_PICTURE_H

#include <stdint.h>

#include "base/status.h"

struct nb_picture_point {
    const char *model;   /* points of one model stand together, and get a panel */
    const char *setting; /* a line of the panel; its points stand in ascending order of `tokens` */
    int line;            /* which one: its colour, the same in every panel */
    int tokens;
    double bytes, tokens_per_second;
};

/* Writes an SVG file. `title` and the names may hold any text. Errors: NB_IO, NB_MEMORY. */
nb_status nb_picture_write(const char *title, const struct nb_picture_point *points, int count, const char *path);

#endif
