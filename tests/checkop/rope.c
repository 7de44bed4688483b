#include <math.h>

#include "checkop.h"

struct shape {
    int tokens, tokens_max, heads, head_dim, x_gap, y_gap; /* gaps: elements between one token's heads and the next's */
};

enum { POSITIONS = 128 };

static void fill_tables(struct checkop_buffer *cosine, struct checkop_buffer *sine, int half)
{
    for (int p = 0; p < POSITIONS; p++)
        for (int i = 0; i < half; i++) {
            double angle = p * pow(10000.0, -(double)i / half);
            checkop_set(cosine, (uint64_t)(p * half + i), cos(angle));
            checkop_set(sine, (uint64_t)(p * half + i), sin(angle));
        }
}

/* One head, at `begin` of x; `rms` is set with w. */
static void reference(const struct checkop_buffer *x, uint64_t begin, const struct checkop_buffer *w, int head_dim, double epsilon,
                      const struct checkop_buffer *cosine, const struct checkop_buffer *sine, uint64_t angles, enum nb_dtype dtype,
                      double *rms, double *y)
{
    int half = head_dim / 2;
    double normal[256], sum = 0;
    for (int i = 0; i < head_dim; i++)
        sum += checkop_get(x, begin + (uint64_t)i) * checkop_get(x, begin + (uint64_t)i);
    *rms = 1 / sqrt(sum / head_dim + epsilon);
    for (int i = 0; i < head_dim; i++) {
        double value = checkop_get(x, begin + (uint64_t)i);
        normal[i] = w ? checkop_round(checkop_get(w, (uint64_t)i) * checkop_round(value * *rms, dtype), dtype) : value;
    }
    for (int i = 0; i < half; i++) {
        double co = checkop_get(cosine, angles + (uint64_t)i), si = checkop_get(sine, angles + (uint64_t)i);
        y[i] = normal[i] * co - normal[i + half] * si;
        y[i + half] = normal[i + half] * co + normal[i] * si;
    }
}

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, bool norm, bool in_place)
{
    checkop_case(c, "%d of %d tokens, %d heads of %d, gaps %d and %d, %s %s%s%s", s.tokens, s.tokens_max, s.heads, s.head_dim, s.x_gap,
                 s.y_gap, checkop_dtype_name(dtype), checkop_pattern_name(pattern), norm ? ", norm" : "", in_place ? ", in place" : "");
    int half = s.head_dim / 2, x_stride = s.heads * s.head_dim + s.x_gap, y_stride = s.heads * s.head_dim + s.y_gap;
    if (in_place)
        x_stride = y_stride;
    struct checkop_buffer *y = checkop_output(c, "y", dtype, (uint64_t)s.tokens_max * (uint64_t)y_stride);
    struct checkop_buffer *x = in_place ? y : checkop_input(c, "x", dtype, (uint64_t)s.tokens_max * (uint64_t)x_stride);
    struct checkop_buffer *w = norm ? checkop_input(c, "w", NB_DTYPE_BF16, (uint64_t)s.head_dim) : NULL;
    struct checkop_buffer *rms = norm ? checkop_output(c, "rms", NB_DTYPE_F32, (uint64_t)(s.tokens_max * s.heads)) : NULL;
    struct checkop_buffer *positions = checkop_input(c, "positions", NB_DTYPE_I32, (uint64_t)s.tokens_max);
    struct checkop_buffer *cosine = checkop_input(c, "cosine", NB_DTYPE_F32, (uint64_t)(POSITIONS * half));
    struct checkop_buffer *sine = checkop_input(c, "sine", NB_DTYPE_F32, (uint64_t)(POSITIONS * half));
    checkop_fill_pattern(c, x, pattern);
    checkop_fill_below(c, positions, POSITIONS);
    for (int t = s.tokens; t < s.tokens_max; t++)
        checkop_set(positions, (uint64_t)t, -1000000);
    fill_tables(cosine, sine, half);
    struct nb_rope args = {.tokens_max = s.tokens_max, .heads = s.heads, .head_dim = s.head_dim, .x_stride = x_stride,
                           .y_stride = y_stride, .epsilon = 1e-6f, .activation = dtype};
    if (norm) {
        checkop_fill_uniform(c, w, -0.5, 2.0);
        checkop_bind(c, &args.w, w);
        checkop_bind(c, &args.rms, rms);
    }
    double *want = checkop_scratch(c, (uint64_t)(s.tokens * s.heads * s.head_dim));
    double *want_rms = checkop_scratch(c, (uint64_t)(s.tokens * s.heads));
    for (int t = 0; t < s.tokens; t++)
        for (int h = 0; h < s.heads; h++)
            reference(x, (uint64_t)(t * x_stride + h * s.head_dim), w, s.head_dim, (double)args.epsilon, cosine, sine,
                      (uint64_t)checkop_get(positions, (uint64_t)t) * (uint64_t)half, dtype, &want_rms[t * s.heads + h],
                      want + (t * s.heads + h) * s.head_dim);
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.positions, positions);
    checkop_bind(c, &args.cosine, cosine);
    checkop_bind(c, &args.sine, sine);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = (uint32_t)s.tokens}));
    checkop_run(c, CHECKOP_rope, &args);
    double of_norm = norm ? ((double)s.head_dim / 32 + 8) * 0x1p-24 : 0;
    if (norm)
        checkop_expect(c, rms, 0, (uint64_t)(s.tokens * s.heads), want_rms, (struct checkop_tolerance){.relative = of_norm});
    for (int t = 0; t < s.tokens; t++)
        for (int h = 0; h < s.heads; h++) {
            const double *head = want + (t * s.heads + h) * s.head_dim;
            double largest = 0;
            for (int i = 0; i < s.head_dim; i++)
                largest = fmax(largest, fabs(head[i]));
            /* two products and a sum, which may cancel, of at most sqrt(2) the largest; under a bf16 norm two roundings of each
             * factor may go the other way, 2^-7 of it at worst */
            double absolute = largest * (4 * 0x1p-24 + of_norm + (norm && dtype == NB_DTYPE_BF16 ? 3 * 0x1p-7 : 0));
            checkop_expect_activation(c, y, (uint64_t)(t * y_stride + h * s.head_dim), (uint64_t)s.head_dim, head, 0, absolute);
        }
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, HEADS = 9, DIM = 64, COUNT = TOKENS * HEADS * DIM };
    checkop_case(c, "%d tokens, %d heads of %d, %s", TOKENS, HEADS, DIM, checkop_dtype_name(dtype));
    struct nb_rope args = {.tokens_max = TOKENS, .heads = HEADS, .head_dim = DIM, .x_stride = HEADS * DIM, .y_stride = HEADS * DIM,
                           .activation = dtype};
    struct checkop_buffer *positions = checkop_input(c, "positions", NB_DTYPE_I32, TOKENS);
    for (uint64_t t = 0; t < TOKENS; t++)
        checkop_set(positions, t, (double)t);
    checkop_bind(c, &args.x, checkop_input(c, "x", dtype, COUNT));
    checkop_bind(c, &args.y, checkop_output(c, "y", dtype, COUNT));
    checkop_bind(c, &args.positions, positions);
    checkop_bind(c, &args.cosine, checkop_input(c, "cosine", NB_DTYPE_F32, TOKENS * DIM / 2));
    checkop_bind(c, &args.sine, checkop_input(c, "sine", NB_DTYPE_F32, TOKENS * DIM / 2));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_rope, &args, 2.0 * COUNT * (double)nb_dtype_bytes(dtype) + 4.0 * TOKENS * DIM, 0);
}

