#include "checkop.h"

struct shape {
    int tokens, tokens_max, width, row_begin;
};

/* Of the tokens so many that as many stand from row_begin on. */
static struct nb_slot slot_of(struct shape s)
{
    return (struct nb_slot){.tokens = (uint32_t)(s.tokens ? s.row_begin + s.tokens : s.row_begin / 2)};
}

enum { APART, OVER_A, OVER_B };

static void one(struct checkop *c, struct shape s, enum nb_dtype dtype, enum checkop_pattern pattern, int place)
{
    checkop_case(c, "%d of %d x %d from %d, %s %s, y %s", s.tokens, s.tokens_max, s.width, s.row_begin, checkop_dtype_name(dtype),
                 checkop_pattern_name(pattern), place == OVER_A ? "over a" : place == OVER_B ? "over b" : "apart");
    uint64_t all = (uint64_t)s.tokens_max * (uint64_t)s.width, n = (uint64_t)s.tokens * (uint64_t)s.width;
    struct checkop_buffer *y = checkop_output(c, "y", dtype, all);
    struct checkop_buffer *a = place == OVER_A ? y : checkop_input(c, "a", dtype, all);
    struct checkop_buffer *b = place == OVER_B ? y : checkop_input(c, "b", dtype, all);
    checkop_fill_pattern(c, a, pattern);
    checkop_fill_pattern(c, b, pattern == CHECKOP_NORMAL ? CHECKOP_MIXED : pattern);
    double *want = checkop_scratch(c, n);
    for (uint64_t i = 0; i < n; i++)
        want[i] = checkop_round(checkop_round(checkop_get(a, i) + checkop_get(b, i), NB_DTYPE_F32), dtype);
    struct nb_add args = {.tokens_max = s.tokens_max, .width = s.width, .row_begin = s.row_begin, .activation = dtype};
    const struct nb_slot slot = slot_of(s);
    checkop_bind(c, &args.a, a);
    checkop_bind(c, &args.b, b);
    checkop_bind(c, &args.y, y);
    checkop_bind(c, &args.slot, checkop_slot(c, &slot));
    checkop_run(c, CHECKOP_add, &args);
    checkop_expect(c, y, 0, n, want, (struct checkop_tolerance){0}); /* the rounding points say every bit */
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype dtype)
{
    enum { TOKENS = 1024, WIDTH = 576, COUNT = TOKENS * WIDTH };
    checkop_case(c, "%d x %d %s", TOKENS, WIDTH, checkop_dtype_name(dtype));
    struct nb_add args = {.tokens_max = TOKENS, .width = WIDTH, .activation = dtype};
    checkop_bind(c, &args.a, checkop_input(c, "a", dtype, COUNT));
    checkop_bind(c, &args.b, checkop_input(c, "b", dtype, COUNT));
    checkop_bind(c, &args.y, checkop_output(c, "y", dtype, COUNT));
    checkop_bind(c, &args.slot, checkop_slot(c, &(struct nb_slot){.tokens = TOKENS}));
    checkop_bench(c, CHECKOP_add, &args, 3.0 * COUNT * (double)nb_dtype_bytes(dtype), 0);
}

static void refusals(struct checkop *c)
{
    const nb_dptr p = {4096}, q = {8192};
    const struct nb_add good = {.a = p, .b = p, .y = q, .slot = q, .tokens_max = 4, .width = 8, .activation = NB_DTYPE_F32};
    struct nb_add bad = good;
    bad.width = 12;
    checkop_refuses(c, CHECKOP_add, &bad, "width 12");
    bad = good;
    bad.activation = NB_DTYPE_U8;
    checkop_refuses(c, CHECKOP_add, &bad, "dtype");
    bad = good;
    bad.b.address = 0;
    checkop_refuses(c, CHECKOP_add, &bad, "b is null");
    bad = good;
    bad.y.address += 4;
    checkop_refuses(c, CHECKOP_add, &bad, "aligned");
    bad = good;
    bad.tokens_max = 0;
    checkop_refuses(c, CHECKOP_add, &bad, "tokens_max 0");
}

void checkop_add(struct checkop *c)
{
    /* one vector's half; a row that is no whole number of 16 lanes; a short batch; wide enough for several threads; no token */
    static const struct shape shapes[] = {{1, 1, 8, 0}, {3, 5, 24, 0}, {16, 17, 576, 0}, {40, 41, 1000, 0}, {0, 3, 64, 0},
        /* chunks of the tokens: a last one, one with none; as many rows as several chunks have */
        {7, 9, 72, 256}, {0, 4, 64, 512}, {525, 530, 24, 0}};
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32);
        bench(c, NB_DTYPE_BF16);
        return;
    }
    refusals(c);
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int place = APART; place <= OVER_B; place++) {
            one(c, shapes[k], NB_DTYPE_F32, CHECKOP_NORMAL, place);
            one(c, shapes[k], NB_DTYPE_BF16, CHECKOP_NORMAL, place);
        }
    for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++) {
        one(c, shapes[2], NB_DTYPE_F32, (enum checkop_pattern)pattern, APART);
        one(c, shapes[2], NB_DTYPE_BF16, (enum checkop_pattern)pattern, APART);
    }
}
