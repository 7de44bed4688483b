#include "attention_reference.h"

#include <math.h>

struct gradients {
    struct checkop_buffer *dq, *dk, *dv;
};

/* Binds everything but o, lse and d_o. */
static void bind(
    struct checkop *c, const struct attention_setup *s, struct nb_attention_backward *args, struct gradients *g)
{
    const struct attention_case *k = &s->k;
    int q_stride = attention_stride(k, k->heads), kv_stride = attention_stride(k, k->kv_heads);
    *args = (struct nb_attention_backward){.tokens_max = s->tokens_max,
        .key_tokens_max = s->key_tokens_max,
        .sequences_max = s->sequences,
        .longest_max = s->longest,
        .heads = k->heads,
        .kv_heads = k->kv_heads,
        .head_dim = k->head_dim,
        .q_stride = q_stride,
        .k_stride = kv_stride,
        .v_stride = kv_stride,
        .o_stride = q_stride,
        .d_o_stride = q_stride,
        .dq_stride = q_stride,
        .dk_stride = kv_stride,
        .dv_stride = kv_stride,
        .window = k->window,
        .scale = s->scale,
        .soft_cap = k->soft_cap,
        .activation = s->dtype};
    g->dq = checkop_output(c, "dq", s->dtype, (uint64_t)s->tokens_max * (uint64_t)q_stride);
    g->dk = checkop_output(c, "dk", s->dtype, (uint64_t)s->key_tokens_max * (uint64_t)kv_stride);
    g->dv = checkop_output(c, "dv", s->dtype, (uint64_t)s->key_tokens_max * (uint64_t)kv_stride);
    checkop_bind(c, &args->q, s->q_buffer);
    checkop_bind(c, &args->k, s->k_buffer);
    checkop_bind(c, &args->v, s->v_buffer);
    checkop_bind(c, &args->query_starts, s->query_starts_buffer);
    checkop_bind(c, &args->key_starts, s->key_starts_buffer);
    checkop_bind(c, &args->slot, s->slot_buffer);
    checkop_bind(c, &args->dq, g->dq);
    checkop_bind(c, &args->dk, g->dk);
    checkop_bind(c, &args->dv, g->dv);
    checkop_bind_scratch(c, &args->scratch);
}

/* fp32: what the sums' and exponents' roundings come to, at the size of the largest element. bf16: o, p and ds are
 * rounded to 2^-9 of themselves before they are multiplied and summed with random signs; delta's error weighs on every
 * ds of its row. As a whole the gradient is then good to a few 2^-9. */
static void expect(struct checkop *c, const struct attention_setup *s, struct checkop_buffer *b, int rows, int heads,
    const double *want)
{
    int width = heads * s->k.head_dim, stride = attention_stride(&s->k, heads);
    double largest = 0, square = 0, error_square = 0, epsilon = s->dtype == NB_DTYPE_F32 ? 0x1p-23 : 0x1p-8;
    double size = s->k.magnitude == 0 ? 1 : s->k.magnitude;
    for (int i = 0; i < rows * width; i++)
        largest = fmax(largest, fabs(want[i]));
    double absolute = (s->dtype == NB_DTYPE_F32 ? 40 * size : 4) * epsilon * (largest + 0.1);
    for (int t = 0; t < rows; t++) {
        checkop_expect(c, b, (uint64_t)(t * stride), (uint64_t)width, want + (int64_t)t * width,
            (struct checkop_tolerance){.ulps = 0.5, .absolute = absolute});
        for (int i = 0; i < width; i++) {
            double error = checkop_got(b, (uint64_t)(t * stride + i)) - want[t * width + i];
            square += want[t * width + i] * want[t * width + i];
            error_square += error * error;
        }
    }
    double relative = (s->dtype == NB_DTYPE_F32 ? 8 * size : 2) * epsilon;
    checkop_true(c, error_square <= relative * relative * square + 1e-12, "the gradient's error is %g of its norm",
        sqrt(error_square / square));
}

