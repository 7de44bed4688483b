#include <math.h>

#include "checkop.h"
#include "quant/dynamic_map.h"

struct variant {
    uint64_t count;
    bool moments_8bit, finite, first_step;
    enum nb_dtype copy_dtype;
    double weight_decay;
};

static const double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;

/* The nearest code by looking at all. */
static int nearest(const float map[256], double x)
{
    int best = 0;
    for (int i = 1; i < 256; i++)
        if (fabs((double)map[i] - x) < fabs((double)map[best] - x))
            best = i;
    return best;
}

/* What a moment's buffers must hold after the update: `value` [count], coded in blocks of 256. A value that lies within 1e-5 of the
 * middle between two codes may get either. */
static void expect_codes(struct checkop *c, struct checkop_buffer *codes, struct checkop_buffer *absmax, const float map[256],
                         const double *value, uint64_t count)
{
    double *want = checkop_scratch(c, NB_DYNAMIC_BLOCK);
    for (uint64_t begin = 0; begin < count; begin += NB_DYNAMIC_BLOCK) {
        uint64_t block = count - begin < NB_DYNAMIC_BLOCK ? count - begin : NB_DYNAMIC_BLOCK;
        double largest = 0;
        for (uint64_t i = 0; i < block; i++)
            largest = fmax(largest, fabs(value[begin + i]));
        checkop_expect(c, absmax, begin / NB_DYNAMIC_BLOCK, 1, &largest, (struct checkop_tolerance){.relative = 8 * 0x1p-24});
        for (uint64_t i = 0; i < block; i++) {
            double x = largest > 0 ? value[begin + i] / largest : 0;
            int code = nearest(map, x), other = (int)checkop_got(codes, begin + i);
            double off = fabs((double)map[other] - x) - fabs((double)map[code] - x);
            want[i] = off <= 1e-5 * fabs(x) + 1e-9 ? other : code;
        }
        checkop_expect(c, codes, begin, block, want, (struct checkop_tolerance){0});
    }
}

/* The tensor of a case: what it holds before, and what it must hold after. */
struct tensor {
    struct checkop_buffer *master, *gradient, *copy, *m, *v, *m_absmax, *v_absmax;
    float m_map[256], v_map[256];
    double *want_master, *want_m, *want_v, *zero;
};

static void fill(struct checkop *c, struct tensor *t, const struct variant *k)
{
    uint64_t blocks = (k->count + NB_DYNAMIC_BLOCK - 1) / NB_DYNAMIC_BLOCK;
    enum nb_dtype moments = k->moments_8bit ? NB_DTYPE_U8 : NB_DTYPE_F32;
    t->master = checkop_output(c, "master", NB_DTYPE_F32, k->count);
    t->gradient = checkop_output(c, "gradient", NB_DTYPE_F32, k->count);
    t->copy = checkop_output(c, "copy", k->copy_dtype, k->count);
    t->m = checkop_output(c, "m", moments, k->count);
    t->v = checkop_output(c, "v", moments, k->count);
    t->m_absmax = checkop_output(c, "m_absmax", NB_DTYPE_F32, blocks);
    t->v_absmax = checkop_output(c, "v_absmax", NB_DTYPE_F32, blocks);
    t->want_master = checkop_scratch(c, k->count);
    t->want_m = checkop_scratch(c, k->count);
    t->want_v = checkop_scratch(c, k->count);
    t->zero = checkop_scratch(c, k->count);
    nb_dynamic_map(true, t->m_map);
    nb_dynamic_map(false, t->v_map);
    checkop_fill_normal(c, t->master, 1.0);
    checkop_fill_normal(c, t->gradient, 3.0);
    if (!k->finite)
        checkop_set(t->gradient, k->count / 2, NAN);
    if (k->moments_8bit) {
        checkop_fill_below(c, t->m, 256);
        checkop_fill_below(c, t->v, 256);
        checkop_fill_uniform(c, t->m_absmax, 0, k->first_step ? 0 : 0.1);
        checkop_fill_uniform(c, t->v_absmax, 0, k->first_step ? 0 : 0.01);
    } else {
        checkop_fill_normal(c, t->m, k->first_step ? 0 : 0.1);
        checkop_fill_uniform(c, t->v, 0, k->first_step ? 0 : 0.01);
    }
}

