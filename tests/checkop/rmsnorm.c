#include <math.h>

#include "checkop.h"

struct shape {
    int rows, rows_max, width, row_begin;
    enum nb_row_count from;
};

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, bool in_place)
{
    checkop_case(c, "%d of %d x %d from %s %d, %s %s%s", s.rows, s.rows_max, s.width, s.from == NB_ROWS_TOKENS ? "token" : "trained row",
                 s.row_begin, checkop_dtype_name(dtype), checkop_pattern_name(pattern), in_place ? ", in place" : "");
    uint64_t width = (uint64_t)s.width;
    struct checkop_buffer *y = checkop_output(c, "y", dtype, (uint64_t)s.rows_max * width);
    struct checkop_buffer *x = in_place ? y : checkop_input(c, "x", dtype, (uint64_t)s.rows_max * width);
    struct checkop_buffer *w = checkop_input(c, "w", NB_DTYPE_BF16, width);
    struct checkop_buffer *rms = checkop_output(c, "rms", NB_DTYPE_F32, (uint64_t)s.rows_max);
    checkop_fill_pattern(c, x, pattern);
    checkop_fill_uniform(c, w, -0.5, 2.0);
    struct nb_rmsnorm args = {.tokens_max = s.rows_max, .width = s.width, .epsilon = 1e-5f, .activation = dtype, .rows_from = s.from,
                              .row_begin = s.row_begin};
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.w, w);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.rms, rms);
    struct nb_slot slot = {.tokens = (uint32_t)(s.rows ? s.row_begin + s.rows : s.row_begin / 2)};
    if (s.from == NB_ROWS_TRAINED_CHUNK)
        slot = (struct nb_slot){.tokens = 1, .trained_rows = (uint32_t)(s.row_begin + s.rows)};
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    double *want = checkop_scratch(c, (uint64_t)s.rows * width), *want_rms = checkop_scratch(c, (uint64_t)s.rows);
    for (int t = 0; t < s.rows; t++) {
        double sum = 0;
        for (uint64_t i = 0; i < width; i++)
            sum += checkop_get(x, (uint64_t)t * width + i) * checkop_get(x, (uint64_t)t * width + i);
        want_rms[t] = 1.0 / sqrt(sum / (double)width + (double)args.epsilon);
        for (uint64_t i = 0; i < width; i++) {
            double normal = checkop_round(checkop_get(x, (uint64_t)t * width + i) * want_rms[t], dtype);
            want[(uint64_t)t * width + i] = checkop_get(w, i) * normal;
        }
    }
    checkop_run(c, CHECKOP_rmsnorm, &args);
    /* width / 16 additions a lane and 4 more between lanes, half of their error left behind the root, and four more roundings */
    double relative = ((double)s.width / 32 + 8) * 0x1p-24;
    checkop_expect(c, rms, 0, (uint64_t)s.rows, want_rms, (struct checkop_tolerance){.relative = relative});
    checkop_expect_activation(c, y, 0, (uint64_t)s.rows * width, want, relative + 0x1p-23, 0);
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 576, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s", TOKENS, WIDTH, checkop_dtype_name(dtype));
    struct nb_rmsnorm args = {.tokens_max = TOKENS, .width = WIDTH, .epsilon = 1e-5f, .activation = dtype};
    checkop_bind(c, &args.x, checkop_input(c, "x", dtype, COUNT));
    checkop_bind(c, &args.w, checkop_input(c, "w", NB_DTYPE_BF16, WIDTH));
    checkop_bind(c, &args.y, checkop_output(c, "y", dtype, COUNT));
    checkop_bind(c, &args.rms, checkop_output(c, "rms", NB_DTYPE_F32, TOKENS));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_rmsnorm, &args, 2.0 * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_rmsnorm(struct checkop *c)
{
    static const struct shape shapes[] = {
        {1, 1, 8, 0, NB_ROWS_TOKENS},          /* half of the lanes */
        {3, 5, 24, 0, NB_ROWS_TOKENS},         /* a lane and a half; a short batch */
        {17, 17, 576, 0, NB_ROWS_TOKENS},      /* SmolLM2's width */
        {20, 21, 1000, 0, NB_ROWS_TOKENS},     /* several threads */
        {2, 2, 8192, 0, NB_ROWS_TOKENS},       /* a long sum */
        {2, 3, 1032, 0, NB_ROWS_TOKENS},         /* a little wider than a GPU's warp holds, and than its block */
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
    struct nb_rmsnorm bad = {.x = p, .w = p, .y = p, .rms = p, .slot = p, .tokens_max = 1, .width = 8, .epsilon = -1};
    checkop_refuses(c, CHECKOP_rmsnorm, &bad, "epsilon -1");
    bad.epsilon = 1e-5f;
    bad.width = 9;
    checkop_refuses(c, CHECKOP_rmsnorm, &bad, "width 9");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            one(c, shapes[i], dtype, CHECKOP_NORMAL, false);
            one(c, shapes[i], dtype, CHECKOP_NORMAL, true);
        }
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, shapes[2], dtype, (enum checkop_pattern)pattern, false);
    }
}
