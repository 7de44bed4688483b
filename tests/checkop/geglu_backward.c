#include <math.h>

#include "checkop.h"

struct shape {
    int tokens, tokens_max, width, row_begin;
};

/* Of the tokens so many that as many stand from row_begin on. */
static struct nb_slot slot_of(struct shape s)
{
    return (struct nb_slot){.tokens = (uint32_t)(s.tokens ? s.row_begin + s.tokens : s.row_begin / 2)};
}

static double gelu(double g)
{
    double u = sqrt(2 / 3.141592653589793) * (g + 0.044715 * g * g * g);
    return u < -2 ? g / (1 + exp(-2 * u)) : g / 2 * (1 + tanh(u));
}

/* What the differences differentiate: x = {gate, up}. */
static double loss_of_pair(void *context, const double *x)
{
    return *(const double *)context * gelu(x[0]) * x[1];
}

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, double deviation, bool in_place)
{
    checkop_case(c, "%d of %d x %d from %d, %s, gate times %g%s, differences", s.tokens, s.tokens_max, s.width, s.row_begin,
        checkop_dtype_name(dtype), deviation, in_place ? ", in place" : "");
    uint64_t all = (uint64_t)s.tokens_max * (uint64_t)s.width, n = (uint64_t)s.tokens * (uint64_t)s.width;
    struct checkop_buffer *d_gate = checkop_output(c, "d_gate", dtype, all),
                          *d_up = checkop_output(c, "d_up", dtype, all);
    struct checkop_buffer *gate = in_place ? d_gate : checkop_input(c, "gate", dtype, all);
    struct checkop_buffer *up = in_place ? d_up : checkop_input(c, "up", dtype, all);
    struct checkop_buffer *dy = checkop_input(c, "dy", dtype, all);
    checkop_fill_normal(c, gate, deviation);
    checkop_fill_normal(c, up, 1.0);
    checkop_fill_normal(c, dy, 1.0);
    double *want_gate = checkop_scratch(c, n), *want_up = checkop_scratch(c, n), largest = 0;
    for (uint64_t i = 0; i < n; i++) {
        double x[2] = {checkop_get(gate, i), checkop_get(up, i)}, d = checkop_get(dy, i);
        want_gate[i] = checkop_difference(loss_of_pair, &d, x, 0);
        want_up[i] = checkop_difference(loss_of_pair, &d, x, 1);
        if (dtype == NB_DTYPE_BF16) /* here the rounding of gelu counts */
            want_up[i] = d * checkop_round(gelu(x[0]), dtype);
        largest = fmax(largest, fabs(d * x[1]));
    }
    struct nb_geglu_backward args = {.tokens_max = s.tokens_max, .width = s.width, .row_begin = s.row_begin, .activation = dtype};
    const struct nb_slot slot = slot_of(s);
    checkop_bind(c, &args.gate, gate);
    checkop_bind(c, &args.up, up);
    checkop_bind(c, &args.dy, dy);
    checkop_bind(c, &args.d_gate, d_gate);
    checkop_bind(c, &args.d_up, d_up);
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    checkop_run(c, CHECKOP_geglu_backward, &args);
    /* The slope's two terms cancel near g = -0.75; 1 - s is off by 2^-25 at most, which g dp/dg < 60 multiplies before
     * s is 1, and by 2u's five roundings, whose 2u s (1 - s) is below 1/4: below 2^-18. The differences of dy * gelu *
     * up, with a gate of up to 100 beside them, are good to 1e-8. gelu's own error grows with 2u where it is small: 5
     * roundings of up to 89. */
    double slack = 1e-8 * deviation;
    checkop_expect_activation(c, d_gate, 0, n, want_gate, 4 * 0x1p-23, largest * 0x1p-18 + slack);
    checkop_expect_activation(c, d_up, 0, n, want_up, 4 * 0x1p-23, 4 * 0x1p-22 + slack);
    checkop_end(c);
}

/* Values by which only finiteness and exactness can be judged: the derivative at a saturated gate is 0 or 1. */
static void saturated(struct checkop *c, enum nb_dtype dtype, double gate_value, double slope)
{
    enum { WIDTH = 32 };
    checkop_case(c, "gate %g, %s", gate_value, checkop_dtype_name(dtype));
    struct checkop_buffer *gate = checkop_input(c, "gate", dtype, WIDTH), *up = checkop_input(c, "up", dtype, WIDTH);
    struct checkop_buffer *dy = checkop_input(c, "dy", dtype, WIDTH),
                          *d_gate = checkop_output(c, "d_gate", dtype, WIDTH);
    struct checkop_buffer *d_up = checkop_output(c, "d_up", dtype, WIDTH);
    checkop_fill_value(gate, 0, WIDTH, gate_value);
    checkop_fill_value(up, 0, WIDTH, 0.75);
    checkop_fill_value(dy, 0, WIDTH, 2);
    double want_gate[WIDTH], want_up[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
        want_gate[i] = 1.5 * slope;
        want_up[i] = checkop_round(2 * slope * checkop_get(gate, 0), dtype);
    }
    struct nb_geglu_backward args = {.tokens_max = 1, .width = WIDTH, .activation = dtype};
    checkop_bind(c, &args.gate, gate);
    checkop_bind(c, &args.up, up);
    checkop_bind(c, &args.dy, dy);
    checkop_bind(c, &args.d_gate, d_gate);
    checkop_bind(c, &args.d_up, d_up);
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = 1}));
    checkop_run(c, CHECKOP_geglu_backward, &args);
    checkop_expect(c, d_gate, 0, WIDTH, want_gate, (struct checkop_tolerance){0});
    checkop_expect(c, d_up, 0, WIDTH, want_up, (struct checkop_tolerance){.absolute = 1e-35});
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 1536, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s", TOKENS, WIDTH, checkop_dtype_name(dtype));
    struct nb_geglu_backward args = {.tokens_max = TOKENS, .width = WIDTH, .activation = dtype};
    checkop_bind(c, &args.gate, checkop_input(c, "gate", dtype, COUNT));
    checkop_bind(c, &args.up, checkop_input(c, "up", dtype, COUNT));
    checkop_bind(c, &args.dy, checkop_input(c, "dy", dtype, COUNT));
    checkop_bind(c, &args.d_gate, checkop_output(c, "d_gate", dtype, COUNT));
    checkop_bind(c, &args.d_up, checkop_output(c, "d_up", dtype, COUNT));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_geglu_backward, &args, 5.0 * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_geglu_backward(struct checkop *c)
{
    static const struct shape shapes[] = {{1, 1, 8, 0}, {3, 5, 24, 0}, {9, 9, 1536, 0}, {30, 31, 1000, 0},
        /* chunks of the tokens: a last one, one with none; as many rows as several chunks have */
        {7, 9, 72, 256}, {0, 4, 64, 512}, {525, 530, 24, 0}};
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_geglu_backward bad = {
        .gate = p, .up = p, .dy = p, .d_gate = q, .d_up = q, .slot = p, .tokens_max = 1, .width = 8};
    checkop_refuses(c, CHECKOP_geglu_backward, &bad, "d_gate and d_up");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int in_place = 0; in_place < 2; in_place++)
                one(c, shapes[i], dtype, 1.5, in_place);
        one(c, shapes[2], dtype, 8, false);
        saturated(c, dtype, 1e15, 1);
        saturated(c, dtype, -1e15, 0);
        saturated(c, dtype, 1e30, 1); /* g^3 overflows */
        saturated(c, dtype, -1e30, 0);
        saturated(c, dtype, 12, 1);
        saturated(c, dtype, -12, 0);
    }
}