static void bind(struct checkop *c, struct nb_adamw *args, const struct tensor *t)
{
    checkop_bind(c, &args->master, t->master);
    checkop_bind(c, &args->gradient, t->gradient);
    checkop_bind(c, &args->copy, t->copy);
    checkop_bind(c, &args->m, t->m);
    checkop_bind(c, &args->v, t->v);
    checkop_bind(c, &args->m_absmax, t->m_absmax);
    checkop_bind(c, &args->v_absmax, t->v_absmax);
    struct checkop_buffer *m_map = checkop_input(c, "m_map", NB_DTYPE_F32, 256), *v_map = checkop_input(c, "v_map", NB_DTYPE_F32, 256);
    for (uint64_t i = 0; i < 256; i++) {
        checkop_set(m_map, i, (double)t->m_map[i]);
        checkop_set(v_map, i, (double)t->v_map[i]);
    }
    checkop_bind(c, &args->m_map, m_map);
    checkop_bind(c, &args->v_map, v_map);
}

static double moment_before(const struct tensor *t, bool second, bool moments_8bit, uint64_t i)
{
    const struct checkop_buffer *b = second ? t->v : t->m;
    if (!moments_8bit)
        return checkop_get(b, i);
    double absmax = checkop_get(second ? t->v_absmax : t->m_absmax, i / NB_DYNAMIC_BLOCK);
    return (double)(second ? t->v_map : t->m_map)[(int)checkop_get(b, i)] * absmax;
}

/* torch's AdamW, in double. Returns the largest update. */
static double update(struct tensor *t, const struct variant *k, const struct nb_step *step)
{
    double c1 = 1 - pow(beta1, step->step), c2 = 1 - pow(beta2, step->step), rate = (double)step->learning_rate, largest = 0;
    double scale = (double)(step->inverse_count * step->clip_scale);
    for (uint64_t i = 0; i < k->count; i++) {
        double g = scale * checkop_get(t->gradient, i), p = checkop_get(t->master, i);
        t->want_m[i] = beta1 * moment_before(t, false, k->moments_8bit, i) + (1 - beta1) * g;
        t->want_v[i] = beta2 * moment_before(t, true, k->moments_8bit, i) + (1 - beta2) * g * g;
        double change = rate * (t->want_m[i] / c1) / (sqrt(t->want_v[i] / c2) + epsilon);
        t->want_master[i] = p * (1 - rate * k->weight_decay) - change;
        largest = fmax(largest, fabs(change));
    }
    return largest;
}

static void expect_update(struct checkop *c, struct tensor *t, const struct variant *k, double largest_change)
{
    /* p: the decay and the sum round once each; the change carries some 12 roundings, of moments, factors, root and quotient, and
     * beta1 m + (1 - beta1) g may cancel */
    struct checkop_tolerance of_master = {.relative = 2 * 0x1p-24, .absolute = 16 * 0x1p-24 * largest_change};
    checkop_expect(c, t->master, 0, k->count, t->want_master, of_master);
    double *copy = checkop_scratch(c, k->count);
    for (uint64_t i = 0; i < k->count; i++)
        copy[i] = checkop_round(checkop_got(t->master, i), k->copy_dtype);
    checkop_expect(c, t->copy, 0, k->count, copy, (struct checkop_tolerance){0});
    if (k->moments_8bit) {
        expect_codes(c, t->m, t->m_absmax, t->m_map, t->want_m, k->count);
        expect_codes(c, t->v, t->v_absmax, t->v_map, t->want_v, k->count);
    } else {
        checkop_expect(c, t->m, 0, k->count, t->want_m, (struct checkop_tolerance){.relative = 4 * 0x1p-24, .absolute = 4 * 0x1p-24 * 0.2});
        checkop_expect(c, t->v, 0, k->count, t->want_v, (struct checkop_tolerance){.relative = 6 * 0x1p-24});
    }
}

