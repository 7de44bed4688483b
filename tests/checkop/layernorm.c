#include <math.h>

#include "checkop.h"

struct shape {
    int rows, rows_max, width, row_begin;
    enum nb_row_count from;
};

enum { APART, IN_PLACE, WITHOUT_B };

struct buffers {
    struct checkop_buffer *x, *w, *b, *y, *moments;
};

/* One row by formula, in double; returns its tolerance: what the roundings of mean, deviations and results can add up
 * to. */
static double reference_row(
    const struct buffers *k, struct shape s, int t, double epsilon, double *moments, double *want)
{
    uint64_t begin = (uint64_t)t * (uint64_t)s.width;
    double mean = 0, variance = 0, largest = 0, magnitude = 0;
    for (int i = 0; i < s.width; i++) {
        mean += checkop_get(k->x, begin + (uint64_t)i) / s.width;
        magnitude += fabs(checkop_get(k->x, begin + (uint64_t)i)) / s.width;
    }
    for (int i = 0; i < s.width; i++) {
        double deviation = checkop_get(k->x, begin + (uint64_t)i) - mean;
        variance += deviation * deviation / s.width;
    }
    moments[0] = mean;
    moments[1] = 1 / sqrt(variance + epsilon);
    for (int i = 0; i < s.width; i++) {
        double n = (checkop_get(k->x, begin + (uint64_t)i) - mean) * moments[1], w = checkop_get(k->w, (uint64_t)i);
        want[i] = w * n + (k->b ? checkop_get(k->b, (uint64_t)i) : 0);
        largest = fmax(largest, fabs(w * n));
    }
    /* The mean is off by the mean magnitude times an error of width / 16 + 5 roundings, which w <= 2 and the scale
     * multiply; the variance by as many, halved behind the root; then a subtraction, two products and a sum. */
    double roundings = ((double)s.width / 16 + 5) * 0x1p-24;
    return magnitude * roundings * moments[1] * 2 + largest * (roundings + 8 * 0x1p-24);
}

