#include <math.h>
#include <stddef.h>

#include "checkop.h"

/* `poison` takes the place of the last partial sum unless it is 0. */
static void one(struct checkop *c, uint64_t count, double size, struct nb_step before, double poison)
{
    checkop_case(c, "%d partials of %g, at most %g, 1/count %g, loss %g, poison %g", (int)count, size, (double)before.max_grad_norm,
                 (double)before.inverse_count, before.loss_sum, poison);
    struct checkop_buffer *partial = checkop_input(c, "partial", NB_DTYPE_F32, count);
    struct checkop_buffer *step = checkop_step(c, &before, true);
    checkop_fill_uniform(c, partial, 0, size);
    if (poison != 0)
        checkop_set(partial, count - 1, poison);
    double sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += checkop_get(partial, i);
    double norm = sqrt(sum) * (double)before.inverse_count, scale = 1;
    if (before.max_grad_norm > 0 && (double)before.max_grad_norm / (norm + 1e-6) < 1)
        scale = (double)before.max_grad_norm / (norm + 1e-6);
    struct nb_clip_scale args = {.count = count};
    checkop_bind(c, &args.partial, partial);
    checkop_bind(c, &args.step, step);
    checkop_run(c, CHECKOP_clip_scale, &args);
    bool finite = isfinite(norm) && isfinite(before.loss_sum);
    checkop_expect_member(c, step, offsetof(struct nb_step, finite), CHECKOP_MEMBER_U32, finite, 0);
    checkop_expect_member(c, step, offsetof(struct nb_step, gradient_norm), CHECKOP_MEMBER_F32, norm, 0x1p-24);
    if (isfinite(norm))
        checkop_expect_member(c, step, offsetof(struct nb_step, clip_scale), CHECKOP_MEMBER_F32, scale, 3 * 0x1p-24);
    else
        checkop_claim(step, offsetof(struct nb_step, clip_scale), sizeof(float)); /* nobody reads it then */
    checkop_end(c);
}

static void bench(struct checkop *c)
{
    enum { COUNT = (4 << 20) / NB_TILE_ELEMENTS };
    checkop_case(c, "%d partials", COUNT);
    struct nb_clip_scale args = {.count = COUNT};
    checkop_bind(c, &args.partial, checkop_input(c, "partial", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.step, checkop_step(c, &(struct nb_step){.inverse_count = 1}, true));
    checkop_bench(c, CHECKOP_clip_scale, &args, 4.0 * COUNT, 0);
}

void checkop_clip_scale(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c);
        return;
    }
    struct nb_clip_scale bad = {.partial = {4096}, .step = {4096}};
    checkop_refuses(c, CHECKOP_clip_scale, &bad, "count 0");
    const struct nb_step plain = {.step = 5, .learning_rate = 1e-3f, .max_grad_norm = 1, .inverse_count = 0.01f, .loss_sum = 12.5,
                                  .gradient_norm = 77, .clip_scale = 77, .finite = 7};
    struct nb_step other = plain;
    one(c, 1, 4, plain, 0);       /* below the limit */
    one(c, 1000, 1e6, plain, 0);  /* above it */
    one(c, 33333, 1e30, plain, 0);
    one(c, 8191, 10, plain, 0);   /* around what a CUDA block has in flight */
    one(c, 8192, 10, plain, 0);
    one(c, 10, 0, plain, 0);      /* no gradient at all */
    one(c, 10, 1e6, plain, INFINITY);
    one(c, 10, 1e6, plain, NAN);
    other.max_grad_norm = 0;      /* no clipping */
    one(c, 1000, 1e6, other, 0);
    other = plain;
    other.loss_sum = NAN;
    one(c, 1000, 1e6, other, 0);
    other.loss_sum = INFINITY;
    one(c, 1, 1, other, 0);
}