/* ---- finite differences of sum(d_o * o), which prove the formulas that the larger cases use ---- */

struct difference {
    const struct attention_setup *s;
    const double *d_o;
    double *o;
    int variable; /* 0: q, 1: k, 2: v */
};

static double loss_of(void *context, const double *value)
{
    const struct difference *d = context;
    const struct attention_setup *s = d->s;
    attention_forward(s, d->variable == 0 ? value : s->q, d->variable == 1 ? value : s->k_values,
        d->variable == 2 ? value : s->v, d->o, NULL);
    double loss = 0;
    for (int i = 0; i < s->tokens * s->k.heads * s->k.head_dim; i++)
        loss += d->o[i] * d->d_o[i];
    return loss;
}

static void compare_differences(
    struct checkop *c, const struct attention_setup *s, const double *d_o, const double *const gradient[3])
{
    int width = s->k.head_dim;
    struct difference d = {s, d_o, checkop_scratch(c, (uint64_t)(s->tokens * s->k.heads * width)), 0};
    double *value[3] = {s->q, s->k_values, s->v};
    int count[3] = {
        s->tokens * s->k.heads * width, s->key_tokens * s->k.kv_heads * width, s->key_tokens * s->k.kv_heads * width};
    for (d.variable = 0; d.variable < 3; d.variable++) {
        for (int i = 0; i < count[d.variable]; i += 3) {
            double want = checkop_difference(loss_of, &d, value[d.variable], (uint64_t)i),
                   got = gradient[d.variable][i];
            checkop_true(c, fabs(got - want) < 1e-6 * (1 + fabs(want)),
                "d%c[%d] is %g by formula, the difference says %g", "qkv"[d.variable], i, got, want);
        }
    }
}

static void one(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype)
{
    struct attention_setup s;
    struct nb_attention_backward args;
    struct gradients g;
    attention_begin(c, k, dtype, &s);
    bind(c, &s, &args, &g);
    int width = k->heads * k->head_dim, kv_width = k->kv_heads * k->head_dim, stride = args.o_stride;
    double *o = checkop_scratch(c, (uint64_t)(s.tokens * width)),
           *lse = checkop_scratch(c, (uint64_t)(k->heads * s.tokens));
    double *dq = checkop_scratch(c, (uint64_t)(s.tokens * width)),
           *dk = checkop_scratch(c, (uint64_t)(s.key_tokens * kv_width));
    double *dv = checkop_scratch(c, (uint64_t)(s.key_tokens * kv_width)), *d_o;
    attention_forward(&s, s.q, s.k_values, s.v, o, lse);
    struct checkop_buffer *o_buffer = checkop_input(c, "o", dtype, (uint64_t)(s.tokens_max * stride));
    struct checkop_buffer *lse_buffer = checkop_input(c, "lse", NB_DTYPE_F32, (uint64_t)(k->heads * s.tokens_max));
    checkop_fill_value(o_buffer, 0, checkop_count(o_buffer), NAN);
    checkop_fill_value(lse_buffer, 0, checkop_count(lse_buffer), NAN);
    for (int t = 0; t < s.tokens; t++) {
        for (int i = 0; i < width; i++)
            checkop_set(o_buffer, (uint64_t)(t * stride + i), o[t * width + i]);
        for (int head = 0; head < k->heads; head++)
            checkop_set(lse_buffer, (uint64_t)(head * s.tokens_max + t), lse[head * s.tokens + t]);
    }
    checkop_bind(c, &args.o, o_buffer);
    checkop_bind(c, &args.lse, lse_buffer);
    checkop_bind(c, &args.d_o, attention_matrix(c, &s, "d_o", s.tokens, s.tokens_max, k->heads, 1, &d_o));
    attention_gradient(&s, d_o, dq, dk, dv);
    if (k->differences && dtype == NB_DTYPE_F32)
        compare_differences(c, &s, d_o, (const double *const[]){dq, dk, dv});
    checkop_run(c, CHECKOP_attention_backward, &args);
    expect(c, &s, g.dq, s.tokens, k->heads, dq);
    expect(c, &s, g.dk, s.key_tokens, k->kv_heads, dk);
    expect(c, &s, g.dv, s.key_tokens, k->kv_heads, dv);
    attention_expect_repeats(c, &s, g.dq, 0, args.dq_stride, width);
    attention_expect_repeats(c, &s, g.dk, 0, args.dk_stride, kv_width);
    attention_expect_repeats(c, &s, g.dv, 0, args.dv_stride, kv_width);
    checkop_end(c);
}