static void one(
    struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, double shift, int how)
{
    static const char *const how_name[] = {"", ", in place", ", without b"};
    checkop_case(c, "%d of %d x %d from %s %d, %s %s + %g%s", s.rows, s.rows_max, s.width,
        s.from == NB_ROWS_TOKENS ? "token" : "trained row", s.row_begin, checkop_dtype_name(dtype),
        checkop_pattern_name(pattern), shift, how_name[how]);
    uint64_t width = (uint64_t)s.width, all = (uint64_t)s.rows_max * width;
    struct buffers k = {.y = checkop_output(c, "y", dtype, all)};
    k.x = how == IN_PLACE ? k.y : checkop_input(c, "x", dtype, all);
    k.w = checkop_input(c, "w", NB_DTYPE_BF16, width);
    k.b = how == WITHOUT_B ? NULL : checkop_input(c, "b", NB_DTYPE_BF16, width);
    k.moments = checkop_output(c, "moments", NB_DTYPE_F32, 2 * (uint64_t)s.rows_max);
    checkop_fill_pattern(c, k.x, pattern);
    for (uint64_t i = 0; i < all; i++)
        checkop_set(k.x, i, checkop_get(k.x, i) + shift);
    checkop_fill_uniform(c, k.w, -0.5, 2.0);
    if (k.b)
        checkop_fill_normal(c, k.b, 0.25);
    struct nb_layernorm args = {.tokens_max = s.rows_max,
        .width = s.width,
        .epsilon = 1e-5f,
        .activation = dtype,
        .rows_from = s.from,
        .row_begin = s.row_begin};
    checkop_bind(c, &args.x, k.x);
    checkop_bind(c, &args.w, k.w);
    if (k.b)
        checkop_bind(c, &args.b, k.b);
    checkop_bind(c, &args.y, k.y);
    checkop_bind(c, &args.moments, k.moments);
    struct nb_slot slot = {.tokens = (uint32_t)(s.rows ? s.row_begin + s.rows : s.row_begin / 2)};
    if (s.from == NB_ROWS_TRAINED_CHUNK)
        slot = (struct nb_slot){.tokens = 1, .trained_rows = (uint32_t)(s.row_begin + s.rows)};
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    double *want = checkop_scratch(c, all), *tolerance = checkop_scratch(c, (uint64_t)s.rows_max);
    double *moments = checkop_scratch(c, 2 * (uint64_t)s.rows_max);
    for (int t = 0; t < s.rows; t++)
        tolerance[t] = reference_row(&k, s, t, (double)args.epsilon, moments + 2 * t, want + (uint64_t)t * width);
    checkop_run(c, CHECKOP_layernorm, &args);
    for (int t = 0; t < s.rows; t++) {
        double roundings = ((double)s.width / 16 + 8) * 0x1p-24, magnitude = 0;
        for (uint64_t i = 0; i < width; i++)
            magnitude += fabs(checkop_get(k.x, (uint64_t)t * width + i)) / s.width;
        uint64_t at = 2 * (uint64_t)t;
        checkop_expect(c, k.moments, at, 1, moments + at,
            (struct checkop_tolerance){.absolute = magnitude * roundings + 0x1p-148});
        /* A mean that is off by e adds e^2 to the variance. */
        double added = magnitude * roundings * moments[at + 1];
        checkop_expect(c, k.moments, at + 1, 1, moments + at + 1,
            (struct checkop_tolerance){.relative = roundings + added * added});
        checkop_expect_activation(
            c, k.y, (uint64_t)t * width, width, want + (uint64_t)t * width, 0x1p-23, tolerance[t]);
    }
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 576, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s", TOKENS, WIDTH, checkop_dtype_name(dtype));
    struct nb_layernorm args = {.tokens_max = TOKENS, .width = WIDTH, .epsilon = 1e-5f, .activation = dtype};
    checkop_bind(c, &args.x, checkop_input(c, "x", dtype, COUNT));
    checkop_bind(c, &args.w, checkop_input(c, "w", NB_DTYPE_BF16, WIDTH));
    checkop_bind(c, &args.b, checkop_input(c, "b", NB_DTYPE_BF16, WIDTH));
    checkop_bind(c, &args.y, checkop_output(c, "y", dtype, COUNT));
    checkop_bind(c, &args.moments, checkop_output(c, "moments", NB_DTYPE_F32, 2 * TOKENS));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_layernorm, &args, 2.0 * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_layernorm(struct checkop *c)
{
    static const struct shape shapes[] = {
        {1, 1, 8, 0, NB_ROWS_TOKENS},  /* half of the lanes */
        {3, 5, 24, 0, NB_ROWS_TOKENS}, /* a lane and a half; a short batch */
        {17, 17, 576, 0, NB_ROWS_TOKENS},
        {20, 21, 1000, 0, NB_ROWS_TOKENS}, /* several threads */
        {2, 2, 8192, 0, NB_ROWS_TOKENS},   /* a long sum */
        {2, 3, 1032, 0, NB_ROWS_TOKENS},   /* a little wider than a GPU's warp holds, and than its block */
        {1, 2, 16392, 0, NB_ROWS_TOKENS},
        {5, 16, 64, 256, NB_ROWS_TRAINED_CHUNK}, /* the last chunk of the trained rows */
        {0, 4, 64, 512, NB_ROWS_TRAINED_CHUNK},
        {7, 9, 72, 256, NB_ROWS_TOKENS}, /* a chunk of the tokens */
        {0, 4, 64, 512, NB_ROWS_TOKENS},
        {525, 530, 24, 0, NB_ROWS_TOKENS}, /* several chunks */
    };
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_layernorm bad = {
        .x = p, .w = p, .y = p, .moments = {4100}, .slot = p, .tokens_max = 1, .width = 8, .epsilon = 1e-5f};
    checkop_refuses(c, CHECKOP_layernorm, &bad, "moments");
    bad.moments = p;
    bad.epsilon = -1;
    checkop_refuses(c, CHECKOP_layernorm, &bad, "epsilon -1");
    bad.epsilon = 1e-5f;
    bad.b = (nb_dptr){4098};
    checkop_refuses(c, CHECKOP_layernorm, &bad, "b 0x1002");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int how = APART; how <= WITHOUT_B; how++)
                one(c, shapes[i], dtype, CHECKOP_NORMAL, 0, how);
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, shapes[2], dtype, (enum checkop_pattern)pattern, 0, APART);
        one(c, shapes[2], dtype, CHECKOP_NORMAL, 50, APART); /* a variance far below the square of the mean */
    }
}