static void one(struct checkop *c, struct variant k)
{
    checkop_case(c, "%d elements, moments of %d bits, copy %s, decay %g%s%s", (int)k.count, k.moments_8bit ? 8 : 32,
                 checkop_dtype_name(k.copy_dtype), k.weight_decay, k.first_step ? ", first step" : "", k.finite ? "" : ", not finite");
    struct tensor t;
    struct nb_step step = {.step = k.first_step ? 1 : 7, .learning_rate = 1e-2f, .inverse_count = 0.01f, .clip_scale = 0.7f,
                           .loss_sum = 3, .gradient_norm = 1.5f, .finite = k.finite};
    fill(c, &t, &k);
    struct nb_adamw args = {.count = k.count, .beta1 = beta1, .beta2 = beta2, .epsilon = epsilon, .weight_decay = k.weight_decay,
                            .moments_8bit = k.moments_8bit, .copy_dtype = k.copy_dtype};
    bind(c, &args, &t);
    checkop_bind(c, &args.step, checkop_step(c, &step, false));
    checkop_run(c, CHECKOP_adamw, &args);
    checkop_expect(c, t.gradient, 0, k.count, t.zero, (struct checkop_tolerance){0}); /* finite or not */
    if (k.finite)
        expect_update(c, &t, &k, update(&t, &k, &step));
    checkop_end(c);
}

/* Moments that lie on the midpoints of neighbouring codes and right beside them: here the nearest code is no matter of tolerance. With
 * betas and moments of 0 and a factor of 1, m is the gradient x and v its square; a first element of 1 in each block makes the scale 1. */
static void on_midpoints(struct checkop *c, bool second)
{
    enum { BESIDE = 7, BLOCKS = BESIDE, COUNT = BLOCKS * NB_DYNAMIC_BLOCK };
    checkop_case(c, "on the midpoints of the %s moment's codes", second ? "second" : "first");
    struct nb_dynamic_coder of_m, of_v;
    nb_dynamic_coder_init(true, &of_m);
    nb_dynamic_coder_init(false, &of_v);
    struct variant k = {COUNT, true, true, true, NB_DTYPE_BF16, 0};
    struct tensor t;
    uint8_t m_codes[COUNT], v_codes[COUNT];
    fill(c, &t, &k);
    for (int i = 0; i < COUNT; i++) {
        int at = i % NB_DYNAMIC_BLOCK - 1;
        float x = at < 0 ? 1.0f : second ? sqrtf(of_v.midpoints[at]) : of_m.midpoints[at];
        for (int beside = i / NB_DYNAMIC_BLOCK - BESIDE / 2; at >= 0 && beside != 0; beside += beside < 0 ? 1 : -1)
            x = nextafterf(x, beside < 0 ? -2.0f : 2.0f);
        checkop_set(t.gradient, (uint64_t)i, (double)x);
        m_codes[i] = nb_dynamic_code(&of_m, x);
        v_codes[i] = nb_dynamic_code(&of_v, x * x);
    }
    struct nb_step step = {.step = 1, .learning_rate = 1e-2f, .inverse_count = 1, .clip_scale = 1, .finite = 1};
    struct nb_adamw args = {.count = COUNT, .epsilon = epsilon, .moments_8bit = true, .copy_dtype = NB_DTYPE_BF16};
    bind(c, &args, &t);
    checkop_bind(c, &args.step, checkop_step(c, &step, false));
    checkop_run(c, CHECKOP_adamw, &args);
    checkop_expect(c, t.gradient, 0, COUNT, t.zero, (struct checkop_tolerance){0});
    checkop_expect_bytes(c, t.m, 0, COUNT, m_codes);
    checkop_expect_bytes(c, t.v, 0, COUNT, v_codes);
    for (uint64_t i = 0; i < BLOCKS; i++)
        t.want_m[i] = 1;
    checkop_expect(c, t.m_absmax, 0, BLOCKS, t.want_m, (struct checkop_tolerance){0});
    checkop_expect(c, t.v_absmax, 0, BLOCKS, t.want_m, (struct checkop_tolerance){0});
    checkop_claim(t.master, 0, COUNT); /* other cases look at it */
    checkop_claim(t.copy, 0, COUNT);
    checkop_end(c);
}

