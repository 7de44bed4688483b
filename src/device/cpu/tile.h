/* How the ops that multiply cut sizes into tiles, and rows of a buffer made ready for a tile. */
#ifndef NB_DEVICE_CPU_TILE_H
#define NB_DEVICE_CPU_TILE_H

#include "device/cpu/cpu.h"
#include "device/cpu/product.h"

/* A cut of `total` into `count` tiles of `width`, the last one smaller. */
struct nb_cut {
    int total, count, width;
};

static inline int nb_round_up(int value, int multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

/* Tiles as equal as multiples of `multiple` allow, none wider than `limit` (a multiple of it). */
static inline struct nb_cut nb_cut_evenly(int total, int limit, int multiple)
{
    int count = (total + limit - 1) / limit;
    int width = nb_round_up((total + count - 1) / count, multiple);
    return (struct nb_cut){total, (total + width - 1) / width, width};
}

/* Tiles of `width`, whatever the total: an element's tile does not move. */
static inline struct nb_cut nb_cut_by(int total, int width)
{
    return (struct nb_cut){total, (total + width - 1) / width, width};
}

static inline int nb_cut_begin(const struct nb_cut *cut, int tile)
{
    return tile * cut->width;
}

static inline int nb_cut_width(const struct nb_cut *cut, int tile)
{
    int left = cut->total - tile * cut->width;
    return left < cut->width ? left : cut->width;
}

/* `valid` rows of [columns] activations at element `index` of `from`, to be multiplied as `padded` rows. */
struct nb_tile_rows {
    nb_dptr from;
    enum nb_dtype dtype;
    int64_t index;
    int stride, valid, padded, columns;
};

/* Rows of a tile that is multiplied are padded to a multiple of this, so that no other rows change a row's bits (product.h). */
enum { NB_TILE_ROW_STEP = 16 };

/* A buffer of activation rows. */
struct nb_tile_source {
    nb_dptr from;
    enum nb_dtype dtype;
    int stride;
};

/* Its rows [row, row + valid) by columns [begin, begin + columns), padded to a multiple of `step` rows. */
struct nb_tile_span {
    int row, valid, step, begin, columns;
};

static inline struct nb_tile_rows nb_tile_rows(struct nb_tile_source source, struct nb_tile_span span)
{
    return (struct nb_tile_rows){
        .from = source.from,
        .dtype = source.dtype,
        .index = (int64_t)span.row * source.stride + span.begin,
        .stride = source.stride,
        .valid = span.valid,
        .padded = nb_round_up(span.valid, span.step),
        .columns = span.columns,
    };
}

/* The rows themselves where valid == padded, else a copy in `buffer` [padded, columns] with zeros behind; *stride is
 * set to that of what was returned. */
const void *nb_tile_rows_padded(const struct nb_tile_rows *rows, void *buffer, int *stride);

/* Lays buffers one behind the other at multiples of 256 bytes. With no base only `bytes` counts, and the pointers are
 * NULL. */
struct nb_carver {
    char *base;
    uint64_t bytes;
};

static inline void *nb_carve(struct nb_carver *carver, uint64_t bytes)
{
    void *at = carver->base ? carver->base + carver->bytes : NULL;
    carver->bytes += nb_aligned(bytes);
    return at;
}

/* This thread's number within the parallel region. */
int nb_cpu_thread(void);

/* After a parallel region with products in it: leaves it, and keeps the first failure for the stream at work. `entered` is what
 * nb_products_enter gave. */
void nb_cpu_leave_products(struct nb_cpu *cpu, int entered);

#endif
