/* The chunks of trained rows that the checks of gather_rows and scatter_rows share. */
#ifndef NB_TESTS_CHECKOP_CHUNK_ROWS_H
#define NB_TESTS_CHECKOP_CHUNK_ROWS_H

#include "checkop.h"

enum { CHUNK_TOKENS = 90 };

/* Of `trained` rows those from row_begin on, at most rows_max. */
struct chunk_case {
    int trained, row_begin, rows_max, width;
};

static const struct chunk_case chunk_cases[] = {
    {1, 0, 1, 8},
    {40, 0, 64, 24},  /* fewer than the chunk holds */
    {40, 16, 16, 24}, /* a chunk in the middle */
    {40, 32, 16, 24}, /* the last, short one */
    {40, 48, 16, 24}, /* a chunk with no rows */
    {64, 0, 64, 576}, /* several threads */
    {3, 1, 2, 8200},  /* more than a GPU's block copies at a time */
};

static inline int chunk_rows_here(const struct chunk_case *k)
{
    int left = k->trained - k->row_begin;
    return left < 0 ? 0 : left < k->rows_max ? left : k->rows_max;
}

/* The trained rows of `tokens`: ascending, the first and the last token among them. */
static inline struct checkop_buffer *chunk_rows(struct checkop *c, int trained, int tokens)
{
    struct checkop_buffer *rows = checkop_input(c, "rows", NB_DTYPE_I32, (uint64_t)trained);
    for (int i = 0; i < trained; i++)
        checkop_set(rows, (uint64_t)i, trained == 1 ? tokens - 1 : (int)((int64_t)i * (tokens - 1) / (trained - 1)));
    return rows;
}

#endif
