#include "chunk_rows.h"

/* y[rows[row_begin + i]] = x[i]. */
static void one(struct checkop *c, const struct chunk_case *k, enum nb_dtype dtype)
{
    checkop_case(c, "%d trained rows from %d, at most %d, x %d %s", k->trained, k->row_begin, k->rows_max, k->width,
                 checkop_dtype_name(dtype));
    uint64_t w = (uint64_t)k->width, row_bytes = w * nb_dtype_bytes(dtype);
    struct checkop_buffer *x = checkop_input(c, "x", dtype, (uint64_t)k->rows_max * w);
    struct checkop_buffer *y = checkop_output(c, "y", dtype, CHUNK_TOKENS * w);
    checkop_fill_pattern(c, y, CHECKOP_MIXED); /* what the other rows must keep */
    struct checkop_buffer *rows = chunk_rows(c, k->trained, CHUNK_TOKENS);
    checkop_fill_normal(c, x, 1.0);
    struct nb_scatter_rows args = {.row_begin = k->row_begin, .rows_max = k->rows_max, .width = k->width, .activation = dtype};
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.rows, rows);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = CHUNK_TOKENS, .trained_rows = (uint32_t)k->trained}));
    checkop_run(c, CHECKOP_scatter_rows, &args);
    for (int i = 0; i < chunk_rows_here(k); i++) {
        uint64_t row = (uint64_t)checkop_get(rows, (uint64_t)(k->row_begin + i));
        checkop_expect_bytes(c, y, row * w, w, (const char *)checkop_image(x) + (uint64_t)i * row_bytes);
    }
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { ROWS = 1024, WIDTH = 576 };
    checkop_case(c, "%d x %d f32", ROWS, WIDTH);
    struct nb_scatter_rows args = {.rows_max = ROWS, .width = WIDTH, .activation = NB_DTYPE_F32};
    checkop_bind(c, &args.x, checkop_input(c, "x", NB_DTYPE_F32, ROWS * WIDTH));
    checkop_bind(c, &args.rows, chunk_rows(c, ROWS, ROWS));
    checkop_bind(c, &args.y, checkop_output(c, "y", NB_DTYPE_F32, ROWS * WIDTH));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = ROWS, .trained_rows = ROWS}));
    checkop_bench(c, CHECKOP_scatter_rows, &args, 2.0 * ROWS * WIDTH * 4, 0);
}

void checkop_scatter_rows(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_scatter_rows bad = {.x = p, .y = p, .rows = p, .slot = p, .rows_max = 1, .width = 8};
    checkop_refuses(c, CHECKOP_scatter_rows, &bad, "x and y");
    CHECKOP_EACH(c, chunk_cases, one);
}
