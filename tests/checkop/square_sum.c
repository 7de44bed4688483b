#include "checkop.h"

static void one(struct checkop *c, uint64_t tiles, enum checkop_pattern pattern)
{
    checkop_case(c, "%d tiles %s", (int)tiles, checkop_pattern_name(pattern));
    struct checkop_buffer *gradient = checkop_input(c, "gradient", NB_DTYPE_F32, tiles * NB_TILE_ELEMENTS);
    struct checkop_buffer *partial = checkop_output(c, "partial", NB_DTYPE_F32, tiles);
    checkop_fill_pattern(c, gradient, pattern);
    double *want = checkop_scratch(c, tiles);
    for (uint64_t i = 0; i < tiles * NB_TILE_ELEMENTS; i++)
        want[i / NB_TILE_ELEMENTS] += checkop_get(gradient, i) * checkop_get(gradient, i);
    struct nb_square_sum args = {.count = tiles * NB_TILE_ELEMENTS};
    checkop_bind(c, &args.gradient, gradient);
    checkop_bind(c, &args.partial, partial);
    checkop_run(c, CHECKOP_square_sum, &args);
    /* a square, 16 additions in a lane, 4 between lanes; squares of subnormal values are 0 */
    checkop_expect(c, partial, 0, tiles, want, (struct checkop_tolerance){.relative = 21 * 0x1p-24, .absolute = 256 * 0x1p-149});
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { COUNT = 4 << 20 };
    checkop_case(c, "%d elements", COUNT);
    struct nb_square_sum args = {.count = COUNT};
    checkop_bind(c, &args.gradient, checkop_input(c, "gradient", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.partial, checkop_output(c, "partial", NB_DTYPE_F32, COUNT / NB_TILE_ELEMENTS));
    checkop_bench(c, CHECKOP_square_sum, &args, 4.0 * COUNT, 0);
}

void checkop_square_sum(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    struct nb_square_sum bad = {.gradient = {4096}, .partial = {4096}, .count = 300};
    checkop_refuses(c, CHECKOP_square_sum, &bad, "count 300");
    one(c, 1, CHECKOP_NORMAL);
    one(c, 3, CHECKOP_NORMAL);
    one(c, 63, CHECKOP_NORMAL);  /* around a CUDA block's 64 */
    one(c, 64, CHECKOP_NORMAL);
    one(c, 517, CHECKOP_NORMAL); /* several threads, none with as much as the next */
    for (int pattern = 0; pattern < CHECKOP_PATTERNS; pattern++)
        one(c, 65, (enum checkop_pattern)pattern);
}