static void bench(struct checkop *c, bool moments_8bit)
{
    enum { COUNT = 4 << 20 };
    checkop_case(c, "%d elements, moments of %d bits", COUNT, moments_8bit ? 8 : 32);
    struct nb_adamw args = {.count = COUNT, .beta1 = beta1, .beta2 = beta2, .epsilon = epsilon, .moments_8bit = moments_8bit,
                            .copy_dtype = NB_DTYPE_F32};
    struct checkop_buffer *master = checkop_output(c, "master", NB_DTYPE_F32, COUNT);
    struct checkop_buffer *gradient = checkop_output(c, "gradient", NB_DTYPE_F32, COUNT);
    struct checkop_buffer *m = checkop_output(c, "m", moments_8bit ? NB_DTYPE_U8 : NB_DTYPE_F32, COUNT);
    struct checkop_buffer *v = checkop_output(c, "v", moments_8bit ? NB_DTYPE_U8 : NB_DTYPE_F32, COUNT);
    struct checkop_buffer *m_absmax = checkop_output(c, "m_absmax", NB_DTYPE_F32, COUNT / NB_DYNAMIC_BLOCK);
    struct checkop_buffer *v_absmax = checkop_output(c, "v_absmax", NB_DTYPE_F32, COUNT / NB_DYNAMIC_BLOCK);
    struct checkop_buffer *m_map = checkop_input(c, "m_map", NB_DTYPE_F32, 256), *v_map = checkop_input(c, "v_map", NB_DTYPE_F32, 256);
    struct checkop_buffer *zeroed[] = {master, gradient, m, v, m_absmax, v_absmax};
    nb_dynamic_map(true, checkop_image(m_map));
    nb_dynamic_map(false, checkop_image(v_map));
    for (size_t i = 0; i < sizeof zeroed / sizeof *zeroed; i++)
        checkop_fill_value(zeroed[i], 0, checkop_count(zeroed[i]), 0);
    checkop_bind(c, &args.master, master);
    checkop_bind(c, &args.gradient, gradient);
    checkop_bind(c, &args.copy, checkop_output(c, "copy", NB_DTYPE_F32, COUNT));
    checkop_bind(c, &args.m, m);
    checkop_bind(c, &args.v, v);
    checkop_bind(c, &args.m_absmax, m_absmax);
    checkop_bind(c, &args.v_absmax, v_absmax);
    checkop_bind(c, &args.m_map, m_map);
    checkop_bind(c, &args.v_map, v_map);
    struct nb_step step = {.step = 7, .learning_rate = 1e-2f, .inverse_count = 0.01f, .clip_scale = 0.7f, .finite = 1};
    checkop_bind(c, &args.step, checkop_step(c, &step, false));
    /* master and gradient read and written, copy written, both moments read and written */
    checkop_bench(c, CHECKOP_adamw, &args, (20.0 + (moments_8bit ? 4 : 16)) * COUNT, 0);
}

void checkop_adamw(struct checkop *c)
{
    if (checkop_wants_bench(c)) {
        bench(c, false);
        bench(c, true);
        return;
    }
    const nb_dptr p = {4096}, q = {8192};
    struct nb_adamw bad = {.master = p, .gradient = p, .copy = q, .m = p, .v = q, .step = p, .count = 8, .beta1 = 1};
    checkop_refuses(c, CHECKOP_adamw, &bad, "beta1 1");
    bad.beta1 = 0.9;
    bad.copy = p;
    checkop_refuses(c, CHECKOP_adamw, &bad, "master and copy");
    bad.copy = q;
    bad.moments_8bit = true;
    checkop_refuses(c, CHECKOP_adamw, &bad, "m_absmax is null");
    const uint64_t counts[] = {1, 255, 256, 4113, 70000}; /* part of a block, one, a short last one, several threads */
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int k = 0; k < 4; k++)
            one(c, (struct variant){counts[i], k & 1, true, k & 2, k & 1 ? NB_DTYPE_BF16 : NB_DTYPE_F32, k & 2 ? 0.0 : 0.1});
    one(c, (struct variant){5000, false, true, false, NB_DTYPE_BF16, 0.01});
    one(c, (struct variant){5000, true, true, false, NB_DTYPE_F32, 0.01});
    one(c, (struct variant){5000, false, false, false, NB_DTYPE_BF16, 0.1}); /* a step that is not taken */
    one(c, (struct variant){70000, true, false, false, NB_DTYPE_F32, 0.1});
    one(c, (struct variant){4097, false, false, false, NB_DTYPE_BF16, 0.1});
    one(c, (struct variant){4095, false, true, false, NB_DTYPE_BF16, 0.1}); /* a group of four cut short */
    one(c, (struct variant){4094, true, true, false, NB_DTYPE_F32, 0.1});
    on_midpoints(c, false);
    on_midpoints(c, true);
}
