#include <math.h>

#include "checkop.h"

/* One row of the forward pass without its rounding, times dy: what the differences differentiate. */
struct row {
    int width;
    double epsilon;
    const double *w, *dy;
};

struct moments {
    double mean, scale;
};

static struct moments moments_of(const struct row *r, const double *x)
{
    double mean = 0, variance = 0;
    for (int i = 0; i < r->width; i++)
        mean += x[i] / r->width;
    for (int i = 0; i < r->width; i++)
        variance += (x[i] - mean) * (x[i] - mean) / r->width;
    return (struct moments){mean, 1 / sqrt(variance + r->epsilon)};
}

static double loss_of_row(void *context, const double *x)
{
    const struct row *r = context;
    struct moments m = moments_of(r, x);
    double loss = 0;
    for (int i = 0; i < r->width; i++)
        loss += r->dy[i] * r->w[i] * (x[i] - m.mean) * m.scale;
    return loss;
}

/* The same by formula, for rows too long for differences. */
static void gradient_of_row(const struct row *r, const double *x, struct moments m, double *dx)
{
    double mean_d = 0, mean_product = 0;
    for (int i = 0; i < r->width; i++) {
        mean_d += r->dy[i] * r->w[i] / r->width;
        mean_product += r->dy[i] * r->w[i] * (x[i] - m.mean) * m.scale / r->width;
    }
    for (int i = 0; i < r->width; i++)
        dx[i] = m.scale * (r->dy[i] * r->w[i] - mean_d - (x[i] - m.mean) * m.scale * mean_product);
}

enum { APART, OVER_DY, ACCUMULATE };

