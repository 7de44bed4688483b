#include <math.h>

#include "checkop.h"

static void one(struct checkop *c, enum nb_dtype from, enum nb_dtype to, uint64_t count, enum checkop_pattern pattern)
{
    checkop_case(c, "%s to %s, %d elements %s", checkop_dtype_name(from), checkop_dtype_name(to), (int)count,
                 checkop_pattern_name(pattern));
    struct checkop_buffer *x = checkop_input(c, "x", from, count), *y = checkop_output(c, "y", to, count);
    checkop_fill_pattern(c, x, pattern);
    if (pattern == CHECKOP_MIXED && count > 8) { /* infinities, a NaN, the largest value, which bf16 rounds to infinity, and a tie */
        const double special[] = {INFINITY, -INFINITY, NAN, 0x1.fffffep127, 1 + 0x1p-8, 1 + 0x3p-8};
        for (uint64_t i = 0; i < 6; i++)
            checkop_set(x, i, special[i]);
    }
    double *want = checkop_scratch(c, count);
    for (uint64_t i = 0; i < count; i++)
        want[i] = checkop_round(checkop_get(x, i), to);
    struct nb_cast args = {.from = from, .to = to, .count = count};
    checkop_bind(c, &args.x, x);
    checkop_bind(c, &args.y, y);
    checkop_run(c, CHECKOP_cast, &args);
    checkop_expect(c, y, 0, count, want, (struct checkop_tolerance){0});
    checkop_end(c);
}

static void bench(struct checkop *c, enum nb_dtype from, enum nb_dtype to)
{
    enum { COUNT = 4 << 20 };
    checkop_case(c, "%s to %s, %d elements", checkop_dtype_name(from), checkop_dtype_name(to), COUNT);
    struct nb_cast args = {.from = from, .to = to, .count = COUNT};
    checkop_bind(c, &args.x, checkop_input(c, "x", from, COUNT));
    checkop_bind(c, &args.y, checkop_output(c, "y", to, COUNT));
    checkop_bench(c, CHECKOP_cast, &args, (double)COUNT * (double)(nb_dtype_bytes(from) + nb_dtype_bytes(to)), 0);
}

void checkop_cast(struct checkop *c)
{
    static const enum nb_dtype pair[][2] = {
        {NB_DTYPE_F32, NB_DTYPE_BF16}, {NB_DTYPE_BF16, NB_DTYPE_F32}, {NB_DTYPE_F32, NB_DTYPE_F32}};
    if (checkop_wants_bench(c)) {
        bench(c, NB_DTYPE_F32, NB_DTYPE_BF16);
        bench(c, NB_DTYPE_BF16, NB_DTYPE_F32);
        return;
    }
    struct nb_cast bad = {.x = {4096}, .y = {8192}, .from = NB_DTYPE_BF16, .to = NB_DTYPE_BF16, .count = 8};
    checkop_refuses(c, CHECKOP_cast, &bad, "BF16 to BF16");
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++) {
        one(c, pair[i][0], pair[i][1], 1, CHECKOP_NORMAL); /* any count */
        one(c, pair[i][0], pair[i][1], 17, CHECKOP_NORMAL);
        one(c, pair[i][0], pair[i][1], 70001, CHECKOP_MIXED);
        for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
            one(c, pair[i][0], pair[i][1], 333, (enum checkop_pattern)pattern);
    }
}