static void bench(struct checkop *c, const struct attention_case *k, enum nb_dtype dtype)
{
    struct attention_setup s;
    struct nb_attention_backward args;
    struct gradients g;
    attention_begin(c, k, dtype, &s);
    bind(c, &s, &args, &g);
    uint64_t count = (uint64_t)s.tokens_max * (uint64_t)args.o_stride;
    checkop_bind(c, &args.o, checkop_input(c, "o", dtype, count));
    checkop_bind(c, &args.d_o, checkop_input(c, "d_o", dtype, count));
    checkop_bind(c, &args.lse, checkop_input(c, "lse", NB_DTYPE_F32, (uint64_t)k->heads * (uint64_t)s.tokens_max));
    double pairs = 0;
    for (int i = 0; i < s.sequences; i++)
        pairs += (double)k->queries[i] * (k->queries[i] + 1) / 2;
    checkop_bench(c, CHECKOP_attention_backward, &args, 8.0 * s.tokens * k->head_dim * (double)nb_dtype_bytes(dtype),
        10 * pairs * k->heads * k->head_dim);
}

static void refusals(struct checkop *c)
{
    const nb_dptr p = {4096};
    const struct nb_attention_backward good = {.q = p,
        .k = p,
        .v = p,
        .o = p,
        .lse = p,
        .d_o = p,
        .dq = {8192},
        .dk = {12288},
        .dv = {16384},
        .query_starts = p,
        .key_starts = p,
        .slot = p,
        .tokens_max = 8,
        .key_tokens_max = 8,
        .sequences_max = 1,
        .longest_max = 8,
        .heads = 2,
        .kv_heads = 2,
        .head_dim = 16,
        .q_stride = 32,
        .k_stride = 32,
        .v_stride = 32,
        .o_stride = 32,
        .d_o_stride = 32,
        .dq_stride = 32,
        .dk_stride = 32,
        .dv_stride = 32,
        .scale = 1};
    struct nb_attention_backward bad = good;
    bad.dq = p;
    checkop_refuses(c, CHECKOP_attention_backward, &bad, "dq");
    bad = good;
    bad.dv.address = 12288;
    checkop_refuses(c, CHECKOP_attention_backward, &bad, "dk and dv");
    bad = good;
    bad.lse.address = 0;
    checkop_refuses(c, CHECKOP_attention_backward, &bad, "lse is null");
    bad = good;
    bad.dk_stride = 24;
    checkop_refuses(c, CHECKOP_attention_backward, &bad, "dk_stride 24");
    bad = good;
    bad.activation = NB_DTYPE_U8;
    checkop_refuses(c, CHECKOP_attention_backward, &bad, "dtype");
}

