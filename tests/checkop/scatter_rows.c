#include "checkop.h"

enum { TOKENS = 90 };

/* y[rows[row_begin + i]] = x[i], of `trained` rows those from row_begin on, at most rows_max. */
static void one(struct checkop *c, int trained, int row_begin, int rows_max, int width, enum nb_dtype dtype)
{
    checkop_case(c, "%d trained rows from %d, at most %d, x %d %s", trained, row_begin, rows_max, width, checkop_dtype_name(dtype));
    int left = trained - row_begin, rows_here = left < 0 ? 0 : left < rows_max ? left : rows_max;
    uint64_t row_bytes = (uint64_t)width * nb_dtype_bytes(dtype), w = (uint64_t)width;
    struct checkop_buffer *x = checkop_input(c, "x", dtype, (uint64_t)rows_max * w);
    struct checkop_buffer *y = checkop_output(c, "y", dtype, TOKENS * w);
    checkop_fill_pattern(c, y, CHECKOP_MIXED); /* what the other rows must keep */
    struct checkop_buffer *rows = checkop_input(c, "rows", NB_DTYPE_I32, (uint64_t)trained);
    checkop_fill_normal(c, x, 1.0);
    for (int i = 0; i < trained; i++) /* ascending, the first and the last token among them */
        checkop_set(rows, (uint64_t)i, trained == 1 ? TOKENS - 1 : (int)((int64_t)i * (TOKENS - 1) / (trained - 1)));
    struct nb_scatter_rows args = {.row_begin = row_begin, .rows_max = rows_max, .width = width, .activation = dtype};
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.rows, rows);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS, .trained_rows = (uint32_t)trained}));
    checkop_run(c, CHECKOP_scatter_rows, &args);
    for (int i = 0; i < rows_here; i++) {
        uint64_t row = (uint64_t)checkop_get(rows, (uint64_t)(row_begin + i));
        checkop_expect_bytes(c, y, row * w, w, (const char *)checkop_image(x) + (uint64_t)i * row_bytes);
    }
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { ROWS = 1024, WIDTH = 576 };
    checkop_case(c, "%d x %d f32", ROWS, WIDTH);
    struct nb_scatter_rows args = {.rows_max = ROWS, .width = WIDTH, .activation = NB_DTYPE_F32};
    struct checkop_buffer *rows = checkop_input(c, "rows", NB_DTYPE_I32, ROWS);
    for (uint64_t i = 0; i < ROWS; i++)
        checkop_set(rows, i, (double)i);
    checkop_bind(c, &args.x, checkop_input(c, "x", NB_DTYPE_F32, ROWS * WIDTH));
    checkop_bind(c, &args.rows, rows);
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
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        one(c, 1, 0, 1, 8, dtype);
        one(c, 40, 0, 64, 24, dtype);  /* fewer than the chunk holds */
        one(c, 40, 16, 16, 24, dtype); /* a chunk in the middle */
        one(c, 40, 32, 16, 24, dtype); /* the last, short one */
        one(c, 40, 48, 16, 24, dtype); /* a chunk with no rows */
        one(c, 64, 0, 64, 576, dtype); /* several threads */
    }
}
