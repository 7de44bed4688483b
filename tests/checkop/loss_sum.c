#include <stddef.h>

#include "checkop.h"

static void one(struct checkop *c, int rows, int rows_max, double before, double deviation)
{
    checkop_case(c, "%d of %d rows behind %g, times %g", rows, rows_max, before, deviation);
    struct checkop_buffer *loss = checkop_input(c, "loss", NB_DTYPE_F32, (uint64_t)rows_max);
    struct checkop_buffer *step = checkop_step(c, &(struct nb_step){.step = 3, .learning_rate = 1, .loss_sum = before}, true);
    checkop_fill_uniform(c, loss, 0, deviation);
    double want = before;
    for (int i = 0; i < rows; i++)
        want += checkop_get(loss, (uint64_t)i);
    struct nb_loss_sum args = {.rows_max = rows_max};
    checkop_bind(c, &args.loss, loss);
    checkop_bind(c, &args.step, step);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.trained_rows = (uint32_t)rows}));
    checkop_run(c, CHECKOP_loss_sum, &args);
    /* positive terms in double, 2^-53 for each addition */
    checkop_expect_member(c, step, offsetof(struct nb_step, loss_sum), CHECKOP_MEMBER_F64, want, (rows + 1) * 0x1p-52);
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { ROWS = 4096 };
    checkop_case(c, "%d rows", ROWS);
    struct nb_loss_sum args = {.rows_max = ROWS};
    checkop_bind(c, &args.loss, checkop_input(c, "loss", NB_DTYPE_F32, ROWS));
    checkop_bind(c, &args.step, checkop_step(c, &(struct nb_step){0}, true));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.trained_rows = ROWS}));
    checkop_bench(c, CHECKOP_loss_sum, &args, 4.0 * ROWS, 0);
}

void checkop_loss_sum(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    struct nb_loss_sum bad = {.step = {4096}, .loss = {4096}, .slot = {4096}};
    checkop_refuses(c, CHECKOP_loss_sum, &bad, "rows_max 0");
    one(c, 0, 1, 2.5, 1);
    one(c, 1, 4, 0, 10);
    one(c, 256, 256, 1e-3, 10); /* one tile exactly */
    one(c, 1000, 1024, 7, 10);  /* the last tile is short */
    one(c, 700, 700, 0, 1e30);
    one(c, 8192, 8192, 0, 10);  /* as many tiles as a CUDA block has warps, one row more, and a third round */
    one(c, 8193, 8300, 0, 10);
    one(c, 16500, 16500, 0, 10);
}