void checkop_rope(struct checkop *c)
{
    /* the least head; a gap as in a shared q, k, v buffer; SmolLM2's; the widest head; several threads; many heads;
     * heads that do not divide a GPU's warp */
    static const struct shape shapes[] = {
        {1, 1, 1, 8, 0, 0}, {3, 5, 3, 24, 16, 8}, {7, 7, 9, 64, 0, 0}, {2, 3, 2, 256, 8, 24}, {40, 40, 7, 72, 0, 8},
        {3, 3, 40, 128, 0, 0}, {5, 6, 5, 80, 8, 0}, {2, 2, 3, 248, 0, 8},
    };
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_rope bad = {.x = p, .y = p, .w = q, .rms = q, .positions = q, .cosine = q, .sine = q, .slot = q, .tokens_max = 1,
                          .heads = 1, .head_dim = 8, .x_stride = 8, .y_stride = 8, .epsilon = 1e-6f};
    checkop_refuses(c, CHECKOP_rope, &bad, "x and y");
    bad.y = q;
    bad.head_dim = 264;
    checkop_refuses(c, CHECKOP_rope, &bad, "head_dim 264");
    bad.head_dim = 16;
    checkop_refuses(c, CHECKOP_rope, &bad, "x_stride 8");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            one(c, shapes[i], dtype, CHECKOP_NORMAL, false, false);
            one(c, shapes[i], dtype, CHECKOP_NORMAL, false, true);
            one(c, shapes[i], dtype, CHECKOP_NORMAL, true, false);
        }
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            for (int norm = 0; norm < 2; norm++)
                one(c, shapes[1], dtype, (enum checkop_pattern)pattern, norm, false);
    }
}