struct shape {
    int rows, rows_max, width, row_begin;
    enum nb_row_count from;
};

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, int how)
{
    static const char *const how_name[] = {"", ", dx over dy", ", accumulated"};
    bool differences = s.width <= 64 && pattern == CHECKOP_NORMAL;
    checkop_case(c, "%d of %d x %d, %s %s%s%s", s.rows, s.rows_max, s.width, checkop_dtype_name(dtype),
        checkop_pattern_name(pattern), how_name[how], differences ? ", differences" : "");
    uint64_t width = (uint64_t)s.width, all = (uint64_t)s.rows_max * width;
    struct checkop_buffer *x = checkop_input(c, "x", dtype, all), *w = checkop_input(c, "w", NB_DTYPE_BF16, width);
    struct checkop_buffer *moments = checkop_input(c, "moments", NB_DTYPE_F32, 2 * (uint64_t)s.rows_max);
    struct checkop_buffer *dx = checkop_output(c, "dx", dtype, all);
    struct checkop_buffer *dy = how == OVER_DY ? dx : checkop_input(c, "dy", dtype, all);
    checkop_fill_pattern(c, x, pattern);
    checkop_fill_uniform(c, w, -0.5, 2.0);
    checkop_fill_normal(c, dy, 1.0);
    if (how == ACCUMULATE)
        checkop_fill_normal(c, dx, 1.0);
    double *row_x = checkop_scratch(c, width), *row_dy = checkop_scratch(c, width), *row_w = checkop_scratch(c, width);
    double *want = checkop_scratch(c, all), *tolerance = checkop_scratch(c, (uint64_t)s.rows_max);
    struct row r = {s.width, 1e-5, row_w, row_dy};
    for (int t = 0; t < s.rows; t++) {
        uint64_t begin = (uint64_t)t * width;
        double largest = 0, root = sqrt((double)s.width);
        for (uint64_t i = 0; i < width; i++) {
            row_x[i] = checkop_get(x, begin + i);
            row_dy[i] = checkop_get(dy, begin + i);
            row_w[i] = checkop_get(w, i);
        }
        struct moments m = moments_of(&r, row_x);
        checkop_set(moments, 2 * (uint64_t)t, m.mean);
        checkop_set(moments, 2 * (uint64_t)t + 1, m.scale);
        if (differences)
            for (uint64_t i = 0; i < width; i++)
                want[begin + i] = checkop_difference(loss_of_row, &r, row_x, i);
        else
            gradient_of_row(&r, row_x, m, want + begin);
        for (uint64_t i = 0; i < width; i++) {
            double before = how == ACCUMULATE ? checkop_get(dx, begin + i) : 0;
            /* |n| <= sqrt(width), and |mean(d)| and |mean(d * n)| are at most the root mean square of d, here below 4.
             * The mean, rounded to fp32, is off by up to |mean| / 2^24, which shifts n by that times the scale. */
            double n = fmin(root, fabs(row_x[i] - m.mean) * m.scale) + fabs(m.mean) * m.scale;
            largest = fmax(largest, fabs(before) + m.scale * (fabs(row_dy[i] * row_w[i]) + 4 + 4 * n));
            want[begin + i] += before;
        }
        tolerance[t] =
            largest * ((double)s.width / 16 + 8) * 0x1p-24; /* the sums' roundings, and those of the formula */
    }
    struct nb_layernorm_backward args = {.tokens_max = s.rows_max,
        .width = s.width,
        .accumulate = how == ACCUMULATE,
        .activation = dtype,
        .rows_from = s.from,
        .row_begin = s.row_begin};
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.moments, moments);
    checkop_bind(c, &args.dy, dy);
    checkop_bind(c, &args.dx, dx);
    struct nb_slot slot = {.tokens = (uint32_t)(s.rows ? s.row_begin + s.rows : s.row_begin / 2)};
    if (s.from == NB_ROWS_TRAINED_CHUNK)
        slot = (struct nb_slot){.trained_rows = (uint32_t)(s.row_begin + s.rows)};
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    checkop_run(c, CHECKOP_layernorm_backward, &args);
    for (int t = 0; t < s.rows; t++)
        checkop_expect_activation(c, dx, (uint64_t)t * width, width, want + (uint64_t)t * width, 0x1p-23, tolerance[t]);
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype, bool accumulate)
{
    enum { TOKENS = 1024, WIDTH = 576, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s%s", TOKENS, WIDTH, checkop_dtype_name(dtype), accumulate ? " accumulated" : "");
    struct nb_layernorm_backward args = {
        .tokens_max = TOKENS, .width = WIDTH, .accumulate = accumulate, .activation = dtype};
    checkop_bind(c, &args.x, checkop_input(c, "x", dtype, COUNT));
    checkop_bind(c, &args.w, checkop_input(c, "w", NB_DTYPE_BF16, WIDTH));
    checkop_bind(c, &args.moments, checkop_input(c, "moments", NB_DTYPE_F32, 2 * TOKENS));
    checkop_bind(c, &args.dy, checkop_input(c, "dy", dtype, COUNT));
    struct checkop_buffer *dx = checkop_output(c, "dx", dtype, COUNT);
    checkop_fill_value(dx, 0, COUNT, 0);
    checkop_bind(c, &args.dx, dx);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(
        c, CHECKOP_layernorm_backward, &args, (accumulate ? 4.0 : 3.0) * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_layernorm_backward(struct checkop *c)
{
    static const struct shape shapes[] = {
        {1, 1, 8, 0, NB_ROWS_TOKENS}, {3, 5, 24, 0, NB_ROWS_TOKENS}, {17, 17, 576, 0, NB_ROWS_TOKENS},
        {20, 21, 1000, 0, NB_ROWS_TOKENS}, {5, 16, 64, 256, NB_ROWS_TRAINED_CHUNK}, {2, 3, 520, 0, NB_ROWS_TOKENS},
        {1, 2, 16392, 0, NB_ROWS_TOKENS}, /* a little wider than a GPU's warp holds, and than its block */
        {7, 9, 72, 256, NB_ROWS_TOKENS},   {0, 4, 64, 512, NB_ROWS_TOKENS},   {525, 530, 24, 0, NB_ROWS_TOKENS},
    };
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32, false);
        bench(c, NB_DTYPE_F32, true);
        bench(c, NB_DTYPE_BF16, true);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_layernorm_backward bad = {
        .x = p, .w = p, .moments = p, .dy = q, .dx = q, .slot = p, .tokens_max = 1, .width = 8, .accumulate = true};
    checkop_refuses(c, CHECKOP_layernorm_backward, &bad, "dy and dx");
    bad.dx = p;
    checkop_refuses(c, CHECKOP_layernorm_backward, &bad, "x and dx");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int how = APART; how <= ACCUMULATE; how++)
                one(c, shapes[i], dtype, CHECKOP_NORMAL, how);
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, shapes[1], dtype, (enum checkop_pattern)pattern, APART);
    }
}