void checkop_attention_backward(struct checkop *c)
{
    static const struct attention_case benches[] = {
        {.queries = {150, 150, 150, 150}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {256, 256, 256, 256}, .heads = 9, .kv_heads = 3, .head_dim = 64},
        {.queries = {4096}, .heads = 9, .kv_heads = 3, .head_dim = 64},
    };
    static const struct attention_case cases[] = {
        /* Small enough for differences: packed, grouped; a window; a soft cap; more keys than queries. */
        {.queries = {1, 6, 3},
            .heads = 4,
            .kv_heads = 2,
            .head_dim = 8,
            .stride_extra = 8,
            .rows_extra = 2,
            .differences = true},
        {.queries = {9}, .heads = 2, .kv_heads = 1, .head_dim = 8, .window = 3, .soft_cap = 1.5f, .differences = true},
        {.queries = {3, 2}, .keys = {8, 5}, .heads = 2, .kv_heads = 1, .head_dim = 8, .window = 4, .differences = true},
        /* The edges of the tiles, windows over several of them. */
        {.queries = {1, 5, 1, 17, 64}, .heads = 6, .kv_heads = 2, .head_dim = 16, .stride_extra = 8, .rows_extra = 3},
        {.queries = {65, 127}, .heads = 2, .kv_heads = 1, .head_dim = 24},
        {.queries = {129, 257}, .heads = 3, .kv_heads = 1, .head_dim = 64},
        {.queries = {200}, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 7},
        {.queries = {300}, .heads = 1, .kv_heads = 1, .head_dim = 16, .window = 130},
        {.queries = {70, 70}, .heads = 2, .kv_heads = 1, .head_dim = 32, .soft_cap = 2},
        {.queries = {66}, .keys = {200}, .heads = 2, .kv_heads = 1, .head_dim = 256, .rows_extra = 1},
        {.queries = {150}, .heads = 1, .kv_heads = 1, .head_dim = 64, .magnitude = 10},
        /* The GPU's tiles: 64 or 128 keys by 16, 32 or 48 queries, 64 or 128 queries by 16 or 32 keys; its kernels for
         * 64, 80, 96, 128 and 256 columns, and sizes between them. */
        {.queries = {63, 64, 65}, .heads = 2, .kv_heads = 1, .head_dim = 80},
        {.queries = {127, 128, 129}, .heads = 1, .kv_heads = 1, .head_dim = 96, .stride_extra = 16},
        {.queries = {31, 33, 47, 49, 95, 97}, .heads = 2, .kv_heads = 1, .head_dim = 128},
        {.queries = {127, 1, 129}, .heads = 2, .kv_heads = 2, .head_dim = 104, .window = 48},
        {.queries = {110}, .heads = 8, .kv_heads = 1, .head_dim = 72, .window = 64, .soft_cap = 3},
        {.queries = {140}, .heads = 2, .kv_heads = 1, .head_dim = 160, .window = 65},
        {.queries = {66}, .keys = {80}, .heads = 4, .kv_heads = 2, .head_dim = 256, .soft_cap = 30},
        {.queries = {129}, .keys = {180}, .heads = 2, .kv_heads = 1, .head_dim = 128, .window = 100},
        {.queries = {100}, .heads = 1, .kv_heads = 1, .head_dim = 64, .scale = -0.25f},
        /* Queries that see nothing; keys that no query sees. */
        {.queries = {5, 150, 2}, .keys = {2, 20, 9}, .heads = 2, .kv_heads = 1, .head_dim = 64},
        {.queries = {3}, .keys = {200}, .heads = 2, .kv_heads = 1, .head_dim = 64, .window = 5},
        /* More sequences than a warp looks at in one go; each is the same wherever it stands. */
        {.queries = {4, 5, 3, 6, 3, 4, 5, 6, 3, 4, 7, 3, 5, 4, 6, 1, 3, 4, 5, 3, 6, 4, 3, 5, 70, 4, 3, 6, 5, 3, 4, 7, 3,
             5, 4, 6, 3, 5},
            .heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .repeats = true},
        {.queries = {150, 7, 150, 64, 150},
            .heads = 1,
            .kv_heads = 1,
            .head_dim = 64,
            .stride_extra = 8,
            .rows_extra = 5,
            .repeats = true},
        {.queries = {1, 100, 100, 63, 100}, .heads = 2, .kv_heads = 1, .head_dim = 128, .window = 40, .repeats = true},
    };
    if (checkop_wants_bench(c)) {
        CHECKOP_EACH(c, benches, bench);
        return;
    }
    refusals(c);
    CHECKOP_EACH(c, cases, one);
}
