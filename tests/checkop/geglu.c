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

enum { APART, OVER_GATE, OVER_UP };

static void one(
    struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, double deviation, int place)
{
    checkop_case(c, "%d of %d x %d from %d, %s %s, gate times %g, y %s", s.tokens, s.tokens_max, s.width, s.row_begin,
        checkop_dtype_name(dtype), checkop_pattern_name(pattern), deviation,
        place == OVER_GATE ? "over gate"
        : place == OVER_UP ? "over up"
                           : "apart");
    uint64_t all = (uint64_t)s.tokens_max * (uint64_t)s.width, n = (uint64_t)s.tokens * (uint64_t)s.width;
    struct checkop_buffer *y = checkop_output(c, "y", dtype, all);
    struct checkop_buffer *gate = place == OVER_GATE ? y : checkop_input(c, "gate", dtype, all);
    struct checkop_buffer *up = place == OVER_UP ? y : checkop_input(c, "up", dtype, all);
    checkop_fill_pattern(c, gate, pattern);
    for (uint64_t i = 0; i < all; i++)
        checkop_set(gate, i, checkop_get(gate, i) * deviation);
    checkop_fill_normal(c, up, 1.0);
    /* 1 + tanh(u) has lost its digits where u is below -8 or so: there the same as a quotient. */
    double *want = checkop_scratch(c, n), *relative = checkop_scratch(c, n);
    for (uint64_t i = 0; i < n; i++) {
        double g = checkop_get(gate, i), u = sqrt(2 / 3.141592653589793) * (g + 0.044715 * g * g * g);
        double gelu = u < -2 ? g / (1 + exp(-2 * u)) : g / 2 * (1 + tanh(u));
        want[i] = checkop_round(gelu, dtype) * checkop_get(up, i);
        /* 2u is rounded five times, and an error of 2u is one of exp(-2u), 89 at most, that counts where this is beside
         * 1; exp within 1 ulp, a sum, a quotient and a product. */
        relative[i] = 2.5 * 0x1p-23 + 5 * 0x1p-24 * fmin(fabs(2 * u), 89) / (1 + exp(2 * u));
    }
    struct nb_geglu args = {.tokens_max = s.tokens_max, .width = s.width, .row_begin = s.row_begin, .activation = dtype};
    const struct nb_slot slot = slot_of(s);
    checkop_bind(c, &args.gate, gate);
    checkop_bind(c, &args.up, up);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    checkop_run(c, CHECKOP_geglu, &args);
    /* Where exp(-2u) overflows, gelu is -0 in place of up to 11 * 3e-39; up is below 8. */
    double absolute = 8 * 11 * 3e-39;
    for (uint64_t i = 0; i < n; i++)
        checkop_expect_activation(c, y, i, 1, want + i, relative[i], absolute);
    checkop_expect_activation(
        c, y, 0, n, want, 2.5 * 0x1p-23 + 5 * 89 * 0x1p-24, absolute); /* and 97 in 100 rounded alike */
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 1536, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s", TOKENS, WIDTH, checkop_dtype_name(dtype));
    struct nb_geglu args = {.tokens_max = TOKENS, .width = WIDTH, .activation = dtype};
    checkop_bind(c, &args.gate, checkop_input(c, "gate", dtype, COUNT));
    checkop_bind(c, &args.up, checkop_input(c, "up", dtype, COUNT));
    checkop_bind(c, &args.y, checkop_output(c, "y", dtype, COUNT));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_geglu, &args, 3.0 * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

void checkop_geglu(struct checkop *c)
{
    static const struct shape shapes[] = {{1, 1, 8, 0}, {3, 5, 24, 0}, {9, 9, 1536, 0}, {30, 31, 1000, 0},
        /* chunks of the tokens: a last one, one with none; as many rows as several chunks have */
        {7, 9, 72, 256}, {0, 4, 64, 512}, {525, 530, 24, 0}};
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    const nb_dptr p = {4096};
    struct nb_geglu bad = {.gate = p, .up = p, .y = p, .slot = p, .tokens_max = 1, .width = 4};
    checkop_refuses(c, CHECKOP_geglu, &bad, "width 4");
    for (int k = 0; k < 2; k++) {
        enum nb_dtype dtype = k ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int place = APART; place <= OVER_UP; place++)
                one(c, shapes[i], dtype, CHECKOP_NORMAL, 1.5, place);
        one(c, shapes[2], dtype, CHECKOP_NORMAL, 8, APART); /* both ends of exp's range, and past them */
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, shapes[1], dtype, (enum checkop_pattern)pattern, 1, APART);
    }
}
